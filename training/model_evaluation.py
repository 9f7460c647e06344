"""Evaluation by models: a reward model and a judge compare a candidate's answers with others' on the same prompts; nothing is trained.

`python -m training evaluate by-model`. The figures are marked `by: "model"` and never people's; how often reward model and judge agree
with people stands beside them.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training import answers, corpus, cpu, intervals, models, rm
from training.answers import Answers, Messages
from training.client import HeedClient
from training.config import option, require, require_out, require_seed, to_dict
from training.contract import Export, read_export, write_atomically
from training.data import LengthLimits, OnTooLong, encode_dialogue
from training.errors import StageError
from training.human_agreement import check_there_are, judge_agreement, read_people, reward_agreement
from training.judge import Judge, Kept, Pair, tally
from training.lineage import check_not_trained_against, lineage_of
from training.openai_server import OpenAIServer
from training.report import write_evaluation

METRICS = ("by", "against", "judge", "reward", "others", "agreement", "counts")
"""What of the result is recorded as the figures of the evaluation."""
NOT_SETTINGS = ("out", "push", "device", "threads", "batch_size", "exports")
"""What decides nothing about the figures: a run elsewhere records the same evaluation."""


@dataclass(frozen=True)
class Config:
    """Let a reward model, a judge, or both compare a candidate with other models on the same prompts."""

    out: str = option(help="JSON file to write (replaced); verdicts are kept beside it, in OUT.verdicts.jsonl")
    policy: str = option(help="the candidate: a policy folder")
    against: tuple[str, ...] = option(
        (), help="others, comma-separated: policy folders, or files of one model's answers as `sample` writes them"
    )
    export: str | None = option(None, help="export folder whose prompts are answered (with against)")
    split: str = option("test", help="split whose prompts are answered: train, valid or test")
    max_prompts: int = option(500, help="prompts answered, at most")
    temperature: float = option(1.0, help="sampling temperature of the answers")
    response_tokens: int = option(1024, help="longest answer, EOS included (tokens)")
    prompt_tokens: int = option(1024, help="longest prompt (tokens)")
    on_too_long: OnTooLong = option("raise", help="what to do with a prompt past this limit, for any of the models")
    reward_model: str | None = option(None, help="reward model folder that no policy here was trained against")
    allow_trained_against: bool = option(
        False, help="take a reward model that a policy here was trained against; the result says so"
    )
    judge: str | None = option(None, help="address of an OpenAI-compatible server, e.g. http://127.0.0.1:8001")
    judge_model: str | None = option(None, help="the server's model to ask; default: the only one it lists")
    judge_prompt: str | None = option(None, help="text file in place of the judge's prompt that ships")
    judge_tokens: int = option(512, help="longest answer of the judge (tokens)")
    judge_tries: int = option(3, help="how often one question is asked until the answer holds a verdict")
    people_export: str | None = option(None, help="export folder with people's rankings to agree with")
    people_batch: str | None = option(
        None,
        help="instead: a batch of the web half whose rankings to agree with; its export is built (HEED_URL, HEED_TOKEN)",
    )
    people_split: str = option("all", help="split whose rankings count: all, train, valid or test")
    people_origins: tuple[str, ...] = option(
        ("person", "import"), help="whose rankings count: person, import, simulated, ai"
    )
    people_pairs: int = option(200, help="comparisons of people that the judge is asked about, at most")
    exports: str = option("var/exports", help="where the export of people_batch is fetched to")
    name: str = option("by model", help="name of the evaluation in the registry")
    push: bool = option(False, help="record the figures in the registry (HEED_URL, HEED_TOKEN)")
    batch_size: int = option(256, help="rows per forward pass")
    seed: int = option(0, help="seed of sampling, and of the draw of people's comparisons")
    device: str = option("auto", help="auto, cpu or cuda")
    threads: int = option(0, help="CPU threads of torch; 0: its default")

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        require_out(self.out, "file")
        require_seed(self.seed)
        require(bool(self.reward_model or self.judge), "judge", "give a reward_model, a judge, or both")
        asks_people = self.people_export is not None or self.people_batch is not None
        require(bool(self.against) or asks_people, "against", "name another model, or people's rankings to agree with")
        require(
            not self.against or self.export is not None, "export", "against needs an export, whose prompts are answered"
        )
        require(not (self.people_export and self.people_batch), "people_batch", "give it or people_export, not both")
        require(self.split in ("train", "valid", "test"), "split", "must be train, valid or test")
        require(
            self.people_split in ("all", "train", "valid", "test"), "people_split", "must be all, train, valid or test"
        )
        require(self.temperature >= 0, "temperature", "must not be negative")
        require(0 < len(self.name) <= 100, "name", "must have 1 to 100 characters")
        for field in ("max_prompts", "batch_size", "prompt_tokens", "response_tokens", "judge_tokens", "judge_tries"):
            require(getattr(self, field) > 0, field, "must be positive")

    @property
    def limits(self) -> LengthLimits:
        """The length limits as data.py takes them."""
        return LengthLimits(self.prompt_tokens, self.response_tokens, self.on_too_long)


def run(config: Config) -> Path:
    """Evaluate, write the JSON file and its page (.html), record it if asked. Returns the file."""
    result = evaluate(config)
    out = Path(config.out)
    write_atomically(out, json.dumps(result, indent=2).encode() + b"\n")
    write_evaluation(out.with_suffix(".html"), result)
    if config.push:
        record(config.name, result, METRICS, NOT_SETTINGS)
    return out


def record(name: str, result: dict[str, Any], names: Sequence[str], not_settings: Sequence[str]) -> None:
    """Record a result as one evaluation of its model. Safe to repeat: equal figures are one."""
    metrics = {key: result[key] for key in names if key in result}
    settings = {key: value for key, value in result["config"].items() if key not in not_settings}
    with HeedClient.from_environment() as client:
        client.record_evaluation(result["model"], name=name, metrics=metrics, config=settings)
        print(f"recorded {name!r} of {result['model']} at {client.url}", file=sys.stderr)


def evaluate(config: Config) -> dict[str, Any]:
    """All figures, as docs/training.md names them. Verdicts of a judge are kept in OUT.verdicts.jsonl as they come in."""
    cpu.use(config.threads)
    device = models.pick_device(config.device)
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    trained_against = _check_lineage(config)
    judge = _judge(config)
    counts: Counter[str] = Counter()
    result: dict[str, Any] = {"by": "model", "model": answers.name_of(config.policy)}
    scorer = _Scorer(config, device) if config.reward_model else None
    if config.against and config.export:
        export = read_export(config.export)
        prompts = answers.prompts_of(export, config.split, config.max_prompts)
        prompts = answers.fitting([config.policy, *config.against], prompts, config.limits, counts)
        counts["prompts"] = len(prompts)
        mine, others = _all_answers(config, prompts, device, trained_against)
        compared = {theirs.name: _compare(prompts, mine, theirs, scorer, judge, trained_against) for theirs in others}
        first, *rest = compared
        result |= {"against": list(compared), **compared[first]}
        if rest:
            result["others"] = {name: compared[name] for name in rest}
    if people := _people_export(config):
        result["agreement"] = _agreement(config, people, scorer, judge, device)
    result["counts"] = dict(counts)
    return result | _facts(config)


def _facts(config: Config) -> dict[str, Any]:
    """Which models, which export, which settings."""
    folders = [config.policy, *config.against, *([config.reward_model] if config.reward_model else [])]
    refs = {answers.name_of(one): models.parent_of(one).manifest_sha256 for one in folders if not answers.is_file(one)}
    export = read_export(config.export).ref if config.export else None
    return {
        "models": refs,
        "export": {"name": export.name, "data_sha256": export.data_sha256} if export else None,
        "config": to_dict(config),
    }


def _check_lineage(config: Config) -> list[str]:
    """Names of the policies that were trained against the reward model (only where that is allowed)."""
    if config.reward_model is None:
        return []
    folders = [one for one in (config.policy, *config.against) if not answers.is_file(one)]
    found = []
    for folder in folders:
        if check_not_trained_against(folder, config.reward_model, allowed=config.allow_trained_against):
            found.append(answers.name_of(folder))
        if unread := [parent.name for parent in lineage_of(folder).unread]:
            print(f"{folder}: lineage known only up to {', '.join(unread)}: no such folder beside it", file=sys.stderr)
    return found


def _judge(config: Config) -> Judge | None:
    if config.judge is None:
        return None
    template = corpus.read_text(config.judge_prompt) if config.judge_prompt else None
    server = OpenAIServer.connect(config.judge, config.judge_model)
    kept = Kept(config.out + ".verdicts.jsonl")
    return Judge(server, kept, template=template, tries=config.judge_tries, max_tokens=config.judge_tokens)


def _all_answers(
    config: Config, prompts: list[Messages], device: torch.device, trained_against: list[str]
) -> tuple[Answers, list[Answers]]:
    sources = [config.policy, *config.against]
    found = [
        answers.answers_of(
            source,
            prompts,
            max_new_tokens=config.response_tokens,
            temperature=config.temperature,
            seed=config.seed,
            batch=config.batch_size,
            device=device,
        )
        for source in sources
    ]
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise StageError(f"against: two models of one name among {', '.join(names)}")
    for one in found:
        if config.reward_model and answers.name_of(config.reward_model) in one.chosen_by:
            if not config.allow_trained_against:
                raise StageError(f"{one.name}: its answers were chosen by the reward model that would judge them")
            trained_against.append(one.name)
    return found[0], found[1:]


class _Scorer:
    """A reward model with its tokenizer."""

    def __init__(self, config: Config, device: torch.device):
        assert config.reward_model is not None  # noqa: S101 the caller asks only then
        self.name, self.batch, self.device = answers.name_of(config.reward_model), config.batch_size, device
        self.model = models.load_reward_model(config.reward_model, device)
        self.tokenizer = models.load_tokenizer(config.reward_model)
        self._scores: dict[str, list[float]] = {}

    def rewards(self, prompts: Sequence[Messages], given: Answers) -> list[float]:
        """The reward of each answer; a text that was cut off has no EOS. Raises StageError past the model's context."""
        if given.name not in self._scores:
            examples = [
                encode_dialogue(self.tokenizer, prompt, text, finished)
                for prompt, text, finished in zip(prompts, given.texts, given.finished, strict=True)
            ]
            context = getattr(self.model.config, "max_position_embeddings", None)
            longest = max(len(example.ids) for example in examples)
            if context is not None and longest > context:
                raise StageError(
                    f"{given.name}: an answer with its prompt is {longest} tokens, past the context of {context} of {self.name}"
                )
            scores_N = rm.score_all(self.model, examples, self.tokenizer.pad_token_id, self.batch, self.device)
            self._scores[given.name] = scores_N.tolist()
        return self._scores[given.name]


def _compare(
    prompts: list[Messages],
    mine: Answers,
    theirs: Answers,
    scorer: _Scorer | None,
    judge: Judge | None,
    trained_against: list[str],
) -> dict[str, Any]:
    """{"reward", "judge"}: the candidate's answers against one other's, prompt by prompt."""
    found: dict[str, Any] = {}
    if scorer is not None:
        found["reward"] = reward_figures(scorer.rewards(prompts, mine), scorer.rewards(prompts, theirs))
        found["reward"] |= {"model": scorer.name, "trained_against": trained_against}
    if judge is not None:
        numbered = enumerate(zip(prompts, mine.texts, theirs.texts, strict=True))
        pairs = [Pair(prompt, ours, other, str(number)) for number, (prompt, ours, other) in numbered]
        found["judge"] = tally(judge.verdicts(pairs)) | {"model": judge.server.model}
    return found


def reward_figures(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """How often ours scores higher on the same prompt (a tie is half a win), and by how much; both paired by prompt."""
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    won = intervals.share([0.5 if gap == 0 else float(gap > 0) for gap in gaps])
    difference = intervals.mean(gaps)
    return {
        "win_rate": won["rate"],
        "low": won["low"],
        "high": won["high"],
        "n": won["n"],
        "ties": sum(gap == 0 for gap in gaps),
        "difference": difference["mean"],
        "difference_low": difference["low"],
        "difference_high": difference["high"],
        "mean_reward": intervals.mean(ours)["mean"],
        "mean_reward_of_other": intervals.mean(theirs)["mean"],
    }


def _people_export(config: Config) -> Export | None:
    """The export with people's rankings, built and fetched where a batch is named."""
    if config.people_export:
        return read_export(config.people_export)
    if config.people_batch is None:
        return None
    with HeedClient.from_environment() as client:
        built = client.build_export({"batches": [config.people_batch]})
        return read_export(client.fetch_export(built["name"], config.exports))


def _agreement(
    config: Config, export: Export, scorer: _Scorer | None, judge: Judge | None, device: torch.device
) -> dict[str, Any]:
    """{"reward", "judge"}: how often each agrees with people's comparisons that are no ties."""
    people = read_people(export, config.people_split, config.people_origins)
    check_there_are(people, export, config.people_split)
    found: dict[str, Any] = {}
    if scorer is not None:
        batch = max(1, config.batch_size // 4)
        found["reward"] = reward_agreement(scorer.model, scorer.tokenizer, people, batch, device)
    if judge is not None:
        found["judge"] = judge_agreement(judge, people, config.people_pairs, config.seed)
    return {who: {"of": export.ref.name, **figures} for who, figures in found.items()}
