"""Exact beliefs about functions: closed forms, what rows observe, drawn functions, compilation.

Statistics below fail by chance with a probability under 1e-7 each.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import decisionppl as dp
from decisionppl import inference, kernels, means
from decisionppl.inference import _marginal

KEY = jax.random.key(0)
NOISE = 0.3
KERNEL = 1.5 * kernels.Matern52(0.4)


def line():
    """Known hyperparameters; a cost that the utility is net of."""
    f = numpyro.sample("f", dp.GaussianProcess(KERNEL, means.Linear(jnp.array([2.0]), 1.0)))
    x = dp.action("x", dist.Uniform(0, 1))
    dp.cost("price", 0.5 * x)
    dp.reward("y", dist.Normal(f(x), NOISE))


def learned():
    """Hyperparameters to be learned."""
    scale = numpyro.sample("scale", dist.LogNormal(-1.0, 0.5))
    noise = numpyro.sample("noise", dist.LogNormal(-2.0, 0.5))
    f = numpyro.sample("f", dp.GaussianProcess(kernels.RBF(scale)))
    x = dp.action("x", dist.Uniform(0, 1))
    dp.reward("y", dist.Normal(f(x), noise))


def data(n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=n).astype(np.float32)
    return x, (np.sin(6 * x) + 0.1 * rng.normal(size=n)).astype(np.float32)


def told(engine, model, **sites):
    return engine.update(KEY, engine.init(KEY), dp.observe(model, sites=sites))


def closed_form(x, y, at, kernel=KERNEL, noise=NOISE):
    """Mean and covariance of f at points, by dense inverses in double precision."""
    gram = lambda a, b: np.asarray(  # noqa: E731
        kernel((jnp.asarray(a)[:, None],), (jnp.asarray(b)[:, None],)), float
    )
    inverse = np.linalg.inv(gram(x, x) + noise**2 * np.eye(len(x)))
    cross = gram(at, x)
    mean = 1 + 2 * at + cross @ inverse @ (y - 1 - 2 * x)
    return mean, gram(at, at) - cross @ inverse @ cross.T


@pytest.fixture(scope="module")
def exact():
    return inference.gaussian_process(line)


@pytest.fixture(scope="module")
def fitted():
    return inference.gaussian_process(learned, num_restarts=3)


AT = np.array([0.0, 0.31, 0.32, 0.9])


def test_prediction_is_the_closed_form(exact):
    x, y = data(9)
    law = exact.predict(told(exact, line, x=x, y=y), {"x": AT})
    mean, covariance = closed_form(x, y, AT)
    np.testing.assert_allclose(law.mean, mean - 0.5 * AT, atol=2e-5)
    np.testing.assert_allclose(law.covariance_matrix, covariance, atol=2e-5)
    view = exact.surrogate.view(told(exact, line, x=x, y=y))
    alone = exact.surrogate.utility(view, {"x": AT}, (), {}, False)
    np.testing.assert_allclose(alone.loc[0], mean, atol=2e-5)
    np.testing.assert_allclose(alone.scale[0] ** 2, np.diag(covariance), atol=2e-5)


def test_before_data_it_is_the_prior(exact):
    law = exact.predict(exact.init(KEY), {"x": AT})
    np.testing.assert_allclose(law.mean, 1 + 1.5 * AT, atol=1e-6)
    np.testing.assert_allclose(law.variance, 1.5, rtol=1e-5)


def test_order_and_batching_of_rows_change_nothing(exact):
    x, y = data(20)
    at_once = exact.predict(told(exact, line, x=x, y=y), {"x": AT})
    belief = exact.init(KEY)
    for part in (slice(13, 20), slice(0, 5), slice(5, 13)):
        belief = exact.update(KEY, belief, dp.observe(line, sites={"x": x[part], "y": y[part]}))
    parts = exact.predict(belief, {"x": AT})
    np.testing.assert_allclose(parts.mean, at_once.mean, atol=5e-5)
    np.testing.assert_allclose(parts.covariance_matrix, at_once.covariance_matrix, atol=5e-5)


def test_rows_that_do_not_count_change_nothing(exact):
    x, y = data(6)
    rows = dp.observe(line, sites={"x": x, "y": y}, mask=[True] * 4 + [False] * 2)
    some = exact.predict(exact.update(KEY, exact.init(KEY), rows), {"x": AT})
    few = exact.predict(told(exact, line, x=x[:4], y=y[:4]), {"x": AT})
    np.testing.assert_allclose(some.mean, few.mean, atol=1e-5)
    np.testing.assert_allclose(some.variance, few.variance, atol=1e-5)


def test_drawn_functions_have_the_posterior_law(exact):
    x, y = data(5)
    belief = told(exact, line, x=x, y=y)
    worlds = exact.sample(KEY, belief, 4000)
    values = np.asarray(jax.vmap(lambda f: f.batch(jnp.asarray(AT)))(worlds["f"]))
    mean, covariance = closed_form(x, y, AT)
    sd = np.sqrt(np.diag(covariance))
    error = (values.mean(0) - mean) / sd * np.sqrt(len(values))
    assert np.abs(error).max() < 5.5
    np.testing.assert_allclose(np.cov(values.T) / np.outer(sd, sd), covariance / np.outer(sd, sd),
                               atol=0.15)  # fmt: skip
    one = worlds["f"]
    first = jax.tree.map(lambda a: a[0], one)
    assert float(first(AT[1])) == pytest.approx(values[0, 1], abs=1e-4)


def test_outcomes_may_be_differences_averages_and_vectors():
    """Two functions; a difference, an average over points, and a value, seen in one row."""
    first, second = kernels.RBF(0.5), 2.0 * kernels.Matern32(0.3)

    def model():
        f = numpyro.sample("f", dp.GaussianProcess(first))
        g = numpyro.sample("g", dp.GaussianProcess(second))
        x = dp.action("x", dist.Uniform(0, 1))
        both = jnp.stack([f(x) - 2 * g(x), jnp.mean(f.batch(jnp.array([0.0, 0.5])))])
        dp.outcome("both", dist.Normal(both, 0.2).to_event(1))
        dp.outcome("plain", dist.Normal(3.0 + g(0.1), 0.4))
        dp.reward("wanted", f(x) + g(x))

    engine = inference.gaussian_process(model)
    belief = told(engine, model, x=[0.3, 0.8], both=[[1.0, 2.0], [0.5, -1.0]], plain=[3.3, 2.9])
    law = engine.predict(belief, {"x": AT})
    # the same by hand: all values of f and g that matter, in one vector
    points = np.array([0.3, 0.8, 0.0, 0.5, 0.1, *AT])
    gram = lambda k: np.asarray(k((points[:, None],), (points[:, None],)), float)  # noqa: E731
    n = len(points)
    joint = np.zeros((2 * n, 2 * n))
    joint[:n, :n], joint[n:, n:] = gram(first), gram(second)
    f, g = np.eye(2 * n)[:n], np.eye(2 * n)[n:]
    average = (f[2] + f[3]) / 2
    a = np.stack([f[0] - 2 * g[0], average, g[4], f[1] - 2 * g[1], average, g[4]])
    seen = np.array([1.0, 2.0, 0.3, 0.5, -1.0, -0.1])
    noise = np.diag(np.tile([0.2, 0.2, 0.4], 2) ** 2)
    b = f[5:] + g[5:]
    check_drawn(engine, belief, np.concatenate([f[5:], g[5:]]), joint, a, seen, noise)
    check_told(engine, belief, (b, f[1] + g[1], a[3:]), joint, a, noise)
    gain = b @ joint @ a.T @ np.linalg.inv(a @ joint @ a.T + noise)
    np.testing.assert_allclose(law.mean, gain @ seen, atol=1e-4)
    expected = b @ joint @ b.T - gain @ a @ joint @ b.T
    np.testing.assert_allclose(law.covariance_matrix, expected, atol=1e-4)
    # a belief with one more expected outcome: the mean stays, the variance is that of seeing it
    imagined = engine.surrogate.fantasise(belief, {"x": jnp.asarray(0.8)})
    after = engine.predict(imagined, {"x": AT})
    np.testing.assert_allclose(after.mean, law.mean, atol=1e-4)
    a = np.concatenate([a, a[3:]])
    noise = np.diag(np.tile([0.2, 0.2, 0.4], 3) ** 2)
    gain = b @ joint @ a.T @ np.linalg.inv(a @ joint @ a.T + noise)
    expected = b @ joint @ b.T - gain @ a @ joint @ b.T
    np.testing.assert_allclose(after.covariance_matrix, expected, atol=1e-4)


def check_drawn(engine, belief, b, joint, a, seen, noise):
    """Drawn f and g at AT, jointly, against the posterior by hand."""
    worlds = engine.sample(KEY, belief, 600)
    batch = jax.vmap(lambda f: f.batch(jnp.asarray(AT)))
    values = np.concatenate([batch(worlds["f"]), batch(worlds["g"])], axis=1)
    gain = b @ joint @ a.T @ np.linalg.inv(a @ joint @ a.T + noise)
    covariance = b @ joint @ b.T - gain @ a @ joint @ b.T
    sd = np.sqrt(np.diag(covariance))
    assert np.abs((values.mean(0) - gain @ seen) / sd * np.sqrt(600)).max() < 5.5
    scale = np.outer(sd, sd)
    np.testing.assert_allclose(np.cov(values.T) / scale, covariance / scale, atol=0.25)


def check_told(engine, belief, quantities, joint, a, noise):
    """What three outcomes of one action would tell, whatever their independent coordinates."""
    b, own, new = quantities
    surrogate = engine.surrogate
    known = jax.jit(lambda x, at: surrogate.preposterior(
        surrogate.view(belief), {"x": x}, {"x": at}, (), {}))(jnp.array([0.8]), AT)  # fmt: skip
    posterior = joint - joint @ a.T @ np.linalg.inv(a @ joint @ a.T + noise) @ a @ joint
    outcome = np.linalg.inv(new @ posterior @ new.T + noise[:3, :3])
    change, own_change = np.asarray(known.change[0, 0]), np.asarray(known.own_change[0, 0])
    cross, mine = b @ posterior @ new.T, own @ posterior @ new.T
    np.testing.assert_allclose(change.T @ change, cross @ outcome @ cross.T, atol=1e-4)
    np.testing.assert_allclose(own_change @ change, mine @ outcome @ cross.T, atol=1e-4)
    assert float(known.own_sd[0, 0]) == pytest.approx(np.sqrt(own @ posterior @ own), abs=1e-4)


def test_contexts_are_those_that_are_asked_about():
    """Arguments and context sites other than the example's, in predictions and in imagination."""

    def model(shift):
        f = numpyro.sample("f", dp.GaussianProcess(KERNEL, means.Linear(jnp.array([2.0]), 1.0)))
        z = dp.context("z", dist.Normal(0, 1))
        dp.reward("y", dist.Normal(f(dp.action("x", dist.Uniform(0, 1)) + shift + z), NOISE))

    engine = inference.gaussian_process(model, jnp.zeros(()))
    x, y = data(9)
    shift, z = np.linspace(-1, 1, 9).astype(np.float32), np.linspace(1, 0, 9).astype(np.float32)
    rows = dp.observe(model, (shift,), {"x": x, "y": y, "z": z})
    belief = engine.update(KEY, engine.init(KEY), rows)
    mean, covariance = closed_form(x + shift + z, y, AT + 0.25)
    law = engine.predict(belief, {"x": AT}, (0.5,), {"z": jnp.asarray(-0.25)})
    np.testing.assert_allclose(law.mean, mean, atol=5e-5)
    np.testing.assert_allclose(law.covariance_matrix, covariance, atol=5e-5)
    given = (jnp.asarray(0.5),), {"z": jnp.asarray(-0.25)}
    imagined = engine.surrogate.fantasise(belief, {"x": jnp.asarray(0.31)}, *given)
    after = engine.predict(imagined, {"x": AT}, (0.5,), {"z": jnp.asarray(-0.25)})
    more = (np.append(x + shift + z, 0.56), np.append(y, mean[1]))
    np.testing.assert_allclose(after.covariance_matrix, closed_form(*more, AT + 0.25)[1], atol=5e-5)


def test_a_full_history_grows_for_what_is_imagined(exact):
    x, y = data(16)
    belief = told(exact, line, x=x, y=y)
    imagined = exact.surrogate.fantasise(belief, {"x": jnp.asarray(0.9)})
    assert imagined.buffer.capacity == 32
    law = exact.predict(imagined, {"x": AT})
    mean, _ = closed_form(x, y, AT)
    covariance = closed_form(np.append(x, 0.9), np.append(y, 0.0), AT)[1]
    np.testing.assert_allclose(law.mean, mean - 0.5 * AT, atol=5e-5)
    np.testing.assert_allclose(law.covariance_matrix, covariance, atol=5e-5)


def test_hyperparameters_are_at_the_mode(fitted):
    x, y = data(12)
    belief = told(fitted, learned, x=x, y=y)
    found = fitted.surrogate.hyperparameters(belief)
    scale, noise = float(found["scale"][0]), float(found["noise"][0])
    squared = (x[:, None].astype(float) - x) ** 2

    def density(log_scale, log_noise):
        gram = np.exp(-squared / (2 * np.exp(2 * log_scale)))
        gram = gram + np.exp(2 * log_noise) * np.eye(12)
        prior = -0.5 * ((log_scale + 1) / 0.5) ** 2 - 0.5 * ((log_noise + 2) / 0.5) ** 2
        return prior - 0.5 * y @ np.linalg.solve(gram, y) - 0.5 * np.linalg.slogdet(gram)[1]

    best = density(np.log(scale), np.log(noise))
    grid = [density(u, v) for u in np.linspace(-2.5, 0.5, 61) for v in np.linspace(-3.5, -0.5, 61)]
    assert best >= max(grid) - 1e-3
    constant = -6 * np.log(2 * np.pi) + 2 * np.log(2) - np.log(2 * np.pi)
    assert float(belief.state.log_density.max()) == pytest.approx(best + constant, abs=2e-3)


@pytest.mark.parametrize("fit", ["map", "laplace"])
def test_the_search_for_the_mode_goes_on_from_the_last(fit):
    """An engine that may look at its start alone stays where another has left off."""

    def density(belief):
        return float(np.max((belief.state[0] if fit == "laplace" else belief.state).log_density))

    x, y = data(8)
    options = {"fit": fit, "num_restarts": 1, "num_draws": 4}
    found = told(inference.gaussian_process(learned, **options), learned, x=x, y=y)
    engine = inference.gaussian_process(learned, max_steps=1, **options)
    assert density(told(engine, learned, x=x, y=y)) < density(found) - 0.2
    nothing = dp.observe(learned, sites={"x": x[:1], "y": y[:1]}, mask=[False])
    again = engine.update(KEY, found, nothing)
    assert density(again) == pytest.approx(density(found), abs=1e-3)


def test_of_several_modes_the_highest_is_taken():
    """The sign of a root is told by its prior alone: one nat."""

    def model():
        root = numpyro.sample("root", dist.Normal(0.5, 1.0))
        f = numpyro.sample("f", dp.GaussianProcess(0.01 * kernels.RBF(0.3)))
        dp.reward("y", dist.Normal(root**2 + f(dp.action("x", dist.Uniform(0, 1))), 0.1))

    engine = inference.gaussian_process(model, num_restarts=8)
    belief = told(engine, model, x=[0.0, 0.5, 1.0], y=[1.0, 1.0, 1.0])
    assert float(np.ptp(belief.state.log_density)) > 0.5  # both were found
    assert float(engine.surrogate.hyperparameters(belief)["root"][0]) == pytest.approx(1, abs=0.1)


def test_one_compilation_per_bucket(fitted, compilations):
    belief = fitted.init(KEY)
    counts = []
    for n in (3, 1, 12, 1, 10):  # 3, 4, 16 | 17, 27 rows
        x, y = data(n, seed=n)
        rows = dp.observe(learned, sites={"x": x, "y": y})
        before = compilations()
        belief = fitted.update(KEY, belief, rows)
        counts.append(compilations() - before)
    assert counts[1:3] == [0, 0]
    assert counts[4] == 0
    assert int(belief.buffer.count) == 27


def test_it_works_inside_scan_and_vmap():
    engine = inference.gaussian_process(line, capacity=16)
    x, y = data(4)

    def learn(y):
        def one(belief, row):
            rows = dp.Rows((), {"x": row[0][None], "y": row[1][None]}, jnp.ones(1, bool))
            return engine.update(KEY, belief, rows), None

        belief = jax.lax.scan(one, engine.init(KEY), (jnp.asarray(x), y))[0]
        return engine.predict(belief, {"x": AT}).mean

    both = jax.jit(jax.vmap(learn))(jnp.stack([y, -y]))
    for signed, got in zip((y, -y), both, strict=True):
        expected = closed_form(x, signed, AT)[0] - 0.5 * AT
        np.testing.assert_allclose(got, expected, atol=5e-5)


def test_each_value_given_all_others(exact):
    x, y = data(7)
    law = exact.surrogate.leave_one_out(told(exact, line, x=x, y=y))
    assert np.isnan(law.loc[0, 7:]).all()
    for i in range(7):
        rest = np.arange(7) != i
        mean, covariance = closed_form(x[rest], y[rest], x[i : i + 1])
        assert float(law.loc[0, i, 0]) == pytest.approx(mean[0], abs=1e-4)
        sd = np.sqrt(covariance[0, 0] + NOISE**2)
        assert float(law.scale[0, i, 0]) == pytest.approx(sd, rel=1e-4)


def test_what_an_outcome_would_tell(exact):
    """Against the definition: means after each of many simulated outcomes."""
    x, y = data(5)
    belief = told(exact, line, x=x, y=y)
    view = exact.surrogate.view(belief)
    candidates, targets = np.array([0.2, 0.95]), AT
    known = exact.surrogate.preposterior(view, {"x": candidates}, {"x": targets}, (), {}, False)
    for i, candidate in enumerate(candidates):
        both = np.append(candidate, targets)
        mean, covariance = closed_form(x, y, both)
        moved = covariance[1:, 0] / np.sqrt(covariance[0, 0] + NOISE**2)
        np.testing.assert_allclose(known.change[0, i, 0], moved, atol=1e-4)
        assert float(known.own_mean[0, i]) == pytest.approx(mean[0], abs=1e-4)
        assert float(known.own_sd[0, i]) == pytest.approx(np.sqrt(covariance[0, 0]), abs=1e-4)
        own = covariance[0, 0] / np.sqrt(covariance[0, 0] + NOISE**2)
        assert float(known.own_change[0, i, 0]) == pytest.approx(own, abs=1e-4)
    np.testing.assert_allclose(known.mean[0], closed_form(x, y, targets)[0], atol=1e-4)
    np.testing.assert_allclose(known.covariance[0], closed_form(x, y, targets)[1], atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"fit": "nuts", "num_warmup": 200, "num_samples": 800}, {"fit": "laplace"}]
)
def test_draws_of_hyperparameters_have_their_posterior(options):
    """One hyperparameter, whose posterior is integrated on a grid."""

    def model():
        scale = numpyro.sample("scale", dist.LogNormal(-1.0, 0.7))
        f = numpyro.sample("f", dp.GaussianProcess(kernels.RBF(scale)))
        dp.reward("y", dist.Normal(f(dp.action("x", dist.Uniform(0, 1))), 0.2))

    x, y = data(8)
    engine = inference.gaussian_process(model, num_draws=800, **options)
    belief = told(engine, model, x=x, y=y)
    assert engine.predict is None
    draws = np.log(np.asarray(engine.surrogate.hyperparameters(belief)["scale"], float))
    grid = np.linspace(-5, 3, 400)
    squared = (x[:, None].astype(float) - x) ** 2
    log_density = []
    for u in grid:
        gram = np.exp(-squared / (2 * np.exp(2 * u))) + 0.04 * np.eye(8)
        log_density.append(
            -0.5 * ((u + 1) / 0.7) ** 2
            - 0.5 * y @ np.linalg.solve(gram, y)
            - 0.5 * np.linalg.slogdet(gram)[1]
        )
    weight = np.exp(np.array(log_density) - max(log_density))
    weight /= weight.sum()
    mean = weight @ grid
    sd = np.sqrt(weight @ (grid - mean) ** 2)
    # at least 100 independent draws among 800, at 5.3 standard errors
    assert abs(draws.mean() - mean) < 5.3 * sd / 10
    assert 0.5 < draws.std() / sd < 1.6
    if options["fit"] == "laplace":  # weighed by their density, draws need no luck
        assert abs(draws.mean() - mean) < 0.15 * sd
        assert 0.9 < draws.std() / sd < 1.1
        assert 800 < float(belief.state.ess) <= 6400
    # each draw has a posterior of its own
    view = jax.jit(engine.surrogate.view)(belief)
    law = engine.surrogate.utility(view, {"x": np.array([0.31])}, (), {})
    for i in (0, 300, 799):
        kernel = lambda d, i=i: np.exp(-(d**2) / (2 * np.exp(2 * draws[i])))  # noqa: E731
        inverse = np.linalg.inv(kernel(np.sqrt(squared)) + 0.04 * np.eye(8))
        cross = kernel(0.31 - x.astype(float))
        assert float(law.loc[i, 0]) == pytest.approx(cross @ inverse @ y, abs=2e-3)
        assert float(law.scale[i, 0]) ** 2 == pytest.approx(1 - cross @ inverse @ cross, abs=2e-3)
    worlds = np.log(np.asarray(engine.sample(KEY, belief, 400)["scale"]))
    assert np.isin(worlds, draws.astype(np.float32)).mean() > 0.9
    assert abs(worlds.mean() - draws.mean()) < 5.3 * sd / np.sqrt(400)
    assert 0.5 < worlds.std() / sd < 1.6


def test_draws_about_a_mode_keep_what_the_curvature_gets_wrong():
    """Two hyperparameters, one of which the data say nothing of: its draws are its prior's."""

    def model():
        scale = numpyro.sample("scale", dist.LogNormal(-1.0, 0.7))
        idle = numpyro.sample("idle", dist.Gamma(1.5, 1.0))  # skewed, also in its logarithm
        f = numpyro.sample("f", dp.GaussianProcess(kernels.RBF(scale)))
        dp.reward("y", dist.Normal(f(dp.action("x", dist.Uniform(0, 1))) + 0 * idle, 0.2))

    x, y = data(8)
    engine = inference.gaussian_process(model, fit="laplace", num_draws=1000)
    draws = engine.surrogate.hyperparameters(told(engine, model, x=x, y=y))
    grid = np.linspace(0.05, 0.95, 10)
    quantiles = stats.gamma.ppf(grid, 1.5)
    # 8000 proposals: an effective 4000 at least, so a share has a standard error below .008
    below = np.mean(np.asarray(draws["idle"])[:, None] < quantiles, axis=0)
    np.testing.assert_allclose(below, grid, atol=0.04)
    before = engine.init(KEY)
    first = engine.surrogate.hyperparameters(before)["idle"]
    assert 0.4 < np.mean(np.asarray(first) < stats.gamma.median(1.5)) < 0.6


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 2**31 - 1))
def test_appended_factors_are_those_of_the_whole(old, new, seed):
    rng = np.random.default_rng(seed)
    size = 16
    root = rng.normal(size=(size, size))
    whole = np.eye(size)
    count = old + new
    whole[:count, :count] = (root @ root.T)[:count, :count] + 0.5 * np.eye(count)
    begun = np.eye(size)
    begun[:old, :old] = whole[:old, :old]
    with jax.enable_x64(True):
        cross = np.zeros((size, new))
        cross[:old] = whole[:old, old:count]
        got = _marginal.append(
            _marginal.cholesky(jnp.asarray(begun)), jnp.asarray(cross),
            jnp.asarray(whole[old:count, old:count]), old + jnp.arange(new),
        )  # fmt: skip
        np.testing.assert_allclose(got @ got.T, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [5, 150])  # inverted as a whole, and by halves of halves
def test_gradients_of_the_likelihood_are_those_of_autodiff(size):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(size, size))
    residual = rng.normal(size=size)
    with jax.enable_x64(True):
        covariance = jnp.asarray(root @ root.T + np.eye(size))

        def plain(s, r):
            return dist.MultivariateNormal(jnp.zeros(size), s).log_prob(r)

        value = _marginal.log_density(covariance, jnp.asarray(residual))
        assert float(value) == pytest.approx(float(plain(covariance, residual)), rel=1e-9)
        for i in (0, 1):
            closed = jax.grad(_marginal.log_density, i)(covariance, jnp.asarray(residual))
            auto = jax.grad(plain, i)(covariance, jnp.asarray(residual))
            # a covariance is symmetric, so only the symmetric part of a gradient counts
            if i == 0:
                auto = (auto + auto.T) / 2
            np.testing.assert_allclose(closed, auto, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_singular_covariances_are_factorised_at_any_scale(scale):
    ones = jnp.full((30, 30), scale, jnp.float32)
    root = _marginal.cholesky(ones)
    assert np.isfinite(root).all()
    np.testing.assert_allclose(root @ root.T, ones, rtol=1e-2, atol=1e-2 * scale)


def test_a_factor_that_fails_is_tried_again_with_more_jitter():
    # the least eigenvalue is below zero by seven times what rounding calls for
    root = _marginal.cholesky(jnp.ones((30, 30)) - 5e-5 * jnp.eye(30))
    np.testing.assert_allclose(root @ root.T, np.ones((30, 30)), atol=1e-3)
    assert np.isnan(_marginal.cholesky(jnp.ones((3, 3)) - 2 * jnp.eye(3))).any()


@pytest.mark.parametrize("x", [[0.5] * 12, np.linspace(0, 1, 12)], ids=["same", "spread"])
def test_duplicated_points_and_constant_outcomes(fitted, x):
    """Nothing varies, or nothing but the inputs: the noise is small, the rest is the prior's."""
    belief = told(fitted, learned, x=x, y=[2.0] * 12)
    found = fitted.surrogate.hyperparameters(belief)
    assert 0.1 < float(found["scale"][0]) < 10
    assert 1e-3 < float(found["noise"][0]) < 0.2
    law = fitted.predict(belief, {"x": np.array([0.5, 3.0])})
    assert float(law.mean[0]) == pytest.approx(2.0, abs=0.05)
    sd = np.sqrt(np.asarray(law.variance))
    assert 1e-4 < sd[0] < 0.1 < sd[1] <= 1.001
    worlds = fitted.sample(KEY, belief, 5)
    assert np.isfinite(jax.vmap(lambda f: f(0.5))(worlds["f"])).all()


def test_contradicting_duplicates_almost_without_noise():
    """In single precision, where the covariance is singular up to rounding."""

    def model():
        f = numpyro.sample("f", dp.GaussianProcess(kernels.RBF(0.5)))
        dp.reward("y", dist.Normal(f(dp.action("x", dist.Uniform(0, 1))), 1e-4))

    engine = inference.gaussian_process(model)
    belief = told(engine, model, x=[0.2] * 8 + [0.7, 0.7 + 1e-7], y=[1.0, 1.1] * 4 + [0.5, 0.5])
    law = engine.predict(belief, {"x": np.array([0.2, 0.7, 3.0])})
    np.testing.assert_allclose(law.mean, [1.05, 0.5, 0.0], atol=0.01)
    sd = np.sqrt(np.asarray(law.variance))
    assert (sd[:2] < 0.01).all()
    assert sd[2] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_losses_that_are_no_numbers_name_their_site(exact, bad):
    x, y = data(3)
    y[1] = bad
    with pytest.raises(ValueError, match="site 'y'.* in row 1"):
        dp.observe(line, sites={"x": x, "y": y})
    rows = dp.Rows((), {"x": x, "y": y}, np.ones(3, bool))  # unchecked
    with pytest.raises(ValueError, match=f"site 'y': {bad} in row 1 .*expected finite .*mask"):
        exact.update(KEY, exact.init(KEY), rows)


def levels():
    """A cheap fidelity and the target, whose relation is to be learned."""
    rho = numpyro.sample("rho", dist.Normal(1.0, 0.5))
    scale = numpyro.sample("scale", dist.LogNormal(-1.0, 0.5))
    parts = [kernels.RBF(scale), 0.3 * kernels.RBF(scale)]
    f = numpyro.sample("f", dp.GaussianProcess(kernels.KennedyOHagan(rho[None], parts)))
    x = dp.action("x", dist.Uniform(0, 1))
    level = dp.action("level", 2)
    dp.outcome("y", dist.Normal(f(level, x), 0.1))
    dp.reward("value", f(1, x))


@pytest.fixture(scope="module")
def fidelities():
    return inference.gaussian_process(levels, num_restarts=1)


def test_a_fidelity_that_was_never_observed_stays_uncertain(fidelities):
    x = np.linspace(0, 1, 9).astype(np.float32)
    y, at = np.sin(6 * x), {"x": np.linspace(0, 1, 4), "level": np.ones(4, int)}
    sd = {}
    for level in (0, 1):  # each alone: a single fidelity
        belief = told(fidelities, levels, x=x, level=np.full(9, level), y=y)
        found = fidelities.surrogate.hyperparameters(belief)
        assert all(np.isfinite(v).all() for v in found.values())
        law = fidelities.predict(belief, at)
        np.testing.assert_allclose(law.mean, np.sin(6 * at["x"]), atol=0.4)
        sd[level] = np.sqrt(np.asarray(law.variance))
    assert (sd[1] < 0.15).all()
    # the part of the target's function that cheap runs do not share
    assert (sd[0] > 0.5).all()


def test_bad_inputs_are_told_one_by_one(fidelities):
    """One dose again and again, one outcome, one fidelity, the target never observed, and NaN."""
    only = {"x": np.array([0.5], np.float32), "level": np.array([0])}
    trial = dp.experiment.Experiment(levels, fidelities, dp.rules.greedy, key=0, actions=only)
    for _ in range(3):
        trial.tell(trial.ask().token, 1.0)
    found = trial.recommend()
    assert found.mean == pytest.approx(1.0, abs=0.3)
    assert 0.4 < found.sd < 1.0
    assert found.regret == pytest.approx(0.0, abs=1e-5)
    asked = trial.ask()
    before = jax.tree.leaves(trial.belief)
    for bad in (np.nan, -np.inf, {"y": [np.nan]}):
        with pytest.raises(ValueError, match="site 'y' is .*expected a finite value.*drop"):
            trial.tell(asked.token, bad)
    assert trial.pending == [asked.token]
    assert all(a is b for a, b in zip(before, jax.tree.leaves(trial.belief), strict=True))


def test_rows_that_were_lost_show():
    engine = inference.gaussian_process(line, capacity=2)
    rows = dp.Rows((), {"x": jnp.zeros(2), "y": jnp.zeros(2)}, jnp.ones(2, bool))
    twice = jax.jit(lambda b: engine.update(KEY, engine.update(KEY, b, rows), rows))
    belief = twice(engine.init(KEY))
    assert int(belief.buffer.count) == 4
    inside = jax.jit(lambda b: engine.sample(KEY, b, 2)["f"].corrections[0].weights)(belief)
    assert np.isnan(inside).all()
    with pytest.raises(ValueError, match="4 rows do not fit"):
        engine.sample(KEY, belief, 1)


def non_linear():
    f = numpyro.sample("f", dp.GaussianProcess(KERNEL))
    dp.reward("y", dist.Normal(jnp.exp(f(dp.action("x", dist.Uniform(0, 1)))), 0.1))


def not_normal():
    f = numpyro.sample("f", dp.GaussianProcess(KERNEL))
    dp.reward("y", dist.Bernoulli(logits=f(dp.action("x", dist.Uniform(0, 1)))))


def nested():
    f = numpyro.sample("f", dp.GaussianProcess(KERNEL))
    dp.reward("y", dist.Normal(f(f(dp.action("x", dist.Uniform(0, 1)))), 0.1))


def without():
    w = numpyro.sample("w", dist.Normal(0, 1))
    dp.reward("y", dist.Normal(w * dp.action("x", dist.Uniform(0, 1)), 0.1))


def discrete():
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    f = numpyro.sample("f", dp.GaussianProcess(KERNEL))
    dp.reward("y", dist.Normal(k + f(dp.action("x", dist.Uniform(0, 1))), 0.1))


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (non_linear, {}, ValueError, "not linear"),
        (not_normal, {}, TypeError, "'y' is Bernoulli.*needs a Normal outcome"),
        (nested, {}, ValueError, "the value of a function"),
        (without, {}, TypeError, r"no Gaussian-process site.*\['w', 'x', 'y'\]"),
        (discrete, {}, TypeError, "'k' is discrete"),
        (line, {"fit": "vi"}, ValueError, "fit: expected"),
        (line, {"num_restarts": 0}, ValueError, "num_restarts"),
        (
            line,
            {"fit": "nuts", "num_draws": 200},
            ValueError,
            "num_draws 200 is more than num_samples 128",
        ),
        (line, {"sites": ["x"]}, ValueError, "nothing is observed"),
    ],
)
def test_misuse_says_what_to_do(model, options, error, message):
    with pytest.raises(error, match=message):
        inference.gaussian_process(model, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dp.GaussianProcess(lambda x, z: x), "expected one of decisionppl.kernels"),
        (lambda: dp.GaussianProcess(KERNEL, lambda x: x), "jax.tree_util.Partial"),
    ],
)
def test_processes_are_built_of_what_jax_can_see(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def truncated():
    power = numpyro.sample("power", dist.Gamma(3.0, 3.0))
    part = kernels.RBF(0.4)
    f = numpyro.sample("f", dp.GaussianProcess(kernels.LinearTruncated(part, part, 1, power=power)))
    g = numpyro.sample("g", dp.GaussianProcess(0.01 * part))
    x, level = dp.action("x", dist.Uniform(0, 1)), dp.action("level", 2)
    s = 0.3 + 0.7 * level
    dp.cost("price", s)
    dp.outcome("y", dist.Normal(f(x, s) + g(x), 0.1))
    dp.reward("value", f(x, 1.0))


def test_rules_that_ask_what_outcomes_tell_need_no_drawn_functions():
    """A power that is fitted leaves its kernel without features: a decision per unit of cost is
    made all the same, and rules of drawn worlds say why not."""
    engine = inference.gaussian_process(truncated, num_restarts=1, capacity=16)
    pool = {"x": np.tile(np.linspace(0, 1, 5), 2), "level": np.repeat([0, 1], 5)}
    trial = dp.experiment.Experiment(
        truncated, engine, dp.rules.per_cost(dp.rules.knowledge_gradient), key=0, actions=pool,
        draws=1,
    )  # fmt: skip
    trial.learn(dp.observe(truncated, sites={"x": [0.2, 0.9], "level": [0, 1], "y": [0.0, 1.0]}))
    assert trial.ask().action["level"] in (0, 1)
    with pytest.raises(NotImplementedError, match="LinearTruncated has no random features"):
        engine.sample(0, trial.belief, 1)
    drawing = dp.experiment.Experiment(
        truncated, engine, dp.rules.thompson, key=0, actions=pool,
        constraint=lambda values: values["price"].mean(0) < 2,
    )  # fmt: skip
    with pytest.raises(NotImplementedError, match="LinearTruncated has no random features"):
        drawing.ask()
