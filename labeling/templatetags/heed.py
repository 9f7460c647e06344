"""What templates may use besides Django's own tags."""

from datetime import datetime

from django import template
from django.conf import settings
from django.utils import timezone
from django.utils.formats import date_format

from labeling import navigation as nav
from labeling import rendering
from labeling.models import Question, Submission

register = template.Library()


@register.simple_tag
def mfa_is_on() -> bool:
    """True if people may set up a second factor."""
    return settings.MFA != "off"


@register.simple_tag
def sign_up_is_open() -> bool:
    """True if anyone may apply; otherwise one needs an invitation."""
    return settings.SIGN_UP == "application"


@register.simple_tag(takes_context=True)
def navigation(context) -> tuple[list[nav.Link], list[nav.Link]]:
    """The links of the navigation: its sections, and the pages of the open one. Nothing for a stranger."""
    user = context["user"]
    return nav.links(context["request"], user) if user.is_authenticated else ([], [])


@register.filter
def markdown(text: str) -> str:
    """Markdown as safe HTML, for use inside .prose."""
    return rendering.markdown(text or "")


@register.filter
def moment(value: datetime | None, form: str = "Y-m-d H:i") -> str:
    """A moment with hours, and the time zone that they are in: readers live in many."""
    return date_format(timezone.localtime(value), f"{form} T") if value else ""


@register.filter
def plain(text: str) -> str:
    """The text exactly as written."""
    return rendering.plain(text or "")


@register.inclusion_tag("tasks/news.html", takes_context=True)
def news(context) -> dict:
    """Lines about answers and feedback that the labeler has not opened yet."""
    user = context["user"]
    return {
        "answers": Question.objects.filter(asker=user, is_unread=True).count(),
        "feedback": Submission.objects.filter(labeler=user, has_unread_feedback=True).count(),
    }
