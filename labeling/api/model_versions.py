"""/models/ and /promotions/: register, evaluate, keep what the gate says, promote or refuse; which policy serves."""

import hashlib
from typing import Any

from django.http import Http404
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.actions import lineage, model_versions
from labeling.api.base import PAGE_PARAMETERS, PageQuery, View, page, query_of
from labeling.api.schema import operation
from labeling.api.serializers import (
    EvaluationIn,
    EvaluationOut,
    EvaluationPage,
    GateCheckOut,
    GateCheckPage,
    GateIn,
    LabelsOut,
    ModelDetailOut,
    ModelIn,
    ModelOut,
    ModelPage,
    PromotionIn,
    PromotionOut,
    PromotionPage,
    RollbackIn,
    ServingOut,
)
from labeling.models import Evaluation, GateCheck, ModelVersion, Promotion


class Models(View):
    scopes = {"GET": "read", "POST": "train"}

    @operation(
        scope="read", answers={200: ModelPage}, problems=(422,), parameters=PAGE_PARAMETERS,
        operation_id="list_models", summary="Model versions, newest first",
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        rows = ModelVersion.objects.select_related("export")
        return page(request, rows, _shown, self.checked(PageQuery, query_of(request)), newest_first=True)

    @operation(
        scope="train", answers={200: ModelOut, 201: ModelOut}, request=ModelIn, creates=True, problems=(409,),
        operation_id="register_model", summary="Register a model",
        description=(
            "201 when it was registered, 200 when the same manifest was there. Its parents and its export must be known "
            "here; 409 when another manifest has the name."
        ),
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        given = self.checked(ModelIn, request.data)
        manifest = given["manifest"].encode()
        digest = hashlib.sha256(manifest).hexdigest()
        is_known = ModelVersion.objects.filter(manifest_sha256=digest).exists()
        version = model_versions.register(manifest=manifest, uri=given["uri"], by=self.person)
        return Response(_shown(version), status=200 if is_known else 201)


class OneModel(View):
    scopes = {"GET": "read"}

    @operation(
        scope="read", answers={200: ModelDetailOut}, problems=(404,),
        operation_id="get_model", summary="A model version with its manifest",
    )  # fmt: skip
    def get(self, request: Request, name: str) -> Response:
        version = _find(name)
        return Response(_shown(version) | {"manifest": version.manifest})


class Evaluations(View):
    scopes = {"GET": "read", "POST": "train"}

    @operation(
        scope="read", answers={200: EvaluationPage}, problems=(404, 422), parameters=PAGE_PARAMETERS,
        operation_id="list_evaluations", summary="Evaluations of a model version, newest first",
    )  # fmt: skip
    def get(self, request: Request, name: str) -> Response:
        query = self.checked(PageQuery, query_of(request))
        return page(request, _find(name).evaluations.all(), _shown_evaluation, query, newest_first=True)

    @operation(
        scope="train", answers={200: EvaluationOut}, request=EvaluationIn, creates=True, problems=(404,),
        operation_id="record_evaluation", summary="Record an evaluation",
        description=(
            "Kept for ever; the same figures recorded twice are one. `measured_by` says what measured them; where it is "
            "left out, what the metrics say under `by`."
        ),
    )  # fmt: skip
    def post(self, request: Request, name: str) -> Response:
        given = self.checked(EvaluationIn, request.data)
        made = model_versions.record_evaluation(model_version=_find(name), **given, by=self.person)
        return Response(_shown_evaluation(made))


class GateChecks(View):
    scopes = {"GET": "read", "POST": "train"}

    @operation(
        scope="read", answers={200: GateCheckPage}, problems=(404, 422), parameters=PAGE_PARAMETERS,
        operation_id="list_gate_checks", summary="What the promotion gate said of a model version, newest first",
    )  # fmt: skip
    def get(self, request: Request, name: str) -> Response:
        query = self.checked(PageQuery, query_of(request))
        return page(request, _find(name).gate_checks.all(), _shown_gate_check, query, newest_first=True)

    @operation(
        scope="train", answers={200: GateCheckOut}, request=GateIn, creates=True, problems=(404,),
        operation_id="record_gate_check", summary="Record what the promotion gate said",
        description=(
            "Kept for ever, without promoting. The same verdicts under the same rules are one. Once one has refused, one that holds "
            "lifts that only if an admin's token records it."
        ),
    )  # fmt: skip
    def post(self, request: Request, name: str) -> Response:
        given = self.checked(GateIn, request.data)
        made = model_versions.record_gate_check(model_version=_find(name), **given, by=self.person)
        return Response(_shown_gate_check(made))


class Labels(View):
    scopes = {"GET": "read"}

    @operation(
        scope="read", answers={200: LabelsOut}, problems=(404, 409),
        operation_id="list_labels_of_model", summary="The labels behind a model version",
        description="By export, of its own training and of all that it was made from. 409 where an export's files are not here.",
    )  # fmt: skip
    def get(self, request: Request, name: str) -> Response:
        exports = [
            {"export": one.export.name, "models": [model.name for model in one.models], **lineage.label_ids(one.export)}
            for one in lineage.sources(_find(name))
        ]
        return Response({"exports": exports})


class Promote(View):
    scopes = {"POST": "promote"}
    takes_idempotency_keys = (
        False  # it is idempotent itself; and a key would undo the record of a refusal with the rest
    )

    @operation(
        scope="promote", answers={200: PromotionOut}, request=PromotionIn, problems=(403, 404, 409),
        operation_id="promote_model", summary="Let a policy serve",
        description=(
            "The policy that served is retired in the same step. Promoting the one that serves changes nothing. `gate`: what the "
            "promotion gate said, kept also where it refuses. Where a required rule does not hold, now or in a check before that no admin "
            "has lifted by a newer one that holds: 409 `gate_refused` with the reasons, unless `override_by` names who decides against "
            "it and the token is an admin's. `seen_serving`: the policy that is to be replaced; 409 `conflict` when another serves by now."
        ),
    )  # fmt: skip
    def post(self, request: Request, name: str) -> Response:
        given = self.checked(PromotionIn, request.data)
        version, gate = _find(name), given.pop("gate", None)
        if gate:
            gate = model_versions.record_gate_check(model_version=version, **gate, by=self.person)
        made = model_versions.promote(model_version=version, gate_check=gate, **given, by=self.person)
        return Response(_shown_promotion(made))


class Promotions(View):
    scopes = {"GET": "read"}

    @operation(
        scope="read", answers={200: PromotionPage}, problems=(422,), parameters=PAGE_PARAMETERS,
        operation_id="list_promotions", summary="Promotions, newest first",
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        rows = Promotion.objects.select_related("model_version__export", "gate_check")
        return page(request, rows, _shown_promotion, self.checked(PageQuery, query_of(request)), newest_first=True)


class Rollback(View):
    scopes = {"POST": "promote"}

    @operation(
        scope="promote", answers={200: PromotionOut}, request=RollbackIn, creates=True, problems=(409,),
        operation_id="rollback_promotion", summary="Let the policy serve again that the serving one replaced",
        description="`seen_serving`: the policy that is to be taken back. 409 when another serves by now, or none came before.",
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        given = self.checked(RollbackIn, request.data)
        return Response(_shown_promotion(model_versions.rollback(**given, by=self.person)))


class Serving(View):
    scopes = {"GET": "read"}

    @operation(
        scope="read", answers={200: ServingOut}, operation_id="get_serving_model", summary="The policy that serves",
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        serving = model_versions.serving_policy()
        return Response({"model": _shown(serving) if serving else None})


def _find(name: str) -> ModelVersion:
    version = None
    if "\x00" not in name:
        version = ModelVersion.objects.select_related("export").filter(name=name).first()
    if version is None:
        raise Http404(f"There is no model named {name[:150]!r}.")
    return version


def _shown(version: ModelVersion) -> dict[str, Any]:
    fields = ("name", "stage", "status", "uri", "manifest_sha256", "few_shot_prefix", "created_at")
    export = version.export.name if version.export else None
    return {name: getattr(version, name) for name in fields} | {"export": export}


def _shown_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    return {name: getattr(evaluation, name) for name in ("name", "measured_by", "metrics", "config", "created_at")}


def _shown_promotion(promotion: Promotion) -> dict[str, Any]:
    shown = {name: getattr(promotion, name) for name in ("reason", "metrics", "override_by", "promoted_at")}
    gate_holds = promotion.gate_check.holds if promotion.gate_check else None
    return {"model": _shown(promotion.model_version), "gate_holds": gate_holds} | shown


def _shown_gate_check(check: GateCheck) -> dict[str, Any]:
    return {name: getattr(check, name) for name in ("holds", "verdicts", "rules", "rules_sha256", "created_at")}
