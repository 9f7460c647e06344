"""Agreement: how far people who judged the same thing say the same. Pure functions on rankings and ratings, no database.

A ranking of K responses is C(K,2) comparisons: one response is better, worse, or they tie. Two rankings agree on a comparison
when both order it the same way or both tie it; a tie against an order is disagreement. The share of comparisons agreed on is
the measure of InstructGPT §3.4. Its variant "without ties" leaves out every comparison that either of the two ties.

A figure over many tasks is the mean of the tasks' own figures (so that a task ranked by ten people counts no more than one
ranked by two), with a 95 % percentile bootstrap interval: whole tasks are drawn again, since what is said about one task hangs
together. With few tasks (under about 20) such an interval is too narrow; below two there is none.

Shapes: N rankings, P = C(K,2) comparisons, M pairs of rankings, T tasks, U units, V values, B resamples, C columns.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import krippendorff
import numpy as np

Tiers = Sequence[Sequence[str]]  # best first
Numbers = Sequence[int] | np.ndarray
Level = Literal["nominal", "ordinal"]

RESAMPLES = 1000
CONFIDENCE = 0.95
AT_ONCE = 2_000_000  # draws held in memory at once: 16 MB


# Two rankings ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """How two rankings of the same responses compare. `agreed` of `comparisons`; the same without ties; Kendall's τ-b."""

    agreed: int
    comparisons: int
    agreed_untied: int
    untied: int
    tau_b: float | None

    @property
    def share(self) -> float | None:
        """Share of comparisons agreed on, ties counted: 0 to 1; None if there is nothing to compare."""
        return self.agreed / self.comparisons if self.comparisons else None

    @property
    def share_untied(self) -> float | None:
        """Share agreed on among the comparisons that neither ties; None if there are none."""
        return self.agreed_untied / self.untied if self.untied else None


def compare(first: Tiers, second: Tiers) -> Compared:
    """Two rankings, or a ranking and a reference, compared; the order of the two does not matter.

    `tau_b` is Kendall's τ-b, −1 to 1; None where one of them ties everything. Raises ValueError unless both rank the same
    responses, each once.
    """
    if sorted(_responses(first)) != sorted(_responses(second)):
        raise ValueError("The two rankings are not over the same responses.")
    return pairs_of(Rankings.of([("task", first), ("task", second)])).of_one(0)


def _responses(tiers: Tiers) -> list[str]:
    return [response for tier in tiers for response in tier]


# Many rankings ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rankings:
    """Rankings as numbers, in the order given. `tasks` (N,) are numbers too; `places` (N, K): 1 is best, equal numbers tie,
    0 fills up where K is smaller. Within a task the columns stand for the same responses.
    """

    tasks: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[tuple[Hashable, Tiers]]) -> "Rankings":
        """From (task, tiers) rows. Raises ValueError if a task's rankings are not over the same responses."""
        codes: dict[Hashable, int] = {}
        columns: dict[Hashable, dict[str, int]] = {}
        tasks, places = [], []
        for task, tiers in rows:
            tasks.append(codes.setdefault(task, len(codes)))
            place_of = {response: place for place, tier in enumerate(tiers, start=1) for response in tier}
            column_of = columns.setdefault(task, {response: i for i, response in enumerate(sorted(place_of))})
            if place_of.keys() != column_of.keys():
                raise ValueError(f"Task {task}: its rankings are not over the same responses.")
            places.append([place_of[response] for response in column_of])
        width = max((len(row) for row in places), default=0)
        filled = [row + [0] * (width - len(row)) for row in places]
        return cls(np.array(tasks, np.int64), np.array(filled, np.int8).reshape(len(places), width))

    def signs(self) -> tuple[np.ndarray, np.ndarray]:
        """(signs, which are real): int8 and bool, (N, P). 1: the earlier column is better; −1: the later; 0: they tie."""
        left, right = np.triu_indices(self.places.shape[1], 1)
        before, after = self.places[:, left], self.places[:, right]
        real_NP = (before > 0) & (after > 0)
        return np.sign(after - before) * real_NP, real_NP


@dataclass(frozen=True)
class Pairs:
    """Pairs of rankings of the same task, compared; all (M,). `first` and `second` are rows of the Rankings they come from."""

    task: np.ndarray
    first: np.ndarray
    second: np.ndarray
    agreed: np.ndarray
    comparisons: np.ndarray
    agreed_untied: np.ndarray
    untied: np.ndarray
    tau_b: np.ndarray

    def __len__(self) -> int:
        return len(self.task)

    def of_one(self, row: int) -> Compared:
        """One pair as plain numbers."""
        counts = (self.agreed, self.comparisons, self.agreed_untied, self.untied)
        agreed, comparisons, agreed_untied, untied = (int(count[row]) for count in counts)
        tau = float(self.tau_b[row])
        return Compared(agreed, comparisons, agreed_untied, untied, None if np.isnan(tau) else tau)

    def where(self, chosen_M: np.ndarray) -> "Pairs":
        """The pairs chosen by a mask (True = keep) or by their rows."""
        return Pairs(*(getattr(self, field.name)[chosen_M] for field in fields(self)))


def pairs_of(rankings: Rankings) -> Pairs:
    """Every pair of rankings of the same task, each once."""
    order = np.argsort(rankings.tasks, kind="stable")
    first, second = _neighbours(rankings.tasks[order])
    return _compared(rankings, order[first], order[second])


def pairs_with(rankings: Rankings, references: Mapping[int, int]) -> Pairs:
    """Each ranking of a row in `references` against the row that is its reference, in rising order of rows."""
    first = np.array(sorted(references), np.int64)
    return _compared(rankings, first, np.array([references[int(row)] for row in first], np.int64))


def pairs_across(units: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first, second): rows of every pair of judgments of the same unit by judges of different groups, each once."""
    order = np.argsort(units, kind="stable")
    first, second = _neighbours(units[order])
    is_across = groups[order[first]] != groups[order[second]]
    return order[first[is_across]], order[second[is_across]]


def _neighbours(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions (first, second), first < second, of every pair of equal keys in sorted ones."""
    most = int(np.unique(keys, return_counts=True)[1].max(initial=0))
    starts = [np.flatnonzero(keys[:-apart] == keys[apart:]) for apart in range(1, most)]
    nothing = np.empty(0, np.int64)
    first = np.concatenate([nothing, *starts])
    return first, np.concatenate([nothing, *(start + apart for apart, start in enumerate(starts, start=1))])


def _compared(rankings: Rankings, first: np.ndarray, second: np.ndarray) -> Pairs:
    """τ-b from the signs: Σ ab / √(Σ|a| Σ|b|), which is (concordant − discordant) / √(untied in a × untied in b)."""
    signs_NP, real_NP = rankings.signs()
    one, other, real = signs_NP[first], signs_NP[second], real_NP[first]
    comparisons, product = real.sum(1), one * other
    untied_one, untied_other = np.count_nonzero(one, axis=1), np.count_nonzero(other, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        tau_b = product.sum(1, dtype=np.int64) / np.sqrt(untied_one * untied_other)
    return Pairs(
        task=rankings.tasks[first],
        first=first,
        second=second,
        agreed=((one == other) & real).sum(1),
        comparisons=comparisons,
        agreed_untied=(product > 0).sum(1),
        untied=np.count_nonzero(product, axis=1),
        tau_b=tau_b,
    )


# Figures -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval; None where it is not defined. Over `tasks` tasks, from `count` pairs or judgments."""

    value: float | None
    low: float | None
    high: float | None
    tasks: int
    count: int


def share_agreed(pairs: Pairs, *, ties: bool = True, seed: int = 0) -> Figure:
    """Share of comparisons that two labelers agree on, 0 to 1: over all comparisons (`ties`), or those that neither ties.

    Per task over all its pairs of labelers, then the mean over tasks. `count`: pairs that say something.
    """
    agreed = pairs.agreed if ties else pairs.agreed_untied
    of = pairs.comparisons if ties else pairs.untied
    return _mean_over_tasks(pairs.task, agreed, of, count=int(np.count_nonzero(of)), seed=seed)


def mean_tau_b(pairs: Pairs, *, seed: int = 0) -> Figure:
    """Kendall's τ-b, −1 to 1, in the mean over a task's pairs and then over tasks; pairs where one ties everything have none."""
    is_defined = ~np.isnan(pairs.tau_b)
    tau = np.where(is_defined, pairs.tau_b, 0.0)
    return _mean_over_tasks(pairs.task, tau, is_defined, count=int(is_defined.sum()), seed=seed)


def _mean_over_tasks(tasks: np.ndarray, amounts: np.ndarray, weights: np.ndarray, *, count: int, seed: int) -> Figure:
    """The mean over tasks of Σ amounts / Σ weights; tasks without weight are left out."""
    _codes, task_of = np.unique(tasks, return_inverse=True)
    totals, of = np.bincount(task_of, amounts), np.bincount(task_of, weights)
    return mean(totals[of > 0] / of[of > 0], count=count, seed=seed)


def mean(values_T: np.ndarray, *, count: int | None = None, seed: int = 0) -> Figure:
    """The mean of one value per task."""
    columns_TC = np.stack([values_T, np.ones(len(values_T))], axis=1)
    return figure(columns_TC, lambda sums_BC: sums_BC[:, 0] / sums_BC[:, 1], count=count, seed=seed)


def figure(
    columns_TC: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, count: int | None = None, seed: int = 0
) -> Figure:
    """A statistic that is a function of sums over tasks, with its bootstrap interval over them.

    `statistic` maps sums (B, C) to values (B,), nan where undefined. The same seed and rows give the same interval.
    """
    tasks = len(columns_TC)
    count = tasks if count is None else count
    value = float(statistic(columns_TC.sum(0, keepdims=True))[0]) if tasks else np.nan
    if np.isnan(value):
        return Figure(None, None, None, tasks, count)
    if tasks < 2:
        return Figure(value, None, None, tasks, count)
    drawn = statistic(_resampled(columns_TC, seed))
    low, high = np.nanquantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Figure(value, float(low), float(high), tasks, count)


def _resampled(columns_TC: np.ndarray, seed: int) -> np.ndarray:
    """Sums (B, C) over tasks drawn with replacement, as often as there are tasks."""
    dice, tasks = np.random.default_rng(seed), len(columns_TC)
    sums, rest = [], RESAMPLES
    while rest:
        now = min(rest, max(1, AT_ONCE // tasks))
        drawn = dice.integers(tasks, size=(now, tasks)) + tasks * np.arange(now)[:, None]
        times_BT = np.bincount(drawn.ravel(), minlength=now * tasks).reshape(now, tasks)
        sums.append(times_BT @ columns_TC)
        rest -= now
    return np.concatenate(sums)


# Ratings and flags ---------------------------------------------------------------------------------------------------


def krippendorff_alpha(tasks: Numbers, units: Numbers, values: Numbers, *, level: Level, seed: int = 0) -> Figure:
    """Krippendorff's α of judgments: 1 is perfect, 0 is chance, below 0 is worse. One row per judgment that was given.

    `tasks`: what is drawn again for the interval; `units`: what was judged (a response, or a prompt; each within one task);
    `values`: whole numbers, ordered if `level` is "ordinal" (ratings), mere names if "nominal" (flags). Whatever was left
    unanswered is simply no row. Units judged once say nothing. Not defined (None) where everybody said the same throughout.
    `count`: judgments that can be paired. By the package `krippendorff`; the interval by the same formula on resampled sums.
    """
    _codes, unit_of = np.unique(np.asarray(units, np.int64), return_inverse=True)
    domain, value_of = np.unique(np.asarray(values, np.int64), return_inverse=True)
    width = len(domain)
    counts_UV = np.bincount(unit_of * width + value_of, minlength=len(_codes) * width).reshape(len(_codes), width)
    task_U = np.zeros(len(_codes), np.int64)
    task_U[unit_of] = np.asarray(tasks, np.int64)
    is_paired = counts_UV.sum(1) > 1
    counts_UV, task_U = counts_UV[is_paired], task_U[is_paired]
    count = int(counts_UV.sum())
    if np.count_nonzero(counts_UV.sum(0)) < 2:
        return Figure(None, None, None, len(np.unique(task_U)), count)
    coincidences_TC = _coincidences(counts_UV, task_U)
    of_sums = figure(coincidences_TC, lambda sums_BC: _alpha_of(sums_BC, width, level), count=count, seed=seed)
    value = krippendorff.alpha(value_counts=counts_UV, value_domain=domain, level_of_measurement=level)
    return Figure(float(value), of_sums.low, of_sums.high, of_sums.tasks, count)


def _coincidences(counts_UV: np.ndarray, task_U: np.ndarray) -> np.ndarray:
    """Coincidence matrices, flat, summed over each task's units: (T, V·V)."""
    _codes, task_of = np.unique(task_U, return_inverse=True)
    width = counts_UV.shape[1]
    judges = counts_UV.sum(1) - 1
    columns = [
        np.bincount(task_of, counts_UV[:, one] * (counts_UV[:, other] - (one == other)) / judges)
        for one in range(width)
        for other in range(width)
    ]
    return np.stack(columns, axis=1)


def _alpha_of(sums_BC: np.ndarray, width: int, level: Level) -> np.ndarray:
    """α from summed coincidences: 1 − (n − 1) Σ o·δ² / Σ n·n·δ² (Krippendorff 2011); nan where only one value occurs."""
    o_BVV = sums_BC.reshape(-1, width, width)
    n_BV = o_BVV.sum(2)
    total_B = n_BV.sum(1)
    delta_BVV = _distances(n_BV, level)
    expected_B = np.einsum("bi,bj,bij->b", n_BV, n_BV, delta_BVV)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - (total_B - 1) * (o_BVV * delta_BVV).sum((1, 2)) / expected_B


def _distances(n_BV: np.ndarray, level: Level) -> np.ndarray:
    """δ² between values: 0 or 1; for ordinal ones, squared, how many judgments lie between them, half of each end counted."""
    if level == "nominal":
        return np.broadcast_to(1.0 - np.eye(n_BV.shape[1]), (len(n_BV), n_BV.shape[1], n_BV.shape[1]))
    middle_BV = n_BV.cumsum(1) - n_BV / 2
    return (middle_BV[:, :, None] - middle_BV[:, None, :]) ** 2
