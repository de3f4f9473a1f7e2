"""Geweke's test: right kernels pass, and it sees what it should."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import decisionppl as dp
from decisionppl import inference, testing
from decisionppl.models import bandits

KEY = jax.random.key(11)
FAST = {"num_chains": 16, "num_samples": 1000, "num_marginal": 20_000}


def normal(precision=1.0, noise=1.0):
    def model():
        mu = numpyro.sample("mu", dist.Normal(0, precision**-0.5).expand([2]).to_event(1))
        dp.outcome("y", dist.Normal(mu, noise).to_event(1))

    return model


def mala(*given):
    return testing.hmc_transition(normal(*given), step_size=0.8)


def test_right_kernels_pass():
    testing.assert_geweke(normal(), mala(), key=KEY, num_rows=5, level=1e-7, **FAST)
    hmc = testing.hmc_transition(normal(), step_size=0.4, num_steps=3)
    testing.assert_geweke(normal(), hmc, key=KEY, num_rows=5, level=1e-7, **FAST)


@pytest.mark.parametrize("engine", ["conjugate", "laplace"])
def test_engines_pass_as_exact_samplers(engine):
    made = getattr(inference, engine)(normal())
    testing.assert_geweke(normal(), made, key=KEY, num_rows=3, level=1e-7, **FAST)


def test_actions_are_logged_and_bounded_latents_are_fine():
    model = bandits.beta_bernoulli(2)
    made = inference.conjugate(model)
    found = testing.assert_geweke(model, made, key=KEY, num_rows=4, level=1e-7, **FAST)
    assert not any("arm" in n for n in found.names)
    assert "(probability[0]) (mean reward)" in found.names


@pytest.mark.parametrize("factor", [1.2, 0.8])
def test_a_wrong_prior_precision_is_seen(factor):
    found = testing.geweke(normal(), mala(factor), key=KEY, num_rows=5, **FAST)
    assert not found.passed
    assert np.abs(found.z).max() > 5
    square = found.z[found.names.index("(mu[0])²")]
    assert np.sign(square) == np.sign(1 - factor)  # a tighter prior, smaller squares
    assert abs(square) > 3.5
    # first moments are blind to it
    assert np.abs(found.z[:2]).max() < 4


def test_wrong_noise_is_seen():
    assert not testing.geweke(normal(), mala(1.0, 1.3), key=KEY, num_rows=5, **FAST).passed


@pytest.mark.slow
def test_z_is_calibrated_over_repeats():
    model = normal()
    step = inference.conjugate(model)
    small = {"num_chains": 8, "num_samples": 200, "num_marginal": 2000}
    z = np.stack(
        [testing.geweke(model, step, key=i, num_rows=3, **small).z for i in range(20)]
    ).ravel()
    assert 0.75 < np.mean(z**2) < 1.3  # 20 x 26 dependent values of mean 1
    assert np.mean(np.abs(z) > 2.58) < 0.04


def test_further_functions_are_compared():
    found = testing.geweke(
        normal(), mala(1.5), key=KEY, num_rows=5, **FAST,
        functions=lambda world, rows: {"sum": world["mu"].sum(), "abs": jnp.abs(world["mu"])},
    )  # fmt: skip
    assert {"sum", "abs[0]", "abs[1]"} <= set(found.names)
    assert abs(found.z[found.names.index("abs[0]")]) > 5


def test_chains_that_hardly_move_are_reported():
    stuck = testing.hmc_transition(normal(), step_size=1e-4)
    found = testing.geweke(normal(), stuck, key=KEY, num_rows=5, **FAST)
    assert found.passed
    assert "so little would be noticed" in found.message


def test_discrete_latents_and_plain_models():
    def plain():
        k = numpyro.sample("k", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(k * 1.0, 1.0))

    def gibbs(bias):
        def step(key, world, rows):
            y = rows.sites["y"]
            logit = jnp.log(0.3 / 0.7) + jnp.sum(y - 0.5) + bias
            return {"k": jax.random.bernoulli(key, jax.nn.sigmoid(logit)).astype(int)}

        return step

    run = lambda bias: testing.geweke(plain, gibbs(bias), key=KEY, data="y", **FAST)  # noqa: E731
    assert run(0.0).passed
    assert not run(0.4).passed


@pytest.mark.parametrize(
    ("transition", "error", "match"),
    [
        (3, TypeError, "transition: expected a function"),
        (lambda key, world, rows: {"mu": world["mu"][:1]}, ValueError, "expected a world of"),
        (lambda key, world, rows: {}, ValueError, "expected a world of"),
    ],
)
def test_bad_transitions_say_what_was_expected(transition, error, match):
    with pytest.raises(error, match=match):
        testing.geweke(normal(), transition, key=KEY)
    with pytest.raises(ValueError, match="step_size: expected a positive number"):
        testing.hmc_transition(normal(), step_size=-1.0)
