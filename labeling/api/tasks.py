"""/tasks/: a labeler's day without a browser: the next task, drafts, handing in, passing on. Never a model's name, nor gold."""

import json
from contextlib import suppress
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import Q
from django.http import Http404
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response as Answer

from labeling import answers
from labeling.actions import drafts, submissions, tasks
from labeling.actions.drafts import Seen
from labeling.api.base import StrictSerializer, Text, Uuid, View, Whole, YesNo
from labeling.api.schema import operation
from labeling.api.serializers import JSONObject, MessageOut
from labeling.errors import Conflict, HeedError, Invalid, NotPrepared, refuse
from labeling.models import ApiToken, Batch, Draft, Kind, LabelSchema, Skip, Submission, Task, User
from labeling.models.batches import is_for
from labeling.statements import Statement, partly

MOST_RESPONSES = len(answers.LETTERS)
OF_KIND = {Kind.DEMONSTRATION: {"text"}, Kind.RANKING: {"tiers", "ratings", "all_bad"}}


# What goes in and out ------------------------------------------------------------------------------------------


class Flags(serializers.DictField):
    """Flag → true, false, or null where it is not answered."""

    child = YesNo(allow_null=True)


class RatingIn(StrictSerializer):
    quality = Whole(required=False, allow_null=True, min_value=-1000, max_value=1000)
    flags = Flags(required=False)


class AnswerIn(StrictSerializer):
    """An answer: `text` for a demonstration; `tiers` and `ratings` for a ranking, its responses named by response_id."""

    text = Text(required=False, allow_blank=True, trim_whitespace=False, max_length=settings.RESPONSE_MAX_CHARS)
    tiers = serializers.ListField(
        child=serializers.ListField(child=Uuid(), max_length=MOST_RESPONSES),
        required=False,
        max_length=MOST_RESPONSES,
        help_text="Best first; responses that are equally good share a tier.",
    )
    ratings = serializers.DictField(child=RatingIn(), required=False, help_text="response_id → quality and flags")
    all_bad = YesNo(required=False)
    prompt_flags = Flags(required=False)
    comment = Text(
        required=False,
        allow_blank=True,
        trim_whitespace=False,
        max_length=answers.COMMENT_MAX_CHARS,
        help_text="To the reviewer.",
    )


class NextIn(StrictSerializer):
    """Which tasks will do; any, if neither is said."""

    kind = serializers.ChoiceField(Kind.choices, required=False)
    batch = Text(required=False, max_length=100, help_text="A batch's name.")


class WorkedIn(StrictSerializer):
    active_seconds = serializers.FloatField(
        required=False,
        default=0,
        min_value=0,
        max_value=1e9,
        help_text="All time worked on this task with this token so far, idle time excluded; it never counts twice.",
    )


class SeenIn(WorkedIn):
    """`version` and `revision`: those of the answer that was last read or written here. Absent: it has been read just now."""

    version = Whole(required=False, min_value=0, max_value=2**31 - 1)
    revision = Whole(required=False, min_value=0, max_value=2**31 - 1)


class DraftIn(SeenIn):
    answer = AnswerIn()


class SubmitIn(SeenIn):
    submit_key = Uuid(help_text="Your own for each answer: sent again with the same answer it changes nothing.")
    answer = AnswerIn()
    and_next = NextIn(required=False, help_text="Claim the next task as well: `next` of the answer.")


class SkipIn(WorkedIn):
    reason = serializers.ChoiceField(Skip.Reason.choices)
    comment = Text(required=False, allow_blank=True, max_length=answers.COMMENT_MAX_CHARS)
    prompt_flags = Flags(required=False)


class ShownResponseOut(serializers.Serializer):
    letter = serializers.CharField(help_text="How the page and error messages name it.")
    response_id = serializers.UUIDField()
    text = serializers.CharField(allow_blank=True)


class SeatOut(serializers.Serializer):
    task_id = serializers.UUIDField()
    seat = serializers.ChoiceField(["held", "lost", "submitted", "skipped"])
    lease_seconds = serializers.IntegerField(
        help_text="A seat that is held goes to others after so long without a sign."
    )


class DraftOut(SeatOut):
    version = serializers.IntegerField(help_text="Of the draft; rises with every save.")
    revision = serializers.IntegerField(help_text="How often an answer has been handed in.")


class TaskOut(DraftOut):
    kind = serializers.ChoiceField(Kind.choices)
    batch = serializers.CharField()
    instructions = serializers.CharField(allow_blank=True, help_text="This batch's own, in Markdown.")
    prompt = MessageOut(many=True)
    responses = ShownResponseOut(many=True, help_text="In the order in which this labeler is shown them.")
    form = JSONObject(
        help_text="quality {min, max, anchors}, response_flags and prompt_flags [{name, label, help, required}]"
    )
    answer = JSONObject(help_text="The draft.")


class OwnSubmissionOut(serializers.Serializer):
    submission_id = serializers.UUIDField()
    task_id = serializers.UUIDField()
    kind = serializers.ChoiceField(Kind.choices)
    status = serializers.ChoiceField(Submission.Status.choices)
    is_surplus = serializers.BooleanField(help_text="The seat had gone to someone else: kept and paid, but extra.")
    revision = serializers.IntegerField()
    submitted_at = serializers.DateTimeField()
    updated_at = serializers.DateTimeField()


class SubmittedOut(OwnSubmissionOut):
    next = TaskOut(
        required=False,
        allow_null=True,
        help_text="Only with `and_next`: the next task, leased; null where claiming it gives none, and says why.",
    )


# Doors ---------------------------------------------------------------------------------------------------------


class NextTask(View):
    scopes = {"POST": "label"}
    takes_idempotency_keys = False  # asked again, it is the same task

    @operation(
        scope="label", answers={200: TaskOut, 204: None}, request=NextIn, problems=(409,),
        operation_id="claim_task", summary="The next task, leased",
        description=(
            "The task in hand, if there is one; else the best that is open. 204 when nothing is left. 409 `not_prepared`: "
            "instructions are to be read, or practice done, in the browser first."
        ),
    )  # fmt: skip
    def post(self, request: Request) -> Answer:
        wanted = _wanted(self.checked(NextIn, self.sent), self.person)
        slot = tasks.claim_next(**wanted, by=self.person)
        return Answer(_shown_task(slot.task_id, self.person, seat="held")) if slot else Answer(status=204)


class TaskView(View):
    """A view of one task that was given to the caller. Handing in has a key of its own; the rest may be repeated as it is."""

    takes_idempotency_keys = False

    def given(self, task_uuid: UUID) -> tuple[Task, Draft | None, Submission | None]:
        """The task with what this labeler has of it; 404 for any other, so that nothing can be learned by asking. One statement: what
        it does not read of the rows is read when it is asked for."""
        row = GIVEN.row(task=task_uuid, labeler=self.person.pk)
        if row is None:
            raise Http404(f"No task {task_uuid} was given to you.")
        pk, uuid, kind, prompt, batch, schema, form, draft, version, shuffled, submission, revisions, shown = row
        task = partly(Task, id=pk, uuid=uuid, kind=kind, prompt_id=prompt, batch_id=batch)
        task.batch = partly(Batch, id=batch, schema_id=schema)
        task.batch.schema = partly(LabelSchema, id=schema, content=json.loads(form))
        mine: dict[str, Any] = {"task_id": pk, "labeler_id": self.person.pk}
        return (
            task,
            partly(Draft, id=draft, version=version, shown_order=json.loads(shuffled), **mine) if draft else None,
            partly(Submission, id=submission, revision_count=revisions, shown_order=json.loads(shown), **mine)
            if submission
            else None,
        )

    @property
    def editor(self) -> str:
        """One token is one page: of two saves by it the later wins, and its time is counted by it."""
        return f"token {self.request.auth.prefix}" if isinstance(self.request.auth, ApiToken) else ""

    def seen(self, given: dict[str, Any], draft: Draft | None, submission: Submission | None) -> Seen:
        """What the caller knew: what it says, or what is here now."""
        version = given.get("version", draft.version if draft else 0)
        revision = given.get("revision", submission.revision_count if submission else 0)
        return Seen(base=version, version=version, revision=revision, editor=self.editor)


class OneTask(TaskView):
    scopes = {"GET": "label"}

    @operation(
        scope="label", answers={200: TaskOut}, problems=(404,), operation_id="get_task",
        summary="A task that was given to the caller", description="Reading it does not renew its lease.",
    )  # fmt: skip
    def get(self, request: Request, task_uuid: UUID) -> Answer:
        task, _draft, submission = self.given(task_uuid)
        return Answer(_shown_task(task.pk, self.person, seat=_seat(task, self.person, submission)))


class TaskDraft(TaskView):
    scopes = {"PUT": "label"}

    @operation(
        scope="label", answers={200: DraftOut}, request=DraftIn, problems=(404, 409),
        operation_id="save_draft", summary="Keep an answer so far, and the seat with it",
        description="409 `saved_elsewhere` if the draft was saved from elsewhere since; that is the draft, this is kept as a copy.",
    )  # fmt: skip
    def put(self, request: Request, task_uuid: UUID) -> Answer:
        given = self.checked(DraftIn, request.data)
        task, draft, submission = self.given(task_uuid)
        content = _content(given["answer"], task, draft or submission)
        seen = self.seen(given, draft, submission)
        saved, seat = drafts.save_draft(
            task=task,
            content=content,
            seen=Seen(seen.base, seen.base + 1, seen.revision, seen.editor),
            active_seconds=given["active_seconds"],
            by=self.person,
        )
        return Answer(_shown_seat(task.uuid, seat) | {"version": saved.version, "revision": seen.revision})


class TaskRenew(TaskView):
    scopes = {"POST": "label"}

    @operation(
        scope="label", answers={200: SeatOut}, request=WorkedIn, problems=(404,),
        operation_id="renew_task", summary="A sign of work: keep the seat",
        description="`lost`: another labeler has it; what is handed in all the same is kept as extra work.",
    )  # fmt: skip
    def post(self, request: Request, task_uuid: UUID) -> Answer:
        given = self.checked(WorkedIn, self.sent)
        task, draft, submission = self.given(task_uuid)
        seat: str = _seat(task, self.person, submission)
        if draft is not None:
            seat = tasks.renew(task=task, page=self.editor, active_seconds=given["active_seconds"], by=self.person)
        return Answer(_shown_seat(task.uuid, seat))


class TaskSubmit(TaskView):
    scopes = {"POST": "label"}

    @operation(
        scope="label", answers={200: SubmittedOut}, request=SubmitIn, problems=(404, 409),
        operation_id="submit_task", summary="Hand an answer in, once",
        description=(
            "Later, until it is reviewed, another answer with another `submit_key` is a correction of it: a new revision. "
            "409 `saved_elsewhere` or `handed_in_elsewhere`: there is newer work of the same labeler; what came is kept as a copy."
        ),
    )  # fmt: skip
    def post(self, request: Request, task_uuid: UUID) -> Answer:
        given = self.checked(SubmitIn, request.data)
        task, draft, submission = self.given(task_uuid)
        content = _content(given["answer"], task, draft or submission, is_checked_later=True)
        wanted = _wanted(given["and_next"], self.person) if "and_next" in given else None
        try:
            made = submissions.submit(
                task=task,
                submit_key=given["submit_key"],
                answer=content,
                seen=self.seen(given, draft, submission),
                active_seconds=given["active_seconds"],
                by=self.person,
            )
        except Conflict:
            with suppress(HeedError):
                drafts.set_aside(task=task, content=content, by=self.person)
            raise
        made.task = task
        shown = shown_submission(made)
        return Answer(shown if wanted is None else shown | {"next": self._next(wanted)})

    def _next(self, wanted: dict[str, Any]) -> dict[str, Any] | None:
        """In a transaction of its own: what was handed in stays, whatever comes of this."""
        try:
            slot = tasks.claim_next(**wanted, by=self.person)
        except NotPrepared:
            return None
        return _shown_task(slot.task_id, self.person, seat="held") if slot else None


class TaskSkip(TaskView):
    scopes = {"POST": "label"}

    @operation(
        scope="label", answers={204: None}, request=SkipIn, problems=(404, 409),
        operation_id="skip_task", summary="Pass a task on, with a reason",
        description="It is not given to this labeler again. Doing it twice changes nothing.",
    )  # fmt: skip
    def post(self, request: Request, task_uuid: UUID) -> Answer:
        given = self.checked(SkipIn, request.data)
        task, _draft, _submission = self.given(task_uuid)
        problems: list[dict] = []
        _check_flags(given.get("prompt_flags", {}), task.batch.schema.prompt_flags, "prompt_flags", problems)
        refuse(problems)
        tasks.skip(
            task=task,
            reason=given["reason"],
            comment=given.get("comment", ""),
            prompt_flags=given.get("prompt_flags"),
            page=self.editor,
            active_seconds=given["active_seconds"],
            by=self.person,
        )
        return Answer(status=204)


class TaskRelease(TaskView):
    scopes = {"POST": "label"}

    @operation(
        scope="label", answers={204: None}, problems=(404,), operation_id="release_task", summary="Put a task back for others",
        description="The draft stays, and the task may come again. Doing it twice changes nothing.",
    )  # fmt: skip
    def post(self, request: Request, task_uuid: UUID) -> Answer:
        tasks.release(task=self.given(task_uuid)[0], by=self.person)
        return Answer(status=204)


# Shown and checked ---------------------------------------------------------------------------------------------


# A task that was given to a labeler: what they have of it.
GIVEN = Statement(
    "given",
    """
SELECT t.id, t.uuid, t.kind, t.prompt_id, t.batch_id, b.schema_id, f.content, d.id, d.version, d.shown_order,
       o.id, o.revision_count, o.shown_order
  FROM labeling_task t JOIN labeling_batch b ON b.id = t.batch_id JOIN labeling_labelschema f ON f.id = b.schema_id
  LEFT JOIN labeling_draft d ON d.task_id = t.id AND d.labeler_id = %(labeler)s
  LEFT JOIN labeling_submission o ON o.task_id = t.id AND o.labeler_id = %(labeler)s
 WHERE t.uuid = %(task)s AND (d.id IS NOT NULL OR o.id IS NOT NULL)
""",
    task="uuid",
    labeler="bigint",
)

# What its page shows of it: the responses by their ids, in the order of the draft or of what was handed in.
SHOWN = Statement(
    "shown",
    """
SELECT t.uuid, t.kind, b.name, b.instructions, p.messages, f.content, coalesce(d.version, 0), coalesce(o.revision_count, 0),
       coalesce(d.content, '{}'), coalesce(d.shown_order, o.shown_order),
       (SELECT jsonb_object_agg(r.uuid, r.text) FROM labeling_taskresponse x JOIN labeling_response r ON r.id = x.response_id
         WHERE x.task_id = t.id)
  FROM labeling_task t JOIN labeling_batch b ON b.id = t.batch_id JOIN labeling_labelschema f ON f.id = b.schema_id
  JOIN labeling_prompt p ON p.id = t.prompt_id
  LEFT JOIN labeling_draft d ON d.task_id = t.id AND d.labeler_id = %(labeler)s
  LEFT JOIN labeling_submission o ON o.task_id = t.id AND o.labeler_id = %(labeler)s
 WHERE t.id = %(task)s
""",
    task="bigint",
    labeler="bigint",
)


def _wanted(given: dict[str, str], labeler: User) -> dict[str, Any]:
    """What claim_next narrows by. A batch by its name, and only one that the labeler may know of: 422 for any other."""
    name = given.get("batch", "")
    batch = Batch.objects.filter(is_for(labeler), name=name).first() if name else None
    if name and batch is None:
        raise Invalid(f"Unknown batch: {name[:100]}", [answers.problem("batch", "is unknown", "batch")])
    return {"kind": given.get("kind", ""), "batch_id": batch.pk if batch else None}


def _seat(task: Task, labeler: User, submission: Submission | None) -> str:
    """Where the labeler stands with the task, without changing anything."""
    if submission is not None:
        return "submitted"
    if Skip.objects.filter(task=task, labeler=labeler).exists():
        return "skipped"
    held = Q(labeler=labeler) | Q(status="open")
    return "held" if task.slots.filter(held).exists() else "lost"


def _shown_seat(task_uuid: UUID, seat: str) -> dict[str, Any]:
    return {"task_id": task_uuid, "seat": seat, "lease_seconds": tasks.lease_seconds()}


def _shown_task(task_id: int, labeler: User, *, seat: str) -> dict[str, Any]:
    """A task as its page shows it: responses under letters and random ids, in this labeler's order."""
    [shown] = SHOWN.rows(task=task_id, labeler=labeler.pk)
    uuid, kind, batch, instructions, messages, schema, version, revision, content, shown_order, texts = shown
    text_of = json.loads(texts or "{}")
    return _shown_seat(uuid, seat) | {
        "version": version,
        "revision": revision,
        "kind": kind,
        "batch": batch,
        "instructions": instructions,
        "prompt": [{"role": m["role"], "content": m["content"]} for m in json.loads(messages)],
        "responses": [
            {"letter": letter, "response_id": each, "text": text_of[each]}
            for letter, each in zip(answers.LETTERS, json.loads(shown_order), strict=False)
        ],
        "form": _form(kind, LabelSchema(content=json.loads(schema))),
        "answer": {name: value for name, value in json.loads(content).items() if name not in drafts.OF_THE_PAGE},
    }


def _form(kind: str, schema: LabelSchema) -> dict[str, Any]:
    if kind == Kind.DEMONSTRATION:
        return {"prompt_flags": schema.prompt_flags}
    return {name: schema.content[name] for name in ("quality", "response_flags", "prompt_flags")}


def shown_submission(submission: Submission) -> dict[str, Any]:
    """One of the caller's own."""
    return {
        "submission_id": submission.uuid,
        "task_id": submission.task.uuid,
        "kind": submission.kind,
        "status": submission.status,
        "is_surplus": submission.is_surplus,
        "revision": submission.revision_count,
        "submitted_at": submission.submitted_at,
        "updated_at": submission.updated_at,
    }


def _content(answer: dict, task: Task, work: Any, *, is_checked_later: bool = False) -> dict[str, Any]:
    """An answer in the shape that drafts keep. Raises Invalid for fields of another kind of task, and for what names nothing of it.

    `is_checked_later`: handing it in will name every response and flag that is wrong.
    """
    problems = [
        answers.problem(f"answer.{name}", f"is not asked for: this task is a {task.kind}", name)
        for kind, names in OF_KIND.items()
        if kind != task.kind
        for name in sorted(names & answer.keys())
    ]
    schema = task.batch.schema
    if not is_checked_later:
        _check_flags(answer.get("prompt_flags", {}), schema.prompt_flags, "answer.prompt_flags", problems)
        _check_responses(answer, work.shown_order, schema, problems)
    refuse(problems)
    content = {"prompt_flags": answer.get("prompt_flags", {}), "comment": answers.clean_text(answer.get("comment", ""))}
    if task.kind == Kind.DEMONSTRATION:
        return content | {"text": answers.clean_text(answer.get("text", ""))}
    tiers = [[str(uuid) for uuid in tier] for tier in answer.get("tiers", [])]
    return content | {"tiers": tiers, "ratings": answer.get("ratings", {}), "all_bad": answer.get("all_bad", False)}


def _check_responses(answer: dict, shown_order: list[str], schema: LabelSchema, problems: list[dict]) -> None:
    known = set(shown_order)
    named = [(f"answer.tiers[{n}]", str(uuid)) for n, tier in enumerate(answer.get("tiers", [])) for uuid in tier]
    named += [("answer.ratings", uuid) for uuid in answer.get("ratings", {})]
    problems += [
        answers.problem(place, f"{uuid[:40]} is not a response of this task")
        for place, uuid in named
        if uuid not in known
    ]
    for uuid, rating in answer.get("ratings", {}).items():
        _check_flags(rating.get("flags", {}), schema.response_flags, f"answer.ratings.{uuid[:40]}.flags", problems)


def _check_flags(given: dict, flags: list[dict], place: str, problems: list[dict]) -> None:
    unknown = set(given) - {flag["name"] for flag in flags}
    problems += [answers.problem(place, f"unknown flag {name[:40]!r}") for name in sorted(unknown)]
