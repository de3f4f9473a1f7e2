"""What a program says about its own structure, read from its jaxpr.

Engines exploit structure (a likelihood that is linear in the latents, arms that do not
share parameters) only where it is proven from the program, for all values of all inputs. A
proof that is not found costs speed, never correctness.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jec
import numpy as np
from jax.core import eval_jaxpr

_CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call"}

# Elementwise functions keep the leading axis of a latent where it is.
_ELEMENTWISE = {
    "abs", "convert_element_type", "copy", "exp", "exp2", "expm1", "integer_pow", "log", "log1p",
    "logistic", "neg", "sqrt", "rsqrt", "square", "tanh", "sin", "cos", "erf", "sign", "cbrt",
}  # fmt: skip

# Smooth functions of what they are given, and of all of it where more is given.
_SMOOTH = {
    "acos", "add", "add_any", "asinh", "atan", "broadcast_in_dim", "cbrt", "cholesky",
    "concatenate", "convert_element_type", "copy", "cos", "cosh", "cumsum", "digamma", "div",
    "dot_general", "dynamic_slice", "dynamic_update_slice", "erf", "erfc", "exp", "exp2",
    "expand_dims", "expm1", "gather", "integer_pow", "lgamma", "log", "log1p", "logistic", "mul",
    "neg", "pad", "pow", "reduce_prod", "reduce_sum", "reshape", "rev", "rsqrt", "scatter",
    "scatter-add", "scatter-mul", "select_n", "sin", "sinh", "slice", "split", "sqrt", "square",
    "squeeze", "stack", "sub", "tan", "tanh", "transpose", "triangular_solve",
}  # fmt: skip
# inputs that choose what is taken rather than being taken
_CHOOSING: dict[str, Callable[[int], range | list[int]]] = {
    "select_n": lambda n: [0],
    "gather": lambda n: [1],
    "dynamic_slice": lambda n: range(1, n),
    "dynamic_update_slice": lambda n: range(2, n),
    "scatter": lambda n: [1],
    "scatter-add": lambda n: [1],
    "scatter-mul": lambda n: [1],
}

_RESHAPES = {"broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze"}


class Program(NamedTuple):
    """A flat jaxpr (no nested calls) with the leaf counts of each argument."""

    jaxpr: jec.Jaxpr
    consts: list
    arguments: list[list[jec.Var]]  # input variables per argument of the function


def _inner(eqn: Any) -> Any:
    closed = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
    return closed if hasattr(closed, "consts") else None


def _bind(eqn: Any, values: Sequence) -> Sequence:
    """Evaluate one equation."""
    bind = eqn.primitive.get_bind_params(eqn.params)
    # older JAX returns (functions, params), newer JAX params alone
    functions, params = bind if isinstance(bind, tuple) else ((), bind)
    out = eqn.primitive.bind(*functions, *values, **params)
    return out if eqn.primitive.multiple_results else [out]


def _interpret(jaxpr: jec.Jaxpr, consts: Sequence, args: Sequence) -> list:
    """Evaluate with nested calls opened up, so that tracing gives one flat program."""
    env: dict[Any, Any] = {}

    def read(v: Any) -> Any:
        return v.val if isinstance(v, jec.Literal) else env[v]

    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        values = [read(v) for v in eqn.invars]
        inner = _inner(eqn) if eqn.primitive.name in _CALLS else None
        if inner is not None:
            out = _interpret(inner.jaxpr, inner.consts, values)
        else:
            out = _bind(eqn, values)
        env.update(zip(eqn.outvars, out, strict=True))
    return [read(v) for v in jaxpr.outvars]


def flatten(fn: Callable, *args: Any) -> Program:
    """Trace `fn(*args)` into one flat program."""
    nested = jax.make_jaxpr(fn)(*args)
    leaves = jax.tree.leaves(args)
    flat = jax.make_jaxpr(lambda *x: _interpret(nested.jaxpr, nested.consts, x))(*leaves)
    split = iter(flat.jaxpr.invars)
    arguments = [[next(split) for _ in jax.tree.leaves(a)] for a in args]
    return Program(flat.jaxpr, flat.consts, arguments)


def _used(jaxpr: jec.Jaxpr) -> set:
    """Variables that the outputs depend on."""
    live = {v for v in jaxpr.outvars if isinstance(v, jec.Var)}
    for eqn in reversed(jaxpr.eqns):
        if any(v in live for v in eqn.outvars):
            live.update(v for v in eqn.invars if isinstance(v, jec.Var))
    return live


def depends(fn: Callable, argument: int, *args: Any) -> bool:
    """Whether `fn(*args)` can depend on its argument number `argument`; False is a proof."""
    return any(dependent_outputs(fn, argument, *args))


def dependent_outputs(fn: Callable, argument: int, *args: Any) -> list[bool]:
    """Per output leaf of `fn(*args)`: whether it can depend on an argument; False is a proof."""
    program = flatten(fn, *args)
    moving = set(program.arguments[argument])
    return _moved(program.jaxpr, [v in moving for v in program.jaxpr.invars])


def _moved(jaxpr: jec.Jaxpr, inputs: Sequence[bool]) -> list[bool]:
    """Per output: whether it can depend on one of the inputs that are True."""
    moving = {v for v, m in zip(jaxpr.invars, inputs, strict=True) if m}

    def of(variables: Sequence) -> list[bool]:
        return [isinstance(v, jec.Var) and v in moving for v in variables]

    for eqn in jaxpr.eqns:
        flags = of(eqn.invars)
        if any(flags):
            moved = _moved_by(eqn, flags)
            moving.update(v for v, m in zip(eqn.outvars, moved, strict=True) if m)
    return of(jaxpr.outvars)


def _moved_by(eqn: Any, flags: list[bool]) -> list[bool]:
    """The same for one equation, looking into loops and branches."""
    name, params = eqn.primitive.name, eqn.params
    if name in _CALLS and _inner(eqn) is not None:
        return _moved(_inner(eqn).jaxpr, flags)
    if name == "scan":
        first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
        body, width = params["jaxpr"].jaxpr, params["num_carry"]
        carry, out = flags[first:last], []
        while True:
            out = _moved(body, [*flags[:first], *carry, *flags[last:]])
            grown = [a or b for a, b in zip(carry, out[:width], strict=True)]
            if grown == carry:
                return [*carry, *out[width:]]
            carry = grown
    if name == "cond" and not flags[0]:
        branches = [_moved(b.jaxpr, flags[1:]) for b in params["branches"]]
        return [any(moved) for moved in zip(*branches, strict=True)]
    return [True] * len(eqn.outvars)


def _is_smooth(fn: Callable, *args: Any) -> bool:
    """Whether `fn` is built from smooth functions of its first argument; True is a proof."""
    program = flatten(fn, *args)
    live = _used(program.jaxpr)
    tainted = set(program.arguments[0])
    for eqn in program.jaxpr.eqns:
        inputs = [isinstance(v, jec.Var) and v in tainted for v in eqn.invars]
        if not any(inputs) or not any(v in live for v in eqn.outvars):
            continue
        tainted.update(eqn.outvars)
        name = eqn.primitive.name
        # which entries are taken must not depend on the argument
        chooses = name in _CHOOSING and any(inputs[i] for i in _CHOOSING[name](len(inputs)))
        floats = all(np.issubdtype(np.dtype(_dtype(v)), np.floating) for v in eqn.outvars)
        if name not in _SMOOTH or chooses or not floats:
            return False
    return True


def is_affine(fn: Callable, *args: Any) -> bool:
    """Whether `fn` is affine in its first argument; True is a proof.

    A derivative that does not depend on the argument is not enough: steps and kinks have
    constant derivatives too.
    """
    return _is_smooth(fn, *args) and not depends(jax.jacfwd(fn), 0, *args)


def is_quadratic(fn: Callable, *args: Any) -> bool:
    """Whether the scalar `fn` is quadratic in its first argument; True is a proof."""
    return _is_smooth(fn, *args) and is_affine(jax.grad(fn), *args)


def _row_index(eqn: Any, operand: Any) -> Any:
    """The index variable when an equation takes one whole row of `operand`, else None."""
    shape = operand.aval.shape
    if not shape or eqn.invars[0] is not operand or operand in eqn.invars[1:]:
        return None
    whole = (1, *shape[1:])
    if eqn.primitive.name == "dynamic_slice":
        return eqn.invars[1] if eqn.params["slice_sizes"] == whole else None
    if eqn.primitive.name == "gather":
        numbers = eqn.params["dimension_numbers"]
        single = (
            numbers.start_index_map == (0,)
            and not numbers.operand_batching_dims
            and eqn.params["slice_sizes"] == whole
            and _size(eqn.invars[1]) == 1
        )
        return eqn.invars[1] if single else None
    return None


class _Names:
    """Hash-consing: equal expressions get equal names, so equal indices are recognised."""

    def __init__(self, program: Program) -> None:
        self.of: dict[Any, Any] = {}
        self.table: dict[Any, int] = {}
        for v in (*program.jaxpr.invars, *program.jaxpr.constvars):
            self.of[v] = self._number(("input", id(v)))

    def _number(self, expression: Any) -> int:
        return self.table.setdefault(expression, len(self.table))

    def __getitem__(self, v: Any) -> int:
        if isinstance(v, jec.Literal):
            return self._number(("literal", str(v.val)))
        return self.of[v]

    def record(self, eqn: Any) -> None:
        name = eqn.primitive.name
        if name in _RESHAPES and _size(eqn.outvars[0]) == 1:
            self.of[eqn.outvars[0]] = self[eqn.invars[0]]
            return
        inputs = tuple(self[v] for v in eqn.invars)
        for i, v in enumerate(eqn.outvars):
            self.of[v] = self._number((name, str(eqn.params), inputs, i))


class RowProgram(NamedTuple):
    """A function that reads one row of its first argument's leaves.

    Attributes:
        index: `(*args[1:]) -> index` of that row; it may depend on all other arguments.
        local: the function with that row itself (leaves without the leading axis) in place
            of its first argument; output leaves as a list. No gather is left, so none has
            to be transposed into a scatter by a derivative.
    """

    index: Callable
    local: Callable


def selected_row(fn: Callable, *args: Any) -> RowProgram | None:
    """The row of the first argument's leaves that `fn` reads, if it reads only one.

    Args:
        fn: a function; all leaves of its first argument have a common leading axis.
        *args: example arguments.

    Returns:
        A `RowProgram`, or None when no proof was found that every leaf is read at one and
        the same row.
    """
    program = flatten(fn, *args)
    live, names = _used(program.jaxpr), _Names(program)
    whole = {v for v in program.arguments[0] if v in live}
    tainted = set(whole)  # depends on the first argument
    index: Any = None
    reads: set[int] = set()
    for i, eqn in enumerate(program.jaxpr.eqns):
        names.record(eqn)
        inputs = [v for v in eqn.invars if isinstance(v, jec.Var)]
        if not any(v in tainted for v in inputs) or not any(v in live for v in eqn.outvars):
            continue
        tainted.update(eqn.outvars)
        touched = [v for v in inputs if v in whole]
        if not touched:
            continue
        if eqn.primitive.name in _ELEMENTWISE and len(eqn.invars) == 1:
            whole.update(eqn.outvars)
            continue
        row = _row_index(eqn, touched[0]) if len(touched) == 1 else None
        if row is None or row in tainted:
            return None
        if index is not None and names[index] != names[row]:
            return None
        index = row
        reads.add(i)
    if index is None or any(v in whole for v in program.jaxpr.outvars):
        return None
    return RowProgram(_reader(program, index, args[0]), _local(program, live, reads))


def _reader(program: Program, index: Any, first: Any) -> Callable:
    if isinstance(index, jec.Literal):
        value = index.val
        return lambda *rest: jax.numpy.asarray(value).reshape(())
    sliced = program.jaxpr.replace(
        outvars=[index], debug_info=program.jaxpr.debug_info.with_unknown_names()
    )
    live = _used(sliced)
    sliced = sliced.replace(eqns=[e for e in sliced.eqns if any(v in live for v in e.outvars)])

    def read(*rest: Any) -> jax.Array:
        leaves = jax.tree.leaves((first, *rest))
        return eval_jaxpr(sliced, program.consts, *leaves)[0].reshape(())

    return read


def _local(program: Program, live: set, reads: set[int]) -> Callable:
    """The program with each reading of a row replaced by the row that it is given."""
    jaxpr = program.jaxpr

    def local(row: Any, *rest: Any) -> list[jax.Array]:
        given = [x[None] for x in jax.tree.leaves(row)] + jax.tree.leaves(rest)
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, program.consts, strict=True))
        env.update(zip(jaxpr.invars, given, strict=True))

        def value(v: Any) -> Any:
            return v.val if isinstance(v, jec.Literal) else env[v]

        for i, eqn in enumerate(jaxpr.eqns):
            if not any(v in live for v in eqn.outvars):
                continue
            if i in reads:
                shape = eqn.outvars[0].aval.shape  # pyright: ignore
                env[eqn.outvars[0]] = value(eqn.invars[0]).reshape(shape)
                continue
            env.update(zip(eqn.outvars, _bind(eqn, [value(v) for v in eqn.invars]), strict=True))
        return [value(v) for v in jaxpr.outvars]

    return local


def _dtype(v: Any) -> Any:
    return v.aval.dtype


def _size(v: Any) -> int:
    return int(np.prod(v.aval.shape))


def is_selection(fn: Callable, *args: Any) -> bool:
    """Whether `fn` only picks entries of its first argument, unchanged; True is a proof."""
    program = flatten(fn, *args)
    live = _used(program.jaxpr)
    picked = set(program.arguments[0])
    tainted = set(picked)
    moves = {"dynamic_slice", "gather", "squeeze", "reshape", "slice", "copy", "transpose"}
    for eqn in program.jaxpr.eqns:
        inputs: list[Any] = [v for v in eqn.invars if isinstance(v, jec.Var)]
        if not any(v in tainted for v in inputs) or not any(v in live for v in eqn.outvars):
            continue
        tainted.update(eqn.outvars)
        same_size = eqn.primitive.name == "broadcast_in_dim" and (
            _size(eqn.outvars[0]) == _size(eqn.invars[0])
        )
        if (eqn.primitive.name in moves or same_size) and eqn.invars[0] in picked:
            if any(v in tainted for v in eqn.invars[1:] if isinstance(v, jec.Var)):
                return False
            picked.update(eqn.outvars)
    return all(v in picked for v in program.jaxpr.outvars)
