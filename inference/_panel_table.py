"""Panels from tables: long ones, a row per unit and period; wide ones, a column per unit."""

import csv
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from decisionppl.inference._columns import Columns
from decisionppl.inference._panel import Panel, panel

_TRUE, _FALSE = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}


def from_long(
    table: Any,
    *,
    unit: str = "unit",
    period: str = "period",
    outcome: str = "outcome",
    treated: str = "treated",
) -> Panel:
    """A panel from a table with one row per unit and period, in any order.

    Args:
        table: path of a CSV file with a header; or a DataFrame of pandas or polars, a table of
            pyarrow, a dict of arrays, a structured array of NumPy.
        unit: column of the unit.
        period: column of the period, numbers or text that sorts in time's order, such as
            ISO dates.
        outcome: numeric column of the outcome.
        treated: column that says whether the unit was treated in that period: 0 or 1, or false or
            true.

    Returns:
        `Panel`, units and periods sorted.

    Raises:
        ValueError: a column that is missing or holds what it should not, a unit that has a period
            twice or not at all; the message names column, row and value.
        FileNotFoundError: no such file.

    Example:
        >>> from decisionppl.inference import panels
        >>> data = panels.from_long({
        ...     "shop": ["b", "a", "a", "b"], "week": [1, 2, 1, 2],
        ...     "sales": [5.0, 3.0, 2.0, 6.0], "promo": [0, 1, 0, 0],
        ... }, unit="shop", period="week", outcome="sales", treated="promo")
        >>> data.outcome.tolist(), data.treated.tolist()
        ([[2.0, 3.0], [5.0, 6.0]], [[False, True], [False, False]])
    """
    columns = Columns(_read(table))
    y = columns.numbers(outcome)
    a = _flags(columns, treated)
    units, row = np.unique(columns(unit), return_inverse=True)
    periods, column = np.unique(columns(period), return_inverse=True)
    count = np.zeros((len(units), len(periods)), int)
    np.add.at(count, (row, column), 1)
    for bad, what, fix in (
        (count > 1, "twice", "Drop or aggregate repeated rows."),
        (count == 0, "in no row", "Fill in its missing periods, or drop the unit or the period."),
    ):
        if bad.any():
            i, t = np.argwhere(bad)[0]
            raise ValueError(
                f"columns {unit!r} and {period!r}: unit {units[i].item()!r} has period "
                f"{periods[t].item()!r} {what} ({int(bad.sum())} such cells in all), expected "
                f"every unit once in every period. {fix}"
            )
    cells = np.zeros((2, *count.shape))
    cells[:, row, column] = y, a
    return panel(cells[0], cells[1], units=units.tolist(), periods=periods.tolist())


def from_wide(
    table: Any,
    *,
    period: str = "period",
    treated: Mapping[Any, Any],
    units: Sequence[str] | None = None,
) -> Panel:
    """A panel from a table with one row per period and one column per unit.

    Args:
        table: as for `from_long`.
        period: column of the period, see `from_long`.
        treated: from unit to its first treated period, from which on it stays treated; or to a
            list of the periods in which it is.
        units: columns of the units; default all but `period`.

    Returns:
        `Panel`, periods sorted.

    Raises:
        ValueError: a column that is missing or not numeric, a period that is there twice or not at
            all, a treated unit without a column.
        FileNotFoundError: no such file.

    Example:
        >>> from decisionppl.inference import panels
        >>> data = panels.from_wide(
        ...     {"year": [1, 2, 3], "north": [1.0, 2.0, 3.0], "south": [2.0, 3.0, 9.0]},
        ...     period="year", treated={"south": 3})
        >>> data.units, data.treated[1].tolist()
        (('north', 'south'), [False, False, True])
    """
    columns = Columns(_read(table))
    times = columns(period)
    order = np.argsort(times, kind="stable")
    periods = times[order].tolist()
    twice = [a for a, b in itertools.pairwise(periods) if a == b]
    if twice:
        raise ValueError(
            f"column {period!r}: got {twice[0]!r} in several rows, expected one row per period."
        )
    names = [n for n in columns.names if n != period] if units is None else list(units)
    if not isinstance(treated, Mapping) or not treated:
        raise ValueError(
            f"treated: expected a dict from unit to first treated period, got {treated!r}."
        )
    y = np.stack([columns.numbers(n)[order] for n in names])
    a = np.zeros(y.shape)
    for name, when in treated.items():
        if name not in names:
            raise ValueError(f"treated: no column {name!r}; the units are {names}.")
        listed = isinstance(when, list | tuple | set | np.ndarray)
        for each in when if listed else [when]:
            if each not in periods:
                raise ValueError(
                    f"treated: unit {name!r} has period {each!r}, which column {period!r} does not "
                    f"hold; it goes from {periods[0]!r} to {periods[-1]!r}."
                )
            t = periods.index(each)
            a[names.index(name), slice(t, t + 1 if listed else None)] = 1
    return panel(y, a, units=names, periods=periods)


def _flags(columns: Columns, name: str) -> np.ndarray:
    """A column of 0 and 1, or of words for them."""
    values = columns(name)
    words = np.array([str(v).strip().lower() for v in values.tolist()])
    known = np.isin(words, [*_TRUE, *_FALSE])
    columns.refuse(name, values, ~known, "0 or 1 (or false or true)", "Recode it.")
    return np.isin(words, list(_TRUE)).astype(float)


def _read(table: Any) -> Any:
    """Columns of a CSV file as arrays, numbers where all are; other tables as they are."""
    if not isinstance(table, str | Path):
        return table
    with Path(table).open(newline="", encoding="utf-8-sig") as file:
        lines = list(csv.reader(file))
    if len(lines) < 2:
        raise ValueError(
            f"{table}: expected a header and at least one row, got {len(lines)} lines."
        )
    header, body = lines[0], [x for x in lines[1:] if x]
    for number, line in enumerate(lines[1:], 2):
        if line and len(line) != len(header):
            raise ValueError(
                f"{table}, line {number}: got {len(line)} values, the header has {len(header)}."
            )
    found: dict[str, Any] = {}
    for i, name in enumerate(header):
        values = [line[i].strip() for line in body]
        found[name.strip()] = _numbers(values)
    return found


def _numbers(values: list[str]) -> np.ndarray:
    for kind in (int, float):
        try:
            return np.array([kind(v) if v or kind is int else float("nan") for v in values])
        except ValueError:
            continue
    return np.array([v or None for v in values], object) if "" in values else np.array(values)
