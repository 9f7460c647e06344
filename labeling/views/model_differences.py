"""The console's comparison of two models: what they were made with, how their training went, their figures, their answers."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django import forms
from django.http import HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET

from labeling import charts
from labeling.models import ModelVersion, Prompt, Response
from labeling.templatetags.console import figure
from labeling.views.access import Request, role_required
from labeling.views.evaluations import finite

LOG = "training_log.jsonl"
MAX_LOG_BYTES = 8 * 2**20
MOST_CHOICES = 500
MOST_CURVES, POINTS = 12, 21
MOST_PROMPTS = 10
STEPS = ("step", "iteration", "epoch")


class PairForm(forms.Form):
    """Which two models."""

    a = forms.ModelChoiceField(ModelVersion.objects.none(), label=gettext_lazy("Model A"))
    b = forms.ModelChoiceField(ModelVersion.objects.none(), label=gettext_lazy("Model B"))

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        newest = ModelVersion.objects.order_by("-id").defer("manifest")
        for name in ("a", "b"):
            field: Any = self.fields[name]
            field.queryset = ModelVersion.objects.all()  # what a link names may be older than what is offered
            field.choices = [("", "–"), *((model.pk, model.name) for model in newest[:MOST_CHOICES])]


@dataclass
class Difference:
    """One row: what it is, A's and B's, and B − A where both are numbers."""

    name: str
    a: str
    b: str
    by: str = ""


@dataclass
class Answers:
    """A prompt, and what each model said to it."""

    prompt: Prompt
    a: str
    b: str


@role_required("researcher")
@require_GET
def model_compare(request: Request) -> HttpResponse:
    """Two models side by side. Without both, which two."""
    form = PairForm(request.GET) if request.GET.get("b") else PairForm(initial=request.GET.dict())
    context: dict[str, Any] = {"form": form}
    if form.is_valid():
        a, b = form.cleaned_data["a"], form.cleaned_data["b"]
        logs = [read_log(model) for model in (a, b)]
        context |= {
            "a": a,
            "b": b,
            "figures": differences(figures_of(a), figures_of(b)),
            "settings": [row for row in differences(settings_of(a), settings_of(b)) if row.a != row.b],
            "curves": curves([a.name, b.name], logs),
            "without_log": [model for model, log in zip((a, b), logs, strict=True) if not log],
            "answers": answers(a, b),
        }
    return render(request, "model_versions/compare.html", context, status=422 if form.errors else 200)


def figures_of(model: ModelVersion) -> dict[str, Any]:
    """Numbers by where they stand: of the training, and of the newest evaluation of each name."""
    found = dict(_flat(_("training"), (model.manifest or {}).get("metrics", {})))
    for evaluation in model.evaluations.newest():
        found |= dict(_flat(evaluation.name, evaluation.metrics))
    return {name: value for name, value in found.items() if finite(value) is not None}


def settings_of(model: ModelVersion) -> dict[str, Any]:
    """The settings of its training, with what else decides what comes out."""
    manifest = model.manifest or {}
    export = model.export.name if model.export else None
    more = {"stage": model.get_stage_display(), "export": export, "seed": manifest.get("seed")}
    return more | {"code": manifest.get("code_version")} | manifest.get("config", {})


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[Difference]:
    """A row per name that either has; A's order, then what only B has."""
    rows = []
    for name in dict.fromkeys([*a, *b]):
        one, other = a.get(name), b.get(name)
        by = f"{other - one:+.4g}" if finite(one) is not None and finite(other) is not None else ""  # type: ignore[operator]
        rows.append(Difference(name, _shown(one), _shown(other), by))
    return rows


def answers(a: ModelVersion, b: ModelVersion) -> list[Answers]:
    """Prompts that both answered, newest first, with the first answer of each."""
    both = Prompt.objects.filter(responses__model_version=a).filter(responses__model_version=b)
    prompts = list(both.distinct().order_by("-id")[:MOST_PROMPTS])
    rows = Response.objects.filter(prompt__in=prompts, model_version__in=[a, b]).order_by("-id")
    texts = {(row.prompt_id, row.model_version_id): row.text for row in rows}
    return [Answers(prompt, texts[prompt.pk, a.pk], texts[prompt.pk, b.pk]) for prompt in prompts]


def read_log(model: ModelVersion) -> list[dict[str, Any]]:
    """The log of a model's training, if its folder is on this machine and the file is the one that was registered."""
    entry = ((model.manifest or {}).get("files") or {}).get(LOG)
    if not entry or not model.uri or "://" in model.uri or entry.get("bytes", 0) > MAX_LOG_BYTES:
        return []
    try:
        data = Path(model.uri, LOG).read_bytes()
        rows = [json.loads(line) for line in data.splitlines()]
    except (OSError, ValueError):
        return []
    is_same = hashlib.sha256(data).hexdigest() == entry.get("sha256")
    return rows if is_same and all(isinstance(row, dict) for row in rows) else []


def curves(names: list[str], logs: list[list[dict[str, Any]]]) -> list[charts.Figure]:
    """A chart for each number that the logs have in common (or that one has, where the other has no log), over the share of the run."""
    columns = [
        [name for name in log[0] if name not in STEPS and finite(log[0][name]) is not None] for log in logs if log
    ]
    if not columns:
        return []
    common = [name for name in columns[0] if all(name in other for other in columns)]
    return [drawn for name in common[:MOST_CURVES] if (drawn := _curve(name, names, logs))]


def _curve(name: str, names: list[str], logs: list[list[dict[str, Any]]]) -> charts.Figure | None:
    count = min(POINTS, max(len(log) for log in logs))
    if count < 2:
        return None
    series = [charts.Series(model, _sampled(log, name, count)) for model, log in zip(names, logs, strict=True) if log]
    shares = [f"{round(100 * i / (count - 1))} %" for i in range(count)]
    seen = [value for one in series for value in one.values if value is not None]
    if not seen:
        return None
    return charts.Figure(
        title=name,
        svg=charts.lines(shares, series, low=min(0.0, *seen)),
        columns=[_("Share of the run"), *(one.name for one in series)],
        rows=[charts.Row(share, [charts.number_of(one.values[i]) for one in series]) for i, share in enumerate(shares)],
        series=[one.name for one in series],
    )


def _sampled(log: list[dict[str, Any]], name: str, count: int) -> list[float | None]:
    """The column at evenly spread moments of the run."""
    values = [log[round(i * (len(log) - 1) / (count - 1))].get(name) for i in range(count)]
    return [finite(value) for value in values]


def _flat(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix} · {name}", value)
        else:
            yield f"{prefix} · {name}", value


def _shown(value: Any) -> str:
    return "–" if value is None else figure(value)
