"""Padded histories, for engines that refit on all that was logged.

The rows lie in arrays whose length is a power of two, so one compilation serves every
history of up to that many rows.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from decisionppl._inference import Rows
from decisionppl._play import as_key
from decisionppl.inference._likelihood import Latents, check_logged

SMALLEST = 16


class Buffer(NamedTuple):
    """A history with room for more.

    Attributes:
        rows: Rows whose leading axis is the capacity; those beyond `count` are padding.
        count: int32, how many rows were appended; more than the capacity if some were lost.
    """

    rows: Rows
    count: Any

    @property
    def capacity(self) -> int:
        """How many rows there is room for."""
        return self.rows.mask.shape[-1]


def bucket(n: int) -> int:
    """The smallest power of two that holds `n` rows, at least 16.

    Example:
        >>> [bucket(n) for n in (0, 16, 17, 1000)]
        [16, 16, 32, 1024]
    """
    return max(SMALLEST, 1 << (max(n, 1) - 1).bit_length())


def empty(args: tuple, sites: dict[str, Any], capacity: int) -> Buffer:
    """A buffer without rows.

    Args:
        args: the model's arguments of one example row.
        sites: dict from site to the value of one example row: exactly the sites stored.
        capacity: number of rows there is room for.

    Returns:
        Buffer; the padding repeats the example row.
    """

    def repeat(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return jnp.broadcast_to(x, (capacity, *x.shape))

    args, sites = jax.tree.map(repeat, (args, dict(sites)))
    return Buffer(Rows(args, sites, jnp.zeros(capacity, bool)), jnp.zeros((), jnp.int32))


def append(buffer: Buffer, rows: Rows) -> Buffer:
    """Add the rows whose mask is True; pure, under `jit`, `vmap` and `scan`.

    Rows that are masked out take no space and change nothing. Rows that do not fit are
    lost, and `count` says so by exceeding the capacity.

    Args:
        buffer: Buffer of some capacity.
        rows: Rows [rows, ...] with the buffer's arguments and sites.

    Returns:
        Buffer of the same capacity.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import Rows
        >>> full = append(
        ...     empty((), {"y": 0.0}, 4),
        ...     Rows((), {"y": jnp.asarray([1.0, jnp.nan, 3.0])}, jnp.asarray([True, False, True])),
        ... )
        >>> full.rows.sites["y"].tolist(), int(full.count)
        ([1.0, 3.0, 0.0, 0.0], 2)
    """
    capacity = buffer.capacity
    position = buffer.count + jnp.cumsum(rows.mask, dtype=jnp.int32) - 1
    position = jnp.where(rows.mask, position, capacity)  # out of bounds, so dropped

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.asarray(old).at[position].set(jnp.asarray(new, old.dtype), mode="drop")

    args, sites = jax.tree.map(put, (buffer.rows.args, buffer.rows.sites), (rows.args, rows.sites))
    count = buffer.count + jnp.sum(rows.mask, dtype=jnp.int32)
    return Buffer(Rows(args, sites, jnp.arange(capacity) < count), count)


def grown(buffer: Buffer, capacity: int) -> Buffer:
    """The same history with more room; not under `jit`, where shapes are fixed.

    Computed with NumPy, since every new length would otherwise compile its own copy.
    """
    return Buffer(_padded(buffer.rows, capacity), np.asarray(buffer.count))


def filled(buffer: Buffer) -> Rows:
    """The rows, with padding replaced by the first row (still masked out).

    A likelihood that is finite on the data is then finite on the padding, and no NaN of the
    padding reaches a gradient through `0 * nan`.
    """

    def fill(x: jax.Array) -> jax.Array:
        keep = buffer.rows.mask.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(keep, x, x[:1])

    args, sites = jax.tree.map(fill, (buffer.rows.args, buffer.rows.sites))
    return Rows(args, sites, buffer.rows.mask)


def poisoned(buffer: Buffer, worlds: Any) -> Any:
    """NaN in place of worlds learned from a buffer that lost rows, so that it shows."""

    def spoil(x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return jnp.where(buffer.count > buffer.capacity, jnp.asarray(jnp.nan, x.dtype), x)

    return jax.tree.map(spoil, worlds)


def is_traced(tree: Any) -> bool:
    """Whether any leaf is an abstract value of a surrounding `jit`, `vmap`, `scan` or `grad`."""
    return any(isinstance(x, Tracer) for x in jax.tree.leaves(tree))


def declared_sites(latents: Latents, sites: Iterable[str] | None) -> dict[str, Any]:
    """One example row of the sites that will be logged.

    Raises:
        ValueError: a name the model does not have, or sites whose likelihood needs another.
    """
    if sites is None:
        return dict(latents.sites)
    names = [sites] if isinstance(sites, str) else list(sites)
    unknown = sorted(set(names) - set(latents.sites))
    if unknown:
        raise ValueError(
            f"sites names {unknown}, which cannot be logged; the model has {sorted(latents.sites)}."
        )
    kept = {n: latents.sites[n] for n in names}
    world = jax.jit(latents.constrain)(latents.prototype)
    check_logged(latents.model, latents.args, kept, world)
    return kept


def check_count(name: str, value: Any) -> int:
    """A positive int, or a ValueError that names the setting."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}: expected a positive int, got {value!r}.")
    return int(value)


def check_capacity(capacity: int | None) -> int:
    """The capacity a belief starts with."""
    return SMALLEST if capacity is None else check_count("capacity", capacity)


def check_room(buffer: Buffer) -> None:
    """Refuse a belief that lost rows under `jit`; nothing is checked while tracing."""
    if is_traced(buffer.count) or np.ndim(buffer.count):
        return
    if int(buffer.count) > buffer.capacity:
        raise _too_many(int(buffer.count), buffer.capacity)


def _too_many(count: int, capacity: int) -> ValueError:
    return ValueError(
        f"{count} rows do not fit into a history of capacity {capacity}. Build the engine with "
        f"capacity={bucket(count)} or more (outside of jit, capacity=None grows by itself)."
    )


def matched(buffer: Buffer, rows: Rows) -> Rows:
    """Rows with exactly the buffer's arguments and sites, checked.

    Raises:
        ValueError: sites or arguments that differ from what the engine was built for.
    """
    stored = buffer.rows.sites
    missing, extra = sorted(set(stored) - set(rows.sites)), sorted(set(rows.sites) - set(stored))
    if missing:
        raise ValueError(
            f"rows lack site {missing[0]!r}, which the history keeps. Log it in every row, or "
            f"build the engine with sites={sorted(set(stored) - set(missing))}, the sites that "
            "will be logged."
        )
    if extra:
        raise ValueError(
            f"rows hold site {extra[0]!r}, which the history does not keep: it keeps "
            f"{sorted(stored)}. Leave it out of the rows, or build the engine with it in sites=."
        )
    if jax.tree.structure(rows.args) != jax.tree.structure(buffer.rows.args):
        raise ValueError(
            f"rows have {len(rows.args)} arguments of structure {jax.tree.structure(rows.args)}; "
            f"the engine was built with example arguments of structure "
            f"{jax.tree.structure(buffer.rows.args)}."
        )
    names = [f"args{jax.tree_util.keystr(p)}" for p, _ in jax.tree.leaves_with_path(rows.args)]
    names += [f"site {n!r}" for n in sorted(stored)]
    old = jax.tree.leaves((buffer.rows.args, stored))
    new = jax.tree.leaves((rows.args, rows.sites))
    for name, have, got in zip(names, old, new, strict=True):
        if np.shape(got)[1:] != have.shape[1:]:
            raise ValueError(
                f"{name} of the rows: expected shape [rows, *{list(have.shape[1:])}], as in the "
                f"example the engine was built with, got {list(np.shape(got))}."
            )
        if _inexact(got) and not _inexact(have):
            raise ValueError(
                f"{name} of the rows is {jnp.result_type(got)}, but the example the engine was "
                f"built with is {have.dtype}, so values would be cut off. Build the engine with "
                "an example of the type that is logged (0.0 in place of 0)."
            )
    return rows


def _inexact(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _padded(rows: Rows, length: int) -> Rows:
    """Rows as NumPy arrays of the given length; the padding is masked out."""

    def pad(x: Any) -> np.ndarray:
        x = np.asarray(x)
        return np.concatenate([x, np.zeros((length - len(x), *x.shape[1:]), x.dtype)])

    return jax.tree.map(pad, rows)


def updater(refit: Callable, capacity: int | None, eager: Callable) -> Callable:
    """The `update` of an engine that refits on its whole history.

    While tracing, it appends and refits, and leaves the belief as it is if no row is valid.
    Otherwise it hands over to `eager`, always with as many rows as the buffer holds, so that
    one compilation serves any number of rows, and lets the buffer grow if `capacity` is None.

    Args:
        refit: `(key, belief) -> belief`, pure, reading `belief.buffer`.
        capacity: as given by the user.
        eager: `(key, belief, rows) -> belief`, the compiled append and refit.

    Returns:
        `(key, belief, rows) -> belief`.
    """

    def traced(key: jax.Array, belief: Any, rows: Rows) -> Any:
        if capacity is None:
            raise ValueError(
                "a history cannot grow inside jit, vmap or scan, where shapes are fixed: build "
                "the engine with capacity=, the largest number of rows it will ever hold."
            )
        if rows.mask.shape[0] > belief.buffer.capacity:
            raise _too_many(rows.mask.shape[0], belief.buffer.capacity)
        longer = belief._replace(buffer=append(belief.buffer, rows))
        return jax.lax.cond(jnp.any(rows.mask), lambda: refit(key, longer), lambda: belief)

    def update(key: jax.Array, belief: Any, rows: Rows) -> Any:
        key, rows = as_key(key), matched(belief.buffer, rows)
        if is_traced((key, belief, rows)):
            return traced(key, belief, rows)
        mask = np.asarray(rows.mask)
        if not mask.any():
            return belief
        check_room(belief.buffer)
        count = int(belief.buffer.count) + int(mask.sum())
        if count > belief.buffer.capacity:
            if capacity is not None:
                raise _too_many(count, belief.buffer.capacity)
            belief = belief._replace(buffer=grown(belief.buffer, bucket(count)))
        # the buffer's dtypes too, since another one would compile another copy
        rows = jax.tree.map(
            lambda x, old: np.asarray(x)[mask].astype(old.dtype), rows, belief.buffer.rows
        )
        return eager(key, belief, _padded(rows, belief.buffer.capacity))

    return update
