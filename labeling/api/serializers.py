"""What the API takes and gives, as the OpenAPI schema shows it."""

from django.conf import settings
from rest_framework import serializers

from labeling import languages
from labeling.api.base import PageQuery, StrictSerializer
from labeling.models import Batch, Evaluation, Kind, ModelVersion, Prompt, Split

MAX_ROWS = 1000


class JSONObject(serializers.DictField):
    """A JSON object with any content."""


# ---- prompts and responses


class PromptQuery(PageQuery):
    """Which prompts, and which page of them."""

    split = serializers.ChoiceField(Split.choices, required=False)
    use_case = serializers.CharField(required=False, max_length=50)
    kind = serializers.ChoiceField(Prompt.Kind.choices, required=False)
    not_sampled_by = serializers.CharField(required=False, max_length=150)
    without_tasks = serializers.ChoiceField(Kind.choices, required=False)


class MessageOut(serializers.Serializer):
    role = serializers.ChoiceField(["system", "user", "assistant"])
    content = serializers.CharField()


class PromptOut(serializers.Serializer):
    prompt_id = serializers.UUIDField()
    external_id = serializers.CharField(allow_null=True)
    kind = serializers.ChoiceField(Prompt.Kind.choices)
    use_case = serializers.CharField(allow_blank=True)
    split = serializers.ChoiceField(Split.choices)
    messages = MessageOut(many=True)


class PromptPage(serializers.Serializer):
    results = PromptOut(many=True)
    next = serializers.CharField(allow_null=True)


class RowsIn(StrictSerializer):
    """Rows as in an import file; all go in, or none."""

    rows = serializers.ListField(child=JSONObject(), min_length=1, max_length=MAX_ROWS)


class CountsOut(serializers.Serializer):
    counts = serializers.DictField(child=serializers.IntegerField())


# ---- batches


class BatchIn(StrictSerializer):
    """An order, as `manage.py create_batch --help` explains it."""

    name = serializers.CharField(max_length=100)
    kind = serializers.ChoiceField(Kind.choices)
    purpose = serializers.ChoiceField(Batch.Purpose.choices, required=False)
    model_names = serializers.ListField(child=serializers.CharField(max_length=150), required=False, max_length=100)
    must_include = serializers.ListField(child=serializers.CharField(max_length=150), required=False, max_length=12)
    k = serializers.IntegerField(required=False, allow_null=True, min_value=2, max_value=12)
    overlap = serializers.IntegerField(required=False, min_value=1, max_value=50)
    group = serializers.ChoiceField(["training", "held_out", "any"], required=False, allow_blank=True)
    language = serializers.ChoiceField(
        languages.CODES, required=False, allow_blank=True, help_text="Prompts in it, for labelers who know it: ISO 639."
    )
    skills = serializers.ListField(
        child=serializers.CharField(max_length=50),
        required=False,
        max_length=20,
        help_text="Only for labelers who have all of them.",
    )
    split = serializers.ChoiceField(Split.choices, required=False, allow_blank=True)
    use_case = serializers.CharField(required=False, allow_blank=True, max_length=50)
    source = serializers.ChoiceField(  # type: ignore[assignment]
        Prompt.Source.choices, required=False, allow_blank=True
    )
    prompt_kind = serializers.ChoiceField(Prompt.Kind.choices, required=False, allow_blank=True)
    prompt_ids = serializers.ListField(child=serializers.UUIDField(), required=False, max_length=100_000)
    limit = serializers.IntegerField(required=False, allow_null=True, min_value=1, max_value=2**31 - 1)
    only_new = serializers.BooleanField(required=False)
    seed = serializers.IntegerField(required=False, min_value=0, max_value=2**31 - 1)
    priority = serializers.IntegerField(required=False, min_value=-1000, max_value=1000)
    instructions = serializers.CharField(
        required=False, allow_blank=True, trim_whitespace=False, max_length=settings.PROMPT_MAX_CHARS
    )
    schema_version = serializers.IntegerField(required=False, allow_null=True, min_value=1, max_value=2**31 - 1)


class BatchOut(serializers.Serializer):
    id = serializers.IntegerField()
    name = serializers.CharField()
    kind = serializers.ChoiceField(Kind.choices)
    purpose = serializers.ChoiceField(Batch.Purpose.choices)
    status = serializers.CharField()
    language = serializers.CharField(allow_blank=True)
    skills = serializers.ListField(child=serializers.CharField())
    counts = JSONObject()
    created_at = serializers.DateTimeField()


class BatchPage(serializers.Serializer):
    results = BatchOut(many=True)
    next = serializers.CharField(allow_null=True)


# ---- label schemas


class LabelSchemaIn(StrictSerializer):
    """`content`: quality {min, max, anchors {number: text}}, response_flags and prompt_flags [{name, label, help, required}]."""

    content = JSONObject()


class LabelSchemaOut(serializers.Serializer):
    id = serializers.IntegerField()
    version = serializers.IntegerField()
    content = JSONObject()
    created_at = serializers.DateTimeField()


class LabelSchemaPage(serializers.Serializer):
    results = LabelSchemaOut(many=True)
    next = serializers.CharField(allow_null=True)


# ---- exports


class ExportIn(StrictSerializer):
    """`query`: batches, splits, use_cases, groups, origins, review (lists of texts), schemas (list of version numbers), surplus and
    pairs (true or false), since and until (days, as 2026-01-31), min_agreement (0 to 1)."""

    query = JSONObject(required=False, default=dict)


class ExportOut(serializers.Serializer):
    id = serializers.IntegerField()
    name = serializers.CharField(allow_null=True, help_text="v0007, once it is ready")
    status = serializers.ChoiceField(["building", "ready", "failed", "withdrawn"])
    query = JSONObject()
    counts = JSONObject()
    data_sha256 = serializers.CharField(allow_blank=True)
    error = serializers.CharField(allow_blank=True)
    created_at = serializers.DateTimeField()
    files = serializers.ListField(child=serializers.CharField(), help_text="names, to be fetched from files/NAME")


class ExportPage(serializers.Serializer):
    results = ExportOut(many=True)
    next = serializers.CharField(allow_null=True)


# ---- erasures


class ErasureIn(StrictSerializer):
    """Whom to erase. `confirmation`: the author's key once more; without it nothing is done."""

    author = serializers.CharField(max_length=200, trim_whitespace=False)
    confirmation = serializers.CharField(max_length=200, required=False, trim_whitespace=False)
    reason = serializers.CharField(max_length=2000, required=False, allow_blank=True)


class ErasurePlanOut(serializers.Serializer):
    pseudonym = serializers.CharField(help_text="as exports call the author")
    counts = serializers.DictField(child=serializers.IntegerField(), help_text="rows that are redacted")
    exports = serializers.ListField(child=serializers.CharField(), help_text="that hold, or held, the author")
    models = serializers.ListField(
        child=serializers.CharField(), help_text="trained on these, or made from such a model"
    )


class ErasureOut(serializers.Serializer):
    erasure_id = serializers.UUIDField()
    pseudonym = serializers.CharField()
    reason = serializers.CharField()
    erased_at = serializers.DateTimeField()
    counts = serializers.DictField(child=serializers.IntegerField())
    exports = serializers.ListField(child=serializers.CharField())


class ErasureDetailOut(ErasureOut):
    models = serializers.ListField(
        child=serializers.CharField(), help_text="trained on these, or made from such a model"
    )


class ErasurePage(serializers.Serializer):
    results = ErasureOut(many=True)
    next = serializers.CharField(allow_null=True)


# ---- model versions


class ModelIn(StrictSerializer):
    """`manifest`: the text of the folder's manifest.json, unchanged. `uri`: where the folder is (path or fsspec URL)."""

    manifest = serializers.CharField(trim_whitespace=False, max_length=10_000_000)
    uri = serializers.CharField(max_length=1000)


class ModelOut(serializers.Serializer):
    name = serializers.CharField()
    stage = serializers.ChoiceField(ModelVersion.Stage.choices)
    status = serializers.ChoiceField(ModelVersion.Status.choices)
    uri = serializers.CharField(allow_blank=True)
    manifest_sha256 = serializers.CharField(allow_null=True)
    export = serializers.CharField(allow_null=True)
    few_shot_prefix = serializers.CharField(allow_blank=True)
    created_at = serializers.DateTimeField()


class ModelDetailOut(ModelOut):
    manifest = JSONObject(allow_null=True)


class ModelPage(serializers.Serializer):
    results = ModelOut(many=True)
    next = serializers.CharField(allow_null=True)


class EvaluationIn(StrictSerializer):
    name = serializers.CharField(max_length=100)
    metrics = JSONObject(allow_empty=False)
    config = JSONObject(required=False, default=dict)
    measured_by = serializers.ChoiceField(Evaluation.MeasuredBy.choices, required=False)


class EvaluationOut(serializers.Serializer):
    name = serializers.CharField()
    measured_by = serializers.ChoiceField(Evaluation.MeasuredBy.choices)
    metrics = JSONObject()
    config = JSONObject()
    created_at = serializers.DateTimeField()


class EvaluationPage(serializers.Serializer):
    results = EvaluationOut(many=True)
    next = serializers.CharField(allow_null=True)


class GateIn(StrictSerializer):
    """What `training/gate.py` found. `rules`: the text of the rules file. `verdicts`: one per rule (contract.GateVerdict)."""

    rules = serializers.CharField(max_length=200_000, allow_blank=True, trim_whitespace=False)
    verdicts = serializers.ListField(child=JSONObject(), min_length=1, max_length=1000)


class GateCheckOut(serializers.Serializer):
    holds = serializers.BooleanField()
    verdicts = serializers.ListField(child=JSONObject())
    rules = serializers.CharField(allow_blank=True)
    rules_sha256 = serializers.CharField()
    created_at = serializers.DateTimeField()


class GateCheckPage(serializers.Serializer):
    results = GateCheckOut(many=True)
    next = serializers.CharField(allow_null=True)


class LabelsOfExportOut(serializers.Serializer):
    export = serializers.CharField()
    models = serializers.ListField(
        child=serializers.CharField(), help_text="those of the lineage that were trained on it"
    )
    demonstrations = serializers.ListField(child=serializers.CharField(), help_text="ids of submissions")
    rankings = serializers.ListField(child=serializers.CharField(), help_text="ids of submissions")


class LabelsOut(serializers.Serializer):
    exports = LabelsOfExportOut(many=True)


class PromotionIn(StrictSerializer):
    reason = serializers.CharField(max_length=10_000)
    metrics = JSONObject(required=False, default=dict)
    gate = GateIn(required=False)
    override_by = serializers.CharField(required=False, default="", allow_blank=True, max_length=200)
    seen_serving = serializers.CharField(
        required=False, allow_blank=True, max_length=150, help_text="the policy that serves; blank: none does"
    )


class RollbackIn(StrictSerializer):
    reason = serializers.CharField(max_length=10_000)
    seen_serving = serializers.CharField(max_length=150)


class PromotionOut(serializers.Serializer):
    model = ModelOut()
    gate_holds = serializers.BooleanField(allow_null=True, help_text="null: the gate was not asked")
    override_by = serializers.CharField(allow_blank=True, help_text="who decided against the gate")
    reason = serializers.CharField()
    metrics = JSONObject()
    promoted_at = serializers.DateTimeField()


class PromotionPage(serializers.Serializer):
    results = PromotionOut(many=True)
    next = serializers.CharField(allow_null=True)


class ServingOut(serializers.Serializer):
    model = ModelOut(allow_null=True, help_text="null while no policy has been promoted")


class ProblemOut(serializers.Serializer):
    """Problem JSON (RFC 9457)."""

    type = serializers.CharField()
    title = serializers.CharField()
    status = serializers.IntegerField()
    code = serializers.CharField()
    detail = serializers.CharField()
    errors = serializers.ListField(  # type: ignore[assignment]
        child=serializers.DictField(child=serializers.CharField(allow_blank=True))
    )
