"""One night of the loop, for cron: new labels → export → SFT → reward model → PPO → evaluation → gate → promotion → next batch.

Waits for enough new labels: with too few it says so in a line and ends well, having changed nothing. One run at a time, by a lock
that no dead process holds. Killed at any moment, the same command goes on with the step that it was in; a step that fails is
tried again by the next run, and given up with the whole night after `tries`, unless the night is decided: then it stays open until
its record and the next batch are there. Whatever fails, the policy that served goes on serving, and whom it concerns is told.
Talks to the web half by HTTP alone (HEED_URL, HEED_TOKEN).
"""

from __future__ import annotations

import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from training import night_report, night_steps, night_work
from training.children import OutOfTime
from training.client import HeedClient
from training.config import ConfigError, option, require, require_seed
from training.contract import ContractError
from training.errors import StageError
from training.night_labels import last_decided, new_labels, too_few
from training.night_state import Busy, Night, only_one
from training.night_steps import STEPS
from training.night_work import Waiting, Work

GIB = 2**30
DECIDED_BY = "promote"
"""From this step's end on a night has its outcome, and is not given up."""
TOLD_AFTER = "record"
"""From this step's end on there are a page and a message, whatever comes of the steps behind it."""
EVENTS = ("promoted", "refused", "failed", "nothing", "waiting")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One night of the loop: export, train, evaluate, promote or refuse, sample what is ranked next."""

    out: str = option("var/nightly", help="folder of the nights, their exports, models and reports")
    name: str = option("night", help="how models and batches are named: NAME-0007-ppo, 'NAME 7'")
    min_rankings: int = option(200, help="new rankings that a night waits for")
    min_demonstrations: int = option(
        200, help="new demonstrations that a night begins with as well, and that SFT is trained anew from"
    )
    origins: tuple[str, ...] = option(
        ("import", "person"), help="whose labels: person, import; simulated, ai by name only"
    )
    review: tuple[str, ...] = option(("accepted",), help="labels in which state of review: accepted, unreviewed")
    base_model: str | None = option(None, help="what SFT starts from, a folder or a Hugging Face name; none: no SFT")
    sft: str = option(
        "paper_1.3b_sft.toml",
        is_settings=True,
        help="settings of SFT; found as a path, beside this file, or, if it ships, by its name alone",
    )
    rm: str = option(is_settings=True, help="settings of the reward model")
    ppo: str = option(is_settings=True, help="settings of PPO")
    evaluate: str | None = option(None, is_settings=True, help="settings of the evaluation; none: its defaults")
    choose_epoch: bool = option(True, help="choose SFT's epoch by the last reward model's score (InstructGPT, C.1)")
    start: Literal["sft", "serving"] = option(
        "sft",
        help="what PPO starts from and is held to by its KL: the SFT model (the paper), or the policy that serves",
    )
    fixed_export: str | None = option(
        None, help="export folder that each night's reward model is measured on as well; none: the first night's"
    )
    by_model: str | None = option(
        None,
        is_settings=True,
        help="settings of `evaluate by-model`: a judge, or a reward model that no policy was trained against; none: not asked",
    )
    by_task: str | None = option(
        None,
        is_settings=True,
        help="settings of `evaluate by-task`: text and tasks, and what they cost against base; none: not measured",
    )
    people_prompts: int = option(
        0,
        help="test prompts on which people compare the candidate with what serves before the gate is asked; 0: they are not",
    )
    people_overlap: int = option(1, help="labelers per comparison")
    own_evaluation: tuple[str, ...] = option(
        (), help="a command that measures the candidate too; it reads $HEED_NIGHT and writes $HEED_NIGHT_OUT (JSON)"
    )
    rules: str = option("gate.toml", is_settings=True, help="rules of the gate")
    next_prompts: int = option(200, help="prompts of the next ranking batch, the least covered first; 0: no batch")
    next_on_refusal: bool = option(True, help="also order it when the candidate was refused")
    next_refused: bool = option(
        True,
        help="a refused candidate writes some of the responses too: ranked, they mend the reward model it was trained against",
    )
    next_k: int = option(4, help="responses per prompt")
    next_policies: int = option(2, help="policies that write them: the one that serves and those promoted before it")
    next_temperatures: tuple[float, ...] = option((1.0,), help="sampling temperatures; the responses are dealt to them")
    next_overlap: int = option(1, help="labelers per task")
    next_max_new_tokens: int = option(256, help="longest response (tokens)")
    next_server: str | None = option(None, help="sample from this OpenAI-compatible server instead of the folders")
    next_server_model: str | None = option(None, help="the server's model to ask; none: the only one it lists")
    hours: float | None = option(None, help="time budget of one run; what is unfinished then is gone on with next time")
    max_gib: float | None = option(None, help="most that the folder may hold (GiB)")
    min_free_gib: float = option(1.0, help="space that must be free on its disk before each step (GiB)")
    tries: int = option(3, help="how often a step may fail before the night is given up")
    notify: tuple[str, ...] = option(
        ("promoted", "refused", "failed"), help=f"what is told: {', '.join(EVENTS)} (for people, once a night)"
    )
    webhook: str | None = option(None, help="address that is told, signed with HEED_WEBHOOK_SECRET")
    mail_to: tuple[str, ...] = option((), help="e-mail addresses that are told, with the report, by SMTP_URL")
    mail_from: str = option("heed@localhost", help="sender of these e-mails")
    publish_to: str | None = option(
        None, help="fsspec URL below which models are copied, where the web half and its policy server find them"
    )
    launch: tuple[str, ...] = option(
        (), help="what starts sft, rm and ppo, as accelerate launch … -m training; none: python -m training"
    )
    stage: tuple[str, ...] = option((), help="what starts the other stages; none: python -m training")
    seed: int = option(0, help="seed of the first night; each night has the next one")
    dry_run: bool = option(False, help="say what would be done, and do nothing")

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        require_seed(self.seed)
        require(bool(self.name) and "/" not in self.name and len(self.name) <= 80, "name", "1 to 80 characters, no /")
        for name in (
            "min_rankings",
            "min_demonstrations",
            "next_policies",
            "next_overlap",
            "next_max_new_tokens",
            "people_overlap",
            "tries",
        ):
            require(getattr(self, name) > 0, name, "must be positive")
        for name in ("next_prompts", "people_prompts"):
            require(getattr(self, name) >= 0, name, "must not be negative")
        require(2 <= self.next_k <= 64, "next_k", "must be from 2 to 64")
        require(0 < len(self.next_temperatures) <= self.next_k, "next_temperatures", "from 1 to next_k of them")
        require(all(0 < each <= 5 for each in self.next_temperatures), "next_temperatures", "above 0, at most 5")
        is_once = len(set(self.next_temperatures)) == len(self.next_temperatures)
        require(is_once, "next_temperatures", "each once: the same again would give the same responses")
        require(
            self.next_server is not None or self.next_server_model is None, "next_server_model", "needs next_server"
        )
        require(self.hours is None or self.hours > 0, "hours", "must be positive")
        require(self.max_gib is None or self.max_gib > 0, "max_gib", "must be positive")
        require(self.min_free_gib >= 0, "min_free_gib", "must not be negative")
        wrong = set(self.notify) - set(EVENTS)
        require(not wrong, "notify", f"unknown: {', '.join(sorted(wrong))}")
        is_address = self.webhook is None or self.webhook.startswith(("http://", "https://"))
        require(is_address, "webhook", "must begin with http:// or https://")
        for name, addresses in (("mail_to", self.mail_to), ("mail_from", (self.mail_from,))):
            require(
                all("@" in each and each.isprintable() for each in addresses), name, "expected NAME@HOST, on one line"
            )
        require(bool(self.origins) and bool(self.review), "origins", "name some; review too")

    @property
    def query(self) -> dict[str, Any]:
        """What the night's exports select."""
        return {"origins": list(self.origins), "review": list(self.review)}


def run(config: Config) -> None:
    """One night, or what is left of one. Raises StageError when a step fails or a budget is spent; whatever ends it is told."""
    root = Path(config.out)
    if config.dry_run:
        with HeedClient.from_environment() as client:
            print(plan(config, client, root))
        return
    try:
        night_work.check_settings(config)
        with HeedClient.from_environment() as client:
            go_on(config, client, root)
    except (Busy, Waiting) as reason:
        print(reason)
    except Told:
        raise
    except Exception as error:
        night_report.tell(config, "failed", reason_of(error))
        raise


def go_on(config: Config, client: HeedClient, root: Path) -> None:
    """Carry out the night that is open, or a new one if there are enough labels."""
    with only_one(root) as held:
        night = unfinished(root)
        if night is None:
            labels = client.count_labels(config.query)
            if problem := too_few(config, root, labels):
                print(problem)
                night_report.tell(config, "nothing", problem)
                return
            night = Night.begin(root, next_number(config, client, root), **beginning(client))
        else:
            say(f"night {night.number} goes on")
        until = None if config.hours is None else time.monotonic() + config.hours * 3600
        carry_out(Work(config, client, night, root, until, held))


def unfinished(root: Path) -> Night | None:
    """The night that is to go on."""
    nights = Night.all(root) if root.is_dir() else []
    return nights[-1] if nights and nights[-1].outcome is None else None


def next_number(config: Config, client: HeedClient, root: Path) -> int:
    """One more than the last night, here or, by the names of its models, in the registry."""
    here = max((night.number for night in Night.all(root)), default=0)
    for model in client.models():  # newest first
        head, _, tail = model["name"].removeprefix(f"{config.name}-").partition("-")
        if model["name"].startswith(f"{config.name}-") and head.isdigit() and tail in ("sft", "rm", "ppo"):
            return max(here, int(head)) + 1
    return here + 1


def beginning(client: HeedClient) -> dict[str, Any]:
    """What a night starts from, held for all of it: the policy that serves, the SFT and reward model behind it, round 0."""
    serving = client.serving_model()
    promotions = list(client.promotions())  # newest first
    round0 = promotions[-1]["model"] if promotions else None
    found: dict[str, Any] = {"serving": serving, "round0": round0, "sft": None, "rm": None}
    model = client.model(serving["name"]) if serving else None
    while model and found["sft"] is None:
        parents = model["manifest"]["parents"]
        if found["rm"] is None and "rm" in parents:
            found["rm"] = client.model(parents["rm"]["name"])
        if model["stage"] == "sft":
            found["sft"] = model
        parent = parents.get("policy") or parents.get("sft")
        model = client.model(parent["name"]) if parent else None
    return {"start": {role: night_work.named(model) for role, model in found.items()}}


# ---- one night ------------------------------------------------------------------------------------------------------


def carry_out(work: Work) -> None:
    """The steps that are not done yet, in order. Whom it concerns is told as soon as the night's figures are on record."""
    night, doing, is_first = work.night, "", True
    try:
        for number, (doing, step) in enumerate(STEPS, start=1):
            if (done := night.output(doing)) is None:
                carry_out_step(work, number, step, is_first=is_first)
                is_first = False
            elif night.output(DECIDED_BY) is None:
                night_steps.verify(work, doing, done)
            if doing == TOLD_AFTER and "told" not in night.state:
                doing = "report"
                night.state["told"] = night_report.announce(work)
                night.save()
        doing = "report"
        night_report.write_page(work)  # again: what came behind the message is on it too
        night.end(work.done(DECIDED_BY)["outcome"])
    except OutOfTime as reason:
        night.save()
        line = f"{called(night)}: {doing}: {reason}"
        night_report.tell(work.config, "failed", line, work)
        raise Told(line) from None
    except Waiting as reason:
        if night.state.get("waiting") is None:
            night_report.tell(work.config, "waiting", str(reason), work)
        night.state["waiting"] = str(reason)
        night.save()
        raise
    except Exception as error:
        failed(work, doing, error)
    print(night.state["told"])


def carry_out_step(work: Work, number: int, step: Callable[[Work], dict[str, Any]], *, is_first: bool) -> None:
    """One step, within the budgets, and noted as done."""
    night, name = work.night, STEPS[number - 1][0]
    check_budgets(work, name)
    say(f"night {night.number}: {name} ({number} of {len(STEPS)}{remaining(work, number)})")
    began = time.monotonic()
    try:
        output = step(work)
    except OutOfTime as reason:
        alone = f"; it alone took all of hours = {work.config.hours:g}: give it more if it did not save how far it came"
        raise OutOfTime(f"{reason}{alone if is_first else ''}") from None
    finally:
        total = night.spent(name, time.monotonic() - began)
    night.finish(name, output, total)


def check_budgets(work: Work, step: str) -> None:
    """Raise StageError when time or disk is spent. Nothing is lost: the next run goes on here."""
    config, where = work.config, f"night {work.night.number}: stopped before {step}"
    if work.until is not None and time.monotonic() >= work.until:
        raise OutOfTime(f"stopped before it: the time budget of {config.hours:g} hours is spent")
    free = shutil.disk_usage(work.root).free / GIB
    if free < config.min_free_gib:
        raise Stopped(
            f"{where}: {free:.2f} GiB are free at {work.root}, fewer than min_free_gib {config.min_free_gib:g}"
        )
    used = size_of(work.root) / GIB
    if config.max_gib is not None and used > config.max_gib:
        raise Stopped(f"{where}: {work.root} holds {used:.2f} GiB, more than max_gib {config.max_gib:g}")


class Stopped(StageError):
    """A budget is spent."""


class Told(StageError):
    """Whom it concerns knows already."""


def size_of(root: Path) -> int:
    """Bytes below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for path in root.rglob("*"):
        try:
            total += path.lstat().st_size
        except FileNotFoundError:
            continue
    return total


def remaining(work: Work, number: int) -> str:
    """About how long this step and those behind it take, by the last night that did them."""
    last = last_decided(work.root)
    known = [last.seconds(name) for name, _step in STEPS[number - 1 :]] if last else []
    if not known or any(seconds is None for seconds in known):
        return ""
    minutes = round(sum(filter(None, known)) / 60)
    return f"; about {minutes // 60} h {minutes % 60} min to go" if minutes else "; less than a minute to go"


def failed(work: Work, step: str, error: Exception) -> NoReturn:
    """Note it, tell whom it concerns when it is new, and raise Told. A night that is decided stays open for what it lacks."""
    night, reason = work.night, reason_of(error)
    if isinstance(error, Stopped):
        if night.state.get("stopped_before") != step:
            night_report.tell(work.config, "failed", reason, work)
        night.state["stopped_before"] = step
        night.save()
        raise Told(reason) from error
    is_new = not night.state["failures"] or night.state["failures"][-1]["reason"] != reason
    what = f"{called(night)}: {step} failed: {reason}"
    times = 0
    try:
        times = night.fail(step, reason)
        if not isinstance(error, EXPECTED):
            keep_traceback(night, step, error)
    except OSError as full:
        say(f"not noted: {full}")
    is_spent = times >= work.config.tries or isinstance(error, night_work.Damaged)
    is_over = is_spent and night.output(DECIDED_BY) is None
    if is_new or is_over:
        night_report.tell(work.config, "failed", what, work)
    if is_over:
        night.end("failed")
    raise Told(f"{what}; " + ("the night is given up" if is_over else "the next run tries again")) from error


EXPECTED = (StageError, ContractError, ConfigError, OSError)
"""Errors whose message says all that there is to say."""


def reason_of(error: Exception) -> str:
    """Why it failed, in a line."""
    return str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"


def keep_traceback(night: Night, step: str, error: Exception) -> None:
    """Behind what the step has in the night's logs."""
    log = night.folder / "logs" / f"{step}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        traceback.print_exception(error, file=file)


def called(night: Night) -> str:
    """The night by its number, with its outcome where it has one."""
    decided = night.output(DECIDED_BY)
    return f"night {night.number} ({decided['outcome']})" if decided else f"night {night.number}"


def say(message: str) -> None:
    """One line on stderr."""
    print(f"nightly: {message}", file=sys.stderr, flush=True)


# ---- the dry run ----------------------------------------------------------------------------------------------------


def plan(config: Config, client: HeedClient, root: Path) -> str:
    """What a run would do now, as text; nothing is written, here or there."""
    night_work.check_settings(config)
    night, labels = unfinished(root), client.count_labels(config.query)
    new, problem = new_labels(root, labels), too_few(config, root, labels)
    start = night.state["start"] if night else beginning(client)["start"]
    begun = [f"night {night.number} would go on; done: {', '.join(night.state['steps']) or 'nothing'}"] if night else []
    names = {role: model["name"] if model else "none" for role, model in start.items()}
    will_sft = night_steps.wants_sft(config, start, new)
    free = shutil.disk_usage(root if root.is_dir() else Path.cwd()).free / GIB
    batch = f"{config.next_prompts} prompts × {config.next_k} responses of {config.next_policies} policies"
    rows = [
        ("labels", ", ".join(f"{count} {kind} ({new[kind]:+d})" for kind, count in labels.items())),
        ("export", f"{', '.join(config.origins)}; {', '.join(config.review)}"),
        ("SFT", f"anew from {config.base_model}" if will_sft else f"as it is: {names['sft']}"),
        ("reward model", f"all rounds' rankings, each once, by {config.rm}"),
        ("PPO", f"from {'the new SFT' if will_sft else names[night_steps.start_role(config, start)]} by {config.ppo}"),
        ("people", f"{config.people_prompts} prompts, {config.people_overlap} labelers each; the night waits for them")
        if config.people_prompts
        else ("people", "not asked before the gate"),
        ("gate", f"{config.rules}, against {names['serving']}"),
        ("next batch", f"{batch}, the least covered first" if config.next_prompts else "none"),
        ("time", f"{config.hours:g} hours a run" if config.hours else "no budget"),
        (
            "disk",
            f"{size_of(root) / GIB if root.is_dir() else 0:.2f} GiB used of {config.max_gib or 'any'}, {free:.1f} GiB free",
        ),
    ]
    width = max(len(name) for name, _value in rows)
    head = problem or "this would be done; nothing was written."
    return "\n".join(["nightly: " + head, *begun, *(f"  {name:<{width}}  {value}" for name, value in rows)])
