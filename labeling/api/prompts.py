"""/prompts/: what to sample, and what to bring."""

from typing import Any

from django.db.models import Exists, OuterRef
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response as Answer

from labeling.actions import coverage, imports
from labeling.actions import prompts as actions
from labeling.api.base import PAGE_PARAMETERS, PageQuery, StrictSerializer, Uuid, View, page, page_of, query_of
from labeling.api.schema import operation
from labeling.api.serializers import MAX_ROWS, CountsOut, JSONObject, PromptOut, PromptPage, PromptQuery, RowsIn
from labeling.models import Import, Kind, Prompt, Response, Split, Task

FILTERS = [
    OpenApiParameter("split", str, enum=Split.values),
    OpenApiParameter("use_case", str),
    OpenApiParameter("kind", str, enum=Prompt.Kind.values),
    OpenApiParameter("not_sampled_by", str, description="leave out prompts to which this model has responded"),
    OpenApiParameter("without_tasks", str, enum=Kind.values, description="leave out prompts with such a task"),
]


class Prompts(View):
    scopes = {"GET": "read", "POST": "import"}

    @operation(
        scope="read", answers={200: PromptPage}, problems=(422,), parameters=[*FILTERS, *PAGE_PARAMETERS],
        operation_id="list_prompts", summary="Open prompts, a page at a time",
    )  # fmt: skip
    def get(self, request: Request) -> Answer:
        query = self.checked(PromptQuery, query_of(request))
        given = {name: query[name] for name in ("split", "use_case", "kind") if name in query}
        prompts = Prompt.objects.opened().filter(**given)
        if "not_sampled_by" in query:
            answered = Response.objects.filter(prompt=OuterRef("pk"), model_version__name=query["not_sampled_by"])
            prompts = prompts.exclude(Exists(answered))
        if "without_tasks" in query:
            prompts = prompts.exclude(Exists(Task.objects.filter(prompt=OuterRef("pk"), kind=query["without_tasks"])))
        return page(request, prompts, shown_prompt, query)

    @operation(
        scope="import", answers={200: CountsOut}, request=RowsIn, creates=True, problems=(409,),
        operation_id="import_prompts", summary="Bring prompts",
        description="Rows as in an import file. All or nothing; what is here already is counted as present.",
    )  # fmt: skip
    def post(self, request: Request) -> Answer:
        rows = self.checked(RowsIn, request.data)["rows"]
        return Answer({"counts": imports.import_rows(kind=Import.Kind.PROMPTS, rows=rows, by=self.person)})


class UseCaseIn(StrictSerializer):
    prompt_id = Uuid()
    use_case = serializers.CharField(max_length=50)


class UseCasesIn(StrictSerializer):
    """Use cases of prompts; where a prompt is named twice the last one counts."""

    rows = serializers.ListField(child=UseCaseIn(), min_length=1, max_length=MAX_ROWS)


class UseCasesOut(serializers.Serializer):
    given = serializers.IntegerField(help_text="prompts that had none before")


class UseCases(View):
    scopes = {"POST": "import"}

    @operation(
        scope="import", answers={200: UseCasesOut}, request=UseCasesIn, creates=True,
        operation_id="give_use_cases", summary="Give prompts that came without one a use case",
        description=(
            "For what comes by the gateway and the playground. All of them or none: 422 names each prompt that is not there, "
            "or has another use case already."
        ),
    )  # fmt: skip
    def post(self, request: Request) -> Answer:
        rows = self.checked(UseCasesIn, request.data)["rows"]
        given = {row["prompt_id"]: row["use_case"] for row in rows}
        return Answer({"given": actions.give_use_cases(use_cases=given, by=self.person)})


class LeastCoveredQuery(StrictSerializer):
    """Prompts for which kind of task, and how many of them. `seed` decides among equals."""

    task = serializers.ChoiceField(Kind.choices)
    split = serializers.ChoiceField(Split.choices, required=False)
    use_case = serializers.CharField(required=False, max_length=50)
    limit = serializers.IntegerField(required=False, min_value=1, max_value=coverage.MOST_PROMPTS, default=100)
    seed = serializers.IntegerField(required=False, min_value=0, max_value=2**31 - 1, default=0)


class CoveredPromptOut(PromptOut):
    tasks = serializers.IntegerField(help_text="tasks of this kind that it has")


class LeastCoveredOut(serializers.Serializer):
    results = CoveredPromptOut(many=True)


class LeastCovered(View):
    scopes = {"GET": "read"}

    @operation(
        scope="read", answers={200: LeastCoveredOut}, problems=(422,), parameters=[LeastCoveredQuery],
        operation_id="list_least_covered_prompts", summary="The prompts that a batch should take next",
        description=(
            "Open prompts in the order that brings each use case to the same number of tasks per prompt; within a use case "
            "those with the fewest tasks first."
        ),
    )  # fmt: skip
    def get(self, request: Request) -> Answer:
        query = self.checked(LeastCoveredQuery, query_of(request))
        found = coverage.least_covered(kind=query.pop("task"), **query)
        return Answer({"results": [shown_prompt(prompt) | {"tasks": tasks} for prompt, tasks in found]})


class ResponseQuery(PageQuery):
    """Which responses, and which page of them."""

    prompt_id = serializers.UUIDField(required=False)
    model = serializers.CharField(required=False, max_length=150)
    origin = serializers.ChoiceField(Response.Origin.choices, required=False)


class ResponseOut(serializers.Serializer):
    response_id = serializers.UUIDField()
    prompt_id = serializers.UUIDField()
    text = serializers.CharField(allow_blank=True)
    origin = serializers.ChoiceField(Response.Origin.choices)
    model = serializers.CharField(allow_null=True, help_text="null: a person wrote it")
    sampling = JSONObject()
    finish_reason = serializers.CharField(allow_blank=True)
    created_at = serializers.DateTimeField()


class Responses(View):
    scopes = {"GET": "read", "POST": "import"}

    @operation(
        scope="read", answers={200: page_of(ResponseOut)}, problems=(422,), parameters=[ResponseQuery],
        operation_id="list_responses", summary="Responses, a page at a time",
    )  # fmt: skip
    def get(self, request: Request) -> Answer:
        query = self.checked(ResponseQuery, query_of(request))
        names = {"prompt_id": "prompt__uuid", "model": "model_version__name", "origin": "origin"}
        rows = Response.objects.select_related("prompt", "model_version")
        rows = rows.filter(**{path: query[name] for name, path in names.items() if name in query})
        return page(request, rows, _shown_response, query)

    @operation(
        scope="import", answers={200: CountsOut}, request=RowsIn, creates=True, problems=(409,),
        operation_id="import_responses", summary="Bring responses",
        description=(
            "Rows as in an import file: `prompt_id` or a prompt, `model`, `response`, and optionally "
            "`response_external_id`, `finish_reason`, `sampling`. All or nothing; an equal external id for the same "
            "prompt and model is the same response, so a repeat adds nothing."
        ),
    )  # fmt: skip
    def post(self, request: Request) -> Answer:
        rows = self.checked(RowsIn, request.data)["rows"]
        return Answer({"counts": imports.import_rows(kind=Import.Kind.RESPONSES, rows=rows, by=self.person)})


def shown_prompt(prompt: Prompt) -> dict[str, Any]:
    """As PromptOut says."""
    return {
        "prompt_id": prompt.uuid,
        "external_id": prompt.external_id,
        "kind": prompt.kind,
        "use_case": prompt.use_case,
        "split": prompt.split,
        "messages": prompt.messages,
    }


def _shown_response(response: Response) -> dict[str, Any]:
    same = ("text", "origin", "sampling", "finish_reason", "created_at")
    return {name: getattr(response, name) for name in same} | {
        "response_id": response.uuid,
        "prompt_id": response.prompt.uuid,
        "model": response.model_version.name if response.model_version else None,
    }
