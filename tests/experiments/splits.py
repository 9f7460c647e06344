"""An author's split is for ever: prompts keep theirs, whatever is imported after them, and so do the authors.

Some thousand prompts come in by the command, then many more by the same authors and by others, some without an author.

    python -m tests.experiments.splits --more 1000000
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

from tests.loop.site import ROOT, throwaway_site

FIRST, FIRST_AUTHORS = 5000, 1000


def write_rows(path: Path, prompts: int, authors: int, seed: int) -> Path:
    """An import file: so many prompts, three quarters of them by one of so many authors."""
    rng = random.Random(seed)
    with path.open("w") as file:
        for n in range(prompts):
            row = {"prompt": f"{seed} {n} {rng.getrandbits(64):x}: why is the sky blue?"}
            if rng.random() < 0.75:
                row["author"] = f"author-{rng.randrange(authors)}"
            file.write(json.dumps(row) + "\n")
    return path


def run(folder: Path, *, first: int, first_authors: int, more: int, more_authors: int) -> dict:
    """What happened. Needs Django set up, on a database of its own. Raises AssertionError if a split changed."""
    from django.db.models import Count

    from labeling.models import Author, Prompt

    _import(write_rows(folder / "first.jsonl", first, first_authors, seed=1))
    before = dict(Prompt.objects.values_list("uuid", "split"))
    authors = dict(Author.objects.values_list("key", "split"))
    seconds = _import(write_rows(folder / "more.jsonl", more, more_authors, seed=2))
    assert len(before) == first
    assert Prompt.objects.count() == first + more
    after = Prompt.objects.filter(uuid__in=before.keys()).values_list("uuid", "split")
    assert dict(after) == before, "a prompt's split changed"
    kept = Author.objects.filter(key__in=authors.keys()).values_list("key", "split")
    assert dict(kept) == authors, "an author's split changed"
    strays = Author.objects.annotate(n=Count("prompts__split", distinct=True)).filter(n__gt=1).count()
    assert strays == 0, f"{strays} authors have prompts in two splits"
    shares = Author.objects.values_list("split").annotate(n=Count("pk")).order_by("split")
    return {"seconds": round(seconds, 1), "prompts": first + more, "authors": dict(shares), "changed": 0}


def _import(path: Path) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "manage.py", "import_prompts", str(path)], cwd=ROOT, check=True)
    return time.perf_counter() - began


def main() -> None:
    """Print what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--more", type=int, default=1_000_000, help="prompts that come later (default 1000000)")
    more = parser.parse_args().more
    folder = ROOT / "var" / "splits"
    with throwaway_site(folder):
        import django

        django.setup()
        print(json.dumps(run(folder, first=FIRST, first_authors=FIRST_AUTHORS, more=more, more_authors=more // 20)))


if __name__ == "__main__":
    main()
