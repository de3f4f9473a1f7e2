"""Hypothesis strategies: inputs for property tests of models, engines and rules.

Shapes come from a few sizes and values are free, so that compiled code is compiled once per shape
and not once per example. Objects are valid by construction, nothing is drawn and thrown away.
Numbers are float32 without NaN, infinities or subnormals.

Models (`bandits`) and covariance functions (`kernels`) are callable pytrees: as arguments of a
`jax.jit` function they compile once per kind and shape.

Example:
    >>> import numpy as np
    >>> from hypothesis import given
    >>> from decisionppl.testing import strategies
    >>> @given(strategies.simplex())
    ... def test_entropy(p):
    ...     assert -(p * np.log(p)).sum() < np.log(len(p)) + 1e-5

Needs hypothesis: `pip install 'decisionppl[test]'`.

References:
    MacIver et al., Hypothesis: A new approach to property-based testing, JOSS 4(43), 2019.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.tree_util import Partial
from numpyro.distributions import constraints

import decisionppl as dp
from decisionppl.testing import _generated as generated
from decisionppl.testing._generated import Bandit, Kernel, TabularMDP

try:
    import hypothesis
    from hypothesis import strategies as st
    from hypothesis.extra import numpy as hnp
    from hypothesis.strategies import SearchStrategy
except ImportError as error:
    raise ImportError(
        "decisionppl.testing.strategies needs hypothesis, which is not installed: "
        "pip install 'decisionppl[test]'"
    ) from error

_LARGEST_CONDITION = 1e6  # beyond, rounding to float32 can turn an eigenvalue negative


def register_profile(name: str = "decisionppl", **settings: Any) -> None:
    """Register and load a hypothesis profile that suits compiled code.

    No deadline (the first example compiles), the same examples in every run, 60 of them, and no
    complaint that drawing is slow.

    Args:
        name: name of the profile.
        **settings: of `hypothesis.settings`; they take precedence.

    Example:
        >>> import hypothesis
        >>> from decisionppl.testing import strategies
        >>> strategies.register_profile("thorough", max_examples=500)
        >>> hypothesis.settings.default.max_examples
        500
        >>> hypothesis.settings.load_profile("default")
    """
    defaults = {
        "deadline": None,
        "derandomize": True,
        "max_examples": 60,
        "suppress_health_check": [hypothesis.HealthCheck.too_slow],
    }
    hypothesis.settings.register_profile(name, **{**defaults, **settings})
    hypothesis.settings.load_profile(name)


def _floats(low: float, high: float) -> SearchStrategy[float]:
    # hypothesis asks for bounds that float32 holds exactly
    low, high = float(np.float32(low)), float(np.float32(high))
    return st.floats(low, high, width=32, allow_nan=False, allow_subnormal=False)


def _arrays(shape: tuple[int, ...], low: float, high: float) -> SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float32, shape, elements=_floats(low, high))


def _log_uniform(low: float, high: float, shape: tuple[int, ...] = ()) -> SearchStrategy:
    """Positive float32 numbers or arrays, evenly spread in the logarithm."""
    exponents = _arrays(shape, math.log(low), math.log(high))
    return exponents.map(lambda e: _single(np.exp(np.float64(e))))


def _single(x: Any) -> np.ndarray:
    """Rounded to float32, subnormal results to zero."""
    x = np.asarray(x, np.float32)
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)


def _sizes(name: str, sizes: Sequence[int]) -> SearchStrategy[int]:
    if len(sizes) == 0 or any(n < 1 for n in sizes):
        raise ValueError(f"{name}: expected a sequence of positive whole numbers, got {sizes!r}.")
    return st.sampled_from(tuple(sizes))


def keys() -> SearchStrategy[jax.Array]:
    """Typed JAX PRNG keys, from all 32-bit seeds.

    Returns:
        Strategy of keys of shape [].

    Example:
        >>> import jax
        >>> from hypothesis import given
        >>> from decisionppl.testing import strategies
        >>> @given(strategies.keys())
        ... def test_uniform(key):
        ...     assert 0 <= jax.random.uniform(key) < 1
    """
    return st.integers(0, 2**32 - 1).map(jax.random.key)


def _shares(weights: np.ndarray) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    return _single(weights / weights.sum(axis=-1, keepdims=True))


def simplex(dims: Sequence[int] = (2, 3, 5)) -> SearchStrategy[np.ndarray]:
    """Probability vectors, from uniform to within about 1e-6 of a vertex.

    Args:
        dims: numbers of entries to choose from.

    Returns:
        Strategy of float32 arrays [dim]; entries are positive and sum to one.

    Raises:
        ValueError: a dimension below one, or none.

    Example:
        >>> from hypothesis import given
        >>> from decisionppl.testing import strategies
        >>> @given(strategies.simplex(dims=(3,)))
        ... def test_sums_to_one(p):
        ...     assert abs(p.sum() - 1) < 1e-6
    """
    return _sizes("dims", dims).flatmap(lambda n: _log_uniform(1e-6, 1.0, (n,)).map(_shares))


def spd_matrices(
    dims: Sequence[int] = (1, 2, 4), max_condition: float = 1e4
) -> SearchStrategy[np.ndarray]:
    """Symmetric positive definite matrices of bounded condition number.

    An orthogonal matrix times eigenvalues that are evenly spread in the logarithm; scales range
    from 0.01 to 100.

    Args:
        dims: numbers of rows to choose from.
        max_condition: largest ratio of eigenvalues, before rounding to float32; from 1 to 1e6.

    Returns:
        Strategy of float32 arrays [dim, dim], exactly symmetric.

    Raises:
        ValueError: a dimension below one, or a condition number out of range.

    Example:
        >>> import numpy as np
        >>> from hypothesis import given
        >>> from decisionppl.testing import strategies
        >>> @given(strategies.spd_matrices())
        ... def test_cholesky(a):
        ...     root = np.linalg.cholesky(a)
        ...     assert np.allclose(root @ root.T, a, rtol=1e-4, atol=1e-4 * a.max())
    """
    if not 1 <= max_condition <= _LARGEST_CONDITION:
        raise ValueError(
            f"max_condition: expected a number from 1 to {_LARGEST_CONDITION:g} (float32 matrices "
            f"of larger condition may not be positive definite), got {max_condition!r}."
        )

    def of_size(n: int) -> SearchStrategy[np.ndarray]:
        # QR of any square matrix, singular ones included, has an orthogonal first factor
        matrices = hnp.arrays(np.int8, (n, n), elements=st.integers(-9, 9))
        return st.builds(_spd, matrices, _log_uniform(1 / max_condition, 1, (n,)), _scale(100.0))

    return _sizes("dims", dims).flatmap(of_size)


def _scale(largest: float) -> SearchStrategy:
    return _log_uniform(1 / largest, largest)


def _spd(matrix: np.ndarray, eigenvalues: np.ndarray, scale: np.ndarray) -> np.ndarray:
    q, _ = np.linalg.qr(matrix.astype(np.float64))
    product = (q * (scale * eigenvalues.astype(np.float64))) @ q.T
    return _single((product + product.T) / 2)


def _priors_by_support() -> dict[str, SearchStrategy[dist.Distribution]]:
    loc, scale, shape = _arrays((), -3, 3), _scale(10.0), _log_uniform(1.0, 8.0)
    narrow = _arrays((), -1, 1), _log_uniform(0.1, 1.0)  # a sigmoid of it stays inside (0, 1)
    concentrations = st.sampled_from((2, 3, 5)).flatmap(lambda n: _log_uniform(1, 8, (n,)))
    return {
        "real": st.one_of(
            st.builds(dist.Normal, loc, scale),
            st.builds(dist.Laplace, loc, scale),
            st.builds(dist.Logistic, loc, scale),
            st.builds(dist.Gumbel, loc, scale),
            st.builds(dist.StudentT, _log_uniform(3, 30), loc, scale),
        ),
        "positive": st.one_of(
            st.builds(dist.Gamma, shape, scale),
            st.builds(dist.Exponential, scale),
            st.builds(dist.HalfNormal, scale),
            st.builds(dist.InverseGamma, shape, scale),
            st.builds(dist.LogNormal, *narrow),
        ),
        "unit_interval": st.one_of(
            st.builds(dist.Beta, shape, shape),
            st.builds(dist.Kumaraswamy, shape, shape),
            st.builds(_pushed, st.just(constraints.unit_interval), *narrow),
        ),
        "simplex": st.builds(dist.Dirichlet, concentrations),
    }


def _pushed(support: Any, loc: Any, scale: Any) -> dist.Distribution:
    """A normal law carried over to the support."""
    return dist.TransformedDistribution(dist.Normal(loc, scale), dist.biject_to(support))


def priors(support: Any = None) -> SearchStrategy[dist.Distribution]:
    """Continuous NumPyro distributions with moderate parameters.

    Their density is finite at their own draws, and locations and scales are within a few units.

    Args:
        support: "real", "positive", "unit_interval" or "simplex"; a constraint of
            `numpyro.distributions.constraints` (beside these four, any continuous one of
            scalars, such as `interval(2, 5)`); or None for any of the four.

    Returns:
        Strategy of distributions without batch axes; event shape () or, on the simplex, [2], [3]
        or [5].

    Raises:
        ValueError: an unknown name, or a constraint on vectors or discrete values.

    Example:
        >>> from hypothesis import given
        >>> from decisionppl.testing import strategies
        >>> @given(strategies.priors("positive"), strategies.keys())
        ... def test_support(prior, key):
        ...     assert prior.sample(key) > 0
    """
    known = _priors_by_support()
    if support is None:
        return st.one_of(*known.values())
    named = [n for n in known if n == support or getattr(constraints, n) is support]
    if named:
        return known[named[0]]
    scalar = isinstance(support, constraints.Constraint) and support.event_dim == 0
    if not scalar or support.is_discrete:
        raise ValueError(
            f"support: expected one of {sorted(known)} or a continuous constraint on scalars, "
            f"got {support!r}."
        )
    return st.builds(_pushed, st.just(support), _arrays((), -1, 1), _log_uniform(0.1, 1.0))


def tabular_mdps(
    num_states: Sequence[int] = (2, 3, 5), num_actions: Sequence[int] = (2,)
) -> SearchStrategy[TabularMDP]:
    """Tabular Markov decision processes, ergodic under every policy.

    A tenth of each row is spread evenly over all states, so every state is reached from every
    other in one step and the chain forgets where it started at a rate of at least 0.1 a step.
    The rest ranges from uniform to almost deterministic; rewards are within [-5, 5].

    Args:
        num_states, num_actions: numbers to choose from.

    Returns:
        Strategy of `TabularMDP`.

    Raises:
        ValueError: a number below one, or none.

    Example:
        >>> import numpy as np
        >>> from hypothesis import given
        >>> from decisionppl.testing import strategies
        >>> @given(strategies.tabular_mdps())
        ... def test_rows(mdp):
        ...     assert np.allclose(mdp.transition.sum(-1), 1, atol=1e-6)
    """

    def of_size(size: tuple[int, int]) -> SearchStrategy[TabularMDP]:
        actions, states = size
        kernel = _log_uniform(1e-6, 1.0, (actions, states, states))
        mixed = kernel.map(lambda w: _shares(0.9 * _shares(w) + 0.1 / states))
        return st.builds(TabularMDP, mixed, _arrays((actions, states), -5, 5))

    sizes = st.tuples(_sizes("num_actions", num_actions), _sizes("num_states", num_states))
    return sizes.flatmap(of_size)


def bandits(num_arms: Sequence[int] = (2, 4), dims: Sequence[int] = (2,)) -> SearchStrategy[Bandit]:
    """One-round bandit models: Beta-Bernoulli, Gaussian, linear and logistic.

    Every arm has a prior of its own, and all parameters are drawn. The action site is `arm`, the
    reward site `reward`.

    Args:
        num_arms: numbers of arms to choose from.
        dims: dimensions of the context to choose from (linear and logistic).

    Returns:
        Strategy of `Bandit`. `bandit.model` may be an argument of a jitted function, which then
        compiles once per kind and shape.

    Raises:
        ValueError: a number below one, or none.

    Example:
        >>> import decisionppl as dp
        >>> import numpy as np
        >>> from hypothesis import given
        >>> from decisionppl.testing import strategies
        >>> @given(strategies.bandits(), strategies.keys())
        ... def test_reward_is_finite(bandit, key):
        ...     trace = dp.play(bandit.model, key)(*bandit.args)
        ...     assert np.isfinite(trace["reward"]["value"])
    """

    def of_size(size: tuple[int, int]) -> SearchStrategy[Bandit]:
        arms, dim = size
        shape, noise = _log_uniform(0.5, 5.0, (arms,)), _scale(3.0)
        means = _arrays((arms,), -2, 2), _log_uniform(0.3, 3.0, (arms,))
        weights = _arrays((arms, dim), -2, 2), _log_uniform(0.3, 3.0, (arms, dim))
        context = st.tuples(_arrays((dim,), -1, 1))
        return st.one_of(
            _models(generated.beta_bernoulli, st.just(()), shape, shape),
            _models(generated.gaussian, st.just(()), *means, noise),
            _models(generated.linear, context, *weights, noise),
            _models(generated.logistic, context, *weights),
        )

    return st.tuples(_sizes("num_arms", num_arms), _sizes("dims", dims)).flatmap(of_size)


def _models(
    program: Callable, args: SearchStrategy, *parameters: SearchStrategy
) -> SearchStrategy[Bandit]:
    # inside a model a drawn index meets the parameters, which NumPy arrays would not accept
    model = st.tuples(*parameters).map(lambda v: Partial(program, *map(jnp.asarray, v)))
    return st.builds(Bandit, model, args)


def kernels() -> SearchStrategy[Kernel]:
    """Positive definite covariance functions: squared exponential, Matern, sums and products.

    Lengthscales and variances range from 0.1 to 10.

    Returns:
        Strategy of `Kernel`, a callable pytree `k(x [n, d], y [m, d]) -> [n, m]`.

    Example:
        >>> import numpy as np
        >>> from hypothesis import given
        >>> from decisionppl.testing import strategies
        >>> @given(strategies.kernels())
        ... def test_variance_is_positive(k):
        ...     assert (np.diagonal(k(np.eye(3), np.eye(3))) > 0).all()

    References:
        Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, chapter 4.
    """
    families = hnp.arrays(np.int32, (2,), elements=st.integers(0, 3))
    joined = st.sampled_from((0, 1, 2)).map(np.int32)
    pair = _log_uniform(0.1, 10.0, (2,))
    return st.builds(Kernel, families, pair, pair, joined)


def permutations(sizes: Sequence[int] = (2, 4, 8)) -> SearchStrategy[np.ndarray]:
    """Permutations as index arrays: `x[permutation]` is x in another order.

    Args:
        sizes: lengths to choose from.

    Returns:
        Strategy of int32 arrays [size].

    Raises:
        ValueError: a size below one, or none.

    Example:
        >>> import numpy as np
        >>> from hypothesis import given
        >>> from decisionppl.testing import strategies
        >>> @given(strategies.permutations())
        ... def test_inverse(order):
        ...     assert (order[np.argsort(order)] == np.arange(len(order))).all()
    """
    orders = _sizes("sizes", sizes).flatmap(lambda n: st.permutations(range(n)))
    return orders.map(lambda order: np.array(order, np.int32))


def datasets(
    model: Callable, *args: Any, num_rows: Sequence[int] = (1, 4, 16)
) -> SearchStrategy[dp.Rows]:
    """Rows simulated from a model: one world from the prior, actions by the logging policy.

    Simulation is compiled once per model and number of rows.

    Args:
        model: a one-round model.
        *args: its arguments, the same for every row; or one callable `key -> args tuple` that
            draws the arguments of a row.
        num_rows: numbers of rows to choose from.

    Returns:
        Strategy of `decisionppl.Rows` with values for every action, outcome, reward, cost, state
        and context site that has a distribution; all rows count.

    Raises:
        ValueError: a number of rows below one, or none.

    Example:
        >>> import jax
        >>> from hypothesis import given
        >>> from decisionppl.models import bandits
        >>> from decisionppl.testing import strategies
        >>> draw = lambda key: (jax.random.normal(key, (2,)),)
        >>> @given(strategies.datasets(bandits.linear(3, 2), draw))
        ... def test_arms(rows):
        ...     assert (rows.sites["arm"] < 3).all()
    """
    drawn = len(args) == 1 and callable(args[0])
    contexts = _tree(args[0]) if drawn else Partial(_same, args)
    simulate = functools.partial(_simulate, _tree(model), contexts)
    return st.builds(simulate, keys(), _sizes("num_rows", num_rows))


def _tree(fn: Callable) -> Partial:
    # models that differ in their parameters alone share what is compiled
    return fn if isinstance(fn, Partial) else Partial(fn)


def _same(args: tuple, key: jax.Array) -> tuple:
    return args


@jax.jit(static_argnums=3)
def _simulate(model: Callable, contexts: Callable, key: jax.Array, num_rows: int) -> dp.Rows:
    context_key, world_key, row_key = jax.random.split(key, 3)
    args = jax.vmap(contexts)(jax.random.split(context_key, num_rows))
    first = dp.play(model, world_key)(*jax.tree.map(lambda x: x[0], args))
    sampled = [(n, dp.role_of(s)) for n, s in first.items() if s["type"] == "sample"]
    world = {n: first[n]["value"] for n, role in sampled if role is None}
    logged = [n for n, role in sampled if role is not None]

    def row(key: jax.Array, args: tuple) -> dict[str, jax.Array]:
        trace = dp.play(model, key, world=world)(*args)
        return {n: trace[n]["value"] for n in logged}

    sites = jax.vmap(row)(jax.random.split(row_key, num_rows), args)
    return dp.Rows(args, sites, jnp.ones(num_rows, bool))
