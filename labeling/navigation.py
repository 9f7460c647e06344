"""The navigation: sections, and the pages of the one that is open. What a person may not open is not there."""

from typing import NamedTuple

from django.http import HttpRequest
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from labeling.models import Role, User

TEAM = (Role.REVIEWER, Role.RESEARCHER)


class Page(NamedTuple):
    """A link. `roles` may open it; `more` are other paths that belong to it."""

    name: str
    label: Promise
    roles: tuple[Role, ...]
    more: tuple[str, ...] = ()

    def share_of(self, path: str) -> int:
        """How many characters of the path are this page's: the longest wins, 0 is none."""
        return max(len(each) if path.startswith(each) else 0 for each in (reverse(self.name), *self.more))


SECTIONS: tuple[tuple[Promise, tuple[Page, ...]], ...] = (
    (
        _("Label"),
        (
            Page("tasks", _("Tasks"), (Role.LABELER,), ("/instructions/", "/practice/")),
            Page("writings", _("Prompts"), (Role.LABELER,)),
            Page("history", _("History"), (Role.LABELER,)),
            Page("questions", _("Questions"), (Role.LABELER,)),
            Page("hours", _("Hours"), (Role.LABELER,)),
            Page("playground", _("Playground"), (Role.LABELER,)),
        ),
    ),
    (
        _("Review"),
        (
            Page("reviews", _("Submissions"), TEAM),
            Page("adjudications", _("Adjudication"), TEAM, ("/console/tasks/",)),
            Page("second_review_list", _("Second reviews"), TEAM),
            Page("question_queue", _("Questions asked"), TEAM),
        ),
    ),
    (
        _("Quality"),
        (
            Page("dashboards", _("Dashboards"), TEAM),
            Page("agreement_reports", _("Agreement"), TEAM),
            Page("labelers", _("Labelers"), TEAM),
            Page("gold", _("Gold"), TEAM),
        ),
    ),
    (
        _("Batches"),
        (
            Page("batches", _("All batches"), TEAM),
            Page("instructions_list", _("Instructions"), TEAM),
            Page("label_schemas", _("Forms"), TEAM),
            Page("use_cases", _("Use cases"), (Role.RESEARCHER,)),
        ),
    ),
    (
        _("Data"),
        (
            Page("imports", _("Imports"), (Role.RESEARCHER,)),
            Page("intake", _("Intake"), (Role.RESEARCHER,)),
            Page("exports", _("Exports"), (Role.RESEARCHER,)),
            Page("model_versions", _("Models"), (Role.RESEARCHER,)),
            Page("playground", _("Playground"), TEAM),
        ),
    ),
    (
        _("People"),
        (
            Page("candidates", _("Screening"), (Role.RESEARCHER,)),
            Page("exercises", _("Exercises"), (Role.RESEARCHER,)),
            Page("hours_all", _("All hours"), TEAM),
            Page("people", _("Accounts"), (Role.ADMIN,)),
        ),
    ),
    (
        _("Administration"),
        (
            Page("gateway_keys", _("Keys"), (Role.ADMIN,)),
            Page("webhooks", _("Webhooks"), (Role.ADMIN,)),
            Page("erasures", _("Erasures"), (Role.ADMIN,)),
            Page("admin:index", _("Rows"), (Role.ADMIN,)),
        ),
    ),
)


class Link(NamedTuple):
    """A link as the template draws it."""

    label: Promise
    href: str
    is_current: bool


def links(request: HttpRequest, user: User) -> tuple[list[Link], list[Link]]:
    """(sections, pages of the open section). Whoever has but one section sees its pages alone.

    A section leads to its first page; one of a single page has no second row.
    """
    sections = [(label, [page for page in pages if user.has_role(*page.roles)]) for label, pages in SECTIONS]
    sections = [(label, pages) for label, pages in sections if pages]
    every = [page for _label, pages in sections for page in pages]
    current = max(every, key=lambda page: page.share_of(request.path), default=None)
    if current and not current.share_of(request.path):
        current = None
    inner = [[Link(page.label, reverse(page.name), page is current) for page in pages] for _label, pages in sections]
    outer = [Link(label, reverse(pages[0].name), any(page is current for page in pages)) for label, pages in sections]
    if len(outer) == 1:
        return inner[0], []
    opened = next((pages for link, pages in zip(outer, inner, strict=True) if link.is_current), [])
    return outer, opened if len(opened) > 1 else []
