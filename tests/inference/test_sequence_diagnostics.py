"""Offline diagnostics of sequence models, against exact probabilities and enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import special

import decisionppl as dp
from decisionppl.inference.sequence_diagnostics import loss_gap, sequence_loss
from decisionppl.models import sequences

EVERY = np.array(list(itertools.product([0, 1], repeat=6)))


def urn_loss(alpha, beta, y):
    ones = y.sum(axis=1)
    after = special.betaln(alpha + ones, beta + y.shape[1] - ones)
    return special.betaln(alpha, beta) - after


def coin(length):
    """All sequences equally likely."""

    def step(carry, _):
        return carry, dp.outcome("y", dist.Bernoulli(jnp.full((), 0.5)))

    return scan(step, jnp.zeros(()), None, length=length)[1]


def test_losses_sum_to_the_joint_probability():
    loss = sequence_loss(sequences.polya_urn(0.7, 2.0).sequence, (6,), EVERY)
    assert loss.shape == (64, 6)
    np.testing.assert_allclose(loss.sum(axis=1), urn_loss(0.7, 2.0, EVERY), rtol=1e-5)
    first = np.where(EVERY[:, 0] == 1, 0.7, 2.0) / 2.7
    np.testing.assert_allclose(np.exp(-loss[:, 0]), first, rtol=1e-5)


def test_covariates_of_each_sequence_or_of_all():
    """More sequences than are done at a time, and their covariates one by one."""
    model = sequences.regions([1.0, 0.5], [0.3, 0.8]).sequence
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-5, 5, (131, 4)), rng.normal(size=(131, 4))
    bins = (x > 0).astype(int)
    same = bins[:, :, None] == bins[:, None]
    s, n = np.array([1.0, 0.5])[bins], np.array([0.3, 0.8])[bins]
    cov = same * s[:, :, None] ** 2 + np.eye(4) * n[:, :, None] ** 2
    quadratic = np.einsum("bi,bij,bj->b", y, np.linalg.inv(cov), y)
    exact = 0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * cov)[1])
    loss = sequence_loss(model, (x,), {"y": y})
    np.testing.assert_allclose(loss.sum(axis=1), exact, rtol=1e-4)
    common = sequence_loss(model, (x[0],), y[:3])
    alone = sequence_loss(model, (np.stack([x[0]] * 3),), y[:3])
    np.testing.assert_allclose(common, alone, rtol=1e-6)
    np.testing.assert_allclose(common[0], loss[0], rtol=1e-5)


def test_gap_is_the_divergence_by_enumeration():
    """All sequences are equally likely under the coin, so their mean is its expectation."""
    urn = sequences.polya_urn(0.7, 2.0).sequence
    found = loss_gap(urn, coin, (6,), EVERY)
    differences = urn_loss(0.7, 2.0, EVERY) - 6 * np.log(2)
    divergence = differences.mean()
    assert divergence > 0.3
    assert found.gap == pytest.approx(divergence, rel=1e-5)
    assert found.stderr == pytest.approx(differences.std(ddof=1) / 8, rel=1e-5)
    assert found.per_step.shape == (6,)
    assert found.per_step.sum() == pytest.approx(divergence, rel=1e-5)
    # the first step: one Bernoulli against another
    first = -0.5 * np.log(0.7 / 2.7 * 2) - 0.5 * np.log(2.0 / 2.7 * 2)
    assert found.per_step[0] == pytest.approx(first, rel=1e-4)
    assert found.regret_term == pytest.approx(np.sqrt(2 * divergence), rel=1e-5)


def test_gap_of_a_wrong_prior_from_samples():
    right, wrong = sequences.polya_urn(2.0, 1.0).sequence, sequences.polya_urn(1.0, 4.0).sequence
    weight = np.exp(-urn_loss(2.0, 1.0, EVERY))
    divergence = weight @ (urn_loss(1.0, 4.0, EVERY) - urn_loss(2.0, 1.0, EVERY))
    keys = jax.random.split(jax.random.key(0), 2000)
    y = jax.vmap(lambda key: dp.play(right, key)(6)["y"]["value"])(keys)
    found = loss_gap(wrong, right, (6,), y)
    assert abs(found.gap - divergence) < 4 * found.stderr
    assert 0 < found.stderr < 0.1 * divergence


def test_no_gap_to_itself():
    found = loss_gap(coin, coin, (6,), EVERY)
    assert (found.gap, found.stderr, found.regret_term) == (0.0, 0.0, 0.0)
    assert not found.per_step.any()


def test_better_than_the_reference_adds_no_regret():
    found = loss_gap(coin, sequences.polya_urn(0.7, 2.0).sequence, (6,), EVERY)
    assert found.gap < 0
    assert found.regret_term == 0.0


def test_gaps_of_independent_arms_add():
    urn = sequences.polya_urn(0.7, 2.0).sequence
    one, ten = (loss_gap(urn, coin, (6,), EVERY, num_arms=k) for k in (1, 10))
    for name in ("gap", "stderr", "per_step"):
        np.testing.assert_allclose(getattr(ten, name), 10 * getattr(one, name), rtol=1e-6)
    assert ten.regret_term == pytest.approx(np.sqrt(10) * one.regret_term)


def test_reference_with_other_arguments():
    regions = sequences.regions([1.0], [1.0]).sequence
    y = np.random.default_rng(0).normal(size=(5, 3))
    same = sequences.normal_normal().sequence
    found = loss_gap(regions, same, (np.zeros((5, 3)),), y, reference_args=(3,))
    assert found.gap == pytest.approx(0.0, abs=1e-6)


def test_a_loss_that_is_nan_shows():
    y = np.array([[0.0, np.nan], [0.0, 1.0]])
    found = loss_gap(sequences.normal_normal().sequence, coin_like, (2,), y)
    assert np.isnan(found.gap)
    assert np.isnan(found.regret_term)


def coin_like(length):
    def step(carry, _):
        return carry, dp.outcome("y", dist.Normal(jnp.zeros(()), 1.0))

    return scan(step, jnp.zeros(()), None, length=length)[1]


@pytest.mark.parametrize(
    ("args", "values", "error", "message"),
    [
        (6, EVERY, TypeError, "args: .*tuple, got int"),
        ((6,), EVERY[0], ValueError, "values: expected shape \\[sequences, T, ...\\]"),
        ((5,), EVERY, ValueError, "site 'y': expected shape \\(64, 5\\), got \\(64, 6\\)"),
        ((6,), {"z": EVERY}, ValueError, "expected the data sites \\['y'\\], got \\['z'\\]"),
    ],
)
def test_errors_name_what_is_wrong(args, values, error, message):
    with pytest.raises(error, match=message):
        sequence_loss(coin, args, values)


def test_errors_of_the_gap():
    with pytest.raises(ValueError, match="at least 2 sequences, got 1"):
        loss_gap(coin, coin, (6,), EVERY[:1])
    with pytest.raises(ValueError, match="num_arms: .*got 0"):
        loss_gap(coin, coin, (6,), EVERY, num_arms=0)
