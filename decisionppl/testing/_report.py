"""One table and one plot of many checks."""

import html
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from decisionppl.testing._check import Statistic


class Row(NamedTuple):
    """One check.

    Attributes:
        name: of the check.
        passed: its verdict.
        worst: the statistic closest to its limit, or furthest beyond; None if there is none.
        message: of the check.
    """

    name: str
    passed: bool
    worst: Statistic | None
    message: str


class Report(NamedTuple):
    """Many checks in one table: text, rich in a terminal, HTML in a notebook.

    Attributes:
        passed: whether all checks passed.
        message: how many did, and which did not.
        rows: one `Row` per check.
        checks: the checks by name.
    """

    passed: bool
    message: str
    rows: tuple[Row, ...]
    checks: Mapping[str, Any]

    def plot(self, **options: Any) -> Any:
        """See `decisionppl.plots.checks`."""
        from decisionppl import plots

        return plots.checks(self, **options)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100, no_color=True, force_terminal=False)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip()

    def __rich__(self) -> Any:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for title, justify in zip(_HEADER, ("left", "left", "left", "right", "right"), strict=True):
            table.add_column(title, justify=justify, overflow="fold")
        for row in self.rows:
            style = "green" if row.passed else "bold red"
            name, verdict, *rest = _cells(row)
            table.add_row(Text(name), Text(verdict, style=style), *map(Text, rest))
        failed = [Text(f"{r.name}: {r.message}") for r in self.rows if not r.passed]
        return Group(table, *failed, Text(self.message))

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(t)}</th>" for t in _HEADER)
        body = []
        for row in self.rows:
            cells = "".join(f"<td>{html.escape(c)}</td>" for c in _cells(row))
            colour = "" if row.passed else ' style="color: #b00020"'
            body.append(f'<tr{colour} title="{html.escape(row.message)}">{cells}</tr>')
        failed = [
            f"<p><b>{html.escape(r.name)}</b>: {html.escape(r.message)}</p>"
            for r in self.rows
            if not r.passed
        ]
        return (
            f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
            f"{''.join(failed)}<p>{html.escape(self.message)}</p>"
        )


_HEADER = ("check", "verdict", "closest to its limit", "value", "limit")


def _cells(row: Row) -> tuple[str, ...]:
    verdict = "passed" if row.passed else "FAILED"
    if row.worst is None or (row.passed and row.worst.value == 0):
        return row.name, verdict, "", "", ""
    limit = "" if math.isinf(row.worst.limit) else f"{row.worst.limit:.3g}"
    return row.name, verdict, row.worst.name, f"{row.worst.value:.3g}", limit


def report(checks: Mapping[str, Any] | Iterable[Any]) -> Report:
    """Collect checks into one table and one plot.

    Args:
        checks: results of checks, as a dict by name or in a list, where each is named for
            what it is.

    Returns:
        `Report`: print it, show it in a notebook, or `.plot()` it.

    Raises:
        TypeError: something that is not the result of a check.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl import testing
        >>> from decisionppl.models import bandits
        >>> model = bandits.gaussian(2)
        >>> report = testing.report([testing.check_model(model), testing.check_intervention(model)])
        >>> report.message
        '2 of 2 checks passed.'
    """
    named = dict(checks) if isinstance(checks, Mapping) else _named(checks)
    rows = []
    for name, check in named.items():
        if not all(hasattr(check, a) for a in ("passed", "message", "statistics")):
            raise TypeError(
                f"checks: {name!r} is {type(check).__name__}, expected the result of a check "
                "(with .passed, .message and .statistics)."
            )
        worst = max(check.statistics, key=lambda s: (s.strain, s.value), default=None)
        rows.append(Row(name, bool(check.passed), worst, check.message))
    failed = [r.name for r in rows if not r.passed]
    message = f"{len(rows) - len(failed)} of {len(rows)} checks passed."
    if failed:
        message = f"{message[:-1]}; failed: {', '.join(failed)}."
    return Report(not failed, message, tuple(rows), named)


def _named(checks: Iterable[Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for check in checks:
        # ModelCheck -> "model", ProbabilityMatching -> "probability matching"
        words = type(check).__name__.removesuffix("Check")
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", words)
        name = name if name.isupper() else name.lower()
        count = 2
        unique = name
        while unique in named:
            unique, count = f"{name} {count}", count + 1
        named[unique] = check
    return named
