"""`manage.py seed_demo`: what a first look at Heed needs: people of every role, prompts, batches, a token for the training half.

Safe to repeat: what is there already stays as it is. Prompts, responses and batches go through the actions that people use.
"""

import argparse
import json
import os
import random
import secrets
from functools import partial
from pathlib import Path

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from labeling.actions import batches, exercises, imports, instructions, model_versions, tokens
from labeling.errors import HeedError
from labeling.management import demo_applicants
from labeling.models import ApiToken, Batch, Group, Import, Kind, Prompt, Role, User
from training import tinyworld

PEOPLE = {  # address → roles, group, name
    "admin@demo.example": ([Role.ADMIN], Group.TRAINING, "Amir Admin"),
    "researcher@demo.example": ([Role.RESEARCHER], Group.TRAINING, "Rosa Researcher"),
    "reviewer@demo.example": ([Role.REVIEWER], Group.TRAINING, "Rui Reviewer"),
    "labeler@demo.example": ([Role.LABELER], Group.TRAINING, "Lena Labeler"),
    "labeler2@demo.example": ([Role.LABELER], Group.TRAINING, "Luis Labeler"),
    "newcomer@demo.example": ([Role.LABELER], Group.TRAINING, "Nia Newcomer"),
    "heldout@demo.example": ([Role.LABELER], Group.HELD_OUT, "Hedda Held-Out"),
    "applicant@demo.example": ([Role.APPLICANT], Group.TRAINING, "Ada Applicant"),
    demo_applicants.MIDWAY: ([Role.APPLICANT], Group.TRAINING, "Milo Midway"),
    demo_applicants.WAITING: ([Role.APPLICANT], Group.TRAINING, "Cara Candidate"),
}
NEWCOMER = "newcomer@demo.example"  # accepted just now: reads the instructions before the first task
WRITTEN = settings.BASE_DIR / "labeling" / "demo_responses.jsonl"  # a few prompts with four responses each, by hand
TINY_PROMPTS = 40
TINY_MODELS = {  # name → coverage of what the prompt asks for, share of courteous answers
    "demo-careful": (1.0, 0.8),
    "demo-brief": (0.85, 0.0),
    "demo-rambling": (0.5, 0.5),
    "demo-careless": (0.0, 0.2),
}
RANKING_INSTRUCTIONS = """Rate every response from 1 to 7, then rank them. Helpful comes first: does it do what was asked?
Then true, then harmless. Responses that are equally good share a rank."""
DEMONSTRATION_INSTRUCTIONS = "Write the response that you would have liked to get."
TOKEN_NAME = "demo training"  # noqa: S105 (a name, not a secret)
TOKEN_SCOPES = ["read", "import", "train", "promote"]  # what the training half needs, and no more


class Command(BaseCommand):
    help = "Make demo people (password: HEED_DEMO_PASSWORD), prompts, responses, batches and a token. Safe to repeat."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Where the demo keeps what it shows and hands on."""
        parser.add_argument(
            "--folder", type=Path, default=settings.VAR_DIR / "demo", help="folder for welcome.txt and token"
        )
        parser.add_argument("--migrate", action="store_true", help="bring the tables up to date first")
        parser.add_argument("--base-model", type=Path, metavar="FOLDER", help="model to serve when none does yet")

    def handle(self, *args: object, **options) -> None:
        """Seed, then write the welcome that `make demo` prints."""
        if options["migrate"]:
            call_command("migrate", interactive=False, verbosity=0)
        password = os.environ.get("HEED_DEMO_PASSWORD")
        if not password:
            raise CommandError("Set HEED_DEMO_PASSWORD: the password of the demo people.")
        folder: Path = options["folder"]
        folder.mkdir(parents=True, exist_ok=True)
        for email in PEOPLE:
            make_person(email, password)
        keep_token(folder / "token")
        researcher = User.objects.get(email="researcher@demo.example")
        make_batches(by=researcher)
        publish_instructions(by=researcher)
        demo_applicants.make_applicants(grader=User.objects.get(email="admin@demo.example"))
        (folder / "welcome.txt").write_text(welcome(password))
        if options["base_model"]:
            self._bring_base_model(options["base_model"])

    def _bring_base_model(self, folder: Path) -> None:
        """Register a model; let it serve when nothing does yet. A model that is refused does not stop a demo."""
        admin = User.objects.get(email="admin@demo.example")
        try:
            version = model_versions.register_folder(folder=folder, by=admin)
            if model_versions.serving_policy() is None:
                model_versions.promote(model_version=version, reason="first policy of the demo", by=admin)
        except HeedError as error:
            self.stderr.write(f"{folder} was not registered: {error}")


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


def make_batches(*, by: User) -> None:
    """Prompts with responses, and four batches over them. Left alone once the last of them is there."""
    if Batch.objects.filter(name="Demo: held-out rankings").exists():
        return
    imports.import_rows(kind=Import.Kind.RESPONSES, rows=[*written_rows(), *tiny_rows()], by=by)
    ids = {
        name: tuple(
            str(uuid) for uuid in Prompt.objects.filter(external_id__startswith=name).values_list("uuid", flat=True)
        )
        for name in ("demo-", "tiny-")
    }
    everything = sorted(ids["demo-"] + ids["tiny-"])
    rank = partial(batches.create_batch, kind=Kind.RANKING, k=4, instructions=RANKING_INSTRUCTIONS, by=by)
    rank(name="Demo: rankings", prompt_ids=ids["demo-"], overlap=2, priority=1)
    batches.create_batch(
        name="Demo: demonstrations",
        kind=Kind.DEMONSTRATION,
        prompt_ids=everything,
        instructions=DEMONSTRATION_INSTRUCTIONS,
        by=by,
    )
    rank(name="Demo: tiny-world rankings", prompt_ids=ids["tiny-"], group=Group.TRAINING)
    rank(name="Demo: held-out rankings", prompt_ids=everything, group=Group.HELD_OUT)


def publish_instructions(*, by: User) -> None:
    """The texts and exercises that Heed ships, where none are there; the demo's labelers know them, except the newcomer."""
    exercises.load(rows=exercises.read_file(exercises.DEFAULT_FILE), by=by)
    for kind in Kind.values:
        if instructions.current(kind) is None:
            said = instructions.default_text(kind)
            published = instructions.publish(kind=kind, text=said["text"], examples=said["examples"], by=by)
            for labeler in User.objects.with_role(Role.LABELER).filter(email__in=set(PEOPLE) - {NEWCOMER}):
                instructions.acknowledge(instructions=published, by=labeler)
                while attempt := exercises.next_practice(kind=kind, by=labeler):
                    exercises.submit_practice(attempt=attempt, content=attempt.exercise.reference, by=labeler)


def written_rows() -> list[dict]:
    """The rows of demo_responses.jsonl."""
    return [json.loads(line) for line in WRITTEN.read_text(encoding="utf-8").splitlines()]


def tiny_rows() -> list[dict]:
    """Prompts of the tiny world, which the tiny base model understands, with responses of four qualities."""
    rng = random.Random("demo")
    rows = []
    for row in tinyworld.prompts(TINY_PROMPTS, seed=0):
        ask = tinyworld.read_ask(row["prompt"])
        responses = [
            {"model": model, "text": tinyworld.draw_answer(ask, rng, coverage, courteous)}
            for model, (coverage, courteous) in TINY_MODELS.items()
        ]
        rows.append(row | {"responses": responses})
    return rows


def keep_token(path: Path) -> None:
    """A file with a valid API token for the training half, readable by its owner alone."""
    if path.exists() and tokens.find(path.read_text().strip()):
        return
    user = User.objects.get(email="admin@demo.example")
    for old in ApiToken.objects.filter(user=user, name=TOKEN_NAME, revoked_at=None):
        tokens.revoke(token=old, by=user)
    _, secret = tokens.create(user=user, name=TOKEN_NAME, scopes=TOKEN_SCOPES)
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
        f"\nHeed is at  http://127.0.0.1:{port}\n"
        f"The serving policy, for OpenAI's clients with a key of Heed: {settings.GATEWAY_PUBLIC_URL}/v1\n\n"
        f"  Log in as (the password of all is  {password}):\n{people}\n\n"
        "  Commands beside it:  set -a; . var/env; set +a; .venv/bin/python manage.py help\n"
        "  Logs: var/log.  Stop: Ctrl-C here, or `make stop` anywhere.\n"
    )
