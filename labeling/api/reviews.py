"""/submissions/: what labelers handed in, for the team: read, decided on."""

from typing import Any
from uuid import UUID

from django.http import Http404
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.actions import looks, reviews, second_reviews, submissions
from labeling.api.base import PageQuery, StrictSerializer, Text, View, Whole, page, page_of, query_of
from labeling.api.schema import operation
from labeling.api.serializers import JSONObject
from labeling.models import Group, Kind, Origin, Review, Role, Submission, User

TEAM = (Role.REVIEWER, Role.RESEARCHER)


class SubmissionQuery(PageQuery):
    """Which submissions, and which page of them, newest first."""

    batch_id = serializers.IntegerField(required=False, min_value=1, max_value=2**63 - 1)
    labeler_id = serializers.IntegerField(required=False, min_value=1, max_value=2**63 - 1)
    status = serializers.ChoiceField(Submission.Status.choices, required=False)
    kind = serializers.ChoiceField(Kind.choices, required=False)
    group = serializers.ChoiceField(Group.choices, required=False)


class ReviewIn(StrictSerializer):
    """`revision` and `seen_review`: the newest of each when the reviewer looked (0: there was no review)."""

    verdict = serializers.ChoiceField(Review.Verdict.choices)
    comment = Text(required=False, allow_blank=True, default="", max_length=reviews.MAX_COMMENT_CHARS)
    revision = Whole(min_value=1, max_value=2**31 - 1)
    seen_review = Whole(required=False, default=0, min_value=0, max_value=2**63 - 1)


class SubmissionReviewOut(serializers.Serializer):
    id = serializers.IntegerField()
    verdict = serializers.ChoiceField(Review.Verdict.choices)
    comment = serializers.CharField(allow_blank=True)
    revision = serializers.IntegerField()
    reviewer = serializers.CharField()
    created_at = serializers.DateTimeField()


class SubmissionOut(serializers.Serializer):
    submission_id = serializers.UUIDField()
    task_id = serializers.UUIDField()
    prompt_id = serializers.UUIDField()
    batch_id = serializers.IntegerField()
    labeler_id = serializers.IntegerField()
    labeler = serializers.CharField()
    group = serializers.ChoiceField(Group.choices)
    origin = serializers.ChoiceField(Origin.choices)
    kind = serializers.ChoiceField(Kind.choices)
    status = serializers.ChoiceField(
        Submission.Status.choices, allow_null=True, help_text="null while the caller has a second review of it to give"
    )
    is_surplus = serializers.BooleanField()
    is_gold = serializers.BooleanField()
    revision = serializers.IntegerField()
    active_seconds = serializers.IntegerField()
    disagreement = serializers.FloatField(allow_null=True)
    review_priority = serializers.FloatField()
    submitted_at = serializers.DateTimeField()
    updated_at = serializers.DateTimeField()


class SubmissionDetailOut(SubmissionOut):
    answer = JSONObject()
    shown_order = serializers.ListField(child=serializers.UUIDField())
    reviews = SubmissionReviewOut(many=True, help_text="none while the caller has a second review of it to give")


class Submissions(View):
    scopes = {"GET": "read"}
    readers = TEAM

    @operation(
        scope="read", answers={200: page_of(SubmissionOut)}, problems=(422,), parameters=[SubmissionQuery],
        operation_id="list_submissions", summary="Submissions, newest first",
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        query = self.checked(SubmissionQuery, query_of(request))
        names = {"group": "labeler_group"}
        chosen = {names.get(k, k): v for k, v in query.items() if k not in {"cursor", "limit"}}
        return page(request, _rows(self.person).filter(**chosen), _shown, query, newest_first=True)


class OneSubmission(View):
    scopes = {"GET": "read"}
    readers = TEAM

    @operation(
        scope="read", answers={200: SubmissionDetailOut}, problems=(403, 404),
        operation_id="get_submission", summary="A submission with its newest answer and its reviews",
    )  # fmt: skip
    def get(self, request: Request, submission_uuid: UUID) -> Response:
        submission = _find(submission_uuid, self.person)
        if submission.labeler_id != self.person.pk:
            looks.look(task=submission.task, by=self.person)
        given = submission.reviews.select_related("revision", "reviewer")
        shown = {
            "answer": submissions.answer_of(submission.current),
            "shown_order": submission.shown_order,
            "reviews": [] if _is_blind(submission) else [_shown_review(review) for review in given],
        }
        return Response(_shown(submission) | shown)


class Decide(View):
    scopes = {"POST": "review"}

    @operation(
        scope="review", answers={200: SubmissionReviewOut}, request=ReviewIn, problems=(404,), creates=True,
        operation_id="review_submission", summary="Decide on a submission",
        description="The same verdict again changes nothing. 409 if the labeler has revised it, or another reviewer has decided, since.",
    )  # fmt: skip
    def post(self, request: Request, submission_uuid: UUID) -> Response:
        given = self.checked(ReviewIn, request.data)
        made = reviews.review(submission=_find(submission_uuid, self.person), **given, by=self.person)
        return Response(_shown_review(made))


def _rows(reader: User):
    rows = Submission.objects.select_related("task__prompt", "labeler")
    return rows.annotate(second_due=second_reviews.due_from(reader))


def _find(submission_uuid: UUID, reader: User) -> Submission:
    submission = _rows(reader).filter(uuid=submission_uuid).first()
    if submission is None:
        raise Http404(f"There is no submission {submission_uuid}.")
    return submission


def _shown(submission: Submission) -> dict[str, Any]:
    same = ("batch_id", "labeler_id", "origin", "kind", "status", "is_surplus", "is_gold", "active_seconds",
            "disagreement", "review_priority", "submitted_at", "updated_at")  # fmt: skip
    return (
        {name: getattr(submission, name) for name in same}
        | {
            "submission_id": submission.uuid,
            "task_id": submission.task.uuid,
            "prompt_id": submission.task.prompt.uuid,
            "labeler": str(submission.labeler),
            "group": submission.labeler_group,
            "revision": submission.revision_count,
        }
        | ({"status": None} if _is_blind(submission) else {})
    )


def _is_blind(submission: Submission) -> bool:
    """True while the reader has a second review of it to give."""
    return getattr(submission, "second_due", None) is not None


def _shown_review(review: Review) -> dict[str, Any]:
    return {
        "id": review.pk,
        "verdict": review.verdict,
        "comment": review.comment,
        "revision": review.revision.number,
        "reviewer": str(review.reviewer),
        "created_at": review.created_at,
    }
