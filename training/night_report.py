"""What a night came to: its figures, one HTML page that needs no network, and the messages to whom it concerns."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

import msgspec

from training import notify, report
from training.contract import read_model_manifest, utc_now, write_atomically
from training.night_state import Night

if TYPE_CHECKING:
    from training.night_work import Work
    from training.nightly import Config

CURVES = ("score", "reward", "kl")
NIGHTS_SHOWN = 14
ORDER = ("people", "simulation", "model", "labels", "task", "unstated")
"""Whose win rate is shown where several were measured: people's before models'."""
AGAINST = {"win_rate_vs_last": "serving", "win_rate_vs_round0": "round0"}
"""Win rates of a night's candidate, and what the night calls the other policy."""


def facts(work: Work) -> dict[str, Any]:
    """The night's figures as they are kept with the candidate. A function of what the night did: told twice it is the same.

    Win rates against what served and against round 0: of people, where they were asked; else as any evaluation of the candidate gives
    them under these names ({rate, low, high, n}), or as `evaluate by-model` does.
    """
    exported, decided, checked = work.done("export"), work.done("promote"), work.done("gate")
    manifests = {stage: read_model_manifest(Path(work.done(stage)["folder"]), verify=False) for stage in ("rm", "ppo")}
    judge, trained = manifests["rm"].metrics, manifests["ppo"].metrics
    evaluations = list(work.client.evaluations(work.done("ppo")["name"]))
    return {
        "night": work.night.number,
        "outcome": decided["outcome"],
        "reason": decided["reason"],
        "candidate": work.done("ppo")["name"],
        "started_from": work.done("ppo")["started_from"]["name"],
        "serving_before": work.start["serving"] and work.start["serving"]["name"],
        "export": exported["name"],
        "labels": exported["labels"],
        "new_labels": exported["new"],
        "rm_accuracy": judge.get("accuracy_valid"),
        "rm_accuracy_held_out": judge.get("accuracy_test_held_out"),
        "rm_accuracy_fixed": _fixed_accuracy(evaluations, judge),
        **{name: _win_rate(evaluations, name, work.start[role]) for name, role in AGAINST.items()},
        "kl": trained.get("kl_after"),
        "kl_coef": trained.get("kl_coef"),
        **_tax(evaluations, trained, work.done("ppo")["name"]),
        "gate": {"rules": len(checked["verdicts"]), "failed": checked["reasons"]},
    }


def _fixed_accuracy(evaluations: list[dict[str, Any]], judge: Mapping[str, Any]) -> float | None:
    """The reward model's accuracy on the set that stays the same from night to night: held-out labelers' where it has some."""
    measured = next((one["metrics"]["reward_model"] for one in evaluations if one["name"] == "fixed set"), judge)
    return measured.get("accuracy_test_held_out", measured.get("accuracy_valid"))


def _win_rate(evaluations: list[dict[str, Any]], name: str, other: dict[str, Any] | None) -> dict[str, Any] | None:
    """The newest win rate over the other policy, people's before anybody else's, and who measured it."""
    found = []
    for one in evaluations:  # newest first
        by = one.get("measured_by", "unstated")
        if rate := _rate_over(one["metrics"], name, other["name"] if other else ""):
            found.append((ORDER.index(by) if by in ORDER else len(ORDER), {**rate, "by": by}))
    return min(found, key=lambda each: each[0])[1] if found else None


def _rate_over(metrics: Mapping[str, Any], name: str, other: str) -> dict[str, Any] | None:
    """A win rate in any of the shapes in which it is recorded: under its name; by people; by a judge or a reward model."""
    if isinstance(said := metrics.get(name), dict) and "rate" in said:
        return {key: said.get(key) for key in ("rate", "low", "high", "n")}
    against = metrics.get("against")
    pair: Any = None
    if isinstance(against, dict):
        pair = against.get(other)
    elif isinstance(against, list) and other in against:
        compared = metrics if against[0] == other else metrics.get("others", {}).get(other, {})
        pair = compared.get("judge") or compared.get("reward")
    if not isinstance(pair, dict) or pair.get("win_rate") is None:
        return None
    return {
        "rate": pair["win_rate"],
        "low": pair["low"],
        "high": pair["high"],
        "n": pair.get("n", pair.get("comparisons")),
    }


def _tax(evaluations: list[dict[str, Any]], trained: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What alignment cost on plain text, and in what: bits per byte over the base model where `evaluate by-task` measured them."""
    for one in evaluations:
        rows = one["metrics"].get("tax")
        for cost in rows if isinstance(rows, list) else []:
            if cost.get("figure") == "bits_per_byte" and cost.get("model") == name:
                return {"tax": cost["difference"], "tax_of": f"bits per byte over {cost['base']}"}
    if trained.get("lm_loss_after") is None or trained.get("lm_loss_before") is None:
        return {"tax": None, "tax_of": ""}
    return {"tax": trained["lm_loss_after"] - trained["lm_loss_before"], "tax_of": "nats per token since before PPO"}


# ---- the page -------------------------------------------------------------------------------------------------------


def announce(work: Work) -> str:
    """Keep the figures of a night that is decided, write its page, tell whom it concerns, and return the night in a line."""
    night, found = work.night, facts(work)
    write_atomically(night.folder / "facts.json", json.dumps(found, indent=1).encode() + b"\n")
    page = write_page(work)
    serves = "serves" if found["outcome"] == "promoted" else "was refused"
    line = f"night {night.number}: {found['candidate']} {serves}: {found['reason']} ({page})"
    tell(work.config, found["outcome"], line, work)
    return line


def write_page(work: Work) -> Path:
    """The night's page, as far as the night has come."""
    page = work.night.folder / "report.html"
    write_atomically(page, render(work, json.loads((work.night.folder / "facts.json").read_bytes())).encode())
    return page


def render(work: Work, found: Mapping[str, Any]) -> str:
    """The page: this night beside those before it, the gate's verdicts, curves, answers before and after."""
    folder = Path(work.done("ppo")["folder"])
    log = [msgspec.json.decode(line) for line in (folder / "training_log.jsonl").read_bytes().splitlines()]
    samples = folder / "samples.json"
    nights = [json.loads((night.folder / "facts.json").read_bytes()) for night in _told(work.root)]
    template = report.environment().get_template("night_report.html")
    return template.render(
        found=found,
        night=work.night.state,
        nights=[row(one) for one in nights[-NIGHTS_SHOWN:]],
        verdicts=[_verdict(one) for one in work.done("gate")["verdicts"]],
        steps=[(name, duration(entry["seconds"])) for name, entry in work.night.state["steps"].items()],
        curves=[curve for curve in report.curves(log) if curve.name in CURVES],
        samples=json.loads(samples.read_bytes()) if samples.is_file() else [],
        shown=report.shown,
        width=report.WIDTH,
        height=report.HEIGHT,
    )


def _told(root: Path) -> list[Night]:
    return [night for night in Night.all(root) if (night.folder / "facts.json").is_file()]


def row(found: Mapping[str, Any]) -> list[str]:
    """A night as a line of the table, in the order of its heading."""
    new = found.get("new_labels") or {}
    spent = ", ".join(f"{count} {kind.replace('_', '-')}" for kind, count in new.items() if count)
    return [
        str(found["night"]),
        found["outcome"],
        found["candidate"],
        spent or "–",
        percent(found.get("rm_accuracy_fixed")),
        *(rate(found.get(name)) for name in AGAINST),
        report.shown(found.get("kl")),
        f"{report.shown(found.get('tax'))} {found.get('tax_of') or ''}".strip(),
    ]


def percent(share: float | None) -> str:
    """A share as people read it."""
    return "–" if share is None else f"{100 * share:.1f} %"


def rate(found: Mapping[str, Any] | None) -> str:
    """A win rate with its interval and who measured it."""
    if found is None:
        return "–"
    ends = f" [{percent(found['low'])}, {percent(found['high'])}]" if found.get("low") is not None else ""
    return f"{percent(found['rate'])}{ends} by {found['by']}"


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _verdict(plain: Mapping[str, Any]) -> dict[str, Any]:
    from training.contract import GateVerdict

    verdict = msgspec.convert(plain, GateVerdict)
    return {"name": verdict.name, "reason": verdict.reason, "required": verdict.required, "holds": verdict.holds}


# ---- messages -------------------------------------------------------------------------------------------------------


def tell(config: Config, event: str, line: str, work: Work | None = None) -> None:
    """Send what is configured about one of EVENTS. What cannot be sent, for whatever reason, is said on stderr."""
    if event not in config.notify:
        return
    night = work.night if work else None
    identity = f"{night.state['id']} {event} {line}" if night else f"{utc_now()} {event}"
    message_id = str(uuid5(NAMESPACE_URL, identity))  # told again, the same message
    for way in (_by_webhook, _by_mail):
        try:
            way(config, event, line, night, message_id)
        except Exception as error:
            complain(error)


def _by_webhook(config: Config, event: str, line: str, night: Night | None, message_id: str) -> None:
    if not config.webhook:
        return
    data: dict[str, Any] = {"line": line, "night": night.number if night else None}
    if night and event in ("promoted", "refused"):
        data |= json.loads((night.folder / "facts.json").read_bytes())
    notify.webhook(config.webhook, message_id=message_id, event=f"night.{event}", data=data, at=utc_now())


def _by_mail(config: Config, event: str, line: str, night: Night | None, message_id: str) -> None:
    if not config.mail_to:
        return
    notify.mail(
        to=config.mail_to,
        sender=config.mail_from,
        subject=f"{config.name} {night.number if night else ''}: {event}".replace(" :", ":"),
        text=line + "\n",
        attachment=night.folder / "report.html" if night else None,
        message_id=message_id,
    )


def complain(error: Exception) -> None:
    """A message that did not go out ends no night."""
    print(f"nightly: not told: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
