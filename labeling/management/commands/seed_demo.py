"""`manage.py seed_demo`: what a first look at Heed needs: people of every role, prompts, batches, a token for the training half.

Safe to repeat: what is there already stays as it is. Prompts, responses and batches go through the actions that people use.
"""

import argparse
import os
import secrets
from pathlib import Path

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from labeling.actions import tokens
from labeling.models import ApiToken, Group, Role, User

PEOPLE = {  # address → roles, group, name
    "admin@demo.example": ([Role.ADMIN], Group.TRAINING, "Amir Admin"),
    "researcher@demo.example": ([Role.RESEARCHER], Group.TRAINING, "Rosa Researcher"),
    "reviewer@demo.example": ([Role.REVIEWER], Group.TRAINING, "Rui Reviewer"),
    "labeler@demo.example": ([Role.LABELER], Group.TRAINING, "Lena Labeler"),
    "labeler2@demo.example": ([Role.LABELER], Group.TRAINING, "Luis Labeler"),
    "heldout@demo.example": ([Role.LABELER], Group.HELD_OUT, "Hedda Held-Out"),
    "applicant@demo.example": ([Role.APPLICANT], Group.TRAINING, "Ada Applicant"),
}
TOKEN_NAME = "demo training"  # noqa: S105 (a name, not a secret)


class Command(BaseCommand):
    help = "Make demo people (password: HEED_DEMO_PASSWORD), prompts, responses, batches and a token. Safe to repeat."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Where the demo keeps what it shows and hands on."""
        parser.add_argument(
            "--folder", type=Path, default=settings.VAR_DIR / "demo", help="folder for welcome.txt and token"
        )

    def handle(self, *args: object, **options) -> None:
        """Seed, then write the welcome that `make demo` prints."""
        password = os.environ.get("HEED_DEMO_PASSWORD")
        if not password:
            raise CommandError("Set HEED_DEMO_PASSWORD: the password of the demo people.")
        folder: Path = options["folder"]
        folder.mkdir(parents=True, exist_ok=True)
        for email in PEOPLE:
            make_person(email, password)
        keep_token(folder / "token")
        (folder / "welcome.txt").write_text(welcome(password))


def make_person(email: str, password: str) -> User:
    """The demo person with this address. One who is there already keeps roles and group; the password follows the demo's."""
    roles, group, name = PEOPLE[email]
    user = User.objects.filter(email=email).first()
    if user is None:
        user = User.objects.create_user(email, password, name=name, group=group)
        for role in roles:
            user.grant(role)
    elif not user.check_password(password):
        user.set_password(password)
        user.save(update_fields=["password"])
    return user


def keep_token(path: Path) -> None:
    """A file with a valid API token for the training half, readable by its owner alone."""
    if path.exists() and tokens.find(path.read_text().strip()):
        return
    user = User.objects.get(email="admin@demo.example")
    for old in ApiToken.objects.filter(user=user, name=TOKEN_NAME, revoked_at=None):
        tokens.revoke(token=old, by=user)
    _, secret = tokens.create(user=user, name=TOKEN_NAME, scopes=list(ApiToken.Scope.values))
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret + "\n")
    fresh.rename(path)


def welcome(password: str) -> str:
    """Where to go, and who can log in."""
    port = os.environ.get("PORT") or "8000"
    people = "\n".join(
        f"    {email:<26} {', '.join(roles)}{' (held-out)' * (group == Group.HELD_OUT)}"
        for email, (roles, group, _) in PEOPLE.items()
    )
    return (
        f"\nHeed is at  http://127.0.0.1:{port}\n\n"
        f"  Log in as (the password of all is  {password}):\n{people}\n\n"
        "  Commands beside it:  set -a; . var/env; set +a; .venv/bin/python manage.py help\n"
        "  Logs: var/log.  Stop: Ctrl-C here, or `make stop` anywhere.\n"
    )
