"""What `decisionppl run` does for queues and for tables of training runs; tables in a terminal."""

from collections.abc import Sequence
from pathlib import Path

import typer


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns, numbers at the right."""
    widths = [max(len(r[i]) for r in (header, *rows)) for i in range(len(header))]
    numeric = [all(_is_number(r[i]) for r in rows) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [
            c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)
        ]
        return "  ".join(cells).rstrip()

    for row in (header, ["-" * w for w in widths], *rows):
        typer.echo(line(row))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def compare_policies(
    instance: str | None, policies: str | None, events: int, runs: int, out: Path, seed: int
) -> None:
    """`decisionppl run queue`: costs of policies of a network."""
    import numpy as np

    from decisionppl import plots
    from decisionppl._plots_style import make_axes
    from decisionppl._storage import atomic_path, write_groups
    from decisionppl.models import queueing

    net = queueing.instance(instance or "criss_cross_bh")
    names = (policies or "cmu,max_weight,max_pressure").split(",")
    rules = {n: queueing.make_policy(net, n.strip(), key=seed) for n in names}
    results = {
        n: queueing.simulate(net, r, events, key=seed, num_runs=runs) for n, r in rules.items()
    }
    rows = []
    for n, found in results.items():
        cost = found.average()
        low, high = cost.interval
        rows.append((n, f"{cost.estimate:.3f}", f"{low:.3f}", f"{high:.3f}",
                     " ".join(f"{x:.2f}" for x in found.queues())))  # fmt: skip
    print_table(("policy", "cost", "95 % from", "to", "mean queues"), rows)
    out.mkdir(parents=True, exist_ok=True)
    first = next(iter(results.values()))
    if first.time.shape[0] * first.time.shape[1] < 20:
        typer.echo("few runs of few events: the intervals are rough.")
    write_groups(out / "queue.nc", {n: r.to_xarray() for n, r in results.items()})
    with atomic_path(out / "queue.png") as path:
        holding = np.asarray(net.holding)
        title = instance or "criss_cross_bh"
        ax = plots.queue_lengths(results, holding, title=title, ax=make_axes())
        ax.figure.savefig(path, dpi=150, format="png")
    typer.echo(f"wrote {out / 'queue.nc'} and {out / 'queue.png'}")


def buy_runs(
    runs: Path | None, budget: float | None, metric: str, prices: dict[str, float], out: Path,
    seed: int,
) -> None:  # fmt: skip
    """`decisionppl run data_mixture`: runs of a table bought within a budget."""
    import numpy as np

    from decisionppl import plots
    from decisionppl._plots_style import make_axes
    from decisionppl._storage import atomic_path, write_groups
    from decisionppl.models import data_mixture

    if runs is None or budget is None:
        raise ValueError("data_mixture needs --runs FOLDER and --budget NUMBER.")
    table = data_mixture.load_runs(runs, costs=prices or None)
    if table.cost is None:  # every run as long as any other: a step costs what the size says
        table = table._replace(cost=table.scale / table.scale.min())
    prices_of = np.asarray(table.cost)
    found = data_mixture.search(table, budget, key=seed, metric=metric)
    best = int(found.recommended[-1])
    levels = table.scale[found.bought]
    rows = [
        (f"{s:g}", f"{prices_of[table.scale == s].mean():g}", f"{(levels == s).sum()}",
         f"{(table.scale == s).sum()}")
        for s in table.scales
    ]  # fmt: skip
    print_table(("scale", "price", "bought", "on offer"), rows)
    weights = sorted(zip(table.mixtures[best], table.sources, strict=True), reverse=True)
    print_table(("source", "weight"), [(n, f"{w:.3f}") for w, n in weights if w > 0])
    low, high = (found.mean[-1] + z * found.sd[-1] for z in (-1.645, 1.645))
    typer.echo(
        f"recommended: {table.labels[best]}\npredicted {metric} loss at the largest scale: "
        f"{found.mean[-1]:.4f} (90 % {low:.4f} to {high:.4f})\nspent {found.spent[-1]:g} of "
        f"{budget:g} on {len(found.bought)} runs; regret {found.regret[-1]:.4f} by the table"
    )
    if not (levels == table.scales[-1]).any():
        typer.echo(
            "No run at the largest scale was bought: which mixture is best is learned from the "
            "others, but the level of the loss there is extrapolated by a scaling law alone, and "
            "its interval holds if that law does."
        )
    out.mkdir(parents=True, exist_ok=True)
    write_groups(out / "data_mixture.nc", {"search": found.to_xarray(table)})
    with atomic_path(out / "data_mixture.png") as path:
        panels = plots.mixture_search(found, table, ax=make_axes(13, 3.8, columns=3))
        panels[0].figure.savefig(path, dpi=150, format="png")
    typer.echo(f"wrote {out / 'data_mixture.nc'} and {out / 'data_mixture.png'}")
