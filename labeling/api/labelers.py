"""/labelers/ and /agreement/: how reliable labelers are, and how far they agree, as it was measured last."""

from typing import Any

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.api.base import PageQuery, View, page, page_of, query_of
from labeling.api.reviews import TEAM
from labeling.api.schema import operation
from labeling.models import AgreementFigure, AgreementReport, Between, Group, LabelerNumbers, Origin

COUNTS = ("demonstrations", "rankings", "skips", "agreement_count", "consensus_count", "gold_count", "gold_passed",
          "too_fast", "pasted", "near_copies")  # fmt: skip
SHARES = ("skip_rate", "reliability", "reliability_low", "reliability_high", "agreement", "agreement_low",
          "agreement_high", "consensus_agreement", "consensus_low", "consensus_high", "gold", "gold_low", "gold_high",
          "ranking_seconds", "demonstration_seconds")  # fmt: skip


class LabelerQuery(PageQuery):
    """Which labelers, and which page of them."""

    group = serializers.ChoiceField(Group.choices, required=False)
    is_paused = serializers.BooleanField(required=False)


class LabelerOut(serializers.Serializer):
    """Shares are 0 to 1, null where there is nothing to compare with; _low and _high end their 95 % interval; seconds are medians."""

    labeler_id = serializers.IntegerField()
    name = serializers.CharField()
    email = serializers.EmailField()
    group = serializers.ChoiceField(Group.choices)
    is_paused = serializers.BooleanField()
    computed_at = serializers.DateTimeField()
    locals().update({name: serializers.IntegerField() for name in COUNTS})
    locals().update({name: serializers.FloatField(allow_null=True) for name in SHARES})


class Labelers(View):
    scopes = {"GET": "read"}
    readers = TEAM

    @operation(
        scope="read", answers={200: page_of(LabelerOut)}, problems=(422,), parameters=[LabelerQuery],
        operation_id="list_labelers", summary="Labelers with their numbers",
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        query = self.checked(LabelerQuery, query_of(request))
        rows = LabelerNumbers.objects.select_related("labeler")
        chosen = {f"labeler__{name}": query[name] for name in ("group", "is_paused") if name in query}
        return page(request, rows.filter(**chosen), _shown, query, key="labeler_id")


def _shown(row: LabelerNumbers) -> dict[str, Any]:
    person = row.labeler
    return {name: getattr(row, name) for name in (*COUNTS, *SHARES, "computed_at")} | {
        "labeler_id": person.pk,
        "name": str(person),
        "email": person.email,
        "group": person.group,
        "is_paused": person.is_paused,
    }


# Agreement -----------------------------------------------------------------------------------------------------


class AgreementQuery(PageQuery):
    """Of which batch; all reports, if none is named."""

    batch_id = serializers.IntegerField(required=False, min_value=1, max_value=2**63 - 1)


class AgreementFigureOut(serializers.Serializer):
    measure = serializers.CharField(help_text="share, share_untied, tau_b, quality, flag:NAME, prompt_flag:NAME")
    between = serializers.ChoiceField(Between.choices)
    value = serializers.FloatField(allow_null=True)
    low = serializers.FloatField(allow_null=True, help_text="of the 95 % interval")
    high = serializers.FloatField(allow_null=True)
    tasks = serializers.IntegerField()
    count = serializers.IntegerField(help_text="pairs of rankings, or judgments that can be paired")


class AgreementOut(serializers.Serializer):
    batch_id = serializers.IntegerField(allow_null=True, help_text="null: all batches together")
    origin = serializers.ChoiceField(Origin.choices)
    submissions = serializers.IntegerField()
    shared_tasks = serializers.IntegerField()
    computed_at = serializers.DateTimeField()
    figures = AgreementFigureOut(many=True)


class Agreement(View):
    scopes = {"GET": "read"}
    readers = TEAM

    @operation(
        scope="read", answers={200: page_of(AgreementOut)}, problems=(422,), parameters=[AgreementQuery],
        operation_id="list_agreement", summary="Agreement as it was measured last, per batch and in all",
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        query = self.checked(AgreementQuery, query_of(request))
        rows = AgreementReport.objects.prefetch_related("figures")
        if "batch_id" in query:
            rows = rows.filter(batch_id=query["batch_id"])
        return page(request, rows, _shown_report, query)


def _shown_report(report: AgreementReport) -> dict[str, Any]:
    same = ("batch_id", "origin", "submissions", "shared_tasks", "computed_at")
    figures = sorted(report.figures.all(), key=lambda figure: figure.pk)
    return {name: getattr(report, name) for name in same} | {"figures": [_shown_figure(each) for each in figures]}


def _shown_figure(figure: AgreementFigure) -> dict[str, Any]:
    return {name: getattr(figure, name) for name in ("measure", "between", "value", "low", "high", "tasks", "count")}
