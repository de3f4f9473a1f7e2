"""The belief of a factor model: closed forms, invariances, experiments, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import decisionppl as dp
from decisionppl import inference
from decisionppl.inference._factors import factor_prior, posterior
from decisionppl.inference.panels import treatment_effect
from decisionppl.models import synthetic_control as panels

KEY = jax.random.key(0)


@functools.cache
def small(**changes):
    """A small problem and its engine."""
    sizes = {"num_controls": 6, "rank": 2, "pre_periods": 10, "periods": 20, **changes}
    problem = panels.synthetic_control(**sizes)
    return problem, inference.synthetic_control(problem.model, 0, periods=problem.num_periods)


def coins(problem, seed=0):
    return panels.switchback(seed, problem.pre_periods, problem.num_periods - problem.pre_periods)


def learned(engine, rows):
    return engine.update(KEY, engine.init(KEY), rows)


@functools.cache
def effect_function(engine):
    args = (0,) if engine is not given_factors() else (0, jnp.zeros(2))
    return jax.jit(lambda rows: treatment_effect(engine, learned(engine, rows), args)[:2])


def effect_of(engine, rows):
    return np.array(effect_function(engine)(rows))


def gaussian_regression(design, outcome, noise, prior):
    """Mean and covariance of weights with independent priors of mean zero, in float64."""
    root = design / np.sqrt(noise)[:, None]
    covariance = np.linalg.inv(root.T @ root + np.diag(1 / np.asarray(prior)))
    return covariance @ (design.T @ (outcome / noise)), covariance


# Exact.


def test_without_controls_it_is_thompson_sampling_with_one_unknown_difference():
    problem, engine = small(num_controls=0, rank=0, pre_periods=5, periods=60, intercept=False)
    options = {"horizon": 65, "key": 3, "replications": 20, "propensities": False}
    environment = problem.environment()
    plain = inference.conjugate(problem.model, 0)
    ours = dp.experiment.run(problem.model, engine, dp.rules.thompson, environment, **options)
    theirs = dp.experiment.run(problem.model, plain, dp.rules.thompson, environment, **options)
    np.testing.assert_array_equal(ours.data.treat, theirs.data.treat)
    treat, outcome = np.asarray(ours.data.treat), np.asarray(ours.data.outcome, float)
    assert treat[:, :5].sum() == 0
    assert 0 < treat[:, 5:].mean() < 1
    precision = 1 + treat.sum(1) / 0.25  # prior N(0, 1), noise 0.5
    mean = (treat * outcome).sum(1) / 0.25 / precision
    found = jax.vmap(lambda b: treatment_effect(engine, b, (0,)))(ours.belief)
    np.testing.assert_allclose(found.estimate, mean, atol=1e-5)
    np.testing.assert_allclose(found.stderr, precision**-0.5, rtol=1e-5)


def test_given_the_factors_it_is_bayesian_linear_regression():
    problem, engine = small(loading_scale=0.7)
    rows = problem.simulate(1, coins(problem), 0.4)
    belief = learned(engine, rows)
    treat, outcome = (np.asarray(rows.sites[n], float) for n in ("treat", "outcome"))
    factors, spread = np.asarray(belief.factors, float), np.asarray(belief.spread, float)
    design = np.column_stack([treat, np.ones(len(treat)), factors.T])
    prior = [1.0, 1.0, 0.49, 0.49]
    first, _ = gaussian_regression(design, outcome, np.full(len(treat), 0.25), prior)
    # what the variance of the factors adds to the noise, at the weights found without it
    noise = 0.25 + (first[2:] ** 2).sum() * spread
    mean, covariance = gaussian_regression(design, outcome, noise, prior)
    found = effect_of(engine, rows)
    np.testing.assert_allclose(found, [mean[0], covariance[0, 0] ** 0.5], atol=2e-5)
    worlds = engine.sample(KEY, belief, 20_000)
    # 5.7 standard errors: false alarm below 1e-7 for all six
    error = 5.7 * np.sqrt(np.diag(covariance) / 20_000)
    drawn = [worlds["effect"].mean(), worlds["intercept"].mean(), *worlds["weights"].mean(0)]
    assert (np.abs(np.array(drawn) - mean) < error).all()


@pytest.mark.parametrize("chain", [True, False])
def test_factors_have_their_gaussian_posterior(chain):
    law = dist.GaussianRandomWalk(0.3, 30).expand([2]).to_event(1)
    prior = factor_prior("factors", law)
    assert prior.is_chain
    walk = 0.09 * np.minimum.outer(np.arange(1, 31), np.arange(1, 31))
    np.testing.assert_allclose(prior.precision @ walk, np.eye(30), atol=1e-4)
    rng = np.random.default_rng(0)
    mask, seen = np.arange(30) % 3 != 1, rng.normal(size=(30, 2))
    mask[25:] = False
    covariance = np.linalg.inv(np.linalg.inv(walk) + np.diag(mask / 0.02))
    mean, spread = posterior(
        prior._replace(is_chain=chain), jnp.asarray(seen, float), 0.02, jnp.asarray(mask)
    )
    expected = covariance @ (seen * mask[:, None] / 0.02)
    np.testing.assert_allclose(mean, expected, atol=1e-5)
    np.testing.assert_allclose(spread, np.diag(covariance), rtol=1e-5)
    np.testing.assert_allclose(mean[25:], np.broadcast_to(mean[24], (5, 2)), atol=1e-5)


def test_factors_are_smoothed_projections_on_the_leading_singular_vectors():
    problem, engine = small()
    rows = problem.simulate(2, coins(problem), 0.4)
    rows = rows._replace(mask=jnp.arange(30) < 25)
    belief = learned(engine, rows)
    series = np.asarray(rows.sites["controls"], float)[:25]
    basis = np.linalg.svd(series)[2][:2].T
    loadings = np.asarray(belief.loadings, float)
    np.testing.assert_allclose((loadings**2).mean(0), 1, rtol=1e-5)
    np.testing.assert_allclose(loadings @ loadings.T / 6, basis @ basis.T, atol=1e-5)
    time = np.arange(1, 31)
    walk = 0.09 * np.minimum.outer(time, time)
    gain = walk[:, :25] @ np.linalg.inv(walk[:25, :25] + 0.25 / 6 * np.eye(25))
    common = gain @ series @ loadings / 6 @ loadings.T
    np.testing.assert_allclose(belief.factors.T @ belief.loadings.T, common, atol=1e-4)
    left = np.diag(walk - gain @ walk[:25])
    np.testing.assert_allclose(belief.spread, left, rtol=1e-3)


# Invariances.


def rotation(data, size):
    entries = data.draw(st.lists(st.floats(-1, 1), min_size=size**2, max_size=size**2))
    return np.linalg.qr(np.reshape(entries, (size, size)) + 2 * np.eye(size))[0]


@settings(max_examples=15)
@given(st.data(), st.integers(0, 1000))
def test_rotated_controls_or_factors_change_nothing(data, seed):
    problem, engine = small()
    rows = problem.simulate(seed, coins(problem, seed), 0.4)
    turned = rows.sites["controls"] @ rotation(data, 6)
    other = rows._replace(sites={**rows.sites, "controls": turned})
    np.testing.assert_allclose(effect_of(engine, other), effect_of(engine, rows), atol=2e-4)
    regression = given_factors()
    factors = learned(engine, rows).factors
    sites, found = {n: rows.sites[n] for n in ("treat", "outcome")}, []
    for turn in (np.eye(2), rotation(data, 2)):
        args = (rows.args[0], factors.T @ turn)
        found.append(effect_of(regression, dp.Rows(args, sites, rows.mask)))
    np.testing.assert_allclose(found[0], found[1], atol=2e-5)


@functools.cache
def given_factors():
    return inference.conjugate(small()[0].given_factors, 0, jnp.zeros(2))


def test_a_moved_prior_and_a_moved_effect_move_the_posterior_as_much():
    problem, engine = small()
    moved_problem, moved_engine = small(prior=(0.7, 1.0))
    for seed in range(20):
        path = coins(problem, seed)
        ours = effect_of(engine, problem.simulate(seed, path, 0.4))
        theirs = effect_of(moved_engine, moved_problem.simulate(seed, path, 1.1))
        np.testing.assert_allclose(theirs - ours, [0.7, 0.0], atol=1e-4)


def test_order_and_batching_of_periods_change_nothing_and_a_later_row_replaces():
    problem, engine = small()
    rows = problem.simulate(1, coins(problem), 0.4)
    whole = learned(engine, rows)
    belief = engine.init(KEY)
    wrong = {**rows.sites, "outcome": rows.sites["outcome"] + 5}
    belief = engine.update(KEY, belief, rows._replace(sites=wrong))
    for i in np.random.default_rng(0).permutation(problem.num_periods):
        belief = engine.update(KEY, belief, jax.tree.map(lambda x, i=i: x[i : i + 1], rows))
    assert int(belief.history.count) == problem.num_periods
    for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(belief), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_updates_compile_once(compilations):
    problem, engine = small()
    rows = problem.simulate(1, coins(problem), 0.4)
    belief, started = engine.init(KEY), None
    for i in range(6):
        belief = engine.update(KEY, belief, jax.tree.map(lambda x, i=i: x[i : i + 1], rows))
        started = compilations() if i == 1 else started
    assert compilations() == started


@pytest.mark.slow
def test_unknown_noise_goes_through():
    def model(t):
        walk = dist.GaussianRandomWalk(0.3, 20).expand([1]).to_event(1)
        factor = numpyro.sample("factors", walk)[:, t]
        loadings = numpyro.sample("loadings", dist.Normal(0, 1).expand([5, 1]).to_event(2))
        dp.outcome("controls", dist.Normal(loadings @ factor, 0.5).to_event(1))
        variance = numpyro.sample("variance", dist.InverseGamma(3.0, 1.0))
        w = numpyro.sample("w", dist.Normal(0, jnp.sqrt(variance) * jnp.ones(2)).to_event(1))
        treat = dp.action("treat", 2)
        dp.reward("outcome", dist.Normal(w[0] * factor[0] + w[1] * treat, jnp.sqrt(variance)))

    engine = inference.synthetic_control(model, 0)
    treat = np.arange(20) % 2
    rng = np.random.default_rng(0)
    sites = {"controls": rng.normal(size=(20, 5)), "treat": treat, "outcome": 4.0 * treat}
    rows = dp.observe(model, (np.arange(20),), sites)
    worlds = engine.sample(KEY, learned(engine, rows), 500)
    assert set(worlds) == {"factors", "loadings", "variance", "w"}
    assert abs(float(worlds["w"][:, 1].mean()) - 4) < 0.5


# Experiments.


@pytest.mark.slow
def test_an_experiment_that_should_not_treat_hardly_does():
    problem, engine = small()
    run = dp.experiment.run(
        problem.model, engine, dp.rules.thompson, problem.environment(-1.5), horizon=30, key=0,
        replications=16, propensities=False,
    )  # fmt: skip
    treat = np.asarray(run.data.treat)
    assert treat[:, :10].sum() == 0
    regret = np.asarray(run.data.regret)[:, 10:].sum(1)
    np.testing.assert_allclose(regret, [problem.regret(path, -1.5) for path in treat], rtol=1e-5)
    # sixteen experiments of twenty decisions, of an effect three times the noise
    assert 0 < treat[:, 10:].mean() < 0.35


@pytest.mark.slow
def test_intervals_cover_and_regret_is_below_that_of_a_switchback():
    problem = panels.synthetic_control()
    engine = inference.synthetic_control(problem.model, 0)
    run = dp.experiment.run(
        problem.model, engine, dp.rules.thompson, problem.environment(0.3), horizon=250, key=4242,
        replications=240, propensities=False,
    )  # fmt: skip
    found = jax.vmap(lambda b: treatment_effect(engine, b, (0,)))(run.belief)
    cover = np.mean((found.interval[0] <= 0.3) & (found.interval[1] >= 0.3))
    # at a coverage of .95 the share is below .86 with probability 3e-8
    assert cover > 0.86
    # means of 4.8 and 30, with a standard error of 0.4
    assert np.asarray(run.data.regret)[:, 50:].sum(1).mean() < 10


@pytest.mark.slow
def test_it_is_close_to_the_full_posterior():
    problem, engine = small(num_controls=10, rank=1, pre_periods=15, periods=25)
    rows = problem.simulate(3, coins(problem), 0.5)
    exact = inference.nuts(
        problem.model, 0, num_warmup=1000, num_samples=1000, num_chains=2, capacity=64
    )
    worlds = exact.sample(KEY, learned(exact, rows), 2000)["effect"]
    mean, sd = effect_of(engine, rows)
    # draws that are worth a few hundred
    assert abs(float(worlds.mean()) - mean) < 0.35 * sd
    assert 0.75 < float(worlds.std()) / sd < 1.3


# Errors.


def broken(**changes):
    """A factor model with one thing changed."""
    parts = {
        "factors": lambda: dist.GaussianRandomWalk(0.3, 9).expand([2]).to_event(1),
        "loadings": lambda: dist.Normal(0, 1).expand([4, 2]).to_event(2),
        "noise": lambda: 0.5,
        "controls": dp.outcome,
        **changes,
    }

    def model(t):
        factor = numpyro.sample("factors", parts["factors"]())[:, t]
        loadings = numpyro.sample("loadings", parts["loadings"]())
        mean = loadings @ factor if loadings.shape[1:] == factor.shape else jnp.zeros(4)
        parts["controls"]("controls", dist.Normal(mean, parts["noise"]()).to_event(1))
        effect = numpyro.sample("effect", dist.Normal(0, 1))
        dp.reward("outcome", dist.Normal(factor[0] + effect * dp.action("treat", 2), 1.0))

    return model


@pytest.mark.parametrize(
    ("error", "message", "model", "args"),
    [
        (ValueError, "first argument is the period, an int from 0; got 0.5", broken(), (0.5,)),
        (ValueError, "first argument is the period, an int from 0; got no", lambda: None, ()),
        (ValueError, "expected shapes .rank, periods.",
         broken(loadings=lambda: dist.Normal(0, 1).expand([4, 3]).to_event(2)), (0,)),
        (TypeError, "'factors': their law is not Gaussian",
         broken(factors=lambda: dist.StudentT(3.0).expand([2, 9]).to_event(2)), (0,)),
        (TypeError, "'factors': their mean is not zero",
         broken(factors=lambda: dist.Normal(1.0).expand([2, 9]).to_event(2)), (0,)),
        (TypeError, "'factors': they are dependent, or differ",
         broken(factors=lambda: dist.Normal(0, jnp.array([[1.0], [2.0]]) * jnp.ones((2, 9)))
                .to_event(2)), (0,)),
        (TypeError, "'controls': expected a Normal law of known scale",
         broken(noise=lambda: numpyro.sample("noise", dist.LogNormal(0, 1))), (0,)),
        (ValueError, "no outcome site 'controls'", broken(controls=dp.reward), (0,)),
    ],
)  # fmt: skip
def test_models_that_do_not_fit_are_refused(error, message, model, args):
    with pytest.raises(error, match=message):
        inference.synthetic_control(model, *args)


def test_other_mistakes_are_refused():
    problem, engine = small()
    rows = problem.simulate(1, coins(problem), 0.4)
    late = rows._replace(args=(rows.args[0] + 1,))
    with pytest.raises(ValueError, match="period 30 in row 29, expected 0 to 29"):
        learned(engine, late)
    with pytest.raises(ValueError, match="rows have no .'controls'."):
        learned(engine, rows._replace(sites={n: rows.sites[n] for n in ("treat", "outcome")}))
    with pytest.raises(ValueError, match="the belief holds 30 rows, this experiment gives it 31"):
        dp.experiment.run(
            problem.model, engine, dp.rules.thompson, problem.environment(0.4), horizon=31, key=0
        )
    with pytest.raises(ValueError, match="no site 'factors' that says how many periods"):
        inference.synthetic_control(lambda t: dp.action("treat", 2), 0)
    with pytest.raises(ValueError, match="periods: 7 given, but 'factors' has 30"):
        inference.synthetic_control(problem.model, 0, periods=7)
    arms = inference.conjugate(dp.models.bandits.gaussian(3))
    with pytest.raises(ValueError, match="two actions, got 3"):
        treatment_effect(arms, arms.init(KEY))
