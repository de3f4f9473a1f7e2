"""Search over actions: known optima first, properties second, one statistical test last.

Keys are fixed. Had the one of `test_ties_are_broken_uniformly` been random, its chance of a false
alarm would be below 1e-8; nothing else here is statistical.
"""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpyro.distributions import constraints
from scipy import optimize, stats

import decisionppl as dp
from decisionppl import _maximise as search
from decisionppl._maximise import maximise
from decisionppl._minimise import minimise
from decisionppl.testing import strategies

KEY = jax.random.key(7)
few = settings(max_examples=20)


def run(score, space, **options):
    """One compiled search."""
    return jax.jit(lambda key: maximise(score, space, key, **options))(KEY)


def in_float64(test):
    @functools.wraps(test)
    def wrapped(*args, **kwargs):
        with jax.enable_x64(True):
            return test(*args, **kwargs)

    return wrapped


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def hills(x, heights):
    """Smooth, with several minima, concave in places; heights [3]."""
    centres = jnp.array([[-2.0, 0.0], [0.5, 1.0], [2.0, -1.0]], x.dtype)
    return 0.01 * x @ x - heights @ jnp.exp(-0.5 * jnp.sum((x - centres) ** 2, axis=1))


# ---------------------------------------------------------------------------------- minimise


@pytest.mark.parametrize(("x64", "close"), [(False, 2e-2), (True, 1e-5)])
def test_minimise_rosenbrock(x64, close):
    with jax.enable_x64(x64):
        starts = jnp.array([[-1.2, 1.0, -1.2, 1.0], [0.0] * 4, [2.0, -3.0, 1.0, 4.0]])
        found = minimise(rosenbrock, starts)
        assert found.x.dtype == found.value.dtype == starts.dtype
        assert found.converged.all()
        # from the first start the function has a second minimum, of value 3.7
        local = optimize.minimize(rosenbrock, np.asarray(starts[0]), jac=jax.grad(rosenbrock))
        np.testing.assert_allclose(found.x[0], local.x, atol=close)
        np.testing.assert_allclose(found.x[1:], 1.0, atol=close)
        np.testing.assert_allclose(found.value, jax.vmap(rosenbrock)(found.x), rtol=1e-5)
        # scipy's line search takes 50 to 60 evaluations
        assert found.steps.max() < 80


@functools.cache
def compiled_quadratic():
    def solve(a, b, starts):
        return minimise(lambda x: 0.5 * x @ a @ x - b @ x, starts)

    return jax.jit(solve)


@given(
    matrix=strategies.spd_matrices((4,), max_condition=1e3),
    solution=hnp.arrays(np.float64, 4, elements=st.integers(-99, 99).map(lambda i: i / 9)),
)
@few
@in_float64
def test_minimise_quadratic_is_the_linear_solve(matrix, solution):
    a = jnp.asarray(matrix, float)
    b = a @ solution
    found = compiled_quadratic()(a, b, jnp.array([[0.0] * 4, [5.0, -5.0, 5.0, -5.0]]))
    exact = np.linalg.solve(a, b)
    lowest = -0.5 * b @ exact
    assert found.converged.all()
    scale = np.maximum(abs(lowest), 1e-12)
    # tolerance 2e-12 on the estimated gap; the estimate may be a few times too small
    assert (found.value - lowest <= 1e-8 * scale + 1e-14).all()
    gap = np.sqrt(2e-8 * scale / np.linalg.eigvalsh(a)[0]) + 1e-6
    assert (np.abs(found.x - exact).max(1) <= gap).all()


@functools.cache
def compiled_hills():
    return jax.jit(lambda h, starts: minimise(lambda x: hills(x, h), starts))


@given(
    heights=hnp.arrays(np.float32, 3, elements=st.floats(-2, 2, width=32)),
    starts=hnp.arrays(np.float32, (3, 2), elements=st.floats(-4, 4, width=32)),
)
@few
def test_minimise_descends_to_stationary_points(heights, starts):
    found = compiled_hills()(heights, starts)
    before = jax.vmap(lambda x: hills(x, heights))(starts)
    assert (found.value <= before + 1e-6 * np.abs(before)).all()
    assert found.converged.all()
    slopes = jax.vmap(jax.grad(lambda x: hills(x, heights)))(found.x)
    assert np.abs(slopes).max() < 0.03


def test_minimise_a_batch_is_its_starts():
    heights = jnp.array([1.0, 2.0, 1.5])
    starts = jnp.array([[0.0, 0.0], [3.0, -3.0], [-3.0, 1.0]])
    together = compiled_hills()(heights, starts)
    for i in range(3):
        alone = compiled_hills()(heights, starts[i : i + 1])
        np.testing.assert_allclose(alone.x[0], together.x[i], atol=1e-5)
        assert alone.steps[0] == together.steps[i]


def test_minimise_under_jit_vmap_and_scan():
    heights = jnp.array([[1.0, 2.0, 1.5], [0.5, 0.1, 2.0]])
    starts = jnp.array([[0.0, 0.0], [3.0, -3.0]])
    one = lambda h: minimise(lambda x: hills(x, h), starts).x  # noqa: E731
    expected = jnp.stack([one(h) for h in heights])
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(heights), expected, atol=1e-4)
    scanned = jax.lax.scan(lambda c, h: (c, one(h)), 0, heights)[1]
    np.testing.assert_allclose(scanned, expected, atol=1e-4)


def test_minimise_traces_the_objective_once():
    traced = []

    def fn(x):
        traced.append(x)
        return jnp.sum(x**2)

    jax.jit(lambda s: minimise(fn, s))(jnp.ones((3, 2)))
    assert len(traced) == 1


def test_minimise_steps_back_from_undefined_regions():
    # NaN for x < 0 and inf beyond 10, where the first steps lead
    def fn(x):
        return jnp.where(x[0] > 10.0, jnp.inf, x[0] - 0.5 * jnp.log(x[0]))

    found = minimise(fn, jnp.array([[0.9], [9.9], [-1.0], [11.0], [jnp.nan]]))
    np.testing.assert_allclose(found.x[:2], 0.5, atol=5e-3)
    assert found.converged.tolist() == [True, True, False, False, False]
    assert np.isposinf(found.value[2:]).all()
    assert found.steps[2:].tolist() == [1, 1, 1]


def test_minimise_steps_back_from_undefined_gradients():
    # the derivative at 0 is NaN though the value is finite
    def fn(x):
        return jnp.sqrt(jnp.abs(x[0] - 0.5)) * 0 + (x[0] - 0.25) ** 2

    found = minimise(fn, jnp.array([[-0.5], [0.5]]))
    np.testing.assert_allclose(found.x[0], 0.25, atol=1e-3)
    assert np.isposinf(found.value[1])


def test_minimise_minus_infinity_is_undefined_too():
    # the gradient is finite everywhere
    fn = lambda x: jnp.where(x[0] > 0, x[0] ** 2 - x[0], -jnp.inf)  # noqa: E731
    found = minimise(fn, jnp.array([[1.0], [-1.0]]))
    np.testing.assert_allclose(found.x[0], 0.5, atol=1e-3)
    assert np.isposinf(found.value[1])
    assert found.steps[1] == 1


def test_minimise_leaves_concave_regions():
    found = minimise(lambda x: -jnp.exp(-0.5 * x @ x), jnp.array([[4.0, 0.0], [0.0, -3.0]]))
    np.testing.assert_allclose(found.x, 0.0, atol=2e-2)
    np.testing.assert_allclose(found.value, -1.0, atol=1e-4)


def test_minimise_strides_over_concave_slopes():
    found = minimise(lambda x: jnp.log1p(x @ x), jnp.array([[1e4, 0.0]]))
    np.testing.assert_allclose(found.x, 0.0, atol=1e-2)
    assert found.steps[0] < 50


@in_float64
def test_minimise_does_not_trust_the_size_of_the_first_gradient():
    found = minimise(lambda x: 1.0 + 1e-16 * (x[0] - 1e4) ** 2, jnp.zeros((1, 1)))
    assert found.value[0] < 1 + 1e-11


def test_minimise_far_away_takes_few_steps():
    found = minimise(lambda x: jnp.sum((x - 1e4) ** 2), jnp.zeros((1, 3)))
    np.testing.assert_allclose(found.x, 1e4, rtol=1e-3)
    assert found.steps[0] < 20


@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e9])
@in_float64
def test_minimise_does_not_depend_on_the_scale_of_values(factor):
    starts = jnp.array([[-1.2, 1.0], [2.0, 2.0]])
    found = minimise(lambda x: factor * rosenbrock(x), starts)
    np.testing.assert_allclose(found.x, 1.0, atol=1e-5)
    assert found.converged.all()


def test_minimise_counts_evaluations_and_stops():
    found = minimise(rosenbrock, jnp.array([[-1.2, 1.0], [1.0, 1.0]]), max_steps=5)
    assert found.steps.tolist() == [5, 1]
    assert found.converged.tolist() == [False, True]
    assert found.value[0] < rosenbrock(jnp.array([-1.2, 1.0]))


def test_minimise_tolerance_saves_steps():
    starts = jnp.array([[-1.2, 1.0]])
    loose, strict = (minimise(rosenbrock, starts, tolerance=t) for t in (1e-1, 1e-6))
    assert loose.steps[0] < strict.steps[0]
    assert loose.value[0] > strict.value[0]


def test_minimise_stops_soon_at_a_value_of_zero():
    # what is predicted is compared with the last decrease, not only with a value that vanishes
    with jax.enable_x64(True):
        found = minimise(lambda x: x @ x + jnp.sum(x**4), jnp.array([[0.5, 0.1]]))
        assert found.converged[0]
        assert found.steps[0] < 17


@in_float64
def test_minimise_mixed_precision():
    weights = jnp.array([1.0, 2.0])
    found = minimise(lambda x: weights @ (x - 0.5) ** 2, jnp.zeros((1, 2), jnp.float32))
    assert found.x.dtype == found.value.dtype == jnp.float32
    np.testing.assert_allclose(found.x, 0.5, atol=1e-3)


def test_minimise_stops_at_a_kink():
    found = minimise(lambda x: jnp.abs(x[0]) + jnp.abs(x[1] - 1.0), jnp.array([[0.3, -2.0]]))
    assert found.value[0] < 1e-2
    assert found.steps[0] < 100


@in_float64
def test_minimise_marginal_likelihood_as_well_as_scipy():
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.uniform(size=(25, 3)))
    y = jnp.sin(6 * x[:, 0]) + x[:, 1] ** 2 + 0.1 * rng.normal(size=25)

    def negative(t):
        squared = jnp.sum(((x[:, None] - x) / jnp.exp(t[:3])) ** 2, axis=-1)
        cov = jnp.exp(t[3] - 0.5 * squared) + (1e-6 + jnp.exp(t[4])) * jnp.eye(25)
        loss = jnp.sum(jnp.log(jnp.diag(jnp.linalg.cholesky(cov)))) + 0.05 * t @ t
        return loss + 0.5 * y @ jnp.linalg.solve(cov, y)

    starts = jnp.array([[0.0, 0, 0, 0, -2], [-1.0, 1, 0.5, 1, -4]])
    found = minimise(negative, starts)
    both = jax.jit(jax.value_and_grad(negative))
    for start, value in zip(starts, found.value, strict=True):
        peer = optimize.minimize(both, np.asarray(start), jac=True, method="L-BFGS-B")
        assert value <= peer.fun + 1e-5
    assert found.steps.max() < 60


@pytest.mark.parametrize(
    ("starts", "options", "message"),
    [
        (jnp.zeros(3), {}, "starts: expected shape [restarts, n], got (3,)"),
        (jnp.zeros((1, 3)), {"max_steps": 0}, "max_steps: expected at least 1, got 0"),
        (jnp.zeros((1, 3)), {"tolerance": -1.0}, "tolerance: expected a number of at least 0"),
        (jnp.zeros((1, 3)), {"tolerance": math.nan}, "tolerance: expected a number of at least 0"),
    ],
)
def test_minimise_errors(starts, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        minimise(rosenbrock, starts, **options)


def test_minimise_integer_starts():
    found = minimise(lambda x: jnp.sum((x - 0.5) ** 2), jnp.array([[0, 3]]))
    np.testing.assert_allclose(found.x, 0.5, atol=1e-4)


# -------------------------------------------------------------------- maximise: known optima


def box(low, high, size):
    return dist.Uniform(low, high).expand([size]).to_event(1)


def hits(space, points, **options):
    """Searches, one compilation, for scores of 1 at a single point where no slope leads."""

    def one(point):
        same = lambda a: [jnp.all(a[n] == point[n]) for n in point]  # noqa: E731
        return maximise(lambda a: 1.0 * jnp.all(jnp.stack(same(a))), space, KEY, **options)

    found = jax.jit(jax.vmap(one))(points)
    for name, x in points.items():
        np.testing.assert_array_equal(found.action[name], x)
    return found.value


def branin(action):
    x, y = action["x"], action["y"]
    bowl = y - 5.1 / (4 * jnp.pi**2) * x**2 + 5 / jnp.pi * x - 6
    return -(bowl**2 + 10 * (1 - 1 / (8 * jnp.pi)) * jnp.cos(x) + 10)


HARTMANN_SCALES = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
HARTMANN_CENTRES = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann(action):
    squared = HARTMANN_SCALES * (action["x"] - HARTMANN_CENTRES) ** 2
    return jnp.array([1.0, 1.2, 3.0, 3.2]) @ jnp.exp(-jnp.sum(squared, axis=1))


def test_branin():
    space = {"x": dist.Uniform(-5, 10), "y": dist.Uniform(0, 15)}
    best = run(branin, space)
    assert abs(best.value + 0.397887) < 1e-4
    optima = np.array([[-np.pi, 12.275], [np.pi, 2.275], [9.42478, 2.475]])
    found = np.array([best.action["x"], best.action["y"]])
    assert np.abs(optima - found).max(1).min() < 0.02


@in_float64
def test_hartmann():
    best = run(hartmann, {"x": box(0.0, 1.0, 6)})
    assert abs(best.value - 3.322368011415515) < 1e-8
    exact = [0.20168952, 0.15001069, 0.47687398, 0.27533243, 0.31165162, 0.65730054]
    np.testing.assert_allclose(best.action["x"], exact, atol=1e-5)


def project(target):
    """The nearest point of the simplex, by sorting."""
    order = np.sort(target)[::-1]
    excess = (np.cumsum(order) - 1) / np.arange(1, len(target) + 1)
    return np.maximum(target - excess[np.flatnonzero(order > excess)[-1]], 0)


@functools.cache
def compiled_projection():
    def nearest(target, key):
        score = lambda action: -jnp.sum((action["w"] - target) ** 2)  # noqa: E731
        space = {"w": dist.Dirichlet(jnp.ones(4))}
        return maximise(score, space, key, num_candidates=64, num_restarts=4)

    return jax.jit(nearest)


@given(target=hnp.arrays(np.int32, 4, elements=st.integers(-20, 20)).map(lambda x: x / 17))
@few
@in_float64
def test_quadratic_on_the_simplex_is_the_projection(target):
    exact = project(target)
    best = compiled_projection()(jnp.asarray(target), KEY).action["w"]
    np.testing.assert_allclose(best, exact, atol=1e-4)
    # a weight that is pushed to zero by a slope is exactly zero
    slope = target - exact
    pushed = (exact == 0) & (slope < slope.max() - 1e-2)
    assert (best[pushed] == 0).all()
    assert abs(best.sum() - 1) < 1e-12


@pytest.mark.parametrize("size", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_linear_on_the_simplex_is_a_vertex(size):
    prices = jnp.cos(jnp.arange(size) * 1.7)
    space = {"w": dist.Dirichlet(jnp.ones(size))}
    best = run(lambda a: a["w"] @ prices, space).action["w"]
    assert best.tolist() == np.eye(size)[int(prices.argmax())].tolist()


@pytest.mark.slow
def test_a_face_of_many_simplices():
    # products of simplices have no vertices among the candidates: only the climb gets there
    target = jnp.array([[0.7, 0.6, -0.5], [1.4, -0.2, -0.3], [0.2, 0.5, 0.3]])
    space = {"w": dist.Dirichlet(jnp.ones(3)).expand([3]).to_event(1)}
    score = lambda a: -jnp.sum((a["w"] - target) ** 2)  # noqa: E731
    best = run(score, space).action["w"]
    np.testing.assert_allclose(best, [project(np.asarray(t)) for t in target], atol=2e-3)
    assert (best == 0).tolist() == [[False, False, True], [False, True, True], [False] * 3]


def test_a_side_and_a_corner_of_boxes():
    space = {"side": dist.Uniform(-1, 2), "far": box(-2.0, 3.0, 6)}

    def score(a):
        side = -((a["side"] - 5.0) ** 2)
        return side - jnp.sum((a["far"] - jnp.array([-4.0, 9.0, 0.5, 3.0, -3.0, 1.0])) ** 2)

    best = run(score, space).action
    assert best["side"] == 2.0
    assert best["far"][jnp.array([0, 1, 3, 4])].tolist() == [-2.0, 3.0, 3.0, -2.0]
    np.testing.assert_allclose(best["far"][jnp.array([2, 5])], [0.5, 1.0], atol=1e-2)


def test_an_optimum_close_to_a_side_stays_inside():
    best = run(lambda a: -((a["x"] - 2e-3) ** 2), {"x": dist.Uniform(0, 1)})
    np.testing.assert_allclose(best.action["x"], 2e-3, rtol=1e-2)


def test_supports():
    # by support: a law, where the score is highest, and the optimum if that is outside
    cases = [
        (dist.Normal(0, 1), -7.0, None),
        (dist.Normal(0, 1).expand([2]).to_event(1).mask(False), 4.0, None),
        (dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)), 1.5, None),
        (dist.HalfNormal(1.0), 30.0, None),
        (dist.Gamma(2.0, 1.0).expand([2]).to_event(1), 0.125, None),
        (dist.TruncatedNormal(0, 1, low=1.0), 4.0, None),
        (dist.TruncatedNormal(0, 1, low=1.0), -4.0, 1.0),
        (dist.TruncatedNormal(0, 1, high=-1.0), 4.0, -1.0),
        (dist.TruncatedNormal(0, 1, low=-2.0, high=1.0), 4.0, 1.0),
        (dist.Beta(2.0, 5.0), 0.875, None),
        (dist.Beta(2.0, 5.0), -1.0, 0.0),
        (dist.LogUniform(1.0, 100.0), 50.0, None),
    ]
    space = {f"{i:02}": law for i, (law, _, _) in enumerate(cases)}
    targets = {name: target for name, (_, target, _) in zip(space, cases, strict=True)}
    scales = {name: max(1.0, abs(target)) for name, target in targets.items()}
    score = lambda a: -sum(jnp.sum(((a[n] - targets[n]) / scales[n]) ** 2) for n in a)  # noqa: E731
    best = run(score, space, num_candidates=64, num_restarts=2)
    for (name, law), (_, target, optimum) in zip(space.items(), cases, strict=True):
        found = best.action[name]
        assert found.shape == law.event_shape
        if optimum is None:
            np.testing.assert_allclose(found, target, rtol=2e-2, atol=3e-2, err_msg=name)
        else:
            assert found == optimum, name


@pytest.mark.slow
def test_an_open_bound_is_approached_only():
    space = {"x": dist.HalfNormal(1.0)}
    best = run(lambda a: -a["x"], space, num_candidates=16, num_restarts=2)
    assert 0 < best.action["x"] < 1e-2


def test_the_wrong_discrete_mode_has_the_wider_basin():
    # Every candidate with shape 0 beats every candidate with shapes 1 to 3 ...
    def score(a):
        squared = jnp.sum((a["x"] - 0.3) ** 2)
        return jnp.where(
            a["shape"] == 0, 1.5 - 0.1 * squared, 2.0 + 0.1 * a["shape"] - 200 * squared
        )

    space = {"shape": dist.Categorical(jnp.ones(4) / 4), "x": box(0.0, 1.0, 6)}
    best = run(score, space, num_candidates=64, num_restarts=8)
    # ... but the best of all is a climb from a candidate with shape 3
    assert best.action["shape"] == 3
    np.testing.assert_allclose(best.action["x"], 0.3, atol=1e-2)
    assert abs(best.value - 2.3) < 1e-3


def test_several_sites_of_every_kind():
    space = {
        "weights": dist.Dirichlet(jnp.ones(3)),
        "slate": dp.Subsets(4, 2),
        "level": dist.DiscreteUniform(3, 5),
        "dose": dist.Uniform(0, 1),
        "shift": dist.Normal(0, 1),
    }

    def score(a):
        chosen = jnp.sum(jnp.array([0.0, 3.0, 1.0, 2.0])[a["slate"]])
        smooth = (a["dose"] - 0.1 * a["level"]) ** 2 + (a["shift"] - a["dose"]) ** 2
        return chosen + a["weights"][1] + a["level"] - smooth

    best = run(score, space, num_candidates=64)
    assert best.action["slate"].tolist() == [1, 3]
    assert best.action["level"] == 5
    assert best.action["weights"].tolist() == [0.0, 1.0, 0.0]
    np.testing.assert_allclose([best.action["dose"], best.action["shift"]], 0.5, atol=2e-2)


@pytest.mark.parametrize(
    ("law", "values"),
    [
        (dist.Categorical(jnp.ones(3) / 3), [0, 1, 2]),
        (dist.DiscreteUniform(-1, 1), [-1, 0, 1]),
        (dp.Subsets(3, 2), [[0, 1], [0, 2], [1, 2]]),
        (dist.Bernoulli(0.5).expand([2]).to_event(1), [[0, 0], [0, 1], [1, 0], [1, 1]]),
        (
            dist.Categorical(jnp.ones((2, 2)) / 2).to_event(1).mask(False),
            [[0, 0], [0, 1], [1, 0], [1, 1]],
        ),
        (dist.Delta(jnp.array([0.5, 2.0]), event_dim=1), [[0.5, 2.0]]),
    ],
)
def test_finite_spaces_are_enumerated(law, values):
    assert (hits({"x": law}, {"x": jnp.array(values)}) == 1).all()


@pytest.mark.parametrize(
    ("space", "points"),
    [
        (
            {"w": dist.Dirichlet(jnp.ones(3))},
            [[1, 0, 0], [0, 0, 1], [0.5, 0.5, 0], [0, 0.5, 0.5], [1 / 3] * 3],
        ),
        ({"w": box(-2.0, 4.0, 2)}, [[1, 1], [-2, -2], [-2, 4], [4, -2], [4, 4]]),
        ({"w": box(-2.0, 4.0, 9)}, [[1] * 9]),
        ({"w": dist.Uniform(-2, 4)}, [-2, 1, 4]),
    ],
)
def test_landmarks_are_among_the_candidates(space, points):
    few_climbs = {"num_candidates": 32, "num_restarts": 1, "max_steps": 1}
    assert (hits(space, {"w": jnp.array(points, jnp.float32)}, **few_climbs) == 1).all()


@pytest.mark.slow
def test_landmarks_of_several_sites_meet():
    space = {"a": dist.Uniform(0, 1), "b": dist.Uniform(0, 1), "w": dist.Dirichlet(jnp.ones(2))}
    a, b, w = np.float32(list(itertools.product([0, 0.5, 1], repeat=3))).T
    points = {"a": a, "b": b, "w": np.stack([w, 1 - w], axis=1)}
    assert (hits(space, points, num_restarts=1, max_steps=1) == 1).all()


# ------------------------------------------------------------------------ maximise: properties


@functools.cache
def compiled_bumps():
    """The best of a mixed space with bumps [kinds, 2], and the scores of starts."""

    def best(heights, centres, starts, key):
        def score(a):
            squared = jnp.sum((a["x"] - centres) ** 2, axis=1)
            smooth = heights[a["kind"]] @ jnp.exp(-30.0 * squared)
            return smooth - (a["w"][0] - 0.3) ** 2

        space = {
            "kind": dist.Categorical(jnp.ones(2) / 2),
            "x": box(0.0, 1.0, 2),
            "w": dist.Dirichlet(jnp.ones(2)),
        }
        options = {"num_candidates": 32, "num_restarts": 3, "max_steps": 5}
        found = maximise(score, space, key, starts=starts, **options)
        return found, jax.vmap(score)(starts), score(found.action)

    return jax.jit(best)


numbers = functools.partial(hnp.arrays, np.float32)


@pytest.mark.slow
@given(
    heights=numbers((2, 3), elements=st.floats(-2, 2, width=32)),
    centres=numbers((3, 2), elements=st.floats(0, 1, width=32)),
    points=numbers((4, 2), elements=st.floats(0, 1, width=32)),
    key=strategies.keys(),
)
@few
def test_never_worse_than_starts_and_a_member_of_the_space(heights, centres, points, key):
    w = np.stack([points[:, 0], 1 - points[:, 0]], axis=1)
    starts = {"kind": np.array([0, 1, 0, 1]), "x": points, "w": w}
    found, scores, again = compiled_bumps()(heights, centres, starts, key)
    assert found.value >= scores.max() - 1e-6
    np.testing.assert_allclose(found.value, again, atol=1e-6)
    assert found.action["kind"] in (0, 1)
    assert ((found.action["x"] >= 0) & (found.action["x"] <= 1)).all()
    assert constraints.simplex(found.action["w"])
    assert found.action["w"].min() >= 0


def test_never_worse_than_candidates(monkeypatch):
    seen = []
    evaluate = search._evaluate

    def spy(score, rows):
        seen.append(evaluate(score, rows))
        return seen[-1]

    monkeypatch.setattr(search, "_evaluate", spy)
    # steep and rippled: climbs stop early, and may end anywhere
    ripples = lambda a: jnp.sum(jnp.sin(400 * a["x"])) - jnp.abs(a["x"][0] - 0.7)  # noqa: E731
    options = {"num_candidates": 50, "num_restarts": 2, "max_steps": 2}

    def both(key):
        best = maximise(ripples, {"x": box(0.0, 1.0, 2)}, key, **options)
        return best.value, seen[0], seen[1]

    best, candidates, climbed = jax.jit(jax.vmap(both))(jax.random.split(KEY, 20))
    assert candidates.shape == (20, 50)
    np.testing.assert_array_equal(best, np.maximum(candidates.max(1), climbed.max(1)))
    assert (candidates.max(1) > climbed.max(1)).any()


@pytest.mark.slow
def test_rows_of_mixed_spaces_are_bounded(monkeypatch):
    seen = []
    evaluate = search._evaluate
    monkeypatch.setattr(
        search, "_evaluate", lambda f, rows: (seen.append(len(rows["x"])), evaluate(f, rows))[1]
    )
    for kinds in (100, 5000):
        space = {"k": dist.DiscreteUniform(0, kinds - 1), "x": dist.Uniform(0, 1)}
        score = lambda a: -((a["x"] - 0.2) ** 2) - jnp.abs(a["k"] - 2.0)  # noqa: E731
        best = run(score, space, num_candidates=64, num_restarts=2)
        assert best.action["k"] == 2
        np.testing.assert_allclose(best.action["x"], 0.2, atol=1e-2)
    assert seen[::2] == [100 * 10, 5000]


def test_under_jit_and_vmap_equal_to_eager():
    space = {"x": dist.Uniform(0, 1), "k": dist.Bernoulli(0.5)}
    score = lambda a: jnp.sin(9 * a["x"]) + 0.1 * a["k"] * a["x"]  # noqa: E731

    best = lambda key: maximise(score, space, key, num_candidates=32, num_restarts=3)  # noqa: E731
    keys = jax.random.split(KEY, 3)
    eager = best(keys[1])
    assert list(eager.action) == list(space)
    jitted = jax.jit(best)(keys[1])
    mapped = jax.tree.map(lambda x: x[1], jax.jit(jax.vmap(best))(keys))
    for other in (jitted, mapped):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), eager, other)


def test_traced_bounds_and_raw_keys():
    def best(width, key):
        space = {"x": dist.Uniform(0.0, width).expand([2]).to_event(1)}
        return maximise(lambda a: jnp.sum(a["x"]), space, key, num_candidates=16).action["x"]

    assert jax.jit(best)(3.0, jax.random.PRNGKey(0)).tolist() == [3.0, 3.0]


@pytest.mark.slow
def test_order_of_sites_does_not_matter():
    space = {"b": dist.Uniform(0, 1), "k": dist.Bernoulli(0.5), "a": dist.Normal(0, 1)}
    score = lambda x: jnp.sin(20 * x["b"]) * jnp.cos(3 * x["a"]) + 0.1 * x["k"]  # noqa: E731
    results = []
    for names in ("bka", "akb"):
        some = {n: space[n] for n in names}
        results.append(run(score, some, num_candidates=16, num_restarts=2))
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize("finite", [True, False])
def test_traces_of_the_score(finite):
    traced = []

    def score(a):
        traced.append(a)
        return 1.0 * a["x"]

    space = {"x": dist.DiscreteUniform(0, 3) if finite else dist.Uniform(0, 3)}
    assert jax.jit(lambda key: maximise(score, space, key).value)(KEY) == 3
    assert len(traced) == (1 if finite else 3)


def test_x64_and_float32_laws():
    with jax.enable_x64(True):
        best = run(lambda a: -((a["x"] - 0.3) ** 2) - 1.0, {"x": dist.Uniform(0.0, 1.0)})
        assert best.action["x"].dtype == best.value.dtype == jnp.float64
        np.testing.assert_allclose(best.action["x"], 0.3, atol=1e-5)


# ----------------------------------------------------------------- maximise: NaN, infinities


def test_nan_is_never_chosen():
    space = {"x": dist.Uniform(-1, 1)}
    best = run(lambda a: jnp.sqrt(a["x"]) - a["x"] ** 2, space)
    assert abs(best.action["x"] - 0.25 ** (2 / 3)) < 1e-2
    # the climb ends next to the bound, where snapping to it gives NaN
    score = lambda a: jnp.where(a["x"] > 0.99, jnp.nan, -((a["x"] - 0.985) ** 2))  # noqa: E731
    assert run(score, space, num_candidates=8).value > -1e-6
    # minus infinity is a score, and better than none
    finite = {"x": dist.DiscreteUniform(0, 9)}
    for seed in range(5):
        score = lambda a: jnp.where(a["x"] == 4, -jnp.inf, jnp.nan)  # noqa: E731
        best = maximise(score, finite, jax.random.key(seed))
        assert best.action["x"] == 4
        assert np.isneginf(best.value)


@pytest.mark.parametrize("law", [dist.Uniform(0, 1), dist.DiscreteUniform(0, 2)])
def test_all_nan(law):
    best = run(lambda a: a["x"] * jnp.nan, {"x": law}, num_candidates=8)
    assert np.isnan(best.value)
    assert law.support(best.action["x"])


def test_all_minus_infinity():
    best = run(lambda a: a["x"] * 0 - jnp.inf, {"x": dist.Uniform(0, 1)})
    assert np.isneginf(best.value)


def test_minus_infinity_is_better_than_a_climb_to_nan():
    # the only score is at the start, and coordinates do not return to it exactly
    start = jnp.array([0.37])
    score = lambda a: jnp.where(a["x"] == start[0], -jnp.inf, jnp.nan)  # noqa: E731
    best = run(score, {"x": dist.Beta(2.0, 3.0)}, num_candidates=2, starts={"x": start})
    assert np.isneginf(best.value)
    assert best.action["x"] == start[0]


def test_undefined_gradients_leave_the_best_candidate():
    score = lambda a: jnp.floor(9 * a["x"]) + 0 * jnp.sqrt(a["x"] * 0)  # noqa: E731
    best = run(score, {"x": dist.Uniform(0, 0.99)})
    assert best.value == 8


# --------------------------------------------------------------------------- maximise: starts


def test_a_start_finds_a_needle():
    def score(a):
        return jnp.exp(-1e8 * jnp.sum((a["x"] - 0.123456) ** 2)) - 0.1 * a["k"]

    space = {"x": box(0.0, 1.0, 3), "k": dist.DiscreteUniform(0, 1)}
    best = jax.jit(lambda s: maximise(score, space, KEY, num_candidates=64, starts=s))
    starts = {"x": jnp.full((2, 3), 0.5), "k": jnp.array([0, 1])}
    assert best(starts).value < 1e-6
    assert best({**starts, "x": starts["x"].at[1].set(0.1234)}).value > 0.5


def test_climbs_leave_the_boundary():
    # only two starts have a score, and their gradients vanish in the coordinates searched
    space = {"x": box(0.0, 1.0, 2), "w": dist.Dirichlet(jnp.ones(3))}
    x, w = jnp.array([0.3, 0.4]), jnp.array([0.2, 0.3, 0.5])

    def score(a):
        centre = jnp.all(jnp.abs(a["x"] - 0.5) < 1e-3)
        return jnp.where(centre, jnp.nan, -jnp.sum((a["x"] - x) ** 2) - jnp.sum((a["w"] - w) ** 2))

    starts = {"x": jnp.array([[1.0, 1.0], [0.0, 1.0]]), "w": jnp.eye(3)[:2]}
    best = run(score, space, num_candidates=1, num_restarts=2, starts=starts).action
    np.testing.assert_allclose(best["x"], x, atol=1e-2)
    np.testing.assert_allclose(best["w"], w, atol=1e-2)


def test_starts_on_the_bound_of_a_half_line():
    space = {"x": dist.TruncatedNormal(0, 1, low=1.0)}
    score = lambda a: jnp.where(a["x"] == 1.0, 9.0, 10.0 - 1e4 * (a["x"] - 1.5) ** 2)  # noqa: E731
    starts = {"x": jnp.array([1.0])}
    best = run(score, space, num_candidates=1, num_restarts=1, starts=starts)
    assert best.value > 9.99


@pytest.mark.slow
def test_a_site_that_does_not_matter_gets_a_feasible_value():
    space = {"w": dist.Dirichlet(jnp.ones(40)), "x": dist.Uniform(0, 1)}
    best = run(lambda a: a["x"], space, num_candidates=8, num_restarts=1)
    assert best.value == 1
    np.testing.assert_allclose(best.action["w"].sum(), 1.0, rtol=1e-5)


def test_infeasible_starts_are_ignored_under_jit():
    space = {"x": dist.Uniform(0, 1), "k": dist.DiscreteUniform(0, 1)}
    solve = jax.jit(lambda s: maximise(lambda a: a["x"] + a["k"], space, KEY, starts=s))
    best = solve({"x": jnp.array([7.0, 0.5]), "k": jnp.array([1, 5])})
    assert best.value == 2
    assert solve({"x": jnp.array([0.5]), "k": jnp.array([5])}).value == 2


# ------------------------------------------------------------------- maximise: choice of rows


def restarts(values, combos=1, count=8, seed=0, starts=0):
    values = jnp.asarray(values, float)
    key, other = jax.random.split(jax.random.key(seed))
    order = search._best_first(other, values)
    grid = combos, (len(values) - starts) // combos
    return np.asarray(search._restarts(key, values, order, grid, count))


def test_restarts_are_distinct_and_spread_by_rank():
    values = np.random.default_rng(0).permutation(512) / 7.0
    picked = np.stack([restarts(values, seed=s) for s in range(30)])
    ranks = 511 - np.round(values[picked] * 7)
    assert all(len(set(row)) == 8 for row in picked)
    assert (ranks.min(1) == 0).all()  # the best row always
    # a lottery: rows of every quality, the better ones more often
    assert 0.1 < np.mean(ranks < 8) < 0.7
    assert 0.1 < np.mean(ranks > 100) < 0.6
    # ranks are all that counts
    np.testing.assert_array_equal(restarts(values), restarts(np.exp(values)))


def test_restarts_lead_from_the_best_combinations():
    rng = np.random.default_rng(1)
    values = rng.uniform(size=(10, 50)) + 10.0 * np.arange(10)[::-1, None]
    for seed in range(5):
        picked = restarts(values.ravel(), combos=10, seed=seed)
        assert set(values.argmax(1)[:4] + 50 * np.arange(4)) <= set(picked)


def test_restarts_include_the_best_start():
    values = np.append(np.linspace(0, 1, 100), [2.0, 3.0, 1.5])
    assert restarts(values, count=1, starts=3).tolist() == [101]
    assert {99, 101} <= set(restarts(values, count=3, starts=3))
    # a poor start is drawn like any other row
    poor = [restarts(values[:102] * [*[1] * 100, 0, 0], starts=2, seed=s) for s in range(5)]
    assert all({99} <= set(row) for row in poor)


def test_restarts_avoid_undefined_rows():
    values = np.full(100, np.nan)
    values[50:60] = -np.inf
    values[[3, 70, 71, 99]] = [1.0, -2.0, 0.5, 0.0]
    for seed in range(10):
        assert set(restarts(values, count=4, seed=seed)) == {3, 70, 71, 99}
    assert len(restarts(values[:5], count=8)) == 5


def test_uniform_sites_have_even_candidates():
    law = dist.Uniform(-1.0, 3.0).expand([2]).to_event(1).mask(False)
    smooth = {"x": search._smooth("x", law)}
    some, others = (search._shared(smooth, {"x": law}, jax.random.key(s), 256, 1) for s in (0, 1))
    assert some["x"].shape == (256, 2)
    gaps = np.diff(np.sort(some["x"], axis=0), axis=0)
    # every 64th of the range is hit; independent draws miss some of them
    assert gaps.max() < 4.0 / 64
    assert some["x"].min() == -1
    assert some["x"].max() == 3
    # after five landmarks, another key gives other points
    assert (some["x"][:5] == others["x"][:5]).all()
    assert (some["x"][5:] != others["x"][5:]).all()


def test_uniform_candidates_are_even():
    for size in (1, 2, 6):
        points = np.asarray(search._halton(KEY, 256, size))
        assert ((points >= 0) & (points < 1)).all()
        gaps = np.diff(np.sort(points, axis=0), axis=0, prepend=0, append=1)
        # 256 independent draws leave gaps above 0.02 except with probability 1e-2
        assert gaps.max() < 0.015
    points = np.asarray(search._halton(KEY, 256, 20))
    for i, j in itertools.combinations(range(20), 2):
        # of 100 cells; independent draws reach about 92, plain Halton points 29
        assert len(np.unique((points[:, [i, j]] * 10).astype(int), axis=0)) > 80


# ----------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("space", "error", "message"),
    [
        ({"n": dist.Poisson(3.0)}, ValueError, "action site 'n': Poisson has support"),
        ({"n": dist.Poisson(3.0)}, ValueError, "use dist.DiscreteUniform(low, high)"),
        ({"c": dist.LKJ(3, 1.0)}, ValueError, "action site 'c': LKJ has support"),
        ({"m": dist.Multinomial(3, jnp.ones(2) / 2)}, ValueError, "action site 'm'"),
        ({"x": dist.Uniform(0, 1).expand([3])}, ValueError, "Make it a vector: .to_event(1)"),
        (
            {"x": dist.ImproperUniform(constraints.real, (), ())},
            ValueError,
            "action site 'x': ImproperUniform cannot be drawn from",
        ),
        ({"x": 3}, TypeError, "action site 'x': expected a NumPyro Distribution, got int"),
        (dist.Uniform(0, 1), TypeError, "expected a mapping from action sites to Distributions"),
        ({}, TypeError, "expected a mapping from action sites to Distributions"),
        ({"x": dist.Bernoulli(0.5).expand([20]).to_event(1)}, ValueError, "1048576 combinations"),
        (
            {n: dist.DiscreteUniform(1, 1000) for n in "ab"},
            ValueError,
            "the finite action sites ['a', 'b'] have 1000000 combinations",
        ),
    ],
)
def test_errors_of_spaces(space, error, message):
    with pytest.raises(error, match=re.escape(message)):
        maximise(lambda a: 0.0, space, KEY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_candidates": 0}, "num_candidates: expected at least 1, got 0"),
        ({"num_restarts": 0}, "num_restarts: expected at least 1, got 0"),
        ({"starts": {"y": jnp.zeros(2)}}, "starts names ['y'], the action sites are ['k', 'x']"),
        ({"starts": {"x": 0.5, "k": 0}}, "One start is x[None]"),
        ({"starts": {"x": jnp.zeros((2, 1)), "k": jnp.zeros(2)}}, "starts of action site 'x'"),
        ({"starts": {"x": jnp.zeros(2), "k": jnp.zeros(3)}}, "as many starts for every site"),
        ({"starts": {"x": jnp.array([2.0]), "k": jnp.zeros(1)}}, "'x': 2.0 is not in the space"),
        ({"starts": {"x": jnp.zeros(1), "k": jnp.array([2])}}, "'k': 2 is not in the space"),
    ],
)
def test_errors_of_options(options, message):
    space = {"x": dist.Uniform(0, 1), "k": dist.Bernoulli(0.5)}
    with pytest.raises(ValueError, match=re.escape(message)):
        maximise(lambda a: a["x"], space, KEY, **options)


def test_error_of_a_score_that_is_no_scalar():
    with pytest.raises(ValueError, match="score: expected a scalar, got shape"):
        run(lambda a: a["x"], {"x": box(0.0, 1.0, 2)})


# ------------------------------------------------------------------------------- statistics


def test_ties_are_broken_uniformly():
    keys = jax.random.split(KEY, 4000)
    space = {"k": dist.DiscreteUniform(0, 3)}
    pick = lambda key: maximise(lambda a: 1.0 * (a["k"] != 2), space, key).action["k"]  # noqa: E731
    counts = np.bincount(jax.jit(jax.vmap(pick))(keys), minlength=4)
    assert counts[2] == 0
    # three arms, two tails: false alarm below 3e-9
    low, high = stats.binom.interval(1 - 1e-9, 4000, 1 / 3)
    assert (low <= counts[[0, 1, 3]]).all()
    assert (counts[[0, 1, 3]] <= high).all()
