"""`manage.py build_export`: freeze a selection of labels into a numbered folder."""

import argparse
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from labeling.actions import exports
from labeling.errors import HeedError
from labeling.models import Group, Origin, Split, User
from training.contract import ContractError


class Command(BaseCommand):
    help = (
        "Build an export under var/exports and print its name and folder. The same selection of the same data gives the "
        "export that is there already. Without options: all accepted and unreviewed labels by people, and imported ones."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        def add(flag: str, help_text: str, choices: list[str] | None = None) -> None:
            parser.add_argument(flag, action="append", default=[], choices=choices, metavar="NAME", help=help_text)

        states = sorted(exports.CHOICES["review"])
        origins = ["import", *Origin.values]
        add(
            "--batch",
            "only labels of this batch; may be repeated, as all of these (default: all batches but evaluations)",
        )
        add("--split", f"only prompts of this split: {', '.join(Split.values)}", Split.values)
        add("--use-case", "only prompts of this use case")
        add("--group", f"only labelers of this group: {', '.join(Group.values)}", Group.values)
        add("--origin", f"who made the labels: {', '.join(origins)} (default: person and import)", origins)
        add("--review", f"state of review: {', '.join(states)} (default: accepted and unreviewed)", states)
        parser.add_argument(
            "--since", metavar="DAY", help="only labels handed in on this day (2026-01-31, UTC) or later"
        )
        parser.add_argument("--until", metavar="DAY", help="only labels handed in on this day or before")
        parser.add_argument(
            "--schema",
            action="append",
            type=int,
            default=[],
            metavar="VERSION",
            help="only labels of this label schema",
        )
        parser.add_argument(
            "--min-agreement",
            type=float,
            metavar="SHARE",
            help="only rankings of tasks whose labelers agree on this share of comparisons, 0 to 1, as last computed; "
            "tasks ranked once have none and stay out",
        )
        parser.add_argument(
            "--pairs", action="store_true", help="rankings also as pairs (prompt, chosen, rejected), which TRL reads"
        )
        parser.add_argument("--surplus", action="store_true", help="with work outside the ordered overlap")
        parser.add_argument("--by", metavar="EMAIL", help="who asks; kept with the export")

    def handle(self, *args: object, **options) -> None:
        names = {"batch": "batches", "split": "splits", "use_case": "use_cases", "group": "groups", "origin": "origins"}
        query: dict[str, Any] = {key: options[name] for name, key in names.items() if options[name]}
        names = {"review": "review", "since": "since", "until": "until", "schema": "schemas", "pairs": "pairs"}
        query |= {key: options[name] for name, key in names.items() if options[name]}
        if options["min_agreement"] is not None:
            query["min_agreement"] = options["min_agreement"]
        try:
            export = exports.build(query=query | {"surplus": options["surplus"]}, by=_person(options["by"]))
        except (HeedError, ContractError, OSError) as error:
            raise CommandError(str(error)) from None
        counts = ", ".join(f"{count} {name}" for name, count in export.counts_in_order.items())
        self.stdout.write(f"{export.name}  {export.folder}  ({counts})")


def _person(email: str | None) -> User | None:
    if email is None:
        return None
    person = User.objects.filter(email=email.lower()).first()
    if person is None:
        raise CommandError(f"There is no account {email}.")
    return person
