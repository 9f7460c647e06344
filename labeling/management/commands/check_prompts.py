"""`manage.py check_prompts`: intake's checks of what waits, in the foreground."""

import argparse
import time

from django.core.management.base import BaseCommand
from tqdm import tqdm

from labeling.actions import intake
from labeling.models import Intake, Prompt


class Command(BaseCommand):
    help = (
        "Check prompts that wait for intake (personal data, copies, limits, language), as the worker does by itself. "
        "May run beside it, and in several processes at once."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--seconds", type=float, help="stop after so long; default: when nothing waits any more")

    def handle(self, *args: object, seconds: float | None, **options) -> None:
        """Check, showing how far it is, and say how fast it went."""
        began, total = time.monotonic(), Prompt.objects.filter(intake=Intake.WAITING).count()
        with tqdm(total=total, unit="prompt", disable=None, leave=False) as bar:
            chunks: list[int] = []

            def note(count: int) -> None:
                chunks.append(count)
                bar.update(count)

            intake.check_waiting(seconds=seconds, progress=note)
        checked, took = sum(chunks), max(time.monotonic() - began, 1e-9)
        self.stdout.write(f"{checked:,} prompts checked in {took:,.1f} s ({checked / took:,.0f} prompts/s)")
