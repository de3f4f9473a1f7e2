"""Multi-fidelity test functions: published formulas, exact optima, transformations, prices."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import qmc

from decisionppl.models import test_functions as functions

NEGATED = ("currin", "borehole", "park1", "park2")
CASES = [
    *[pytest.param(make, id=name) for name, make in functions.FUNCTIONS.items()],
    *[
        pytest.param(lambda name=name: functions.FUNCTIONS[name](negate=True), id=f"{name}-negated")
        for name in NEGATED
    ],
    pytest.param(lambda: functions.augmented_rosenbrock(4), id="augmented_rosenbrock-4"),
]


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


# --- optima ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", CASES)
def test_nothing_is_lower_than_the_stored_optimum(make, double):
    f = make()
    low, high = f.bounds
    span = high - low
    value_and_grad = jax.jit(jax.value_and_grad(lambda u: f(low + span * u)))
    options = {"ftol": 1e-15, "gtol": 1e-10}

    def descend(start):
        fun = lambda u: [np.asarray(a) for a in value_and_grad(u)]  # noqa: E731
        box = [(0, 1)] * f.dim
        return minimize(fun, start, jac=True, method="L-BFGS-B", bounds=box, options=options).fun

    lowest = min(descend(u) for u in qmc.Sobol(f.dim, seed=0).random(32))
    assert lowest == pytest.approx(f.optimum, abs=1e-5)
    assert lowest >= f.optimum - 1e-9


@pytest.mark.parametrize("make", CASES)
def test_optimizers_lie_in_the_box_and_attain_the_optimum(make, double):
    f = make()
    low, high = f.bounds
    assert f.optimizers.shape[1] == f.dim
    assert np.all((f.optimizers >= low) & (f.optimizers <= high))
    np.testing.assert_allclose(jax.jit(f)(f.optimizers), f.optimum, atol=1e-9)
    assert f.minimise is True


def test_the_minimum_of_branin_is_attained_three_times(double):
    f = functions.augmented_branin()
    assert len(np.unique(f.optimizers.round(3), axis=0)) == 3


# --- formulas, written again in plain Python --------------------------------------------------


def branin(x, s):
    square = x[1] - (5.1 / (4 * math.pi**2) - 0.1 * (1 - s)) * x[0] ** 2 + 5 / math.pi * x[0] - 6
    return square**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x[0]) + 10


def rosenbrock(x, s):
    return sum(
        100 * (b - a**2 + 0.1 * (1 - s[0])) ** 2 + (a - 1 + 0.1 * (1 - s[1]) ** 2) ** 2
        for a, b in itertools.pairwise(x)
    )


def forrester(x, s):
    f = (6 * x[0] - 2) ** 2 * math.sin(12 * x[0] - 4)
    return f if s == 1 else f / 2 + 10 * x[0] - 10


def currin(x, s):
    def f(a, b):
        ratio = np.polyval([2300, 1900, 2092, 60], a) / np.polyval([100, 500, 4, 20], a)
        return ratio if b == 0 else -math.expm1(-1 / (2 * b)) * ratio

    if s == 1:
        return f(*x)
    ends = [(x[0] + i, b) for i in (0.05, -0.05) for b in (x[1] + 0.05, max(0, x[1] - 0.05))]
    return sum(f(*end) for end in ends) / 4


def borehole(x, s):
    rw, r, tu, hu, tl, hl, length, kw = x
    front, one = (2 * math.pi, 1) if s == 1 else (5, 1.5)
    log = math.log(r) - math.log(rw)
    return front * tu * (hu - hl) / (log * (one + 2 * length * tu / (log * rw**2 * kw) + tu / tl))


def park1(x, s):
    a, b, c, d = x
    f = a / 2 * (math.sqrt(1 + (b + c**2) * d / a**2) - 1)
    f += (a + 3 * d) * math.exp(1 + math.sin(c))
    return f if s == 1 else (1 + math.sin(a) / 10) * f - 2 * a + b**2 + c**2 + 0.5


def park2(x, s):
    f = 2 / 3 * math.exp(x[0] + x[1]) - x[3] * math.sin(x[2]) + x[2]
    return f if s == 1 else 1.2 * f - 1


def hartmann(x, alpha, rates, centres):
    return -sum(
        a
        * math.exp(-sum(r * (xi - c / 1e4) ** 2 for r, c, xi in zip(rate, centre, x, strict=True)))
        for a, rate, centre in zip(alpha, rates, centres, strict=True)
    )


def hartmann3(x, s):
    alpha = {1.0: (1, 1.2, 3, 3.2), 0.5: (1.01, 1.19, 2.9, 3.3), 0.0: (1.02, 1.18, 2.8, 3.4)}[s]
    rates = [(3, 10, 30), (0.1, 10, 35), (3, 10, 30), (0.1, 10, 35)]
    centres = [(3689, 1170, 2673), (4699, 4387, 7470), (1091, 8732, 5547), (381, 5743, 8828)]
    return hartmann(x, alpha, rates, centres)


def hartmann6(x, s):
    rates = [
        (10, 3, 17, 3.5, 1.7, 8),
        (0.05, 10, 17, 0.1, 8, 14),
        (3, 3.5, 1.7, 10, 17, 8),
        (17, 8, 0.05, 10, 0.1, 14),
    ]
    centres = [
        (1312, 1696, 5569, 124, 8283, 5886),
        (2329, 4135, 8307, 3736, 1004, 9991),
        (2348, 1451, 3522, 2883, 3047, 6650),
        (4047, 8828, 8732, 5743, 1091, 381),
    ]
    return hartmann(x, (1 - 0.1 * (1 - s), 1.2, 3, 3.2), rates, centres)


FORMULAS = {
    "augmented_branin": (branin, (0.0, 0.3, 1.0)),
    "augmented_hartmann": (hartmann6, (0.0, 0.3, 1.0)),
    "augmented_rosenbrock": (rosenbrock, ((0.0, 0.4), (0.7, 0.2), (1.0, 1.0))),
    "borehole": (borehole, (0.0, 1.0)),
    "currin": (currin, (0.0, 1.0)),
    "forrester": (forrester, (0.0, 1.0)),
    "hartmann3": (hartmann3, (0.0, 0.5, 1.0)),
    "park1": (park1, (0.0, 1.0)),
    "park2": (park2, (0.0, 1.0)),
}


@pytest.mark.parametrize("name", functions.FUNCTIONS)
def test_every_fidelity_is_the_published_formula(name, double):
    f, (formula, fidelities) = functions.FUNCTIONS[name](), FORMULAS[name]
    points = np.random.default_rng(0).uniform(*f.bounds, (20, f.dim))
    compiled = jax.jit(f)
    for s in fidelities:
        expected = [float(formula(x, s)) for x in points]
        np.testing.assert_allclose(
            compiled(points, jnp.asarray(s)), expected, rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("name", functions.FUNCTIONS)
def test_the_target_is_the_default_and_differs_from_the_cheapest(name):
    f = functions.FUNCTIONS[name]()
    points = np.random.default_rng(2).uniform(*f.bounds, (8, f.dim))
    default, target, cheapest = jax.jit(lambda x: (f(x), f(x, 1.0), f(x, 0.0)))(points)
    np.testing.assert_array_equal(default, target)
    assert not np.allclose(target, cheapest)


@pytest.mark.parametrize("name", NEGATED)
def test_negated_functions_change_sign_at_every_fidelity(name):
    plain, negated = functions.FUNCTIONS[name](), functions.FUNCTIONS[name](negate=True)
    points = np.random.default_rng(3).uniform(*plain.bounds, (8, plain.dim))
    both = jax.jit(lambda x, s: (plain(x, s), negated(x, s)))
    for s in (0.0, 0.4, 1.0):
        one, other = both(points, s)
        np.testing.assert_allclose(other, -one, rtol=1e-6)
    assert negated.optimum < -plain.optimum


def test_published_optima_of_the_hartmann_functions():
    assert functions.augmented_hartmann().optimum == pytest.approx(-3.32237, abs=1e-5)
    assert functions.hartmann3().optimum == pytest.approx(-3.86278, abs=1e-5)


# --- transformations --------------------------------------------------------------------------


@pytest.mark.parametrize("name", functions.FUNCTIONS)
def test_compiled_mapped_and_differentiated(name):
    f = functions.FUNCTIONS[name]()
    points = f.bounds[0] + np.random.default_rng(1).random((5, f.dim)) * np.diff(f.bounds, axis=0)
    s = np.full((5, f.fidelity_dim) if f.fidelity_dim > 1 else 5, 0.5)
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(f)))(points, s)
    np.testing.assert_allclose(values, jax.jit(f)(points, s), rtol=1e-4)
    assert slopes.shape == (5, f.dim)
    assert np.all(np.isfinite(slopes))


@pytest.mark.parametrize("name", ["currin", "park1"])
def test_limits_at_the_edge_of_the_box_are_finite(name):
    f = functions.FUNCTIONS[name]()
    compiled = jax.jit(jax.value_and_grad(f))
    for s in (0.0, 1.0):
        value, slope = compiled(np.zeros(f.dim), s)
        assert np.isfinite(value)
        assert np.all(np.isfinite(slope))


def test_the_limit_of_currin_is_continuous(double):
    f = functions.currin()
    at_zero, near = jax.jit(f)(np.array([[0.3, 0.0], [0.3, 1e-3]]))
    np.testing.assert_allclose(at_zero, near, rtol=1e-12)


# --- space, fidelities, prices, errors ---------------------------------------------------------


@pytest.mark.parametrize("name", functions.FUNCTIONS)
def test_the_space_is_the_box(name):
    f = functions.FUNCTIONS[name]()
    assert f.space.event_shape == (f.dim,)
    np.testing.assert_allclose(f.space.base_dist.low, f.bounds[0], rtol=1e-6)
    np.testing.assert_allclose(f.space.base_dist.high, f.bounds[1], rtol=1e-6)
    assert f.fidelities is None or f.fidelities[-1] == 1.0


def test_prices():
    assert float(functions.augmented_hartmann().cost(0.5)) == 5.5
    assert float(functions.augmented_branin(fixed_cost=1.0).cost(0.25)) == 1.25
    rosenbrock = functions.augmented_rosenbrock()
    assert float(rosenbrock.cost(jnp.array([0.5, 1.0]))) == 6.5
    assert float(rosenbrock.cost(0.5)) == 6.0
    three = functions.hartmann3()
    np.testing.assert_allclose([three.cost(s) for s in three.fidelities], [1, 10, 100], rtol=1e-5)
    np.testing.assert_allclose(functions.park1(ratio=4.0).cost(jnp.array([0, 1])), [1, 4])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: functions.augmented_hartmann()(jnp.ones(3)), "expected x of shape [..., 6]"),
        (lambda: functions.augmented_rosenbrock()(jnp.ones(2), jnp.ones(3)), "shape [..., 2]"),
        (lambda: functions.augmented_rosenbrock(1), "dim: expected an int of at least 2, got 1"),
        (lambda: functions.augmented_branin(-1), "fixed_cost: expected"),
        (lambda: functions.park2(ratio=0), "ratio: expected a positive number, got 0"),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
