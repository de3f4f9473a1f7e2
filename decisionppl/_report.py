"""A saved experiment as one HTML page that needs nothing else."""

import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from decisionppl._report_numbers import Run, Table, by_arm, by_rounds, totals
from decisionppl._report_plots import image, pictures
from decisionppl._result import Result, _unplain
from decisionppl._show import HEADER, ModelView, html_table
from decisionppl._storage import atomic_path, read_group

_SIGNATURE = b"\x89HDF\r\n\x1a\n"

# what other files of this library hold, by a group of theirs
_OTHERS = {
    "ask_tell": "the state of an Experiment that asks and is told; load it with Experiment.load",
    "search": "a search of a table of runs, of `decisionppl run data_mixture`, which has drawn it",
}


def report(path: Any, out: Any = None) -> Path:
    """Write the report of a saved experiment.

    Args:
        path: a file of `Result.save`, a checkpoint of `experiment.run`, or `tour.nc`.
        out: the page; default beside the file, with the ending .html.

    Returns:
        Where it was written.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a netCDF file, a damaged one, or one that holds no experiment.
    """
    target = Path(path).with_suffix(".html") if out is None else Path(out)
    if target.resolve() == Path(path).resolve():
        raise ValueError(f"--out {target}: this is the file of the experiment itself.")
    text = page(read(path), Path(path).name)
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target


def read(path: Any) -> list[Run]:
    """The experiments in a file.

    Raises:
        FileNotFoundError, ValueError: see `report`.
    """
    import h5netcdf

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    with open(path, "rb") as file:
        if file.read(len(_SIGNATURE)) != _SIGNATURE:
            raise ValueError(f"{path}: not a netCDF file; expected one that result.save wrote.")
    try:
        with h5netcdf.File(path, "r") as file:
            groups = list(file.groups)
        if "experiment" in groups:
            return [_run(path, "experiment", "")]
        players = [g for g in groups if g.startswith("player_")]
        if "tour" in groups and players:
            return [_run(path, g, None) for g in sorted(players, key=lambda g: int(g[7:]))]
    except (OSError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: the file is damaged or cut off ({type(error).__name__}: {error})."
        ) from error
    for group, words in _OTHERS.items():
        if group in groups:
            raise ValueError(f"{path}: it holds {words}. A report is of experiment.run's result.")
    raise ValueError(
        f"{path}: it holds no experiment (its groups: {groups or 'none'}). A report is of a file "
        "that result.save or a checkpoint of experiment.run wrote."
    )


def _run(path: Any, group: str, label: str | None) -> Run:
    data = read_group(path, group)
    attrs = {k: _unplain(v) for k, v in data.attrs.items()}
    for axis in ("replication", "round"):
        if not data.sizes.get(axis):
            raise ValueError(f"{path}: its data have no {axis}s, so this is no experiment.")
    described, model, lacks = attrs.pop("model_sites", None), None, ""
    if described is None:
        lacks = "The file does not say the model's sites and roles: it was written before it could."
    elif "error" in described:
        lacks = f"The model's sites could not be described when it was saved: {described['error']}"
    else:
        try:
            model = ModelView.from_dict(described)
        except (ValueError, KeyError, TypeError) as error:
            lacks = f"The file's description of the model cannot be read: {error}"
    name = str(attrs.pop("player", "")) if label is None else label
    return Run(name, Result(data.drop_attrs(), attrs, []), model, lacks)


def page(runs: Sequence[Run], name: str) -> str:
    """The page of experiments.

    Args:
        runs: of one file.
        name: of the file.
    """
    title = f"Experiment: {_all(runs, 'model')}; {_all(runs, 'rule')}"
    body = [f"<h1>{escape(title)}</h1>", f"<p>{escape(_opening(runs, name))}</p>"]
    body += [f'<p class="note">{escape(w)}</p>' for w in _warnings(runs)]
    body.append(_section("Summary", _table("Summary", totals(runs)), _INTERVALS))
    body.append(_section("Plots", *pictures(runs)))
    for run in runs:
        suffix = f": {run.label}" if run.label else ""
        table = by_rounds(run)
        body.append(_section(f"By rounds{suffix}", _table(f"By rounds{suffix}", table)))
        arms, words = by_arm(run)
        parts = [_table(f"By arm{suffix}", arms)] if arms[1] else []
        body.append(_section(f"By arm{suffix}", *parts, words))
    shown: list[str] = []
    for run in runs:
        text = _model(run)
        if text not in shown:
            shown.append(text)
            body.append(text)
    body.append(_section("How it was made", _table("How it was made", _made(runs))))
    return _frame(title, "\n".join(body))


def _all(runs: Sequence[Run], name: str) -> str:
    found = dict.fromkeys(_value(r.result.attrs.get(name, f"{name} not said")) for r in runs)
    return ", ".join(text.strip("'") for text in found)


_INTERVALS = (
    "Means over replications; ± is half the width of a 95 % interval (Student's t over "
    "replications), absent with a single replication."
)


def _opening(runs: Sequence[Run], name: str) -> str:
    first = runs[0].result
    sizes = first.data.sizes
    many = f"{len(runs)} runs, each of" if len(runs) > 1 else "One run of"
    batch = f", {sizes['unit']} decisions a round" if "unit" in sizes else ""
    return (
        f"{many} {sizes['replication']} replications and {sizes['round']} rounds{batch}, read "
        f"from {name}."
    )


def _warnings(runs: Sequence[Run]) -> list[str]:
    words = []
    for run in runs:
        of = f"{run.label}: " if run.label else ""
        attrs, data = run.result.attrs, run.result.data
        if attrs.get("complete") is False:
            words.append(
                f"{of}The run was interrupted after {run.result.rounds} of "
                f"{attrs.get('horizon', '?')} rounds."
            )
        if "regret" not in data:
            words.append(f"{of}There is no regret in the file: expected utilities were not known, "
                         "or regret was not asked for.")  # fmt: skip
        if data.sizes["replication"] == 1:
            words.append(f"{of}A single replication: nothing is said of chance between runs.")
        if run.lacks:
            words.append(f"{of}{run.lacks}")
    return words


def _model(run: Run) -> str:
    name = str(run.result.attrs.get("model", "?"))
    if run.model is None:
        return _section(f"Model: {name}", run.lacks)
    table = _scrolled(f"Sites of {name}", html_table(HEADER, run.model.rows()))
    words = (
        f"Graph of {name}: boxes are decisions, hexagons rewards and costs, ellipses random sites, "
        "grey what is seen. Solid arrows are dependencies, broken ones what a policy sees."
    )
    return _section(f"Model: {name}", table, image(run.model._drawn().axes[0], words))


def _made(runs: Sequence[Run]) -> Table:
    names = {
        "decisionppl": "decisionppl", "numpyro": "NumPyro", "jax": "JAX", "model": "model",
        "model_hash": "hash of the model's source", "rule": "rule", "key": "key (seed)",
        "draws": "worlds drawn per decision", "batch": "decisions per round",
        "delay": "rounds until outcomes arrive", "horizon": "horizon", "complete": "complete",
        "device": "device", "dtype": "numbers", "compile_seconds": "seconds to compile",
        "run_seconds": "seconds to run",
    }  # fmt: skip
    rest = sorted({k for r in runs for k in r.result.attrs} - set(names) - {"replications"})
    rows = []
    for key in (*names, *rest):
        if any(key in r.result.attrs for r in runs) or key in ("decisionppl", "key", "device"):
            cells = [_value(r.result.attrs.get(key, "not in the file")) for r in runs]
            same = len(set(cells)) == 1
            rows.append((names.get(key, key), *(cells[:1] if same else ["; ".join(cells)])))
    return ("what", "value"), rows


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))  # a place in memory says nothing


def _table(label: str, table: Table) -> str:
    return _scrolled(label, html_table(*table))


def _scrolled(label: str, table: str) -> str:
    name = escape(label)
    return f'<div class="wide" role="region" tabindex="0" aria-label="{name}">{table}</div>'


def _section(title: str, *parts: str) -> str:
    inner = "".join(p if p.startswith("<") else f"<p>{escape(p)}</p>" for p in parts if p)
    return f"<section><h2>{escape(title)}</h2>{inner}</section>"


_STYLE = """
:root { color-scheme: light dark; --line: #c8c8c8; --note: #fff4d6; --text: #1a1a1a; --back: #fff }
@media (prefers-color-scheme: dark) {
  :root { --line: #555; --note: #3d3415; --text: #ececec; --back: #16181b }
}
body { font: 1rem/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 62rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin-top: 2rem; overflow-wrap: anywhere }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top }
td:first-child { white-space: nowrap }
figure { margin: 1rem 0 }
figure img { max-width: 100%; height: auto; background: #fff; border-radius: 4px }
figcaption { font-size: .9rem }
.note { background: var(--note); padding: .5rem .8rem; border-radius: 4px }
@media print {
  :root { --line: #999; --note: #fff; --text: #000; --back: #fff }
  body { max-width: none; font-size: 10pt }
  section, figure, tr { break-inside: avoid }
  .wide { overflow: visible }
}
"""


def _frame(title: str, body: str) -> str:
    # nothing may be fetched or run, whatever a name in the file says
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n"
        "</main>\n</body>\n</html>\n"
    )
