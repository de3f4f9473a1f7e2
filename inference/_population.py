"""A finite population, seen in part: its history, and worlds in which all of it is known."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl.inference._generate import generate, independently
from decisionppl.inference._steps import Steps, at, steps_of


class History(NamedTuple):
    """What was seen of a population of `length` units, per arm if there are arms.

    Attributes:
        args: per-round arguments of the sequence model, leaves [length, ...]; those of rounds
            from `count` on are not known yet if `contexts` draws them.
        values: dict from data site to [length, ...] ([length, arms, ...] with arms).
        observed: bool [length] or [length, arms], which cells were seen.
        carry: the sequence model's, after all that was seen.
        count: int32, rounds so far; more than the capacity if some were lost.
    """

    args: tuple
    values: dict[str, jax.Array]
    observed: jax.Array
    carry: Any
    count: jax.Array

    @property
    def capacity(self) -> int:
        """How many rounds there is room for."""
        return self.observed.shape[0]


class Population(NamedTuple):
    """A sequence model with its arguments, taken apart.

    Attributes:
        model: the sequence model.
        args: its arguments.
        per_round: which of them have one entry per round.
        arms: None, or what distinguishes the arms: a tuple of the leading arguments of the
            model, leaves [arms, ...] (empty if they differ in nothing but their data).
        num_arms: number of arms; 1 without.
        length: number of rounds.
        sites: dict from data site to shape and dtype of one observation of one arm.
    """

    model: Callable
    args: tuple
    per_round: tuple[bool, ...]
    arms: tuple | None
    num_arms: int
    length: int
    sites: dict[str, jax.ShapeDtypeStruct]

    def round_args(self) -> tuple:
        """The arguments that have one entry per round."""
        return tuple(a for a, p in zip(self.args, self.per_round, strict=True) if p)

    def steps(self, round_args: tuple, arm: tuple) -> Steps:
        """The steps of one arm's sequence."""
        given = iter(round_args)
        args = [next(given) if p else a for a, p in zip(self.args, self.per_round, strict=True)]
        return steps_of(self.model, *arm, *args)

    def each(self, fn: Callable, *trees: Any) -> Any:
        """`fn(arm arguments, *trees)` for all arms, mapped over axis 0 of the trees."""
        if self.arms is None:
            return fn((), *trees)
        # with arms that differ in nothing there may be no tree to map over
        count = jnp.arange(self.num_arms)
        return jax.vmap(lambda _, arm, *rest: fn(arm, *rest))(count, self.arms, *trees)


def population(model: Callable, args: tuple, arms: Any = None) -> Population:
    """Check a sequence model against its arguments."""
    distinct: tuple | None = None
    num_arms = 1
    if isinstance(arms, bool) or (isinstance(arms, int | np.integer) and arms < 1):
        raise ValueError(f"arms: expected a number of at least 1 or features, got {arms!r}.")
    if isinstance(arms, int | np.integer):
        distinct, num_arms = (), int(arms)
    elif arms is not None:
        distinct = arms if isinstance(arms, tuple) else (arms,)
        distinct = jax.tree.map(jnp.asarray, distinct)
        sizes = {x.shape[:1] for x in jax.tree.leaves(distinct)}
        if len(sizes) != 1 or () in sizes:
            raise ValueError(
                "arms: expected the number of arms, or features with one leading axis [arms, "
                f"...], got leading axes {sorted(sizes)}."
            )
        num_arms = sizes.pop()[0]
    first = jax.tree.map(lambda x: x[0], distinct) or ()
    steps = steps_of(model, *first, *args)
    per_round = tuple(_has_axis(a, steps.length) for a in args)
    return Population(model, args, per_round, distinct, num_arms, steps.length, steps.sites)


def _has_axis(arg: Any, length: int) -> bool:
    leaves = jax.tree.leaves(arg)
    return bool(leaves) and all(np.ndim(x) and np.shape(x)[0] == length for x in leaves)


def nothing(whole: Population) -> History:
    round_args = jax.tree.map(jnp.asarray, whole.round_args())
    shape = (whole.length,) if whole.arms is None else (whole.length, whole.num_arms)
    values = {n: jnp.zeros((*shape, *s.shape), s.dtype) for n, s in whole.sites.items()}
    carry = whole.each(lambda arm: whole.steps(round_args, arm).init)
    return History(round_args, values, jnp.zeros(shape, bool), carry, jnp.zeros((), jnp.int32))


def with_round(whole: Population, belief: History, args: tuple, sites: Any, arm: Any) -> History:
    """The history after the outcome of one more round."""
    t = belief.count
    table = jax.tree.map(
        lambda b, x: jax.lax.dynamic_update_index_in_dim(b, jnp.asarray(x, b.dtype), t, 0),
        belief.args, args,
    )  # fmt: skip
    values = {n: jnp.asarray(sites[n], s.dtype) for n, s in whole.sites.items()}
    if whole.arms is None:
        steps = whole.steps(table, ())
        carry, _ = steps.absorb(belief.carry, at(steps.xs, t), values)
        cell: Any = t
    else:
        mine = jax.tree.map(lambda x: x[arm], whole.arms)
        steps = whole.steps(table, mine)
        before = jax.tree.map(lambda c: c[arm], belief.carry)
        after, _ = steps.absorb(before, at(steps.xs, t), values)
        carry = jax.tree.map(lambda c, x: c.at[arm].set(x), belief.carry, after)
        cell = (t, arm)
    return History(
        table, {n: v.at[cell].set(values[n], mode="drop") for n, v in belief.values.items()},
        belief.observed.at[cell].set(True, mode="drop"), carry, t + 1,
    )  # fmt: skip


def worlds_of(
    whole: Population,
    key: Any,
    belief: History,
    num_worlds: int,
    contexts: Callable | None = None,
    one_step: bool = False,
) -> tuple[tuple, dict[str, jax.Array]]:
    """Per-round arguments and completed tables, each with a leading axis [worlds]."""
    seen = belief.count
    lost = seen > belief.capacity

    def world(key: Any) -> tuple[tuple, dict[str, jax.Array]]:
        context_key, cell_key = jax.random.split(key)
        table = belief.args
        if contexts is not None:
            keys = jax.random.split(context_key, whole.length)
            drawn = jax.vmap(contexts)(keys, jnp.arange(whole.length))
            drawn = drawn if isinstance(drawn, tuple) else (drawn,)
            past = jnp.arange(whole.length) < seen
            table = jax.tree.map(
                lambda b, x: jnp.where(past.reshape(-1, *(1,) * (b.ndim - 1)), b, x),
                belief.args, drawn,
            )  # fmt: skip
        keys = jax.random.split(cell_key, whole.num_arms)
        keys = keys[0] if whole.arms is None else keys
        axis = 0 if whole.arms is None else 1
        cells = {n: jnp.moveaxis(v, axis, 0) for n, v in belief.values.items()} if axis else (
            belief.values)  # fmt: skip
        observed = belief.observed.T if axis else belief.observed

        def filled(arm: tuple, key: Any, carry: Any, values: Any, observed: Any) -> Any:
            fill = independently if one_step else generate
            return fill(whole.steps(table, arm), key, carry, values, observed)

        full = whole.each(filled, keys, belief.carry, cells, observed)
        full = {n: jnp.moveaxis(v, 0, axis) if axis else v for n, v in full.items()}
        full = {n: _spoiled(v, lost) for n, v in full.items()}
        return table, full

    return jax.vmap(world)(jax.random.split(key, num_worlds))


def complete(
    whole: Population, key: Any, contexts: Callable | None = None
) -> tuple[tuple, dict[str, jax.Array]]:
    """One table drawn from the model, nothing having been seen."""
    drawn = worlds_of(whole, key, nothing(whole), 1, contexts)
    return jax.tree.map(lambda x: x[0], drawn)


def _spoiled(x: jax.Array, lost: jax.Array) -> jax.Array:
    """NaN (or the least integer) where rounds beyond the population were given, so it shows."""
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    bad = jnp.nan if floating else (0 if x.dtype == bool else jnp.iinfo(x.dtype).min)
    return jnp.where(lost, jnp.asarray(bad, x.dtype), x)
