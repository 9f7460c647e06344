"""/batches/ID/evaluation/: what an evaluation by people says."""

from typing import Any

from django.http import Http404
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.actions import evaluations
from labeling.api.base import StrictSerializer, View, find, query_of
from labeling.api.reviews import TEAM
from labeling.api.schema import operation
from labeling.models import Batch, Origin


class EvaluationQuery(StrictSerializer):
    """Whose answers: people's (unless said otherwise), simulated labelers', or both mixed."""

    origin = serializers.ChoiceField(evaluations.ORIGINS, required=False)


def _numbers(value: str, count: str) -> dict[str, serializers.Field]:
    """A figure, the ends of its 95 % interval (null where there is none), from how many judgments of how many prompts."""
    ends = {name: serializers.FloatField(allow_null=True) for name in (value, "low", "high")}
    return ends | {name: serializers.IntegerField() for name in (count, "prompts")}


class FlagRateOut(serializers.Serializer):
    """Share of yes among the answers given, 0 to 1."""

    locals().update(_numbers("rate", "answers"))


class RatingOut(serializers.Serializer):
    """Mean of the ratings of quality, and rate of each flag that was answered."""

    locals().update(_numbers("rating", "ratings"))
    flags = serializers.DictField(child=FlagRateOut())


class PolicyOut(RatingOut):
    model = serializers.CharField()
    by_use_case = serializers.DictField(child=RatingOut())
    by_group = serializers.DictField(child=RatingOut())


class WinRateOut(serializers.Serializer):
    """Share of comparisons that the first won, 0 to 1; a tie is half."""

    locals().update(_numbers("win_rate", "comparisons"))
    ties = serializers.IntegerField()


class PairOut(WinRateOut):
    first = serializers.CharField()
    second = serializers.CharField()
    by_use_case = serializers.DictField(child=WinRateOut())
    by_group = serializers.DictField(child=WinRateOut())


class EvaluationResultOut(serializers.Serializer):
    """Figures over the rankings that are accepted or not reviewed yet. Intervals are clustered by prompt."""

    batch = serializers.IntegerField()
    name = serializers.CharField()
    origin = serializers.ChoiceField(evaluations.ORIGINS)
    is_complete = serializers.BooleanField(help_text="nothing is open, or the batch was closed")
    open = serializers.IntegerField(help_text="seats open, leased, or returned for changes")
    prompts_ordered = serializers.IntegerField()
    prompts = serializers.IntegerField()
    labelers = serializers.IntegerField()
    rankings = serializers.IntegerField()
    left_out = serializers.DictField(
        child=serializers.IntegerField(),
        help_text="prompts without a response of every model, or with equal responses alone",
    )
    computed_at = serializers.DateTimeField()
    policies = PolicyOut(many=True)
    pairs = PairOut(many=True, help_text="every two policies, both ways round")


class BatchEvaluation(View):
    scopes = {"GET": "read"}
    readers = TEAM

    @operation(
        scope="read", answers={200: EvaluationResultOut}, problems=(404, 422), parameters=[EvaluationQuery],
        operation_id="get_batch_evaluation", summary="What an evaluation by people says",
        description="Over the labels as they are now. 404 for a batch that is no evaluation.",
    )  # fmt: skip
    def get(self, request: Request, pk: int) -> Response:
        query = self.checked(EvaluationQuery, query_of(request))
        batch = find(Batch, pk, "batch")
        if not batch.is_evaluation:
            raise Http404(f"Batch {pk} is no evaluation.")
        answer: dict[str, Any] = evaluations.result(batch, query.get("origin", Origin.PERSON.value))
        return Response(answer)
