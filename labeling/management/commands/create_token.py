"""`manage.py create_token`: make an API token for a program."""

import argparse
import os
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError

from labeling.actions import tokens
from labeling.errors import HeedError
from labeling.models import ApiToken, User


class Command(BaseCommand):
    help = "Make an API token that acts for a person. Its secret is shown once; only a hash of it is kept."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        scopes = ", ".join(f"{value} ({label})" for value, label in ApiToken.Scope.choices)
        parser.add_argument(
            "email", help="the person for whom the program acts; the token can do no more than they may"
        )
        parser.add_argument("name", help="what the token is for; at most 100 characters")
        parser.add_argument(
            "--scope", action="append", required=True, metavar="SCOPE", help=f"may be repeated: {scopes}"
        )
        parser.add_argument("--days", type=int, default=365, help="days until it expires, 1 to 3650 (default 365)")
        parser.add_argument("--write", type=Path, metavar="FILE", help="write the secret here, readable by you alone")

    def handle(self, *args: object, email: str, name: str, **options) -> None:
        user = User.objects.filter(email=email.lower()).first()
        if user is None:
            raise CommandError(f"There is no account {email}.")
        if not 1 <= options["days"] <= 3650:
            raise CommandError(f"--days {options['days']}: expected 1 to 3650")
        try:
            token, secret = tokens.create(user=user, name=name, scopes=options["scope"], days=options["days"])
        except HeedError as error:
            raise CommandError(str(error)) from None
        if path := options["write"]:
            _write_private(path, secret)
            self.stdout.write(f"{token.name}: written to {path}; expires {token.expires_at:%Y-%m-%d}")
        else:
            self.stdout.write(secret)


def _write_private(path: Path, secret: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)  # the file may have been there with wider rights
        file.write(secret + "\n")
