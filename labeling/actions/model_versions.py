"""Model versions: registering manifests, recording evaluations and what the gate said, deciding which policy serves."""

import hashlib
import json
from pathlib import Path
from typing import Any

from django.db import transaction
from django.utils.translation import gettext as _

from labeling import locks
from labeling.actions import webhooks
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import Evaluation, Export, GateCheck, ModelVersion, Promotion, User
from training.contract import (
    ContractError,
    ModelManifest,
    all_hold,
    decode_model_manifest,
    decode_verdicts,
    read_model_manifest,
    verdict_fields,
)

NUL = "\\u0000"  # as JSON writes it; PostgreSQL stores none
REGISTRY = "model registry"
SERVING = "promotion"


# ---- registering ----------------------------------------------------------------------------------------------------


@transaction.atomic
def register(*, manifest: bytes, uri: str, by: User | None) -> ModelVersion:
    """The registry row of a model, from the bytes of its `manifest.json`. Registered twice it is one row.

    Parents and export must be known already, so that every model walks back to its labels. A name known only from
    imported responses is adopted: those responses become this model's.

    Raises Invalid when the manifest breaks the contract or names an unknown parent or export, Conflict when another
    manifest has the name.
    """
    checked = _decode(manifest)
    digest = hashlib.sha256(manifest).hexdigest()
    locks.hold(REGISTRY)
    if existing := ModelVersion.objects.filter(manifest_sha256=digest).first():
        return existing
    parents = _parents(checked)
    version = _free_name(checked.name)
    version.stage = checked.stage
    version.uri = uri
    version.manifest = json.loads(manifest)
    version.manifest_sha256 = digest
    version.export = _export(checked)
    version.few_shot_prefix = checked.few_shot_prefix
    version.registered_by = by
    version.save()
    version.parents.set(parents)
    webhooks.registered(version)
    return version


def register_folder(*, folder: str | Path, uri: str = "", by: User | None) -> ModelVersion:
    """Register a model folder on this machine, its files checked against the manifest. Raises as `register` does."""
    folder = Path(folder).resolve()
    try:
        read_model_manifest(folder, verify=True)
        manifest = (folder / "manifest.json").read_bytes()
    except (ContractError, OSError) as error:
        raise Invalid(str(error)) from error
    return register(manifest=manifest, uri=uri or str(folder), by=by)


def _decode(manifest: bytes) -> ModelManifest:
    try:
        checked = decode_model_manifest(manifest)
    except ContractError as error:
        raise Invalid(str(error)) from error
    if len(checked.name) > 150:
        raise Invalid(f"manifest.json: field name: {len(checked.name)} characters, 150 at most")
    if NUL in manifest.decode():
        raise Invalid("manifest.json: holds a NUL character (\\u0000), which cannot be stored")
    return checked


def _free_name(name: str) -> ModelVersion:
    """A new row, or the row that imports made for this name."""
    existing = ModelVersion.objects.filter(name=name).first()
    if existing is None:
        return ModelVersion(name=name)
    if existing.manifest is not None:
        raise Conflict(
            _(
                "A model named %(name)r is registered with another manifest (sha256 %(sha256)s…): give this one a name of its own."
            )
            % {"name": name, "sha256": (existing.manifest_sha256 or "")[:12]}
        )
    return existing


def _parents(manifest: ModelManifest) -> list[ModelVersion]:
    wanted = {ref.manifest_sha256: (role, ref) for role, ref in manifest.parents.items()}
    found = {version.manifest_sha256: version for version in ModelVersion.objects.filter(manifest_sha256__in=wanted)}
    problems = [
        {"place": f"parents.{role}", "message": f"no registered model {ref.name!r} with manifest {sha256[:12]}…"}
        for sha256, (role, ref) in wanted.items()
        if sha256 not in found
    ]
    if problems:
        said = "; ".join(f"{p['place']}: {p['message']}" for p in problems)
        raise Invalid(f"Model {manifest.name!r}: {said}. Register it first.", errors=problems)
    return list(found.values())


def _export(manifest: ModelManifest) -> Export | None:
    wanted = manifest.export
    if wanted is None:
        return None
    numbered = Export.objects.filter(data_sha256=wanted.data_sha256, number__isnull=False)
    same_data = sorted(numbered, key=lambda export: (export.name != wanted.name, export.number))
    if not same_data:
        raise Invalid(
            f"Model {manifest.name!r}: field export: there is no export {wanted.name} "
            f"with data_sha256 {wanted.data_sha256[:12]}…"
        )
    return same_data[0]


# ---- evaluations ----------------------------------------------------------------------------------------------------


def record_evaluation(
    *,
    model_version: ModelVersion,
    name: str,
    metrics: dict,
    config: dict | None = None,
    measured_by: str = "",
    by: User | None,
) -> Evaluation:
    """Figures about a model, kept for ever. The same figures recorded twice are one row. Raises Invalid without any.

    `measured_by`: people, a model, tasks … (Evaluation.MeasuredBy); default: what the metrics themselves say under "by".
    """
    name, config = name.strip(), config or {}
    if not name or len(name) > 100:
        raise Invalid("name: an evaluation needs a name of at most 100 characters")
    if not isinstance(metrics, dict) or not metrics:
        raise Invalid(f"metrics: evaluation {name!r} needs at least one figure")
    measured_by = _measured_by(name, measured_by, metrics)
    return Evaluation.objects.get_or_create(
        model_version=model_version,
        digest=_evaluation_digest(name, metrics, config, measured_by),
        defaults={
            "name": name,
            "metrics": metrics,
            "config": config,
            "measured_by": measured_by,
            "created_by": by,
        },
    )[0]


def _measured_by(name: str, measured_by: str, metrics: dict) -> str:
    """What measured the figures. Raises Invalid for an unknown word, and where it is not what the metrics say."""
    said = metrics.get("by")
    chosen = measured_by or (said if isinstance(said, str) else Evaluation.MeasuredBy.UNSTATED.value)
    if chosen not in Evaluation.MeasuredBy.values:
        known = ", ".join(Evaluation.MeasuredBy.values)
        raise Invalid(f"measured_by: evaluation {name!r} is by {chosen!r}; expected one of {known}")
    if isinstance(said, str) and said != chosen:
        raise Invalid(f"measured_by: evaluation {name!r} is by {chosen!r}, and its metrics say by {said!r}")
    return chosen


def _evaluation_digest(name: str, metrics: dict, config: dict, measured_by: str) -> str:
    # Where nothing is stated, as before there was a word for it: figures recorded then are found again.
    stated = [measured_by] if measured_by != Evaluation.MeasuredBy.UNSTATED else []
    return _digest([name, metrics, config, *stated], f"metrics: evaluation {name!r}")


def _digest(content: list, place: str) -> str:
    """SHA-256 of plain values, whatever the order of their keys. Raises Invalid for what JSON or the database cannot hold."""
    try:
        canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Invalid(f"{place}: {error}") from error
    if NUL in canonical:
        raise Invalid(_("%(place)s holds a NUL character, which cannot be stored") % {"place": place})
    return hashlib.sha256(canonical.encode()).hexdigest()


# ---- the gate -------------------------------------------------------------------------------------------------------


class GateRefused(Conflict):
    """The gate's rules do not all hold of this policy, and no admin has decided against them. The verdicts are kept."""

    code = "gate_refused"

    def __init__(self, message: str, errors: list[dict[str, str]]):
        super().__init__(message)
        self.errors = errors


def record_gate_check(*, model_version: ModelVersion, rules: str, verdicts: list[Any], by: User | None) -> GateCheck:
    """What the gate said of a model, kept for ever, also where it refused. Equal verdicts under equal rules are one row.

    Once the gate has refused a model, a check that holds lifts that only if an admin recorded it (GateCheck.decisive_first).
    The rules are evaluated where the figures are made; whether each verdict holds is found here, from figure and bounds.
    Raises Invalid for verdicts that break the contract, and for none.
    """
    try:
        checked = decode_verdicts(verdicts)
    except ContractError as error:
        raise Invalid(f"gate: {error}") from error
    if not any(verdict.required for verdict in checked):
        raise Invalid("gate: verdicts: expected one of a required rule at least")
    plain = [verdict_fields(verdict) | {"holds": verdict.holds} for verdict in checked]
    holds = all_hold(checked)
    lifted = _last_refusal(model_version) if holds and by is not None and by.is_admin else []
    return GateCheck.objects.get_or_create(
        model_version=model_version,
        digest=_digest([rules, plain, *lifted], "gate"),
        defaults={
            "rules": rules,
            "rules_sha256": hashlib.sha256(rules.encode()).hexdigest(),
            "verdicts": plain,
            "holds": holds,
            "created_by": by,
        },
    )[0]


def _last_refusal(model_version: ModelVersion) -> list[int]:
    """Its id, for the digest: an admin may have to say again what was said before the refusal, by themselves or by others."""
    return list(model_version.gate_checks.filter(holds=False).order_by("-id").values_list("id", flat=True)[:1])


# ---- promotion ------------------------------------------------------------------------------------------------------


@transaction.atomic
def promote(
    *,
    model_version: ModelVersion,
    reason: str,
    metrics: dict | None = None,
    gate_check: GateCheck | None = None,
    override_by: str = "",
    seen_serving: str | None = None,
    by: User | None,
) -> Promotion:
    """Let this policy serve; the one before is retired, in one step. Promoting what serves already changes nothing.

    `gate_check`: what the gate said just now. Where that or an earlier one refused, and no admin recorded a newer one that
    holds, an admin decides, named in `override_by`. `seen_serving`: name of the policy that the asker saw serving, "" for none.
    Raises GateRefused when nobody decides, Forbidden when who does is no admin, Conflict when another policy serves by now,
    Invalid without a reason and for what is no policy (a reward model, an outside model).
    """
    reason = reason.strip()
    if not reason:
        raise Invalid("reason: say why this policy is to serve")
    locks.hold(SERVING)
    model_version = ModelVersion.objects.select_for_update().get(pk=model_version.pk)
    if not model_version.is_policy:
        raise Invalid(
            _("%(model)s is no policy (%(stage)s): it cannot serve.")
            % {"model": model_version.name, "stage": model_version.get_stage_display()}
        )
    serving = serving_policy()
    if serving == model_version:
        return model_version.promotions.order_by("-id")[0]
    _check_seen(serving, seen_serving)
    gate_check = _decisive(model_version, gate_check)
    override_by = _override(model_version, gate_check, override_by.strip(), by)
    return _switch(serving, model_version, reason, metrics or {}, by, gate_check=gate_check, override_by=override_by)


def _decisive(model_version: ModelVersion, given: GateCheck | None) -> GateCheck | None:
    """The check that a promotion stands on: a refusal, given now or standing, before any that holds."""
    standing = model_version.gate_checks.decisive_first().first()
    refused = next((check for check in (given, standing) if check and not check.holds), None)
    return refused or given or standing


def _override(model_version: ModelVersion, gate_check: GateCheck | None, name: str, by: User | None) -> str:
    """Who decides against the gate; "" where there is nothing to decide against. Raises GateRefused, Forbidden."""
    if gate_check is None or gate_check.holds:
        return ""
    if not name:
        raise GateRefused(
            _(
                "The gate refused %(model)s. That stands until an admin records a newer check that holds, "
                "or promotes it all the same, with name and reason."
            )
            % {"model": model_version.name},
            errors=[{"place": verdict["name"], "message": verdict["reason"]} for verdict in gate_check.refusals],
        )
    if by is not None and not by.is_admin:
        raise Forbidden(_("The gate refused %(model)s: only an admin may promote it.") % {"model": model_version.name})
    return name


@transaction.atomic
def rollback(*, reason: str, seen_serving: str | None = None, by: User | None) -> Promotion:
    """Let the policy serve again that the serving one replaced; repeated, one step further back each time.

    `seen_serving`: name of the policy that the asker saw serving. Raises Conflict when another serves by now or there is
    none to go back to, Invalid without a reason.
    """
    if not reason.strip():
        raise Invalid("reason: say why the serving policy is taken back")
    locks.hold(SERVING)
    serving, previous = serving_policy(), rollback_target()
    _check_seen(serving, seen_serving)
    if serving is None or previous is None:
        raise Conflict(_("There is no earlier policy to go back to."))
    return _switch(serving, previous, reason.strip(), {"rollback_of": serving.name}, by)


def _check_seen(serving: ModelVersion | None, seen: str | None) -> None:
    """Raise Conflict where another policy serves than the asker saw."""
    if seen is not None and seen != (serving.name if serving else ""):
        raise Conflict(
            _("%(serving)s serves now, not %(seen)s: look again and decide.")
            % {"serving": serving or _("No policy"), "seen": seen or _("none")}
        )


def serving_policy() -> ModelVersion | None:
    """The policy that serves now."""
    return ModelVersion.objects.filter(status=ModelVersion.Status.SERVING).first()


def rollback_target() -> ModelVersion | None:
    """The policy that the serving one replaced when it was promoted (a rollback to it does not count as that)."""
    serving = serving_policy()
    if serving is None:
        return None
    forward = serving.promotions.exclude(metrics__has_key="rollback_of").order_by("-id").first()
    return forward.previous if forward else None


def _switch(
    serving: ModelVersion | None, model_version: ModelVersion, reason: str, metrics: dict, by: User | None, **gate: Any
) -> Promotion:
    if serving is not None:
        serving.status = ModelVersion.Status.RETIRED
        serving.save(update_fields=["status"])
    model_version.status = ModelVersion.Status.SERVING
    model_version.save(update_fields=["status"])
    webhooks.promoted(model_version, previous=serving, reason=reason)
    return Promotion.objects.create(
        model_version=model_version, previous=serving, reason=reason, metrics=metrics, promoted_by=by, **gate
    )
