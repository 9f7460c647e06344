"""Django's admin, for admins: everything that has no page of its own. Labels and what hangs on them can only be read."""

from allauth.account.decorators import secure_admin_login
from django.contrib import admin, messages
from django.contrib.admin import ModelAdmin, register
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from labeling.actions import tokens
from labeling.models import (
    Acknowledgement,
    Adjudication,
    ApiToken,
    Author,
    Batch,
    Draft,
    DraftCopy,
    Evaluation,
    Export,
    GateCheck,
    GatewayKey,
    GatewayUsage,
    Import,
    Instructions,
    Invitation,
    LabelSchema,
    Look,
    ModelVersion,
    PayRule,
    Promotion,
    Prompt,
    Question,
    QuestionMessage,
    Response,
    Review,
    Revision,
    SecondReview,
    SecondReviewRate,
    Skip,
    Slot,
    Submission,
    Task,
    User,
    UserRole,
    WorkEntry,
)

admin.site.site_header = admin.site.site_title = "Heed"
# One way in, with its throttling and second factor: the admin has no log-in form of its own.
admin.site.login = secure_admin_login(admin.site.login)  # type: ignore[method-assign]


class ReadOnlyAdmin(ModelAdmin):
    """To look, not to touch: rows come and change through actions. Made for long tables: no full counts, newest first."""

    show_full_result_count = False
    ordering = ["-id"]
    list_per_page = 50

    def has_add_permission(self, request, obj=None) -> bool:
        return False

    def has_change_permission(self, request, obj=None) -> bool:
        return False

    def has_delete_permission(self, request, obj=None) -> bool:
        return False


@register(User)
class UserAdmin(ReadOnlyAdmin):
    list_display = ["email", "name", "group", "is_simulated", "is_active", "created_at", "last_login"]
    list_filter = ["group", "is_simulated", "is_active"]
    search_fields = ["email", "name"]
    exclude = ["password", "user_permissions", "groups"]


@register(UserRole)
class UserRoleAdmin(ReadOnlyAdmin):
    list_display = ["user", "role", "granted_by", "granted_at"]
    list_filter = ["role"]
    list_select_related = ["user", "granted_by"]


@register(Invitation)
class InvitationAdmin(ReadOnlyAdmin):
    list_display = ["email", "role", "group", "invited_by", "invited_at", "expires_at", "accepted_at"]
    list_select_related = ["invited_by"]
    exclude = ["secret_hash"]


@register(ApiToken)
class ApiTokenAdmin(ReadOnlyAdmin):
    list_display = ["name", "prefix", "user", "scopes", "expires_at", "last_used_at", "revoked_at"]
    list_select_related = ["user"]
    exclude = ["secret_hash"]
    actions = ["revoke"]

    @admin.action(description=_("End the chosen tokens now"))
    def revoke(self, request, queryset) -> None:
        """Through the action, as everywhere."""
        for token in queryset:
            tokens.revoke(token=token, by=request.user)
        count = len(queryset)
        said = ngettext("%(n)d token ended.", "%(n)d tokens ended.", count) % {"n": count}
        self.message_user(request, said, messages.SUCCESS)


@register(LabelSchema)
class LabelSchemaAdmin(ReadOnlyAdmin):
    list_display = ["version", "created_at"]
    ordering = ["-version"]


@register(Author)
class AuthorAdmin(ReadOnlyAdmin):
    list_display = ["key", "organization", "split", "created_at"]
    list_filter = ["split"]
    search_fields = ["key"]


@register(Prompt)
class PromptAdmin(ReadOnlyAdmin):
    list_display = ["uuid", "external_id", "kind", "source", "use_case", "split", "created_at"]
    list_filter = ["split", "source", "kind"]
    search_fields = ["uuid__exact", "external_id__exact"]


@register(Response)
class ResponseAdmin(ReadOnlyAdmin):
    list_display = ["uuid", "model_version", "origin", "finish_reason", "created_at"]
    list_filter = ["origin", "finish_reason"]
    list_select_related = ["model_version"]
    search_fields = ["uuid__exact"]


@register(Import)
class ImportAdmin(ReadOnlyAdmin):
    list_display = ["file_name", "kind", "counts", "created_by", "created_at"]
    list_select_related = ["created_by"]


@register(Batch)
class BatchAdmin(ReadOnlyAdmin):
    list_display = ["name", "kind", "status", "responses_per_task", "overlap", "group", "priority", "created_at"]
    list_filter = ["status", "kind", "group"]
    search_fields = ["name"]


@register(Task)
class TaskAdmin(ReadOnlyAdmin):
    list_display = ["uuid", "batch", "kind", "created_at"]
    list_filter = ["kind"]
    list_select_related = ["batch"]
    search_fields = ["uuid__exact"]


@register(Slot)
class SlotAdmin(ReadOnlyAdmin):
    list_display = ["id", "batch", "seat", "status", "labeler", "leased_at", "lease_expires_at", "submitted_at"]
    list_filter = ["status", "kind"]
    list_select_related = ["batch", "labeler"]


@register(Draft)
class DraftAdmin(ReadOnlyAdmin):
    list_display = ["task", "labeler", "version", "saved_at"]
    list_select_related = ["task", "labeler"]


@register(DraftCopy)
class DraftCopyAdmin(ReadOnlyAdmin):
    list_display = ["task", "labeler", "created_at"]
    list_select_related = ["task", "labeler"]


@register(Look)
class LookAdmin(ReadOnlyAdmin):
    list_display = ["task", "labeler", "seen_at"]
    list_select_related = ["task", "labeler"]


@register(Skip)
class SkipAdmin(ReadOnlyAdmin):
    list_display = ["task", "labeler", "reason", "created_at"]
    list_filter = ["reason"]
    list_select_related = ["task", "labeler"]


@register(Instructions)
class InstructionsAdmin(ReadOnlyAdmin):
    list_display = ["kind", "version", "published_by", "published_at"]
    list_select_related = ["published_by"]


@register(Acknowledgement)
class AcknowledgementAdmin(ReadOnlyAdmin):
    list_display = ["user", "instructions", "acknowledged_at"]
    list_select_related = ["user", "instructions"]


@register(Submission)
class SubmissionAdmin(ReadOnlyAdmin):
    list_display = ["uuid", "kind", "labeler", "status", "origin", "labeler_group", "is_surplus", "submitted_at"]
    list_filter = ["status", "kind", "origin", "labeler_group", "is_surplus"]
    list_select_related = ["labeler"]
    search_fields = ["uuid__exact"]


@register(Revision)
class RevisionAdmin(ReadOnlyAdmin):
    list_display = ["submission", "number", "created_at"]
    list_select_related = ["submission"]


@register(Review)
class ReviewAdmin(ReadOnlyAdmin):
    list_display = ["submission", "verdict", "reviewer", "created_at"]
    list_filter = ["verdict"]
    list_select_related = ["submission", "reviewer"]


@register(Adjudication)
class AdjudicationAdmin(ReadOnlyAdmin):
    list_display = ["task", "reviewer", "created_at"]
    list_select_related = ["task", "reviewer"]


@register(SecondReview)
class SecondReviewAdmin(ReadOnlyAdmin):
    list_display = ["review", "first_verdict", "verdict", "first_reviewer", "reviewer", "decided_at"]
    list_select_related = ["review", "first_reviewer", "reviewer"]


@register(SecondReviewRate)
class SecondReviewRateAdmin(ReadOnlyAdmin):
    list_display = ["percent", "set_by", "set_at"]
    list_select_related = ["set_by"]


@register(WorkEntry)
class WorkEntryAdmin(ReadOnlyAdmin):
    list_display = ["labeler", "activity", "seconds", "is_surplus", "ended_at"]
    list_filter = ["activity", "is_surplus"]
    list_select_related = ["labeler"]


@register(PayRule)
class PayRuleAdmin(ReadOnlyAdmin):
    list_display = ["set_at", "pays_skips", "pays_practice", "pays_screening", "set_by"]
    list_select_related = ["set_by"]


@register(Question)
class QuestionAdmin(ReadOnlyAdmin):
    list_display = ["uuid", "kind", "asker", "is_open", "published_at", "asked_at"]
    list_filter = ["kind", "is_open"]
    list_select_related = ["asker"]


@register(QuestionMessage)
class QuestionMessageAdmin(ReadOnlyAdmin):
    list_display = ["question", "author", "is_answer", "created_at"]
    list_select_related = ["question", "author"]


@register(Export)
class ExportAdmin(ReadOnlyAdmin):
    list_display = ["name", "status", "created_by", "created_at", "finished_at"]
    list_filter = ["status"]
    list_select_related = ["created_by"]


@register(ModelVersion)
class ModelVersionAdmin(ReadOnlyAdmin):
    list_display = ["name", "stage", "status", "export", "registered_by", "created_at"]
    list_filter = ["stage", "status"]
    list_select_related = ["export", "registered_by"]
    search_fields = ["name"]


@register(Evaluation)
class EvaluationAdmin(ReadOnlyAdmin):
    list_display = ["model_version", "name", "created_by", "created_at"]
    list_select_related = ["model_version", "created_by"]


@register(GateCheck)
class GateCheckAdmin(ReadOnlyAdmin):
    list_display = ["model_version", "holds", "created_by", "created_at"]
    list_select_related = ["model_version", "created_by"]


@register(Promotion)
class PromotionAdmin(ReadOnlyAdmin):
    list_display = ["model_version", "previous", "reason", "promoted_by", "promoted_at"]
    list_select_related = ["model_version", "previous", "promoted_by"]


@register(GatewayKey)
class GatewayKeyAdmin(ReadOnlyAdmin):
    list_display = ["organization", "name", "prefix", "may_train", "expires_at", "last_used_at", "revoked_at"]
    list_filter = ["may_train"]
    search_fields = ["organization", "name"]
    exclude = ["secret_hash"]


@register(GatewayUsage)
class GatewayUsageAdmin(ReadOnlyAdmin):
    list_display = ["day", "key", "requests", "errors", "limited", "prompt_tokens", "completion_tokens", "captured"]
    list_select_related = ["key"]
