"""The contract of policy classes, the forms they are given in, and checks of their tables."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_MAKERS = "decisionppl.inference.policies"


class PolicyClass(NamedTuple):
    """Policies of the form argmax of a score, and how one is fitted to a completed table.

    Both are pure functions that work under `jit` and `vmap`.

    Attributes:
        fit: `(x, y) -> params`, contexts x, a pytree with leaves [T, ...] or None, and outcomes
            y [T, K] to a pytree of parameters.
        score: `(params, x) -> [K]`, where x is the context of one round.
    """

    fit: Callable
    score: Callable


def as_policy_class(value: Any) -> PolicyClass:
    """A policy class from the forms that one can be given in.

    Args:
        value: a `PolicyClass`, which is returned as it is; a pair `(fit, score)`; or a function
            `fit(x, y)` that returns the fitted policy itself, a callable pytree from the context
            of one round to scores [K], such as `jax.tree_util.Partial(score, params)` with a
            `score` defined at module level.

    Returns:
        PolicyClass. Fitted policies cross `vmap` and `jit` as pytrees, so a function that closes
        over what was fitted cannot be one.

    Raises:
        TypeError: anything else; in `fit`, a fitted policy that is not a callable pytree.

    Example:
        >>> import jax.numpy as jnp
        >>> from jax.tree_util import Partial
        >>> from decisionppl.inference import policies
        >>> def nearest(table, x):
        ...     contexts, outcomes = table
        ...     return outcomes[jnp.argmin(jnp.abs(contexts - x))]
        >>> policy = policies.as_policy_class(lambda x, y: Partial(nearest, (x, y)))
        >>> params = policy.fit(jnp.array([0.0, 1.0]), jnp.array([[1.0, 0.0], [0.0, 1.0]]))
        >>> policy.score(params, 0.8).tolist()
        [0.0, 1.0]
    """
    hint = (
        "Give a PolicyClass such as policies.linear(), a pair (fit, score) of functions, or a "
        "function fit(x, y) that returns jax.tree_util.Partial(score, params)."
    )
    name = getattr(value, "__qualname__", "")
    if getattr(value, "__module__", "") == _MAKERS and "." not in name:
        raise TypeError(
            f"policy: got the function {name}, which makes a policy class. Call it: "
            f"policies.{name}()."
        )
    if isinstance(value, tuple):
        if len(value) != 2 or not all(callable(f) for f in value):
            raise TypeError(f"policy: expected a pair of functions (fit, score), got {value!r}.")
        return value if isinstance(value, PolicyClass) else PolicyClass(*value)
    if not callable(value):
        raise TypeError(f"policy: got {value!r}, which is no policy class. {hint}")

    def fit(x: Any, y: Any) -> Any:
        params = value(x, y)
        if not callable(params):
            raise TypeError(
                f"policy: fit(x, y) returned {type(params).__name__}, which cannot be called with "
                f"a context. {hint}"
            )
        _check_crosses(params)
        return params

    return PolicyClass(fit, lambda params, x: params(x))


def _check_crosses(params: Callable) -> None:
    functions = [leaf for leaf in jax.tree.leaves(params) if callable(leaf)]
    if isinstance(params, jax.tree_util.Partial):
        cells = getattr(params.func, "__closure__", None) or ()
        held = jax.tree.leaves([cell.cell_contents for cell in cells])
        functions += [params.func] if any(isinstance(v, jax.Array) for v in held) else []
    if functions:
        raise TypeError(
            f"policy: fit(x, y) returned a policy with the function {functions[0]!r} in it, which "
            "holds what was fitted out of sight of jit and vmap. Return "
            "jax.tree_util.Partial(score, params), where score(params, x) is a function defined "
            "at module level."
        )


def outcomes_of(y: Any) -> jax.Array:
    """Outcomes [T, K] as floating-point numbers."""
    y = jnp.asarray(y)
    if y.ndim != 2 or 0 in y.shape:
        raise ValueError(
            f"y: expected outcomes [rounds, arms], one for each arm in each round, got shape "
            f"{y.shape}."
        )
    return y.astype(jnp.result_type(y, jnp.float32))


def check_rounds(x: Any, y: jax.Array) -> None:
    """Raise unless every leaf of the contexts has the rounds of y [T, K]."""
    for leaf in jax.tree.leaves(x):
        if jnp.shape(leaf)[:1] != (len(y),):
            raise ValueError(
                f"x: expected contexts with a leading axis of the {len(y)} rounds of y, got shape "
                f"{jnp.shape(leaf)}."
            )


def whole_number(name: str, value: Any) -> int:
    """`value` as an int."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected a whole number, got {value!r}.") from None


def check_number(name: str, value: Any, allowed: Callable, expected: str) -> None:
    """Raise unless `value` is a known number that is `allowed`."""
    try:
        passed = bool(allowed(value))
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected {expected}, got {value!r}.") from None
    if not passed:
        raise ValueError(f"{name}: expected {expected}, got {value!r}.")
