"""The synthetic potential-outcome environment against its definition, written out here again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decisionppl as dp
from decisionppl import inference
from decisionppl.models import potential_outcomes

NUM = 200_000


def definition(rng, z):
    """`x -> log-odds` of `len(z)` arms, each with coefficients of its own."""
    constant = rng.normal(size=len(z))
    of_z, cross = rng.normal(1, 0.25, (2, len(z), 2))
    of_x = rng.normal(1, 0.25, (len(z), 5))
    return lambda x: constant + (z * of_z + x[..., :2] * cross * z).sum(-1) + (x * of_x).sum(-1)


def test_moments_of_the_weights():
    """Weights read off the log-odds; five standard errors of each moment."""
    z = np.array([0.8, -1.7])
    log_odds = definition(np.random.default_rng(0), np.broadcast_to(z, (NUM, 2)))
    intercept = log_odds(np.zeros(5))
    slopes = [log_odds(e) - intercept for e in np.eye(5)]
    weights = np.stack([intercept, *slopes], 1)
    mean, scale = (np.asarray(v, float) for v in potential_outcomes.logistic_prior(z))
    standard = (weights - mean) / scale
    moments = standard.T @ standard / NUM
    assert np.abs(standard.mean(0)).max() < 5 / NUM**0.5
    assert np.abs(moments - np.eye(6))[np.triu_indices(6, 1)].max() < 5 / NUM**0.5
    assert np.abs(np.diag(moments) - 1).max() < 5 * (2 / NUM) ** 0.5
    # and they are linear: the weights give the log-odds of any context
    x = np.array([1.0, -2.0, 0.5, 3.0, -1.0])
    np.testing.assert_allclose(log_odds(x), weights @ np.r_[1, x], atol=1e-9)


def test_prior_is_taken_per_arm():
    z = potential_outcomes.logistic_features(0, 3)
    together = potential_outcomes.logistic_prior(z)
    for arm in range(3):
        for one, all_arms in zip(potential_outcomes.logistic_prior(z[arm]), together, strict=True):
            np.testing.assert_array_equal(one, all_arms[arm])


def test_tasks_follow_the_definition():
    """Success rates, and how the two outcomes of a task go together, both given z and x."""
    num, rng = 20_000, np.random.default_rng(1)
    z, x, y = (np.asarray(v) for v in potential_outcomes.draw_tasks(2, num, 2))
    assert np.issubdtype(y.dtype, np.integer)
    for values in (z, x):  # standard normal
        flat = values.reshape(-1, values.shape[-1])
        assert np.abs(flat.mean(0)).max() < 5 / len(flat) ** 0.5
        assert np.abs((flat**2).mean(0) - 1).max() < 5 * (2 / len(flat)) ** 0.5
    first, second, both = 0.0, 0.0, 0.0
    for _ in range(100):
        log_odds = definition(rng, z)
        one, two = (1 / (1 + np.exp(-log_odds(x[:, t]))) for t in (0, 1))
        first, second, both = first + one / 100, second + two / 100, both + one * two / 100
    features = np.c_[np.ones(num), z, x[:, 0], z * x[:, 0, :2]]
    for residual in (y[:, 0] - first, y[:, 1] - second, y[:, 0] * y[:, 1] - both):
        score = features.T @ residual / np.sqrt((features**2).T @ residual**2)
        assert np.abs(score).max() < 5
    # outcomes of a task share its weights, so they are dependent
    assert (both - first * second).mean() > 0.01


def test_model_and_its_belief():
    """The prior belief is the prior; data of one arm move the belief about that arm alone."""
    z = potential_outcomes.logistic_features(3, 4)
    model = potential_outcomes.logistic(z)
    engine = inference.laplace(model, jnp.zeros(5))
    key = jax.random.key(0)
    prior = engine.init(key)
    mean, scale = potential_outcomes.logistic_prior(z)
    np.testing.assert_allclose(prior.mean, mean, atol=1e-6)
    np.testing.assert_allclose(jnp.abs(jnp.diagonal(prior.root, 0, 1, 2)), scale, rtol=1e-6)
    x = jax.random.normal(key, (50, 5))
    rows = dp.observe(model, (x,), {"arm": jnp.full(50, 2), "reward": jnp.ones(50, int)})
    belief = engine.update(key, prior, rows)
    moved = jnp.abs(belief.mean - prior.mean).max(1) > 1e-3
    assert moved.tolist() == [False, False, True, False]
    assert float(belief.mean[2, 0]) > float(mean[2, 0])  # nothing but successes
    worlds = {"w": mean[None]}
    utility = dp.utility(model, worlds, dp.action_space(model, x[0]), key=0, args=(x[0],))
    np.testing.assert_allclose(
        utility[0], jax.nn.sigmoid(mean[:, 0] + mean[:, 1:] @ x[0]), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: potential_outcomes.logistic_features(0, 0), "num_arms: expected an int"),
        (lambda: potential_outcomes.logistic_prior(np.ones(3)), "z: expected shape"),
        (lambda: potential_outcomes.logistic(np.ones(2)), "z: expected shape"),
        (lambda: potential_outcomes.draw_tasks(0, 2, 1.5), "length: expected an int"),
    ],
)
def test_bad_parameters_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
