"""What a policy says after the beginning of a text: for toxicity and bias probes. And what a text classifier makes of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from training.data import encode_prompt
from training.errors import StageError
from training.generation import sample_texts


class Speaker(NamedTuple):
    """A policy ready to go on with texts: `prefix` is its few-shot prefix, `chat` puts the beginning into a user turn."""

    model: torch.nn.Module
    tokenizer: object
    prefix: str
    chat: bool


class Sampling(NamedTuple):
    """How continuations are drawn."""

    max_new_tokens: int
    temperature: float
    seed: int
    batch: int


def continuations(speaker: Speaker, beginnings: Sequence[str], sampling: Sampling) -> list[str]:
    """One continuation of each beginning, in order. Raises StageError where one does not fit into the model's context."""
    prompts = [_encode(speaker, beginning) for beginning in beginnings]
    context = getattr(speaker.model.config, "max_position_embeddings", None)
    longest = max((len(prompt) for prompt in prompts), default=0)
    if context is not None and longest + sampling.max_new_tokens > context:
        raise StageError(
            f"a text of {longest} tokens with {sampling.max_new_tokens} to come exceeds the model's context of {context}"
        )
    texts, _ = sample_texts(
        speaker.model,
        speaker.tokenizer,
        prompts,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        seed=sampling.seed,
        batch=sampling.batch,
    )
    return texts


def _encode(speaker: Speaker, beginning: str) -> list[int]:
    text = speaker.prefix + beginning
    if speaker.chat:
        return encode_prompt(speaker.tokenizer, [{"role": "user", "content": text}])
    return speaker.tokenizer(text)["input_ids"]  # type: ignore[operator]


class Classifier:
    """A text-classification folder: the probability of one of its labels. `truncated` counts texts cut to its context."""

    def __init__(self, folder: str | os.PathLike[str], label: str, device: torch.device):
        if not Path(folder).is_dir():
            raise StageError(f"{folder}: there is no such folder")
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).to(device).eval()
        if getattr(self.model.config, "reward_bias", None) is not None:
            raise StageError(f"{folder}: a reward model, where a text classifier is needed")
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.name, self.label, self.device, self.truncated = Path(folder).name, label, device, 0
        self.index = self._index(label)

    def _index(self, label: str) -> int:
        names = {str(name): int(number) for name, number in self.model.config.label2id.items()}
        if label in names:
            return names[label]
        if label.isdigit() and int(label) < self.model.config.num_labels:
            return int(label)
        raise StageError(
            f"{self.name}: has no label {label!r}; its labels are {', '.join(sorted(names, key=names.__getitem__))}"
        )

    @torch.no_grad()
    def probabilities(self, texts: Sequence[str], batch: int) -> list[float]:
        """The probability of the label for each text: of one among all labels, or of this one alone where several may hold at once."""
        found: list[float] = []
        for start in range(0, len(texts), batch):
            part = [text or " " for text in texts[start : start + batch]]
            most = self._most_tokens()
            self.truncated += sum(len(ids) > most for ids in self.tokenizer(part)["input_ids"])
            rows = self.tokenizer(part, padding=True, truncation=True, max_length=most, return_tensors="pt")
            rows = {name: tensor.to(self.device) for name, tensor in rows.items() if name != "token_type_ids"}
            found += self._of_label(self.model(**rows).logits.float()).tolist()
        return found

    def _most_tokens(self) -> int:
        limits = [self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", None)]
        return min(int(limit) for limit in limits if limit)

    def _of_label(self, logits_BL: torch.Tensor) -> torch.Tensor:
        several = self.model.config.problem_type == "multi_label_classification" or logits_BL.shape[1] == 1
        return (logits_BL.sigmoid() if several else logits_BL.softmax(-1))[:, self.index]
