"""Exchangeability, martingales and the chain rule: exact models pass, broken ones do not."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro.contrib.control_flow import scan
from scipy import special, stats

import decisionppl as dp
from decisionppl import testing

STEPS = 6


def urn(alpha=1.0, beta=1.0, reinforcement=0.0, steps=STEPS):
    """Polya urn; later balls may count more, which keeps the martingale and loses the order."""

    def step(counts, t):
        y = dp.outcome("y", dist.Bernoulli(counts[1] / counts.sum()))
        return counts.at[y].add(1.0 + reinforcement * t), y

    scan(step, jnp.array([beta, alpha]), jnp.arange(steps))


def normal(overconfidence=0.0, steps=STEPS):
    def step(state, t):
        mean, variance = state
        y = dp.outcome("y", dist.Normal(mean, jnp.sqrt(variance + 1.0)))
        precision = 1 / variance + 1.0
        return ((mean / variance + (1 + overconfidence) * y) / precision, 1 / precision), y

    scan(step, (0.0, 1.0), jnp.arange(steps))


def counts():
    """Gamma-Poisson: countable support, no closed-form quantiles."""

    def step(state, t):
        y = dp.outcome("y", dist.GammaPoisson(*state))
        return (state[0] + y, state[1] + 1.0), y

    scan(step, (2.0, 1.0), jnp.arange(4))


def sticky():
    def step(p, _):
        y = dp.outcome("y", dist.Bernoulli(p))
        return 0.2 + 0.5 * y, y

    scan(step, 0.5, jnp.arange(4))


def regression(x):
    """Linear regression as a sequence: the order of (x, y) pairs does not matter."""

    def step(state, x):
        mean, precision = state
        variance = 1 / precision
        y = dp.outcome("y", dist.Normal(mean * x, jnp.sqrt(1 + x**2 * variance)))
        now = precision + x**2
        return ((precision * mean + x * y) / now, now), y

    scan(step, (0.0, 1.0), x)


def peeking():
    """A "sequence" whose laws see the future: each is centred on the mean of all."""
    mean = numpyro.deterministic("mean", 0.0)
    y = dp.outcome("y", dist.Normal(mean, 1.0).expand([STEPS]))
    dp.outcome("z", dist.Normal(y.mean(), 1.0).expand([STEPS]))


@given(st.floats(0.5, 5.0, width=32), st.floats(0.5, 5.0, width=32))
@settings(max_examples=2)
def test_an_urn_passes_whatever_its_prior(alpha, beta):
    args = jnp.float32(alpha), jnp.float32(beta)
    found = testing.assert_exchangeable(urn, *args)
    testing.assert_martingale(urn, *args)

    def beta_binomial(data):
        ones = data["y"].sum()
        return jax.scipy.special.betaln(args[0] + ones, args[1] + STEPS - ones) - (
            jax.scipy.special.betaln(*args)
        )

    testing.assert_consistency(urn, *args, joint=beta_binomial)
    assert found.gap < 1e-5
    # log probabilities are those of the Beta-Bernoulli model
    ones = np.arange(STEPS + 1)
    known = special.betaln(alpha + ones, beta + STEPS - ones) - special.betaln(alpha, beta)
    assert np.abs(found.log_prob[..., None] - known).min(axis=-1).max() < 1e-4


def test_normal_and_count_sequences_pass():
    for model in (normal, counts):
        testing.assert_exchangeable(model)
        testing.assert_consistency(model)
    testing.assert_martingale(normal, level=1e-7)
    testing.assert_martingale(counts, level=1e-7, num_samples=32, num_sequences=2, num_positions=2)


def test_the_joint_of_a_normal_sequence_is_a_multivariate_normal():
    def joint(data):
        covariance = jnp.eye(STEPS) + jnp.ones((STEPS, STEPS))
        return dist.MultivariateNormal(jnp.zeros(STEPS), covariance).log_prob(data["y"])

    testing.assert_consistency(normal, joint=joint)
    found = testing.check_consistency(normal, 0.1, joint=joint)
    assert not found.passed
    assert found.future_gap < 1e-5
    assert found.joint_gap > 0.01


def test_covariates_move_with_the_data():
    x = jnp.asarray([0.5, -1.0, 2.0, 0.1, 1.0, -0.3])
    testing.assert_exchangeable(regression, x)
    fixed = testing.check_exchangeable(lambda: regression(x))
    assert not fixed.passed  # the same data at other covariates


def test_order_dependence_is_measured():
    found = testing.check_exchangeable(urn, 1.0, 1.0, 0.3)
    assert not found.passed
    assert 0.1 < found.spread < found.gap
    testing.assert_martingale(urn, 1.0, 1.0, 0.3)  # still a martingale, exactly
    assert testing.check_exchangeable(urn, 1.0, 1.0, 0.3, tolerance=math.inf).passed


def test_drift_is_measured_exactly_for_finite_support():
    found = testing.check_martingale(sticky)
    assert not found.passed
    assert (found.stderr == 0).all()
    # E[0.2 + 0.5 y] - p at p = 0.5, the law of the first step
    first = found.gap[:, 0, found.probes.index("p(1)")]
    np.testing.assert_allclose(first, -0.05, atol=1e-6)


def test_drift_of_a_continuous_sequence_is_measured():
    found = testing.check_martingale(normal, 0.1)
    assert not found.passed
    assert "drift of mean" in found.message
    n = list(found.positions).index(0)
    # from a prior mean of 0 the imagined mean stays 0, the law gets wider
    mean = found.probes.index("mean")
    assert abs(found.gap[0, n, mean]) < 5 * found.stderr[0, n, mean] + 1e-4


def test_the_standard_errors_of_drift_are_right():
    found = testing.check_martingale(normal, num_sequences=16, num_samples=32)
    z = (found.gap / found.stderr).ravel()
    # t distributed with 15 degrees of freedom, and dependent within a law
    assert 0.6 < np.mean(z**2) / stats.t.var(15) < 1.6


def test_laws_that_see_the_future_are_caught():
    found = testing.check_consistency(peeking)
    assert not found.passed
    assert found.future_gap > 0.01
    assert "change of log p(y_t | past) with the future" in found.message


def test_a_shorter_version_gives_the_same_first_steps():
    def of_length(n):
        return lambda shift: normal(shift * n, n)

    def model(x):
        normal(steps=len(x))

    testing.assert_consistency(model, jnp.ones(6), shorter=(jnp.ones(3),))

    def depends_on_length(x):
        normal(overconfidence=len(x) / 10, steps=len(x))

    found = testing.check_consistency(depends_on_length, jnp.ones(6), shorter=(jnp.ones(3),))
    assert not found.passed
    assert found.prefix_gap > 1e-3
    with pytest.raises(ValueError, match="shorter: it gives 6 steps, the model itself 3"):
        testing.check_consistency(model, jnp.ones(3), shorter=(jnp.ones(6),))


def test_models_that_are_no_sequences_say_so():
    def scalar():
        dp.outcome("y", dist.Normal(0, 1))

    def plain():
        numpyro.sample("y", dist.Normal(0, 1).expand([3]))

    def latent():
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        dp.outcome("y", dist.Normal(mu, 1).expand([3]))

    with pytest.raises(ValueError, match="one leading axis"):
        testing.check_exchangeable(scalar)
    with pytest.raises(ValueError, match="carries a role"):
        testing.check_exchangeable(plain)
    testing.assert_exchangeable(plain, sites="y")
    testing.assert_exchangeable(latent)  # given its latents
    with pytest.raises(ValueError, match="latent sites \\['mu'\\]"):
        testing.check_martingale(latent)
    with pytest.raises(ValueError, match="sites names \\['q'\\]"):
        testing.check_consistency(plain, sites="q")
