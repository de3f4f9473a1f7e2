"""The test of uniform ranks: its null distribution is exact, its bands hold what they promise."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decisionppl.testing._uniformity import _inside, bands, null_of, p_value, statistic


@pytest.mark.parametrize(("num_ranks", "num_values"), [(3, 2), (4, 3), (5, 4), (2, 6)])
def test_p_value_equals_enumeration_of_all_samples(num_ranks, num_values):
    samples = [np.array(x) for x in itertools.product(range(num_values), repeat=num_ranks)]
    values = np.array([statistic(x, num_values) for x in samples])
    few = slice(None, None, len(samples) // 20 or 1)
    for sample, value in zip(samples[few], values[few], strict=True):
        expected = np.mean(values <= value * (1 + 1e-12))
        assert p_value(sample, num_values) == pytest.approx(expected, abs=1e-9)


def test_p_value_agrees_with_a_simulated_null():
    rng = np.random.default_rng(0)
    null = np.array([statistic(rng.integers(0, 51, 80), 51) for _ in range(4000)])
    for quantile in (0.05, 0.2, 0.5, 0.8):
        value = np.quantile(null, quantile)
        exact = 1 - _inside(null_of(80, 51), value)
        assert exact == pytest.approx(np.mean(null <= value), abs=5 * 0.5 / 4000**0.5)


def test_tiny_p_values_do_not_vanish_in_rounding():
    ranks = np.zeros(300, int)
    assert p_value(ranks, 101) < 1e-280
    # ever more of 200 ranks in the lowest tenth
    samples = [
        np.concatenate([np.arange(200 - n) % 100, np.arange(n) % 10]) for n in range(0, 90, 10)
    ]
    values = [p_value(x, 100) for x in samples]
    assert all(0 < b < a for a, b in itertools.pairwise(values[1:]))
    assert values[0] > 0.99
    assert values[-1] < 1e-40


@pytest.mark.parametrize(("num_ranks", "num_values", "level"), [(60, 21, 0.05), (200, 400, 0.01)])
def test_uniform_ranks_leave_the_bands_at_most_at_the_level(num_ranks, num_values, level):
    share, lower, upper = bands(num_ranks, num_values, level)
    rng = np.random.default_rng(1)
    repeats = 3000
    ranks = rng.integers(0, num_values, (repeats, num_ranks))
    points = null_of(num_ranks, num_values).points
    ecdf = (ranks[:, :, None] < points).mean(axis=1)
    outside = ((ecdf < lower - 1e-9) | (ecdf > upper + 1e-9)).any(axis=1).mean()
    # discrete, so at most the level; not far below it either
    assert 0.4 * level < outside < level + 4 * (level / repeats) ** 0.5
    assert ((lower < share) & (share < upper)).all()


@given(st.integers(0, 2**32 - 1))
def test_bands_and_p_value_agree(seed):
    rng = np.random.default_rng(seed)
    ranks = rng.binomial(20, rng.uniform(0.4, 0.6), 50)
    _, lower, upper = bands(50, 21, 0.05)
    ecdf = (ranks[:, None] < null_of(50, 21).points).mean(axis=0)
    outside = ((ecdf < lower - 1e-9) | (ecdf > upper + 1e-9)).any()
    assert outside == (p_value(ranks, 21) <= 0.05)
