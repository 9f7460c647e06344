"""Addresses under /api/v1/."""

from csp.decorators import csp_update
from django.contrib.auth.views import redirect_to_login
from django.http import Http404
from django.http.response import HttpResponseBase
from django.urls import path, re_path
from django.utils.decorators import method_decorator
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularJSONAPIView, SpectacularSwaggerSplitView
from rest_framework.authentication import SessionAuthentication
from rest_framework.exceptions import NotAuthenticated
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.api import (
    batches,
    erasures,
    evaluations,
    exports,
    gateway_keys,
    imports,
    intake,
    label_schemas,
    labelers,
    model_versions,
    people,
    prompts,
    questions,
    reviews,
    submissions,
    tasks,
    webhooks,
)
from labeling.api.authentication import TokenAuthentication
from labeling.api.base import View
from labeling.api.permissions import IsResearcher

DOCUMENTATION = {
    "authentication_classes": [TokenAuthentication, SessionAuthentication],
    "permission_classes": [IsResearcher],
}


# Swagger UI draws with inline styles; its script comes from here.
@method_decorator(csp_update({"style-src": ["'self'", "'unsafe-inline'"]}), name="dispatch")
class Documentation(SpectacularSwaggerSplitView):
    """The API's documentation, drawn by the copy of Swagger UI in this installation."""

    def handle_exception(self, exc: Exception) -> HttpResponseBase:  # type: ignore[override]
        """Send a browser without a session to the login page."""
        if isinstance(exc, NotAuthenticated):
            return redirect_to_login(self.request.get_full_path())
        return super().handle_exception(exc)


class Missing(View):
    """Problem JSON for addresses that do not exist; a stranger learns nothing of which do."""

    permission_classes = (IsAuthenticated,)

    @extend_schema(exclude=True)
    def get(self, request: Request, rest: str) -> Response:
        raise Http404(f"There is nothing at {request.path[:200]!r}.")

    post = put = patch = delete = get


urlpatterns = [
    path("tasks/next/", tasks.NextTask.as_view(), name="api_task_next"),
    path("tasks/<uuid:task_uuid>/", tasks.OneTask.as_view(), name="api_task"),
    path("tasks/<uuid:task_uuid>/draft/", tasks.TaskDraft.as_view(), name="api_task_draft"),
    path("tasks/<uuid:task_uuid>/renew/", tasks.TaskRenew.as_view(), name="api_task_renew"),
    path("tasks/<uuid:task_uuid>/submit/", tasks.TaskSubmit.as_view(), name="api_task_submit"),
    path("tasks/<uuid:task_uuid>/skip/", tasks.TaskSkip.as_view(), name="api_task_skip"),
    path("tasks/<uuid:task_uuid>/release/", tasks.TaskRelease.as_view(), name="api_task_release"),
    path("me/submissions/", submissions.OwnSubmissions.as_view(), name="api_own_submissions"),
    path("me/submissions/<uuid:submission_uuid>/", submissions.OwnSubmission.as_view(), name="api_own_submission"),
    path("prompts/", prompts.Prompts.as_view(), name="api_prompts"),
    path("prompts/use-cases/", prompts.UseCases.as_view(), name="api_use_cases"),
    path("prompts/least-covered/", prompts.LeastCovered.as_view(), name="api_least_covered"),
    path("responses/", prompts.Responses.as_view(), name="api_responses"),
    path("batches/", batches.Batches.as_view(), name="api_batches"),
    path("erasures/", erasures.Erasures.as_view(), name="api_erasures"),
    path("batches/<int:pk>/", batches.OneBatch.as_view(), name="api_batch"),
    path("batches/<int:pk>/evaluation/", evaluations.BatchEvaluation.as_view(), name="api_batch_evaluation"),
    path("imports/", imports.Imports.as_view(), name="api_imports"),
    path("imports/<int:pk>/", imports.OneImport.as_view(), name="api_import"),
    path("intake/", intake.IntakeQueue.as_view(), name="api_intake"),
    path("intake/decisions/", intake.IntakeDecisions.as_view(), name="api_intake_decisions"),
    path("submissions/", reviews.Submissions.as_view(), name="api_submissions"),
    path("submissions/<uuid:submission_uuid>/", reviews.OneSubmission.as_view(), name="api_submission"),
    path("submissions/<uuid:submission_uuid>/review/", reviews.Decide.as_view(), name="api_review"),
    path("labelers/", labelers.Labelers.as_view(), name="api_labelers"),
    path("agreement/", labelers.Agreement.as_view(), name="api_agreement"),
    path("questions/", questions.Questions.as_view(), name="api_questions"),
    path("questions/<uuid:question_uuid>/answer/", questions.Answer.as_view(), name="api_question_answer"),
    path("people/", people.People.as_view(), name="api_people"),
    path("people/<int:pk>/", people.OnePerson.as_view(), name="api_person"),
    path("invitations/", people.Invitations.as_view(), name="api_invitations"),
    path("gateway-keys/", gateway_keys.GatewayKeys.as_view(), name="api_gateway_keys"),
    path("gateway-keys/<int:pk>/", gateway_keys.OneGatewayKey.as_view(), name="api_gateway_key"),
    path("webhooks/", webhooks.Webhooks.as_view(), name="api_webhooks"),
    path("webhooks/<int:pk>/", webhooks.OneWebhook.as_view(), name="api_webhook"),
    path("webhooks/<int:pk>/deliveries/", webhooks.Deliveries.as_view(), name="api_webhook_deliveries"),
    path("webhooks/<int:pk>/test/", webhooks.TryOut.as_view(), name="api_webhook_test"),
    path("label-schemas/", label_schemas.LabelSchemas.as_view()),
    path("exports/", exports.Exports.as_view(), name="api_exports"),
    path("exports/count/", exports.CountLabels.as_view(), name="api_count_labels"),
    path("exports/<str:key>/", exports.OneExport.as_view(), name="api_export"),
    path("exports/<str:key>/withdraw/", exports.WithdrawExport.as_view(), name="api_export_withdraw"),
    path("exports/<str:key>/files/<str:file_name>", exports.ExportFile.as_view(), name="api_export_file"),
    path("models/", model_versions.Models.as_view(), name="api_models"),
    # Names of outside models may hold slashes.
    path("models/<path:name>/evaluations/", model_versions.Evaluations.as_view(), name="api_evaluations"),
    path("models/<path:name>/gate-checks/", model_versions.GateChecks.as_view(), name="api_gate_checks"),
    path("models/<path:name>/labels/", model_versions.Labels.as_view(), name="api_model_labels"),
    path("models/<path:name>/promote/", model_versions.Promote.as_view(), name="api_promote"),
    path("models/<path:name>/", model_versions.OneModel.as_view(), name="api_model"),
    path("promotions/", model_versions.Promotions.as_view(), name="api_promotions"),
    path("promotions/rollback/", model_versions.Rollback.as_view(), name="api_rollback"),
    path("promotions/serving/", model_versions.Serving.as_view(), name="api_serving"),
    path("schema/", SpectacularJSONAPIView.as_view(**DOCUMENTATION), name="api_schema"),
    path("docs/", Documentation.as_view(url_name="api_schema", **DOCUMENTATION), name="api_docs"),
    re_path(r"^(?P<rest>(?s:.*))$", Missing.as_view(), name="api_missing"),
]
