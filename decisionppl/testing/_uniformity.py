"""Are ranks uniform? A simultaneous test of their empirical distribution, with bands.

The statistic is that of Säilynoja, Bürkner and Vehtari (2022), Statistics and Computing
32:32, arXiv 2103.10522: the smallest two-sided binomial tail probability of the empirical
distribution function, over all points where it is looked at. Its null distribution is
computed exactly, by following the counts from point to point, where a simulated one would
bound the p-value from below and add noise to it.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy import special, stats

MOST_POINTS = 200


class Null(NamedTuple):
    """Independent uniform ranks, looked at in a number of points.

    Attributes:
        num_ranks: N, how many ranks.
        points: the points as numbers of rank values to their left, [points].
        share: probability of a rank to the left of each point, [points].
        tail: two-sided tail probability of each count at each point, [points, N + 1].
    """

    num_ranks: int
    points: np.ndarray
    share: np.ndarray
    tail: np.ndarray


@functools.lru_cache(maxsize=16)
def null_of(num_ranks: int, num_values: int) -> Null:
    """The null for N ranks, each uniform on 0, ..., num_values - 1.

    Looked at between all values, or at 200 places where there are more.
    """
    count = min(num_values - 1, MOST_POINTS)
    points = np.unique(np.round(np.arange(1, count + 1) * num_values / (count + 1)).astype(int))
    share = points / num_values
    counts = np.arange(num_ranks + 1)
    below = stats.binom.cdf(counts, num_ranks, share[:, None])
    above = stats.binom.sf(counts - 1, num_ranks, share[:, None])
    return Null(num_ranks, points, share, 2 * np.minimum(below, above))


def _inside(null: Null, limit: float) -> float:
    """P(the tail probability exceeds `limit` at every point), by dynamic programming."""
    # tails that are equal by symmetry may differ in their last digits
    allowed = null.tail > limit * (1 + 1e-9)
    if not allowed.any(axis=1).all():
        return 0.0
    factorial = special.gammaln(np.arange(null.num_ranks + 1) + 1.0)
    reached, mass, before = np.zeros(1, int), np.ones(1), 0.0
    for share, row in zip(null.share, allowed, strict=True):
        # among the ranks not yet counted, each lies in this stretch with this probability
        step = (share - before) / (1.0 - before)
        target = np.flatnonzero(row)
        rest = null.num_ranks - reached
        moved = target[:, None] - reached[None, :]
        possible = (moved >= 0) & (moved <= rest)
        k = np.where(possible, moved, 0)
        left = rest - k
        log_choose = factorial[rest] - factorial[k] - factorial[left]
        density = np.exp(log_choose + k * np.log(step) + left * np.log1p(-step))
        mass = np.where(possible, density, 0.0) @ mass
        reached, before = target, share
    return float(mass.sum())


def statistic(ranks: np.ndarray, num_values: int) -> float:
    """The smallest tail probability of the empirical distribution function, over all points."""
    null = null_of(len(ranks), num_values)
    counts = np.searchsorted(np.sort(ranks), null.points, side="left")
    return float(null.tail[np.arange(len(counts)), counts].min())


def p_value(ranks: np.ndarray, num_values: int) -> float:
    """P(a sample of uniform ranks looks at least as uneven as this one), exact.

    Args:
        ranks: integers in 0, ..., num_values - 1, shape [N].
        num_values: how many values a rank can take, one more than the draws ranked among.

    Example:
        >>> import numpy as np
        >>> p_value(np.arange(200) % 100, 100) > 0.9, p_value(np.arange(200) // 3, 100) < 1e-6
        (True, True)
    """
    null = null_of(len(ranks), num_values)
    seen = statistic(ranks, num_values)
    # rounding hides what is below 1e-12; there a union bound over the points is as good
    bound = min(len(null.points) * seen, 1.0)
    return min(bound, max(1.0 - _inside(null, seen), 1e-12))


def bands(num_ranks: int, num_values: int, level: float) -> tuple[np.ndarray, ...]:
    """Simultaneous bands of the empirical distribution function of uniform ranks.

    Args:
        num_ranks: N.
        num_values: how many values a rank can take.
        level: probability that uniform ranks leave the bands anywhere.

    Returns:
        (share, lower, upper), each [points]: the true distribution function at the points,
        and the smallest and largest empirical value inside the bands.
    """
    null = null_of(num_ranks, num_values)
    low, high = np.log(level / len(null.points)), np.log(level)
    # at `low` a union bound says that at most `level` leaves the bands
    for _ in range(25):
        middle = (low + high) / 2
        if 1.0 - _inside(null, np.exp(middle)) <= level:
            low = middle
        else:
            high = middle
    allowed = null.tail > np.exp(low)
    lower = allowed.argmax(axis=1)
    upper = num_ranks - allowed[:, ::-1].argmax(axis=1)
    return null.share, lower / num_ranks, upper / num_ranks
