"""The steps of a night, in order. Each is safe to repeat, says what it came to, and leaves nothing half done that another would take.

What one came to is pinned in the night's state and held against the disk when a night goes on: an export that was damaged is fetched
again, a model that was is the end of the night.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from training import night_evaluation, night_report
from training.client import ClientError, HeedClient
from training.config import to_dict
from training.contract import ContractError, GateVerdict, read_export, write_atomically
from training.errors import StageError
from training.night_labels import count_labels, new_labels, too_few
from training.night_work import Damaged, Work, fetched, named, pin
from training.prompt_files import read_rows
from training.sample import deal

if TYPE_CHECKING:
    from training.nightly import Config


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


# ---- promotion ------------------------------------------------------------------------------------------------------


def promote(work: Work) -> dict[str, Any]:
    """Promote the candidate, or have it on record why not. What somebody else promoted meanwhile is not replaced."""
    name, found = work.done("ppo")["name"], work.done("gate")
    verdicts = msgspec.convert(found["verdicts"], list[GateVerdict])
    if any(made["model"]["name"] == name for made in work.client.promotions()):
        return {"outcome": "promoted", "reason": "every required rule of the gate holds"}
    if not found["holds"]:
        work.client.record_gate_check(name, rules=found["rules"], verdicts=verdicts)
        return {"outcome": "refused", "reason": "; ".join(reason.rstrip(".") for reason in found["reasons"])}
    reason = f"{work.config.name} {work.night.number}: every required rule of the gate holds"
    compared = work.start["serving"]
    seen = compared["name"] if compared else ""
    try:
        work.client.promote(name, reason=reason, rules=found["rules"], verdicts=verdicts, seen_serving=seen)
    except ClientError:
        serving = named(work.client.serving_model())
        if serving == compared:
            raise
        now = serving["name"] if serving else "nothing"
        return {"outcome": "refused", "reason": f"{now} serves since this night began: it was not compared with that"}
    return {"outcome": "promoted", "reason": "every required rule of the gate holds"}


# ---- what is ranked next --------------------------------------------------------------------------------------------


def sample(work: Work) -> dict[str, Any]:
    """Responses to the least covered prompts, by what serves and what served before it, brought to the web half.

    A refused candidate writes some too: ranked, they tell the next reward model what this one was wrong about.
    """
    config = work.config
    if not config.next_prompts:
        return {"skipped": "no next batch is configured"}
    if work.done("promote")["outcome"] == "refused" and not config.next_on_refusal:
        return {"skipped": "the candidate was refused"}
    chosen, folder = _next(work), work.night.folder / "next"
    if not chosen["prompts"]:
        return {"skipped": "there are no prompts"}
    prompts = folder / "prompts.jsonl"
    write_atomically(prompts, b"".join(msgspec.json.encode(row) + b"\n" for row in chosen["prompts"]))
    names: set[str] = set()
    dealt = deal(config.next_k, len(config.next_temperatures))
    for number, (temperature, k) in enumerate(zip(config.next_temperatures, dealt, strict=True)):
        out = folder / f"{number}.jsonl"
        source = {"server": config.next_server, "server_model": config.next_server_model}
        if not config.next_server:  # the next policy's turn is where the temperature before left off
            turn = sum(dealt[:number]) % len(chosen["folders"])
            source = {"model": ",".join(chosen["folders"][turn:] + chosen["folders"][:turn])}
        fields = source | {"prompts": prompts, "k": k, "temperature": temperature, "push": True}
        work.stage("sample", None, out=out, max_new_tokens=config.next_max_new_tokens, **fields)
        names |= {row["model"] for row in read_rows(out)}
    return {"policies": sorted(names), "newest": chosen["names"][0]}


def _next(work: Work) -> dict[str, Any]:
    """Who answers which prompts: chosen once a night, and anew, answers and all, when any `next_` setting was changed since."""
    folder = work.night.folder / "next"
    asked = {name: value for name, value in to_dict(work.config).items() if name.startswith("next_")}
    pinned = folder / "chosen.json"
    if not pinned.exists() or json.loads(pinned.read_bytes())["settings"] != asked:
        chosen = _choose_next(work)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_atomically(pinned, msgspec.json.encode(chosen | {"settings": asked}))
    return json.loads(pinned.read_bytes())


def _choose_next(work: Work) -> dict[str, Any]:
    models = [] if work.config.next_server else work.client.promoted_models(work.config.next_policies)
    folders = [str(HeedClient.fetch_model(model, work.root / "models" / "fetched")) for model in models]
    if not folders and not work.config.next_server:
        raise StageError("no policy has been promoted yet, so there is none to sample from")
    rows = work.client.least_covered(task="ranking", split="train", limit=work.config.next_prompts, seed=work.seed)
    prompts = [{"prompt_id": row["prompt_id"], "messages": row["messages"]} for row in rows]
    names = [model["name"] for model in models] or [None]
    if folders and work.config.next_refused and work.done("promote")["outcome"] == "refused":
        candidate = work.done("ppo")
        names.insert(1, candidate["name"])  # behind what serves, before older ones: small K leaves out the last
        folders.insert(1, candidate["folder"])
    return {"names": names, "folders": folders, "prompts": prompts}


def order(work: Work) -> dict[str, Any]:
    """Order the ranking batch of these responses. Asked again, the web half answers with the batch there is."""
    sampled = work.done("sample")
    if "skipped" in sampled:
        return {"skipped": sampled["skipped"]}
    chosen = json.loads((work.night.folder / "next" / "chosen.json").read_bytes())  # whatever is set by now
    batch = work.client.create_batch(
        name=f"{work.config.name} {work.night.number}",
        kind="ranking",
        k=chosen["settings"]["next_k"],
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
    ("evaluate", night_evaluation.evaluate),
    ("people", night_evaluation.people),
    ("gate", night_evaluation.check_gate),
    ("promote", promote),
    ("record", record),
    ("sample", sample),
    ("batch", order),
)
