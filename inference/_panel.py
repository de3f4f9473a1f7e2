"""A panel: outcomes of units over periods, some of them treated in some periods."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Panel(NamedTuple):
    """Outcomes of units over periods.

    Attributes:
        outcome: float64 [units, periods].
        treated: bool [units, periods].
        units: their names.
        periods: their names, in order.
    """

    outcome: np.ndarray
    treated: np.ndarray
    units: tuple[Any, ...]
    periods: tuple[Any, ...]


class Split(NamedTuple):
    """One treated unit and the units that never are.

    Attributes:
        unit: its name.
        outcome, treated: its series, [periods].
        controls: series of the others, [periods, controls].
        names: of the controls.
        pre: number of periods before the first treated one.
    """

    unit: Any
    outcome: np.ndarray
    treated: np.ndarray
    controls: np.ndarray
    names: tuple[Any, ...]
    pre: int


def panel(
    outcome: Any,
    treated: Any,
    *,
    units: Sequence[Any] | None = None,
    periods: Sequence[Any] | None = None,
) -> Panel:
    """A panel from arrays.

    Args:
        outcome: finite numbers [units, periods].
        treated: 0 or 1 of the same shape; or [periods], for the first unit, no other treated.
        units, periods: names; default numbers from 0.

    Returns:
        `Panel`.

    Raises:
        ValueError: shapes that do not fit, values that are no finite numbers, or neither 0 nor 1.

    Example:
        >>> from decisionppl.inference import panels
        >>> data = panels.panel([[1.0, 2.0, 9.0], [1.0, 2.0, 3.0]], [0, 0, 1])
        >>> data.treated.sum(), data.units
        (np.int64(1), (0, 1))
    """
    y = np.asarray(outcome, float)
    if y.ndim != 2 or 0 in y.shape:
        raise ValueError(f"outcome: expected shape [units, periods], got {list(y.shape)}.")
    a = np.asarray(treated)
    if a.shape == y.shape[1:]:
        a = np.concatenate([a[None], np.zeros((len(y) - 1, *a.shape), a.dtype)])
    if a.shape != y.shape:
        raise ValueError(
            f"treated: expected shape {list(y.shape)}, as outcome, or [{y.shape[1]}] for the first "
            f"unit; got {list(np.shape(treated))}."
        )
    names = [tuple(range(n)) if given is None else tuple(given)
             for n, given in zip(y.shape, (units, periods), strict=True)]  # fmt: skip
    for what, n, found in zip(("units", "periods"), y.shape, names, strict=True):
        if len(found) != n or len(set(found)) != n:
            raise ValueError(f"{what}: expected {n} different names, got {len(set(found))}.")
    bad = ~np.isfinite(y)
    if bad.any():
        i, t = np.argwhere(bad)[0]
        raise ValueError(
            f"outcome: got {y[i, t]} for unit {names[0][i]!r} in period {names[1][t]!r} "
            f"({int(bad.sum())} cells in all), expected finite numbers. Drop the unit or the "
            "period, or fill it in."
        )
    bad = (a != 0) & (a != 1)
    if bad.any():
        i, t = np.argwhere(bad)[0]
        raise ValueError(
            f"treated: got {a[i, t]} for unit {names[0][i]!r} in period {names[1][t]!r}, expected "
            "0 or 1."
        )
    return Panel(y, a.astype(bool), *names)


def split(data: Panel, unit: Any = None, *, pre: int = 0, controls: int = 1) -> Split:
    """One treated unit of a panel and its never treated ones.

    Args:
        data: a panel.
        unit: the treated unit; None if there is one.
        pre: least number of periods before the first treated one that are needed.
        controls: least number of never treated units that are needed.

    Raises:
        TypeError: no `Panel`.
        ValueError: no treated unit or several, one that is not treated, too few controls or
            periods.
    """
    if not isinstance(data, Panel):
        raise TypeError(
            f"panel: expected a Panel, got {type(data).__name__}. Make one with panels.from_long, "
            "from_wide or panel."
        )
    ever = np.asarray(data.treated.any(1))
    found = [u for u, e in zip(data.units, ever, strict=True) if e]
    if unit is None:
        if len(found) != 1:
            what = "none" if not found else f"{len(found)}: {found[:5]}"
            fix = "Mark treated cells with 1." if not found else "Name one in unit=."
            raise ValueError(f"panel: expected one treated unit, got {what}. {fix}")
        unit = found[0]
    if unit not in found:
        raise ValueError(f"unit: {unit!r} is not treated in any period; treated are {found}.")
    at = data.units.index(unit)
    names = tuple(u for u, e in zip(data.units, ever, strict=True) if not e)
    if len(names) < controls:
        raise ValueError(
            f"panel: expected at least {controls} units that are never treated, got {len(names)}."
        )
    treated = data.treated[at]
    first = int(np.argmax(treated))
    if first < pre:
        raise ValueError(
            f"panel: unit {unit!r} is first treated in period {data.periods[first]!r}, number "
            f"{first} from 0; expected at least {pre} periods before it."
        )
    return Split(unit, data.outcome[at], treated, data.outcome[~ever].T, names, first)
