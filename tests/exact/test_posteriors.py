"""Engines against closed forms that share no code with them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import optimize, stats

import decisionppl as dp
from decisionppl import inference
from decisionppl.models import bandits

KEY = jax.random.key(0)
NUM_ROWS, DIM, ARMS, NOISE = 60, 4, 3, 0.7


def regression_model(x):
    """Bayesian linear regression whose intercept and slopes have different priors."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.5).expand([DIM]).to_event(1))
    b = numpyro.sample("b", dist.Normal(0.3, 2.0))
    dp.action("arm", 2)
    dp.reward("y", dist.Normal(w @ x + b, NOISE))


def regression_data():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(NUM_ROWS, DIM))
    y = x @ rng.normal(size=DIM) + 0.5 + NOISE * rng.normal(size=NUM_ROWS)
    return x, y


def regression_truth(x, y):
    """Posterior of (b, w) in closed form, float64."""
    design = np.c_[np.ones(len(x)), x]
    prior_precision = np.diag([1 / 2.0**2] + [1 / 1.5**2] * DIM)
    precision = prior_precision + design.T @ design / NOISE**2
    covariance = np.linalg.inv(precision)
    shift = prior_precision @ np.r_[0.3, np.zeros(DIM)] + design.T @ y / NOISE**2
    return covariance @ shift, covariance


@pytest.mark.parametrize("build", [inference.laplace, inference.conjugate])
@pytest.mark.parametrize("batch", [1, 7, NUM_ROWS])
@pytest.mark.parametrize(("x64", "tolerance"), [(False, 1e-5), (True, 1e-10)])
def test_linear_regression(build, batch, x64, tolerance):
    x, y = regression_data()
    with jax.enable_x64(x64):
        engine = build(regression_model, jnp.zeros(DIM))
        belief = engine.init(KEY)
        for start in range(0, NUM_ROWS, batch):
            part = slice(start, min(start + batch, NUM_ROWS))
            sites = {"arm": np.zeros(len(x[part]), int), "y": y[part]}
            rows = dp.observe(regression_model, (x[part],), sites)
            belief = engine.update(KEY, belief, rows)
        mean, covariance = regression_truth(x, y)
        # leaves are laid out by name: b, then w
        np.testing.assert_allclose(belief.mean[0], mean, atol=tolerance, rtol=tolerance)
        root = np.asarray(belief.root[0])
        np.testing.assert_allclose(root @ root.T, covariance, atol=tolerance, rtol=tolerance)


def test_long_stream_stays_exact_in_float32():
    """20,000 single rounds: the square-root form does not lose positive definiteness."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(20_000, 2)).astype(np.float32)
    y = (x @ np.array([1.0, -1.0]) + rng.normal(size=20_000)).astype(np.float32)
    model = bandits.linear(1, 2)
    engine = inference.laplace(model, jnp.zeros(2))
    rows = dp.observe(model, (x,), {"arm": np.zeros(20_000, int), "reward": y})

    def step(belief, row):
        return engine.update(KEY, belief, jax.tree.map(lambda v: v[None], row)), None

    belief, _ = jax.lax.scan(step, engine.init(KEY), rows)
    precision = np.eye(2) + x.astype(float).T @ x
    mean = np.linalg.solve(precision, x.astype(float).T @ y)
    np.testing.assert_allclose(belief.mean[0], mean, atol=2e-4)
    root = np.asarray(belief.root[0], float)
    np.testing.assert_allclose(root @ root.T * 20_000, np.linalg.inv(precision) * 20_000, rtol=2e-3)


def test_gaussian_bandit_posterior():
    model = bandits.gaussian(3, prior_scale=2.0, noise=0.5)
    engine = inference.conjugate(model)
    arms, rewards = np.array([0, 0, 2]), np.array([1.0, 2.0, -1.0])
    rows = dp.observe(model, sites={"arm": arms, "reward": rewards})
    belief = engine.update(KEY, engine.init(KEY), rows)
    law = engine.predict(belief, None)
    for arm in range(3):
        y = rewards[arms == arm]
        precision = 1 / 4 + len(y) / 0.25
        assert float(law.mean[arm]) == pytest.approx(y.sum() / 0.25 / precision, rel=1e-5)
        assert float(law.variance[arm]) == pytest.approx(1 / precision, rel=1e-5)


def test_unknown_variance():
    """Normal-inverse-gamma regression, one variance shared by all arms."""
    a0, b0, scale = 3.0, 2.0, 1.3

    def model(x):
        s2 = numpyro.sample("s2", dist.InverseGamma(a0, b0))
        w = numpyro.sample("w", dist.Normal(0, scale * jnp.sqrt(s2)).expand([DIM]).to_event(1))
        dp.action("arm", 2)
        dp.reward("y", dist.Normal(w @ x, 0.5 * jnp.sqrt(s2)))

    x, y = regression_data()
    with jax.enable_x64(True):
        engine = inference.conjugate(model, jnp.zeros(DIM))
        rows = dp.observe(model, (x,), {"arm": np.zeros(NUM_ROWS, int), "y": y})
        belief = engine.update(KEY, engine.init(KEY), rows)
        precision = np.eye(DIM) / scale**2 + x.T @ x / 0.25
        mean = np.linalg.solve(precision, x.T @ y / 0.25)
        rate = b0 + 0.5 * (y @ y / 0.25 - mean @ precision @ mean)
        np.testing.assert_allclose(belief.weights.mean[0], mean, rtol=1e-9)
        np.testing.assert_allclose(belief.shape, a0 + NUM_ROWS / 2)
        np.testing.assert_allclose(belief.rate, rate, rtol=1e-9)
        # one row at a time, in another order, gives the same
        one = engine.init(KEY)
        for i in range(NUM_ROWS - 1, -1, -1):
            one = engine.update(KEY, one, jax.tree.map(lambda v, i=i: v[i : i + 1], rows))
        np.testing.assert_allclose(one.rate, rate, rtol=1e-8)
        draws = np.asarray(engine.sample(KEY, belief, 4000)["s2"])
    # Kolmogorov-Smirnov at level 1e-9
    assert stats.kstest(draws, stats.invgamma(a0 + NUM_ROWS / 2, scale=rate).cdf).pvalue > 1e-9


def test_counts():
    """Dirichlet-categorical, gamma-Poisson and beta-binomial add what was seen."""

    def model():
        shape = numpyro.sample(
            "theta", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])).expand([2]).to_event(1)
        )
        rate = numpyro.sample("rate", dist.Gamma(2.0, 4.0).expand([2]).to_event(1))
        p = numpyro.sample("p", dist.Beta(0.5, 0.5))
        arm = dp.action("arm", 2)
        dp.outcome("kind", dist.Categorical(shape[arm]))
        dp.outcome("count", dist.Poisson(rate[arm]))
        dp.reward("hits", dist.Binomial(5, p))

    engine = inference.conjugate(model)
    sites = {"arm": [0, 0, 1], "kind": [2, 2, 0], "count": [3, 0, 7], "hits": [5, 1, 0]}
    belief = engine.update(KEY, engine.init(KEY), dp.observe(model, sites=sites))
    np.testing.assert_allclose(belief["theta"][0], [[1, 2, 5], [2, 2, 3]])
    np.testing.assert_allclose(belief["rate"], [[5, 9], [6, 5]])
    np.testing.assert_allclose(belief["p"], [6.5, 9.5])


def test_semi_bandit_feedback():
    """A slate informs every item shown."""
    model = bandits.slate(4, 2)
    engine = inference.conjugate(model)
    sites = {"slate": [[0, 3], [0, 1]], "clicks": [[1, 0], [1, 1]]}
    belief = engine.update(KEY, engine.init(KEY), dp.observe(model, sites=sites))
    assert belief["probability"].tolist() == [[3, 2, 1, 1], [1, 1, 1, 2]]


@pytest.mark.parametrize(
    "likelihood", ["logits", "probs", "poisson", "cauchy"], ids=lambda name: name
)
def test_laplace_is_at_the_mode_with_its_curvature(likelihood):
    """Against an independent optimiser and numerical curvature, under any parametrisation."""
    x, _ = regression_data()
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, NUM_ROWS) if likelihood != "cauchy" else rng.normal(size=NUM_ROWS)

    def law(eta):
        if likelihood == "logits":
            return dist.BernoulliLogits(eta)
        if likelihood == "probs":
            return dist.Bernoulli(probs=jax.nn.sigmoid(eta))
        return dist.Poisson(jnp.exp(eta)) if likelihood == "poisson" else dist.StudentT(8.0, eta)

    def model(x):
        w = numpyro.sample("w", dist.Normal(0, 1).expand([DIM]).to_event(1))
        dp.action("arm", 1)
        dp.reward("y", law(w @ x))

    def negative(w):
        scipy_law = {
            "logits": lambda e: stats.bernoulli(1 / (1 + np.exp(-e))).logpmf(y),
            "probs": lambda e: stats.bernoulli(1 / (1 + np.exp(-e))).logpmf(y),
            "poisson": lambda e: stats.poisson(np.exp(e)).logpmf(y),
            "cauchy": lambda e: stats.t(8.0, loc=e).logpdf(y),
        }[likelihood]
        return 0.5 * w @ w - np.sum(scipy_law(x @ w))

    mode = optimize.minimize(negative, np.zeros(DIM), tol=1e-12).x
    step = 1e-4
    unit = np.eye(DIM) * step
    hessian = np.array([[
        (negative(mode + a + b) - negative(mode + a - b) - negative(mode - a + b)
         + negative(mode - a - b)) / (4 * step**2) for a in unit] for b in unit])  # fmt: skip
    with jax.enable_x64(True):
        engine = inference.laplace(model, jnp.zeros(DIM))
        rows = dp.observe(model, (x,), {"arm": np.zeros(NUM_ROWS, int), "y": y})
        belief = engine.update(KEY, engine.init(KEY), rows)
        np.testing.assert_allclose(belief.mean[0], mode, atol=1e-5)
        root = np.asarray(belief.root[0])
        if likelihood != "cauchy":  # rows of negative curvature count as flat
            np.testing.assert_allclose(root @ root.T, np.linalg.inv(hessian), rtol=1e-3, atol=1e-6)


def test_single_row_update_is_at_the_mode():
    model = bandits.logistic(2, 2)
    engine = inference.laplace(model, jnp.zeros(2))
    x = np.array([[1.0, 2.0]], np.float32)
    rows = dp.observe(model, (x,), {"arm": [1], "reward": [1]})
    belief = engine.update(KEY, engine.init(KEY), rows)
    negative = lambda w: 0.5 * w @ w + np.log1p(np.exp(-x[0] @ w))  # noqa: E731
    mode = optimize.minimize(negative, np.zeros(2)).x
    np.testing.assert_allclose(belief.mean[1], mode, atol=1e-4)
    assert belief.mean[0].tolist() == [0.0, 0.0]
    s = 1 / (1 + np.exp(-x[0] @ mode))
    truth = np.linalg.inv(np.eye(2) + s * (1 - s) * np.outer(x[0], x[0]))
    root = np.asarray(belief.root[1])
    np.testing.assert_allclose(root @ root.T, truth, atol=1e-4)


@pytest.mark.parametrize("rows_at_once", [1, 2])
@pytest.mark.parametrize("law", [dist.BernoulliLogits, lambda z: dist.Binomial(1, logits=z)])
def test_curvature_at_a_logit_of_exactly_zero(law, rows_at_once):
    """One success and one failure: the mode is zero, where NumPyro's densities have a kink."""

    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        dp.action("arm", 1)
        dp.reward("y", law(z))

    engine = inference.laplace(model)
    belief = engine.init(KEY)
    for y in [[1, 0]] if rows_at_once == 2 else [[1], [0]]:
        rows = dp.observe(model, sites={"arm": np.zeros(len(y), int), "y": y})
        belief = engine.update(KEY, belief, rows)
    # precision 1 + 2/4 at the joint mode; two sequential expansions differ slightly
    tolerance = 1e-4 if rows_at_once == 2 else 0.02
    assert float(belief.root[0, 0, 0] ** 2) == pytest.approx(1 / 1.5, abs=tolerance)
    assert float(belief.mean[0, 0]) == pytest.approx(0.0, abs=1e-4 if rows_at_once == 2 else 0.1)


def test_single_row_of_several_outcomes():
    """One round whose two outcomes inform overlapping directions: an update of rank two."""
    a = np.array([[1.0, 2.0, 0.5], [0.5, -0.3, 2.0]])
    scale = np.array([1.0, 2.0, 0.5])  # unequal, or the two directions would not interact

    def model():
        w = numpyro.sample("w", dist.Normal(0, jnp.asarray(scale)).to_event(1))
        dp.action("arm", 1)
        dp.reward("y", dist.Normal(jnp.asarray(a) @ w, 0.5).to_event(1))

    y = np.array([1.0, -2.0])
    with jax.enable_x64(True):
        engine = inference.conjugate(model)
        rows = dp.observe(model, sites={"arm": [0], "y": [y]})
        belief = engine.update(KEY, engine.init(KEY), rows)
        covariance = np.linalg.inv(np.diag(scale**-2) + a.T @ a / 0.25)
        np.testing.assert_allclose(
            belief.mean[0], covariance @ a.T @ y / 0.25, rtol=1e-10, atol=1e-12
        )
        root = np.asarray(belief.root[0])
        np.testing.assert_allclose(root @ root.T, covariance, rtol=1e-8, atol=1e-12)


def test_two_parameter_likelihood():
    """Mean and scale both unknown: every row informs two directions."""

    def model():
        loc = numpyro.sample("loc", dist.Normal(0, 2))
        log_scale = numpyro.sample("log_scale", dist.Normal(0, 1))
        dp.action("arm", 1)
        dp.reward("y", dist.Normal(loc, jnp.exp(log_scale)))

    y = np.random.default_rng(4).normal(1.0, 2.0, size=40)

    def negative(z):
        return (
            0.5 * z[0] ** 2 / 4 + 0.5 * z[1] ** 2 - stats.norm(z[0], np.exp(z[1])).logpdf(y).sum()
        )

    mode = optimize.minimize(negative, np.zeros(2)).x
    engine = inference.laplace(model)
    rows = dp.observe(model, sites={"arm": np.zeros(40, int), "y": y})
    belief = engine.update(KEY, engine.init(KEY), rows)
    np.testing.assert_allclose(belief.mean[0], mode, atol=2e-3)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (lambda: _beta_times(0.5), "more than pick entries"),
        (lambda: _normal_latent(dist.BernoulliLogits), "not quadratic"),
        (lambda: _latent(dist.Poisson(3.0)), "discrete"),
        (lambda: _latent(dist.HalfNormal(1.0)), "not Gaussian"),
        (lambda: _no_latent, "no latent site"),
        (lambda: _observed, "obs="),
    ],
)
def test_models_that_are_not_conjugate(model, match):
    with pytest.raises(TypeError, match=match):
        inference.conjugate(model())


def _beta_times(factor):
    def model():
        p = numpyro.sample("p", dist.Beta(1, 1).expand([2]).to_event(1))
        dp.reward("y", dist.Bernoulli(factor * p[dp.action("arm", 2)]))

    return model


def _normal_latent(law):
    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        dp.reward("y", law(z * dp.action("arm", 2)))

    return model


def _latent(law):
    def model():
        z = numpyro.sample("z", law)
        dp.reward("y", dist.Normal(z * dp.action("arm", 2), 1.0))

    return model


def _no_latent():
    dp.reward("y", dist.Normal(dp.action("arm", 2), 1.0))


def _observed():
    z = numpyro.sample("z", dist.Normal(0, 1))
    dp.action("arm", 2)
    numpyro.sample("y", dist.Normal(z, 1), obs=1.0)


def test_a_latent_of_one_round_is_refused():
    def model(x):
        z = numpyro.sample("z", dist.Normal(x, 1))
        dp.reward("y", dist.Normal(z * dp.action("arm", 2), 1.0))

    with pytest.raises(ValueError, match="'z'.*differs between rounds"):
        inference.laplace(model, 0.0)


def test_a_likelihood_that_needs_an_unlogged_site_is_refused():
    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        hidden = dp.outcome("hidden", dist.Normal(z, 1))
        dp.reward("y", dist.Normal(hidden * dp.action("arm", 2), 1.0))

    engine = inference.laplace(model)
    rows = dp.observe(model, sites={"arm": [1], "y": [0.3]})
    with pytest.raises(ValueError, match="not logged, one of \\['hidden'\\]"):
        engine.update(KEY, engine.init(KEY), rows)
