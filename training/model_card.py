"""A model folder's `README.md`: what the model is, from the facts of its manifest alone. Nothing is claimed that was not recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from training.report import shown

STAGES = {
    "pretrain": "a language model, trained from scratch on text",
    "sft": "a language model fine-tuned on demonstrations (step 1 of InstructGPT)",
    "rm": "a reward model: it scores a response to a prompt, and writes nothing (step 2 of InstructGPT)",
    "ppo": "a policy trained by PPO against a reward model (step 3 of InstructGPT)",
    "dpo": "a policy trained on rankings directly (DPO)",
}
COUNTED = (
    "prompts",
    "demonstrations",
    "rankings",
    "episodes",
    "comparisons",
    "documents",
    "tokens",
    "dropped_",
    "skipped_",
)
"""How names of figures begin that count data."""


def model_card(facts: Mapping[str, Any]) -> str:
    """The card, as Markdown with the front matter that Hugging Face reads. `facts`: the manifest's fields as plain values, less its
    files. Equal facts give an equal card. No licence is stated: none is known here.
    """
    metrics = facts["metrics"]
    counts = {name: value for name, value in metrics.items() if name.startswith(COUNTED) and isinstance(value, int)}
    figures = {name: value for name, value in metrics.items() if name not in counts}
    parts = [
        _front_matter(facts),
        f"# {facts['name']}",
        f"{STAGES.get(facts['stage'], 'A model')[:1].upper()}{STAGES.get(facts['stage'], 'A model')[1:]}. Made by Heed.",
        "## Made from",
        _lineage(facts),
        _prefix(facts.get("few_shot_prefix", "")),
        _table("Data", "count", counts),
        _table("Figures", "value", figures, "Taken when it was trained; later evaluations stand in the registry."),
        _table("Settings", "value", facts["config"]),
        "## Code and libraries",
        f"Code {facts['code_version']}; "
        + ", ".join(f"{name} {version}" for name, version in facts["libraries"].items() if version)
        + f"; seed {facts['seed']}.",
        "## Terms",
        "No licence is recorded here. The terms of the model it was made from and of the data in its export apply.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(facts: Mapping[str, Any]) -> str:
    tags = ["heed", facts["stage"]]
    return "\n".join(["---", "library_name: transformers", f"tags: {json.dumps(tags)}", "---"])


def _lineage(facts: Mapping[str, Any]) -> str:
    lines = [
        f"- {role}: `{parent['name']}`, manifest {parent['manifest_sha256'][:12]}"
        for role, parent in sorted(facts["parents"].items())
    ]
    if export := facts["export"]:
        lines.append(f"- labels: export `{export['name']}`, data {export['data_sha256'][:12]}")
    return "\n".join(lines) or "Nothing before it: no parent model and no labels."


def _prefix(prefix: str) -> str:
    if not prefix:
        return ""
    quoted = "\n".join(f"    {line}" for line in prefix.splitlines())
    return f"## Few-shot prefix\n\nStands before every prompt:\n\n{quoted}"


def _table(title: str, column: str, rows: Mapping[str, Any], note: str = "") -> str:
    if not rows:
        return ""
    lines = [f"| {name} | {_cell(value)} |" for name, value in sorted(rows.items())]
    head = [f"## {title}", note, f"| | {column} |\n|---|---|\n" + "\n".join(lines)]
    return "\n\n".join(part for part in head if part)


def _cell(value: Any) -> str:
    """A value in a table's cell: its own bars and line ends would end the cell."""
    return shown(value).replace("|", "\\|").replace("\n", " ")
