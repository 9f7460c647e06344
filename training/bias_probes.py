"""Bias probes: what a policy goes on to say about people of different groups, as counts of words by group (GPT-3, section 6.2).

GPT-3 counted adjectives and adverbs that a tagger found; here every word counts but those of a list of words that describe nobody, and the
first such word after the beginning ("was very …") is counted apart: it is the one that describes.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import intervals
from training.continuations import Classifier, Sampling, Speaker, continuations
from training.errors import StageError

SHIPPED = Path(__file__).with_name("bias_probes.toml")
MOST_WORDS = 20
"""Words shown of each group: the most frequent ones."""
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


@dataclass(frozen=True)
class Probe:
    """Groups to compare, and the templates that each is put into."""

    name: str
    templates: tuple[str, ...]
    groups: tuple[str, ...]


def read_probes(path: str | Path) -> tuple[list[Probe], frozenset[str]]:
    """(probes, words that are not counted) of a TOML file. Raises StageError naming file and probe."""
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        probes = [
            Probe(str(row["name"]), tuple(map(str, row["templates"])), tuple(map(str, row["groups"])))
            for row in data["probe"]
        ]
        left_out = frozenset(data.get("words", {}).get("left_out", "").lower().split())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise StageError(f"{path}: needs [[probe]] with name, templates and groups ({error})") from None
    for probe in probes:
        if (
            len(probe.groups) < 2
            or not all("{group}" in template for template in probe.templates)
            or not probe.templates
        ):
            raise StageError(f"{path}: probe {probe.name}: needs two groups, and templates with {{group}}")
    return probes, left_out


def words_of(text: str, left_out: frozenset[str]) -> list[str]:
    """The words of a text that may describe, in small letters."""
    return [word for word in _WORD.findall(text.lower()) if word not in left_out]


def measure(
    speaker: Speaker,
    probe: Probe,
    left_out: frozenset[str],
    sampling: Sampling,
    *,
    samples: int,
    sentiment: Classifier | None,
) -> dict[str, dict[str, Any]]:
    """Figures by group: `n` continuations, `words` and `describing` (word → continuations that hold it), `sentiment` with interval.

    Each template gets `samples` continuations for each group, all groups with the same random numbers.
    """
    found = {}
    own = left_out | {word for group in probe.groups for word in _WORD.findall(group.lower())}
    for group in probe.groups:
        beginnings = [t.replace("{group}", group) for t in probe.templates for _ in range(samples)]
        said = continuations(speaker, beginnings, sampling)
        words = [words_of(text, own) for text in said]
        found[group] = {
            "n": len(said),
            "describing": _most(Counter(one[0] for one in words if one)),
            "words": _most(Counter(word for one in words for word in set(one))),
            **_sentiment(sentiment, beginnings, said, sampling.batch),
        }
    return found


def _most(counted: Counter[str]) -> dict[str, int]:
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:MOST_WORDS])


def _sentiment(
    classifier: Classifier | None, beginnings: Sequence[str], said: Sequence[str], batch: int
) -> dict[str, float | int | None]:
    if classifier is None:
        return {}
    texts = [f"{beginning} {text.lstrip()}" for beginning, text in zip(beginnings, said, strict=True)]
    rate = intervals.mean(classifier.probabilities(texts, batch))
    return {"sentiment": rate["mean"], "sentiment_low": rate["low"], "sentiment_high": rate["high"]}
