"""What every check returns, and its `assert_*` twin."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np


class Statistic(NamedTuple):
    """One measured quantity beside what it may be.

    Attributes:
        name: what was measured, and where.
        value: the measurement, larger is worse.
        limit: the largest value that passes; infinite if it is only reported.
    """

    name: str
    value: float
    limit: float = math.inf

    @property
    def passed(self) -> bool:
        """Whether the value is within its limit; a NaN is not."""
        return bool(self.value <= self.limit)

    @property
    def strain(self) -> float:
        """The value in units of its limit: above 1 it fails; 0 if there is no limit."""
        if self.passed and (math.isinf(self.limit) or self.value <= 0):
            return 0.0
        if not math.isfinite(self.value) or self.limit <= 0:
            return math.inf
        return self.value / self.limit

    def __str__(self) -> str:
        limit = "" if math.isinf(self.limit) else f" (limit {self.limit:.3g})"
        return f"{self.name}: {self.value:.3g}{limit}"


def evidence(name: str, p_value: float, level: float) -> Statistic:
    """A p-value as a statistic, larger is worse: -log10(p) against -log10(level)."""
    p_value = float(p_value)
    value = math.inf if not p_value > 0 else -math.log10(p_value)
    return Statistic(f"{name}: -log10(p)", value, -math.log10(level))


def verdict(statistics: Iterable[Statistic], good: str, bad: str) -> tuple[bool, str]:
    """Whether all statistics pass, and a message that names the worst ones that do not."""
    failed = sorted((s for s in statistics if not s.passed), key=lambda s: -s.strain)
    if not failed:
        return True, good
    shown = "; ".join(str(s) for s in failed[:3])
    more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
    return False, f"{bad} {shown}{more}."


def asserting(check: Callable) -> Callable:
    """The twin of a check that raises AssertionError with the message, for use in tests."""
    name = check.__name__.removeprefix("check_")

    @functools.wraps(check)
    def twin(*args: Any, **kwargs: Any) -> Any:
        result = check(*args, **kwargs)
        if not result.passed:
            raise AssertionError(f"{name}: {result.message}")
        return result

    suffix = "valid" if name == "validate" else name
    twin.__name__ = twin.__qualname__ = f"assert_{suffix}"
    twin.__doc__ = (
        f"Run `{check.__name__}` with the same arguments and fail if it does not pass.\n\n"
        f"Returns:\n    What `{check.__name__}` returns.\n\n"
        "Raises:\n    AssertionError: with the message of the check."
    )
    return twin


def check_probability(name: str, value: Any) -> float:
    """A number strictly between 0 and 1, or a ValueError that names the setting."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        raise TypeError(f"{name}: expected a number between 0 and 1, got {value!r}.")
    if not 0 < value < 1:
        raise ValueError(f"{name}: expected a number between 0 and 1, got {value!r}.")
    return float(value)


def check_count(name: str, value: Any, least: int = 1) -> int:
    """An int of at least `least`, or a ValueError that names the setting."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}: expected an int of at least {least}, got {value!r}.")
    return int(value)


def check_positive(**values: float) -> None:
    """Positive finite numbers, or a ValueError that names the first that is not."""
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}: expected a positive number, got {value!r}.")
