"""The ad-load problem: its truth against formulas, its data against its law."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from decisionppl.models import ad_load

ADS = np.array([1.0, 2.0, 4.0])


@pytest.fixture(scope="module", params=[False, True], ids=["linear", "curved"])
def problem(request):
    return ad_load.ad_load(curved=request.param, curvature=0.3), 0.3 * request.param


def means(x, parameters, kappa):
    """E[reward | x, load], [users, loads], from the formulas."""
    phi = np.column_stack([np.ones(len(x)), x])
    r, s, c = (np.asarray(parameters[f"{n}_weight"]) for n in ("revenue", "session", "loss"))
    lost = (phi @ c + kappa * (x[:, 0] ** 2 - 1))[:, None] * ADS
    return np.log2(1 + ADS) * (phi @ r)[:, None] + (phi @ s)[:, None] - lost


def law(x, smallest=0.05):
    weight = np.exp(x[:, :1] * np.arange(3))
    return smallest + (1 - 3 * smallest) * weight / weight.sum(1, keepdims=True)


def test_users_have_mean_zero_and_variance_one(problem):
    x, chance = problem[0].users
    assert x.shape == (64, 3)
    assert np.allclose(chance.sum(), 1)
    assert np.allclose(chance @ x, 0)
    assert np.allclose((x * chance[:, None]).T @ x, np.eye(3))


def test_truth_is_the_formula(problem):
    problem, kappa = problem
    x, chance = problem.users
    other = {n: jnp.arange(4.0) / (i + 2) for i, n in enumerate(problem.parameters)}
    for parameters in (None, other):
        mean = means(x, parameters or problem.parameters, kappa)
        assert np.allclose(problem.truth(2, parameters), chance @ mean[:, 2], atol=1e-5)
        logged = problem.truth({}, parameters)
        assert np.allclose(logged, chance @ (law(x) * mean).sum(1), atol=1e-5)
    mean = means(x, problem.parameters, kappa)
    mixed = problem.truth(dist.Categorical(jnp.array([0.2, 0.3, 0.5])))
    assert np.allclose(mixed, chance @ mean @ [0.2, 0.3, 0.5], atol=1e-5)
    rule = problem.truth(lambda given, space: jnp.where(given[2] > 0, 2, 0))
    assert np.allclose(rule, chance @ np.where(x[:, 2] > 0, mean[:, 2], mean[:, 0]), atol=1e-5)


def test_which_load_is_best_depends_on_the_user():
    problem = ad_load.ad_load()
    x, chance = problem.users
    mean = means(x, problem.parameters, 0)
    assert set(mean.argmax(1)) == {0, 1, 2}
    assert chance @ mean.max(1) > (chance @ mean).max() + 0.15


def test_logged_rounds_follow_the_law(problem):
    problem, kappa = problem
    num = 40_000
    rows = problem.simulate(3, num)
    x, load = np.asarray(rows.args[0]), np.asarray(rows.sites["load"])
    assert np.asarray(rows.mask).all()
    reward = np.asarray(rows.sites["revenue"] + rows.sites["engagement"])
    share = law(x)
    for a in range(3):
        error = ((load == a) - share[:, a]) @ np.column_stack([np.ones(num), x]) / num
        assert (np.abs(error) < 5.5 * 0.5 * np.array([1, 1, 1, 1]) / num**0.5).all()
    residual = reward - means(x, problem.parameters, kappa)[np.arange(num), load]
    for features in (np.ones(num), x[:, 0], x[:, 0] ** 2, 1.0 * (load == 2)):
        scale = (features**2).mean() ** 0.5 * 2**0.5
        assert abs((residual * features).mean()) < 5.5 * scale / num**0.5
    assert np.allclose(residual.std(), 2**0.5, rtol=0.03)
    everyone = np.unique(x, axis=0)
    assert len(everyone) == 64


def test_simulation_depends_on_its_key_and_parameters():
    problem = ad_load.ad_load(2)
    rows, again, other = (problem.simulate(k, 5) for k in (0, 0, 1))
    assert all(map(np.array_equal, jax.tree.leaves(rows), jax.tree.leaves(again)))
    assert not np.array_equal(rows.sites["revenue"], other.sites["revenue"])
    zeros = jax.tree.map(jnp.zeros_like, problem.parameters)
    moved = problem.simulate(0, 5, zeros)
    assert np.array_equal(moved.sites["load"], rows.sites["load"])
    gain = np.log2(1 + ADS)[np.asarray(rows.sites["load"])]
    phi = np.column_stack([np.ones(5), rows.args[0]])
    expected = gain * (phi @ np.asarray(problem.parameters["revenue_weight"]))
    assert np.allclose(rows.sites["revenue"] - moved.sites["revenue"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(num_features=0), "num_features: expected 1 to 8, got 0"),
        (dict(num_features=9), "num_features: expected 1 to 8, got 9"),
        (dict(loads=(1, 1)), "loads: expected at least two increasing numbers"),
        (dict(loads=(2,)), "loads: expected at least two"),
        (dict(loads=(-1, 2)), "loads: expected"),
        (dict(noise=0.0), "noise: expected a positive number, got 0.0"),
        (dict(prior_scale=-1.0), "prior_scale: expected a positive"),
        (dict(smallest=0.4), "smallest: expected a positive probability below 1 / 3, got 0.4"),
        (dict(smallest=0.0), "smallest: expected"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ad_load.ad_load(**settings)
