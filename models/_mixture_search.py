"""Buying runs of a table one after the other: which mixture is best at the target, for how much."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import decisionppl as dp
from decisionppl import rules
from decisionppl._play import as_key
from decisionppl.inference import gaussian_process
from decisionppl.models._run_tables import RunTable

_STEPS = 40  # a decision buys runs for at least the budget's share in so many decisions,
_LARGEST_BATCH = 32  # but not more runs than this


class Search(NamedTuple):
    """What was bought of a table, and what it says.

    Attributes:
        bought: indices of the runs, in the order they were bought, [runs].
        spent: what had been paid after each, [runs].
        decisions: number of runs bought before each decision, and at the end, [decisions + 1].
        recommended: index of the run at the target whose mixture was thought best at each of
            these times, [decisions + 1].
        mean, sd: predicted loss of that mixture at the target and its uncertainty,
            [decisions + 1].
        regret: true loss of that mixture at the target less the least of all, [decisions + 1].
        belief, engine: what is known in the end.
    """

    bought: np.ndarray
    spent: np.ndarray
    decisions: np.ndarray
    recommended: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    regret: np.ndarray
    belief: Any
    engine: Any

    def to_xarray(self, table: RunTable) -> Any:
        """The search as an `xarray.Dataset`, with the names and mixtures of its table.

        Args:
            table: that was searched.
        """
        import xarray as xr

        run = {
            "bought": self.bought, "spent": self.spent, "scale": table.scale[self.bought],
        }  # fmt: skip
        decision = {
            "runs_bought": self.decisions, "recommended": self.recommended, "mean": self.mean,
            "sd": self.sd, "regret": self.regret,
        }  # fmt: skip
        return xr.Dataset(
            {
                **{n: ("run", v) for n, v in run.items()},
                **{n: ("decision", v) for n, v in decision.items()},
                "mixture": (("decision", "source"), table.mixtures[self.recommended]),
                "label": ("run", [table.labels[i] for i in self.bought]),
            },
            {"source": list(table.sources)},
            {"decisionppl": dp.__version__},
        )


class _Pool(NamedTuple):
    """The runs on offer: actions, losses, prices, and which are at the target."""

    actions: dict[str, jax.Array]
    losses: np.ndarray
    prices: np.ndarray
    target: np.ndarray


def search(
    table: RunTable,
    budget: float,
    *,
    key: Any,
    metric: Any = "mean",
    rule: Callable = rules.knowledge_gradient,
    num_initial: int = 32,
    fit: str = "map",
    progress: bool | None = None,
) -> Search:
    """Buy runs of a table within a budget to find the best mixture at the largest scale.

    The losses are in the table; the search sees those that it has paid for. It begins with runs
    drawn at random at the cheapest scale. Each decision then buys what the rule values most per
    unit of cost: one run, or several cheap ones chosen together (the later given the expected
    losses of the earlier), until a fortieth of the budget is spent or 32 are chosen.
    Hyperparameters are refitted after each decision, from where they were.

    Args:
        table: runs at one or more scales, with costs; the largest scale is the target, and
            its mixtures are those to choose among.
        budget: in the unit of the table's costs.
        key: PRNG key (typed or raw) or an int seed.
        metric: the loss, as in `RunTable.target`.
        rule: `rules.knowledge_gradient` or `rules.max_value_entropy`.
        num_initial: runs at the cheapest scale to begin with, fewer if a quarter of the budget
            does not pay for them.
        fit: of hyperparameters, "map", "laplace" or "nuts", see `inference.gaussian_process`.
        progress: show a progress bar; None shows it in a terminal.

    Returns:
        `Search`.

    Raises:
        ValueError: a table without costs, or a budget that pays for no run.

    Example:
        >>> import numpy as np
        >>> from decisionppl.models import data_mixture
        >>> rng = np.random.default_rng(0)
        >>> w = rng.dirichlet(np.ones(3), 40)
        >>> scale = np.repeat([1e6, 1e9], 20)
        >>> loss = (w @ np.array([0.0, 0.5, 1.0])) + (scale == 1e6)
        >>> table = data_mixture.RunTable(
        ...     w, ("a", "b", "c"), scale, np.full(40, np.nan), {"loss": loss},
        ...     np.where(scale == 1e6, 1.0, 50.0), tuple(map(str, range(40))))
        >>> found = data_mixture.search(table, 120.0, key=0, progress=False)
        >>> bool(found.spent[-1] <= 120.0), bool(found.regret[-1] < 0.05)
        (True, True)
    """
    from tqdm import tqdm

    from decisionppl.models.data_mixture import surface

    pool, prices = _pool(table, metric)
    if not budget >= pool.prices.min():
        raise ValueError(
            f"budget {budget!r} pays for no run; the cheapest costs {pool.prices.min():g}."
        )
    start_key, key = jax.random.split(as_key(key))
    bought = _initial(pool, start_key, budget, num_initial)
    seen = pool.losses[bought]
    spread = float(seen.std()) or 1.0
    model = surface(
        table.mixtures.shape[1], table.scales, price=prices, centre=float(seen.mean()),
        spread=spread,
    )  # fmt: skip
    engine = gaussian_process(model, fit=fit, num_restarts=1)
    tools = _tools(engine, pool, rule)
    belief = engine.update(key, engine.init(key), _rows(model, pool, bought))
    spent = list(np.cumsum(pool.prices[bought]))
    records: list[tuple] = []
    quiet = None if progress is None else not progress
    with tqdm(total=float(budget), initial=spent[-1], unit="cost", disable=quiet) as bar:
        while True:
            key, choose_key, fit_key = jax.random.split(key, 3)
            records.append((len(bought), *tools.recommend(belief)))
            batch = _batch(tools, pool, belief, choose_key, bought, budget - spent[-1], budget)
            if not batch:
                break
            bought = [*bought, *batch]
            spent += list(spent[-1] + np.cumsum(pool.prices[batch]))
            belief = engine.update(fit_key, belief, _rows(model, pool, batch))
            bar.update(float(pool.prices[batch].sum()))
    counts, best, mean, sd = (np.array(v) for v in zip(*records, strict=True))
    best = pool.target[best]
    regret = pool.losses[best] - pool.losses[pool.target].min()
    return Search(np.array(bought), np.array(spent), counts, best, mean, sd, regret, belief, engine)


def _pool(table: RunTable, metric: Any) -> tuple[_Pool, np.ndarray]:
    if table.cost is None:
        raise ValueError(
            "the table has no costs; load it with costs={scale: cost} or tokens={scale: tokens}."
        )
    scales = np.asarray(table.scales)
    level = np.searchsorted(scales, table.scale)
    losses = np.asarray(table.target(metric), float)
    if not np.isfinite(losses).all():
        bad = [table.labels[i] for i in np.flatnonzero(~np.isfinite(losses))[:3]]
        raise ValueError(f"losses of runs {bad} are not finite; load with drop_missing=True.")
    actions = {"mixture": jnp.asarray(table.mixtures, float), "size": jnp.asarray(level)}
    prices = np.array([np.mean(table.cost[level == i]) for i in range(len(scales))])
    target = np.flatnonzero(level == len(scales) - 1)
    return _Pool(actions, losses, np.asarray(table.cost, float), target), prices[:, None]


def _initial(pool: _Pool, key: Any, budget: float, num_initial: int) -> list[int]:
    cheapest = np.flatnonzero(pool.prices <= pool.prices.min() * (1 + 1e-9))
    affordable = max(1, int(budget / 4 / pool.prices.min()))
    count = min(num_initial, affordable, len(cheapest))
    order = np.asarray(jax.random.permutation(key, len(cheapest)))
    return cheapest[order[:count]].tolist()


def _take(pool: _Pool, index: Any) -> dict[str, jax.Array]:
    return {n: a[jnp.asarray(index)] for n, a in pool.actions.items()}


def _rows(model: Callable, pool: _Pool, index: list[int]) -> dp.Rows:
    sites = {n: np.asarray(a) for n, a in _take(pool, index).items()}
    return dp.observe(model, sites={**sites, "loss": pool.losses[index]})


class _Tools(NamedTuple):
    """Compiled parts: `choose(key, belief, mask) -> index`, `recommend(belief)`, `imagine`."""

    choose: Callable
    recommend: Callable
    imagine: Callable


def _tools(engine: Any, pool: _Pool, rule: Callable) -> _Tools:
    surrogate = engine.surrogate
    goal = _take(pool, pool.target)
    prices = jnp.asarray(pool.prices, float)

    @jax.jit
    def choose(key: Any, belief: Any, mask: jax.Array) -> jax.Array:
        view = surrogate.view(belief)
        known = surrogate.preposterior(view, pool.actions, goal, (), {}, False)
        return rule(key, known, mask=mask, cost=prices).action

    @jax.jit
    def best(belief: Any) -> tuple:
        law = surrogate.utility(surrogate.view(belief), goal, (), {}, False)
        mean = jnp.mean(law.loc, axis=0)
        sd = jnp.sqrt(jnp.mean(law.scale**2, axis=0) + jnp.var(law.loc, axis=0))
        i = jnp.argmax(mean)
        return i, -mean[i], sd[i]

    def recommend(belief: Any) -> tuple[int, float, float]:
        i, mean, sd = best(belief)
        return int(i), float(mean), float(sd)

    return _Tools(choose, recommend, partial(surrogate.fantasise, args=(), data={}))


def _batch(
    tools: _Tools, pool: _Pool, belief: Any, key: Any, bought: list[int], left: float, budget: float
) -> list[int]:
    """The runs to buy next; none if nothing new is affordable."""
    new: list[int] = []
    paid = 0.0
    while paid < budget / _STEPS and len(new) < _LARGEST_BATCH:
        mask = pool.prices <= left - paid
        mask[[*bought, *new]] = False
        if not mask.any():
            break
        key, now = jax.random.split(key)
        i = int(tools.choose(now, belief, jnp.asarray(mask)))
        new.append(i)
        paid += pool.prices[i]
        belief = tools.imagine(belief, {n: a[i] for n, a in pool.actions.items()})
    return new
