"""Shares and differences with their 95 % intervals. Pure functions on plain numbers.

A point is what one comparison or one item gave, from 0 to 1: a win 1, a tie ½, a loss 0. Points of one cluster (the pairs of a ranking,
the samples of a prompt) go together: the interval counts clusters, not points, as far as they agree among themselves.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

Z = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


def share(points: Sequence[float], clusters: Sequence[Hashable] | None = None) -> dict[str, float | int | None]:
    """{"rate", "low", "high", "n"}: the mean of points in [0, 1] with Wilson's interval; all None but n where there are no points.

    Wilson's formula takes the worst spread that points of this mean can have, so ties make it wider than it need be. With clusters,
    n in it is the effective number of points (Korn and Graubard 1998): how many independent ones would be as uncertain.
    """
    n = len(points)
    if n == 0:
        return {"rate": None, "low": None, "high": None, "n": 0}
    rate = sum(points) / n
    effective = effective_count(points, clusters) if clusters is not None else n
    low, high = wilson(rate, effective)
    return {"rate": rate, "low": low, "high": high, "n": n}


def wilson(rate: float, n: float) -> tuple[float, float]:
    """Wilson's score interval of a share among n (Wilson 1927)."""
    centre = (rate + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(rate * (1 - rate) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def effective_count(points: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """How many independent points would tell as little as these, between the number of clusters and that of points.

    rate · (1 − rate) over the variance of the rate by clusters (linearised); where that is 0, every cluster counts once.
    """
    totals: dict[Hashable, list[float]] = {}
    for point, cluster in zip(points, clusters, strict=True):
        totals.setdefault(cluster, []).append(point)
    n, groups = len(points), len(totals)
    rate = sum(points) / n
    if groups < 2:
        return float(groups)
    residuals = [sum(own) - rate * len(own) for own in totals.values()]
    variance = groups / (groups - 1) * sum(r * r for r in residuals) / n**2
    found = rate * (1 - rate) / variance if variance > 0 else groups
    return min(max(found, 1.0), float(n)) if 0 < rate < 1 else float(groups)


def mean(values: Sequence[float]) -> dict[str, float | int | None]:
    """{"mean", "low", "high", "n"}: the mean with its normal interval; no interval for fewer than two values."""
    n = len(values)
    if n == 0:
        return {"mean": None, "low": None, "high": None, "n": 0}
    middle = sum(values) / n
    if n == 1:
        return {"mean": middle, "low": None, "high": None, "n": 1}
    half = Z * math.sqrt(sum((value - middle) ** 2 for value in values) / (n - 1) / n)
    return {"mean": middle, "low": middle - half, "high": middle + half, "n": n}


def ratio(sums: Sequence[float], sizes: Sequence[float]) -> dict[str, float | int | None]:
    """{"mean", "low", "high", "n"}: Σ sums / Σ sizes over clusters (nats over bytes of documents), linearised interval."""
    n, size = len(sums), sum(sizes)
    if n == 0 or size == 0:
        return {"mean": None, "low": None, "high": None, "n": n}
    middle = sum(sums) / size
    if n == 1:
        return {"mean": middle, "low": None, "high": None, "n": 1}
    spread = sum((s - middle * b) ** 2 for s, b in zip(sums, sizes, strict=True))
    half = Z * math.sqrt(n / (n - 1) * spread) / size
    return {"mean": middle, "low": middle - half, "high": middle + half, "n": n}
