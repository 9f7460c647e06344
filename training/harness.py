"""Tasks through lm-evaluation-harness: local ones (a YAML file in its format beside its data), and its own by name where there is network.

The harness is an extra (`pip install -r training/tasks-requirements.txt`): it brings some forty packages and ten thousand task files that
nothing else here needs. A local task's YAML may name Python files of its own (`!function`), which are then run: take only what you trust.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import intervals
from training.errors import StageError

PAPER = Path(__file__).with_name("paper_tasks.toml")
EXTRA = "training/tasks-requirements.txt"
PREFERRED = ("acc", "exact_match", "em", "f1")
"""The metric that stands for a task, if it has one of these; else its first."""
ACCURACIES = ("acc", "acc_norm", "exact_match", "em")


@dataclass(frozen=True)
class TaskResult:
    """One task with so many shots: its metric, and that of each item where the metric is their mean, in the task's order."""

    task: str
    shots: int
    metric: str
    score: float
    higher_is_better: bool
    n: int
    items: list[float] | None
    truncated: int

    @property
    def key(self) -> str:
        """How results name it."""
        return f"{self.task}_{self.shots}shot"

    def figures(self) -> dict[str, Any]:
        """{"accuracy" or "score", "stderr", "low", "high", "n", "shots", …}; Wilson's interval for an accuracy, a normal one else."""
        is_share = self.items is not None and all(0 <= item <= 1 for item in self.items)
        span: dict[str, Any] = intervals.mean(self.items) if self.items else {"low": None, "high": None}
        stderr = None if span["low"] is None else (span["high"] - span["mean"]) / intervals.Z
        if is_share and self.items:
            span = intervals.share(self.items)
        name = "accuracy" if self.metric in ACCURACIES else "score"
        return {
            name: self.score,
            "stderr": stderr,
            "low": span["low"],
            "high": span["high"],
            "n": self.n,
            "shots": self.shots,
            "task": self.task,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "truncated": self.truncated,
        }


def check_installed() -> None:
    """Raise StageError, saying what to install, where the harness is not there."""
    if importlib.util.find_spec("lm_eval") is None:
        raise StageError(f"tasks need lm-evaluation-harness: pip install -r {EXTRA}")
    for name in ("lm_eval", "lm-eval"):
        logging.getLogger(name).setLevel(logging.ERROR)  # it warns of every setting that is as we want it


def expand(names: Sequence[str]) -> list[str]:
    """Task names, with "paper" as the paper's public tasks that the harness has, and a folder as its YAML files."""
    found: list[str] = []
    for name in names:
        if name == "paper":
            found += [task for row in paper_tasks() for task in row["lm_eval"]]
        elif Path(name).is_dir():
            found += sorted(str(file) for file in Path(name).glob("*.yaml"))
        else:
            found.append(name)
    return found


def paper_tasks() -> list[dict[str, Any]]:
    """The registry file of the paper's public tasks: {paper, measures, lm_eval, note}."""
    return tomllib.loads(PAPER.read_text(encoding="utf-8"))["task"]


def measure(
    model,
    tokenizer,
    names: Sequence[str],
    *,
    shots: Sequence[int],
    limit: int | None,
    batch: int,
    chat: bool,
    prefix: str,
    seed: int,
) -> list[TaskResult]:
    """Each task with each number of shots. `prefix` stands before everything; `chat` puts prompts into the model's chat form.

    The same seed draws the same examples for every model. A task that fixes 0 shots (its prompt holds its own) runs with 0 alone.
    Raises StageError naming the task.
    """
    check_installed()
    from lm_eval.models.huggingface import HFLM

    reader = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
    results = []
    with tempfile.TemporaryDirectory(prefix="heed-tasks-") as cache:
        for count in shots:
            for name in names:
                for task in _load(name, cache):
                    if count == 0 or task.get_config("num_fewshot") != 0:
                        results.append(_run(reader, task, count, limit=limit, chat=chat, prefix=prefix, seed=seed))
    return results


def _load(name: str, cache: str) -> Iterator[Any]:
    """The task or tasks of a name. What the harness raises here is about the task, whatever its kind."""
    try:
        if Path(name).suffix in (".yaml", ".yml"):
            yield _local(Path(name), cache)
        else:
            from lm_eval.tasks import TaskManager

            yield from TaskManager().load([name])["tasks"].values()
    except Exception as error:
        raise StageError(f"task {name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


def _local(path: Path, cache: str) -> Any:
    """A task of a YAML file; its data files are looked for beside it, and nothing is fetched."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(path)
    given = dict(config.get("dataset_kwargs") or {})
    if "data_files" in given:
        given = {**given, "data_files": _beside(path.parent, given["data_files"]), "cache_dir": cache}
    return ConfigurableTask(config={**config, "dataset_kwargs": given})


def _beside(folder: Path, files: Any) -> Any:
    if isinstance(files, dict):
        return {split: _beside(folder, own) for split, own in files.items()}
    if isinstance(files, list):
        return [_beside(folder, one) for one in files]
    return str((folder / files).resolve())


def _run(reader, task, shots: int, *, limit: int | None, chat: bool, prefix: str, seed: int) -> TaskResult:
    from lm_eval.evaluator import evaluate

    name = task.get_config("task")
    task.set_config("num_fewshot", shots)
    task.set_config("description", prefix + (task.get_config("description") or ""))
    task.set_fewshot_seed(seed)
    try:
        found = evaluate(
            lm=reader,
            task_dict={"tasks": {name: task}},
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
    except Exception as error:
        raise StageError(
            f"task {name}, {shots} shots: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    return _result(reader, name, shots, found)


def _result(reader, name: str, shots: int, found: dict[str, Any]) -> TaskResult:
    scores = {
        metric: (value, kind)
        for key, value in found["results"][name].items()
        for metric, _, kind in [key.partition(",")]
        if kind and not metric.endswith("_stderr") and isinstance(value, int | float)
    }
    if not scores:
        raise StageError(f"task {name}: gives no figure")
    metric = next((one for one in PREFERRED if one in scores), next(iter(scores)))
    score, kind = scores[metric]
    rows = [row for row in found["samples"][name] if row["filter"] == kind]
    values = [row.get(metric) for row in rows]
    numeric = all(isinstance(value, int | float) for value in values)
    items = [float(value) for value in values] if numeric else None
    if items is not None and abs(sum(items) / len(items) - score) > 1e-9:
        items = None  # a metric of the whole, such as BLEU: its items' mean is something else
    truncated = sum(_is_too_long(reader, arguments) for row in rows for arguments in row["arguments"])
    higher = found.get("higher_is_better", {}).get(name, {}).get(metric)
    return TaskResult(name, shots, metric, float(score), higher is not False, len(rows), items, truncated)


def _is_too_long(reader, arguments: Sequence[Any]) -> bool:
    """Whether the harness cut this request to the model's context: it does so without a word."""
    text = "".join(part for part in arguments if isinstance(part, str))
    return len(reader.tok_encode(text)) > reader.max_length
