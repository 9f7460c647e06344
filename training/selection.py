"""Choosing a checkpoint by reward-model score on validation prompts (InstructGPT, appendix C.1).

Validation loss overfits after one epoch while the score still rises, so the paper keeps the epoch that scores best.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch

from training import models, parallel, processes
from training.adapters import Adapter
from training.errors import StageError
from training.generation import end_scores, sample


class Judge:
    """A reward model, the prompts it judges on, and how they are answered: the same seed each time it is asked."""

    def __init__(
        self,
        folder: str,
        tokenizer,
        prompts: Sequence[list[int]],
        *,
        response_tokens: int,
        temperature: float,
        seed: int,
        batch: int,
        device: torch.device,
    ):
        if models.load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
            raise StageError(f"{folder}: its tokenizer differs from the policy's, so it cannot score its tokens")
        if not prompts:
            raise StageError(
                "a reward model was given to choose a checkpoint by, but the export has no validation prompts"
            )
        self.reward_model = models.load_reward_model(folder, device).requires_grad_(False)
        self.tokenizer, self.prompts = tokenizer, prompts
        self.response_tokens, self.temperature, self.seed, self.batch = response_tokens, temperature, seed, batch

    @torch.no_grad()
    def score(self, policy) -> float:
        """Mean score of one sampled response per prompt. Draws nothing from torch's global generators.

        Of several processes each answers a share of the prompts, with the random numbers that these have among all.
        """
        was_training, total = policy.training, 0.0
        for number, start in enumerate(range(0, len(self.prompts), self.batch)):
            prompts = self.prompts[start : start + self.batch]
            mine = processes.share([len(prompt) for prompt in prompts])
            if not mine:
                continue
            rollout = sample(
                policy,
                prompts,
                rows=mine,
                eos_id=self.tokenizer.eos_token_id,
                pad_id=self.tokenizer.pad_token_id,
                max_new_tokens=self.response_tokens,
                temperature=self.temperature,
                generator=torch.Generator().manual_seed(self.seed * 1_000_003 + number),
            )
            total += float(end_scores(self.reward_model, rollout).sum())
        policy.train(was_training)
        mean = processes.total({"score": total})["score"] / len(self.prompts)
        if not math.isfinite(mean):  # compares with nothing
            raise StageError(f"the reward model scores the sampled responses {mean}: no epoch can be chosen by it")
        return mean


class Best:
    """The weights that scored best so far; with them epoch, score and AdaLoRA's ranks. Goes into checkpoints like any other part."""

    def __init__(self, model: torch.nn.Module, adapter: Adapter | None = None):
        self.model = model
        self.adapter = adapter
        self.ranks: Any = None
        self.score: float | None = None
        self.epoch = 0
        self.weights: dict[str, torch.Tensor] = {}

    def offer(self, score: float, epoch: int) -> None:
        """Keep a copy of the trained weights as they stand, unless an earlier epoch scored as well."""
        if self.score is None or score > self.score:
            self.score, self.epoch = score, epoch
            self.weights = {name: p.detach().cpu().clone() for name, p in self._trained()}
            self.ranks = copy.deepcopy(self.adapter.ranks) if self.adapter else None

    def put_back(self) -> None:
        """Give the model the kept weights; none kept, none changed."""
        with torch.no_grad():
            for name, p in self._trained() if self.weights else ():
                parallel.put(p, self.weights[name])
        if self.adapter and self.weights:
            self.adapter.ranks = self.ranks  # by which weights are cut when they are saved

    def state_dict(self) -> dict[str, Any]:
        """All that is kept."""
        return {"score": self.score, "epoch": self.epoch, "weights": self.weights, "ranks": self.ranks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.score, self.epoch, self.weights = state["score"], state["epoch"], state["weights"]
        self.ranks = state.get("ranks")

    def _trained(self):
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]


def epoch_ended(step: int, batch: int, count: int) -> int:
    """The number of the epoch that ends within step `step` (counted from 0), or 0 if none does."""
    before, after = step * batch // count, (step + 1) * batch // count
    return after if after > before else 0
