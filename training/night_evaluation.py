"""A candidate, measured: by the labels of an export, by models, by a command of the team's own, by people; and held by the gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from training import gate
from training.contract import write_atomically
from training.errors import StageError
from training.night_state import Night
from training.night_work import Waiting, Work, fetched, settings_path
from training.prompt_files import read_rows


def evaluate(work: Work) -> dict[str, Any]:
    """Measure the candidate, and the policy that serves, on the night's export; record all of it."""
    candidate, judge = work.done("ppo"), work.done("rm")["folder"]
    started_from = candidate["started_from"]["folder"]
    common = {"reward_model": judge, "export": work.export}
    measured = {
        candidate["name"]: measure(work, "candidate", policy=candidate["folder"], reference=started_from, **common)
    }
    if serving := fetched(work, "serving"):
        measured[work.start["serving"]["name"]] = measure(work, "serving", policy=serving, **common)
    for name, result in measured.items():
        work.client.record_evaluation(name, name="evaluate", metrics=result["metrics"], config=result["config"])
    fixed = fixed_export(work)
    if fixed != work.export:
        result = measure(work, "fixed", reward_model=judge, export=fixed)
        work.client.record_evaluation(
            candidate["name"], name="fixed set", metrics=result["metrics"], config=result["config"]
        )
    by_model = compare_by_model(work) if work.config.by_model else []
    by_task = measure_by_task(work) if work.config.by_task else []
    own = measure_by_own_command(work) if work.config.own_evaluation else []
    return {"evaluations": ["evaluate", *(["fixed set"] if fixed != work.export else []), *by_model, *by_task, *own]}


def measure(work: Work, name: str, **fields: Any) -> dict[str, Any]:
    """The figures of `training evaluate`, measured once a night."""
    out = work.night.folder / f"evaluate-{name}.json"
    if not out.exists():  # written whole or not at all
        work.stage("evaluate", work.config.evaluate, out=out, **fields)
    return json.loads(out.read_bytes())


def compare_by_model(work: Work) -> list[str]:
    """A judge, or a held-out reward model, compares the candidate with what serves and with round 0; recorded as "by model"."""
    others = opponents(work)
    if not others:
        return []
    out = work.night.folder / "by-model.json"
    fields = {
        "policy": work.done("ppo")["folder"],
        "against": ",".join(map(str, others.values())),
        "export": work.export,
    }
    work.stage("evaluate by-model", work.config.by_model, out=out, push=True, **fields)
    return ["by model"]


def measure_by_task(work: Work) -> list[str]:
    """Text, tasks and probes, beside the base model that the settings name; recorded as "by task"."""
    out = work.night.folder / "by-task.json"
    work.stage("evaluate by-task", work.config.by_task, out=out, push=True, policy=work.done("ppo")["folder"])
    return ["by task"]


def opponents(work: Work) -> dict[str, Path]:
    """What a candidate is compared with, by name: the policy that serves, and that of round 0 where it is another."""
    found = {work.start[role]["name"]: fetched(work, role) for role in ("serving", "round0") if work.start[role]}
    return {name: folder for name, folder in found.items() if folder}


def fixed_export(work: Work) -> Path:
    """What every night's reward model is measured on: the export named for it, or the first night's."""
    if work.config.fixed_export:
        return Path(work.config.fixed_export)
    first = next(
        (night.output("export") for night in Night.all(work.root) if night.outcome in ("promoted", "refused")), None
    )
    return Path(first["folder"]) if first and Path(first["folder"]).is_dir() else work.export


def measure_by_own_command(work: Work) -> list[str]:
    """Run the team's own evaluation, and record what it wrote: {name: {metrics}} for each evaluation of the candidate."""
    facts, out = work.night.folder / "candidate.json", work.night.folder / "own-evaluation.json"
    folders = {stage: work.done(stage)["folder"] for stage in ("sft", "rm", "ppo")}
    others = {role: str(fetched(work, role) or "") for role in ("serving", "round0")}
    known = {"night": work.night.number, "seed": work.seed, "export": str(work.export), **folders, **others}
    write_atomically(facts, json.dumps(known, indent=1).encode() + b"\n")
    if not out.exists():
        writing = out.with_suffix(".new")
        paths = {"HEED_NIGHT": str(facts), "HEED_NIGHT_OUT": str(writing)}
        work.command("own-evaluation", list(work.config.own_evaluation), paths)
        write_atomically(out, json.dumps(_own_figures(writing), indent=1).encode() + b"\n")
    found = json.loads(out.read_bytes())
    for name, metrics in found.items():
        work.client.record_evaluation(work.done("ppo")["name"], name=name, metrics=metrics, config={})
    return list(found)


def _own_figures(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StageError(f"own_evaluation: {path}: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(one, dict) and one for one in found.values()):
        raise StageError(f"own_evaluation: {path}: expected {{name: {{figure: value, …}}}}")
    if taken := OUR_NAMES & found.keys():
        raise StageError(
            f"own_evaluation: {path}: {', '.join(sorted(taken))}: the night's own evaluations are called so"
        )
    return found


def people(work: Work) -> dict[str, Any]:
    """Have people compare the candidate with what serves, blind, on test prompts, and wait until they have. Raises Waiting."""
    others, config = opponents(work), work.config
    if not config.people_prompts or not others:
        return {"skipped": "people are not asked" if others else "there is nothing to compare with"}
    name, candidate = f"{config.name} {work.night.number} evaluation", work.done("ppo")["name"]
    folders = {candidate: work.done("ppo")["folder"], **others}
    out = work.night.folder / "people.jsonl"
    fields = {
        "model": ",".join(map(str, folders.values())),
        "from_server": True,
        "split": "test",
        "limit": config.people_prompts,
    }
    fields |= {"k": len(folders), "max_new_tokens": config.next_max_new_tokens, "push": True}
    work.stage("sample", None, out=out, **fields)
    order = {"kind": "ranking", "purpose": "evaluation", "model_names": list(folders), "overlap": config.people_overlap}
    prompts = [row["prompt_id"] for row in read_rows(out)]
    batch = work.client.create_batch(name=name, prompt_ids=sorted(set(prompts)), **order)
    found = work.client.batch_evaluation(batch["id"])
    if not found["is_complete"]:
        raise Waiting(f"night {work.night.number} waits for people: {found['open']} comparisons of {name!r} are open")
    pairs = {pair["second"]: pair for pair in found["pairs"] if pair["first"] == candidate}
    against = {other: {part: pair[part] for part in PEOPLE_SAY} for other, pair in pairs.items()}
    serving = work.start["serving"] and against.get(work.start["serving"]["name"])
    won = {"rate": serving["win_rate"], "low": serving["low"], "high": serving["high"]} if serving else None
    metrics = {"by": "people", "against": against, "win_rate": won}
    metrics |= {part: found[part] for part in ("prompts", "labelers", "rankings")}
    work.client.record_evaluation(candidate, name="people", metrics=metrics, config={"batch": batch["id"]})
    return {"batch": batch["id"], "name": name, "win_rate": won}


OUR_NAMES = {"evaluate", "fixed set", "by model", "by task", "people", "night"}
"""Evaluations that a night records itself: no command may shadow one."""
PEOPLE_SAY = ("win_rate", "low", "high", "comparisons", "prompts")
"""What is kept of people's verdict on a pair of policies."""


def check_gate(work: Work) -> dict[str, Any]:
    """Hold the candidate's figures against the rules."""
    rules = gate.read_rules(settings_path(work.config.rules))
    figures = gate.gather(work.client, work.done("ppo")["name"])
    verdicts = gate.check(figures, rules.rules)
    return {
        "holds": gate.all_hold(verdicts),
        "reasons": gate.reasons(verdicts),
        "rules": rules.text,
        "verdicts": msgspec.to_builtins(verdicts),
    }
