"""One sequence, completed: what was seen absorbed, what was not drawn."""

from typing import Any

import jax
import jax.numpy as jnp

from decisionppl.inference._steps import Steps, fork, where

_BLOCK = 32


def generate(
    steps: Steps, key: Any, carry: Any, values: dict[str, jax.Array], observed: jax.Array
) -> dict[str, jax.Array]:
    """Complete a sequence: cells that were not observed, drawn one after the other.

    Args:
        steps: of the sequence model.
        key: PRNG key.
        carry: after all observed cells.
        values: dict from data site to [length, ...].
        observed: bool [length].

    Returns:
        dict from data site to [length, ...]; observed cells keep their values.
    """
    length = observed.shape[0]
    size = min(_BLOCK, length)
    blocks = -(-length // size)
    room = blocks * size
    missing = ~observed
    rank = jnp.cumsum(missing) - 1  # which of the missing cells each one is
    carry = fork(carry, room)
    # missing cells first, in their order: the loop ends with the last of them
    alike = all(x.size == 0 for x in jax.tree.leaves(steps.xs))
    if alike:
        ordered = jax.tree.map(lambda x: jnp.zeros((room, *x.shape[1:]), x.dtype), steps.xs)
    else:
        cells = jnp.zeros(room, int).at[jnp.where(missing, rank, room)].set(
            jnp.arange(length), mode="drop"
        )  # fmt: skip
        ordered = jax.tree.map(lambda x: x[cells], steps.xs)
    keys = jax.random.split(key, room)
    empty = {n: jnp.zeros((room, *v.shape[1:]), v.dtype) for n, v in values.items()}

    def block(b: jax.Array, state: tuple) -> tuple:
        carry, drawn = state
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, b * size, size)  # noqa: E731

        def step(carry: Any, inputs: tuple) -> tuple:
            key, x = inputs
            return steps.draw(key, carry, x)

        carry, new = jax.lax.scan(step, carry, (cut(keys), jax.tree.map(cut, ordered)))
        drawn = {
            n: jax.lax.dynamic_update_slice_in_dim(d, new[n].astype(d.dtype), b * size, 0)
            for n, d in drawn.items()
        }
        return carry, drawn

    needed = (jnp.sum(missing) + size - 1) // size
    _, drawn = jax.lax.fori_loop(jnp.zeros((), needed.dtype), needed, block, (carry, empty))
    return {n: _merged(observed, values[n], drawn[n][rank]) for n in values}


def independently(
    steps: Steps, key: Any, carry: Any, values: dict[str, jax.Array], observed: jax.Array
) -> dict[str, jax.Array]:
    """One-step inference: each missing cell drawn from its law given the observed cells alone."""
    keys = jax.random.split(key, observed.shape[0])
    carry = fork(carry, 1)
    drawn = jax.vmap(lambda k, x: steps.draw(k, carry, x)[1])(keys, steps.xs)
    return {n: _merged(observed, values[n], drawn[n]) for n in values}


def _merged(observed: jax.Array, values: jax.Array, drawn: jax.Array) -> jax.Array:
    keep = observed.reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.where(keep, values, drawn.astype(values.dtype))


def absorb(
    steps: Steps, carry: Any, values: dict[str, jax.Array], observed: jax.Array
) -> tuple[Any, jax.Array]:
    """The carry after the observed cells of a sequence, and the log-probability of each."""

    def step(carry: Any, inputs: tuple) -> tuple:
        x, given, counts = inputs
        after, log_prob = steps.absorb(carry, x, given)
        return where(counts, after, carry), jnp.where(counts, log_prob, 0.0)

    return jax.lax.scan(step, carry, (steps.xs, values, observed))
