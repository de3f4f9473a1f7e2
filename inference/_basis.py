"""Features of the states along trajectories: dense, or the number of a state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_MOST_STATES = 5000


class Basis(NamedTuple):
    """Features of states; a table of states has one indicator each, never written out.

    Attributes:
        values: features [..., features], or numbers of states [...].
        size: number of features.
        gauge: the feature whose coefficient is set to zero, since values are known up to a
            constant: the constant feature, or a state. None chooses the state most visited.
    """

    values: jax.Array
    size: int
    gauge: int | None

    @property
    def is_table(self) -> bool:
        """Whether features are indicators of states."""
        return self.gauge is None

    def at(self, weights: jax.Array) -> jax.Array:
        """Linear function of the features, [...]."""
        return weights[self.values] if self.is_table else self.values @ weights

    def total(self, weight: jax.Array) -> jax.Array:
        """Weighted sum of features over the last axis of `weight`, [features]."""
        if self.is_table:
            return jax.ops.segment_sum(weight, self.values, self.size)
        return weight @ self.values

    def cross(self, weight: jax.Array, other: "Basis") -> jax.Array:
        """Weighted sum of outer products with other features, [features, features]."""
        if self.is_table:
            pairs = self.values * self.size + other.values
            return jax.ops.segment_sum(weight, pairs, self.size**2).reshape(self.size, -1)
        # sums of sums: one running sum of single precision over all steps would lose digits
        count = weight.shape[0]
        length = max(1, round(count**0.5))
        left, right = (
            jnp.pad(x, ((0, -count % length), (0, 0))).reshape(-1, length, x.shape[1])
            for x in (weight[:, None] * self.values, other.values)
        )
        return jnp.einsum("bti,btj->bij", left, right).sum(0)

    def take(self, shape: tuple, values: jax.Array) -> "Basis":
        """Features at some of the times, in another shape of times."""
        return self._replace(
            values=values.reshape(*shape, *(() if self.is_table else (self.size,)))
        )


def make_basis(state: Any, features: int | Callable | None) -> tuple[Basis, Any]:
    """Features of states [runs, steps + 1, ...].

    A constant is put behind dense features; they are divided by their scale, which is
    returned too.
    """
    if isinstance(features, int) and not isinstance(features, bool):
        return _table(state, features), 1.0
    if callable(features):
        values = jax.vmap(jax.vmap(features))(state)
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
    values = jnp.asarray(values, float)
    size = jnp.sqrt(jnp.mean(values**2, axis=(0, 1)))
    scale = jnp.where(size > 0, size, 1.0)
    values = values / scale
    ones = jnp.ones((*values.shape[:2], 1), values.dtype)
    values = jnp.concatenate([values, ones], axis=-1)
    return Basis(values, values.shape[-1], values.shape[-1] - 1), scale


def _table(state: Any, count: int) -> Basis:
    leaves = jax.tree.leaves(state)
    if len(leaves) != 1 or jnp.ndim(leaves[0]) != 2 or jnp.issubdtype(leaves[0].dtype, jnp.inexact):
        raise ValueError(
            f"features={count}: expected states that are whole numbers from 0 to {count - 1}, got "
            f"{[f'{x.dtype}{list(x.shape)}' for x in leaves]}. Give a function from a state to a "
            "vector of features."
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
    return Basis(number, count, None)
