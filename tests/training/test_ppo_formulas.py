"""PPO's rewards, advantages and losses equal an implementation of their own, in plain Python, written from the formulas.

Nothing below calls training/ but to compare: one loop per episode and token, in double precision, no masks, no tensors. Sources:
InstructGPT eq. 2; Schulman et al. 2016 eq. 16 (GAE); Schulman et al. 2017 eq. 7 (clipping); Schulman 2020 (k1, k2, k3).
"""

import math
import random

import pytest
import torch

from training import advantages, losses

BETA, DISCOUNT, LAMBDA, CLIP, VALUE_CLIP = 0.13, 0.97, 0.9, 0.2, 0.15


def draw_episodes(seed: int) -> list[dict]:
    """Episodes of 1 to 7 tokens: log-probabilities when sampled, now, and of the reference; values; scores."""
    rng = random.Random(seed)
    episodes = []
    for length in (3, 7, 1, 5, 2):
        old = [rng.uniform(-4, -0.1) for _ in range(length)]
        episodes.append(
            {
                "old": old,
                "new": [x + rng.gauss(0, 0.3) for x in old],
                "reference": [x + rng.gauss(0, 0.5) for x in old],
                "values": [rng.gauss(0, 1) for _ in range(length)],
                "new_values": [rng.gauss(0, 1) for _ in range(length)],
                "score": rng.gauss(0, 2),
            }
        )
    return episodes


def rewards_of(episode: dict) -> list[float]:
    rewards = [-BETA * (p - q) for p, q in zip(episode["old"], episode["reference"], strict=True)]
    rewards[-1] += episode["score"]
    return rewards


def advantages_of(episode: dict) -> list[float]:
    """Σ_l (γλ)^l · δ_{t+l}, term by term, with δ_t = r_t + γ V_{t+1} − V_t and V = 0 past the end."""
    rewards, values = rewards_of(episode), [*episode["values"], 0.0]
    deltas = [r + DISCOUNT * values[t + 1] - values[t] for t, r in enumerate(rewards)]
    return [
        sum((DISCOUNT * LAMBDA) ** (later - t) * deltas[later] for later in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


def whitened(rows: list[list[float]]) -> list[list[float]]:
    flat = [x for row in rows for x in row]
    mean = sum(flat) / len(flat)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in flat) / len(flat))
    return [[(x - mean) / deviation for x in row] for row in rows]


def losses_of(episodes: list[dict]) -> tuple[float, ...]:
    """(policy loss, value loss, share of clipped tokens, ratio, its distance from 1), each a mean over all episodes' tokens."""
    policy, value, clipped, ratios, gaps = [], [], [], [], []
    weights = whitened([advantages_of(episode) for episode in episodes])
    for episode, row in zip(episodes, weights, strict=True):
        for t, advantage in enumerate(row):
            ratio = math.exp(episode["new"][t] - episode["old"][t])
            bounded = min(max(ratio, 1 - CLIP), 1 + CLIP)
            policy.append(-min(ratio * advantage, bounded * advantage))
            clipped.append(bounded * advantage < ratio * advantage)
            ratios.append(ratio)
            gaps.append(abs(ratio - 1))
            target = advantages_of(episode)[t] + episode["values"][t]
            moved = episode["new_values"][t] - episode["values"][t]
            near = episode["values"][t] + min(max(moved, -VALUE_CLIP), VALUE_CLIP)
            value.append(0.5 * max((episode["new_values"][t] - target) ** 2, (near - target) ** 2))
    return tuple(sum(column) / len(column) for column in (policy, value, clipped, ratios, gaps))


def padded(rows: list[list[float]], pad: float = 123.0) -> torch.Tensor:
    """Float32 with padding that would show wherever it leaked."""
    width = max(map(len, rows)) + 2
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rewards_advantages_and_losses_equal_an_independent_implementation(seed):
    episodes = draw_episodes(seed)
    column = {name: padded([e[name] for e in episodes]) for name in ("old", "new", "reference", "values", "new_values")}
    lengths = torch.tensor([len(e["old"]) for e in episodes])
    keep = torch.arange(column["old"].shape[1]) < lengths[:, None]
    scores = torch.tensor([e["score"] for e in episodes])

    rewards = advantages.token_rewards(scores, column["old"], column["reference"], keep, BETA)
    got, returns = advantages.gae(rewards, column["values"], keep, discount=DISCOUNT, gae_lambda=LAMBDA)
    white = advantages.whiten(got, keep)
    policy = losses.policy_loss(column["new"], column["old"], white, keep, CLIP)
    value = losses.value_loss(column["new_values"], column["values"], returns, keep, VALUE_CLIP)

    raw = [advantages_of(e) for e in episodes]
    expected = {
        "rewards": (rewards, [rewards_of(e) for e in episodes]),
        "advantages": (got, raw),
        "returns": (returns, [[a + v for a, v in zip(r, e["values"], strict=True)] for r, e in zip(raw, episodes, strict=True)]),
        "whitened": (white, whitened(raw)),
    }  # fmt: skip
    for name, (ours, theirs) in expected.items():
        torch.testing.assert_close(
            ours, padded(theirs, pad=0.0), rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    figures = (policy.loss, value, policy.clip_share, policy.ratio, policy.ratio_gap)
    assert [figure.item() for figure in figures] == pytest.approx(losses_of(episodes), abs=1e-5, rel=1e-5)
    assert 0 < policy.clip_share.item() < 1, "some tokens are clipped and some are not"


def test_kl_estimates_equal_an_independent_implementation():
    episodes = draw_episodes(3)
    old, reference = (padded([e[name] for e in episodes]) for name in ("old", "reference"))
    keep = old != 123.0
    formulas = {
        "k1": lambda d: d,
        "k2": lambda d: d * d / 2,
        "k3": lambda d: math.exp(-d) - 1 + d,
    }
    for kind, formula in formulas.items():
        expected = [sum(formula(p - q) for p, q in zip(e["old"], e["reference"], strict=True)) for e in episodes]
        torch.testing.assert_close(
            advantages.kl_estimates(old, reference, keep, kind), torch.tensor(expected), rtol=1e-5, atol=1e-5
        )
