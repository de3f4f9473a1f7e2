"""Beliefs through time and profiles of actions, beside closed forms."""

import functools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr

import decisionppl as dp
from decisionppl.experiment import Experiment, Result, belief_path, profile
from decisionppl.inference import conjugate, laplace
from decisionppl.inference.gaussian_process import gaussian_process


def arms():
    m = numpyro.sample("m", dist.Normal(0, 1).expand([2]).to_event(1))
    dp.reward("y", dist.Normal(m[dp.action("arm", 2)], 0.5))


def posterior(arm, y, rounds):
    """Mean and sd of both arms after the first rounds: precision 1 and 4 per look."""
    arm, y = arm[:rounds], y[:rounds]
    precision = np.array([1 + 4 * (arm == a).sum() for a in (0, 1)])
    return np.array([4 * y[arm == a].sum() for a in (0, 1)]) / precision, precision**-0.5


ENGINE = conjugate(arms)


def played(replications, rounds, seed, *batch, engine=ENGINE):
    """As `experiment.run` leaves it, without a run."""
    rng = np.random.default_rng(seed)
    shape, axes = (replications, rounds, *batch), ["replication", "round", "unit"][: 2 + len(batch)]
    data = {"arm": (axes, rng.integers(0, 2, shape)), "y": (axes, rng.normal(size=shape))}
    extra = {"propensity": (axes, np.full(shape, 0.5)), "regret": (axes, np.zeros(shape))}
    return Result(xr.Dataset({**data, **extra}), {}, [], None, engine)


@pytest.fixture(scope="module")
def result():
    return played(3, 24, 1)


def test_the_path_is_the_posterior_after_each_round(result):
    path = belief_path(arms, result, replication=2, draws=4000)
    assert path.rounds.tolist() == list(range(25))
    assert path.labels == ("arm 0", "arm 1")
    arm, y = (result.data[n].values[2] for n in ("arm", "y"))
    for t in (0, 1, 10, 24):
        mean, sd = posterior(arm, y, t)
        # 5.7 standard errors of a mean, and of a quantile at 5 % (2.1 sd / sqrt(n))
        np.testing.assert_allclose(path.mean[t], mean, atol=5.7 * sd.max() / 4000**0.5)
        for side, found in ((-1, path.lower), (1, path.upper)):
            expected = mean + side * 1.645 * sd
            np.testing.assert_allclose(found[t], expected, atol=5.7 * 2.2 * sd.max() / 4000**0.5)


def test_a_result_from_a_file_needs_its_engine(result, tmp_path):
    result.save(tmp_path / "run.nc")
    read = Result.load(tmp_path / "run.nc")
    with pytest.raises(ValueError, match="a file holds no engine"):
        belief_path(arms, read)
    again = belief_path(arms, read, replication=2, inference=ENGINE, draws=4000)
    same = belief_path(arms, result, replication=2, draws=4000)  # compiled by the test before
    np.testing.assert_array_equal(again.mean, same.mean)


def test_long_runs_are_shown_at_two_hundred_times(result):
    long = played(1, 500, 2)
    path = belief_path(arms, long, draws=500)
    assert len(path.rounds) == 201
    assert path.rounds[[0, -1]].tolist() == [0, 500]
    mean, sd = posterior(long.data["arm"].values[0], long.data["y"].values[0], 500)
    np.testing.assert_allclose(path.mean[-1], mean, atol=5.7 * sd.max() / 500**0.5)


def test_contexts_and_batches():
    def slope(x):
        w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
        dp.reward("y", dist.Normal(w[dp.action("arm", 2, given=x)] * x, 0.1))

    x = jnp.linspace(-1, 1, 12)
    engine = conjugate(slope, 1.0)
    done = played(1, 6, 3, 2, engine=engine)
    path = belief_path(slope, done, contexts=x, args=(1.0,), draws=4000)
    arm, y = (done.data[n].values[0].ravel() for n in ("arm", "y"))
    for a in (0, 1):
        precision = 1 + 100 * (np.asarray(x)[arm == a] ** 2).sum()
        mean = 100 * (np.asarray(x)[arm == a] * y[arm == a]).sum() / precision
        assert abs(path.mean[-1, a] - mean) < 5.7 * precision**-0.5 / 4000**0.5 + 1e-5
    with pytest.raises(ValueError, match="contexts: expected 12 rows"):
        belief_path(slope, done, contexts=x[:5], args=(1.0,))


def test_what_does_not_fit_is_refused(result):
    with pytest.raises(ValueError, match="replication: expected 0 to 2, got 3"):
        belief_path(arms, result, replication=3)
    with pytest.raises(ValueError, match="level: expected a number between"):
        belief_path(arms, result, level=90)


def test_a_profile_has_the_moments_of_the_belief_and_the_scores_of_the_rule():
    rule = functools.partial(dp.rules.ucb, quantile=0.9)
    trial = Experiment(arms, ENGINE, rule, key=0)
    for y in (1.0, 0.5, -0.2):
        trial.tell(trial.ask().token, y)
    arm, y = (np.asarray(trial.history[n]) for n in ("arm", "y"))
    mean, sd = posterior(arm, y, 3)
    found = profile(trial, jnp.arange(2))
    np.testing.assert_allclose(found.mean, mean, atol=1e-6)
    np.testing.assert_allclose(found.sd, sd, atol=1e-6)
    np.testing.assert_allclose(found.score, mean + 1.2816 * sd, atol=1e-4)
    assert (found.rule, found.told["arm"].tolist()) == ("ucb", arm.tolist())
    shown = dp.plots.fidelities(trial)
    assert shown.get_ylabel() == "arm"  # its one action site
    places = sorted(int(x) for line in shown.lines for x in line.get_xdata())
    assert places == [1, 2, 3]
    # asking a profile asks nothing
    assert trial.pending == []
    assert profile(trial, jnp.arange(2), rule=dp.rules.greedy).rule == "greedy"
    assert profile(trial, jnp.array([1, 0])).mean.tolist() == found.mean[::-1].tolist()


def test_profiles_of_draws_and_of_surrogates():
    def click():
        w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
        dp.reward("y", dist.BernoulliLogits(w[dp.action("arm", 2)]))

    trial = Experiment(click, laplace(click), dp.rules.thompson, key=0)
    found = profile(trial, None)
    # the prior mean is 1/2, its sd about 0.21 (logistic of a standard normal)
    np.testing.assert_allclose(found.mean, 0.5, atol=5.7 * 0.21 / 1000**0.5)
    np.testing.assert_allclose(found.sd, 0.208, atol=0.03)

    def dose():
        f = numpyro.sample("f", dp.GaussianProcess(dp.kernels.Matern52(0.3)))
        dp.reward("y", dist.Normal(f(dp.action("dose", dist.Uniform(0, 1))), 0.1))

    search = Experiment(dose, gaussian_process(dose, capacity=8), dp.rules.log_ei, key=0)
    search.learn(dp.observe(dose, (), {"dose": jnp.array([0.2]), "y": jnp.array([0.8])}))
    found = profile(search, jnp.array([0.2, 0.5]))
    # one look with noise 0.1 at a unit-variance function
    assert abs(found.mean[0] - 0.8 / 1.01) < 1e-4
    assert abs(found.sd[0] - (1 - 1 / 1.01) ** 0.5) < 1e-3
    assert found.rule == "log_ei"
    with pytest.raises(ValueError, match="expected a context of shapes"):
        profile(search, jnp.array([0.5]), context=1.0)
