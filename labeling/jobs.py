"""Background jobs (procrastinate). Each may run twice without harm; a worker killed in the middle leaves its job `doing`,
and a periodic job gives it back."""

import logging
from contextlib import suppress
from datetime import timedelta

from django.conf import settings
from django.contrib.sessions.backends.db import SessionStore
from django.db import transaction
from django.utils import timezone
from procrastinate import JobContext, RetryStrategy
from procrastinate.contrib.django import app
from procrastinate.exceptions import AlreadyEnqueued
from procrastinate.tasks import Task

from labeling.actions import (
    evaluations,
    exports,
    hours,
    intake,
    nightly,
    numbers,
    pauses,
    priorities,
    statistics,
    tasks,
    webhooks,
)
from labeling.api import idempotency
from labeling.errors import Invalid
from labeling.models import Export, WebhookDelivery
from training.contract import ContractError

log = logging.getLogger(__name__)

LEASES_AT_ONCE = 1000
PRIORITY_ROUNDS = 20
CHECK_SECONDS = 15.0
AGAIN = RetryStrategy(max_attempts=8, exponential_wait=4)  # a database or disk that is away comes back


def order(job: Task) -> None:
    """Have the worker do it soon; once, however often it is asked."""
    with suppress(AlreadyEnqueued), transaction.atomic():
        job.defer()


@app.task(name="build_export", retry=AGAIN, lock="build_export")
def build_export(export_id: int) -> None:
    """Build an ordered export; one that is finished, or that cannot be built, is left as it is."""
    try:
        exports.finish(export=Export.objects.get(pk=export_id))
    except (ContractError, Invalid, OSError) as error:
        log.warning("export %s: %s", export_id, error)  # its row says so too, and whoever asked reads it there


@app.periodic(cron="* * * * *")
@app.task(name="give_back_jobs", queueing_lock="give_back_jobs", pass_context=True)
async def give_back_jobs(context: JobContext, timestamp: int) -> None:
    """Every minute: jobs whose worker died are run again, and exports that nobody is building are begun again."""
    for job in await app.job_manager.get_stalled_jobs():
        log.warning("job %s (%s) lost its worker; it is run again", job.id, job.task_name)
        await app.job_manager.retry_job(job)
    with suppress(AlreadyEnqueued):
        await resume_exports.defer_async()


@app.task(name="resume_exports", queueing_lock="resume_exports")
def resume_exports() -> None:
    """Exports ordered a while ago and not ready: their command or job may have been killed. A job too many does no harm."""
    a_while_ago = timezone.now() - timedelta(minutes=2)
    for export in Export.objects.filter(status=Export.Status.BUILDING, created_at__lt=a_while_ago):
        with suppress(AlreadyEnqueued):
            build_export.configure(queueing_lock=f"build_export {export.pk}").defer(export_id=export.pk)


@app.periodic(cron="* * * * *")
@app.task(name="check_prompts", queueing_lock="check_prompts", lock="check_prompts", retry=AGAIN)
def check_prompts(timestamp: int = 0) -> None:
    """Every minute, and when prompts come: what waits is checked. In turns, so that a million prompts hold up no other job."""
    if not intake.check_waiting(seconds=CHECK_SECONDS):
        order(check_prompts)


@app.periodic(cron="*/5 * * * *")
@app.task(name="refresh_statistics", queueing_lock="refresh_statistics", lock="refresh_statistics")
def refresh_statistics(timestamp: int = 0) -> None:
    """Every five minutes, and when somebody asks for a new one: figures that are older than the labels are computed again."""
    for statistic in statistics.outdated():
        evaluations.record(statistic=statistics.refresh(statistic=statistic))


@app.periodic(cron="* * * * *")
@app.task(name="return_leases", queueing_lock="return_leases")
def return_leases(timestamp: int) -> None:
    """Every minute: seats whose lease ran out are open again, even where nobody asks for a task."""
    while tasks.return_expired(limit=LEASES_AT_ONCE) == LEASES_AT_ONCE:
        pass


@app.periodic(cron="* * * * *")
@app.task(name="refresh_priorities", queueing_lock="refresh_priorities")
def refresh_priorities(timestamp: int) -> None:
    """Every minute: what waits for review and is out of date gets its priority, a few thousand at a time."""
    for _round in range(PRIORITY_ROUNDS):
        if priorities.refresh_some() < priorities.AT_ONCE:
            return


@app.periodic(cron="*/5 * * * *")
@app.task(name="measure_quality", queueing_lock="measure_quality", lock="measure_quality")
def measure_quality(timestamp: int = 0) -> None:
    """Every five minutes: numbers of what was handed in since, of its labelers, and the agreement reports that are due."""
    numbers.measure()
    pauses.apply_rules()


@app.periodic(cron="30 3 * * *")
@app.task(name="measure_quality_anew", queueing_lock="measure_quality_anew", lock="measure_quality")
def measure_quality_anew(timestamp: int = 0) -> None:
    """Every night: all of it, so that each consensus is weighted with today's reliabilities."""
    numbers.measure(everything=True)


@app.periodic(cron="10 3 * * *")
@app.task(name="enter_lapsed_retakes", queueing_lock="enter_lapsed_retakes")
def enter_lapsed_retakes(timestamp: int = 0) -> None:
    """Every night: hours of those who were asked to try the screening again and have not come back."""
    hours.enter_lapsed_retakes()


@app.periodic(cron="50 * * * *")
@app.task(name="forget_old", queueing_lock="forget_old")
def forget_old(timestamp: int = 0) -> None:
    """Every hour: keys of the API's requests that are older than a day, messages to webhooks older than a month, sessions that ended."""
    idempotency.forget_old()
    SessionStore.clear_expired()
    webhooks.forget_old()


@app.task(name="start_nightly", queueing_lock="start_nightly")
def start_nightly(timestamp: int = 0) -> None:
    """Start the nightly command, where NIGHTLY_CONFIG says so. It waits for labels, runs once at a time, and goes on after a kill."""
    nightly.start()


if settings.NIGHTLY_CONFIG:
    app.periodic(cron=settings.NIGHTLY_CRON)(start_nightly)


@app.task(name="deliver_webhook", retry=RetryStrategy(max_attempts=webhooks.MAX_ATTEMPTS, exponential_wait=4))
def deliver_webhook(delivery_id: int) -> None:
    """Send a message to a webhook; one that is not taken is sent again later, for about a day."""
    found = WebhookDelivery.objects.select_related("webhook").filter(pk=delivery_id).first()
    if found is not None:  # else it is older than what is kept
        webhooks.deliver(delivery=found)
