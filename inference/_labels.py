"""What labelling takes in, checked: shapes where a program is traced, values only before."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from decisionppl.inference._program import Program
from decisionppl.inference._steps import Steps


def as_labels(values: Any) -> tuple[str | None, jax.Array]:
    """The site, where it is named, and its labels [T, ...]."""
    site = None
    if isinstance(values, dict):
        if len(values) != 1:
            raise ValueError(f"values: expected a single data site, got {list(values)}.")
        ((site, values),) = values.items()
    values = jnp.asarray(values)
    if not values.ndim:
        raise ValueError(f"values: expected labels [T, ...], got the single number {values}.")
    return site, values


def table(
    steps: Steps, program: Program, values: jax.Array, observed: Any
) -> tuple[jax.Array, jax.Array]:
    """Labels in the dtype of their site, and which rows are labelled."""
    if program.site not in (None, steps.site):
        raise ValueError(f"values: expected the data site {steps.site!r}, got {program.site!r}.")
    site = steps.sites[steps.site]
    expected = (steps.length, *site.shape)
    if values.shape != expected:
        raise ValueError(f"values: expected shape {expected}, got {values.shape}.")
    missing = is_nan(values)
    if not jnp.issubdtype(site.dtype, jnp.floating):
        # which integer a NaN becomes is not defined
        values = jnp.where(jnp.isnan(values.astype(float)), 0, values)
    return values.astype(site.dtype), ~missing if observed is None else observed


def is_nan(values: jax.Array) -> jax.Array:
    return jnp.isnan(values.astype(float)).reshape(values.shape[0], -1).any(axis=1)


def mask(name: str, value: Any, length: int) -> jax.Array:
    value = jnp.asarray(value)
    if value.dtype != bool:
        raise TypeError(f"{name}: expected bool [T], got {value.dtype} of shape {value.shape}.")
    if value.shape != (length,):
        raise ValueError(f"{name}: expected shape {(length,)}, as values, got {value.shape}.")
    return value


def indices(name: str, value: Any, length: int) -> jax.Array:
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name}: expected indices of rows, ints, got {value.dtype}.")
    if value.ndim != 1 or value.size == 0:
        raise ValueError(f"{name}: expected indices of rows [{name}], got shape {value.shape}.")
    if not isinstance(value, Tracer):
        outside = [i for i in np.asarray(value).tolist() if not 0 <= i < length]
        if outside:
            raise ValueError(f"{name}: got {outside}; the table has rows 0 to {length - 1}.")
    return value


def check_labels(name: str, rows: Any, values: jax.Array) -> None:
    """That there is a label in each of these rows, a mask or indices."""
    if isinstance(rows, Tracer) or isinstance(values, Tracer):
        return
    # in NumPy: under `jit` even what is done to known arrays is traced
    numbers = np.asarray(values).astype(float).reshape(values.shape[0], -1)
    missing = int(np.isnan(numbers).any(axis=1)[np.asarray(rows)].sum())
    if missing:
        raise ValueError(
            f"{name}: {missing} of these rows have the label NaN in values. Give their labels, or "
            "leave the rows out."
        )


def check_candidates(observed: Any, candidates: Any, values: jax.Array, num_labels: int) -> None:
    if isinstance(observed, Tracer) or isinstance(candidates, Tracer):
        return
    rows = np.asarray(candidates)
    rows = np.flatnonzero(rows) if rows.dtype == bool else rows
    if len(np.unique(rows)) < len(rows):
        raise ValueError(f"candidates: expected different rows, got {rows.tolist()}.")
    rows = rows[~np.asarray(observed)[rows]]
    if len(rows) < num_labels:
        raise ValueError(
            f"num_labels: got {num_labels}, but only {len(rows)} of the candidates have no label "
            "yet. Ask for fewer, or allow more candidates."
        )
    check_labels("candidates", rows, values)


def count(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected a whole number, got {value!r}.") from None
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}.")
    return number
