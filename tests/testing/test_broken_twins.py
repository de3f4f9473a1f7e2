"""Deliberately broken twins of right models and engines, and the check that catches each.

The right one passes the same check with the same settings, at a level of 1e-4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan

import decisionppl as dp
from decisionppl import inference, testing
from decisionppl._inference import Rows
from decisionppl.models import bandits
from decisionppl.testing import reference

KEY = jax.random.key(5)
LEVEL = 1e-4


def normal(prior_scale=1.0, noise=1.0):
    return reference.normal_normal(0.0, prior_scale, noise).model


RIGHT = inference.conjugate(normal())


def calibrated(engine):
    return testing.sbc(normal(), engine, key=KEY, num_rows=2, num_simulations=1000, level=LEVEL)


def dropped_datum():
    """An engine that never sees the last row."""

    def update(key, belief, rows):
        return RIGHT.update(key, belief, Rows(rows.args, rows.sites, rows.mask.at[-1].set(False)))

    return RIGHT._replace(update=update)


def counted_twice():
    def update(key, belief, rows):
        return RIGHT.update(key, RIGHT.update(key, belief, rows), rows)

    return RIGHT._replace(update=update)


def posterior_is_prior():
    return RIGHT._replace(update=lambda key, belief, rows: belief)


def reused_key():
    """All worlds of a belief are drawn with one and the same key."""

    def sample(key, belief, num_worlds):
        one = RIGHT.sample(key, belief, 1)
        return jax.tree.map(lambda x: jnp.repeat(x, num_worlds, axis=0), one)

    return RIGHT._replace(sample=sample)


def shifted():
    return RIGHT._replace(sample=lambda *a: jax.tree.map(lambda x: x + 0.15, RIGHT.sample(*a)))


def as_sampler(precision):
    step = testing.hmc_transition(normal(precision**-0.5), step_size=0.9)
    settings = {"num_chains": 16, "num_samples": 2000, "num_marginal": 30_000}
    return testing.geweke(normal(), step, key=KEY, num_rows=5, level=LEVEL, **settings)


BANDIT = bandits.beta_bernoulli(2)
LOG = dp.observe(BANDIT, sites={"arm": [0, 0, 1], "reward": [1, 0, 1]})


def matching(engine):
    best = reference.beta_bernoulli(2).best_probability(LOG)
    return testing.probability_matching(
        BANDIT, engine, LOG, key=KEY, expected=best, num_decisions=2000, level=LEVEL
    )


def fixed_key():
    """Every decision draws its world with the same key, so all decisions are the same."""
    engine = inference.conjugate(BANDIT)
    return engine._replace(sample=lambda key, *a: engine.sample(jax.random.key(0), *a))


def chain():
    def step(state, t):
        state = dp.state("s", 0.5 * state + dp.action("a", dist.Bernoulli(0.5), given=state))
        dp.reward("r", state)
        return state, None

    scan(step, 0.0, jnp.arange(4))


def intervened(how):
    return testing.check_intervention(chain, intervene=how)


def urn(replaced):
    def model():
        def step(counts, t):
            y = dp.outcome("y", dist.Bernoulli(counts[1] / counts.sum()))
            return counts.at[y].add(1.0 + replaced * t), y

        scan(step, jnp.ones(2), jnp.arange(6))

    return testing.check_exchangeable(model)


def drifting(pull):
    def model():
        def step(p, t):
            y = dp.outcome("y", dist.Bernoulli(p))
            return p + pull * (0.8 - p), y

        scan(step, 0.5, jnp.arange(4))

    return testing.check_martingale(model)


def causal(leak):
    def model():
        y = dp.outcome("y", dist.Normal(0, 1).expand([5]))
        dp.outcome("z", dist.Normal(leak * jnp.roll(y, -1), 1.0))

    return testing.check_consistency(model)


def intervals(width):
    def estimator(key):
        y = jax.random.normal(key, (10,)).mean()
        return y - width / 10**0.5, y + width / 10**0.5

    return testing.coverage(estimator, 0.0, key=KEY, num_repetitions=2000, level=LEVEL)


def keys_in_model(reuse):
    def model():
        first = numpyro.prng_key()
        second = first if reuse else numpyro.prng_key()
        noise = jax.random.normal(first) + jax.random.normal(second)
        dp.reward("r", dp.action("a", 2) + jax.lax.stop_gradient(noise))

    return testing.check_model(model)


class Twin(NamedTuple):
    check: object
    right: object
    broken: object


TWINS = {
    "prior scale": Twin(calibrated, RIGHT, inference.conjugate(normal(prior_scale=0.5))),
    "wrong noise": Twin(calibrated, RIGHT, inference.conjugate(normal(noise=1.4))),
    "dropped datum": Twin(calibrated, RIGHT, dropped_datum()),
    "data counted twice": Twin(calibrated, RIGHT, counted_twice()),
    "posterior = prior": Twin(calibrated, RIGHT, posterior_is_prior()),
    "reused key, worlds": Twin(calibrated, RIGHT, reused_key()),
    "shifted posterior": Twin(calibrated, RIGHT, shifted()),
    "prior precision x 1.2, sampler": Twin(as_sampler, 1.0, 1.2),
    "prior precision x 0.8, sampler": Twin(as_sampler, 1.0, 0.8),
    "reused key, decisions": Twin(matching, inference.conjugate(BANDIT), fixed_key()),
    "reused key, model": Twin(keys_in_model, False, True),
    "intervention that does nothing": Twin(
        intervened, dp.act, lambda model, values: handlers.do(model, data=values)
    ),
    "non-exchangeable sequence": Twin(urn, 0.0, 0.2),
    "drifting sequence": Twin(drifting, 0.0, 0.1),
    "law that sees the future": Twin(causal, 0.0, 0.5),
    "narrow intervals": Twin(intervals, 1.959964, 1.7),
}


@pytest.mark.parametrize("name", TWINS)
def test_the_twin_is_caught_and_the_right_one_is_not(name):
    check, right, broken = TWINS[name]
    passed = check(right)
    assert passed.passed, passed.message
    caught = check(broken)
    assert not caught.passed, caught.message
