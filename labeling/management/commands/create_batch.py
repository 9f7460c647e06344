"""`manage.py create_batch`: order a batch of tasks."""

import argparse
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError

from labeling.actions import batch_rows, batches
from labeling.errors import HeedError
from labeling.models import Batch, Group, Kind, Prompt, Split


class Command(BaseCommand):
    help = (
        "Make a batch: choose prompts (and K responses of each, for a ranking), and lay out tasks and seats. "
        "Asked again with the same options it answers with the same batch; nothing is doubled."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("name", help="name of the batch, at most 100 characters, unique")
        add("--kind", choices=Kind.values, required=True, help="what each task asks for")
        add(
            "--purpose",
            choices=Batch.Purpose.values,
            default=Batch.Purpose.LABELING.value,
            help="evaluation: compare the models named, one response of each on every prompt of the test split, by held-out "
            "labelers; --k, --split and --must-include are left out then",
        )
        add("--k", type=int, metavar="RESPONSES", help="responses per task, 2 to 12 (ranking only, required there)")
        add(
            "--model",
            action="append",
            default=[],
            metavar="NAME",
            help="take responses of this model; may be repeated; default: all models",
        )
        add(
            "--must-include",
            action="append",
            default=[],
            metavar="NAME",
            help="every task has a response of this model; may be repeated",
        )
        add("--overlap", type=int, default=1, metavar="LABELERS", help="labelers per task, 1 to 50 (default 1)")
        add(
            "--group",
            choices=[*Group.values, batches.ANY_GROUP],
            default="",
            help="only labelers of this group (default: any; held_out for an evaluation)",
        )
        add(
            "--language",
            default="",
            metavar="CODE",
            help="only prompts in this language (ISO 639, as intake told it), and labelers who know it (default: any)",
        )
        add(
            "--skill",
            action="append",
            default=[],
            metavar="NAME",
            dest="skills",
            help="only labelers who have this skill; may be repeated",
        )
        add("--split", choices=Split.values, default="", help="only prompts of this split (default: any)")
        add("--use-case", default="", help="only prompts of this use case")
        add("--source", choices=Prompt.Source.values, default="", help="only prompts that came this way")
        add("--prompt-kind", choices=Prompt.Kind.values, default="", help="only prompts of this kind")
        add("--prompt-ids", type=Path, metavar="FILE", help="only the prompts whose UUIDs stand in FILE, one per line")
        add("--only-new", action="store_true", help="leave out prompts that have a task of this kind already")
        add(
            "--limit",
            type=int,
            metavar="TASKS",
            help="at most so many tasks, chosen at random by --seed (default: all)",
        )
        add("--seed", type=int, default=0, help="decides which prompts and responses are taken (default 0)")
        add("--priority", type=int, default=0, help="-1000 to 1000; higher is handed out first (default 0)")
        add("--instructions", type=Path, metavar="FILE", help="Markdown shown beside every task")
        add("--schema-version", type=int, metavar="VERSION", help="version of the rating form (default: the newest)")

    def handle(self, *args: object, **options) -> None:
        try:
            batch = batches.create_batch(
                name=options["name"],
                kind=options["kind"],
                model_names=options["model"],
                must_include=options["must_include"],
                instructions=_read(options["instructions"]),
                prompt_ids=_read(options["prompt_ids"]).split(),
                by=None,
                **{name: options[name] for name in SAME_NAMES},
            )
        except HeedError as error:
            raise CommandError(str(error)) from error
        left_out = {name: count for name in batch_rows.LEFT_OUT if (count := batch.counts.get(name))}
        self.stdout.write(f"{batch.name}: {batch.counts['tasks']} tasks, {batch.counts['seats']} seats")
        for reason, count in left_out.items():
            self.stdout.write(f"  left out: {count} prompts that {batch_rows.LEFT_OUT[reason]}")


SAME_NAMES = (
    "purpose", "k", "overlap", "group", "language", "skills", "split", "use_case", "source", "prompt_kind", "only_new", "limit", "seed",
    "priority",
    "schema_version",
)  # fmt: skip


def _read(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: {error}") from error
