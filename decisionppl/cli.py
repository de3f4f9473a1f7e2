"""The command line: `decisionppl tour`, `models`, `run`, `report`, `show` and `validate`."""

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

# One OpenBLAS thread: several spin against each other on small matrices. Only this program's
# own process is concerned, and a choice the user has made stands.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import typer

from decisionppl._cli_run import buy_runs, compare_policies, print_table

app = typer.Typer(
    help="Write a decision problem once, as a NumPyro model; get the decision from it.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RULES = (
    "thompson", "top_two", "greedy", "ucb", "probability_of_best", "information_directed",
    "expected_improvement", "log_ei", "epsilon_greedy", "uniform",
)  # fmt: skip

Out = Annotated[Path, typer.Option(help="Folder for plots and netCDF files.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]


@app.command()
def tour(
    out: Out = Path("tour"),
    seed: Seed = 0,
    shuffles: Annotated[int, typer.Option(min=1, help="Replications.")] = 20,
    images: Annotated[int, typer.Option(min=2, max=1797, help="Rounds per shuffle.")] = 1797,
) -> None:
    """Contextual bandits on 1,797 real images of handwritten digits, five rules side by side."""
    from decisionppl import _tour

    typer.echo(
        f"{images} handwritten digits in {shuffles} shuffles: each image is a context, each guess "
        "an action,\nand only whether the guess was right is seen."
    )
    results = _tour.tour(out, seed, shuffles, images)
    print_table(_tour.HEADER, _tour.table(results))
    typer.echo(f"wrote {out / 'regret.png'} and {out / 'tour.nc'}")


@app.command()
def models() -> None:
    """List the gallery: models, their parameters, and what each reproduces."""
    from decisionppl.models import GALLERY

    rows = []
    for name, entry in GALLERY.items():
        parameters = " ".join(f"{k}={v}" for k, v in entry.parameters.items())
        rows.append((name, entry.summary, parameters, entry.source))
    print_table(("name", "problem", "parameters", "source"), rows)


def _parse(settings: list[str]) -> dict[str, float]:
    parsed = {}
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator or not name:
            raise ValueError(f"--set {setting!r}: expected name=value.")
        try:
            parsed[name] = float(text)
        except ValueError:
            raise ValueError(f"--set {setting!r}: {text!r} is not a number.") from None
    return parsed


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="A name that `decisionppl models` lists.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A parameter of the model, as name=value.")
    ] = None,
    out: Out = Path("run"),
    rule: Annotated[str, typer.Option(help=f"One of {', '.join(RULES)}.")] = "thompson",
    horizon: Annotated[int, typer.Option(min=1, help="Rounds.")] = 500,
    replications: Annotated[int, typer.Option(min=1, help="Independent repetitions.")] = 100,
    seed: Seed = 0,
    runs: Annotated[
        Path | None,
        typer.Option(help="data_mixture: folder or CSV file of training runs, see load_runs."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="data_mixture: what may be spent on runs.")
    ] = None,
    metric: Annotated[str, typer.Option(help="data_mixture: the loss, or mean of all.")] = "mean",
    instance: Annotated[
        str | None, typer.Option(help="queue: a network by name, such as criss_cross_bh.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="queue: policies to compare, separated by commas.")
    ] = None,
    events: Annotated[int, typer.Option(min=1, help="queue: events of each run.")] = 100_000,
) -> None:
    """Run a gallery model at worlds drawn from its prior; write netCDF and a regret plot.

    data_mixture buys runs of a table within a budget, and recommends a mixture for the largest
    scale; --set SCALE=PRICE prices a run at each scale, such as --set 1m=1 --set 1B=25000.

    queue compares policies of a queueing network: --instance criss_cross_bh --policy
    max_weight,cmu,pathwise; costs per unit of time with intervals, and a plot of its queues.
    """
    from decisionppl import experiment, plots, rules
    from decisionppl._plots_style import make_axes
    from decisionppl._storage import atomic_path
    from decisionppl.models import build

    if name == "queue":
        compare_policies(instance, policy, events, replications, out, seed)
        return
    if instance is not None or policy is not None:
        raise ValueError(f"--instance and --policy belong to queue, not to {name}.")
    if name == "data_mixture":
        buy_runs(runs, budget, metric, _parse(settings or []), out, seed)
        return
    if runs is not None or budget is not None:
        raise ValueError(f"--runs and --budget belong to data_mixture, not to {name}.")
    if rule not in RULES:
        raise ValueError(f"no rule named {rule!r}; there are {', '.join(RULES)}.")
    problem = build(name, **_parse(settings or []))
    result = experiment.run(
        problem.model, problem.engine(), getattr(rules, rule), None, horizon,
        key=seed, replications=replications, contexts=problem.contexts,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    result.save(out / f"{name}.nc")
    with atomic_path(out / f"{name}.png") as path:
        ax = plots.regret({rule: result}, title=name, ax=make_axes())
        ax.figure.savefig(path, dpi=150, format="png")
    total = result.data["regret"].sum("round")
    error = float(total.std(ddof=1)) / replications**0.5 if replications > 1 else float("nan")
    print_table(
        ("rule", "rounds", "replications", "regret", "std. error", "compile s", "run s"),
        [(rule, str(horizon), str(replications), f"{float(total.mean()):.2f}", f"{error:.2f}",
          f"{result.attrs['compile_seconds']:.1f}", f"{result.attrs['run_seconds']:.1f}")],
    )  # fmt: skip
    typer.echo(f"wrote {out / f'{name}.nc'} and {out / f'{name}.png'}")


@app.command()
def validate(
    target: Annotated[
        str, typer.Argument(help="module:model, file.py:model, or a name of the gallery.")
    ],
    arguments: Annotated[
        str | None,
        typer.Option(
            "--args",
            help="The model's arguments, as a Python literal such as '(1.0, [0.5, 2.0])', or as "
            "module:name of a tuple or of a function (key, t) -> arguments.",
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="auto, conjugate, laplace, nuts, svi, or module:name.")
    ] = "auto",
    rows: Annotated[int, typer.Option(min=1, help="Rows of each simulated data set.")] = 20,
    simulations: Annotated[int, typer.Option(min=2, help="Data sets simulated.")] = 200,
    plot: Annotated[Path | None, typer.Option(help="Write a plot of all statistics.")] = None,
    seed: Seed = 0,
) -> int:
    """Check a model and its inference; exit code 1 if a check fails."""
    from rich.console import Console

    from decisionppl import _target, testing
    from decisionppl._plots_style import make_axes
    from decisionppl._storage import atomic_path

    model, args, contexts = _model_of(target, arguments)
    inference = _target.load(engine) if ":" in engine else engine
    report = testing.validate(
        model, *args, key=seed, inference=inference, contexts=contexts, num_rows=rows,
        num_simulations=simulations, progress=sys.stderr.isatty(),
    )  # fmt: skip
    Console().print(report)
    if plot is not None:
        with atomic_path(plot) as path:
            ax = report.plot(title=target, ax=make_axes())
            ax.figure.savefig(path, dpi=150, format="png")
        typer.echo(f"wrote {plot}")
    return 0 if report.passed else 1


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A file that `result.save` wrote.")],
    out: Annotated[
        Path | None, typer.Option(help="The page; default beside the file, as .html.")
    ] = None,
) -> None:
    """Write a saved experiment as one HTML page: summary, plots, model, how it was made."""
    from decisionppl import _report

    typer.echo(f"wrote {_report.report(run, out)}")


def _model_of(target: str, arguments: str | None) -> tuple[Any, tuple, Any]:
    """The model that a target names, its arguments, and where those come from per row."""
    from decisionppl import _target
    from decisionppl.models import GALLERY, build

    problem = build(target) if target in GALLERY else _target.load(target)
    model = getattr(problem, "model", problem)
    args, contexts = getattr(problem, "args", ()), getattr(problem, "contexts", None)
    if arguments is not None:
        given = _target.arguments(arguments)
        args, contexts = ((), given) if callable(given) else (given, None)
        args = args if isinstance(args, tuple) else (args,)
    if not callable(model):
        raise TypeError(f"{target!r} is {type(model).__name__}, expected a model (a function).")
    return model, args, contexts


@app.command()
def show(
    target: Annotated[
        str, typer.Argument(help="module:model, file.py:model, or a name of the gallery.")
    ],
    arguments: Annotated[
        str | None,
        typer.Option("--args", help="The model's arguments, as for `validate`."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write the graph, as .png, .svg or .pdf.")
    ] = None,
    dot: Annotated[Path | None, typer.Option(help="Write the graph for Graphviz.")] = None,
) -> None:
    """Show a model's sites: roles, laws, shapes, and what depends on what."""
    import jax
    from rich.console import Console

    from decisionppl._show import show as view_of
    from decisionppl._storage import atomic_path

    model, args, contexts = _model_of(target, arguments)
    if contexts is not None and not args:
        args = contexts(jax.random.key(0), 0)
        args = args if isinstance(args, tuple) else (args,)
    view = view_of(model, *args)
    if sys.stdout.isatty():
        Console().print(view)  # as wide as the terminal
    else:
        typer.echo(str(view))
    if plot is not None:
        suffix = plot.suffix[1:].lower()
        if suffix not in ("png", "svg", "pdf"):
            raise ValueError(f"--plot {plot}: expected a name that ends in .png, .svg or .pdf.")
        with atomic_path(plot) as path:
            view._drawn().savefig(path, dpi=150, format=suffix)
        typer.echo(f"wrote {plot}")
    if dot is not None:
        with atomic_path(dot) as path:
            path.write_text(view.dot(), encoding="utf-8")
        typer.echo(f"wrote {dot}")


def _fail(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> Any:
    """Entry point: bad names and values are one line on standard error and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    command = functools.partial(app, args=arguments, prog_name="decisionppl")
    try:
        outcome = command(standalone_mode=False)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted")
    except (ValueError, TypeError, OSError) as error:
        _fail(" ".join(str(error).split()))
    except Exception as error:
        if not hasattr(error, "format_message"):  # not an error of the command line
            raise
        _fail(error.format_message())  # pyright: ignore
    else:
        sys.exit(outcome if isinstance(outcome, int) else 0)


if __name__ == "__main__":
    main()
