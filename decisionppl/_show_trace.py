"""Which site depends on which, read from the program of a model.

Each site's value becomes an input of its own and the parameters of its law (or, of a computed
value, its formula) an output; which outputs an input can reach is read from the jaxpr. Bodies of
NumPyro's `scan` are run for two steps in the open: what the second step takes from the first is a
dependency on the step before. `numpyro.infer.inspect` does the first without functions as values
and without loops.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend.core as jec
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers

from decisionppl._play import _whole
from decisionppl._show_record import Name, Recorder, Seen, is_key
from decisionppl._structure import _moved, flatten


class Ref(NamedTuple):
    """What something depends on: a "site", an "argument", or a site at the step "before"."""

    name: str
    kind: str


class Relations(NamedTuple):
    """The structure of a model.

    Attributes:
        sites: what was seen, by name, in program order.
        arguments: shapes of the model's arguments by name; None where it is no array.
        parents: what each site's law or formula depends on, given all other sites.
        given: what a policy may see, for each action site.
        laws: of random sites at the example arguments, twice, with other values of the sites that
            they depend on; None where a law does not pass through a compiled function.
    """

    sites: dict[str, Seen]
    arguments: dict[str, tuple[int, ...] | None]
    parents: dict[str, tuple[Ref, ...]]
    given: dict[str, tuple[Ref, ...]]
    laws: dict[str, tuple[Any, Any]]


def relations(model: Callable, args: tuple = ()) -> Relations:
    """Sites of a model and what each depends on; False positives are possible, misses are not.

    Args:
        model: a model.
        args: its arguments.
    """
    names = _argument_names(model, len(args))
    error: Exception | None = None
    # numbers may be sizes, which cannot be inputs: then arrays alone are, then nothing is
    for kinds in ((int, float, np.ndarray, jax.Array), (np.ndarray, jax.Array), ()):
        moving = [i for i, a in enumerate(args) if _movable(a, kinds)]
        try:
            return _relations(model, args, names, moving)
        except Exception as failure:
            error = failure
    assert error is not None
    raise error


def _movable(argument: Any, kinds: tuple) -> bool:
    leaves = jax.tree.leaves(argument)
    return bool(leaves) and all(isinstance(x, kinds) and not isinstance(x, bool) for x in leaves)


def _argument_names(model: Callable, count: int) -> list[str]:
    try:
        parameters = [p for p in inspect.signature(model).parameters.values()
                      if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]  # fmt: skip
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters[:count]]
    return names + [f"argument {i + 1}" for i in range(len(names), count)]


def _relations(model: Callable, args: tuple, names: list[str], moving: list[int]) -> Relations:
    def run(values: Mapping[Name, Any] | None, given: list) -> Recorder:
        full = list(args)
        for i, value in zip(moving, given, strict=True):
            full[i] = value
        recorder = Recorder(handlers.seed(model, jax.random.key(0)), values)
        recorder(*full)
        return recorder

    kept: list[Recorder] = []

    def shapes(given: list) -> list:
        kept.append(run(None, given))
        return [x for _, x in kept[0].found.items()]

    example = [jax.tree.map(jnp.asarray, args[i]) for i in moving]
    values = jax.eval_shape(shapes, example)
    seen = kept[0]
    order = list(seen.found)
    widths: list[int] = []

    def rules(*inputs: Any) -> list:
        recorder = run(dict(zip(order, inputs, strict=False)), list(inputs[len(order) :]))
        groups = [recorder.rules[n] for n in order]
        groups += [recorder.given.get(n, []) for n in order]
        widths[:] = [len(g) for g in groups]
        return [x for g in groups for x in g]

    program = flatten(rules, *values, *example)
    inputs = [*order, *((names[i], -1) for i in moving)]
    reached: dict[Name, set[tuple[Name, bool]]] = {n: set() for n in order}
    for source, variables in zip(inputs, program.arguments, strict=True):
        for target, given in _reached(program.jaxpr, variables, order, widths):
            reached[target].add((source, given))

    @jax.jit
    def laws(inputs: list, given: list) -> dict:
        recorder = run(dict(zip(order, inputs, strict=True)), given)
        arrays = {n: law for n, law in recorder.laws.items() if not seen.sites[n, 0].function}
        return {n: _whole_or_none(n, law) for n, law in arrays.items()}

    first, second = (
        laws(jax.tree.map(partial(_filled, value=v), values), example) for v in (0.25, 0.75)
    )
    pairs = {n: (first[n], second[n]) for n in first}
    return _named(seen, order, reached, args, names)._replace(laws=pairs)


def _whole_or_none(name: str, law: dist.Distribution) -> dist.Distribution | None:
    try:
        return _whole(name, law)
    except TypeError:
        return None


def _filled(shape: jax.ShapeDtypeStruct, value: float) -> jax.Array:
    if is_key(shape):
        return jax.random.split(jax.random.key(0), shape.shape)
    whole = not jnp.issubdtype(shape.dtype, jnp.inexact)
    return jnp.full(shape.shape, round(value) if whole else value, shape.dtype)


def _reached(jaxpr: jec.Jaxpr, variables: list, order: list[Name], widths: list[int]) -> list:
    """Which laws or formulas (False) and givens (True) depend on one input."""
    own = set(variables)
    moved = iter(_moved(jaxpr, [v in own for v in jaxpr.invars]))
    hit = [any([next(moved) for _ in range(width)]) for width in widths]
    targets = [*((n, False) for n in order), *((n, True) for n in order)]
    return [t for t, h in zip(targets, hit, strict=True) if h]


def _named(
    seen: Recorder, order: list[Name], reached: dict, args: tuple, names: list[str]
) -> Relations:
    """Both steps of loops under one name."""
    sites = {n: seen.sites[n, step] for n, step in order if not step}
    place = {n: i for i, n in enumerate([*names, *sites])}
    parents: dict[str, set[Ref]] = {n: set() for n in sites}
    given: dict[str, set[Ref]] = {n: set() for n in sites}
    for (name, step), sources in reached.items():
        for (source, when), of_given in sources:
            kind = "argument" if when == -1 else "site"
            if step == 1 and when == 0 and {*sites[source].loops} & {*sites[name].loops}:
                kind = "before"
            if kind != "site" or source != name:
                (given if of_given else parents)[name].add(Ref(source, kind))
    shapes = {
        n: tuple(jnp.shape(a)) if hasattr(a, "dtype") or isinstance(a, int | float) else None
        for n, a in zip(names, args, strict=False)
    }

    def ordered(refs: set[Ref]) -> tuple[Ref, ...]:
        return tuple(sorted(refs, key=lambda r: (r.kind, place[r.name])))

    return Relations(
        sites, shapes, {n: ordered(p) for n, p in parents.items()},
        {n: ordered(g) for n, g in given.items() if sites[n].role == "action"}, {},
    )  # fmt: skip
