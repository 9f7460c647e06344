"""/intake/: prompts that were held back, why, and deciding about them."""

from typing import Any

from django.db.models import Prefetch
from django.http import Http404
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.actions import intake
from labeling.api.base import PageQuery, StrictSerializer, Uuid, View, page, page_of, query_of
from labeling.api.prompts import shown_prompt
from labeling.api.schema import operation
from labeling.api.serializers import MAX_ROWS, PromptOut
from labeling.models import Finding, Intake, IntakeDecision, Prompt


class IntakeQuery(PageQuery):
    """Which prompts, and which page of them. `state`: released is what was held and a person let through."""

    state = serializers.ChoiceField([Intake.HELD, Intake.REFUSED, intake.RELEASED], required=False, default=Intake.HELD)
    reason = serializers.ChoiceField(Finding.Reason.choices, required=False)
    import_id = serializers.IntegerField(required=False, min_value=1, max_value=2**63 - 1)


class SpanOut(serializers.Serializer):
    """Where personal data is: characters of a message, counted from 0, the last not included."""

    message = serializers.IntegerField()
    start = serializers.IntegerField()
    end = serializers.IntegerField()
    kind = serializers.CharField()


class FindingOut(serializers.Serializer):
    reason = serializers.ChoiceField(Finding.Reason.choices)
    spans = SpanOut(many=True)
    like_prompt_id = serializers.UUIDField(allow_null=True, help_text="of which it is a copy")


class DecisionOut(serializers.Serializer):
    verdict = serializers.ChoiceField(IntakeDecision.Verdict.choices)
    comment = serializers.CharField()
    decided_by = serializers.CharField(allow_null=True)
    decided_at = serializers.DateTimeField()


class HeldPromptOut(PromptOut):
    author = serializers.CharField(allow_null=True)
    import_id = serializers.IntegerField(allow_null=True)
    findings = FindingOut(many=True)
    decision = DecisionOut(allow_null=True, help_text="the newest")


WITH = (
    Prefetch("findings", Finding.objects.select_related("like").order_by("reason")),
    Prefetch("intake_decisions", IntakeDecision.objects.select_related("decided_by").order_by("-id")),
)


class IntakeQueue(View):
    scopes = {"GET": "read"}

    @operation(
        scope="read", answers={200: page_of(HeldPromptOut)}, problems=(422,), parameters=[IntakeQuery],
        operation_id="list_held_prompts", summary="Prompts that intake held back, and why, oldest first",
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        query = self.checked(IntakeQuery, query_of(request))
        rows = intake.held(state=query["state"], reason=query.get("reason", ""), record=query.get("import_id"))
        return page(request, rows.select_related("author").prefetch_related(*WITH), _shown, query)


class DecisionIn(StrictSerializer):
    """The same verdict, for the same reason, on each of these prompts."""

    prompt_ids = serializers.ListField(child=Uuid(), min_length=1, max_length=MAX_ROWS)
    verdict = serializers.ChoiceField(IntakeDecision.Verdict.choices)
    comment = serializers.CharField(max_length=intake.COMMENT_CHARS)


class DecidedOut(serializers.Serializer):
    decided = serializers.IntegerField(help_text="prompts that changed; one that was so decided already stays as it is")


class IntakeDecisions(View):
    scopes = {"POST": "import"}

    @operation(
        scope="import", answers={200: DecidedOut}, request=DecisionIn, problems=(404,), creates=True,
        operation_id="decide_held_prompts", summary="Let held prompts through, or refuse them",
        description=(
            "All of them or none. What was refused may be released later; what was released may be refused until it has tasks. "
            "409 for a prompt that is still being checked, was erased, or has tasks."
        ),
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        given = self.checked(DecisionIn, request.data)
        wanted = set(given["prompt_ids"])
        if missing := wanted.difference(Prompt.objects.filter(uuid__in=wanted).values_list("uuid", flat=True)):
            raise Http404(f"There is no prompt {min(missing)}.")
        count = intake.decide(prompts=wanted, verdict=given["verdict"], comment=given["comment"], by=self.person)
        return Response({"decided": count})


def _shown(prompt: Prompt) -> dict[str, Any]:
    decision = next(iter(prompt.intake_decisions.all()), None)
    return shown_prompt(prompt) | {
        "author": prompt.author.key if prompt.author else None,
        "import_id": prompt.imported_in_id,
        "findings": [
            {"reason": found.reason, "spans": found.spans, "like_prompt_id": found.like.uuid if found.like else None}
            for found in prompt.findings.all()
        ],
        "decision": decision
        and {
            "verdict": decision.verdict,
            "comment": decision.comment,
            "decided_by": str(decision.decided_by) if decision.decided_by else None,
            "decided_at": decision.decided_at,
        },
    }
