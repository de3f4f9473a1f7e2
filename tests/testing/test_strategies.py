"""What strategies draw is valid, has no subnormals, and comes in few shapes."""

import importlib
import sys

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from numpyro.distributions import constraints

import decisionppl as dp
from decisionppl.models import bandits as gallery
from decisionppl.testing import strategies

TINY = np.finfo(np.float32).tiny


def floats_of(tree):
    # NumPyro keeps constants of its own, such as the 0 of a half normal law, as Python numbers
    leaves = (np.asarray(x) for x in jax.tree.leaves(tree) if hasattr(x, "dtype"))
    return [x for x in leaves if np.issubdtype(x.dtype, np.floating)]


def assert_plain(tree):
    """Float32 without NaN, infinities and subnormals."""
    for x in floats_of(tree):
        assert x.dtype == np.float32
        assert np.isfinite(x).all()
        assert ((x == 0) | (np.abs(x) >= TINY)).all()


def distinct(strategy, signature):
    """Distinct signatures over one run of the profile's 60 examples, and how many examples."""
    seen = []

    @given(strategy)
    def collect(value):
        seen.append(signature(value))

    collect()
    return set(seen), len(seen)


def find(strategy, condition):
    """Fail unless some example meets the condition."""
    generate = settings(phases=[hypothesis.Phase.generate], max_examples=500)
    hypothesis.find(strategy, condition, settings=generate)


def shapes(tree):
    structure = jax.tree.structure(tree)
    return structure, tuple((np.shape(x), np.asarray(x).dtype) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("strategy", "most"),
    [
        (strategies.simplex(), 3),
        (strategies.spd_matrices(), 3),
        (strategies.tabular_mdps(), 3),
        (strategies.permutations(), 3),
        (strategies.kernels(), 1),
        (strategies.bandits(), 8),
        (strategies.priors("real"), 5),
        (strategies.priors("simplex"), 3),
    ],
    ids=["simplex", "spd", "mdp", "permutation", "kernel", "bandit", "real", "dirichlet"],
)
def test_few_shapes_many_values(strategy, most):
    """Sixty examples compile as often as there are shapes."""
    values = set()
    traces = []

    @jax.jit
    def compiled(tree):
        traces.append(1)
        return sum(jnp.sum(jnp.asarray(x, float)) for x in jax.tree.leaves(tree))

    def signature(tree):
        assert_plain(tree)
        values.add(repr([np.asarray(x).tolist() for x in jax.tree.leaves(tree)]))
        compiled(tree)
        return shapes(tree)

    seen, examples = distinct(strategy, signature)
    assert examples >= 20  # hypothesis stops once a small space, such as permutations, is spent
    assert 1 <= len(seen) <= most
    assert len(traces) == len(seen)
    assert len(values) >= 3 * len(seen)


@given(strategies.simplex((2, 3, 5)))
def test_simplex(p):
    assert p.shape[0] in (2, 3, 5)
    assert (p > 0).all()
    assert p.sum(dtype=float) == pytest.approx(1, abs=1e-6)


def test_simplex_comes_near_its_vertices_and_its_middle():
    find(strategies.simplex(), lambda p: p.max() > 0.999)
    find(strategies.simplex(), lambda p: np.ptp(p) < 1e-6)


@given(strategies.spd_matrices(max_condition=1e4))
def test_spd(a):
    assert (a == a.T).all()
    eigenvalues = np.linalg.eigvalsh(a.astype(float))
    assert eigenvalues[0] > 0
    assert eigenvalues[-1] / eigenvalues[0] < 1.02e4  # rounding to float32 moves the smallest
    assert np.isfinite(np.linalg.cholesky(a)).all()


@given(strategies.spd_matrices(dims=(3,), max_condition=1.0))
def test_spd_of_condition_one_is_a_multiple_of_the_identity(a):
    np.testing.assert_allclose(a, a[0, 0] * np.eye(3), atol=1e-6 * a[0, 0])


def test_spd_reaches_its_condition_number_and_is_not_diagonal():
    matrices = strategies.spd_matrices(dims=(2,), max_condition=1e6)
    find(matrices, lambda a: np.linalg.cond(a.astype(float)) > 1e4)
    find(matrices, lambda a: np.abs(a - np.diag(np.diag(a))).max() > 0.1 * a.max())


@given(strategies.spd_matrices(dims=(4,), max_condition=1e6))
def test_spd_of_the_largest_condition(a):
    assert np.linalg.eigvalsh(a.astype(float))[0] > 0


SUPPORTS = [
    "real", "positive", "unit_interval", "simplex",
    constraints.positive, constraints.interval(2.0, 5.0), constraints.less_than(1.0),
]  # fmt: skip


@jax.jit
def draws_and_density(prior, key):
    draws = prior.sample(key, (50,))
    return draws, prior.log_prob(draws)


@pytest.mark.parametrize("support", SUPPORTS, ids=str)
def test_priors(support):
    wanted = getattr(constraints, support) if isinstance(support, str) else support

    @given(strategies.priors(support), strategies.keys())
    def check(prior, key):
        assert repr(prior.support) == repr(wanted)
        assert prior.batch_shape == ()
        assert_plain(prior)
        draws, density = draws_and_density(prior, key)
        assert draws.dtype == jnp.float32
        assert wanted(draws).all()
        assert np.isfinite(density).all()
        assert np.abs(draws).max() < 1e4

    check()


def test_priors_of_any_support():
    named = {id(getattr(constraints, n)): n for n in SUPPORTS[:4]}
    supports, _ = distinct(strategies.priors(), lambda prior: named[id(prior.support)])
    assert supports == set(SUPPORTS[:4])


@given(strategies.keys())
def test_keys(key):
    assert key.shape == ()
    assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    assert 0 <= float(jax.random.uniform(key)) < 1


def test_keys_use_all_32_bits():
    find(strategies.keys(), lambda key: int(jax.random.key_data(key)[1]) >= 2**31)


@given(strategies.tabular_mdps(num_states=(2, 3, 5), num_actions=(2, 3)))
def test_tabular_mdps(mdp):
    actions, states, _ = mdp.transition.shape
    assert mdp.reward.shape == (actions, states)
    assert actions in (2, 3)
    np.testing.assert_allclose(mdp.transition.sum(-1, dtype=float), 1, atol=1e-6)
    # ergodic under every policy: each next state has mass from every state and action
    assert (mdp.transition > 0.099 / states).all()
    # so the second eigenvalue is at most 0.9
    moduli = np.sort(np.abs(np.linalg.eigvals(mdp.transition[0].astype(float))))
    assert moduli[-2] < 0.9 + 1e-5


def test_tabular_mdps_come_near_deterministic_ones():
    find(strategies.tabular_mdps(), lambda mdp: mdp.transition.max() > 0.9)


def test_bandits():
    roles = []

    @jax.jit
    def run(bandit, key):
        trace = dp.play(bandit.model, key)(*bandit.args)
        roles.append({n: dp.role_of(s) for n, s in trace.items() if dp.role_of(s)})
        inside = {n: s["fn"].support(s["value"]).all() for n, s in trace.items()}
        return {n: s["value"] for n, s in trace.items()}, inside

    @given(strategies.bandits(), strategies.keys())
    def check(bandit, key):
        values, inside = run(bandit, key)
        assert all(inside.values())
        assert all(np.isfinite(v).all() for v in values.values())

    check()
    assert 4 <= len(roles) <= 8  # one compilation per kind and number of arms
    assert all(r == {"arm": "action", "reward": "reward"} for r in roles)


def test_bandits_of_all_kinds():
    kinds, _ = distinct(strategies.bandits(), lambda b: (b.model.func.__name__, len(b.args)))
    assert kinds == {("beta_bernoulli", 0), ("gaussian", 0), ("linear", 1), ("logistic", 1)}


def points(n):
    return np.linspace(-2, 2, n, dtype=np.float32).reshape(-1, 2)


@jax.jit
def covariance(k, x, y):
    return k(x, y)


@jax.jit
def slope(k, x):
    return jax.grad(lambda x: k(x, x).sum())(x)


def textbook(family, r):
    s = [0, 1, np.sqrt(3) * r, np.sqrt(5) * r]
    return [
        np.exp(-(r**2) / 2),
        np.exp(-r),
        (1 + s[2]) * np.exp(-s[2]),
        (1 + s[3] + 5 * r**2 / 3) * np.exp(-s[3]),
    ][family]


@given(strategies.kernels())
def test_kernels(k):
    x, y = points(12), points(6)
    gram = np.asarray(covariance(k, x, x), float)
    assert gram.shape == (6, 6)
    np.testing.assert_array_equal(gram, gram.T)
    assert np.linalg.eigvalsh(gram)[0] > -1e-5 * gram.max()
    distance = np.linalg.norm(x[:, None].astype(float) - y[None], axis=-1)
    parts = [
        v * textbook(f, distance / length)
        for f, v, length in zip(k.family, k.variance, k.lengthscale, strict=True)
    ]
    truth = [parts[0], parts[0] + parts[1], parts[0] * parts[1]][int(k.joined)]
    np.testing.assert_allclose(covariance(k, x, y), truth, rtol=2e-3, atol=1e-5 * truth.max())


@given(strategies.kernels())
def test_kernels_have_finite_gradients_at_coinciding_points(k):
    assert np.isfinite(slope(k, points(4))).all()


@given(strategies.permutations(sizes=(2, 4, 8)))
def test_permutations(order):
    assert order.dtype == np.int32
    assert sorted(order.tolist()) == list(range(len(order)))


DATASETS = {
    "plain": (gallery.beta_bernoulli(3), ()),
    "slate": (gallery.slate(4, 2), ()),
    "broadcast": (gallery.linear(3, 2), (np.array([1.0, -2.0], np.float32),)),
    "drawn": (gallery.logistic(3, 2), (lambda key: (jax.random.normal(key, (2,)),),)),
}


@pytest.mark.parametrize("name", DATASETS)
def test_datasets_pass_observe(name):
    model, args = DATASETS[name]

    @settings(max_examples=4)
    @given(strategies.datasets(model, *args, num_rows=(4,)))
    def check(rows):
        checked = dp.observe(model, rows.args, rows.sites, rows.mask)
        assert shapes(checked) == shapes(rows)
        assert len(rows.mask) == 4
        assert_plain(rows)

    check()


def test_datasets_simulate_one_world_with_varied_contexts():
    """The rewards of a noiseless linear model determine the weights, the same in every row."""

    def model(x):
        w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
        dp.action("arm", 3, given=x)
        dp.outcome("y", dist.Normal(w @ x, 1e-5))

    args = lambda key: (jax.random.normal(key, (2,)),)  # noqa: E731
    worlds = []

    @settings(max_examples=10)
    @given(strategies.datasets(model, args, num_rows=(16,)))
    def check(rows):
        x, y = np.asarray(rows.args[0], float), np.asarray(rows.sites["y"], float)
        w, residual, rank, _ = np.linalg.lstsq(x, y)
        assert rank == 2
        assert residual < 1e-6
        worlds.append(tuple(w))
        assert len(set(rows.sites["arm"].tolist())) > 1

    check()
    assert len(set(worlds)) > 1


def test_datasets_compile_once_per_number_of_rows():
    traces = []

    def model():
        traces.append(1)
        dp.outcome("y", dist.Normal(dp.action("arm", 2), 1.0))

    sizes, _ = distinct(strategies.datasets(model), lambda rows: len(rows.mask))
    assert sizes == {1, 4, 16}
    assert len(traces) == 2 * 3  # a world, then the rows


def test_datasets_of_drawn_bandits_share_compilations():
    before = strategies._simulate._cache_size()
    drawn = strategies.bandits(num_arms=(2,)).flatmap(
        lambda b: strategies.datasets(b.model, *b.args, num_rows=(4,))
    )
    _, examples = distinct(drawn, lambda rows: len(rows.mask))
    assert examples == 60
    assert strategies._simulate._cache_size() - before <= 4


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: strategies.simplex(()), "dims: expected"),
        (lambda: strategies.permutations((0,)), "sizes: expected"),
        (lambda: strategies.spd_matrices(max_condition=1e9), "max_condition: expected .* got 1000"),
        (lambda: strategies.priors("integers"), "got 'integers'"),
        (lambda: strategies.priors(constraints.nonnegative_integer), "continuous"),
        (lambda: strategies.priors(constraints.positive_definite), "scalars"),
        (lambda: strategies.datasets(DATASETS["plain"][0], num_rows=(-1,)), "num_rows: expected"),
    ],
)
def test_errors_name_what_was_expected(build, match):
    with pytest.raises(ValueError, match=match):
        build()


@pytest.mark.parametrize("name", ["bandits", "kernels", "keys", "permutations", "priors",
                                  "simplex", "spd_matrices", "tabular_mdps"])  # fmt: skip
def test_strategies_are_strategies(name):
    assert isinstance(getattr(strategies, name)(), SearchStrategy)


def test_profile():
    before = settings.default
    try:
        strategies.register_profile("for_this_test", max_examples=7)
        assert settings.default.max_examples == 7
        assert settings.default.deadline is None
        assert settings.default.derandomize
        assert hypothesis.HealthCheck.too_slow in settings.default.suppress_health_check
    finally:
        settings.register_profile("before", before)
        settings.load_profile("before")
    assert settings.default.max_examples == before.max_examples


def test_without_hypothesis_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.delitem(sys.modules, "decisionppl.testing.strategies")
    with pytest.raises(ImportError, match=r"pip install 'decisionppl\[test\]'"):
        importlib.import_module("decisionppl.testing.strategies")


@settings(max_examples=10)
@given(st.data())
def test_all_sizes_are_honoured(data):
    assert data.draw(strategies.simplex((7,))).shape == (7,)
    assert data.draw(strategies.spd_matrices((3,))).shape == (3, 3)
    assert data.draw(strategies.permutations((5,))).shape == (5,)
    assert data.draw(strategies.tabular_mdps((4,), (3,))).transition.shape == (3, 4, 4)
    bandit = data.draw(strategies.bandits((3,), (4,)))
    assert all(x.shape == (4,) for x in bandit.args)
