"""Experiments on networks: simulated from a model, or read from tables."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._play import Same, as_key, example_run, play
from decisionppl._roles import role_of
from decisionppl.inference._columns import Columns
from decisionppl.inference._design import Design, cluster
from decisionppl.inference._effect import Effect, check_level, mean_effect
from decisionppl.inference._graph import Graph
from decisionppl.inference._interference import Interference, interference
from decisionppl.inference._trajectories import probabilities


class NetworkData(NamedTuple):
    """One experiment on a network, or several of one design.

    Attributes:
        outcome: rewards less costs of each unit, [units] or [runs, units].
        drawn: int, what the coins said, 0 or 1, [coins] or [runs, coins].
        probability: of 1, by coin [coins].
        reach: which coins reach which units, see `interference`.
    """

    outcome: Any
    drawn: Any
    probability: Any
    reach: Interference


def experiment(
    model: Callable, design: Design, reach: Interference, *, key: Any, num_runs: int | None = None,
    args: tuple = (),
) -> NetworkData:  # fmt: skip
    """Simulate experiments: the model under its logging law.

    Args:
        model: `(design, *args)`, with one action site of coins (`design("treat")` declares it)
            and rewards and costs of units, [units].
        design: see `designs`.
        reach: see `interference`.
        key: PRNG key or int seed.
        num_runs: how many experiments; None for one, without an axis of runs.
        args: further arguments of the model.

    Returns:
        `NetworkData`; probabilities are those of the law of the action site. Calls with the same
        model and sizes compile once.

    Raises:
        ValueError: a model without rewards of units, or with another action site.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl.inference import designs, network
        >>> def sales(design):
        ...     treat = design("treat")
        ...     dp.reward("sales", dist.Normal(1.0 * treat, 0.1))
        >>> design = designs.unit(500)
        >>> data = network.experiment(sales, design, network.interference(design), key=0)
        >>> bool(abs(network.difference_in_means(data).estimate - 1.0) < 0.05)
        True
    """
    if num_runs is not None:
        _check_runs(num_runs)
    _check_reach(design, reach)
    site = action_site(model, design, args)
    keys = jax.random.split(as_key(key), num_runs or 1)
    outcome, drawn, chance = _experiments(Same(model), site, keys, design, args)
    if num_runs is None:
        outcome, drawn = outcome[0], drawn[0]
    return NetworkData(outcome, drawn, chance, reach)


def total_effect(
    model: Callable, design: Design, *, key: Any, num_runs: int = 1, args: tuple = (),
    level: float = 0.95,
) -> Effect:  # fmt: skip
    r"""The global effect: the mean outcome if all are treated, less that if none is.

    .. math:: \tau = \frac1n \sum_i \left( Y_i(1, \dots, 1) - Y_i(0, \dots, 0) \right)

    Args:
        model: see `experiment`.
        design: see `designs`; only its units matter.
        key: PRNG key or int seed; all treated and none treated share their random numbers.
        num_runs: pairs of runs.
        args: further arguments of the model.
        level: of the interval.

    Returns:
        `Effect`; the standard error is that of a mean over runs, NaN for one run. Diagnostics
        `control` and `treated`, the two means.

    Raises:
        ValueError: see `experiment`.

    Example:
        >>> import numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl.inference import designs, network
        >>> path = network.graph([[0, 1], [1, 2]])
        >>> def sales(design):
        ...     treat = design("treat")
        ...     dp.reward("sales", dist.Normal(treat + 0.5 * path.share(treat), 0.1))
        >>> round(float(network.total_effect(sales, designs.unit(3), key=0).estimate), 3)
        1.5
    """
    check_level(level)
    _check_runs(num_runs)
    site = action_site(model, design, args)
    keys = jax.random.split(as_key(key), num_runs)
    control, treated = (
        _experiments(Same(model), site, keys, design, args, arm)[0].mean(-1) for arm in (0, 1)
    )
    said = {"control": control.mean(), "treated": treated.mean()}
    return mean_effect(treated - control, jnp.ones(num_runs, bool), level, said)


def from_table(
    table: Any,
    *,
    outcome: str,
    treated: str,
    unit: str | None = None,
    cluster_by: str | None = None,
    propensity: str | None = None,
    p: float | None = None,
    edges: tuple[Any, str, str] | None = None,
    graph: Graph | None = None,
) -> NetworkData:
    """An experiment from a table with one row per unit.

    Args:
        table: a DataFrame of pandas or polars, a table of pyarrow, a dict of arrays, or a
            structured array of NumPy.
        outcome, treated: columns; `treated` holds 0 and 1, or bools.
        unit: column of names of units; needed for `edges`.
        cluster_by: column of the cluster that was randomised; None where each unit was.
        propensity: column of the probability of being treated (of treatment, not of what was
            drawn).
        p: in place of `propensity`: one probability for all.
        edges: (table, sender column, receiver column) of names of units, both directions of an
            undirected edge or one of them; edges are taken as undirected.
        graph: in place of `edges`: over rows, see `network.graph`.

    Returns:
        `NetworkData`.

    Raises:
        ValueError: a column that is missing or not numeric, a treatment other than 0 and 1,
            clusters of which some units were treated and others not, probabilities that are none
            or differ in a cluster, a unit that stands twice, an edge to no unit.

    Example:
        >>> from decisionppl.inference import network
        >>> people = {"name": ["ann", "bob", "cem"], "spent": [3.0, 1.0, 2.0], "ad": [1, 0, 0]}
        >>> friends = {"from": ["ann"], "to": ["cem"]}
        >>> data = network.from_table(people, outcome="spent", treated="ad", unit="name", p=0.5,
        ...     edges=(friends, "from", "to"))
        >>> data.reach.unit.tolist(), data.reach.coin.tolist()
        ([0, 2], [2, 0])
    """
    columns = Columns(table)
    y, z = columns.numbers(outcome), columns.numbers(treated)
    columns.refuse(treated, z, ~np.isin(z, (0, 1)), "0 or 1", "Code control as 0, treated as 1.")
    if (propensity is None) == (p is None):
        what = "both" if p is not None else "neither"
        raise ValueError(
            f"propensity and p: got {what}. Give propensity=, the column with the probability of "
            "treatment, or p=, one probability for all."
        )
    chance = np.full(len(y), p, float) if propensity is None else columns.numbers(propensity)
    name = "p" if propensity is None else propensity
    if propensity is not None:
        columns.refuse(name, chance, ~((chance > 0) & (chance < 1)), "a probability strictly "
                       "between 0 and 1", "Estimators divide by it.")  # fmt: skip
    labels = np.arange(len(y)) if cluster_by is None else columns(cluster_by)
    number = np.unique(labels, return_inverse=True)[1]
    first = np.unique(number, return_index=True)[1]
    for column, values in ((treated, z), (name, chance)):
        differs = np.abs(values - values[first][number]) > 1e-9
        columns.refuse(column, values, differs, "the same value in all rows of a cluster",
                       f"Clusters are those of column {cluster_by!r}.")  # fmt: skip
    design = cluster(labels, chance[first])
    if edges is not None:
        if graph is not None or unit is None:
            raise ValueError(
                "edges: give unit=, the column of names that edges use, and no graph=."
                if unit is None else "edges and graph: got both, expected one of them."
            )  # fmt: skip
        graph = _named(columns, unit, edges)
    return NetworkData(
        y, z[first].astype(np.int32), np.asarray(design.probability), interference(design, graph)
    )


def _named(columns: Columns, unit: str, edges: Sequence[Any]) -> Graph:
    """A graph over rows, from edges between names."""
    from decisionppl.inference._graph import graph as make

    if len(edges) != 3:
        raise ValueError(
            f"edges: expected (table, sender column, receiver column), got {len(edges)} values."
        )
    names = columns(unit)
    known, row = np.unique(names, return_index=True)
    again = np.bincount(np.searchsorted(known, names)) > 1
    if again.any():
        name = str(known[again][0])
        raise ValueError(
            f"column {unit!r}: {name!r} stands in {int((names == name).sum())} rows, expected one "
            "row per unit."
        )
    ends = []
    listed = Columns(edges[0])
    for column in edges[1:]:
        values = listed(column)
        at = np.searchsorted(known, values).clip(max=len(known) - 1)
        listed.refuse(column, values, known[at] != values, f"a name in column {unit!r}",
                      "Drop those edges, or add the unit.")  # fmt: skip
        ends.append(row[at])
    return make(np.stack(ends, axis=1), len(names))


def _check_runs(num_runs: Any) -> None:
    if isinstance(num_runs, bool) or not isinstance(num_runs, int) or num_runs < 1:
        raise ValueError(f"num_runs: expected a whole number from 1, got {num_runs!r}.")


def _check_reach(design: Any, reach: Any) -> None:
    if not isinstance(design, Design):
        raise TypeError(f"design: expected one of decisionppl.inference.designs, got {design!r}.")
    if not isinstance(reach, Interference):
        raise TypeError(
            f"reach: expected network.interference(design, ...), got {type(reach).__name__}."
        )
    if np.shape(reach.own) != np.shape(design.coin):
        raise ValueError(
            f"reach: is of {len(reach.own)} units, the design has {design.num_units}. Make it of "
            "the same design, network.interference(design, ...)."
        )


def action_site(model: Callable, design: Design, args: tuple) -> str:
    """The name of the action site, if the model is one of coins and units."""
    trace = example_run(model, (design, *args), at_mean=True, values=False)
    found = [n for n, s in trace.items() if role_of(s) == "action"]
    if len(found) != 1:
        raise ValueError(
            f"the model has action sites {found}, expected one, of coins. Declare it with "
            'design("treat").'
        )
    shape = tuple(trace[found[0]]["fn"].shape())
    if shape != (design.num_coins,):
        raise ValueError(
            f"action site {found[0]!r}: expected shape [{design.num_coins}], one coin each, got "
            f'{list(shape)}. Declare it with design("treat").'
        )
    if not any(role_of(s) == "reward" for s in trace.values()):
        raise ValueError(
            f"the model has no reward site (its sites: {list(trace)}). Declare what is wanted "
            'with dp.reward("name", value), one value per unit.'
        )
    return found[0]


@partial(jax.jit, static_argnums=(0, 1))
def _experiments(
    model: Same, site: str, keys: jax.Array, design: Design, args: tuple, arm: Any = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Outcomes [runs, units], what the coins said [runs, coins] and its probability [coins]."""
    policy = None if arm is None else jnp.asarray(arm)

    def run(key: jax.Array) -> tuple:
        trace = play(model.value, key, policy)(design, *args)
        law = trace[site]["fn"]
        chance = probabilities(law, jnp.arange(2))[..., 1] if arm is None else jnp.zeros(())
        return unit_reward(trace, design.num_units), trace[site]["value"], chance

    outcome, drawn, chance = jax.lax.map(run, keys, batch_size=32)
    return outcome, drawn, chance[0]


def unit_reward(trace: Any, count: int) -> jax.Array:
    """Rewards less costs of each unit, [units]."""
    total = jnp.zeros(count)
    for name, site in trace.items():
        role = role_of(site)
        if role in ("reward", "cost"):
            value = jnp.asarray(site["value"])
            if value.shape != (count,):
                raise ValueError(
                    f"{role} site {name!r}: expected one value per unit [{count}], got shape "
                    f"{list(value.shape)}. Effects are of means over units."
                )
            total = total + (1 if role == "reward" else -1) * value
    return total
