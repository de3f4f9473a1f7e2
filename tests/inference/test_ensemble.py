"""Ensembles: exact for linear Gaussian models, at the prior without data, frozen where told.

Monte Carlo bounds are 5.7 standard errors: a correct program fails one with a chance of about 1e-8.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import decisionppl as dp
from decisionppl import inference, lookahead

KEY = jax.random.key(0)
X = np.array([-1.0, 0.5, 2.0])
Y = np.array([0.3, 1.0, -0.5])
MEMBERS = 4000


def line():
    w = numpyro.sample("w", dist.Normal(jnp.array([1.0, -1.0]), 0.7).to_event(1))
    x = dp.action("x", dist.Normal(0, 3))
    dp.reward("y", dist.Normal(w[0] + w[1] * x, 0.5 + 0.2 * jnp.abs(x)))


def fitted(**options):
    settings = {"num_members": MEMBERS, "num_steps": 400, "optimizer": optax.adam(0.03)}
    engine = inference.ensemble(line, **{**settings, **options})
    belief = engine.update(KEY, engine.init(KEY), dp.observe(line, sites={"x": X, "y": Y}))
    return engine, belief


def exact():
    phi = np.column_stack([np.ones(3), X])
    precision = np.eye(2) / 0.49 + phi.T @ (phi / ((0.5 + 0.2 * np.abs(X)) ** 2)[:, None])
    covariance = np.linalg.inv(precision)
    pull = np.array([1.0, -1.0]) / 0.49 + phi.T @ (Y / (0.5 + 0.2 * np.abs(X)) ** 2)
    return covariance @ pull, covariance


def test_noise_makes_members_draws_from_the_posterior():
    engine, belief = fitted(perturb="noise")
    w = np.asarray(engine.sample(KEY, belief, MEMBERS)["w"])
    mean, covariance = exact()
    assert (np.abs(w.mean(0) - mean) < 5.7 * np.sqrt(np.diag(covariance) / MEMBERS)).all()
    found = np.cov(w, rowvar=False)
    sd = np.sqrt(np.diag(covariance))
    error = np.sqrt((np.outer(sd, sd) ** 2 + covariance**2) / MEMBERS)
    assert (np.abs(found - covariance) < 5.7 * error).all()


def test_without_perturbation_members_differ_by_their_priors_alone():
    """A linear fit: members are contracted draws, of covariance S P^-1 S for a prior P."""
    engine, belief = fitted(perturb=None)
    w = np.asarray(engine.sample(KEY, belief, MEMBERS)["w"])
    mean, covariance = exact()
    spread = covariance @ covariance / 0.49
    assert (np.abs(w.mean(0) - mean) < 5.7 * np.sqrt(np.diag(spread) / MEMBERS) + 1e-3).all()
    np.testing.assert_allclose(np.cov(w, rowvar=False), spread, atol=0.15 * spread.max())


def test_worlds_are_members_in_some_order():
    engine, belief = fitted(num_members=5, num_steps=5)
    worlds = engine.sample(KEY, belief, 5)["w"]
    members = np.sort(np.asarray(belief.position["w"]), axis=0)
    np.testing.assert_array_equal(np.sort(worlds, axis=0), members)
    for seed in range(4):  # whatever the key
        other = engine.sample(seed, belief, 5)["w"]
        np.testing.assert_array_equal(np.sort(other, axis=0), members)
    assert len(np.unique(engine.sample(KEY, belief, 12)["w"][:, 0])) == 5
    before = engine.sample(KEY, engine.init(KEY), 5)["w"]
    np.testing.assert_array_equal(np.sort(before, 0), np.sort(belief.anchor["w"], 0))


@pytest.mark.parametrize("perturb", ["noise", "bootstrap", None])
def test_rows_in_two_parts_are_the_same_rows(perturb):
    engine, whole = fitted(num_members=6, num_steps=50, perturb=perturb)
    belief = engine.init(KEY)
    for part in (slice(0, 1), slice(1, 3)):
        rows = dp.observe(line, sites={"x": X[part], "y": Y[part]})
        belief = engine.update(jax.random.key(9), belief, rows)
    np.testing.assert_allclose(belief.position["w"], whole.position["w"], atol=1e-5)


def network():
    def net(prefix, scale):
        first = numpyro.sample(f"{prefix}_in", dist.Normal(0, scale).expand([2, 8]).to_event(2))
        last = numpyro.sample(f"{prefix}_out", dist.Normal(0, scale).expand([8]).to_event(1))
        return lambda x: jnp.tanh(jnp.array([1.0, x]) @ first) @ last

    fit, prior = net("fit", 1.0), net("prior", 1.0)
    x = dp.action("x", dist.Normal(0, 2))
    dp.outcome("y", dist.Normal(fit(x) + 2.0 * prior(x), 0.1))


def test_frozen_sites_stay_and_members_agree_where_data_are():
    engine = inference.ensemble(
        network, num_members=8, frozen=("prior_in", "prior_out"), num_steps=300, capacity=16
    )
    x = np.linspace(-1, 0, 12)
    belief = engine.update(
        KEY, engine.init(KEY), dp.observe(network, sites={"x": x, "y": np.sin(3 * x)})
    )
    for name, value in belief.anchor.items():
        same = np.array_equal(value, belief.position[name])
        assert same == name.startswith("prior")
    goal = lookahead.mean_outcome(jnp.array([-0.5]))
    found = lookahead.problem(network, engine, jnp.array([-0.5, 3.0]), goal)
    from decisionppl._labelling import means

    at = means(found, engine.sample(KEY, belief, 8), found.candidates)
    spread = np.asarray(at).std(0)
    assert spread[0] < 0.2
    assert spread[1] > 5 * spread[0]


@pytest.mark.slow
def test_plans_look_where_members_disagree():
    engine = inference.ensemble(
        network, num_members=16, frozen=("prior_in", "prior_out"), num_steps=200, capacity=16
    )
    x = np.linspace(-1, 0, 8)
    belief = engine.update(
        KEY, engine.init(KEY), dp.observe(network, sites={"x": x, "y": np.sin(3 * x)})
    )
    goal = lookahead.squared_loss(jnp.array([2.8, 3.2]), jnp.zeros(2))
    found = lookahead.problem(network, engine, jnp.array([-0.8, -0.3, 3.0]), goal)
    plan = lookahead.greedy(0, found, belief, k=1, num_outcomes=16, num_worlds=16)
    assert plan.chosen.tolist() == [2]


def coin():
    p = numpyro.sample("p", dist.Beta(2, 2))
    dp.reward("y", dist.Bernoulli(p))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: inference.ensemble(line, perturb="jitter"), ValueError, "perturb: expected"),
        (lambda: inference.ensemble(line, frozen="v"), ValueError, "no latent sites"),
        (lambda: inference.ensemble(line, frozen=["w"]), ValueError, "every latent site"),
        (lambda: inference.ensemble(line, num_members=0), ValueError, "num_members"),
        (lambda: inference.ensemble(coin, perturb="noise"), TypeError, "needs Normal outcomes"),
    ],
)
def test_misuse_says_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call()
