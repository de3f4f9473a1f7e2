"""Features of the states along trajectories: dense, or the number of a state."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from decisionppl._play import Same

_MOST_STATES = 5000


class Basis(NamedTuple):
    """Features of states; a table of states has one indicator each, never written out.

    Dense features are divided by their scale, and a constant is the last of them; neither is
    written out, since long runs are mostly spent on reading and writing.

    Attributes:
        values: features [..., features - 1] before they are scaled, or numbers of states [...].
        scale: [features - 1]; None for a table.
        size: number of features.
        level: the last feature [...], where it is not one (the trace of a constant).
    """

    values: jax.Array
    scale: jax.Array | None
    size: int
    level: jax.Array | None = None

    @property
    def is_table(self) -> bool:
        """Whether features are indicators of states."""
        return self.scale is None

    def at(self, weights: jax.Array) -> jax.Array:
        """Linear function of the features, [...]."""
        if self.scale is None:
            return weights[self.values]
        return self.values @ (weights[:-1] / self.scale) + weights[-1]

    def total(self, weight: jax.Array) -> jax.Array:
        """Weighted sum of features over times, [features]."""
        if self.scale is None:
            return jax.ops.segment_sum(weight, self.values, self.size)
        constant = weight.sum() if self.level is None else weight @ self.level
        return jnp.append(weight @ self.values / self.scale, constant)

    def moved(
        self, weight: jax.Array, here: "Basis", later: "Basis", discount: float = 1.0
    ) -> jax.Array:
        """Weighted sum of outer products with `here - discount * later`, [features, features]."""
        if self.scale is None:
            flat = self.values * self.size
            pairs = jnp.concatenate([flat + here.values, flat + later.values])
            both = jnp.concatenate([weight, -discount * weight])
            return jax.ops.segment_sum(both, pairs, self.size**2).reshape(self.size, -1)
        # differences are summed, not sums subtracted: features may change little in a step
        change = weight[:, None] * (here.values - discount * later.values)
        ones = jnp.ones_like(weight) if self.level is None else self.level
        inner = _products(self.values, change) / self.scale[:, None]
        rows = jnp.concatenate([inner, _products(ones[:, None], change)]) / self.scale
        last = (1 - discount) * self.total(weight)
        return jnp.concatenate([rows, last[:, None]], axis=1)

    def of(self, values: jax.Array, level: jax.Array | None = None) -> "Basis":
        """The features of other states, in one axis of times."""
        tail = () if self.is_table else values.shape[-1:]
        return self._replace(values=values.reshape(-1, *tail), level=level)


def _products(left: jax.Array, right: jax.Array) -> jax.Array:
    """Sum over times of outer products, as sums of sums.

    One running sum of single precision over all steps would lose digits; under `vmap` products of
    matrices are such sums.
    """
    count = len(left)
    length = max(1, round(count**0.5))
    parts = (
        jnp.pad(x, ((0, -count % length), (0, 0))).reshape(-1, length, x.shape[1])
        for x in (left, right)
    )
    return jnp.einsum("bti,btj->bij", *parts).sum(0)


def make_basis(state: Any, features: int | Callable | None) -> Basis:
    """Features of states [runs, steps + 1, ...]."""
    if isinstance(features, int) and not isinstance(features, bool):
        return _table(state, features)
    if callable(features):
        values = _featurise(Same(features), state)
        if jnp.ndim(values) != 3:
            raise ValueError(
                "features: expected a function from a state to a vector [features], got shape "
                f"{list(jnp.shape(values)[2:])}."
            )
    elif features is None:
        values = state
        if isinstance(state, dict | tuple | list) or jnp.ndim(state) != 3:
            raise ValueError(
                "features: states are not vectors, so say what values may depend on: a number of "
                "states n if they are 0 to n - 1, or a function from a state to a vector."
            )
    else:
        raise ValueError(
            "features: expected a number of states, a function from a state to a vector, or None "
            f"for states that are vectors, got {features!r}."
        )
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(float)
    return Basis(values, _scale(values), values.shape[-1] + 1)


@partial(jax.jit, static_argnums=0)
def _featurise(features: Same, state: Any) -> jax.Array:
    return jax.vmap(jax.vmap(features.value))(state)


@jax.jit
def _scale(values: jax.Array) -> jax.Array:
    """Root mean squares of features, one for those that are zero."""
    size = jnp.sqrt(jnp.mean(values**2, axis=(0, 1)))
    return jnp.where(size > 0, size, 1.0)


def _table(state: Any, count: int) -> Basis:
    leaves = jax.tree.leaves(state)
    if len(leaves) != 1 or jnp.ndim(leaves[0]) != 2 or jnp.issubdtype(leaves[0].dtype, jnp.inexact):
        raise ValueError(
            f"features={count}: expected states that are whole numbers from 0 to {count - 1}, got "
            f"{[f'{x.dtype}{list(x.shape)}' for x in leaves]}. Make them integers "
            "[runs, steps + 1] (markov.from_table: state= the name of a column of integers), or "
            "give a function from a state to a vector of features."
        )
    if not 1 < count <= _MOST_STATES:
        raise ValueError(
            f"features: expected a number of states from 2 to {_MOST_STATES}, got {count}. With "
            "more, give a function from a state to a vector of features."
        )
    number = leaves[0]
    if not isinstance(number, Tracer):
        outside = np.asarray((number < 0) | (number >= count))
        if outside.any():
            run, t = (int(i) for i in np.argwhere(outside)[0])
            raise ValueError(
                f"features={count}: states are 0 to {count - 1}, but run {run} is in state "
                f"{int(number[run, t])} at step {t}."
            )
    return Basis(number, None, count)
