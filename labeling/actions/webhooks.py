"""Webhooks: telling other programs what happened, signed, again and again until it is taken.

Messages follow the Standard Webhooks specification: `webhook-id`, `webhook-timestamp`, and `webhook-signature` over
"id.timestamp.body" by HMAC-SHA256.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from procrastinate.types import JSONValue

from labeling import answers, outgoing
from labeling.errors import Conflict, refuse
from labeling.models import Export, ModelVersion, Review, Submission, User, Webhook, WebhookDelivery
from labeling.models.webhooks import TEST, Event
from labeling.statements import Statement

MAX_ATTEMPTS = 9  # with jobs.deliver_webhook's pauses of 4, 16, 64 … seconds: about a day
KEPT = timedelta(days=30)
GONE = 410


class NotDelivered(Exception):
    """Nobody took the message this time; the job is to try again."""


# Who is told ---------------------------------------------------------------------------------------------------


def create(*, url: str, events: list[str], by: User | None) -> Webhook:
    """A webhook; its secret is to be shown once. Raises Invalid for an address that Heed does not send to, or unknown events or none."""
    url = url.strip()
    problems = []
    try:
        outgoing.check_url(url)
    except outgoing.Refused as refused:
        problems.append(answers.problem(_("Address"), str(refused), "url"))
    if not events or set(events) - set(Event.values):
        problems.append(answers.problem(_("Events"), _("expected some of: %s") % ", ".join(Event.values), "events"))
    refuse(problems)
    return Webhook.objects.create(url=url, events=sorted(set(events)), created_by=by)


def end(*, webhook: Webhook, by: User | None) -> None:
    """Tell this address nothing more. Doing it twice changes nothing; its deliveries stay to be read."""
    Webhook.objects.filter(pk=webhook.pk, ended_at=None).update(ended_at=timezone.now())


def try_out(*, webhook: Webhook, by: User) -> WebhookDelivery:
    """Send a message that says nothing. Raises Conflict if the webhook has ended."""
    if webhook.ended_at:
        raise Conflict(_("This webhook has ended."))
    with transaction.atomic():
        return _queue([webhook.pk], TEST, [{"webhook_id": webhook.pk}])[0]


# What is told --------------------------------------------------------------------------------------------------


def submitted(submission: Submission) -> None:
    """A task was handed in, or its answer corrected. Needs the transaction that does it, as all of these."""
    event = Event.SUBMISSION_MADE if submission.revision_count == 1 else Event.SUBMISSION_REVISED
    same = ("batch_id", "kind", "is_surplus")
    _emit(
        event,
        lambda: [
            {name: getattr(submission, name) for name in same}
            | {"submission_id": str(submission.uuid), "task_id": str(submission.task.uuid)}
            | {"revision": submission.revision_count}
        ],
    )


def reviewed(made: list[Review]) -> None:
    """Reviewers decided."""
    rows = Review.objects.filter(pk__in=[each.pk for each in made]).select_related("submission", "revision")
    _emit(
        Event.REVIEW_MADE,
        lambda: [
            {"submission_id": str(r.submission.uuid), "revision": r.revision.number, "verdict": r.verdict} for r in rows
        ],
    )


def exported(export: Export) -> None:
    """An export is ready, or has failed."""
    event = Event.EXPORT_FAILED if export.status == Export.Status.FAILED else Event.EXPORT_READY
    held = export.resolved
    _emit(event, lambda: [{"id": held.pk, "name": held.name, "counts": held.counts_in_order, "error": export.error}])


def registered(version: ModelVersion) -> None:
    """A model was registered."""
    _emit(Event.MODEL_REGISTERED, lambda: [{"name": version.name, "stage": version.stage}])


def promoted(version: ModelVersion, *, previous: ModelVersion | None, reason: str) -> None:
    """Another policy serves."""
    said = {"name": version.name, "previous": previous.name if previous else None, "reason": reason}
    _emit(Event.MODEL_PROMOTED, lambda: [said])


def _emit(event: str, rows: Callable[[], list[dict[str, Any]]]) -> None:
    """A message about each row to each webhook that wants to hear of it. One query where there is none."""
    if wanting := WANTING.rows(event=str(event)):
        _queue([pk for (pk,) in wanting], event, rows())


WANTING = Statement(
    "webhooks", "SELECT id FROM labeling_webhook WHERE ended_at IS NULL AND %(event)s = ANY(events)", event="text"
)


def _queue(webhook_ids: list[int], event: str, rows: list[dict[str, Any]]) -> list[WebhookDelivery]:
    from labeling import jobs  # jobs import this module

    now = timezone.now()
    bodies = [json.dumps({"type": event, "timestamp": now.isoformat(), "data": row}) for row in rows]
    made = WebhookDelivery.objects.bulk_create(
        WebhookDelivery(webhook_id=pk, event=event, body=body, created_at=now) for body in bodies for pk in webhook_ids
    )
    if made:
        wanted: list[dict[str, JSONValue]] = [{"delivery_id": each.pk} for each in made]
        jobs.deliver_webhook.batch_defer(*wanted)
    return made


# Telling -------------------------------------------------------------------------------------------------------


def deliver(*, delivery: WebhookDelivery) -> None:
    """Send a message once. Raises NotDelivered if it is to be sent again later. An address that answers 410 is told nothing more."""
    if delivery.status != WebhookDelivery.Status.WAITING:
        return
    webhook = delivery.webhook
    is_ended = webhook.ended_at is not None
    status, said = (0, "the webhook has ended") if is_ended else _send(delivery, webhook)
    is_taken = 200 <= status < 300
    delivery.attempts += 1
    delivery.attempted_at, delivery.answer = timezone.now(), said[:200]
    is_last = delivery.attempts >= MAX_ATTEMPTS or is_ended or status == GONE
    if is_taken:
        delivery.status = WebhookDelivery.Status.DELIVERED
    elif is_last:
        delivery.status = WebhookDelivery.Status.FAILED
    delivery.save(update_fields=["attempts", "attempted_at", "answer", "status"])
    if status == GONE:
        end(webhook=webhook, by=None)
    if not is_taken and not is_last:
        raise NotDelivered(f"{webhook.url}: {said}")


def _send(delivery: WebhookDelivery, webhook: Webhook) -> tuple[int, str]:
    """Status of the answer (0: there was none), and what to say of it."""
    body, seconds = delivery.body.encode(), int(timezone.now().timestamp())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "Heed",
        "webhook-id": str(delivery.uuid),
        "webhook-timestamp": str(seconds),
        "webhook-signature": signature(webhook.secret, str(delivery.uuid), seconds, body),
    }
    try:
        status = outgoing.post(webhook.url, body=body, headers=headers)
    except outgoing.Refused as refused:
        return 0, str(refused)
    except (OSError, httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        return 0, f"no answer: {type(error).__name__}: {error}"
    return status, str(status)


def signature(secret: str, message_id: str, seconds: int, body: bytes) -> str:
    """The header webhook-signature: "v1," and the HMAC-SHA256 of "id.timestamp.body" in base64, by the secret behind "whsec_"."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{message_id}.{seconds}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def forget_old() -> int:
    """Remove messages older than 30 days; how many."""
    return WebhookDelivery.objects.filter(created_at__lt=timezone.now() - KEPT).delete()[0]
