"""Columns of tables of any make, as arrays."""

import difflib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


class Columns:
    """Columns of a table of any make, as arrays [rows]."""

    def __init__(self, table: Any) -> None:
        if isinstance(table, Mapping):
            names = list(table)
        elif isinstance(table, np.ndarray) and table.dtype.names:
            names = list(table.dtype.names)
        else:  # pyarrow's `columns` are not names
            found = getattr(table, "column_names", getattr(table, "columns", None))
            if found is None or not hasattr(table, "__getitem__"):
                raise TypeError(
                    f"table: got {type(table).__name__}, expected a DataFrame, a dict of arrays or "
                    "a structured array."
                )
            names = list(found)
        self.table, self.names = table, names
        self.rows = -1

    def __call__(self, name: str) -> np.ndarray:
        """The values of a column."""
        if name not in self.names:
            close = difflib.get_close_matches(str(name), [str(n) for n in self.names], 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"no column {name!r}; the table has {self.names}.{hint}")
        column: Any = self.table[name]
        values = np.asarray(column.to_numpy() if hasattr(column, "to_numpy") else column)
        if values.ndim != 1 or len(values) == 0:
            raise ValueError(
                f"column {name!r}: expected one value per row, got shape {list(values.shape)}."
            )
        if self.rows not in (-1, len(values)):
            raise ValueError(
                f"column {name!r} has {len(values)} rows, those before it have {self.rows}."
            )
        self.rows = len(values)
        self._check(name, values)
        return np.array(values.tolist()) if values.dtype == object else values

    def _check(self, name: str, values: np.ndarray) -> None:
        if values.dtype == object:
            bad = np.asarray(np.frompyfunc(_is_missing, 1, 1)(values), bool)
        elif values.dtype.kind == "f":
            bad = ~np.isfinite(values)
        elif values.dtype.kind in "mM":
            bad = np.isnat(values)
        else:
            return
        self.refuse(name, values, bad, "a value", "Drop those rows, or fill them in.")

    def numbers(self, name: str) -> np.ndarray:
        """The values of a numeric column."""
        values = self(name)
        if values.dtype.kind not in "biuf":
            raise ValueError(
                f"column {name!r}: expected numbers, got {values.dtype} such as {values[0]!r} in "
                "row 0. Convert it first."
            )
        return values.astype(float)

    def refuse(
        self, name: str, values: np.ndarray, bad: np.ndarray, expected: str, fix: str
    ) -> None:
        """Raise, naming the first row, if there are bad rows."""
        if bad.any():
            i = int(np.argmax(bad))
            raise ValueError(
                f"column {name!r}: got {values[i]!s} in row {i} ({int(bad.sum())} rows in all), "
                f"expected {expected}. {fix}"
            )


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and not math.isfinite(value)
