"""What `import_prompts` and `import_responses` share: options, progress bar, and errors as lines."""

import argparse
from collections.abc import Callable
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from labeling.actions import intake
from labeling.actions.import_files import FORMATS, Columns
from labeling.errors import HeedError, Invalid
from labeling.models import Import, User

CHECKED_HERE = 5000  # prompts: some seconds

FILES = "JSON Lines (also .gz), CSV, TSV, Parquet or Arrow; or a folder of them, as `datasets` saves or publishes it"
FORMAT = """
formats:
  heed           rows of the fields above
  hh-rlhf        pairs {chosen, rejected} of conversations, or with {prompt}: the prompts, and as responses both answers
  oasst          Open-Assistant's trees, or their messages one by one: every prompter's turn as a prompt; its first-ranked
                 reply as a demonstration, or as responses all replies
  self_instruct  Self-Instruct's tasks: prompts and demonstrations
  jsonl, csv, tsv, parquet, arrow  rows of the fields above, in a file whose name does not tell how it is written
  Which answer was chosen, and how replies were ranked, does not come in: those labels were not given here.
"""
MAPPING = """
columns:
  Without a mapping, columns must be named as the fields above. With one, columns that are neither mapped nor named as a
  field are left unread. A dotted path reaches into nested data: --map prompt=turns.0.text
"""


class ImportCommand(BaseCommand):
    """Imports files one after the other; each is all or nothing, and safe to repeat."""

    action: Callable[..., Import]
    fields = ""

    def create_parser(self, prog_name: str, subcommand: str, **kwargs):
        """Keep the line breaks of the epilog."""
        kwargs |= {"epilog": self.fields + FORMAT + MAPPING, "formatter_class": argparse.RawDescriptionHelpFormatter}
        return super().create_parser(prog_name, subcommand, **kwargs)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The same for both kinds."""
        add = parser.add_argument
        add("files", nargs="+", type=Path, metavar="FILE", help=FILES)
        add(
            "--format",
            choices=FORMATS,
            default="heed",
            help="of the rows, or how a file is written whose name does not tell (default: heed)",
        )
        add("--map", action="append", default=[], metavar="FIELD=COLUMN", help="fill a field from a column")
        add("--constant", action="append", default=[], metavar="FIELD=TEXT", help="fill a field with the same text")
        add(
            "--template", action="append", default=[], metavar="FIELD=TEXT", help="fill a field with text and {columns}"
        )
        add(
            "--later",
            action="store_true",
            help=f"leave the checks of new prompts to the worker, as it is done anyway above {CHECKED_HERE:,} prompts",
        )
        add("--by", metavar="EMAIL", help="who imports; kept with the import")

    def handle(self, *args: object, files: list[Path], **options) -> None:
        """Import each file and say what came of it."""
        by = self._person(options["by"])
        for path in files:
            try:
                columns = Columns.parse(map=options["map"], constant=options["constant"], template=options["template"])
                done = self._import(path, options["format"], columns, by)
            except Invalid as error:
                lines = [f"{e['place']}: {e['message']}" for e in error.errors] or [str(error)]
                raise CommandError("\n".join([*lines, f"{path.name}: refused; nothing of it was stored."])) from None
            except HeedError as error:
                raise CommandError(str(error)) from None
            except KeyboardInterrupt:
                said = f"{path.name}: interrupted; an import is stored whole or not at all. Give the command again."
                raise CommandError(said, returncode=130) from None
            if not options["later"] and done.counts.get("prompts_waiting", CHECKED_HERE + 1) <= CHECKED_HERE:
                self._check(done)
            counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in done.counts.items())
            self.stdout.write(f"{path.name}: {counts}")

    def _import(self, path: Path, form: str, columns: Columns, by: User | None) -> Import:
        bar_format = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} < {remaining}"
        with tqdm(total=1.0, desc=path.name, bar_format=bar_format, disable=None, leave=False) as bar:
            return type(self).action(
                path=path, form=form, columns=columns, progress=lambda done: bar.update(done - bar.n), by=by
            )

    def _check(self, done: Import) -> None:
        new = done.counts["prompts_new"]
        with tqdm(total=new, initial=done.checked, unit="prompt", desc="checks", disable=None, leave=False) as bar:
            intake.finish_import(record=done, progress=bar.update)

    def _person(self, email: str | None) -> User | None:
        if email is None:
            return None
        person = User.objects.filter(email=email.lower()).first()
        if person is None:
            raise CommandError(f"There is no account {email}.")
        return person
