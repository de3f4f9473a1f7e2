"""Immutable pytree objects, and the checks of their parameters and of the points they see.

Private; shared by `decisionppl.kernels` and `decisionppl.means`.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Array = jax.Array
Inputs = tuple[jax.Array, ...]  # one array [n, width] per argument of the unknown function
Parameter = Any  # a number or array when given; a float or a floating-point array once kept

T = TypeVar("T")

# Slack for fidelities that rounding, in float32 at worst, has moved out of [0, 1].
_ROUNDING = 1e-6


def static(**options: Any) -> Any:
    """A field that is structure: part of the type under `jax.jit`, never traced."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def pytree(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass and a JAX pytree.

    Rebuilding from leaves skips ``__init__`` and its checks: gradients, optimiser states and
    axis specifications have the structure of a kernel too, and hold zeros or negative numbers.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    leaves = tuple(f.name for f in fields if not f.metadata.get("static"))
    aux = tuple(f.name for f in fields if f.metadata.get("static"))

    def flatten_with_keys(node: Any) -> tuple:
        keyed = tuple((jax.tree_util.GetAttrKey(n), getattr(node, n)) for n in leaves)
        return keyed, tuple(getattr(node, n) for n in aux)

    def flatten(node: Any) -> tuple:
        return tuple(getattr(node, n) for n in leaves), tuple(getattr(node, n) for n in aux)

    def unflatten(structure: tuple, children: Iterable) -> Any:
        node = object.__new__(cls)
        assign(node, **dict(zip(leaves, children, strict=True)))
        assign(node, **dict(zip(aux, structure, strict=True)))
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def assign(node: Any, **values: Any) -> None:
    """Set fields of a frozen object while it is being built."""
    for name, value in values.items():
        object.__setattr__(node, name, value)


def known(value: Any) -> np.ndarray | None:
    """The numbers of a concrete array, None for a traced one."""
    return None if isinstance(value, Tracer) else np.asarray(value)


def check_values(label: str, value: Any, valid: Callable, expected: str) -> None:
    """Raise ValueError unless every concrete number is finite and `valid`."""
    array = known(value)
    if array is not None and not np.all(np.isfinite(array) & valid(array)):
        raise ValueError(f"{label}: expected {expected}, got {array.tolist()}.")


def real(label: str, value: Any, valid: Callable | None = None, expected: str = "") -> Parameter:
    """A hyperparameter as a Python float or a floating-point array.

    Python numbers stay Python floats, which take the precision of the inputs.
    """
    if isinstance(value, jax.Array):
        kept = value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(float)
    else:
        try:
            # None would become NaN
            value = np.asarray(value if value is not None else "None", float)
        except (TypeError, ValueError):
            raise TypeError(
                f"{label}: expected a number or an array of numbers, got {value!r}."
            ) from None
        kept = float(value) if value.ndim == 0 else jnp.asarray(value, float)
    check_values(label, value, valid or _any, expected or "finite numbers")
    return kept


def _any(values: np.ndarray) -> np.ndarray:
    return np.ones_like(values, bool)


def positive(label: str, value: Any) -> Parameter:
    """A hyperparameter that has to be above zero."""
    return real(label, value, lambda v: v > 0, "positive numbers")


def non_negative(label: str, value: Any) -> Parameter:
    """A hyperparameter that has to be zero or above."""
    return real(label, value, lambda v: v >= 0, "numbers that are not negative")


def is_scalar(value: Any) -> bool:
    """Whether a value is one real number, traced or not."""
    numeric = isinstance(value, bool | int | float | np.generic | np.ndarray | jax.Array)
    return numeric and jnp.ndim(value) == 0 and jnp.isrealobj(value)


def check_positions(owner: str, positions: tuple) -> tuple[int, ...]:
    """Distinct positions of arguments, as Python ints."""
    whole = all(isinstance(p, int | np.integer) and not isinstance(p, bool) for p in positions)
    if not whole:
        raise TypeError(f"{owner}: positions of arguments are ints, got {positions!r}.")
    if not positions or min(positions) < 0 or len(set(positions)) < len(positions):
        raise ValueError(
            f"{owner}: expected one or more distinct positions, counted from 0, got {positions!r}."
        )
    return tuple(int(p) for p in positions)


def select(owner: str, items: tuple, positions: tuple[int, ...]) -> tuple:
    """The entries of `items`, one per argument of f, at `positions`."""
    if max(positions) >= len(items):
        raise ValueError(
            f"{owner}: looks at argument {max(positions)} (counted from 0), but the inputs have "
            f"{len(items)} argument(s). Pass one array [n, width] per argument of f."
        )
    return tuple(items[p] for p in positions)


def check_inputs(owner: str, x: Any) -> Inputs:
    """Points as a tuple of arrays [n, width], all with the same n."""
    if not isinstance(x, tuple | list) or not x:
        raise TypeError(
            f"{owner}: inputs are a tuple with one array [n, width] per argument of f, "
            f"got {type(x).__name__}. For a single argument write (x,)."
        )
    arrays = tuple(jnp.asarray(a) for a in x)
    shapes = [a.shape for a in arrays]
    if any(len(s) != 2 for s in shapes):
        raise ValueError(
            f"{owner}: every argument is an array [n, width], got shapes {shapes}. "
            "Give scalar arguments as [n, 1]."
        )
    if len({s[0] for s in shapes}) > 1:
        raise ValueError(f"{owner}: arguments differ in their number of points, shapes {shapes}.")
    return arrays


def widths_of(x: Inputs) -> tuple[int, ...]:
    """Number of columns of every argument."""
    return tuple(a.shape[1] for a in x)


def float_type(*arrays: Array) -> Any:
    """The floating-point type in which points are computed with."""
    return jnp.result_type(*arrays, 0.0)


def join(x: Inputs) -> Array:
    """All arguments side by side, [n, total width]."""
    return jnp.concatenate([a.astype(float_type(*x)) for a in x], axis=1)


def scalars(owner: str, x: Inputs, *names: str) -> tuple[Array, ...]:
    """The scalar arguments of f called `names`, each [n]."""
    if widths_of(x) != (1,) * len(names):
        raise ValueError(
            f"{owner}: sees {len(names)} scalar argument(s) [n, 1]: {', '.join(names)}; got widths "
            f"{widths_of(x)}. Choose the arguments by their positions, for example with `On`."
        )
    return tuple(a[:, 0].astype(float_type(a)) for a in x)


def check_unit_interval(label: str, value: Array) -> None:
    """Raise ValueError unless concrete fidelities lie in [0, 1]."""
    check_values(
        label,
        value,
        lambda v: (v >= -_ROUNDING) & (v <= 1 + _ROUNDING),
        "fidelities in [0, 1], where 1 is the target; rescale them",
    )


def check_whole(label: str, value: Array, below: int | None = None) -> None:
    """Raise ValueError unless concrete labels are whole numbers, in range(below) if given."""
    expected = "whole numbers" if below is None else f"whole numbers from 0 to {below - 1}"
    limit = np.inf if below is None else below
    lowest = -np.inf if below is None else 0
    check_values(label, value, lambda v: (v % 1 == 0) & (v >= lowest) & (v < limit), expected)
