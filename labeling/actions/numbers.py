"""The numbers of submissions: made by a job soon after something is handed in, never on the way of the one who hands it in.

A submission is measured again when it is revised, when its rejection comes or goes, and when gold is made or withdrawn on its
task; with it all of its task, since agreement is between submissions.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from django.db import transaction
from django.db.models import F, Q, Sum, TextField
from django.db.models.functions import Cast, Length
from django.utils import timezone

from labeling import agreement, signs
from labeling.actions import agreement as agreements
from labeling.actions import consensus, labelers, priorities
from labeling.actions.agreement import Ranked
from labeling.models import (
    AgreementPair,
    GoldAnswer,
    LabelerNumbers,
    Response,
    Revision,
    Submission,
    SubmissionNumbers,
    Task,
    TaskResponse,
)

TASKS_AT_ONCE = 500
SOURCES_AT_MOST = 50  # responses of one prompt that a demonstration is compared with

REVISION = (
    "submission_id", "submission__task_id", "submission__task__batch_id", "submission__labeler_id",
    "submission__labeler_group", "submission__origin", "submission__kind", "submission__is_gold", "submission__status",
    "submission__active_seconds", "submission__paste_chars", "submission__submitted_at", "number", "tiers", "text",
)  # fmt: skip


def measure(*, everything: bool = False) -> int:
    """Measure what has changed: submissions, consensus, labelers, and the reports that are due. How many tasks.

    `everything`: all of it anew, with today's reliabilities throughout.
    """
    ids = list(_task_ids(everything))
    for start in range(0, len(ids), TASKS_AT_ONCE):
        measure_tasks(ids[start : start + TASKS_AT_ONCE])
    if ids or everything:
        labelers.measure_labelers()
        priorities.outdate(Submission.objects.all() if everything else Submission.objects.filter(task__in=ids))
    agreements.report_due(everything=everything)
    return len(ids)


def _task_ids(everything: bool):
    """Tasks with a submission that was never measured or has changed since, and tasks with gold that has."""
    rows = Submission.objects.all()
    if not everything:
        is_rejected = Q(status=Submission.Status.REJECTED)
        stale = Q(numbers=None) | ~Q(numbers__revision=F("revision_count"))
        rows = rows.filter(
            stale | (is_rejected & Q(numbers__is_rejected=False)) | (~is_rejected & Q(numbers__is_rejected=True))
        )
    return rows.order_by("task_id").values_list("task_id", flat=True).distinct()


@transaction.atomic
def measure_tasks(task_ids: list[int]) -> None:
    """Everything about these tasks anew: pairs, consensus, the numbers of their submissions."""
    now = timezone.now()
    list(Task.objects.select_for_update(no_key=True).filter(pk__in=task_ids).order_by("pk").values_list("pk"))
    newest = Revision.objects.filter(submission__task__in=task_ids, number=F("submission__revision_count"))
    rows = [dict(zip(REVISION, row, strict=True)) for row in newest.order_by("submission_id").values_list(*REVISION)]
    rankings = [_ranked(row) for row in rows if row["tiers"] is not None and not row["submission__is_gold"]]
    pairs = agreements.replace_pairs(task_ids, rankings)
    rejected = {row["submission_id"] for row in rows if row["submission__status"] == Submission.Status.REJECTED}
    voting = _by_task(row for row in rankings if row.submission_id not in rejected)
    known = LabelerNumbers.objects.values_list("labeler", "reliability")
    reliabilities = {labeler: value for labeler, value in known if value is not None}
    consensus.replace(task_ids, voting, reliabilities, now)
    made = {row["submission_id"]: _numbers(row) for row in rows}
    _compare(made, rankings, pairs, voting, reliabilities)
    _measure_gold(made, rows)
    _measure_signs(made, rows)
    SubmissionNumbers.objects.filter(submission__task__in=task_ids).delete()
    SubmissionNumbers.objects.bulk_create(made.values(), batch_size=1000)


def _ranked(row: dict[str, Any]) -> Ranked:
    return Ranked(
        row["submission_id"], row["submission__task_id"], row["submission__task__batch_id"],
        row["submission__labeler_id"], row["submission__labeler_group"], row["submission__origin"], row["tiers"],
    )  # fmt: skip


def _by_task(rankings: Iterable[Ranked]) -> dict[int, list[Ranked]]:
    found: dict[int, list[Ranked]] = defaultdict(list)
    for row in rankings:
        found[row.task_id].append(row)
    return found


def _numbers(row: dict[str, Any]) -> SubmissionNumbers:
    return SubmissionNumbers(
        submission_id=row["submission_id"],
        labeler_id=row["submission__labeler_id"],
        batch_id=row["submission__task__batch_id"],
        kind=row["submission__kind"],
        submitted_at=row["submission__submitted_at"],
        revision=row["number"],
        is_rejected=row["submission__status"] == Submission.Status.REJECTED,
        seconds=row["submission__active_seconds"],
        paste_chars=row["submission__paste_chars"],
    )


def _compare(
    made: dict[int, SubmissionNumbers],
    rankings: list[Ranked],
    pairs: list[AgreementPair],
    voting: Mapping[int, list[Ranked]],
    reliabilities: Mapping[int, float],
) -> None:
    """Agreement with each other; and of what the consensus of the rest orders, the share that each orders the same way: where
    the others differ so far that they tie, nothing is held against anybody."""
    shares: dict[int, list[float]] = defaultdict(list)
    taus: dict[int, list[float]] = defaultdict(list)
    for pair in pairs:
        for submission_id in (pair.first_id, pair.second_id):
            shares[submission_id].append(pair.share)
            if pair.tau_b is not None:
                taus[submission_id].append(pair.tau_b)
    for submission_id, found in shares.items():
        numbers = made[submission_id]
        numbers.others, numbers.agreement = len(found), sum(found) / len(found)
        numbers.tau_b = sum(taus[submission_id]) / len(taus[submission_id]) if taus[submission_id] else None
    for row in rankings:
        rest = [other for other in voting.get(row.task_id, []) if other.submission_id != row.submission_id]
        if rest := consensus.voters([other for other in rest if other.origin == row.origin]):
            tiers = consensus.of(rest, reliabilities)
            ordered = agreement.compare(tiers, tiers).untied
            agreed = agreement.compare(row.tiers, tiers).agreed_untied
            made[row.submission_id].consensus_agreement = agreed / ordered if ordered else None


def _measure_gold(made: dict[int, SubmissionNumbers], rows: list[dict]) -> None:
    """Against the gold answer in force, the rankings that were tests: given on a gold seat, or handed in since the answer was made.
    What was said earlier may have made the answer, and agrees with it for that. Once it is released, by what was said before."""
    tasks = {row["submission__task_id"] for row in rows}
    gold = {each.task_id: each for each in GoldAnswer.objects.filter(task__in=tasks, withdrawn_at=None)}
    before = Q(submission__task__in=[each.task_id for each in gold.values() if each.released_at])
    said = Revision.objects.filter(before, created_at__lte=F("submission__task__gold_answers__released_at"))
    said = said.filter(submission__task__gold_answers__withdrawn_at=None).order_by("number")
    said_before = dict(said.values_list("submission_id", "tiers")) if gold else {}
    for row in rows:
        answer = gold.get(row["submission__task_id"])
        if answer is None or not _is_test(row, answer):
            continue
        tiers = said_before.get(row["submission_id"]) if answer.released_at else row["tiers"]
        if tiers is None:
            continue
        compared, numbers = agreement.compare(tiers, answer.tiers), made[row["submission_id"]]
        numbers.gold_share = compared.share
        numbers.gold_passed = compared.agreed >= (1 - answer.tolerance) * compared.comparisons - 1e-9
        numbers.gold_agreed_untied, numbers.gold_untied = compared.agreed_untied, compared.untied


def _is_test(row: dict, answer: GoldAnswer) -> bool:
    if row["submission_id"] == answer.adopted_from_id:
        return False
    return row["submission__is_gold"] or row["submission__submitted_at"] >= answer.made_at


def _measure_signs(made: dict[int, SubmissionNumbers], rows: list[dict]) -> None:
    """Speed, pasted text, near-copies."""
    task_ids = [row["submission__task_id"] for row in rows]
    to_read = _characters_to_read({row["submission__task_id"] for row in rows if row["text"] is None})
    sources = _sources({row["submission__task_id"] for row in rows if row["text"] is not None})
    for row, task_id in zip(rows, task_ids, strict=True):
        numbers, text = made[row["submission_id"]], row["text"]
        numbers.characters = to_read.get(task_id, 0) if text is None else len(text)
        numbers.speed = signs.speed(numbers.characters, numbers.seconds)
        limit = signs.READ_AT_MOST if text is None else signs.TYPED_AT_MOST
        numbers.is_too_fast = numbers.speed is not None and numbers.speed > limit
        if text is not None:
            numbers.is_pasted = numbers.paste_chars > 0 and numbers.paste_chars >= signs.PASTED_AT_LEAST * len(text)
            numbers.near_copy, numbers.near_copy_of = signs.near_copy(text, sources.get(task_id, {}))
            numbers.is_near_copy = (numbers.near_copy or 0) >= signs.NEAR_COPY_FROM


def _characters_to_read(task_ids: set[int]) -> dict[int, int]:
    """Of the prompt and all responses, about: a prompt's few words of JSON are counted with it."""
    prompts = Task.objects.filter(pk__in=task_ids).annotate(n=Length(Cast("prompt__messages", TextField())))
    found = dict(prompts.values_list("pk", "n"))
    rows = TaskResponse.objects.filter(task__in=task_ids).values("task").annotate(n=Sum(Length("response__text")))
    for task_id, n in rows.values_list("task", "n"):
        found[task_id] += n
    return found


def _sources(task_ids: set[int]) -> dict[int, dict[str, str]]:
    """What a demonstration might be copied from: the prompt's messages and the responses to it, by task and name."""
    found: dict[int, dict[str, str]] = {}
    prompts: dict[int, list[int]] = defaultdict(list)
    for pk, prompt_id, messages in Task.objects.filter(pk__in=task_ids).values_list(
        "pk", "prompt_id", "prompt__messages"
    ):
        found[pk] = {"prompt": "\n".join(message["content"] for message in messages)}
        prompts[prompt_id].append(pk)
    responses = Response.objects.filter(prompt__in=prompts).order_by("prompt_id", "id")
    for prompt_id, uuid, text in responses.values_list("prompt_id", "uuid", "text").iterator():
        for pk in prompts[prompt_id]:
            if len(found[pk]) <= SOURCES_AT_MOST:
                found[pk][str(uuid)] = text
    return found


def forget(*, task_id: int) -> None:
    """Have a task's submissions measured again at the next run: its gold answer has changed."""
    SubmissionNumbers.objects.filter(submission__task=task_id).update(revision=0)
