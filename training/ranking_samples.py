"""Which rankings a reward model's report shows, and how the model scored their responses before and after training."""

from __future__ import annotations

from collections.abc import Sequence

from training.data import Comparison
from training.report import SAMPLES, RankingSample, ScoredResponse


def ranking_samples(
    tokenizer,
    comparisons: Sequence[Comparison],
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    count: int = SAMPLES,
) -> list[RankingSample]:
    """`count` of these rankings, each response with its reward before and after training.

    Half are the first; the others, worst first, have the largest share of pairs against the labeler after training, and none that
    the model orders wholly as the labeler did. A function of the rankings and the rewards alone.
    """
    shares = [_wrong(one, scores) / len(one.pairs) for one, scores in zip(comparisons, after, strict=True)]
    first = range(min(count // 2, len(comparisons)))
    rest = [i for i in range(len(first), len(comparisons)) if shares[i] > 0]
    worst = sorted(rest, key=lambda i: (-shares[i], i))[: count - len(first)]
    return [_sample(tokenizer, comparisons[i], before[i], after[i]) for i in (*first, *worst)]


def _wrong(comparison: Comparison, scores_K: Sequence[float]) -> int:
    """Pairs that these rewards do not order as the labeler did; equal ones do not."""
    return sum(scores_K[better] <= scores_K[worse] for better, worse in comparison.pairs)


def _sample(tokenizer, comparison: Comparison, before: Sequence[float], after: Sequence[float]) -> RankingSample:
    examples = comparison.examples
    prompt = examples[0].ids[: examples[0].prompt_tokens]
    texts = tokenizer.batch_decode(
        [prompt, *(example.ids[example.prompt_tokens :] for example in examples)], skip_special_tokens=True
    )
    ranks = [1 + sum(worse == i for _, worse in comparison.pairs) for i in range(len(examples))]
    responses = [ScoredResponse(*row) for row in zip(texts[1:], ranks, before, after, strict=True)]
    pairs = len(comparison.pairs)
    return RankingSample(
        texts[0],
        sorted(responses, key=lambda response: response.rank),
        pairs,
        pairs - _wrong(comparison, before),
        pairs - _wrong(comparison, after),
    )
