"""Arrays that a function reads from outside, under double precision."""

import copy
import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
from numpyro.primitives import Messenger

_LIBRARIES = ("jax", "jaxlib", "numpyro", "numpy", "scipy", "flax", "decisionppl")


def with_own_constants(fn: Callable) -> Callable:
    """The same function, reading copies of the NumPy arrays that it reads from outside.

    JAX remembers a NumPy array, by identity, in the precision in which it was first traced. A
    model that was run in single precision could then not be traced in double precision (JAX 0.10:
    "Cannot lower jaxpr with verifier errors"). Enclosed variables, globals and defaults are
    looked through, and so are the functions among them and those inside NumPyro's handlers;
    attributes of other objects are not.

    Args:
        fn: any callable; those that are no Python functions are returned as they are.
    """
    return _copied(fn, {})


def _copied(value: Any, known: dict[int, Any]) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.itemsize == 8:
        return value.copy()
    if isinstance(value, functools.partial):
        parts = [_copied(v, known) for v in value.args]
        named = {n: _copied(v, known) for n, v in value.keywords.items()}
        return functools.partial(_copied(value.func, known), *parts, **named)
    if isinstance(value, tuple | list | dict) and type(value) in (tuple, list, dict):
        if isinstance(value, dict):
            return {n: _copied(v, known) for n, v in value.items()}
        return type(value)(_copied(v, known) for v in value)
    if isinstance(value, Messenger) and value.fn is not None:
        made = copy.copy(value)
        made.fn = _copied(value.fn, known)
        return made
    if not isinstance(value, types.FunctionType):
        return value
    if (value.__module__ or "").split(".")[0] in _LIBRARIES and not value.__closure__:
        return value
    if id(value) in known:
        return known[id(value)]
    cells = tuple(types.CellType() for _ in value.__closure__ or ())
    names = _names(value.__code__)
    world = dict(value.__globals__)
    made = types.FunctionType(
        value.__code__, world, value.__name__, value.__defaults__, cells or None
    )
    known[id(value)] = made  # functions may read each other
    for cell, old in zip(cells, value.__closure__ or (), strict=True):
        try:
            cell.cell_contents = _copied(old.cell_contents, known)
        except ValueError:  # a name that has no value yet
            continue
    for name in names & world.keys():
        world[name] = _copied(world[name], known)
    made.__defaults__ = _copied(value.__defaults__, known)
    made.__kwdefaults__ = _copied(value.__kwdefaults__, known)
    made.__module__ = value.__module__
    return made


def _names(code: types.CodeType) -> set[str]:
    """Global names that a function reads, those of functions defined in it included."""
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))
