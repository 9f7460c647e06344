"""Second reviews: sampling verdicts, and giving a second one blind to the first."""

import random
from collections.abc import Iterable

from django.db import transaction
from django.db.models import OuterRef, Subquery
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling import answers
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import Review, SecondReview, SecondReviewRate, User

MAX_COMMENT_CHARS = 10_000


def sample(*, made: Iterable[Review]) -> None:
    """Choose among new verdicts, each by chance at the rate in force. Needs the transaction that makes them."""
    percent = SecondReviewRate.current()
    SecondReview.objects.bulk_create(
        SecondReview(review=review, first_verdict=review.verdict, first_reviewer_id=review.reviewer_id)
        for review in made
        if 100 * random.random() < percent
    )


def due_from(by: User) -> Subquery:
    """For a query of submissions: the id of a second review of each that this reviewer may yet give; NULL where there is none.
    Until it is given they are shown neither the first verdict nor what follows from it."""
    waiting = SecondReview.objects.open_to(by) if by.is_reviewer else SecondReview.objects.none()
    return Subquery(waiting.filter(review__submission=OuterRef("pk")).order_by("id").values("pk")[:1])


@transaction.atomic
def decide(*, second: SecondReview, verdict: str, comment: str = "", by: User) -> SecondReview:
    """Give the second verdict, once; the submission stays as the first decided. The same again changes nothing.

    Raises Forbidden for anyone but another reviewer than the first, for one's own work, and while one holds a seat on the same task;
    Invalid for an unknown verdict or a too long comment, Conflict if somebody has given it since.
    """
    if not by.is_reviewer:
        raise Forbidden(_("%(by)s is not a reviewer.") % {"by": by.email})
    comment = answers.clean_text(comment).strip()
    if verdict not in Review.Verdict.values:
        raise Invalid(_("Choose a verdict."))
    if len(comment) > MAX_COMMENT_CHARS:
        raise Invalid(
            _("The comment has %(n)d characters; %(most)d at most.") % {"n": len(comment), "most": MAX_COMMENT_CHARS}
        )
    second = SecondReview.objects.select_for_update(of=("self",)).select_related("review__submission").get(pk=second.pk)
    if not SecondReview.objects.lookable_by(by).filter(pk=second.pk).exists():
        raise Forbidden(_("This is for somebody else to look at."))
    if second.verdict:
        if (second.reviewer_id, second.verdict, second.comment) == (by.pk, verdict, comment):
            return second
        if second.reviewer_id == by.pk:
            raise Conflict(_("You have given your verdict already, and it stands as you gave it first."))
        raise Conflict(_("Somebody else has looked at this meanwhile."))
    second.verdict, second.comment, second.reviewer, second.decided_at = verdict, comment, by, timezone.now()
    second.save()
    return second


def set_rate(*, percent: int, by: User) -> None:
    """From now on this share of verdicts is sampled. The same again changes nothing. Raises Forbidden, Invalid."""
    if not by.is_researcher:
        raise Forbidden(_("%(by)s is not a researcher.") % {"by": by})
    if not 0 <= percent <= 100:
        raise Invalid(_("%s is not a percentage from 0 to 100.") % percent)
    if SecondReviewRate.current() != percent:
        SecondReviewRate.objects.create(percent=percent, set_by=by)
