"""Means and shares over judgments that hang together in clusters, with 95 % intervals. Pure functions, no database.

A cluster is all that was said about one prompt, by whomever: several labelers on one prompt are not independent. A figure is the mean
over judgments, R = Σ y_g / Σ n_g with y_g the sum and n_g the number of cluster g's judgments. Its variance is the cluster-robust one
of a ratio: V = G/(G − 1) · Σ (y_g − R·n_g)² / N², for G clusters and N judgments. Intervals take Student's t with G − 1 degrees of
freedom, and are about prompts like these, judged by these labelers. With fewer than two clusters there is none.

- `mean`: R ± t·√V, cut to the scale.
- `share`, of values from 0 to 1: Wilson's score interval with t in place of z and the effective number R(1 − R)/V in place of the
  number of judgments. It stays within 0 and 1, and does not shrink to nothing at either end: where V is 0 (all won, or all tied) each
  cluster counts as one judgment.
"""

from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Figure:
    """A value with its interval, None where it is not defined: from `count` judgments in `clusters` clusters."""

    value: float | None
    low: float | None
    high: float | None
    count: int
    clusters: int


def mean(values: np.ndarray, clusters: np.ndarray, *, least: float = -np.inf, most: float = np.inf) -> Figure:
    """Of numbers, NaN where nothing was said; `clusters`: the number of each one's cluster, from 0."""
    value, variance, count, groups = _ratio(values, clusters)
    if value is None or variance is None:
        return Figure(value, None, None, count, groups)
    half = _quantile(groups - 1) * np.sqrt(variance)
    return Figure(value, float(max(least, value - half)), float(min(most, value + half)), count, groups)


def share(values: np.ndarray, clusters: np.ndarray) -> Figure:
    """Of numbers from 0 to 1, NaN where nothing was said: 1 yes or won, 0 no or lost, 0.5 a tie."""
    value, variance, count, groups = _ratio(values, clusters)
    if value is None or variance is None:
        return Figure(value, None, None, count, groups)
    spread = value * (1 - value)
    effective = spread / variance if spread > 0 and variance > 1e-15 else groups
    t = _quantile(groups - 1)
    middle = value + t**2 / (2 * effective)
    half = t * np.sqrt(spread / effective + t**2 / (4 * effective**2))
    whole = 1 + t**2 / effective
    return Figure(value, float(max(0, (middle - half) / whole)), float(min(1, (middle + half) / whole)), count, groups)


def _ratio(values: np.ndarray, clusters: np.ndarray) -> tuple[float | None, float | None, int, int]:
    """(R, V, N, G); R is None without judgments, V without two clusters."""
    said = ~np.isnan(values)
    kept, of = values[said], clusters[said]
    if not len(kept):
        return None, None, 0, 0
    counts = np.bincount(of)
    sums = np.bincount(of, kept)[counts > 0]
    counts = counts[counts > 0]
    total, groups = int(counts.sum()), len(counts)
    value = float(sums.sum() / total)
    if groups < 2:
        return value, None, total, groups
    variance = groups / (groups - 1) * float(((sums - value * counts) ** 2).sum()) / total**2
    return value, variance, total, groups


def _quantile(freedom: int) -> float:
    """Student's t that leaves out half of 5 % at either end."""
    from scipy.special import stdtrit  # here, not above: a second that only who computes should pay

    return float(stdtrit(freedom, 1 - (1 - CONFIDENCE) / 2))
