"""`make loop`: the whole of Heed, unattended, in a throwaway database: `python -m tests.loop.run --seed 0 --nights 1`.

Simulated people label through the actions that real ones use; the training half talks HTTP to the web half, by the commands
that an ML engineer types. Before the first night: prompts, base model, demonstrations, SFT, its samples as ranking tasks. A night:
rankings → export → reward model → PPO → evaluation by the hidden preference → gates → promotion → samples → new ranking tasks.
A night is the nightly command (`python -m training nightly`), with the hidden preference as the team's own evaluation (judge.py).
Prints a table, writes var/loop/summary.json, and exits with 1 if a gate fails.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import django

from labeling.tether import end_with_parent
from tests.loop import gates, judge, world
from tests.loop.site import ROOT, throwaway_site
from training import contract, intervals, tinyworld
from training.client import HeedClient
from training.config import read_toml
from training.contract import GateVerdict, all_hold, decode_verdicts, verdict_fields
from training.night_state import Night

CONFIGS = ROOT / "training" / "configs"
THREADS = min(2, os.cpu_count() or 1)
SIMULATED = {"origins": ["simulated"]}
TEXT = {"text": "tinyworld", "max_documents": 300}
"""What a night costs on plain text: the tax on the page of rounds."""
USE_CASES = {tinyworld.STORY: "story", tinyworld.FACTS: "facts"}


@dataclass(frozen=True)
class Scale:
    """How much work a loop is, in rows; `flags` are more flags for a training stage than its config file has."""

    prompts: int = world.PROMPTS
    demonstrations: int = world.DEMONSTRATIONS
    rankings: int = world.RANKINGS
    overlap: int = world.OVERLAP
    held_out: int = 40
    next_tasks: int = 60
    test_prompts: int = world.TEST_PROMPTS
    flags: dict[str, dict] = field(default_factory=dict)


SEVERAL_NIGHTS = Scale(test_prompts=2000)
"""A night must be told from the night before."""

# Every step in under a minute, with models that cannot pass the gates: so that the plumbing is tested, and the refusal too.
SMOKE = Scale(
    prompts=400,
    demonstrations=40,
    rankings=16,
    overlap=6,
    held_out=4,
    next_tasks=4,
    test_prompts=40,
    flags={
        "pretrain": {"documents": 400, "valid_documents": 40, "steps": 30, "warmup_steps": 5},
        "sft": {"epochs": 1, "batch_size": 8},
        "rm": {"epochs": 1, "batch_size": 8, "warmup_steps": 0},
        "ppo": {"iterations": 2, "warmup_iterations": 1, "episodes": 16, "minibatch": 8, "valid_episodes": 16},
    },
)


class Loop:
    """One installation and what has been made in it so far."""

    def __init__(self, folder: Path, seed: int, scale: Scale, nights: int, more_rules: str = ""):
        from tests.loop.labelers import Workforce

        self.folder, self.seed, self.scale = folder, seed, scale
        self.models, self.exports = folder / "models", folder / "fetched"
        os.environ["HEED_TOKEN"] = self._make_token()
        self.client = HeedClient.from_environment(patience_seconds=60)
        self.people = Workforce(seed)
        self.nights, self.nights_in_a_row = folder / "nightly", nights
        self.base, self.sft = self.models / "base", self.models / "sft"
        self.more_rules = more_rules

    def _make_token(self) -> str:
        from labeling.actions import tokens
        from labeling.models import ApiToken, Role, User

        engineer = User.objects.create_user("engineer@loop.example", name="Loop engineer")
        engineer.grant(Role.RESEARCHER)
        engineer.grant(Role.ADMIN)
        return tokens.create(user=engineer, name="loop", scopes=ApiToken.Scope.values)[1]

    # Before the first night ------------------------------------------------------------------------------------------

    def found(self) -> None:
        """Prompts, the base model, demonstrations, SFT in service, and its samples waiting to be ranked."""
        pretraining = self._start_stage("pretrain", self.base)
        self._import_prompts()
        for split, limit in (("train", self.scale.demonstrations), ("valid", self.scale.demonstrations // 10)):
            self.client.create_batch(name=f"demonstrations {split}", kind="demonstration", split=split, limit=limit)
        with step("simulated demonstrations"):
            self.people.work("demonstration")
        with step("pretrain (went on meanwhile)"):
            finish(pretraining)
        self.client.register_model(self.base)
        export = self._export()
        self._stage("sft", self.sft, base_model=self.base, export=export)
        self.client.register_model(self.sft)
        self.client.promote("sft", reason="the first policy")
        self._order_first_rankings()

    def _import_prompts(self) -> None:
        file = self.folder / "prompts.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in tinyworld.prompts(self.scale.prompts, self.seed)))
        with step("import prompts"):
            finish(start([sys.executable, "manage.py", "import_prompts", str(file)], self.folder, "import"))

    def _order_first_rankings(self) -> None:
        """Samples of SFT for training and validation; some tasks for two labelers, some for the held-out group."""
        scale = self.scale
        for split, limit in (("train", scale.rankings), ("valid", scale.rankings // 10), ("test", scale.held_out)):
            self._sample(f"samples-{split}", limit=limit, split=split, model=self.sft)
        orders = [
            ("rankings train twice", "train", scale.overlap, {"overlap": 2}),
            ("rankings train", "train", scale.rankings - scale.overlap, {}),
            ("rankings valid", "valid", scale.rankings // 10, {}),
            ("rankings held-out", "test", scale.held_out, {"group": "held_out"}),
        ]
        for name, split, limit, more in orders:
            fields = {"group": "training", "only_new": True, "k": world.K, "split": split, "limit": limit} | more
            self.client.create_batch(name=name, kind="ranking", **fields)

    # A night ---------------------------------------------------------------------------------------------------------

    def night(self, number: int) -> dict:
        """One night by the nightly command; returns its part of the summary."""
        with step("simulated rankings"):
            self.people.work("ranking")
        with step(f"night {number}"):
            finish(
                start(
                    [sys.executable, "-m", "training", "nightly", "--config", str(self.settings())],
                    self.folder,
                    f"night-{number}",
                )
            )
        night = Night(self.nights / f"night-{number:04d}")
        for name, entry in night.state["steps"].items():
            print(f"{entry['seconds']:7.1f} s    {name}", flush=True)
        report = json.loads((night.folder / judge.REPORT).read_bytes())
        verdicts = decode_verdicts(night.output("gate")["verdicts"])
        candidate = night.output("ppo")["name"]
        promoted = candidate if night.outcome == "promoted" else None
        summary = self._summary(report, verdicts, promoted, self._new_tasks(night, promoted))
        return summary | {"candidate": candidate, "labels_behind": self._labels_behind(candidate)}

    def settings(self, **changes: Any) -> Path:
        """The nightly command's settings: the tiny world's, at this loop's scale, with the loop's own evaluation and rules; and changes."""
        from tests.loop.labelers import agreement

        rules = [*gates.RULES, *([gates.NOT_WORSE] if self.nights_in_a_row > 1 else [])]
        (self.folder / "gate.toml").write_text(gates.as_toml(rules, f"evaluations.{judge.NAME}") + self.more_rules)
        own = [sys.executable, "-m", "tests.loop.judge", "--base", self.base, "--seed", self.seed, "--threads", THREADS]
        own += ["--prompts", self.scale.test_prompts, "--agreement", agreement()[0]]
        stages = {stage: str(self._stage_settings(stage)) for stage in ("rm", "ppo", "evaluate")}
        stages["by_task"] = str(self._written("by-task", TEXT | {"base": str(self.base), "threads": THREADS}))
        fields = read_toml(CONFIGS / "tiny_nightly.toml") | stages | {
            "out": str(self.nights),
            "rules": str(self.folder / "gate.toml"),
            "own_evaluation": [str(word) for word in own],
            "start": "serving",
            "min_rankings": 1,
            "next_prompts": self.scale.next_tasks,
            "next_k": world.K,
            "next_on_refusal": self.nights_in_a_row > 1,
            "seed": self.seed,
            "notify": [],
        } | changes  # fmt: skip
        return self._written("nightly", fields)

    def _stage_settings(self, stage: str) -> Path:
        fields = read_toml(CONFIGS / f"tiny_{stage}.toml") | {"threads": THREADS} | self.scale.flags.get(stage, {})
        return self._written(stage, fields)

    def _written(self, name: str, fields: dict) -> Path:
        path = self.folder / f"{name}.toml"
        path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items()))
        return path

    def _new_tasks(self, night: Night, policy: str | None) -> int:
        """How many ranking tasks the night ordered; each must hold a response of the policy it promoted."""
        from labeling.models import Task, TaskResponse

        ordered = night.output("batch")
        if "skipped" in ordered:
            return 0
        tasks = Task.objects.filter(batch__name=ordered["name"])
        theirs = TaskResponse.objects.filter(task__in=tasks, response__model_version__name=policy)
        if policy and theirs.values("task").distinct().count() != tasks.count():
            raise RuntimeError(f"batch {ordered['name']}: a task lacks responses of {policy}")
        return tasks.count()

    def _labels_behind(self, policy: str) -> dict[str, int]:
        """How many labels of each kind one comes to from a policy, by export; each must be a submission here."""
        from labeling.models import Submission

        found = {}
        for source in self.client.get(f"/api/v1/models/{policy}/labels/")["exports"]:
            for kind in ("demonstrations", "rankings"):
                ids = set(source[kind])
                if Submission.objects.filter(kind=kind[:-1], uuid__in=ids).count() != len(ids):
                    raise RuntimeError(f"{policy}: {source['export']} names {kind} that are not there")
                found[f"{kind} of {source['export']}"] = len(ids)
        return found

    def keep_rounds_page(self, nights: list[dict]) -> None:
        """rounds.html: the console's page of rounds as a researcher is shown it, which must name every night's candidate."""
        from django.test import Client
        from django.urls import reverse

        from labeling.models import User

        browser = Client(headers={"host": "127.0.0.1"})
        browser.force_login(User.objects.get(email="engineer@loop.example"))
        page = browser.get(reverse("rounds"), secure=True).content.decode()
        (self.folder / "rounds.html").write_text(page)
        if missing := [night["candidate"] for night in nights if night["candidate"] not in page]:
            raise RuntimeError(f"the page of rounds lacks {', '.join(missing)}")

    def _summary(self, report: dict, verdicts: list[GateVerdict], promoted: str | None, new_tasks: int) -> dict:
        versus_sft = report["ppo_vs_sft"]
        return {
            "ok": all_hold(verdicts),
            "seed": self.seed,
            "counts": counts(),
            "labeler_agreement": report["labeler_agreement"],
            "rm": report["rm"],
            "win_rate_sft_vs_base": report["sft_vs_base"]["rate"],
            "win_rate_vs_sft": versus_sft["rate"],
            "win_rate_vs_sft_by_use_case": {case: rate["rate"] for case, rate in versus_sft["by_use_case"].items()},
            "intervals": {"sft_vs_base": report["sft_vs_base"], "ppo_vs_sft": versus_sft},
            "gold_reward": report["gold_reward"],
            "proxy_reward": report["proxy_reward"],
            "kl": report["kl"],
            "beta": report["beta"],
            "reward_std": report["reward_std"],
            "distinct_responses": report["distinct_responses"],
            "prompt_dependence": report["prompt_dependence"],
            "gates": [verdict_fields(verdict) | {"passed": verdict.holds} for verdict in verdicts],
            "promoted": promoted,
            "new_ranking_tasks": new_tasks,
            "samples": report["samples"],
            "win_rate_vs_round0": report["win_rate_vs_round0"]["rate"],
            "win_rate_vs_last": report["win_rate_vs_last"]["rate"],
            "gain_vs_last": report["gain_vs_last"],
            "scores": report["scores"],
        }

    # What the steps share --------------------------------------------------------------------------------------------

    def _export(self) -> Path:
        with step("export"):
            export = self.client.build_export(SIMULATED, poll_seconds=0.2)
            return self.client.fetch_export(export["name"], self.exports)

    def _start_stage(self, stage: str, out: Path, **fields) -> subprocess.Popen:
        config = CONFIGS / f"tiny_{stage}.toml"
        fields = {"config": config, "out": out, "seed": self.seed, "threads": THREADS} | fields
        fields |= self.scale.flags.get(stage, {})
        return start([sys.executable, "-m", "training", stage, *flags(fields)], self.folder, out.name)

    def _stage(self, stage: str, out: Path, **fields) -> None:
        with step(stage):
            finish(self._start_stage(stage, out, **fields))

    def _sample(self, name: str, **fields) -> None:
        """K responses for prompts that have no ranking task yet, brought to the web half."""
        fields |= {"out": self.folder / f"{name}.jsonl", "k": world.K, "without_tasks": "ranking", "seed": self.seed}
        command = [sys.executable, "-m", "training", "sample", "--from-server", "--push", *flags(fields)]
        with step(f"sample {fields['limit']} × {world.K}"):
            finish(start(command, self.folder, name))


def counts() -> dict[str, int]:
    """Rows in the database at the end of a night."""
    from labeling.models import Export, ModelVersion, Prompt, Response, Submission

    return {
        "prompts": Prompt.objects.count(),
        "responses": Response.objects.count(),
        "demonstrations": Submission.objects.filter(kind="demonstration").count(),
        "rankings": Submission.objects.filter(kind="ranking").count(),
        "exports": Export.objects.count(),
        "model_versions": ModelVersion.objects.count(),
    }


def flags(fields: dict) -> list[str]:
    return [word for name, value in fields.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Say how long a step took."""
    started = time.monotonic()
    yield
    print(f"{time.monotonic() - started:7.1f} s  {name}", flush=True)


def start(command: list[str], folder: Path, name: str) -> subprocess.Popen:
    """Start one of Heed's commands; what it prints goes to logs/NAME.log."""
    log = (folder / "logs" / f"{name}.log").open("w")
    tether = end_with_parent(signal.SIGTERM)
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, preexec_fn=tether)
    process.log = Path(log.name)  # type: ignore[attr-defined]
    log.close()
    return process


def finish(process: subprocess.Popen) -> None:
    """Wait for a command. Raises RuntimeError with the end of its log if it failed."""
    try:
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code:
        raise RuntimeError(f"{' '.join(process.args)} ended with {code}:\n{process.log.read_text()[-3000:]}")  # type: ignore[attr-defined]


# ---- what is printed and written ------------------------------------------------------------------------------------


def print_night(night: dict) -> None:
    """Samples side by side, then the table and the gates."""
    for sample in night["samples"]:
        print(f"\nprompt  {sample['prompt']}")
        for name in ("base", "sft", "ppo"):
            print(f"  {name:>4}  {sample[name]}")
    rows = [
        ("labelers agree on", f"{night['labeler_agreement']:.1%} of pairs"),
        ("reward model, noisy validation labels", f"{night['rm']['accuracy_valid']:.1%}"),
        ("reward model, hidden preference", f"{night['rm']['gold_accuracy']:.1%}"),
        ("SFT beats base", interval(night["intervals"]["sft_vs_base"])),
        ("PPO beats SFT", interval(night["intervals"]["ppo_vs_sft"])),
    ]
    for case, rate in night["intervals"]["ppo_vs_sft"]["by_use_case"].items():
        rows.append((f"  {USE_CASES.get(case, case)}", interval(rate)))
    for title in ("gold_reward", "proxy_reward", "distinct_responses", "prompt_dependence"):
        values = "   ".join(f"{name} {value:.2f}" for name, value in night[title].items())
        rows.append((title.replace("_", " "), values))
    rows.append(("KL to what it started from, nats per response", f"{night['kl']:.2f} at β = {night['beta']}"))
    rows.append(("spread of the reward on SFT samples", f"{night['reward_std']:.2f}"))
    behind = ", ".join(f"{count} {what}" for what, count in night["labels_behind"].items() if count)
    rows.append(("labels behind the candidate", behind))
    rows.append(("promoted", f"{night['promoted'] or 'nothing'}; {night['new_ranking_tasks']} new ranking tasks"))
    print()
    for label, value in rows:
        print(f"  {label:<38} {value}")
    print()
    for gate in night["gates"]:
        print(f"  {'pass' if gate['passed'] else 'FAIL'}  {gate['name']:<36} {gate['reason']}")


def interval(rate: dict) -> str:
    return f"{rate['rate']:.1%}  [{rate['low']:.1%}, {rate['high']:.1%}], n = {rate['n']}"


def progress(nights: list[dict]) -> dict:
    """What several nights brought: per prompt, the points against round 0 of what serves after the last night minus after the first."""
    served: list[list[float]] = []
    for night in nights:
        scores = night["scores"]
        served.append(gates.points(scores["ppo" if night["promoted"] else "last"], scores["round0"]))
    rates = [intervals.share(each) for each in served]
    return {"served_vs_round0": rates, "last_minus_first": gates.paired_difference(served[-1], served[0])}


def print_progress(found: dict) -> None:
    """Night by night what serves wins against round 0, and whether the last does better than the first."""
    print()
    for number, rate in enumerate(found["served_vs_round0"], start=1):
        print(f"  what serves after night {number} beats round 0 in {interval(rate)}")
    gain = found["last_minus_first"]
    print(
        f"  the last minus the first: {gain['mean']:+.1%}  [{gain['low']:+.1%}, {gain['high']:+.1%}], n = {gain['n']}"
    )


def write_summary(folder: Path, nights: list[dict], seconds: float) -> dict:
    """summary.json: the last night's fields, and with several nights a list of them all and what they brought."""
    told = [{key: value for key, value in night.items() if key != "scores"} for night in nights]
    summary = told[-1] | {"ok": all(night["ok"] for night in nights), "seconds": round(seconds, 1)}
    if len(nights) > 1:
        summary |= {"nights": told, "progress": progress(nights)}
    contract.write_atomically(folder / "summary.json", json.dumps(summary, indent=1).encode() + b"\n")
    return summary


def scale_of(arguments: argparse.Namespace) -> Scale:
    """One night is judged on as many prompts as its gates need; several are compared with each other, on more."""
    if arguments.smoke:
        return SMOKE
    return SEVERAL_NIGHTS if arguments.nights > 1 else Scale()


def main() -> int:
    """Run the loop; the exit status says whether every gate held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=1, help="how many nights in a row")
    parser.add_argument("--seed", type=int, default=0, help="seed of prompts, people, weights and sampling")
    parser.add_argument("--smoke", action="store_true", help="tiny: every step, and models that the gates must refuse")
    arguments = parser.parse_args()
    if arguments.nights < 1:
        parser.error("--nights must be at least 1")
    folder = ROOT / "var" / ("loop-smoke" if arguments.smoke else "loop")
    (folder / "summary.json").unlink(missing_ok=True)
    started = time.monotonic()
    with step("start"):
        site = contextlib.ExitStack()
        site.enter_context(throwaway_site(folder / "site"))
    with site:
        django.setup()
        logging.getLogger("httpx").setLevel(logging.WARNING)
        loop = Loop(folder / "site", arguments.seed, scale_of(arguments), arguments.nights)
        loop.found()
        nights = []
        for number in range(1, arguments.nights + 1):
            nights.append(loop.night(number))
            print_night(nights[-1])
            loop.keep_rounds_page(nights)
    summary = write_summary(folder, nights, time.monotonic() - started)
    if len(nights) > 1:
        print_progress(summary["progress"])
    print(f"{time.monotonic() - started:7.1f} s  all")
    verdict = "every gate held" if summary["ok"] else "a gate FAILED"
    print(f"\n{verdict} in {summary['seconds']:.0f} s; the figures are in {folder / 'summary.json'}")
    return 0 if summary["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
