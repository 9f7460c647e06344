"""Evaluations by people: the figures of an evaluation batch as they stand, and on record for whoever decides on a promotion.

People's answers and those of simulated labelers are never mixed unless asked for ("both"), and every figure says whose it is.
"""

from typing import Any

from labeling.actions import evaluation_figures, model_versions, statistics
from labeling.actions.evaluation_figures import ALL, GROUP, USE_CASE
from labeling.models import Batch, Evaluation, ModelVersion, Origin, Statistic

BOTH = "both"
ORIGINS = (Origin.PERSON.value, Origin.SIMULATED.value, BOTH)
RECORDED = {
    Origin.PERSON.value: Evaluation.MeasuredBy.PEOPLE.value,
    Origin.SIMULATED.value: Evaluation.MeasuredBy.SIMULATION.value,
}
NOTHING: dict[str, Any] = {"value": None, "low": None, "high": None, "count": 0, "prompts": 0}


def ask(batch: Batch, origin: str = Origin.PERSON) -> Statistic:
    """The statistic that holds the figures of an evaluation batch; empty until it is computed (by a job, or `current`)."""
    return statistics.ask_of(kind=Statistic.Kind.EVALUATION, scope={"batch": batch.pk, "origin": str(origin)})


def ask_all(batch: Batch) -> None:
    """Have figures of a new evaluation kept, people's and simulated labelers' apart, whether or not somebody looks at them."""
    for origin in RECORDED:
        ask(batch, origin)


def current(batch: Batch, origin: str = Origin.PERSON) -> Statistic:
    """As `ask`, computed now if its labels have changed since it was computed last."""
    statistic = ask(batch, origin)
    if statistic.content is None or statistic.content["stamp"] != evaluation_figures.stamp(
        statistics.labels(statistic.scope)
    ):
        statistic = statistics.refresh(statistic=statistic)
    record(statistic=statistic)
    return statistic


def open_seats(batch: Batch) -> int:
    """How many seats have no work that stands: open, leased, or returned for changes."""
    progress = Batch.objects.filter(pk=batch.pk).progress()[batch.pk]
    return progress.open + progress.leased + progress.returned


def is_complete(batch: Batch, still_open: int) -> bool:
    """Nothing more is coming: every seat is done, or the batch was closed."""
    return not still_open or batch.status == Batch.Status.CLOSED


def record(*, statistic: Statistic) -> None:
    """Put the figures of a complete evaluation on record with each of its models: an `Evaluation` named for the batch.

    The same figures are recorded once; when a review or a correction changes them afterwards, the newest record counts. Statistics of
    another kind, figures of both origins mixed, and empty ones are passed by.
    """
    measured_by = RECORDED.get(statistic.scope.get("origin", ""))
    if statistic.kind != Statistic.Kind.EVALUATION or measured_by is None or not slices_of(statistic):
        return
    batch = Batch.objects.get(pk=statistic.scope["batch"])
    if not is_complete(batch, open_seats(batch)):
        return
    shown = assembled(batch, statistic)
    versions = {version.name: version for version in ModelVersion.objects.filter(name__in=models_of(batch))}
    config = {"batch": batch.pk, "origin": shown["origin"]}
    for policy in shown["policies"]:
        pairs = [pair for pair in shown["pairs"] if pair["first"] == policy["model"]]
        metrics = {name: shown[name] for name in ("prompts", "labelers", "rankings")}
        metrics |= {"rating": policy["rating"], "rating_low": policy["low"], "rating_high": policy["high"]}
        metrics["flags"] = {flag: each["rate"] for flag, each in policy["flags"].items()}
        metrics["against"] = {
            pair["second"]: {part: pair[part] for part in ("win_rate", "low", "high", "comparisons", "prompts")}
            for pair in pairs
        }
        model_versions.record_evaluation(
            model_version=versions[policy["model"]],
            name=batch.name,
            metrics=metrics,
            config=config,
            measured_by=measured_by,
            by=None,
        )


def slices_of(statistic: Statistic) -> list[dict]:
    """All rankings first, then those of each use case and group; none while nothing was judged, or computed."""
    return statistic.content["slices"] if statistic.content else []


def models_of(batch: Batch) -> list[str]:
    """The names of the policies that an evaluation compares, in the order in which they were named."""
    return batch.query["model_names"]


# ---- as others read it ----------------------------------------------------------------------------------------------


def result(batch: Batch, origin: str = Origin.PERSON) -> dict[str, Any]:
    """The evaluation as it stands now, as docs/api.md describes it."""
    return assembled(batch, current(batch, origin))


def extent(batch: Batch, statistic: Statistic) -> dict[str, Any]:
    """What a computed statistic of an evaluation is over, and how far the evaluation is."""
    still_open = open_seats(batch)
    nothing = {"kind": ALL, "prompts": 0, "labelers": 0, "rankings": 0}
    whole = next((each for each in slices_of(statistic) if each["kind"] == ALL), nothing)
    return {
        "batch": batch.pk,
        "name": batch.name,
        "origin": statistic.scope["origin"],
        "is_complete": is_complete(batch, still_open),
        "open": still_open,
        "prompts_ordered": batch.counts.get("tasks", 0),
        "prompts": whole["prompts"],
        "labelers": whole["labelers"],
        "rankings": whole["rankings"],
        "left_out": {name: batch.counts.get(name, 0) for name in ("without_model", "identical_texts")},
        "computed_at": statistic.computed_at,
    }


def assembled(batch: Batch, statistic: Statistic) -> dict[str, Any]:
    """A computed statistic of an evaluation as flat figures: each policy, and each policy against each other one."""
    slices, models = slices_of(statistic), models_of(batch)
    return extent(batch, statistic) | {
        "policies": [_policy(model, slices) for model in models],
        "pairs": [_pair(first, second, slices) for first in models for second in models if first != second],
    }


def _policy(model: str, slices: list[dict]) -> dict[str, Any]:
    def shown(found: dict | None) -> dict[str, Any]:
        rating = found["rating"] if found else NOTHING
        flags = found["flags"] if found else {}
        return _named(rating, "rating", "ratings") | {
            "flags": {flag: _named(each, "rate", "answers") for flag, each in flags.items()}
        }

    def of(one: dict) -> dict | None:
        return next((each for each in one["policies"] if each["model"] == model), None)

    return {"model": model} | _by_slice(slices, of, shown)


def _pair(first: str, second: str, slices: list[dict]) -> dict[str, Any]:
    def shown(found: dict | None) -> dict[str, Any]:
        won = _named(found["win_rate"] if found else NOTHING, "win_rate", "comparisons")
        return won | {"ties": found["ties"] if found else 0}

    def of(one: dict) -> dict | None:
        return next((each for each in one["pairs"] if (each["first"], each["second"]) == (first, second)), None)

    return {"first": first, "second": second} | _by_slice(slices, of, shown)


def _by_slice(slices: list[dict], of, shown) -> dict[str, Any]:
    """What is shown of all, and of each use case and group where it was judged."""
    whole = next((of(each) for each in slices if each["kind"] == ALL), None)
    parts = {
        f"by_{kind}": {each["name"]: shown(found) for each in slices if each["kind"] == kind and (found := of(each))}
        for kind in (USE_CASE, GROUP)
    }
    return shown(whole) | parts


def _named(figure: dict, value: str, count: str) -> dict[str, Any]:
    return {
        value: figure["value"],
        "low": figure["low"],
        "high": figure["high"],
        count: figure["count"],
        "prompts": figure["prompts"],
    }
