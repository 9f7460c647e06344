"""The promotion gate: rules in a TOML file, held against what is known of a candidate. Nothing passes by being absent.

    [[rule]]
    name = "the win rate's interval lies above one half, in each use case"
    figure = "evaluations.people.by_use_case.*.low"    # where the figure is; * stands for every name there
    floor = 0.5                                        # or ceiling, or both
    required = true                                    # false: advice, shown and kept, and no reason to refuse
    where_known = false                                # true: asked only where the figure is there

With `minus = "…"` the figure there is subtracted first: what got worse since. Where figures are (`gather`):

    model.NAME                the candidate's own manifest: figures of its training
    parents.ROLE.NAME         those of what it was made from: rm, policy, reference
    evaluations.NAME.…        what was measured of it: the newest evaluation of each name
    serving.…                 the same (model, parents, evaluations) of the policy that serves now

A table given as a list of rows is entered by what its rows are called: their `figure`, `task`, `model` or `name`.

A figure that is missing, no number, or not finite fails its rule; with `where_known` one that nobody measured refuses nothing.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.config import ConfigError, from_dict, option, read_toml, require
from training.contract import GateVerdict, all_hold  # noqa: F401 what a gate says, at one place

if TYPE_CHECKING:
    from training.client import HeedClient

DEFAULT_RULES = Path(__file__).with_name("configs") / "gate.toml"
MISSING: Any = object()
PLACES = ("model", "parents", "evaluations", "serving")
PEOPLE = "people"
"""The evaluation of this name is people's alone."""
ROW_NAMES = ("figure", "task", "model", "name")


@dataclass(frozen=True)
class Rule:
    """One condition of the gate."""

    name: str = option(help="what the rule asks, in words")
    figure: str = option(help="where the figure is: a dotted path, * for every name")
    minus: str | None = option(None, help="where the figure is that is subtracted; its * stand for the same names")
    floor: float | None = option(None, help="the least that passes")
    ceiling: float | None = option(None, help="the most that passes")
    required: bool = option(True, help="whether a promotion needs it")
    where_known: bool = option(False, help="whether it is needed only where the figure was measured")

    def validate(self) -> None:
        """Raise ConfigError for a rule that could not decide anything."""
        require(bool(self.name.strip()), "name", "say what the rule asks")
        require(self.floor is not None or self.ceiling is not None, "floor", "give a floor, a ceiling or both")
        for name in ("floor", "ceiling"):
            bound = getattr(self, name)
            require(bound is None or math.isfinite(bound), name, "must be finite")
        if self.floor is not None and self.ceiling is not None:
            require(self.floor <= self.ceiling, "floor", "lies above the ceiling")
        for name in ("figure", "minus"):
            path = getattr(self, name)
            require(path is None or all(path.split(".")), name, f"no path: {path!r}")
            require(
                path is None or path.split(".")[0] in PLACES, name, f"begins with one of {', '.join(PLACES)}: {path!r}"
            )
        stars = [path.split(".").count("*") for path in (self.figure, self.minus) if path]
        require(len(set(stars)) == 1, "minus", "needs as many * as the figure")


@dataclass(frozen=True)
class Rules:
    """The rules of a file, and the file's text, by which a verdict can be understood later."""

    rules: tuple[Rule, ...]
    text: str

    @property
    def sha256(self) -> str:
        """The file's hash."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_rules(path: str | Path = DEFAULT_RULES) -> Rules:
    """The rules of a TOML file. Raises ConfigError naming file, line and field for anything it does not know."""
    values = read_toml(path)
    text = Path(path).read_text(encoding="utf-8")
    for name in values:
        if name != "rule":
            raise ConfigError(f"{path}: field {name}: unknown; rules are written as [[rule]]")
    tables = values.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path}: field rule: rules are written as [[rule]]")
    lines = [number for number, line in enumerate(text.splitlines(), 1) if re.match(r"\s*\[\[\s*rule\s*\]\]", line)]
    rules = []
    for number, table in enumerate(tables):
        where = f"{path}:{lines[number]}" if len(lines) == len(tables) else f"{path}: rule {number + 1}"
        rules.append(from_dict(Rule, table, f"{where} ({table.get('name', 'no name')})"))
    if not any(rule.required and not rule.where_known for rule in rules):
        raise ConfigError(f"{path}: no rule is required at all events: such a gate would let everything through")
    return Rules(tuple(rules), text)


def check(figures: Mapping[str, Any], rules: Sequence[Rule]) -> list[GateVerdict]:
    """What each rule finds: a verdict per rule, or per name where its path has a *. Pure."""
    return [verdict for rule in rules for verdict in _verdicts(rule, figures)]


def reasons(verdicts: Sequence[GateVerdict]) -> list[str]:
    """Why the gate refuses: a sentence for each required rule that does not hold."""
    return [f"{verdict.name}: {verdict.reason}" for verdict in verdicts if verdict.required and not verdict.holds]


def gather(client: HeedClient, model: str) -> dict[str, Any]:
    """All figures that the web half has of a model, as rules name them. Raises ClientError when there is no such model."""
    serving = client.serving_model()
    found = _known(client, model)
    return found | {"serving": _known(client, serving["name"])} if serving else found


def _known(client: HeedClient, name: str) -> dict[str, Any]:
    manifest = client.model(name)["manifest"] or {}
    parents = {role: client.model(ref["name"])["manifest"] for role, ref in manifest.get("parents", {}).items()}
    evaluations: dict[str, Any] = {}
    for evaluation in client.evaluations(name):  # newest first
        if evaluation["name"] != PEOPLE or evaluation["measured_by"] == PEOPLE:
            evaluations.setdefault(evaluation["name"], evaluation["metrics"])
    return {
        "model": manifest.get("metrics", {}),
        "parents": {role: parent["metrics"] for role, parent in parents.items()},
        "evaluations": evaluations,
    }


def _verdicts(rule: Rule, figures: Mapping[str, Any]) -> list[GateVerdict]:
    return [_verdict(rule, figures, names, value) for names, value in _find(figures, rule.figure.split("."))]


def _verdict(rule: Rule, figures: Mapping[str, Any], names: tuple[str, ...], seen: Any) -> GateVerdict:
    path, is_known = _filled(rule.figure, names), seen is not MISSING
    value, problem = _number(seen, path)
    if rule.minus is not None:
        before = _filled(rule.minus, names)
        other = _find(figures, before.split("."))[0][1]
        is_known = is_known and other is not MISSING
        subtracted, no_number = _number(other, before)
        path, problem = f"{path} - {before}", problem or no_number
        value = None if value is None or subtracted is None else value - subtracted
    return GateVerdict(
        name=", ".join((rule.name, *names)),
        figure=path,
        value=value,
        floor=rule.floor,
        ceiling=rule.ceiling,
        required=rule.required and (is_known or not rule.where_known),
        reason=problem or _reason(value, rule),
    )


def _reason(value: float | None, rule: Rule) -> str:
    if value is None:
        return "There is no figure."
    if rule.floor is not None and value < rule.floor:
        return f"{value:.4g} lies below the floor of {rule.floor:.4g}."
    if rule.ceiling is not None and value > rule.ceiling:
        return f"{value:.4g} lies above the ceiling of {rule.ceiling:.4g}."
    bounds = {"not below": rule.floor, "not above": rule.ceiling}
    return (
        f"{value:.4g} is {' and '.join(f'{word} {bound:.4g}' for word, bound in bounds.items() if bound is not None)}."
    )


def _number(seen: Any, path: str) -> tuple[float | None, str]:
    """The figure as a finite number, or None and why it is none."""
    if seen is MISSING or seen is None:
        return None, f"There is no figure at {path}."
    if isinstance(seen, bool) or not isinstance(seen, int | float):
        return None, f"What stands at {path} is no number."
    if not math.isfinite(seen):
        return None, f"The figure at {path} is not finite ({seen})."
    return float(seen), ""


def _filled(path: str, names: tuple[str, ...]) -> str:
    """The path with its stars replaced, in order; those for which nothing was found stay."""
    left = list(names)
    return ".".join(left.pop(0) if part == "*" and left else part for part in path.split("."))


def _find(tree: Any, parts: list[str]) -> list[tuple[tuple[str, ...], Any]]:
    """(names that the stars stand for, value) of everything at the path: at least one, MISSING where nothing is.

    A name may itself hold dots ("gpt-2.5"): the first reading of the path that leads somewhere is taken.
    """
    if not parts:
        return [((), tree)]
    tree = _by_name(tree)
    if not isinstance(tree, Mapping):
        return [((), MISSING)]
    if parts[0] == "*":
        found = [((name, *more), value) for name in sorted(tree) for more, value in _find(tree[name], parts[1:])]
        return found or [((), MISSING)]
    ways = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    readings = [_find(tree[name], parts[end:]) for end, name in enumerate(ways, 1) if name in tree]
    whole = [reading for reading in readings if all(value is not MISSING for _names, value in reading)]
    return (whole or readings or [[((), MISSING)]])[0]


def _by_name(tree: Any) -> Any:
    """A list of rows as rows by name; anything else, and rows without names of their own, as they are."""
    if not isinstance(tree, list) or not all(isinstance(row, Mapping) for row in tree):
        return tree
    for column in ROW_NAMES:
        names = [row.get(column) for row in tree]
        if all(isinstance(name, str) for name in names) and len(set(names)) == len(names):
            return dict(zip(names, tree, strict=True))
    return tree
