"""/erasures/: what erasing an author would do, and doing it."""

from typing import Any

from django.http import Http404
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.actions import erasures
from labeling.api.base import PAGE_PARAMETERS, PageQuery, View, page, query_of
from labeling.api.schema import operation
from labeling.api.serializers import ErasureDetailOut, ErasureIn, ErasurePage, ErasurePlanOut
from labeling.models import Author, Erasure


class Erasures(View):
    scopes = {"GET": "admin", "POST": "admin"}

    @operation(
        scope="admin", answers={200: ErasurePage}, problems=(422,), parameters=PAGE_PARAMETERS,
        operation_id="list_erasures", summary="Erasures, newest first",
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        rows = Erasure.objects.prefetch_related("exports")
        return page(request, rows, _shown, self.checked(PageQuery, query_of(request)), newest_first=True)

    @operation(
        scope="admin", answers={200: ErasurePlanOut, 201: ErasureDetailOut}, request=ErasureIn, problems=(404, 409),
        operation_id="erase_author", summary="Erase an author",
        description=(
            "Without `confirmation`: what would be erased, 200, and nothing is done. With the author's key as `confirmation`, and a "
            "`reason`: it is erased for good, 201. The reason is kept: it must not name the person. Of an account without prompts "
            "the key is `labeler-ID`; only the console and the command find it by address."
        ),
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        given = self.checked(ErasureIn, request.data)
        author = Author.objects.filter(key=given["author"]).first()
        if author is None:
            raise Http404("There is no such author.")
        if "confirmation" in given:
            made = erasures.erase(
                author=author, confirmation=given["confirmation"], reason=given.get("reason", ""), by=self.person
            )
            models = erasures.models_trained_on(list(made.exports.all()))
            return Response(_shown(made) | {"models": [model.name for model in models]}, status=201)
        plan = erasures.plan(author=author)
        held = {"exports": [each.export.name for each in plan.exports], "models": [model.name for model in plan.models]}
        return Response({"pseudonym": plan.pseudonym, "counts": plan.counts, **held})


def _shown(made: Erasure) -> dict[str, Any]:
    return {
        "erasure_id": made.uuid,
        "pseudonym": made.pseudonym,
        "reason": made.reason,
        "erased_at": made.erased_at,
        "counts": made.counts,
        "exports": sorted(export.name for export in made.exports.all()),
    }
