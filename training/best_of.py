"""Best-of-n sampling: of n samples to a prompt, the one that a reward model scores highest.

Raises the reward without training; the policy that it amounts to is at most log n − (n − 1)/n nats from the one sampled
(Stiennon et al. 2020, appendix G.3; exact for distinct samples).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from training import models, rankings, rm
from training.data import encode_dialogue
from training.errors import StageError

if TYPE_CHECKING:
    from training.sample import Config, Source
    from training.writers import Answer, Ask, Writer


class BestOfWriter:
    """Lets another writer answer n times, and keeps of each ask's n answers the best by the reward model."""

    def __init__(self, config: Config, writer: Writer, judge: Source):
        assert judge.folder is not None  # noqa: S101 a reward model is always a folder
        self.writer, self.judge, self.rounds = writer, judge, config.best_of
        self.tokenizer = models.load_tokenizer(judge.folder)
        model = models.load_reward_model(judge.folder, models.pick_device(config.device))
        self.runner = rankings.runner_for(model, "auto", self.tokenizer.pad_token_id)

    def write(self, asks: Sequence[Ask], batch_number: int) -> list[Answer | None]:
        """The best answer to each ask with its reward; the first of equals. None where the prompt is too long and may be dropped."""
        rounds = [
            self.writer.write([ask.again(n) for ask in asks], batch_number * self.rounds + n)
            for n in range(self.rounds)
        ]
        candidates = [(place, answer) for answers in rounds for place, answer in enumerate(answers) if answer]
        rewards = self.rewards([(asks[place], answer) for place, answer in candidates])
        best: list[Answer | None] = [None] * len(asks)
        for (place, answer), reward in zip(candidates, rewards, strict=True):
            if not math.isfinite(reward):  # compares with nothing
                raise StageError(f"{asks[place].name}: the reward model {self.judge.name} scores a response {reward}")
            held = best[place]
            if held is None or held.reward is None or reward > held.reward:
                best[place] = answer._replace(reward=reward)
        return best

    def rewards(self, answered: Sequence[tuple[Ask, Answer]]) -> list[float]:
        """The reward of each answer to its ask's own messages, without the policy's few-shot prefix. A text cut off has no EOS."""
        examples = [
            encode_dialogue(self.tokenizer, ask.prompt["messages"], answer.text, answer.finish_reason != "length")
            for ask, answer in answered
        ]
        context = getattr(self.runner.model.config, "max_position_embeddings", None)
        for (ask, _), example in zip(answered, examples, strict=True):
            if context is not None and len(example.ids) > context:
                raise StageError(
                    f"{ask.name}: {len(example.ids)} tokens exceed the context of {context} of the reward model "
                    f"{self.judge.name}; lower max_new_tokens"
                )
        return rm.score_examples(self.runner, examples, batch=256)
