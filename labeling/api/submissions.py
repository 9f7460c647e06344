"""/me/submissions/: what a labeler has handed in, and what became of it."""

import base64
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Q
from django.http import Http404
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.actions import submissions
from labeling.api.base import PageQuery, View, query_of
from labeling.api.schema import operation
from labeling.api.serializers import JSONObject
from labeling.api.tasks import OwnSubmissionOut, shown_submission
from labeling.models import Review, Submission


class OwnSubmissionPage(serializers.Serializer):
    results = OwnSubmissionOut(many=True)
    next = serializers.CharField(allow_null=True)


class FeedbackOut(serializers.Serializer):
    verdict = serializers.ChoiceField(Review.Verdict.choices)
    comment = serializers.CharField(allow_blank=True)
    revision = serializers.IntegerField()
    created_at = serializers.DateTimeField()


class OwnSubmissionDetailOut(OwnSubmissionOut):
    answer = JSONObject()
    feedback = FeedbackOut(many=True)


class TimeQuery(PageQuery):
    """A page of rows by time: a cursor by number would tell a labeler how much others have done."""

    cursor = serializers.CharField(required=False, max_length=120)
    status = serializers.ChoiceField(Submission.Status.choices, required=False)

    def validate_cursor(self, value: str) -> tuple[datetime, UUID]:  # type: ignore[override]
        """Time and UUID of the row that the page begins behind."""
        try:
            moment, _space, uuid = (
                base64.urlsafe_b64decode(value.encode("ascii", "strict")).decode("ascii").partition(" ")
            )
            at = datetime.fromisoformat(moment)
            if at.tzinfo is None:
                raise ValueError(moment)
            return at, UUID(uuid)
        except ValueError:
            raise ValidationError("Not a cursor of ours.") from None


class OwnSubmissions(View):
    scopes = {"GET": "label"}

    @operation(
        scope="label", answers={200: OwnSubmissionPage}, problems=(422,),
        parameters=[TimeQuery], operation_id="list_own_submissions", summary="One's own submissions, newest first",
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        query = self.checked(TimeQuery, query_of(request))
        rows = Submission.objects.filter(labeler=self.person).select_related("task")
        if "status" in query:
            rows = rows.filter(status=query["status"])
        if cursor := query.get("cursor"):
            at, uuid = cursor
            # The first condition says nothing new, but to the index where to begin.
            rows = rows.filter(Q(submitted_at__lte=at) & (Q(submitted_at__lt=at) | Q(uuid__gt=uuid)))
        found = list(rows.order_by("-submitted_at", "uuid")[: query["limit"] + 1])
        shown, following = found[: query["limit"]], None
        if len(found) > query["limit"]:
            last = shown[-1]
            following = base64.urlsafe_b64encode(f"{last.submitted_at.isoformat()} {last.uuid}".encode()).decode()
        return Response({"results": [shown_submission(row) for row in shown], "next": following})


class OwnSubmission(View):
    scopes = {"GET": "label"}

    @operation(
        scope="label", answers={200: OwnSubmissionDetailOut}, problems=(404,),
        operation_id="get_own_submission", summary="One's own submission, with what reviewers said",
    )  # fmt: skip
    def get(self, request: Request, submission_uuid: UUID) -> Response:
        mine = Submission.objects.filter(labeler=self.person, uuid=submission_uuid)
        submission = mine.select_related("task").first()
        if submission is None:
            raise Http404(f"No submission {submission_uuid} of yours.")
        reviews = submission.reviews.feedback().select_related("revision")
        shown: dict[str, Any] = shown_submission(submission) | {
            "answer": submissions.answer_of(submission.current),
            "feedback": [
                {"verdict": r.verdict, "comment": r.comment, "revision": r.revision.number, "created_at": r.created_at}
                for r in reviews
            ],
        }
        return Response(shown)
