"""Kernels and means against scikit-learn, scalar formulas, and the laws they have to obey.

Exact comparisons are in float64. Statistical are the tests of random features: they are compared
with the Gram matrix at seven standard errors over 1000 keys, about 3e-12 per entry of fewer than
1000. With two more comparisons, at six and seven standard errors, the probability of a false
alarm, had the keys been random, is below 1e-8 for the file.
"""

import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads
from sklearn.gaussian_process import kernels as sk

from decisionppl import kernels, means


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


# Every kernel: how to make one with random hyperparameters, where it lives, what it should be.


class Case(NamedTuple):
    build: Callable  # rng -> kernel
    where: tuple[str, ...]  # kind of every argument of f
    formula: Callable  # (kernel, x, z) -> number, for one point each: a tuple of vectors
    has_features: bool = True


def _radius(k, x, z):
    gaps = (np.concatenate(x) - np.concatenate(z)) / np.asarray(k.lengthscale)
    return math.sqrt(sum(g * g for g in gaps))


def _matern12(k, x, z):
    return math.exp(-_radius(k, x, z))


def _matern32(k, x, z):
    r = math.sqrt(3) * _radius(k, x, z)
    return (1 + r) * math.exp(-r)


def _matern52(k, x, z):
    r = math.sqrt(5) * _radius(k, x, z)
    return (1 + r + r * r / 3) * math.exp(-r)


def _rbf(k, x, z):
    return math.exp(-(_radius(k, x, z) ** 2) / 2)


def _hellinger(k, x, z):
    return _matern52(k.kernel, (np.sqrt(x[0]),), (np.sqrt(z[0]),))


def _total_variation(k, x, z):
    distance = sum(abs(a - b) for a, b in zip(x[0], z[0], strict=True)) / 2
    return math.exp(-distance / (2 * float(k.scale) ** 2))


def _jensen_shannon(k, x, z):
    def relative_entropy(p, q):
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)

    middle = (x[0] + z[0]) / 2
    divergence = (relative_entropy(x[0], middle) + relative_entropy(z[0], middle)) / 2
    return math.exp(-divergence / (2 * float(k.scale) ** 2))


def _bias(x, z, power):
    return (1 - x) * (1 - z) * (1 + x * z) ** power


def _truncated(k, x, z):
    factor = _bias(x[1][0], z[1][0], k.power)
    return _rbf(k.unbiased, x[:1], z[:1]) + factor * _matern32(k.biased, x[:1], z[:1])


def _truncated_two(k, x, z):
    """The fidelities are arguments 2 and 0."""
    a, b, c, d = x[2][0], z[2][0], x[0][0], z[0][0]
    both = (1 - a) * (1 - b) * (1 - c) * (1 - d) * (1 + a * b + c * d) ** k.power
    factor = _bias(a, b, k.power) + _bias(c, d, k.power) + both
    return _rbf(k.unbiased, x[1:2], z[1:2]) + factor * _matern32(k.biased, x[1:2], z[1:2])


def _downsampling(k, x, z):
    exponent = 1 + float(k.power)
    return float(k.offset) + (1 - x[0][0]) ** exponent * (1 - z[0][0]) ** exponent


def _decay(k, x, z):
    beta, alpha = float(k.beta), float(k.alpha)
    return float(k.offset) + beta**alpha / (x[0][0] + z[0][0] + beta) ** alpha


def _freeze_thaw(k, x, z):
    beta, alpha = float(k.beta), float(k.alpha)
    same = x[0][0] == z[0][0]
    return beta**alpha / (x[1][0] + z[1][0] + beta) ** alpha if same else 0.0


def _kennedy_ohagan(k, x, z):
    s, t = int(x[0][0]), int(z[0][0])
    total, rho = 0.0, [math.nan, *np.asarray(k.rho).tolist()]
    for level, part in enumerate(k.kernels):
        if level <= min(s, t):
            weight = math.prod(rho[level + 1 : s + 1]) * math.prod(rho[level + 1 : t + 1])
            total += weight * _rbf(part, x[1:], z[1:])
    return total


def _psi(features, s, t):
    def excess(exponent, log, reach):
        return (math.exp(-exponent * log) - 1) / (math.exp(-exponent * reach) - 1)

    m = excess(float(features.a), s, float(features.reach[0]))
    if features.b is None:
        return np.array([1, m])
    z = excess(float(features.b), t, float(features.reach[1]))
    return np.array([1, m, z, m * z])


def _coregionalised(k, x, z):
    covariance = np.asarray(k.root) @ np.asarray(k.root).T
    left = _psi(k.features_of, x[0][0], x[-1][0])
    return left @ covariance @ _psi(k.features_of, z[0][0], z[-1][0])


def _composite(k, x, z):
    """2 RBF(0) * (Matern32(1) + Linear(2) * ExponentialDecay(2)) + Downsampling(3)."""
    product, last = k.left, k.right
    scaled, bracket = product.left, product.right
    first = float(scaled.variance) * _rbf(scaled.kernel.kernel, x[:1], z[:1])
    slope, decay = bracket.right.left, bracket.right.right
    assert isinstance(slope.kernel, kernels.Linear)
    inner = _matern32(bracket.left.kernel, x[1:2], z[1:2])
    inner += x[2][0] * z[2][0] * _decay(decay.kernel, x[2:3], z[2:3])
    return first * inner + _downsampling(last.kernel, x[3:], z[3:])


def _make_composite(rng):
    on = kernels.On
    bracket = on(kernels.Matern32(_scale(rng)), 1) + on(kernels.Linear(), 2) * on(
        _make_decay(rng), 2
    )
    last = on(kernels.Downsampling(_scale(rng), _scale(rng)), 3)
    return _scale(rng) * on(kernels.RBF(_scale(rng, 2)), 0) * bracket + last


def _make_decay(rng):
    return kernels.ExponentialDecay(_scale(rng), _scale(rng), _scale(rng))


def _scale(rng, *shape):
    return np.exp(rng.uniform(-1, 1, shape))


def _stationary(kernel):
    return lambda rng: kernel(_scale(rng, 3))


def _make_truncated(power, *fidelities):
    def build(rng):
        parts = kernels.RBF(_scale(rng)), kernels.Matern32(_scale(rng, 2))
        return kernels.LinearTruncated(*parts, *fidelities, power=power)

    return build


def _make_kennedy_ohagan(rng):
    parts = [kernels.RBF(_scale(rng)), kernels.RBF(_scale(rng, 2)), kernels.RBF(_scale(rng))]
    return kernels.KennedyOHagan(rng.normal(size=2), parts)


def _make_coregionalised(rng):
    psi = kernels.ScalingFeatures(_scale(rng), _scale(rng), reach=-1 - _scale(rng, 2))
    return kernels.Coregionalised(rng.normal(size=(4, 3)), psi)


def _make_one_scale(rng):
    psi = kernels.ScalingFeatures(_scale(rng), reach=-1 - _scale(rng, 1))
    return kernels.Coregionalised(rng.normal(size=(2, 2)), psi)


def _on_formula(k, x, z):
    return _rbf(k.kernel, (x[2], x[0]), (z[2], z[0]))


CASES = {
    "RBF": Case(_stationary(kernels.RBF), ("plane", "line"), _rbf),
    "Matern12": Case(_stationary(kernels.Matern12), ("plane", "line"), _matern12),
    "Matern32": Case(_stationary(kernels.Matern32), ("plane", "line"), _matern32),
    "Matern52": Case(_stationary(kernels.Matern52), ("plane", "line"), _matern52),
    "isotropic": Case(lambda rng: kernels.RBF(_scale(rng)), ("plane", "line"), _rbf),
    "Constant": Case(lambda _: kernels.Constant(), ("plane",), lambda k, x, z: 1.0),
    "Linear": Case(
        lambda _: kernels.Linear(),
        ("plane", "line"),
        lambda k, x, z: np.concatenate(x) @ np.concatenate(z),
    ),
    "On": Case(
        lambda rng: kernels.On(kernels.RBF(_scale(rng, 3)), 2, 0),
        ("line", "simplex", "plane"),
        _on_formula,
    ),
    "Hellinger": Case(
        lambda rng: kernels.Hellinger(kernels.Matern52(_scale(rng, 4) / 2)),
        ("simplex",),
        _hellinger,
    ),
    "TotalVariation": Case(
        lambda rng: kernels.TotalVariation(_scale(rng) / 2), ("simplex",), _total_variation
    ),
    "JensenShannon": Case(
        lambda rng: kernels.JensenShannon(_scale(rng) / 2), ("simplex",), _jensen_shannon, False
    ),
    "LinearTruncated": Case(_make_truncated(2, 1), ("plane", "unit"), _truncated),
    "LinearTruncated_two": Case(
        _make_truncated(3, 2, 0), ("unit", "plane", "unit"), _truncated_two
    ),
    "Downsampling": Case(
        lambda rng: kernels.Downsampling(_scale(rng), _scale(rng)), ("unit",), _downsampling
    ),
    "ExponentialDecay": Case(_make_decay, ("steps",), _decay),
    "FreezeThaw": Case(
        lambda rng: kernels.FreezeThaw(_scale(rng), _scale(rng)), ("label", "steps"), _freeze_thaw
    ),
    "KennedyOHagan": Case(_make_kennedy_ohagan, ("level", "plane"), _kennedy_ohagan),
    "Coregionalised": Case(_make_coregionalised, ("log", "log"), _coregionalised),
    "Coregionalised_one": Case(_make_one_scale, ("log",), _coregionalised),
    "composite": Case(_make_composite, ("plane", "line", "steps", "unit"), _composite),
}
EXACT = ["Constant", "Linear", "Downsampling", "Coregionalised", "Coregionalised_one"]
RANDOM = [name for name, case in CASES.items() if case.has_features and name not in EXACT]
every_kernel = pytest.mark.parametrize("name", CASES)


def _argument(rng, kind, n):
    """Half of the entries from a coarse grid, where ties, zeros and ends of ranges are common."""
    coarse = rng.random((n, 1)) < 0.5
    if kind == "simplex":
        counts = rng.integers(0, 3, (n, 4)) + np.eye(4)[rng.integers(0, 4, n)]
        return np.where(coarse, counts / counts.sum(1, keepdims=True), rng.dirichlet(np.ones(4), n))
    if kind in ("label", "level"):
        return rng.integers(0, 3, (n, 1))
    low, high, width = {
        "plane": (-2, 2, 2), "line": (-2, 2, 1), "unit": (0, 1, 1), "steps": (0, 2, 1),
        "log": (-2, 0, 1),
    }[kind]  # fmt: skip
    grid = low + (high - low) * rng.integers(0, 3, (n, width)) / 2
    return np.where(coarse, grid, rng.uniform(low, high, (n, width)))


def points(where, n, seed):
    """Inputs [n, width]; the last point repeats the first."""
    rng = np.random.default_rng(seed)
    columns = [_argument(rng, kind, n) for kind in where]
    return tuple(jnp.asarray(np.concatenate([c[:-1], c[:1]])) for c in columns)


@jax.jit
def _call(k, x, z):
    return k(x, z)


def rows(x):
    return [tuple(np.asarray(a[i]) for a in x) for i in range(len(x[0]))]


def make(name, seed=0):
    case = CASES[name]
    return case.build(np.random.default_rng(seed)), points(case.where, 9, seed + 1)


# Exactness.


@every_kernel
@pytest.mark.parametrize("seed", [0, 1])
def test_gram_equals_the_scalar_formula(name, seed):
    k, x = make(name, seed)
    z = points(CASES[name].where, 6, seed + 50)
    exact = [[CASES[name].formula(k, a, b) for b in rows(z)] for a in rows(x)]
    np.testing.assert_allclose(_call(k, x, z), exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ard", [False, True])
@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5, None])
def test_stationary_kernels_equal_scikit_learn(nu, ard):
    rng = np.random.default_rng(3)
    x, z = rng.normal(size=(20, 4)), rng.normal(size=(15, 4))
    lengthscale = _scale(rng, 4) if ard else 0.7
    peer = sk.RBF(lengthscale) if nu is None else sk.Matern(lengthscale, nu=nu)
    ours = {0.5: kernels.Matern12, 1.5: kernels.Matern32, 2.5: kernels.Matern52, None: kernels.RBF}
    gram = ours[nu](lengthscale)((x[:, :1], x[:, 1:]), (z[:, :1], z[:, 1:]))
    np.testing.assert_allclose(gram, peer(x, z), rtol=1e-10)


@pytest.mark.parametrize("kernel", [kernels.RBF, kernels.Matern12, kernels.Matern32])
def test_distances_keep_their_digits_far_from_the_origin(kernel):
    far, step = 1024.0, 2.0**-20
    x, z = (jnp.array([[far]]),), (jnp.array([[far + step]]),)
    near = (jnp.zeros((1, 1)),), (jnp.array([[step]]),)
    k = kernel(0.7 * step)
    np.testing.assert_allclose(k(x, z), k(*near), rtol=1e-12)
    assert k(x, x) == 1.0


def test_jensen_shannon_of_close_points():
    """JS = sum of (p - q)^2 / 8 m to leading order, of which the definition keeps no digit."""
    p = jnp.array([[0.3, 0.7, 0.0]])
    step = 1e-9 * jnp.array([[1.0, -1.0, 0.0]])
    divergence = -jnp.log(kernels.JensenShannon(1e-9)((p,), (p + step,)))[0, 0] * 2 * 1e-18
    moved = np.asarray((p + step) - p)[0, :2]
    np.testing.assert_allclose(divergence, np.sum(moved**2 / (8 * p[0, :2])), rtol=1e-6)


def test_jensen_shannon_of_disjoint_points_is_log_two():
    gram = kernels.JensenShannon(1.0)((jnp.eye(3),), (jnp.eye(3),))
    np.testing.assert_allclose(gram, np.where(np.eye(3), 1.0, 2**-0.5), rtol=1e-14)


@pytest.mark.parametrize("power", [0, 1, 0.5, 1.7])
def test_linear_truncated_powers(power):
    """Real powers too: those are fitted in practice, though positive for whole ones only."""
    k = kernels.LinearTruncated(kernels.RBF(1.0), kernels.Matern32(0.5), 1, power=power)
    assert k.power == power
    x = points(("plane", "unit"), 8, 2)
    exact = [[_truncated(k, a, b) for b in rows(x)] for a in rows(x)]
    np.testing.assert_allclose(k(x, x), exact, rtol=1e-10)


def test_kennedy_ohagan_equals_its_blocks():
    rng = np.random.default_rng(0)
    low, high = rng.normal(size=(4, 2)), rng.normal(size=(3, 2))
    cheap, delta, rho = kernels.Matern52([0.5, 2.0]), kernels.RBF(0.3), -1.3
    k = kernels.KennedyOHagan([rho], [cheap, delta])
    both = jnp.concatenate([low, high])
    x = (jnp.array([[0]] * 4 + [[1]] * 3), both)

    def block(part, a, b):
        return np.asarray(part((a,), (b,)))

    own = block(delta, high, high)
    expected = np.block([
        [block(cheap, low, low), rho * block(cheap, low, high)],
        [rho * block(cheap, high, low), rho**2 * block(cheap, high, high) + own],
    ])  # fmt: skip
    np.testing.assert_allclose(_call(k, x, x), expected, rtol=1e-12)


def test_one_level_of_kennedy_ohagan_is_its_kernel():
    k = kernels.KennedyOHagan([], [kernels.RBF(1.0)])
    x = points(("plane",), 5, 0)
    np.testing.assert_array_equal(
        k((jnp.zeros((5, 1)), *x), (jnp.zeros((5, 1)), *x)), kernels.RBF(1.0)(x, x)
    )


@pytest.mark.parametrize("positions", [(1,), (1, 2)])
def test_target_slice_of_linear_truncated_is_its_unbiased_part(positions):
    unbiased = kernels.Matern52([0.4, 0.9])
    k = kernels.LinearTruncated(unbiased, kernels.RBF(1.0), *positions, power=2)
    w, *other = points(("plane",) + ("unit",) * len(positions), 7, 4)
    target = (w, *(jnp.ones((7, 1)) for _ in positions))
    np.testing.assert_allclose(k(target, target), unbiased((w,), (w,)), rtol=1e-14)
    # nor does a cheap evaluation know more of the target than that part
    np.testing.assert_allclose(k(target, (w, *other)), unbiased((w,), (w,)), rtol=1e-14)


def test_target_slice_of_coregionalised_is_its_first_component():
    k, _ = make("Coregionalised")
    zero = (jnp.zeros((3, 1)), jnp.zeros((3, 1)))
    first = (np.asarray(k.root) @ np.asarray(k.root).T)[0, 0]
    np.testing.assert_allclose(k(zero, zero), np.full((3, 3), first), rtol=1e-14)


def test_coregionalised_transfers_with_either_sign():
    root, target = jnp.array([[1.0, 0.0], [-3.0, 0.1]]), jnp.zeros((1, 1))
    psi = kernels.ScalingFeatures(0.3, reach=(-4.0,))
    k = kernels.Coregionalised(root, psi)
    assert k((target,), (target - 4.0,))[0, 0] == pytest.approx(-2.0)


def test_coregionalised_takes_a_plain_function():
    def psi(x):
        return jnp.concatenate([jnp.ones_like(x[0]), x[0] ** 2], axis=1)

    k = kernels.Coregionalised(jnp.eye(2), psi)
    x = (jnp.array([[2.0], [3.0]]),)
    np.testing.assert_allclose(jax.jit(lambda k: k(x, x))(k), [[17.0, 37.0], [37.0, 82.0]])
    assert len(jax.tree.leaves(k)) == 1


# Laws of covariances.


def _gram_and_diagonal(k, x):
    return k(x, x), k.diagonal(x)


def _check_covariance(gram, diagonal):
    gram = np.asarray(gram)
    size = 1 + np.abs(gram).max()
    assert np.isfinite(gram).all()
    np.testing.assert_allclose(gram, gram.T, rtol=0, atol=1e-13 * size)
    np.testing.assert_allclose(np.diag(gram), diagonal, rtol=0, atol=1e-12 * size)
    assert np.linalg.eigvalsh((gram + gram.T) / 2)[0] > -1e-11 * size


@every_kernel
def test_covariances(name):
    compiled = jax.jit(_gram_and_diagonal)

    @given(st.integers(0, 2**32 - 1))
    def check(seed):
        case = CASES[name]
        k = case.build(np.random.default_rng(seed))
        _check_covariance(*compiled(k, points(case.where, 9, seed)))

    check()


@given(st.integers(0, 2**32 - 1))
def test_every_kernel_on_the_vertices_and_edges_of_the_simplex(seed):
    rng = np.random.default_rng(seed)
    corners = np.concatenate([np.eye(3), (np.eye(3) + np.roll(np.eye(3), 1, 0)) / 2, np.eye(3)])
    x = (jnp.asarray(corners),)
    for kernel in (kernels.TotalVariation, kernels.JensenShannon):
        _check_covariance(*_gram_and_diagonal(kernel(_scale(rng)), x))
    _check_covariance(*_gram_and_diagonal(kernels.Hellinger(kernels.RBF(_scale(rng))), x))


def test_real_powers_of_linear_truncated_are_not_positive():
    """Why only whole powers come with the promise: x^2 has coefficient p (p - 1) / 2 < 0."""
    k = kernels.LinearTruncated(0.0 * kernels.Constant(), kernels.Constant(), 1, power=0.5)
    x = (jnp.zeros((9, 1)), jnp.linspace(0, 0.95, 9)[:, None])
    assert np.linalg.eigvalsh(k(x, x))[0] < -1e-4


@every_kernel
def test_single_precision_stays_single(name):
    k, x = make(name)
    floats = [jnp.issubdtype(a.dtype, jnp.floating) for a in x]
    single = tuple(a.astype(jnp.float32) if f else a for a, f in zip(x, floats, strict=True))
    exact = _call(k, x, x)
    k = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), k)
    with jax.enable_x64(False):
        gram, diagonal = jax.jit(_gram_and_diagonal)(k, single)
        np.testing.assert_allclose(diagonal, jnp.diag(gram), rtol=1e-5)
        if CASES[name].has_features:
            drawn = jax.eval_shape(lambda: k.features(jax.random.key(0), 3)(single))
            assert drawn.dtype == jnp.float32
    assert gram.dtype == jnp.float32
    np.testing.assert_allclose(gram, exact, rtol=1e-4, atol=1e-4)


# Gradients.


def _total(k, x, weights):
    return jnp.sum(weights * k(x, x)) + jnp.sum(k.diagonal(x))


@every_kernel
def test_gradients_are_finite_at_duplicates_and_zeros(name):
    k, x = make(name)
    weights = jax.random.normal(jax.random.key(0), (9, 9))
    moving = [i for i, kind in enumerate(CASES[name].where) if kind not in ("label", "level")]

    def value(k, some):
        full = list(x)
        for i, a in zip(moving, some, strict=True):
            full[i] = a
        return _total(k, tuple(full), weights)

    some = tuple(x[i] for i in moving)
    gradients = jax.jit(jax.grad(value, (0, 1)))(k, some)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert any(np.any(g != 0) for g in jax.tree.leaves(gradients)) or name == "Constant"


@pytest.mark.parametrize("kernel", [kernels.Matern12, kernels.Matern32, kernels.Matern52])
def test_matern_derivatives(kernel):
    x, z = jnp.array([[0.3, -0.2], [1.0, 0.4]]), jnp.array([[0.1, 0.5]])
    gram = jax.jit(lambda x, lengthscale: kernel(lengthscale)((x,), (z,)))
    check_grads(gram, (x, jnp.array([0.5, 1.3])), order=2, modes=["rev"], rtol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "curvature"), [(kernels.RBF, 1), (kernels.Matern32, 3), (kernels.Matern52, 5 / 3)]
)
def test_curvature_at_distance_zero(kernel, curvature):
    """The variance of the slope of f, at which naive square roots give zero or NaN."""
    origin = jnp.zeros(2)
    k = kernel(jnp.array([0.5, 2.0]))
    hessian = jax.hessian(lambda x: k((x[None],), (origin[None],))[0, 0])(origin)
    np.testing.assert_allclose(hessian, -curvature * np.diag([4.0, 0.25]), atol=1e-12)


def test_jensen_shannon_derivatives_beside_zeros():
    """Both branches: near entries, far ones, and positive ones whose partner is zero."""
    k = kernels.JensenShannon(0.6)
    z = jnp.array([[0.3, 0.0, 0.7, 0.0]])

    @jax.jit
    def value(free):
        p = jnp.array([[0.28, 0.0, 0.02, 0.7]]).at[0, jnp.array([0, 2, 3])].set(free)
        return k((p,), (z,))[0, 0]

    check_grads(value, (jnp.array([0.28, 0.02, 0.7]),), order=2, modes=["rev"], rtol=1e-5)


@pytest.mark.parametrize(
    "k", [kernels.Hellinger(kernels.RBF(0.5)), kernels.JensenShannon(0.5)], ids=repr
)
def test_derivative_with_respect_to_an_exact_zero_counts_as_zero(k):
    w, other = jnp.array([[0.0, 0.4, 0.6]]), jnp.array([[0.2, 0.3, 0.5]])
    slope = jax.grad(lambda w: k((w,), (other,))[0, 0])(w)
    assert slope[0, 0] == 0.0
    assert (slope[0, 1:] != 0).all()


def test_rounding_below_zero_is_harmless():
    w = jnp.array([[-1e-17, 0.4, 0.6]])
    for k in (kernels.Hellinger(kernels.RBF(0.5)), kernels.JensenShannon(0.5)):
        np.testing.assert_allclose(k((w,), (jnp.maximum(w, 0.0),)), 1.0)


# Random features.


@pytest.mark.parametrize("name", RANDOM)
def test_features_are_unbiased_for_the_gram_matrix(name):
    k, _ = make(name)
    x = points(CASES[name].where, 5, 8)

    @jax.jit
    def estimates(k, keys):
        def once(key):
            phi = k.features(key, 256, like=x)(x)
            return phi @ phi.T

        return jax.lax.map(once, keys, batch_size=100)

    found = np.asarray(estimates(k, jax.random.split(jax.random.key(11), 1000)))
    exact = np.asarray(k(x, x))
    error = found.std(0, ddof=1) / math.sqrt(1000)
    assert (error < 0.02 * (1 + np.abs(exact))).all()
    assert (np.abs(found.mean(0) - exact) < 7 * error + 1e-9).all()


@pytest.mark.parametrize("name", EXACT)
def test_finite_features_are_exact(name):
    k, x = make(name)
    phi = jax.jit(lambda k: k.features(jax.random.key(0), 1)(x))(k)
    np.testing.assert_allclose(phi @ phi.T, _call(k, x, x), rtol=1e-12, atol=1e-12)


STATIONARY = ["RBF", "Matern12", "Matern32", "Matern52", "Hellinger", "TotalVariation"]


@pytest.mark.parametrize("name", STATIONARY)
def test_stationary_features_have_the_exact_variance(name):
    k, x = make(name)
    phi = jax.jit(lambda k: (3.0 * k).features(jax.random.key(0), 7)(x))(k)
    assert phi.shape == (9, 14)
    np.testing.assert_allclose(jnp.sum(phi**2, axis=1), jnp.full(9, 3.0), rtol=1e-12)


def test_products_pair_their_atoms():
    """A product of waves costs one wave per atom, a finite factor multiplies by its rank."""
    wave, other = kernels.On(kernels.RBF(1.0), 0), kernels.On(kernels.Matern52(1.0), 1)
    finite = kernels.On(kernels.Linear(), 0)
    decay = kernels.On(kernels.ExponentialDecay(), 2)
    x = points(("plane", "line", "steps"), 4, 0)

    def columns(k):
        return jax.eval_shape(lambda: k.features(jax.random.key(0), 10)(x)).shape[1]

    assert columns(wave * other) == columns(wave) == 20
    assert columns(wave * other * wave * other) == 20
    assert columns(finite) == 2
    assert columns(finite * wave) == columns(wave * finite) == 40
    assert columns(finite * finite) == 4
    assert columns(wave + 2.0 * other + finite) == 42
    assert columns((wave + finite) * (other + finite)) == 20 + 40 + 40 + 4
    assert columns(decay) == 11  # ten curves and the offset
    assert columns(decay * wave) == 40


def test_atoms_of_a_product_are_independent():
    """The square of a kernel needs two sets of waves, although it is one object twice."""
    k = kernels.RBF(1.0)
    x = (jnp.array([[0.0], [1.0]]),)
    phi = (k * k).features(jax.random.key(0), 20_000)(x)
    # six standard errors of cosines; doubled frequencies would give exp(-2)
    assert (phi @ phi.T)[0, 1] == pytest.approx(math.exp(-1), abs=6 * 0.6 / math.sqrt(20_000))


def test_runs_of_freeze_thaw_are_independent():
    x = (jnp.array([[-1], [0], [1], [2], [3], [1000]]), jnp.zeros((6, 1)))
    phi = kernels.FreezeThaw(1.0, 1.0).features(jax.random.key(0), 20_000)(x)
    # averages of random signs, at seven standard errors
    np.testing.assert_allclose(phi @ phi.T, np.eye(6), atol=7 / math.sqrt(20_000))


@pytest.mark.parametrize("name", ["LinearTruncated", "FreezeThaw", "KennedyOHagan", "composite"])
def test_random_numbers_drawn_ahead_give_the_same_features(name):
    k, x = make(name)
    key = jax.random.key(3)

    @jax.jit
    def values(k, x):
        later, ahead = k.features(key, 5), k.features(key, 5, like=x)
        # a map of single points: the batch has no say in the value of one
        single = jax.vmap(lambda *point: later(point)[0])(*(a[:, None] for a in x))
        return later(x), ahead(x), single

    later, ahead, single = values(k, x)
    np.testing.assert_allclose(later, ahead, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(later, single, rtol=1e-9, atol=1e-10)


def test_features_are_worlds():
    """Functions of the prior pass through vmap and jit as values."""
    k, x = make("KennedyOHagan")
    keys = jax.random.split(jax.random.key(0), 3)
    for like in (None, x):
        drawn = jax.jit(jax.vmap(lambda key, like=like: k.features(key, 4, like=like)))(keys)
        values = jax.jit(jax.vmap(lambda phi: phi(x)))(drawn)
        alone = jax.jit(lambda key: k.features(key, 4)(x))(keys[2])
        np.testing.assert_allclose(values[2], alone, rtol=1e-9, atol=1e-10)


def test_features_follow_the_hyperparameters():
    x = points(("plane",), 5, 0)

    @jax.jit
    def value(lengthscale):
        phi = (2.0 * kernels.Matern32(lengthscale)).features(jax.random.key(0), 50, like=x)
        return jnp.sum(phi(x)[0] * phi(x)[1])

    check_grads(value, (0.8,), order=1, modes=["rev"], rtol=1e-5)


@pytest.mark.parametrize(
    ("k", "said"),
    [
        (kernels.JensenShannon(1.0), "JensenShannon has no random features"),
        (kernels.RBF(1.0) + 2.0 * kernels.JensenShannon(1.0), "JensenShannon has no"),
        (kernels.On(kernels.JensenShannon(1.0), 1) * kernels.RBF(1.0), "JensenShannon has no"),
        (kernels.Hellinger(kernels.JensenShannon(1.0)), "JensenShannon has no"),
        (kernels.KennedyOHagan([1.0], [kernels.RBF(1.0), kernels.JensenShannon(1.0)]), "JensenSha"),
        (
            kernels.LinearTruncated(kernels.RBF(1.0), kernels.RBF(1.0), 1, power=1.0),
            "LinearTruncated has no random features: its power",
        ),
    ],
)
def test_kernels_without_features_say_so(k, said):
    with pytest.raises(NotImplementedError, match=said):
        k.features(jax.random.key(0), 10)


# Pytrees.


@every_kernel
def test_stacked_hyperparameters(name):
    grown = [make(name, seed)[0] for seed in (0, 1, 2)]
    x = make(name)[1]
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(v) for v in leaves]), *grown)
    if not jax.tree.leaves(stacked):
        return
    batch = jax.jit(jax.vmap(lambda k: _gram_and_diagonal(k, x)))(stacked)
    compiled = jax.jit(_gram_and_diagonal)
    for i, k in enumerate(grown):
        for found, expected in zip(batch, compiled(k, x), strict=True):
            np.testing.assert_allclose(found[i], expected, rtol=1e-10, atol=1e-12)


@every_kernel
def test_trees_of_any_leaves_keep_the_structure(name):
    """Optimiser states and axis specifications hold zeros where kernels may not."""
    k, x = make(name)
    zeros = jax.tree.map(jnp.zeros_like, k)
    assert jax.tree.structure(zeros) == jax.tree.structure(k)
    restored = jax.tree.map(lambda a, b: a + b, zeros, k)
    gram = _call(k, x, x)
    np.testing.assert_array_equal(_call(restored, x, x), gram)
    if leaves := jax.tree.leaves(k):
        axes = jax.tree.map(lambda _: None, k)
        stacked = jax.jit(jax.vmap(lambda k, _: k(x, x), in_axes=(axes, 0)))(k, jnp.zeros(2))
        np.testing.assert_allclose(stacked[1], gram, rtol=1e-12, atol=1e-13)
        assert all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves)


def test_kernels_pass_through_loops_and_gradients():
    k = 2.0 * kernels.RBF(jnp.array([0.5, 1.0])) + 1
    x = points(("plane",), 6, 0)

    def loss(k):
        return jnp.sum(k(x, x)[0])

    def step(k, _):
        slope = jax.grad(loss)(k)
        return jax.tree.map(lambda a, g: a - 0.01 * g, k, slope), loss(k)

    last, losses = jax.lax.scan(step, jax.tree.map(jnp.asarray, k), length=20)
    assert type(last) is kernels.Sum
    assert losses[-1] < losses[0]


def test_one_program_serves_all_hyperparameters(compilations):
    x = points(("plane",), 6, 0)
    compiled = jax.jit(lambda k: k(x, x))
    hypers = [jnp.float64(v) for v in (0.5, 0.7, 0.9)]
    compiled(hypers[0] * kernels.RBF(hypers[0]))
    before = compilations()
    for h in hypers:
        compiled(h * kernels.RBF(h))
    assert compilations() == before


@pytest.mark.parametrize("given", [2, [1, 2], np.array([1, 2]), jnp.array([1, 2])], ids=repr)
def test_whole_hyperparameters_can_be_differentiated(given):
    k, x = kernels.RBF(given), points(("plane",), 4, 0)
    slope = jax.grad(lambda k: jnp.sum(k(x, x)))(k)
    assert jnp.shape(slope.lengthscale) == np.shape(given)


def test_whole_power_is_structure_and_real_power_a_leaf():
    parts = kernels.RBF(1.0), kernels.RBF(1.0)
    whole = kernels.LinearTruncated(*parts, 1, power=2)
    real = kernels.LinearTruncated(*parts, 1, power=2.0)
    assert [len(jax.tree.leaves(k)) for k in (whole, real)] == [2, 3]
    x = points(("plane", "unit"), 5, 0)
    np.testing.assert_allclose(whole(x, x), real(x, x), rtol=1e-14)
    # features survive the way through a compiled function, which traces leaves
    phi = jax.jit(lambda k: k.features(jax.random.key(0), 3)(x))(whole)
    assert phi.shape == (5, 6 + 6 * 3)


def test_operators_and_their_immutability():
    k, x = kernels.RBF(1.0), points(("plane",), 4, 0)
    gram = k(x, x)
    for scaled in (2.0 * k, k * 2.0, np.float64(2.0) * k, jnp.float64(2.0) * k, k * np.array(2.0)):
        np.testing.assert_allclose(scaled(x, x), 2 * gram)
    for shifted in (k + 2.0, 2.0 + k, np.float64(2.0) + k, jnp.float64(2.0) + k):
        np.testing.assert_allclose(shifted(x, x), gram + 2)
    np.testing.assert_allclose(sum([k, k])(x, x), 2 * gram)
    np.testing.assert_allclose((k * k + k)(x, x), gram**2 + gram)
    with pytest.raises(AttributeError):
        k.lengthscale = 2.0  # pyright: ignore[reportAttributeAccessIssue]


def test_zero_variance_has_finite_gradients():
    x = points(("plane",), 4, 0)

    def value(v):
        return jnp.sum((v * kernels.RBF(1.0)).features(jax.random.key(0), 3)(x))

    assert jax.grad(value)(0.0) == 0.0


def test_a_kernel_of_your_own_needs_only_its_gram_matrix():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Polynomial(kernels.Kernel):
        shift: Any

        def _gram(self, x, z):
            return (x[0] @ z[0].T + self.shift) ** 2

    k = 2.0 * Polynomial(jnp.array(1.0)) + kernels.RBF(1.0)
    x = points(("plane",), 6, 0)
    np.testing.assert_allclose(k.diagonal(x), jnp.diag(k(x, x)), rtol=1e-12)
    with pytest.raises(NotImplementedError, match="Polynomial has no random features"):
        k.features(jax.random.key(0), 3)


def test_traced_values_are_not_looked_at():
    x = points(("plane",), 3, 0)
    assert jax.jit(lambda v: (v * kernels.RBF(v))(x, x))(-1.0).shape == (3, 3)


def test_unknown_traced_levels_give_nan():
    k, _ = make("KennedyOHagan")
    x = (jnp.array([[-1], [0], [3]]), jnp.zeros((3, 2)))
    gram = jax.jit(lambda x: k(x, x))(x)
    np.testing.assert_array_equal(np.isfinite(gram), np.outer([0, 1, 0], [0, 1, 0]))


# Errors.

POINTS = np.zeros((3, 2))
ONE = np.zeros((3, 1))
RBF = kernels.RBF(1.0)


@pytest.mark.parametrize(
    ("build", "error", "said"),
    [
        (lambda: kernels.RBF(0.0), ValueError, "lengthscale: expected positive numbers, got 0.0"),
        (lambda: kernels.Matern32([1.0, -1.0]), ValueError, "Matern32 lengthscale: .*-1.0"),
        (lambda: kernels.Matern52(math.nan), ValueError, "Matern52 lengthscale: expected positive"),
        (lambda: kernels.RBF(math.inf), ValueError, "got inf"),
        (lambda: kernels.RBF("wide"), TypeError, "expected a number .* got 'wide'"),
        (lambda: kernels.RBF(None), TypeError, "expected a number"),
        (lambda: -1.0 * RBF, ValueError, "variance of a scaled kernel: .*not negative.*-1.0"),
        (lambda: RBF + -1.0, ValueError, "variance of a scaled kernel"),
        (lambda: RBF * "two", TypeError, "unsupported operand|can't multiply"),
        (lambda: RBF * jnp.ones(2), TypeError, "unsupported operand"),
        (lambda: np.ones(2) * RBF, TypeError, "unsupported operand"),
        (lambda: RBF + 1j, TypeError, "unsupported operand"),
        (lambda: kernels.On(1.0, 0), TypeError, "On: expected a kernel first"),
        (lambda: kernels.On(RBF), ValueError, "On: expected one or more distinct positions"),
        (lambda: kernels.On(RBF, 0, 0), ValueError, "distinct positions"),
        (lambda: kernels.On(RBF, -1), ValueError, "counted from 0"),
        (lambda: kernels.On(RBF, 0.0), TypeError, "positions of arguments are ints"),
        (lambda: kernels.TotalVariation(0.0), ValueError, "TotalVariation scale"),
        (lambda: kernels.JensenShannon(-1.0), ValueError, "JensenShannon scale"),
        (lambda: kernels.LinearTruncated(RBF, 1, 2), TypeError, "expected two kernels"),
        (lambda: kernels.LinearTruncated(RBF, RBF), ValueError, "distinct positions"),
        (lambda: kernels.LinearTruncated(RBF, RBF, 1, 2, 3), ValueError, "fidelities, got 3"),
        (lambda: kernels.LinearTruncated(RBF, RBF, 1, power=-1), ValueError, "Truncated power"),
        (lambda: kernels.Downsampling(-1.0), ValueError, "Downsampling power"),
        (lambda: kernels.Downsampling(1.0, -1.0), ValueError, "Downsampling offset"),
        (lambda: kernels.ExponentialDecay(0.0), ValueError, "ExponentialDecay beta"),
        (lambda: kernels.ExponentialDecay(1.0, 0.0), ValueError, "ExponentialDecay alpha"),
        (lambda: kernels.ExponentialDecay(1.0, 1.0, -1.0), ValueError, "ExponentialDecay offset"),
        (lambda: kernels.FreezeThaw(0.0, 1.0), ValueError, "FreezeThaw beta"),
        (lambda: kernels.FreezeThaw(1.0, 0.0), ValueError, "FreezeThaw alpha"),
        (lambda: kernels.KennedyOHagan([1.0], [RBF]), ValueError, r"rho .*\(1,\), expected \(0,\)"),
        (lambda: kernels.KennedyOHagan(1.0, [RBF, RBF]), ValueError, r"expected \(1,\) for 2"),
        (lambda: kernels.KennedyOHagan([1.0], [RBF, 2]), TypeError, "one kernel per level"),
        (lambda: kernels.KennedyOHagan([math.nan], [RBF, RBF]), ValueError, "rho: expected finite"),
        (lambda: kernels.Coregionalised([1.0], abs), ValueError, "root is a matrix"),
        (lambda: kernels.Coregionalised(np.eye(2), 3), TypeError, "features are a callable"),
        (lambda: kernels.ScalingFeatures(0.0, reach=(-1.0,)), ValueError, "ScalingFeatures a"),
        (lambda: kernels.ScalingFeatures(1.0, -1.0, reach=(-1.0, -1.0)), ValueError, "Features b"),
        (lambda: kernels.ScalingFeatures(1.0, reach=(1.0,)), ValueError, "negative log fidelities"),
        (lambda: kernels.ScalingFeatures(1.0, 1.0, reach=(-1.0,)), ValueError, r"expected \(2,\)"),
        (lambda: kernels.ScalingFeatures(1.0, reach=-1.0), ValueError, r"expected \(1,\)"),
    ],
)  # fmt: skip
def test_errors_of_construction(build, error, said):
    with pytest.raises(error, match=said):
        build()


@pytest.mark.parametrize(
    ("k", "x", "error", "said"),
    [
        (RBF, POINTS, TypeError, r"inputs are a tuple .*got ndarray. For a single argument write"),
        (RBF, (), TypeError, "inputs are a tuple"),
        (RBF, (np.zeros(3),), ValueError, r"shapes \[\(3,\)\]. Give scalar arguments as \[n, 1\]"),
        (RBF, (POINTS, np.zeros((2, 1))), ValueError, "differ in their number of points"),
        (kernels.Matern12([1.0, 2.0]), (POINTS, ONE), ValueError, r"shape \(2,\), .* 3 columns"),
        (kernels.RBF([1.0]), (POINTS,), ValueError, "lengthscale has shape"),
        (kernels.On(RBF, 1), (POINTS,), ValueError, r"On\(RBF\): looks at argument 1"),
        (kernels.LinearTruncated(RBF, RBF, 1), (POINTS, POINTS), ValueError, "at position 1"),
        (kernels.LinearTruncated(RBF, RBF, 1), (POINTS, ONE + 2), ValueError, "target; rescale"),
        (kernels.LinearTruncated(RBF, RBF, 0), (ONE,), ValueError, "needs an argument of f beside"),
        (kernels.Downsampling(), (ONE, ONE), ValueError, "sees 1 scalar argument"),
        (kernels.Downsampling(), (ONE - 0.1,), ValueError, r"fidelities in \[0, 1\]"),
        (kernels.ExponentialDecay(), (ONE - 1,), ValueError, "steps: expected .* not negative"),
        (kernels.FreezeThaw(1.0, 1.0), (ONE, ONE - 1), ValueError, "FreezeThaw steps"),
        (kernels.FreezeThaw(1.0, 1.0), (ONE + 0.5, ONE), ValueError, "run label: expected whole"),
        (kernels.FreezeThaw(1.0, 1.0), (ONE,), ValueError, "the run label, the steps; got widths"),
        (kernels.KennedyOHagan([], [RBF]), (ONE,), ValueError, "first argument is the level"),
        (kernels.KennedyOHagan([], [RBF]), (ONE + 1, ONE), ValueError, "whole numbers from 0 to 0"),
        (kernels.KennedyOHagan([], [RBF]), (ONE - 1, ONE), ValueError, "level: expected whole"),
        (kernels.Coregionalised(np.eye(2), lambda x: x[0]), (ONE,), ValueError, r"shape \(3, 1\)"),
        (
            kernels.Coregionalised(np.eye(2), kernels.ScalingFeatures(1.0, reach=(-1.0,))),
            (ONE, ONE),
            ValueError,
            "ScalingFeatures: sees 1 scalar",
        ),
    ],
)  # fmt: skip
def test_errors_at_the_call(k, x, error, said):
    with pytest.raises(error, match=said):
        k(x, x)


def test_errors_of_pairs_and_of_features():
    with pytest.raises(ValueError, match=r"same arguments, got widths \(2,\) and \(1,\)"):
        RBF((POINTS,), (ONE,))
    with pytest.raises(ValueError, match="num_features: expected at least 1, got 0"):
        RBF.features(jax.random.key(0), 0)
    with pytest.raises(TypeError, match="num_features: expected an int, got 1.5"):
        RBF.features(jax.random.key(0), 1.5)  # pyright: ignore[reportArgumentType]
    phi = RBF.features(jax.random.key(0), 3, like=(POINTS,))
    with pytest.raises(ValueError, match=r"drawn for arguments of widths \(2,\), got \(1,\)"):
        phi((ONE,))


def test_fidelities_that_rounding_moved_are_accepted():
    k = kernels.Downsampling(0.5)
    assert jnp.isfinite(k((ONE + 1 + 1e-7,), (ONE,))).all()


def test_import_is_light():
    code = (
        "import sys, decisionppl; before = set(sys.modules); import jax\n"
        "import decisionppl.kernels, decisionppl.means\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "assert not new & {'scipy', 'sklearn'}, new\n"
        "assert not jax.live_arrays()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# Means.

MEAN_POINTS = (
    np.array([[0.2, 0.8], [1.0, 0.0]]),
    np.array([[0.0], [-1.5]]),
    np.array([[0.0], [-0.5]]),
)


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (means.Zero(), [0, 0]),
        (means.Constant(2.5), [2.5, 2.5]),
        (means.Constant(3), [3, 3]),
        (means.Linear([1, 2, 3, 4], 0.5), [2.3, 1 - 4.5 - 2 + 0.5]),
        (means.ScalingLaw(2.0, 0.5, 0.3), [2, 2 + 0.5 * math.expm1(0.45)]),
        (
            means.ScalingLaw(2.0, 0.5, 0.3, 0.7, 0.2),
            [2, 2 + 0.5 * math.expm1(0.45) + 0.7 * math.expm1(0.1)],
        ),
        (
            means.ScalingLaw(2.0, 0.5, 0.3, 0.7, 0.2, positions=(2, 1)),
            [2, 2 + 0.5 * math.expm1(0.15) + 0.7 * math.expm1(0.3)],
        ),
        (means.ScalingLaw(2.0, 0.5, 0.3, positions=(2,)), [2, 2 + 0.5 * math.expm1(0.15)]),
        (means.ChanceFloored(means.Constant(0.0), 0.25), [0.625, 0.625]),
        (
            means.ChanceFloored(means.ScalingLaw(1.0, -2.0, 1.0), 0.2, 0.9),
            [0.2 + 0.7 / (1 + math.exp(-1)), 0.2 + 0.7 / (1 + math.exp(-1 + 2 * math.expm1(1.5)))],
        ),
        (1.0 + (means.Constant(2.0) + means.Zero()) + np.float64(3.0), [6, 6]),
    ],
    ids=repr,
)
def test_means(mean, expected):
    np.testing.assert_allclose(mean(MEAN_POINTS), expected, rtol=1e-12, atol=1e-12)
    compiled = jax.jit(lambda m, x: m(x))(mean, MEAN_POINTS)
    np.testing.assert_allclose(compiled, expected, rtol=1e-12, atol=1e-12)
    zeros = jax.tree.map(jnp.zeros_like, mean)
    assert jax.tree.structure(zeros) == jax.tree.structure(mean)
    with jax.enable_x64(False):
        single = tuple(jnp.asarray(a, jnp.float32) for a in MEAN_POINTS)
        assert means.Sum(means.Zero(), means.Constant(1.0))(single).dtype == jnp.float32


def test_means_stack_and_differentiate():
    def value(floor, size):
        return means.ChanceFloored(means.ScalingLaw(floor, size, 0.3), 0.25)(MEAN_POINTS)

    stacked = jax.vmap(value)(jnp.array([0.0, 1.0]), jnp.array([-1.0, -2.0]))
    np.testing.assert_allclose(stacked[1], value(1.0, -2.0), rtol=1e-12)
    check_grads(value, (0.3, -0.7), order=1, rtol=1e-5)
    # traced bounds are not looked at
    jax.jit(lambda low: means.ChanceFloored(means.Zero(), low)(MEAN_POINTS))(2.0)


@pytest.mark.parametrize(
    ("build", "error", "said"),
    [
        (lambda: means.Constant(math.inf), ValueError, "Constant value: expected finite"),
        (lambda: means.Linear(["a"]), TypeError, "Linear weights"),
        (lambda: means.Linear([1.0])(MEAN_POINTS), ValueError, r"shape \(1,\), expected \(4,\)"),
        (lambda: means.Zero()(np.zeros((2, 1))), TypeError, "Zero: inputs are a tuple"),
        (lambda: means.ScalingLaw(1.0, 1.0, 0.0), ValueError, "ScalingLaw exponent_size"),
        (lambda: means.ScalingLaw(1.0, 1.0, 1.0, 1.0, -1.0), ValueError, "exponent_steps"),
        (lambda: means.ScalingLaw(1.0, 1.0, 1.0, 1.0), ValueError, "both of steps and"),
        (lambda: means.ScalingLaw(1.0, 1.0, 1.0, positions=(1, 2)), ValueError, "1 position"),
        (lambda: means.ScalingLaw(1.0, 1.0, 1.0, positions=(-1,)), ValueError, "counted from 0"),
        (lambda: means.ScalingLaw(1.0, 1.0, 1.0, positions=(0,))(MEAN_POINTS), ValueError, "scale"),
        (lambda: means.ScalingLaw(1, 1, 1, positions=(3,))(MEAN_POINTS), ValueError, "looks at"),
        (lambda: means.ChanceFloored(0.0, 0.5), TypeError, "expected a mean first"),
        (lambda: means.ChanceFloored(means.Zero(), 0.5, 0.4), ValueError, "0 <= floor < ceiling"),
        (lambda: means.ChanceFloored(means.Zero(), -0.1), ValueError, "0 <= floor"),
        (lambda: means.ChanceFloored(means.Zero(), 0.1, 1.1), ValueError, "ceiling <= 1"),
        (lambda: means.Zero() + "a", TypeError, "unsupported operand"),
        (lambda: np.ones(2) + means.Zero(), TypeError, "operand|operation"),
    ],
)  # fmt: skip
def test_errors_of_means(build, error, said):
    with pytest.raises(error, match=said):
        build()
