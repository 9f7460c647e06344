"""`manage.py postgres`: run this clone's embedded PostgreSQL in the foreground, or ask about it."""

import argparse
from pathlib import Path

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from labeling import postgres


class Command(BaseCommand):
    help = "Run the embedded PostgreSQL in the foreground, as its sole owner, until Ctrl-C or SIGTERM (fast stop)."
    requires_system_checks = []

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """What to do instead of running, and for which clone."""
        instead = parser.add_mutually_exclusive_group()
        instead.add_argument(
            "--status", action="store_true", help="say who runs it and where; exit 3 if it takes no connections"
        )
        instead.add_argument(
            "--wait", type=float, metavar="SECONDS", help="wait until it takes connections, SECONDS at most"
        )
        instead.add_argument("--stop", action="store_true", help="stop the process that runs it, and wait for its end")
        parser.add_argument(
            "--base-dir",
            type=Path,
            default=settings.BASE_DIR,
            help="folder whose var/postgres holds the cluster (default: this clone)",
        )
        parser.add_argument(
            "--throwaway", action="store_true", help="faster, but a power cut loses the data: for tests"
        )

    def handle(self, *args: object, **options) -> None:
        """Translate the options into calls, and errors into one line."""
        base_dir = options["base_dir"]
        try:
            if options["status"]:
                self._print_status(base_dir)
            elif options["wait"] is not None:
                postgres.wait_until_ready(postgres.embedded_url(base_dir), options["wait"], base_dir)
            elif options["stop"]:
                self.stdout.write("Stopped." if postgres.stop_owner(base_dir) else "It was not running.")
            else:
                postgres.run_owner(base_dir, is_durable=not options["throwaway"], say=self._say)
        except postgres.PostgresError as error:
            raise CommandError(str(error)) from error

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()

    def _print_status(self, base_dir: Path) -> None:
        status = postgres.read_status(base_dir)
        owner = f"process {status.owner_pid}" if status.is_owned else "nobody"
        accepting = "takes connections" if status.is_accepting else "takes no connections"
        self.stdout.write(f"{accepting}\nowner  {owner}\ndata   {status.data}\nurl    {status.url}")
        if not status.is_accepting:
            raise SystemExit(3)
