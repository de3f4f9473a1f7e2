"""The tour: contextual bandits on real images, each decision derived from a model."""

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import decisionppl as dp
from decisionppl.experiment import Environment, Result, run

NUM_ARMS = 10


class Player(NamedTuple):
    """One line of the table: a name, a model, and the rule that decides from it."""

    name: str
    model: Callable
    rule: Callable


def linear(x: jax.Array) -> None:
    """Which digit is this? A guess is right or wrong; linear probability of being right."""
    w = numpyro.sample("w", dist.Normal(0, 0.3).expand([NUM_ARMS, x.shape[-1]]).to_event(2))
    digit = dp.action("digit", NUM_ARMS, given=x)
    dp.reward("right", dist.Normal(w[digit] @ x, 0.3))


def logistic(x: jax.Array) -> None:
    """The same with a logistic probability of being right, one in ten before anything is seen."""
    w = numpyro.sample("w", dist.Normal(0, 1.0).expand([NUM_ARMS, x.shape[-1]]).to_event(2))
    digit = dp.action("digit", NUM_ARMS, given=x)
    dp.reward("right", dist.BernoulliLogits(w[digit] @ x - math.log(NUM_ARMS - 1)))


def digits() -> tuple[jax.Array, jax.Array]:
    """scikit-learn's 1,797 handwritten digits: contexts [images, 65] in [0, 1], labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    contexts = np.concatenate([images / 16.0, np.ones((len(images), 1))], axis=1)
    return jnp.asarray(contexts, jnp.float32), jnp.asarray(labels)


def shuffled(contexts: jax.Array, labels: jax.Array) -> Environment:
    """Labelled examples as a bandit: each replication sees them in an order of its own."""

    def step(key: Any, order: Any, t: Any, context: Any, action: Mapping[str, Any]) -> Any:
        return {"right": action["digit"] == labels[order[t]]}

    def value(order: Any, t: Any, context: Any, actions: Mapping[str, Any]) -> jax.Array:
        return (actions["digit"] == labels[order[t]]).astype(float)

    return Environment(
        init=lambda key: jax.random.permutation(key, len(labels)),
        context=lambda key, order, t: (contexts[order[t]],),
        step=step,
        value=value,
    )


def players() -> list[Player]:
    """Who plays: the first four differ only in the model or in the rule."""
    return [
        Player("Thompson, linear", linear, dp.rules.thompson),
        Player("Thompson, logistic", logistic, dp.rules.thompson),
        Player("UCB 95 %, linear", linear, functools.partial(dp.rules.ucb, quantile=0.95)),
        Player("greedy, linear", linear, dp.rules.greedy),
        Player("uniform", linear, dp.rules.uniform),
    ]


def play_all(seed: int, shuffles: int, images: int, progress: bool | None) -> dict[str, Result]:
    """Run every player on the same shuffles."""
    contexts, labels = digits()
    environment = shuffled(contexts, labels)
    engines = {m: dp.inference.laplace(m, contexts[0]) for m in (linear, logistic)}
    results = {}
    for player in players():
        results[player.name] = run(
            player.model, engines[player.model], player.rule, environment, images,
            key=seed, replications=shuffles, progress=progress, propensities=False,
        )  # fmt: skip
    return results


def table(results: Mapping[str, Result]) -> list[tuple[str, ...]]:
    """Rows of the table: name, mean reward, regret, its standard error, compile, run."""
    rows = []
    for name, result in results.items():
        reward = float(result.data["right"].mean())
        regret = np.asarray(result.data["regret"].sum("round"))
        error = float(regret.std(ddof=1) / np.sqrt(len(regret))) if len(regret) > 1 else np.nan
        rows.append((
            name, f"{reward:.3f}", f"{regret.mean():.1f}", f"{error:.1f}",
            f"{result.attrs['compile_seconds']:.1f}", f"{result.attrs['run_seconds']:.1f}",
        ))  # fmt: skip
    return rows


HEADER = ("rule, model", "mean reward", "regret", "std. error", "compile s", "run s")


def tour(
    out: Any, seed: int = 0, shuffles: int = 20, images: int = 1797, progress: bool | None = None
) -> dict[str, Result]:
    """Run the tour and write `regret.png` and `tour.nc` into the folder `out`.

    Args:
        out: folder, made as needed.
        seed: of the shuffles and the draws.
        shuffles: replications.
        images: rounds, at most 1,797.
        progress: as in `experiment.run`.

    Returns:
        dict from player to `Result`.

    Raises:
        ValueError: numbers out of range.
    """
    if not 2 <= images <= 1797:
        raise ValueError(f"images: expected 2 to 1797, got {images}.")
    import xarray as xr

    from decisionppl import plots
    from decisionppl._plots_style import make_axes
    from decisionppl._storage import atomic_path, write_groups

    results = play_all(seed, shuffles, images, progress)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    title = "Handwritten digits: what each decision rule costs"
    ax = plots.regret(results, title=title, units="wrong guesses", ax=make_axes())
    with atomic_path(folder / "regret.png") as path:
        ax.figure.savefig(path, dpi=150, format="png")
    named = {n: r.data.assign_attrs(player=n, **r.file_attributes()) for n, r in results.items()}
    groups = {f"player_{i}": named[n] for i, n in enumerate(named)}
    summary = xr.Dataset(attrs={"players": "; ".join(named), "seed": seed})
    write_groups(folder / "tour.nc", {"tour": summary, **groups})
    return results
