"""`manage.py load_exercises`: practice and screening items from JSONL files."""

import argparse
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError

from labeling.actions import exercises
from labeling.errors import HeedError


class Command(BaseCommand):
    help = (
        "Load exercises (practice and screening items), one JSON object a line: purpose (practice, screening), part (flagging, "
        "ranking, demonstration), prompt or messages, responses {id: text}, reference (an answer: prompt_flags, tiers and ratings, "
        "or text), reference_by, explanation. All or none; those that are there already are passed over."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Files, or the set that ships."""
        parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="JSONL files")
        parser.add_argument("--default", action="store_true", help="the set that Heed ships (labeling/defaults)")

    def handle(self, *args: object, **options) -> None:
        """Read all files, then load them."""
        files = [*options["files"], *([exercises.DEFAULT_FILE] if options["default"] else [])]
        if not files:
            raise CommandError("Name a file, or --default.")
        try:
            rows = [row for path in files for row in exercises.read_file(path)]
            new = exercises.load(rows=rows, by=None)
        except HeedError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"{new} exercises are new, {len(rows) - new} were there already.")
