"""Numbers of saved experiments: means over replications, with intervals, by rounds and by arms."""

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from decisionppl._result import Result
from decisionppl._show import ModelView

_BLOCKS = 5
_MOST_ARMS = 20
_STATISTICS = ("propensity", "regret", "action_index")

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # header, rows


class Run(NamedTuple):
    """One saved experiment.

    Attributes:
        label: empty where there is one alone.
        result: its data and attributes.
        model: its sites, or None where the file lacks them.
        lacks: why, in a sentence.
    """

    label: str
    result: Result
    model: ModelView | None
    lacks: str


class Column(NamedTuple):
    """A quantity per decision, [replications, rounds]; of a round of several, their mean."""

    name: str
    values: np.ndarray


def columns(run: Run) -> list[Column]:
    """Reward, cost, their parts and regret; without roles every logged site of numbers."""
    data = run.result.data
    by_role = {"reward": [], "cost": []}
    others = []
    for name in data.data_vars:
        if name in _STATISTICS:
            continue
        role = _role(run.model, str(name))
        if role in by_role:
            by_role[role].append(name)
        elif run.model is None:
            others.append(name)
    found = []
    for role, names in by_role.items():
        parts = [Column(f"{role} {n}" if n != role else role, per_round(data[n])) for n in names]
        if len(parts) > 1:
            found.append(Column(f"{role} in all", np.sum([p.values for p in parts], axis=0)))
        found += parts
    found += [Column(str(n), per_round(data[n])) for n in others]
    if "regret" in data:
        found.append(Column("regret", per_round(data["regret"])))
    return [c for c in found if c.values.ndim == 2]


def _role(model: ModelView | None, name: str) -> str:
    nodes = () if model is None else model.sites
    return next((n.role for n in nodes if n.name == name), "")


def per_round(variable: Any) -> np.ndarray:
    """[replications, rounds]: entries of a vector are summed, decisions of a round averaged."""
    kept = ("replication", "round", "unit")
    total = variable.astype(float).sum([d for d in variable.dims if d not in kept])
    if "unit" in total.dims:
        total = total.mean("unit")
    return np.asarray(total.transpose("replication", "round"))


def interval(values: np.ndarray) -> str:
    """Mean of one number per replication, with the half width of its 95 % interval (t law)."""
    from scipy.stats import t

    values = values[np.isfinite(values)]
    if not len(values):
        return ""
    mean, count = values.mean(), len(values)
    if count == 1:
        return f"{mean:.4g}"
    half = t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count)
    if half == 0 or not np.isfinite(half):
        return f"{mean:.4g}\u00a0±\u00a00"
    places = max(0, 1 - int(np.floor(np.log10(half))))
    return f"{mean:.{places}f}\u00a0±\u00a0{half:.{places}f}"


def totals(runs: Iterable[Run]) -> Table:
    """One row per run: size, means per decision, and totals of what adds up."""
    runs = list(runs)
    rows: list[dict[str, str]] = []
    for run in runs:
        sizes = run.result.data.sizes
        row = {"run": run.label, "replications": str(sizes["replication"]),
               "rounds": str(sizes["round"])}  # fmt: skip
        for column in columns(run):
            row[f"{column.name} per decision"] = interval(column.values.mean(1))
        if "regret" in run.result.data:
            regret = run.result.data["regret"]
            total = np.asarray(regret.sum([d for d in regret.dims if d != "replication"]))
            row["regret in total"] = interval(total)
        rows.append(row)
    header = list(dict.fromkeys(k for row in rows for k in row))
    if len(runs) == 1 and not runs[0].label:
        header.remove("run")
    return tuple(header), [tuple(row.get(k, "") for k in header) for row in rows]


def by_rounds(run: Run) -> Table:
    """Means per decision in up to five blocks of rounds."""
    found, rounds = columns(run), run.result.rounds
    edges = np.unique(np.linspace(0, rounds, min(_BLOCKS, rounds) + 1).round().astype(int))
    first = int(run.result.data["round"].values[0]) if "round" in run.result.data.coords else 0
    rows = []
    for start, stop in itertools.pairwise(edges):
        cells = [interval(c.values[:, start:stop].mean(1)) for c in found]
        name = f"{first + start + 1} to {first + stop}" if stop - start > 1 else f"{first + stop}"
        rows.append((name, *cells))
    return ("rounds", *(f"{c.name} per decision" for c in found)), rows


def by_arm(run: Run) -> tuple[Table, str]:
    """Share of decisions and means of every arm; with a sentence where there is none or not all."""
    data = run.result.data
    if "action_index" not in data:
        return ((), []), "The action space is not finite, so there is no table by arm."
    index = np.asarray(data["action_index"])
    count = len(index)
    arms, often = np.unique(index, return_counts=True)
    order = np.argsort(-often, kind="stable")[:_MOST_ARMS]
    names = _arm_names(run, index)
    raw = []
    for column in columns(run):
        name = column.name.split(" ", 1)[-1]
        if name in data:
            total = data[name].astype(float)
            extra = [d for d in total.dims if d not in ("replication", "round", "unit")]
            raw.append((column.name, np.asarray(total.sum(extra)).reshape(count, -1)))
    flat = index.reshape(count, -1)
    rows = []
    for arm in sorted(arms[order]):
        here = flat == arm
        cells = [f"{names[arm]}", interval(100 * here.mean(1))]
        for _, values in raw:
            taken = np.where(here, values, 0.0).sum(1)
            times = here.sum(1)
            cells.append(interval(np.where(times > 0, taken / np.maximum(times, 1), np.nan)))
        rows.append(tuple(cells))
    left = len(arms) - len(rows)
    words = f"{left} more arms were chosen less often." if left else ""
    header = ("arm", "chosen (% of decisions)", *(f"{n} per choice" for n, _ in raw))
    return (header, rows), words


def _arm_names(run: Run, index: np.ndarray) -> dict[int, str]:
    """By the values of the action sites, where those are known to be short."""
    data, model = run.result.data, run.model
    sites = [n.name for n in (() if model is None else model.sites) if n.role == "action"]
    sites = [n for n in sites if n in data]
    names = {}
    flat = index.ravel()
    for arm in np.unique(flat):
        at = int(np.flatnonzero(flat == arm)[0])
        values = [np.asarray(data[n]).reshape(flat.size, -1)[at] for n in sites]
        words = [f"{n} {', '.join(f'{x:g}' for x in v)}" for n, v in
                 zip(sites, values, strict=True) if len(v) <= 6]  # fmt: skip
        names[int(arm)] = "; ".join(words) if len(words) == len(sites) and words else f"{arm}"
    return names
