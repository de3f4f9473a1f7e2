"""Tables of training runs from a user's own CSV files: mixtures, sizes, metrics, prices."""

import csv
import difflib
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_MISSING = {"", "nan", "na", "n/a", "null", "none", "inf", "+inf", "-inf", "infinity", "-infinity"}
_PAIR = re.compile(r"(?P<stem>.*?)_?(?P<kind>mixture|(?:pile_)?loss)_(?P<scale>[^_]+)\.csv")
_SCALE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmbt]?)", re.IGNORECASE)
_SUFFIX = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_TOLERANCE = 0.01  # by which the weights of a run may miss one: rounding in a file


class RunTable(NamedTuple):
    """Runs, one to a row of each array.

    Attributes:
        mixtures: proportions of the sources, [runs, sources]; each row sums to one.
        sources: their names.
        scale: size of the model, [runs], in parameters (the unit of the file, if the user's own).
        steps: length of the training, [runs], in tokens or steps; NaN where unknown.
        metrics: name -> [runs].
        cost: price of each run, [runs]; None where it is unknown.
        labels: name of each run: the file and its index there, or the user's own.
    """

    mixtures: np.ndarray
    sources: tuple[str, ...]
    scale: np.ndarray
    steps: np.ndarray
    metrics: dict[str, np.ndarray]
    cost: np.ndarray | None
    labels: tuple[str, ...]

    @property
    def num_runs(self) -> int:
        """Number of runs."""
        return len(self.labels)

    @property
    def scales(self) -> tuple[float, ...]:
        """The sizes that occur, increasing."""
        return tuple(np.unique(self.scale).tolist())

    def target(self, metric: str | Sequence[str] = "mean") -> np.ndarray:
        """One number for each run.

        Args:
            metric: a metric; several, which are averaged; or "mean", the average of all.

        Returns:
            [runs].

        Raises:
            ValueError: an unknown metric, or none.
        """
        if metric == "mean" and metric not in self.metrics:
            names: list[str] = list(self.metrics)
        else:
            names = [metric] if isinstance(metric, str) else list(metric)
        if not names:
            raise ValueError("metric: expected a name or several, got none.")
        for name in names:
            if name not in self.metrics:
                raise ValueError(f"unknown metric {name!r}{_close(name, self.metrics)}")
        return np.mean([self.metrics[name] for name in names], axis=0)

    def at(self, scale: float | str) -> "RunTable":
        """The runs of one size.

        Args:
            scale: a number, or text such as "60m" or "1B".

        Returns:
            A table of these runs.

        Raises:
            ValueError: no run has this size.
        """
        size = parse_scale(scale)
        chosen = np.isclose(self.scale, size, rtol=1e-9, atol=0)
        if not chosen.any():
            known = ", ".join(f"{s:g}" for s in self.scales)
            raise ValueError(f"scale: no run has {scale!r}; the table has {known}.")
        return self.take(np.flatnonzero(chosen))

    def take(self, index: Any) -> "RunTable":
        """The runs with these indices, in this order, as a table."""
        index = np.asarray(index)
        return self._replace(
            mixtures=self.mixtures[index],
            scale=self.scale[index],
            steps=self.steps[index],
            metrics={name: values[index] for name, values in self.metrics.items()},
            cost=None if self.cost is None else self.cost[index],
            labels=tuple(self.labels[i] for i in index),
        )


def parse_scale(scale: float | str) -> float:
    """A size as a number of parameters.

    Args:
        scale: a number, or text with the suffix k, m, b or t, in either case.

    Returns:
        The number.

    Raises:
        ValueError: text that is not a size.

    Example:
        >>> from decisionppl.models._run_tables import parse_scale
        >>> parse_scale("60m"), parse_scale("1B"), parse_scale(20)
        (60000000.0, 1000000000.0, 20.0)
    """
    if not isinstance(scale, str):
        return float(scale)
    match = _SCALE.fullmatch(scale.strip())
    if match is None:
        raise ValueError(f"scale: expected a number such as 60m or 1B, got {scale!r}.")
    return float(match[1]) * _SUFFIX[match[2].lower()]


def load_runs(
    source: str | Path | Iterable[str | Path],
    *,
    mixture: str | Sequence[str] = "train_",
    metrics: str | Sequence[str] = "metric/",
    scale: str | float | None = None,
    steps: str | None = None,
    cost: str | None = None,
    label: str | None = None,
    tokens: Mapping[Any, float] | None = None,
    costs: Mapping[Any, float] | None = None,
    drop_missing: bool = False,
) -> RunTable:
    """Read a table of training runs.

    Either a folder, or a list of files, in which each set of runs is a pair
    `NAME_mixture_SCALE.csv` and `NAME_loss_SCALE.csv` (or `NAME_pile_loss_SCALE.csv`) with a
    common column `index`, where SCALE is a size such as 1m or 1B. Or one long CSV file (or
    several alike), one run to a line, whose columns are named by the arguments.

    Columns are given by their names, or by a prefix that they have in common and that is left out
    of the names in the table. Weights are divided by their sum, which may miss one by 1 %. Several
    runs of the same mixture are replicates, all of them kept.

    Args:
        source: a folder, a file, or several files.
        mixture: columns of the weights: names, or a prefix; empty where runs have no mixture.
        metrics: columns of the metrics: names, or a prefix.
        scale: for a long file, the column of the size (numbers, or text such as 60m); or a number,
            the size of all of its runs.
        steps: for a long file, the column of the training length, in tokens or steps.
        cost: for a long file, the column of the price.
        label: for a long file, the column of the name of a run.
        tokens: training length by scale, where no column has it.
        costs: price by scale, where no column has it. Where neither is given, and size and
            length are known, the price is their product, the cheapest run being 1.
        drop_missing: leave out runs with an empty or non-finite entry, with a warning, in place
            of the error.

    Returns:
        The table.

    Raises:
        FileNotFoundError: no such file, or none with runs in the folder.
        ValueError: a file with something wrong in it; the message names the file, the line and
            the column.

    Example:
        >>> import tempfile, pathlib
        >>> from decisionppl.models._run_tables import load_runs
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> text = "web,code,size,loss\\n0.5,0.5,20,3.1\\n0.25,0.75,20,3.0\\n"
        >>> _ = (folder / "runs.csv").write_text(text)
        >>> table = load_runs(
        ...     folder / "runs.csv", mixture=["web", "code"], scale="size", metrics=["loss"]
        ... )
        >>> table.mixtures.tolist(), table.target("loss").tolist()
        ([[0.5, 0.5], [0.25, 0.75]], [3.1, 3.0])
    """
    paired, files = _files(source)
    if paired:
        for name, value in {"scale": scale, "steps": steps, "cost": cost, "label": label}.items():
            if value is not None:
                raise ValueError(
                    f"{name}: {value!r} is for a long file; here sizes come from the file names, "
                    "lengths and prices from tokens= and costs=."
                )
        blocks = [
            _read_pair(*pair, mixture=mixture, metrics=metrics, drop_missing=drop_missing)
            for pair in _pairs(files)
        ]
    else:
        columns = {"scale": scale, "steps": steps, "cost": cost}
        blocks = [
            _read_long(path, mixture, metrics, columns, label, drop_missing) for path in files
        ]
    table = _joined(blocks)
    table = _priced(table, tokens, costs)
    _warn_of_constants(table)
    return table


# --- which files -----------------------------------------------------------------------------


def _files(source: Any) -> tuple[bool, list[Path]]:
    """Whether the files are pairs, and the files."""
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            files = sorted(p for p in path.glob("*.csv") if _PAIR.fullmatch(p.name))
            if not files:
                raise FileNotFoundError(
                    f"no runs in {path}: expected pairs NAME_mixture_SCALE.csv and "
                    "NAME_loss_SCALE.csv; for one long table give the file itself."
                )
            return True, files
        files = [path]
    else:
        files = [Path(p) for p in source]
    if not files:
        raise FileNotFoundError("source: expected a folder or files, got an empty list.")
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
    named = [_PAIR.fullmatch(path.name) is not None for path in files]
    if any(named) and not all(named):
        odd = files[named.index(False)]
        raise ValueError(
            f"{odd} is not named NAME_mixture_SCALE.csv or NAME_loss_SCALE.csv like the others; "
            "read long tables apart from pairs."
        )
    # a single file cannot be a pair, whatever its name
    return all(named) and len(files) > 1, files


def _pairs(files: list[Path]) -> list[tuple[Path, Path, float]]:
    """Mixture file, metric file and scale of each set of runs."""
    found: dict[tuple, dict[str, Path]] = {}
    for path in files:
        match = _PAIR.fullmatch(path.name)
        assert match is not None
        kind = "mixture" if match["kind"] == "mixture" else "loss"
        found.setdefault((path.parent, match["stem"], match["scale"]), {})[kind] = path
    pairs = []
    for (_, _, scale), both in found.items():
        if len(both) < 2:
            (kind, path), other = both.copy().popitem(), "loss" if "mixture" in both else "mixture"
            raise ValueError(f"{path}: the {kind} file has no {other} file of the same name.")
        try:
            size = parse_scale(scale)
        except ValueError as error:
            raise ValueError(f"{both['mixture']}: {error}") from None
        pairs.append((both["mixture"], both["loss"], size))
    return sorted(pairs, key=lambda pair: (pair[2], str(pair[0])))


# --- one file --------------------------------------------------------------------------------


class _Cells(NamedTuple):
    """The text of a file: header, rows, and the line on which each row ends."""

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> int:
        if name not in self.header:
            raise ValueError(f"{self.path}: no column {name!r}{_close(name, self.header)}")
        return self.header.index(name)

    def text(self, name: str) -> list[str]:
        column = self.column(name)
        return [row[column] for row in self.rows]

    def numbers(self, name: str) -> np.ndarray:
        """A column as numbers, NaN where an entry is missing or infinite."""
        values = np.empty(len(self.rows))
        for k, cell in enumerate(self.text(name)):
            cell = cell.strip()
            if cell.lower() in _MISSING:
                values[k] = math.nan
                continue
            try:
                values[k] = float(cell)
            except ValueError:
                raise ValueError(f"{self.where(k, name)}: {cell!r} is not a number.") from None
            if not math.isfinite(values[k]):
                values[k] = math.nan
        return values

    def where(self, row: int, name: str | None = None) -> str:
        place = f"{self.path}, line {self.lines[row]}"
        return place if name is None else f"{place}, column {name!r}"

    def chosen(self, columns: str | Sequence[str], what: str) -> dict[str, str]:
        """Columns by name or prefix: name in the table -> name in the file."""
        if not isinstance(columns, str):
            for name in columns:
                self.column(name)
            return {name: name for name in columns}
        found = {h.removeprefix(columns): h for h in self.header if h.startswith(columns)}
        if not columns or not found:
            raise ValueError(
                f"{self.path}: no column begins with {columns!r}; name the columns of the "
                f"{what} in {what}=. The file has {', '.join(self.header)}."
            )
        return found


def _read(path: Path) -> _Cells:
    try:
        header, rows, lines = _parse(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error}).") from None
    if not rows:
        raise ValueError(f"{path}: the file has no rows.")
    for name in header:
        if header.count(name) > 1:
            raise ValueError(f"{path}: the header has {name!r} {header.count(name)} times.")
    return _Cells(path, header, rows, lines)


def _parse(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    rows, lines = [], []
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: expected {len(header)} cells as in the "
                    f"header, got {len(row)}."
                )
            rows.append(row)
            lines.append(reader.line_num)
    return header, rows, lines


class _Block(NamedTuple):
    """Runs as read, before those with missing entries are dropped."""

    mixtures: dict[str, np.ndarray]
    metrics: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]  # scale, steps, cost
    labels: list[str]


def _numbers(cells: _Cells, names: dict[str, str]) -> dict[str, np.ndarray]:
    return {ours: cells.numbers(theirs) for ours, theirs in names.items()}


def _read_pair(
    mixture_file: Path,
    metric_file: Path,
    size: float,
    *,
    mixture: Any,
    metrics: Any,
    drop_missing: bool,
) -> _Block:
    left, right = _read(mixture_file), _read(metric_file)
    rows_left, rows_right = _index(left), _index(right)
    for one, other, here, there in (
        (rows_left, rows_right, left, right),
        (rows_right, rows_left, right, left),
    ):
        alone = [key for key in one if key not in other]
        if alone:
            shown = ", ".join(alone[:3]) + (", ..." if len(alone) > 3 else "")
            raise ValueError(
                f"{here.path}: {len(alone)} runs are not in {there.path.name} (index {shown})."
            )
    order = [rows_right[key] for key in rows_left]
    right = right._replace(
        rows=[right.rows[k] for k in order], lines=[right.lines[k] for k in order]
    )
    weights, values = left.chosen(mixture, "mixture"), right.chosen(metrics, "metrics")
    stem = mixture_file.name.removesuffix(".csv").replace("_mixture", "")
    block = _Block(
        _numbers(left, weights),
        _numbers(right, values),
        {"scale": np.full(len(left.rows), size)},
        [f"{stem}/{key}" for key in rows_left],
    )
    sources = [(left, block.mixtures, weights), (right, block.metrics, values)]
    return _clean(block, sources, drop_missing)


def _index(cells: _Cells) -> dict[str, int]:
    """Row of each index."""
    rows: dict[str, int] = {}
    for k, cell in enumerate(cells.text("index")):
        key = cell.strip()
        if key in rows:
            raise ValueError(
                f"{cells.where(k, 'index')}: {key!r} is on line {cells.lines[rows[key]]} already."
            )
        rows[key] = k
    return rows


def _read_long(
    path: Path,
    mixture: Any,
    metrics: Any,
    columns: dict[str, Any],
    label: str | None,
    drop_missing: bool,
) -> _Block:
    cells = _read(path)
    count = len(cells.rows)
    weights = cells.chosen(mixture, "mixture") if len(mixture) else {}
    values = cells.chosen(metrics, "metrics")
    named = {ours: theirs for ours, theirs in columns.items() if isinstance(theirs, str)}
    numbers = {ours: cells.numbers(theirs) for ours, theirs in named.items() if ours != "scale"}
    if "scale" in named:
        numbers["scale"] = _sizes(cells, named["scale"])
    elif columns["scale"] is not None:
        numbers["scale"] = np.full(count, float(columns["scale"]))
    if label is None:
        labels = [f"{path.stem}/{line}" for line in cells.lines]
    else:
        labels = [text.strip() for text in cells.text(label)]
    block = _Block(_numbers(cells, weights), _numbers(cells, values), numbers, labels)
    sources = [
        (cells, block.mixtures, weights),
        (cells, block.metrics, values),
        (cells, numbers, named),
    ]
    return _clean(block, sources, drop_missing)


def _sizes(cells: _Cells, name: str) -> np.ndarray:
    """A column of sizes, each a number or text such as 60m."""
    values = np.empty(len(cells.rows))
    for k, cell in enumerate(cells.text(name)):
        if cell.strip().lower() in _MISSING:
            values[k] = math.nan
            continue
        try:
            values[k] = float(cell)
        except ValueError:
            try:
                values[k] = parse_scale(cell)
            except ValueError as error:
                raise ValueError(f"{cells.where(k, name)}: {error}") from None
    return np.where(np.isfinite(values), values, math.nan)


# --- what is wrong in it ---------------------------------------------------------------------


def _clean(block: _Block, sources: list, drop_missing: bool) -> _Block:
    """The block without missing entries, its weights checked and divided by their sum."""
    missing = np.zeros(len(block.labels), bool)
    for cells, values, names in sources:
        for ours, theirs in names.items():
            bad = np.isnan(values[ours])
            if bad.any() and not drop_missing:
                k = int(np.argmax(bad))
                got = cells.rows[k][cells.column(theirs)]
                raise ValueError(
                    f"{cells.where(k, theirs)}: expected a finite number, got {got!r}. "
                    "drop_missing=True leaves out such runs."
                )
            missing |= bad
    cells = sources[0][0]
    keep = np.flatnonzero(~missing)
    if missing.any():
        if not keep.size:
            raise ValueError(f"{cells.path}: every run has a missing or non-finite entry.")
        shown = ", ".join([block.labels[k] for k in np.flatnonzero(missing)][:3])
        warnings.warn(
            f"{cells.path}: {missing.sum()} of {len(missing)} runs have a missing or non-finite "
            f"entry and are left out ({shown}{', ...' if missing.sum() > 3 else ''}).",
            stacklevel=4,
        )
    for name, values in block.columns.items():
        if (values[keep] <= 0).any():
            k = int(keep[np.argmax(values[keep] <= 0)])
            raise ValueError(f"{cells.where(k)}: expected a positive {name}, got {values[k]:g}.")
    if block.mixtures:
        block = block._replace(mixtures=_normalised(block.mixtures, cells, keep))
    return _Block(
        {name: values[keep] for name, values in block.mixtures.items()},
        {name: values[keep] for name, values in block.metrics.items()},
        {name: values[keep] for name, values in block.columns.items()},
        [block.labels[i] for i in keep],
    )


def _normalised(
    mixtures: dict[str, np.ndarray], cells: _Cells, keep: np.ndarray
) -> dict[str, np.ndarray]:
    weights = np.stack(list(mixtures.values()), axis=1)
    totals = weights.sum(1)
    for k in keep:
        if (weights[k] < 0).any():
            name = list(mixtures)[int(np.argmin(weights[k]))]
            raise ValueError(
                f"{cells.where(k)}: the weight of {name!r} is negative, {weights[k].min():g}."
            )
        # a total of zero misses one as well, so the division below is safe
        if abs(totals[k] - 1) > _TOLERANCE + 1e-12:
            raise ValueError(
                f"{cells.where(k)}: the weights sum to {totals[k]:g}, expected 1 (within "
                f"{_TOLERANCE:.0%}); give proportions, and name all of their columns in mixture=."
            )
    totals = np.where(np.abs(totals - 1) < 0.5, totals, 1.0)  # rows that are dropped
    return {name: weights[:, i] / totals for i, name in enumerate(mixtures)}


def _joined(blocks: list[_Block]) -> RunTable:
    first = blocks[0]
    for block in blocks[1:]:
        for what in ("mixtures", "metrics", "columns"):
            ours, theirs = set(getattr(first, what)), set(getattr(block, what))
            if ours != theirs:
                odd = ", ".join(sorted(ours ^ theirs))
                raise ValueError(
                    f"the runs {first.labels[0]} and {block.labels[0]} do not have the same "
                    f"{what}: {odd}. Read their files apart, or name the columns that both have."
                )

    def joined(what: str, name: str) -> np.ndarray:
        return np.concatenate([getattr(block, what)[name] for block in blocks])

    labels = tuple(label for block in blocks for label in block.labels)
    unknown = np.full(len(labels), math.nan)
    parts = [joined("mixtures", name) for name in first.mixtures]
    return RunTable(
        mixtures=np.stack(parts, axis=1) if parts else np.empty((len(labels), 0)),
        sources=tuple(first.mixtures),
        scale=joined("columns", "scale") if "scale" in first.columns else unknown,
        steps=joined("columns", "steps") if "steps" in first.columns else unknown.copy(),
        metrics={name: joined("metrics", name) for name in first.metrics},
        cost=joined("columns", "cost") if "cost" in first.columns else None,
        labels=labels,
    )


def _by_scale(table: RunTable, given: Mapping[Any, float], name: str) -> np.ndarray:
    """A number for each run from a mapping whose keys are sizes."""
    sizes = {parse_scale(key): float(value) for key, value in given.items()}
    for size, value in sizes.items():
        if not value > 0:
            raise ValueError(f"{name}: expected positive numbers, got {value!r} at {size:g}.")
    lacking = [f"{size:g}" for size in table.scales if size not in sizes]
    if lacking:
        raise ValueError(f"{name}: nothing is given for the scale {', '.join(lacking)}.")
    return np.array([sizes[size] for size in table.scale.tolist()])


def _priced(table: RunTable, tokens: Any, costs: Any) -> RunTable:
    if tokens is not None:
        if not np.isnan(table.steps).all():
            raise ValueError("tokens: the file has a column of the length; give one of them.")
        table = table._replace(steps=_by_scale(table, tokens, "tokens"))
    if costs is not None:
        if table.cost is not None:
            raise ValueError("costs: the file has a column of the price; give one of them.")
        return table._replace(cost=_by_scale(table, costs, "costs"))
    if table.cost is None and not np.isnan(table.scale * table.steps).any():
        compute = table.scale * table.steps
        table = table._replace(cost=compute / compute.min())
    return table


def _warn_of_constants(table: RunTable) -> None:
    """Say which metrics do not vary among the runs of a size: they cannot tell mixtures apart."""
    groups = table.scales if not np.isnan(table.scale).any() else (math.nan,)
    for size in groups:
        chosen = np.ones(table.num_runs, bool) if math.isnan(size) else table.scale == size
        if chosen.sum() < 2:
            continue
        for name, values in table.metrics.items():
            if np.ptp(values[chosen]) == 0:
                at = "" if math.isnan(size) else f" of scale {size:g}"
                warnings.warn(
                    f"metric {name!r} is {values[chosen][0]:g} in all {chosen.sum()} runs{at}.",
                    stacklevel=3,
                )


def _close(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        return f"; did you mean {' or '.join(repr(c) for c in close)}?"
    return f"; there are {', '.join(known)}."
