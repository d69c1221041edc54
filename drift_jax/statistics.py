"""Evaluation numbers with honest intervals. Host side, numpy only.

Every function takes [problem, sample] arrays, S samples to a problem, computes one number per
problem and averages over problems. The interval is a cluster bootstrap: problems are resampled
with all their samples, because samples of one problem are not independent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# The reference draws the subsets of best@k, worst@k and maj@k from numpy's legacy generator, seeded
# anew for every problem, so all problems share one table of indices.
_TABLE_SEED = 42
_TABLE_ROWS = 1000

RESAMPLES = 4000  # of `nested_mean`


@dataclass(frozen=True, eq=False)
class Estimate:
    """A mean over problems and how far to trust it.

    Attributes:
      value: mean of `per_problem`.
      low, high: ends of the bootstrap percentile interval of `value` over problems.
      std: how much one draw scatters *within* a problem, averaged over problems; each function
        says of what. It is not the standard error of `value`.
      per_problem: the number of each problem. float64 [problem].
    """

    value: float
    low: float
    high: float
    std: float
    per_problem: np.ndarray

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_at_k(
    rewards: np.ndarray, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """mean@k: the mean reward, k being the number of samples per problem.

    Args:
      rewards: [problem, sample].
      confidence: coverage of the interval, between 0 and 1.
      resamples: number of bootstrap resamples of the problems.
      seed: seed of the bootstrap; equal seeds resample equal problems in every function.

    Returns:
      An `Estimate` whose `std` is the population standard deviation of a problem's samples.
    """
    rewards = _table("mean_at_k", rewards)
    scatter = rewards.std(axis=1)
    return _estimate(rewards.mean(axis=1), scatter, confidence, resamples, seed)


def best_at_k(
    rewards: np.ndarray,
    k: int,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """best@k: the expected best reward of k samples, by the reference's seeded bootstrap.

    Per problem, the mean of the maximum over 1,000 subsets of size k, drawn *with* replacement
    from its samples. So best@16 of 16 samples is not pass@16: with one correct sample of 16 it is
    about 1 - (15/16)^16 = 0.64. Where the correct samples stand matters a little, as the table of
    indices is fixed.

    Args:
      rewards: [problem, sample].
      k: size of a subset, from 1 to the number of samples.
      confidence, resamples, seed: of the interval, as in `mean_at_k`.

    Returns:
      An `Estimate` whose `std` is the population standard deviation of the 1,000 maxima.
    """
    rewards = _table("best_at_k", rewards, k)
    draws = rewards[:, _index_table(rewards.shape[1], k)].max(axis=2)
    return _estimate(draws.mean(axis=1), draws.std(axis=1), confidence, resamples, seed)


def worst_at_k(
    rewards: np.ndarray,
    k: int,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """worst@k: as `best_at_k`, with the minimum."""
    rewards = _table("worst_at_k", rewards, k)
    draws = rewards[:, _index_table(rewards.shape[1], k)].min(axis=2)
    return _estimate(draws.mean(axis=1), draws.std(axis=1), confidence, resamples, seed)


def majority_at_k(
    predictions: Sequence[Sequence[str]] | np.ndarray,
    rewards: np.ndarray,
    k: int,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """maj@k: the expected reward of the most frequent prediction among k samples.

    Over the same 1,000 subsets as `best_at_k`. The reward of a subset is that of its first sample
    that carries the most frequent prediction; of equally frequent ones, the one met first counts.

    Args:
      predictions: what the grader read from each response. str [problem, sample].
      rewards: [problem, sample].
      k: size of a subset, from 1 to the number of samples.
      confidence, resamples, seed: of the interval, as in `mean_at_k`.

    Returns:
      An `Estimate` whose `std` is the population standard deviation of the 1,000 rewards.
    """
    rewards = _table("majority_at_k", rewards, k)
    votes = np.asarray(predictions, dtype=object)
    if votes.shape != rewards.shape:
        raise ValueError(
            f"majority_at_k: predictions have shape {votes.shape}, rewards {rewards.shape};"
            " pass one prediction per reward"
        )
    table = _index_table(rewards.shape[1], k)
    draws = np.stack([_majority(*row, table) for row in zip(votes, rewards, strict=True)])
    return _estimate(draws.mean(axis=1), draws.std(axis=1), confidence, resamples, seed)


def pass_at_k(
    correct: np.ndarray,
    k: int,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """pass@k: the probability that at least one of k samples is correct, exact and unbiased.

    With c of n samples correct, 1 - C(n - c, k) / C(n, k): the share of subsets of size k, drawn
    *without* replacement, that hold a correct one.

    Args:
      correct: bool, or 0 and 1. [problem, sample].
      k: size of a subset, from 1 to the number of samples.
      confidence, resamples, seed: of the interval, as in `mean_at_k`.

    Returns:
      An `Estimate` whose `std` is the standard deviation of one subset's 0 or 1.
    """
    correct = _table("pass_at_k", correct, k)
    if not np.all((correct == 0) | (correct == 1)):
        other = correct[(correct != 0) & (correct != 1)][0]
        raise ValueError(f"pass_at_k: got {other}; pass 0 and 1, such as rewards >= 0.5")
    samples = correct.shape[1]
    passed = np.array(
        [1 - math.comb(samples - int(c), k) / math.comb(samples, k) for c in correct.sum(axis=1)]
    )
    return _estimate(passed, np.sqrt(passed * (1 - passed)), confidence, resamples, seed)


def paired_difference(
    rewards_a: np.ndarray,
    rewards_b: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Mean over problems of a - b, where row i of both is the same problem.

    Pairing takes out how hard the problems are, so the interval is narrower than those of the two
    means suggest. An interval without 0 is a difference beyond noise over problems; noise over
    training seeds is another matter.

    Args:
      rewards_a, rewards_b: [problem, sample], with any numbers of samples; or [problem], values
        per problem such as `Estimate.per_problem` of another statistic.
      confidence, resamples, seed: of the interval, as in `mean_at_k`.

    Returns:
      An `Estimate` of the difference; its `std` is the population standard deviation of the
      differences over problems.
    """
    a, b = (
        _table("paired_difference", rewards).mean(axis=1)
        for rewards in (_as_table(rewards_a), _as_table(rewards_b))
    )
    if len(a) != len(b):
        raise ValueError(
            f"paired_difference: got {len(a)} and {len(b)} problems; pass the same, in one order"
        )
    difference = a - b
    scatter = np.full(len(difference), difference.std())
    return _estimate(difference, scatter, confidence, resamples, seed)


def _estimate(
    per_problem: np.ndarray, scatter: np.ndarray, confidence: float, resamples: int, seed: int
) -> Estimate:
    """Mean over problems with its cluster-bootstrap interval."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; use a number between 0 and 1, such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; use at least 1, better 1000")
    rng, problems = np.random.default_rng(seed), len(per_problem)
    means = [per_problem[rng.integers(problems, size=problems)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(
        float(per_problem.mean()), float(low), float(high), float(scatter.mean()), per_problem
    )


def _majority(votes: np.ndarray, rewards: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Reward of the majority's first sample in each subset of one problem. [subset]."""
    names = {vote: code for code, vote in enumerate(dict.fromkeys(votes))}
    drawn = np.array([names[vote] for vote in votes])[table]  # [subset, k]
    agreeing = (drawn[:, :, None] == drawn[:, None, :]).sum(axis=2)
    first = agreeing.argmax(axis=1)  # the first of those with the most votes
    return rewards[table[np.arange(len(table)), first]]


def _index_table(samples: int, k: int) -> np.ndarray:
    """The subsets of the reference's bootstrap, with replacement. int [1000, k]."""
    return np.random.RandomState(_TABLE_SEED).choice(samples, size=(_TABLE_ROWS, k), replace=True)


def _as_table(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    return values[:, None] if values.ndim == 1 else values


def _table(name: str, values: np.ndarray, k: int | None = None) -> np.ndarray:
    """The values as float64 [problem, sample], with k checked against the samples."""
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"{name}: got shape {table.shape}; pass a filled [problem, sample] array")
    if k is not None and not 1 <= k <= table.shape[1]:
        raise ValueError(f"{name}: k is {k}; use 1 to {table.shape[1]}, the samples per problem")
    if not np.all(np.isfinite(table)):
        raise ValueError(f"{name}: got {table[~np.isfinite(table)][0]}; pass finite numbers only")
    return table


# ---- several runs -------------------------------------------------------------------------------


@dataclass(frozen=True)
class NestedEstimate:
    """A mean over worlds, seeds and problems.

    Attributes:
      value: the mean of the worlds' means.
      low, high: ends of its bootstrap percentile interval.
      p_value: two-sided, for a mean of 0: twice the share of resampled means on the other side.
    """

    value: float
    low: float
    high: float
    p_value: float


def nested_mean(
    worlds: Sequence[np.ndarray],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[NestedEstimate]:
    """Means over worlds x seeds x problems, with a bootstrap that resamples on each level.

    A resample draws worlds, in each of them seeds, and in each of them problems, the same ones for
    all its seeds, since a problem that is hard is hard for every seed. Of n worlds or seeds it
    draws n - 1 (Rao and Wu 1988): n would understate the variance by (n - 1) / n, which is half of
    it for two. A level with one member is not resampled, and the interval then says nothing about
    others.

    Coverage of the 95 % interval in simulations with 96 problems, per 1,000: where worlds differ by
    more than the noise of one, 885 for 2 worlds x 1 seed, 955 to 978 from 2 x 3 on; where they do
    not differ at all, 990 and more: it errs to the wide side.

    Args:
      worlds: an array a world. float [measure, seed, problem]; measures are estimated apart, on the
        same resamples.
      confidence: coverage of the intervals, between 0 and 1.
      resamples: number of resamples.
      seed: of the bootstrap.

    Returns:
      An estimate a measure.
    """
    arrays = [np.asarray(world, np.float64) for world in worlds]
    if not arrays or any(array.ndim != 3 or not array.size for array in arrays):
        shapes = ", ".join(str(array.shape) for array in arrays) or "nothing"
        raise ValueError(
            f"nested_mean: got {shapes}; pass a [measure, seed, problem] array a world"
        )
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("nested_mean: got a number that is not finite; pass finite numbers only")
    rng = np.random.default_rng(seed)
    drawn = max(1, len(arrays) - 1)
    picked = rng.integers(len(arrays), size=(resamples, drawn))
    means = np.zeros((resamples, len(arrays[0])))
    for world, array in enumerate(arrays):
        rows = np.nonzero(picked == world)[0]  # a resample may hold a world more than once
        seeds = _shares(rng, array.shape[1], len(rows), drawn=max(1, array.shape[1] - 1))
        problems = _shares(rng, array.shape[2], len(rows), drawn=array.shape[2])
        for measure, values in enumerate(array):
            np.add.at(means[:, measure], rows, ((seeds @ values) * problems).sum(axis=1) / drawn)
    estimates = []
    for measure, column in enumerate(means.T):
        value = float(np.mean([array[measure].mean() for array in arrays]))
        low, high = np.quantile(column, [(1 - confidence) / 2, (1 + confidence) / 2])
        beyond = min(np.sum(column <= 0), np.sum(column >= 0))
        p_value = min(1.0, 2 * (1 + int(beyond)) / (1 + resamples))
        estimates.append(NestedEstimate(value, float(low), float(high), p_value))
    return estimates


def _shares(rng: np.random.Generator, count: int, rows: int, *, drawn: int) -> np.ndarray:
    """How much each of `count` members weighs when `drawn` are drawn. [row, member]"""
    return rng.multinomial(drawn, np.full(count, 1 / count), size=rows) / drawn


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for being several, after Holm (1979).

    The chance that any true null hypothesis is rejected at level a is at most a, whatever depends
    on what. The smallest is multiplied by their number, the next by one less, and so on; none
    falls below the one before it.
    """
    order = np.argsort(p_values, kind="stable")
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
