"""Evaluation by tasks: perplexity on held-out text, tasks, toxicity, bias probes, and what was lost against the base model.

`python -m training evaluate by-task`. Nothing is trained, and nothing is fetched unless a task of the harness is asked for by name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training import answers, bias_probes, cpu, harness, models, perplexity, toxicity
from training.alignment_tax import Measured, tax
from training.config import option, require, require_out, require_seed, to_dict
from training.continuations import Classifier, Sampling, Speaker
from training.contract import write_atomically
from training.errors import StageError
from training.model_evaluation import record
from training.report import write_evaluation

METRICS = ("by", "perplexity", "tasks", "toxicity", "bias", "tax", "compared")
"""What of the result is recorded as the figures of the evaluation."""
NOT_SETTINGS = ("out", "push", "device", "threads", "batch_size")
SHIPPED_TASKS = Path(__file__).with_name("tasks")


@dataclass(frozen=True)
class Config:
    """Measure a policy on text and tasks, and against the base model that it was made from."""

    out: str = option(help="JSON file to write (replaced); its page goes beside it, with .html")
    policy: str = option(help="policy folder to measure")
    base: str | None = option(None, help="model folder that the others are compared with: what did alignment cost?")
    others: tuple[str, ...] = option((), help="further model folders to compare with base, comma-separated (SFT, say)")
    text: str | None = option(None, help="held-out text: a .txt, .md or .jsonl file, a folder of them, or tinyworld")
    max_documents: int = option(1000, help="documents of it, at most")
    context: int = option(0, help="longest window of a document (tokens); 0: what the model takes, at most 2048")
    tasks: tuple[str, ...] = option(
        (), help="YAML files or folders of tasks, tiny_facts, paper, or names that lm-evaluation-harness knows"
    )
    shots: tuple[int, ...] = option((0, 1, 5), help="worked examples before each item")
    max_items: int | None = option(None, help="items of each task, at most; default: all")
    toxicity: str | None = option(None, help="text-classification folder that scores continuations")
    toxicity_label: str = option("toxic", help="its label that counts, by name or number")
    toxicity_prompts: str | None = option(
        None, help="beginnings to go on with: lines of a .txt file, or prompt of a .jsonl"
    )
    toxicity_threshold: float = option(0.5, help="score from which a continuation counts")
    max_prompts: int = option(500, help="beginnings, at most")
    samples: int = option(5, help="continuations of each beginning (toxicity)")
    bias: str | None = option(None, help="bias probes: a TOML file as bias_probes.toml, or shipped for that one")
    bias_samples: int = option(50, help="continuations of each template for each group")
    sentiment: str | None = option(None, help="text-classification folder that rates what is said of each group")
    sentiment_label: str = option("POSITIVE", help="its label that counts, by name or number")
    new_tokens: int = option(32, help="longest continuation (tokens)")
    temperature: float = option(1.0, help="sampling temperature of continuations")
    chat: bool = option(False, help="put tasks and beginnings into the model's chat form, as a user's turn")
    name: str = option("by task", help="name of the evaluation in the registry")
    push: bool = option(False, help="record the figures in the registry (HEED_URL, HEED_TOKEN)")
    batch_size: int = option(32, help="rows per forward pass")
    seed: int = option(0, help="seed of sampling and of the draw of worked examples")
    device: str = option("auto", help="auto, cpu or cuda")
    threads: int = option(0, help="CPU threads of torch; 0: its default")

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        require_out(self.out, "file")
        require_seed(self.seed)
        asked = (self.text, self.tasks, self.toxicity, self.bias)
        require(any(asked), "text", "give text, tasks, toxicity, bias, or several of them")
        require(not self.others or self.base is not None, "base", "others are compared with a base")
        require((self.toxicity is None) == (self.toxicity_prompts is None), "toxicity_prompts", "goes with toxicity")
        require(self.sentiment is None or self.bias is not None, "sentiment", "goes with bias")
        require(bool(self.shots) and min(self.shots) >= 0, "shots", "must not be negative, and at least one")
        require(self.max_items is None or self.max_items > 0, "max_items", "must be positive")
        require(self.context >= 0 and self.context != 1, "context", "must be 0, or at least 2 tokens")
        require(self.temperature > 0, "temperature", "must be positive")
        require(0 < len(self.name) <= 100, "name", "must have 1 to 100 characters")
        for field in ("max_documents", "max_prompts", "samples", "bias_samples", "new_tokens", "batch_size"):
            require(getattr(self, field) > 0, field, "must be positive")


def run(config: Config) -> Path:
    """Evaluate, write the JSON file and its page (.html), record it if asked. Returns the file."""
    result = evaluate(config)
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(result, indent=2).encode() + b"\n")
    write_evaluation(out.with_suffix(".html"), result)
    if config.push:
        record(config.name, result, METRICS, NOT_SETTINGS)
    return out


def evaluate(config: Config) -> dict[str, Any]:
    """All figures, as docs/training.md names them. Of base and others what the policy is compared in; bias of the policy alone."""
    cpu.use(config.threads)
    device = models.pick_device(config.device)
    names = harness.expand([_shipped(name) for name in config.tasks])
    if names:
        harness.check_installed()  # before anything loads
    texts = perplexity.read_texts(config.text, config.max_documents) if config.text else []
    folders = [config.policy, *([config.base] if config.base else []), *config.others]
    called = [answers.name_of(folder) for folder in folders]
    if len(set(called)) < len(called):
        raise StageError(f"base, others: two models of one name among {', '.join(called)}")
    measured, found = [], {}
    for folder, name in zip(folders, called, strict=True):
        one, figures = _measure(config, folder, name, texts, names, device)
        measured.append(one)
        found[name] = figures
    result: dict[str, Any] = {"by": "task", "model": called[0], **found.pop(called[0])}
    if config.base:
        mine, base, *others = measured
        result["tax"] = tax(base, [*others, mine])
        result["compared"] = found
    refs = {name: models.parent_of(folder).manifest_sha256 for name, folder in zip(called, folders, strict=True)}
    return result | {"models": refs, "config": to_dict(config)}


def _shipped(name: str) -> str:
    """A task that ships here by its name alone."""
    path = SHIPPED_TASKS / f"{name}.yaml"
    return str(path) if path.exists() else name


def _measure(
    config: Config, folder: str, name: str, texts: Sequence[str], names: Sequence[str], device: torch.device
) -> tuple[Measured, dict[str, Any]]:
    """One model's measurements, and its figures. The model is let go of when this returns."""
    model, tokenizer = models.load_policy(folder, device), models.load_tokenizer(folder)
    one, figures = Measured(name), {}
    prefix = answers.few_shot_prefix(folder)
    if texts:
        context = _context(model, config.context)
        one.losses = perplexity.document_losses(
            model, tokenizer, texts, context=context, batch=config.batch_size, device=device
        )
        figures["perplexity"] = perplexity.figures(one.losses)
    if names:
        one.tasks = harness.measure(
            model,
            tokenizer,
            names,
            shots=config.shots,
            limit=config.max_items,
            batch=config.batch_size,
            chat=config.chat,
            prefix=prefix,
            seed=config.seed,
        )
        figures["tasks"] = {result.key: result.figures() for result in one.tasks}
    speaker = Speaker(model, tokenizer, prefix, config.chat)
    if config.toxicity and config.toxicity_prompts:
        figures["toxicity"], one.toxicity = _toxicity(config, speaker, device)
    if config.bias and folder == config.policy:
        figures["bias"] = _bias(config, speaker, device)
    return one, figures


def _context(model, wanted: int) -> int:
    own = getattr(model.config, "max_position_embeddings", None) or 2048
    if wanted > own:
        raise StageError(f"context: {wanted} tokens, and the model takes {own}")
    return wanted or min(own, 2048)


def _sampling(config: Config) -> Sampling:
    return Sampling(config.new_tokens, config.temperature, config.seed, config.batch_size)


def _toxicity(config: Config, speaker: Speaker, device: torch.device) -> tuple[dict[str, Any], list[float]]:
    assert config.toxicity and config.toxicity_prompts  # noqa: S101 the caller asks only then
    classifier = Classifier(config.toxicity, config.toxicity_label, device)
    beginnings = toxicity.read_beginnings(config.toxicity_prompts, config.max_prompts)
    figures, means = toxicity.toxicity(
        speaker,
        beginnings,
        classifier,
        _sampling(config),
        samples=config.samples,
        threshold=config.toxicity_threshold,
    )
    return figures | {"truncated": classifier.truncated}, means


def _bias(config: Config, speaker: Speaker, device: torch.device) -> dict[str, Any]:
    assert config.bias  # noqa: S101 the caller asks only then
    probes, left_out = bias_probes.read_probes(bias_probes.SHIPPED if config.bias == "shipped" else config.bias)
    sentiment = Classifier(config.sentiment, config.sentiment_label, device) if config.sentiment else None
    return {
        probe.name: bias_probes.measure(
            speaker, probe, left_out, _sampling(config), samples=config.bias_samples, sentiment=sentiment
        )
        for probe in probes
    }
