"""Split a loop body into what can be computed for many rounds at once and the rest.

A round draws contexts, keys and noise that do not depend on what has been learned. One at a
time, on a CPU, they cost many times more than the decision itself; together they vectorise.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jec
import numpy as np
from jax.core import eval_jaxpr

from decisionppl._structure import Program

# results of these are made again from their input rather than kept for every round
_EXPANDING = {"broadcast_in_dim", "convert_element_type", "reshape", "squeeze", "copy"}


class Split(NamedTuple):
    """A program in two parts.

    Attributes:
        early: `(*early inputs) -> kept`, needs only the inputs marked early.
        late: `(kept, *all inputs) -> outputs` of the whole program.
        kept_bytes: size of what is kept per call of `early`.
    """

    early: Callable
    late: Callable
    kept_bytes: int


def _variables(atoms: Sequence[Any]) -> list:
    return [v for v in atoms if isinstance(v, jec.Var)]


def split(program: Program, is_early: Sequence[bool]) -> Split:
    """Split a flat program by which of its inputs are known early.

    Args:
        program: from `_structure.flatten`.
        is_early: per input leaf.

    Returns:
        A `Split`. What depends on no input at all is computed in both parts.
    """
    jaxpr = program.jaxpr
    inputs = {v: known for v, known in zip(jaxpr.invars, is_early, strict=True)}
    maker: dict[Any, Any] = {}
    late: set = {v for v, known in inputs.items() if not known}
    moving: set = {v for v, known in inputs.items() if known}  # early, and not a constant
    for eqn in jaxpr.eqns:
        variables = _variables(eqn.invars)
        maker.update(dict.fromkeys(eqn.outvars, eqn))
        if any(v in late for v in variables):
            late.update(eqn.outvars)
        elif any(v in moving for v in variables):
            moving.update(eqn.outvars)

    kept: dict[Any, None] = {}
    again: dict[int, Any] = {}  # equations that the late part evaluates, by identity

    def need(v: Any) -> None:
        """Make a variable available to the late part."""
        if v not in maker or v in kept:
            return
        eqn = maker[v]
        if v in moving and eqn.primitive.name not in _EXPANDING:
            kept[v] = None
            return
        if id(eqn) not in again:
            again[id(eqn)] = eqn
            for u in _variables(eqn.invars):
                need(u)

    for v in _variables(jaxpr.outvars):
        need(v)
    residuals = list(kept)
    order = [e for e in jaxpr.eqns if id(e) in again]
    names = jaxpr.debug_info.with_unknown_names()
    first = jaxpr.replace(outvars=residuals, debug_info=names)
    second = jaxpr.replace(invars=[*residuals, *jaxpr.invars], eqns=order, debug_info=names)
    holes = [None if known else v.aval for v, known in inputs.items()]

    def early(*values: Any) -> list:
        given = iter(values)
        # late inputs are not read; anything of their shape will do
        leaves = [next(given) if h is None else _blank(h) for h in holes]
        return eval_jaxpr(first, program.consts, *leaves)

    def rest(kept: Sequence, *values: Any) -> list:
        return eval_jaxpr(second, program.consts, *kept, *values)

    size = sum(int(np.prod(v.aval.shape)) * v.aval.dtype.itemsize for v in residuals)
    return Split(early, rest, size)


def _blank(aval: Any) -> Any:
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), aval.shape)
    return jax.numpy.zeros(aval.shape, aval.dtype)
