"""`manage.py promote`: decide which policy serves."""

import argparse

from django.core.management.base import BaseCommand, CommandError

from labeling.actions import model_versions
from labeling.errors import HeedError
from labeling.models import ModelVersion, User


class Command(BaseCommand):
    help = "Let a registered policy serve, or take the serving one back. The policy before is retired in the same step."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("name", nargs="?", help="name of the model version that is to serve")
        which.add_argument(
            "--rollback", action="store_true", help="go back to the policy that the serving one replaced"
        )
        parser.add_argument("--reason", required=True, help="why; kept with the promotion")
        parser.add_argument(
            "--override", metavar="NAME", default="", help="promote what the gate refused: who decides so; kept as well"
        )
        parser.add_argument("--by", metavar="EMAIL", help="who decides; kept with the promotion")

    def handle(self, *args: object, name: str | None, rollback: bool, reason: str, **options) -> None:
        by = _person(options["by"])
        try:
            if rollback:
                promotion = model_versions.rollback(reason=reason, by=by)
            else:
                promotion = model_versions.promote(
                    model_version=_model(name or ""), reason=reason, override_by=options["override"], by=by
                )
        except HeedError as error:
            raise CommandError(_with_places(error)) from error
        before = f", instead of {promotion.previous.name}" if promotion.previous else ""
        self.stdout.write(f"{promotion.model_version.name} serves{before}.")


def _with_places(error: HeedError) -> str:
    lines = [f"  {problem['place']}: {problem['message']}" for problem in getattr(error, "errors", [])]
    return "\n".join([str(error), *lines])


def _person(email: str | None) -> User | None:
    if email is None:
        return None
    person = User.objects.filter(email=email.lower()).first()
    if person is None:
        raise CommandError(f"There is no account {email}.")
    return person


def _model(name: str) -> ModelVersion:
    version = ModelVersion.objects.filter(name=name).first()
    if version is None:
        raise CommandError(f"There is no model named {name!r}.")
    return version
