"""The steps of a night, in order. Each is safe to repeat, says what it came to, and leaves nothing half done that another would take.

What one came to is pinned in the night's state and held against the disk when a night goes on: an export that was damaged is fetched
again, a model that was is the end of the night.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from training import children, gate, night_report
from training.client import HeedClient
from training.config import ConfigError, from_dict, read_toml
from training.contract import ContractError, GateVerdict, hash_file, read_export, read_model_manifest, write_atomically
from training.errors import StageError
from training.night_labels import count_labels, new_labels, too_few
from training.night_state import Night
from training.sample import deal, read_rows

if TYPE_CHECKING:
    from training.nightly import Config

SHIPPED = Path(__file__).parent / "configs"
PYTHON = (sys.executable, "-m", "training")


class Damaged(StageError):
    """What a finished step left is not what it was: the night cannot go on."""


class Waiting(Exception):
    """The night waits for people, and goes on with a later run."""


@dataclass(frozen=True)
class Work:
    """A night being carried out."""

    config: Config
    client: HeedClient
    night: Night
    root: Path
    until: float | None
    held: IO[str]

    @property
    def start(self) -> dict[str, Any]:
        """What the night starts from, by role: {name, uri, manifest_sha256}, or None."""
        return self.night.state["start"]

    @property
    def seed(self) -> int:
        """Another one each night: a run that failed by its draws fails so once."""
        return self.config.seed + self.night.number - 1

    @property
    def export(self) -> Path:
        """The night's export."""
        return Path(self.done("export")["folder"])

    def done(self, step: str) -> dict[str, Any]:
        """What a finished step came to."""
        output = self.night.output(step)
        if output is None:
            raise StageError(f"night {self.night.number}: {step} is not done yet")
        return output

    def model(self, stage: str) -> Path:
        """Where the night's model of this stage is, or will be."""
        return self.root / "models" / f"{self.config.name}-{self.night.number:04d}-{stage}"

    def stage(self, stage: str, settings: str | None, **fields: Any) -> None:
        """Run a training stage as a process of its own, until the night's time is spent."""
        launch = self.config.launch if stage in ("sft", "rm", "ppo") else self.config.stage
        config = {"config": settings_path(settings)} if settings else {}
        command = [*(launch or PYTHON), stage, *flags(config | {"seed": self.seed} | fields)]
        self.command(stage, command)

    def command(self, name: str, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        """Run any command so; what it prints goes to the night's logs."""
        log = self.night.folder / "logs" / f"{name}.log"
        children.run(command, log, until=self.until, held=self.held, environment=environment)


def flags(fields: Mapping[str, Any]) -> list[str]:
    """Settings as a command line; None is left out, True is a flag alone."""
    words: list[str] = []
    for name, value in fields.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def settings_path(name: str) -> Path:
    """The settings file: this path, or a shipped one of this name. Raises ConfigError if there is neither."""
    for path in (Path(name), SHIPPED / name):
        if path.is_file():
            return path
    raise ConfigError(f"{name}: there is no such file, here or in {SHIPPED}")


def check_settings(config: Config) -> None:
    """Raise ConfigError for settings of a stage that it would refuse after hours of waiting for its turn."""
    gate.read_rules(settings_path(config.rules))
    needed = {"rm": ("sft_model",), "ppo": ("policy", "reward_model")}
    needed |= {"sft": ("base_model",)} if config.base_model else {}
    for stage, folders in needed.items():
        path = settings_path(getattr(config, stage))
        values = read_toml(path) | dict.fromkeys(("out", "export", *folders), "given later")
        if not config.launch:  # else another Python may have the libraries that ours lacks
            from_dict(importlib.import_module(f"training.{stage}").Config, values, str(path))
    if config.evaluate:
        settings_path(config.evaluate)


def named(model: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the state keeps of a registered model."""
    return {name: model[name] for name in ("name", "stage", "uri", "manifest_sha256")} if model else None


def fetched(work: Work, role: str) -> Path | None:
    """The folder of what the night starts from, here; None where there is none."""
    model = work.start[role]
    return HeedClient.fetch_model(model, work.root / "models" / "fetched") if model else None


# ---- labels ---------------------------------------------------------------------------------------------------------


def export(work: Work) -> dict[str, Any]:
    """Have the labels exported and fetch them. The night's id makes a repeated order the same order."""
    made = work.client.build_export(work.config.query, key=f"night-{work.night.state['id']}", poll_seconds=0.2)
    folder = fetch_whole(work, made["name"])
    manifest = read_export(folder).manifest
    labels = count_labels(folder)
    if problem := too_few(work.config, work.root, labels):
        raise StageError(f"export {manifest.name} holds fewer labels than were counted: {problem}")
    new = new_labels(work.root, labels)
    return {
        "name": manifest.name,
        "folder": str(folder),
        "data_sha256": manifest.data_sha256,
        "labels": labels,
        "new": new,
    }


def fetch_whole(work: Work, name: str) -> Path:
    """The export's folder here; one that is damaged is set aside and fetched again, once."""
    root = work.root / "exports"
    try:
        return work.client.fetch_export(name, root)
    except ContractError as error:
        if not (root / name).exists():
            raise
        print(f"nightly: {error}; {root / name} is fetched again", file=sys.stderr)
        (root / name).rename(root / f".damaged-{name}-{os.urandom(4).hex()}")
        return work.client.fetch_export(name, root)


# ---- training -------------------------------------------------------------------------------------------------------


def wants_sft(config: Config, start: Mapping[str, Any], new: Mapping[str, int]) -> bool:
    """SFT is trained where there is none yet, and anew from the base model when enough demonstrations came."""
    return config.base_model is not None and (
        start["sft"] is None or new["demonstrations"] >= config.min_demonstrations
    )


def start_role(config: Config, start: Mapping[str, Any]) -> str:
    """What PPO starts from when SFT stays as it is."""
    return "serving" if config.start == "serving" and start["serving"] else "sft"


def sft(work: Work) -> dict[str, Any]:
    """The SFT model that the night's others start from: trained anew, or the one behind the policy that serves."""
    if not wants_sft(work.config, work.start, work.done("export")["new"]):
        folder = fetched(work, "sft")
        if folder is None:
            raise StageError(
                "there is no SFT model behind what serves: set base_model, or promote a policy made from one"
            )
        return {"skipped": f"too few new demonstrations; {work.start['sft']['name']} stays", **pin(folder)}
    judge = fetched(work, "rm") if work.config.choose_epoch else None
    base = work.config.base_model
    work.stage("sft", work.config.sft, out=work.model("sft"), base_model=base, export=work.export, reward_model=judge)
    return pin(work.model("sft"))


def rm(work: Work) -> dict[str, Any]:
    """The reward model: from the SFT model, on the rankings of all rounds, each once."""
    work.stage("rm", work.config.rm, out=work.model("rm"), sft_model=work.done("sft")["folder"], export=work.export)
    return pin(work.model("rm"))


def ppo(work: Work) -> dict[str, Any]:
    """The candidate: PPO against that reward model, from the SFT model or from the policy that serves."""
    start = work.done("sft")
    serving = fetched(work, "serving") if start_role(work.config, work.start) == "serving" else None
    if serving and "skipped" in start:
        start = pin(serving)
    judge = work.done("rm")["folder"]
    work.stage(
        "ppo", work.config.ppo, out=work.model("ppo"), policy=start["folder"], reward_model=judge, export=work.export
    )
    return pin(work.model("ppo")) | {"started_from": start}


def pin(folder: Path) -> dict[str, Any]:
    """A model folder, intact, by its name and its manifest's hash."""
    manifest = read_model_manifest(folder)
    return {"name": manifest.name, "folder": str(folder), "manifest_sha256": hash_file(folder / "manifest.json")}


def verify(work: Work, step: str, output: Mapping[str, Any]) -> None:
    """Hold what a finished step left against what it was. Raises Damaged."""
    if step == "export":
        folder = fetch_whole(work, output["name"])
        if read_export(folder, verify=False).manifest.data_sha256 != output["data_sha256"]:
            raise Damaged(f"{folder}: export {output['name']} is another than this night began with")
    elif "manifest_sha256" in output:
        try:
            is_same = pin(Path(output["folder"]))["manifest_sha256"] == output["manifest_sha256"]
        except (ContractError, OSError) as error:
            raise Damaged(f"{output['name']} was damaged since it was made: {error}") from None
        if not is_same:
            raise Damaged(f"{output['folder']}: another model than this night made")


def register(work: Work) -> dict[str, Any]:
    """Make the night's models known to the web half, parents first, copied to where it finds them if so configured."""
    made = {stage: work.done(stage) for stage in ("sft", "rm", "ppo")}
    folders = [Path(one["folder"]) for one in made.values() if "skipped" not in one]
    base = Path(work.config.base_model or "")
    if "skipped" not in made["sft"] and (base / "manifest.json").is_file():
        folders.insert(0, base)
    for folder in folders:
        uri = work.config.publish_to and work.client.publish_model(folder, work.config.publish_to)
        work.client.register_model(folder, uri=uri)
    return {"models": [folder.name for folder in folders]}


# ---- evaluation and the gate ----------------------------------------------------------------------------------------


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
    own = measure_by_own_command(work) if work.config.own_evaluation else []
    return {"evaluations": ["evaluate", *(["fixed set"] if fixed != work.export else []), *own]}


def measure(work: Work, name: str, **fields: Any) -> dict[str, Any]:
    """The figures of `training evaluate`, measured once a night."""
    out = work.night.folder / f"evaluate-{name}.json"
    if not out.exists():  # written whole or not at all
        work.stage("evaluate", work.config.evaluate, out=out, **fields)
    return json.loads(out.read_bytes())


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
    return found


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


def promote(work: Work) -> dict[str, Any]:
    """Promote the candidate, or have it on record why not. What somebody else promoted meanwhile is not replaced."""
    name, found = work.done("ppo")["name"], work.done("gate")
    verdicts = msgspec.convert(found["verdicts"], list[GateVerdict])
    if any(model["name"] == name for model in work.client.promoted_models(10**6)):
        return {"outcome": "promoted", "reason": "every required rule of the gate holds"}
    serving = named(work.client.serving_model())
    if not found["holds"]:
        work.client.record_gate_check(name, rules=found["rules"], verdicts=verdicts)
        return {"outcome": "refused", "reason": "; ".join(found["reasons"])}
    if serving != work.start["serving"]:
        now = serving["name"] if serving else "nothing"
        return {"outcome": "refused", "reason": f"{now} serves since this night began: it was not compared with that"}
    reason = f"{work.config.name} {work.night.number}: every required rule of the gate holds"
    work.client.promote(name, reason=reason, rules=found["rules"], verdicts=verdicts)
    return {"outcome": "promoted", "reason": "every required rule of the gate holds"}


# ---- what is ranked next --------------------------------------------------------------------------------------------


def sample(work: Work) -> dict[str, Any]:
    """Responses to the least covered prompts, by what serves and what served before it, brought to the web half."""
    config, folder = work.config, work.night.folder
    if not config.next_prompts:
        return {"skipped": "no next batch is configured"}
    if work.done("promote")["outcome"] == "refused" and not config.next_on_refusal:
        return {"skipped": "the candidate was refused"}
    chosen = _next(work)
    if not chosen["prompts"]:
        return {"skipped": "there are no prompts"}
    prompts = folder / "next-prompts.jsonl"
    write_atomically(prompts, b"".join(msgspec.json.encode(row) + b"\n" for row in chosen["prompts"]))
    source = {"server": config.next_server} if config.next_server else {"model": ",".join(chosen["folders"])}
    names: set[str] = set()
    for number, (temperature, k) in enumerate(
        zip(config.next_temperatures, deal(config.next_k, len(config.next_temperatures)), strict=True)
    ):
        out = folder / f"next-{number}.jsonl"
        fields = source | {"prompts": prompts, "k": k, "temperature": temperature, "push": True}
        work.stage("sample", None, out=out, max_new_tokens=config.next_max_new_tokens, **fields)
        names |= {row["model"] for row in read_rows(out)}
    return {"policies": sorted(names), "newest": chosen["names"][0], "prompts": len(chosen["prompts"])}


def _next(work: Work) -> dict[str, Any]:
    """Who answers which prompts: chosen once a night, and again only when another server was set since."""
    pinned = work.night.folder / "next.json"
    if not pinned.exists() or json.loads(pinned.read_bytes())["server"] != work.config.next_server:
        write_atomically(pinned, msgspec.json.encode(_choose_next(work)))
    return json.loads(pinned.read_bytes())


def _choose_next(work: Work) -> dict[str, Any]:
    models = [] if work.config.next_server else work.client.promoted_models(work.config.next_policies)
    folders = [str(HeedClient.fetch_model(model, work.root / "models" / "fetched")) for model in models]
    if not folders and not work.config.next_server:
        raise StageError("no policy has been promoted yet, so there is none to sample from")
    rows = work.client.least_covered(task="ranking", split="train", limit=work.config.next_prompts, seed=work.seed)
    prompts = [{"prompt_id": row["prompt_id"], "messages": row["messages"]} for row in rows]
    names = [model["name"] for model in models] or [None]
    return {"server": work.config.next_server, "names": names, "folders": folders, "prompts": prompts}


def order(work: Work) -> dict[str, Any]:
    """Order the ranking batch of these responses. Asked again, the web half answers with the batch there is."""
    sampled = work.done("sample")
    if "skipped" in sampled:
        return {"skipped": sampled["skipped"]}
    chosen = _next(work)
    batch = work.client.create_batch(
        name=f"{work.config.name} {work.night.number}",
        kind="ranking",
        k=work.config.next_k,
        overlap=work.config.next_overlap,
        group="training",
        model_names=sampled["policies"],
        must_include=[sampled["newest"]] if sampled["newest"] else [],
        prompt_ids=[row["prompt_id"] for row in chosen["prompts"]],
        seed=work.seed,
    )
    return {"batch": batch["id"], "name": batch["name"], "counts": batch["counts"]}


def record(work: Work) -> dict[str, Any]:
    """Keep the night's figures with the candidate, where the page of rounds finds them."""
    facts = night_report.facts(work)
    work.client.record_evaluation(work.done("ppo")["name"], name="night", metrics=facts, config={})
    return {"recorded": "night"}


STEPS: tuple[tuple[str, Callable[[Work], dict[str, Any]]], ...] = (
    ("export", export),
    ("sft", sft),
    ("rm", rm),
    ("ppo", ppo),
    ("register", register),
    ("evaluate", evaluate),
    ("gate", check_gate),
    ("promote", promote),
    ("sample", sample),
    ("batch", order),
    ("record", record),
)
