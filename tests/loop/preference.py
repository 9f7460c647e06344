"""The hidden preference of the tiny world's simulated people, and the noisy labelers who act on it.

The trainer never sees this file: nothing in training/ may import it (a test holds that). It needs neither torch nor Django.

The noise-free score is *relevance first*: one point per required item of a story (or four for the right fact), and only
when the answer is relevant do manners count: courtesy, three to four sentences, no repetition, together less than one item.
Without that, a policy that says the same pleasantry to every prompt would pass.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from training.tinyworld import FACT_SLOTS, FACTS, POLITE_CLOSINGS, POLITE_OPENINGS, STORY_SLOTS, Ask, read_ask

RELEVANCE_POINTS = 4.0
RELEVANT_FROM = 0.75
COURTESY_POINTS, LENGTH_POINTS, NO_REPETITION_POINTS = 0.45, 0.3, 0.2
SENTENCES_WANTED = (3, 4)

NOISE = 0.5
"""Standard deviation of a labeler's error on a score, such that two labelers agree on about 78 % of pairs."""
TIE_WITHIN = 0.12
"""Neighbouring responses whose perceived scores differ by less are ranked as equal."""


@dataclass(frozen=True)
class Quality:
    """What is true of one answer: relevance 0–1, and the manners that count once it is relevant."""

    relevance: float
    is_courteous: bool
    has_right_length: bool
    repeats_itself: bool

    @property
    def is_relevant(self) -> bool:
        """All items but at most one, or the right fact."""
        return self.relevance >= RELEVANT_FROM

    @property
    def score(self) -> float:
        """The noise-free score, 0 to 4.95."""
        manners = COURTESY_POINTS * self.is_courteous
        manners += LENGTH_POINTS * self.has_right_length + NO_REPETITION_POINTS * (not self.repeats_itself)
        return RELEVANCE_POINTS * self.relevance + manners * self.is_relevant


@lru_cache(maxsize=1 << 16)
def judge(prompt: str, response: str) -> Quality:
    """What is true of a response to a prompt of the tiny world. Raises ValueError for any other prompt."""
    sentences = [part.strip() for part in re.split(r"[.!?]+", response) if part.strip()]
    lowest, highest = SENTENCES_WANTED
    return Quality(
        relevance=_relevance(read_ask(prompt), response),
        is_courteous=any(phrase in response for phrase in (*POLITE_OPENINGS, *POLITE_CLOSINGS)),
        has_right_length=lowest <= len(sentences) <= highest,
        repeats_itself=len(set(sentences)) < len(sentences),
    )


def _relevance(ask: Ask, response: str) -> float:
    """Share of the items that are named, each without a rival of its slot: listing every word of the world earns nothing."""
    words = set(re.findall(r"[A-Za-z]+", response))
    slots = FACT_SLOTS if ask.use_case == FACTS else STORY_SLOTS
    right = [words & set(slots[slot]) == {wanted} for slot, wanted in ask.items.items()]
    if ask.subject is not None and ask.subject not in words:
        return 0.0
    return sum(right) / len(right)


def gold_score(prompt: str, response: str) -> float:
    """The noise-free score of a response, 0 to 4.95."""
    return judge(prompt, response).score


@dataclass(frozen=True)
class Judgement:
    """A simulated labeler's answer: tiers of response indices, best first; ratings 1–7 and flags per response."""

    tiers: list[list[int]]
    ratings: list[int]
    flags: list[dict[str, bool]]
    all_bad: bool


@dataclass(frozen=True)
class Labeler:
    """A simulated person: sees the true score through noise of their own, the same each time they see the same answer."""

    name: str
    seed: int
    noise: float = NOISE

    def perceived(self, prompt: str, response: str) -> float:
        """The score as this labeler sees it; equal texts look equal."""
        key = hashlib.sha256(f"{self.seed}\0{self.name}\0{prompt}\0{response}".encode()).digest()
        return gold_score(prompt, response) + random.Random(key).gauss(0, self.noise)

    def rank(self, prompt: str, responses: Sequence[str]) -> Judgement:
        """Rank, rate and flag the responses to a prompt."""
        seen = [self.perceived(prompt, response) for response in responses]
        order = sorted(range(len(responses)), key=lambda i: (-seen[i], i))
        tiers: list[list[int]] = []
        for i in order:
            if tiers and seen[tiers[-1][-1]] - seen[i] < TIE_WITHIN:
                tiers[-1].append(i)
            else:
                tiers.append([i])
        ratings = [max(1, min(7, 1 + round(score * 6 / 4.95))) for score in seen]
        return Judgement(
            tiers, ratings, [self._flags(prompt, r, s) for r, s in zip(responses, seen, strict=True)], max(seen) < 1
        )

    def _flags(self, prompt: str, response: str, seen: float) -> dict[str, bool]:
        """Two of Table 3's questions, by the words of the label schema's defaults."""
        fails = seen < RELEVANCE_POINTS * RELEVANT_FROM - 0.5
        return {"fails_instruction": fails, "satisfies_constraint": judge(prompt, response).has_right_length}


def agreement(first: Judgement, second: Judgement) -> tuple[int, int]:
    """(pairs on which two labelers agree, pairs that both of them order)."""
    a, b = ({i: level for level, tier in enumerate(j.tiers) for i in tier} for j in (first, second))
    pairs = [(i, j) for i in a for j in a if i < j and a[i] != a[j] and b[i] != b[j]]
    return sum((a[i] < a[j]) == (b[i] < b[j]) for i, j in pairs), len(pairs)
