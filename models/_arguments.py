"""Checks of the parameters of Markov models."""

import math
from typing import Any

import numpy as np


def check_probability(name: str, value: Any, least: float = 0.0, most: float = 1.0) -> float:
    """A number from `least` to `most`, or a ValueError that names the parameter."""
    number = _number(value)
    if number is None or not least <= number <= most:
        raise ValueError(
            f"{name}: expected a probability from {least:g} to {most:g}, got {value!r}."
        )
    return number


def check_inner_probability(name: str, value: Any, fix: str = "") -> float:
    """A number strictly between 0 and 1, or a ValueError that names the parameter."""
    number = _number(value)
    if number is None or not 0 < number < 1:
        raise ValueError(
            f"{name}: expected a probability strictly between 0 and 1, got {value!r}.{fix}"
        )
    return number


def check_treatment(value: Any) -> float:
    """The probability of treatment of an experiment: both arms must occur."""
    fix = " For all or none treated, simulate or solve under policy=1 or policy=0."
    return check_inner_probability("p", value, fix)


def check_number(
    name: str, value: Any, *, least: float = -math.inf, above: float = -math.inf
) -> float:
    """A finite number, at least `least` and more than `above`."""
    number = _number(value)
    if number is None or not math.isfinite(number) or number < least or number <= above:
        bound = f" more than {above:g}" if math.isfinite(above) else ""
        bound += f" of at least {least:g}" if math.isfinite(least) else ""
        raise ValueError(f"{name}: expected a finite number{bound}, got {value!r}.")
    return number


def check_count(name: str, value: Any, least: int = 1) -> int:
    """An int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}: expected an int of at least {least}, got {value!r}.")
    return int(value)


def check_pair(name: str, value: Any) -> tuple[Any, Any]:
    """Two values, (control, treated)."""
    if not isinstance(value, tuple | list | np.ndarray) or len(value) != 2:
        raise ValueError(f"{name}: expected two numbers, (control, treated), got {value!r}.")
    return value[0], value[1]


def check_table(name: str, value: Any) -> np.ndarray:
    """Finite numbers [states, arms] of two states and two arms."""
    try:
        table = np.array(value, float)
    except (TypeError, ValueError):
        table = np.zeros(0)
    if table.shape != (2, 2) or not np.isfinite(table).all():
        raise ValueError(
            f"{name}: expected {name}[state][arm], two states by two arms of finite numbers, got "
            f"{value!r}."
        )
    return table


def _number(value: Any) -> float | None:
    """A real number as a float; None for anything else, NaN too."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    return None if math.isnan(value) else float(value)
