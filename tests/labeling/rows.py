"""Rows for tests to start from, made directly: prompts, model versions, responses, batches, finished submissions."""

import uuid

from django.utils import timezone

from labeling.actions import batches
from labeling.models import Batch, Intake, ModelVersion, Prompt, Response, Revision, Slot, Submission, Task, User


def make_prompt(text: str = "Tell me about bees.", **fields) -> Prompt:
    """A prompt of one message."""
    prompt = Prompt.from_messages([{"role": "user", "content": text}], **{"intake": Intake.OPEN} | fields)
    prompt.save()
    return prompt


def make_model(name: str = "gpt", **fields) -> ModelVersion:
    """An outside model, or the one of that name that is there already."""
    return ModelVersion.objects.get_or_create(name=name, defaults={"stage": "external"} | fields)[0]


def make_responses(prompt: Prompt, *texts: str, model: str | None = None) -> list[Response]:
    """One response per text, each by a model of its own (m0, m1, …) unless one is named."""
    return [
        Response.objects.create(
            prompt=prompt, text=text, model_version=make_model(model or f"m{i}"), external_id=uuid.uuid4().hex
        )
        for i, text in enumerate(texts)
    ]


def make_demonstration_batch(name: str = "demos", prompts: int = 2, **options) -> Batch:
    """A batch of demonstration tasks on new prompts."""
    made = [make_prompt(f"{name}: question {i}?") for i in range(prompts)]
    return batches.create_batch(name=name, kind="demonstration", prompt_ids=[p.uuid for p in made], by=None, **options)


def make_ranking_batch(name: str = "ranks", prompts: int = 1, k: int = 4, **options) -> Batch:
    """A batch of ranking tasks on new prompts with K responses each."""
    made = [make_prompt(f"{name}: question {i}?") for i in range(prompts)]
    for prompt in made:
        make_responses(prompt, *(f"Answer {j} to {prompt.text}" for j in range(k)))
    return batches.create_batch(name=name, kind="ranking", k=k, prompt_ids=[p.uuid for p in made], by=None, **options)


def response_ids(task: Task) -> list[str]:
    """The UUIDs of a task's responses, in order of making."""
    return [str(u) for u in task.task_responses.order_by("response_id").values_list("response__uuid", flat=True)]


def submit(task: Task, labeler: User, **content) -> Submission:
    """A finished submission of a labeler on the first open seat, as the database holds it after a submit.

    content: `text` for a demonstration; `tiers` for a ranking (default: all responses in order of making, no ties).
    """
    now = timezone.now()
    slot = task.slots.filter(status=Slot.Status.OPEN).order_by("seat").first()
    is_surplus = content.pop("is_surplus", False) or slot is None
    if not is_surplus:
        slot.lease(labeler, now)
        slot.status, slot.lease_expires_at, slot.submitted_at = Slot.Status.SUBMITTED, None, now
        slot.save()
    ids = response_ids(task)
    submission = Submission.objects.create(
        task=task,
        labeler=labeler,
        slot=None if is_surplus else slot,
        is_surplus=is_surplus,
        kind=task.kind,
        labeler_group=labeler.group,
        schema=task.batch.schema,
        shown_order=ids[::-1],
    )
    default = {"text": "Bees make honey."} if task.kind == "demonstration" else {"tiers": [[i] for i in ids]}
    revise(submission, **default | content)
    return submission


def revise(submission: Submission, **content) -> Revision:
    """A further revision; the submission waits for review again."""
    number = submission.revision_count + 1
    revision = Revision.objects.create(submission=submission, number=number, submit_key=uuid.uuid4(), **content)
    Submission.objects.filter(pk=submission.pk).update(
        revision_count=number, status="submitted", updated_at=timezone.now()
    )
    submission.refresh_from_db()
    return revision
