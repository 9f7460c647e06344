"""`manage.py erase_author`: redact an author and all that hangs on their prompts; first it says what that is."""

import argparse
import sys

from django.core.management.base import BaseCommand, CommandError

from labeling.actions import erasures, exports
from labeling.errors import HeedError
from labeling.models import Author, User


class Command(BaseCommand):
    help = (
        "Erase an author: their prompts, responses to those, and, if they have an account, it and their labels. What would be "
        "erased is shown first; nothing is done unless the author's key is typed, or given by --confirm. Cannot be undone."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("author", help="the author's key, or the e-mail address of an account")
        parser.add_argument("--dry-run", action="store_true", help="show what would be erased, and stop")
        parser.add_argument("--reason", default="", help="the request's reference; it must not name the person")
        parser.add_argument("--confirm", metavar="KEY", help="the author's key once more, in place of typing it")
        parser.add_argument("--by", metavar="EMAIL", help="the admin who decides; kept with the erasure")
        parser.add_argument(
            "--withdraw", action="store_true", help="withdraw the exports that held the person too: their files go"
        )

    def handle(self, *args: object, author: str, **options) -> None:
        found = _author(author)
        plan = erasures.plan(author=found)
        self._show(plan)
        if options["dry_run"]:
            return
        confirmation = options["confirm"]
        if confirmation is None:
            if not sys.stdin.isatty():
                raise CommandError("Nothing was erased: give --confirm KEY, or type it at a terminal.")
            confirmation = input(f"Type {found.key} to erase it for good: ")
        by = _person(options["by"])
        try:
            made = erasures.erase(author=found, confirmation=confirmation, reason=options["reason"], by=by)
            for holding in plan.exports if options["withdraw"] else ():
                exports.withdraw(export=holding.export, by=by)
                self.stdout.write(f"{holding.export.name} was withdrawn.")
        except HeedError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"Erased: {made.pseudonym}, {sum(made.counts.values())} rows.")

    def _show(self, plan: erasures.Plan) -> None:
        self.stdout.write(f"{plan.author.key} ({plan.pseudonym} in exports)")
        for name, count in plan.counts.items():
            self.stdout.write(f"  {name.replace('_', ' ')}: {count}")
        for held in plan.exports:
            what = (
                "may hold them (no files here)"
                if held.prompts is None
                else f"{held.prompts} prompts, {held.labels} labels"
            )
            self.stdout.write(f"  export {held.export.name}: {what}")
        for model in plan.models:
            self.stdout.write(f"  model {model.name}: trained on such an export, or made from one that was")


def _author(name: str) -> Author:
    if author := Author.objects.filter(key=name).first():
        return author
    if user := User.objects.filter(email=name.lower()).first():
        return erasures.author_of(user=user)
    raise CommandError(f"There is no author {name!r}.")


def _person(email: str | None) -> User | None:
    if email is None:
        return None
    person = User.objects.filter(email=email.lower()).first()
    if person is None:
        raise CommandError(f"There is no account {email}.")
    return person
