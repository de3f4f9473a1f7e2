"""Worlds and data simulated from a model, as the checks of beliefs need them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._inference import Rows
from decisionppl._play import Trace, is_latent, play
from decisionppl._roles import ROLES, role_of
from decisionppl._structure import dependent_outputs
from decisionppl.testing._check import check_count

World = Mapping[str, Any]


class Simulator(NamedTuple):
    """How worlds and rows are drawn from a model.

    Attributes:
        model: a one-round model.
        args: its arguments, every leaf [rows, ...].
        num_rows: how many rows a data set has.
        latents: dict from latent site to an example value.
        data: names of the sites that are logged, actions included.
    """

    model: Callable
    args: tuple
    num_rows: int
    latents: dict[str, jax.Array]
    data: tuple[str, ...]

    @property
    def example(self) -> tuple:
        """The arguments of the first row."""
        return jax.tree.map(lambda x: x[0], self.args)

    def world(self, key: Any) -> dict[str, jax.Array]:
        """One draw from the prior."""
        trace = play(self.model, key)(*self.example)
        return {n: jnp.asarray(trace[n]["value"]) for n in self.latents}

    def rows(self, key: Any, world: World) -> Rows:
        """Data of a world, the actions drawn from the logging policy."""

        def row(key: Any, args: tuple) -> dict[str, jax.Array]:
            trace = play(self.model, key, world=world)(*args)
            return {n: jnp.asarray(trace[n]["value"]) for n in self.data}

        sites = jax.vmap(row)(jax.random.split(key, self.num_rows), self.args)
        return Rows(self.args, sites, jnp.ones(self.num_rows, bool))


def simulator(
    model: Callable, args: tuple, num_rows: int | None, data: Iterable[str] | None
) -> Simulator:
    """Analyse a model: what is unknown, what is logged, how many rows.

    Args:
        model: a one-round model.
        args: its arguments, every leaf [rows, ...]; `()` if it has none.
        num_rows: rows of a data set; None takes it from `args`, or 1.
        data: names of the logged sites, to which actions always belong; None takes all random
            sites that carry a role.

    Raises:
        ValueError: row counts that disagree, unknown sites, no data, or a latent whose prior
            depends on the row.
        TypeError: `args` that is no tuple.
    """
    if not callable(model):
        raise TypeError(f"model: expected a callable with NumPyro sites, got {model!r}.")
    if not isinstance(args, tuple):
        raise TypeError(f"args: expected a tuple of arrays [rows, ...], got {type(args).__name__}.")
    args = jax.tree.map(jnp.asarray, args)
    count = _row_count(args, num_rows)
    trace = play(model, 0)(*jax.tree.map(lambda x: x[0], args))
    names = _data_names(trace, data)
    latents = {n: s["value"] for n, s in trace.items() if is_latent(s) and n not in names}
    functions = sorted(n for n, v in latents.items() if callable(v))
    if functions:
        raise TypeError(
            f"latent site {functions[0]!r} holds a function, which has no rank. Check quantities "
            "of it instead: write the model with its values at chosen points as sites."
        )
    fixed = [n for n, s in trace.items() if s["type"] == "sample" and s["is_observed"]]
    if fixed:
        raise TypeError(
            f"site {fixed[0]!r} has obs= in the model, so no data can be simulated for it. Leave "
            "obs= out, or give the model None in its place."
        )
    made = Simulator(model, args, count, {n: jnp.asarray(v) for n, v in latents.items()}, names)
    _check_shared(made)
    return made


def _row_count(args: tuple, num_rows: int | None) -> int:
    leaves = jax.tree.leaves(args)
    counts: set[Any] = {x.shape[0] if x.ndim else None for x in leaves}
    if num_rows is not None:
        counts.add(check_count("num_rows", num_rows))
    if None in counts or len(counts) > 1:
        raise ValueError(
            f"args: expected one leading axis [rows, ...] in every array, got shapes "
            f"{[x.shape for x in leaves]} with num_rows={num_rows}. Arguments shared by all rows "
            "are repeated: jnp.broadcast_to(x, (rows, *x.shape))."
        )
    return counts.pop() if counts else 1


def _data_names(trace: Trace, data: Iterable[str] | None) -> tuple[str, ...]:
    random = [n for n, s in trace.items() if s["type"] == "sample"]
    if data is None:
        names = [n for n in random if role_of(trace[n]) in ROLES]
    else:
        names = [data] if isinstance(data, str) else list(data)
        unknown = sorted(set(names) - set(random))
        if unknown:
            raise ValueError(f"data names {unknown}; the random sites of the model are {random}.")
        # what was decided is always known
        names += [n for n in random if role_of(trace[n]) == "action" and n not in names]
    if not any(role_of(trace[n]) != "action" for n in names):
        raise ValueError(
            f"no data: none of the random sites {random} carries a role. Declare what is seen "
            'with dp.outcome("name", distribution), or name the sites through data=.'
        )
    return tuple(names)


def _check_shared(parts: Simulator) -> None:
    """A world is drawn once and shared by all rows."""
    if parts.num_rows == 1 or not jax.tree.leaves(parts.args) or not parts.latents:
        return

    def world(args: tuple) -> dict[str, jax.Array]:
        trace = play(parts.model, jax.random.key(0))(*args)
        return {n: trace[n]["value"] for n in sorted(parts.latents)}

    for name, moves in zip(
        sorted(parts.latents), dependent_outputs(world, 0, parts.example), strict=True
    ):
        if moves:
            raise ValueError(
                f"latent site {name!r}: its prior depends on the model's arguments, so it differs "
                "between rows. A world is shared by all rows; make a per-row unknown an outcome, "
                "or give the whole data set as one row."
            )


def scalars(world: World) -> list[str]:
    """Names of all scalar entries of a world, such as "w[0,1]", in the order of `flat`."""
    names = []
    for name in sorted(world):
        shape = np.shape(world[name])
        names += [f"{name}[{','.join(map(str, i))}]" if i else name for i in np.ndindex(*shape)]
    return names


def flat(world: World) -> jax.Array:
    """All scalar entries of a world as one float array [scalars]."""
    parts = [jnp.ravel(world[n]).astype(float) for n in sorted(world)]
    return jnp.concatenate(parts) if parts else jnp.zeros(0)
