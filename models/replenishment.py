r"""One warehouse, many retailers: how much should each retailer order?

A step is a day of one retailer, one after the other. Demand d is served from the retailer's stock l
as far as it goes; then the retailer orders a units, at most what the warehouse has, g. The
warehouse gets a delivery of Q units now and then. Costs are h per unit in stock and b per unit of
lost demand.

.. math:: l' = \max(l - d, 0) + a, \qquad g' = g - a + Q 1\{\text{delivery}\}, \qquad a \le g

Retailers meet in the stock of the warehouse only, so that a policy that is expensive to evaluate
can be simulated by `inference.picard`.

References:
    Farias, Gijsbrechts, Khojandi, Peng and Zheng, Speeding up Policy Simulation in Supply Chain RL
    (ICML 2025), section 5.2, for the problem; the numbers here are our own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import decisionppl as dp
from decisionppl.inference.picard import System
from decisionppl.models._arguments import check_count, check_number
from decisionppl.models._markov import MarkovModel


class Stock(NamedTuple):
    """State of warehouse and retailers.

    Attributes:
        warehouse: units.
        retailer: units of each, int [retailers].
        turn: whose day it is, int.
    """

    warehouse: Any
    retailer: Any
    turn: Any


class Day(NamedTuple):
    """What a retailer's day brings.

    Attributes:
        demand: int.
        delivery: to the warehouse, int.
    """

    demand: Any
    delivery: Any


def replenishment(
    retailers: int = 10,
    *,
    demand: float = 3.0,
    supply: float = 0.9,
    largest: int = 20,
    holding: float = 1.0,
    lost: float = 9.0,
) -> MarkovModel:
    """One day of one retailer as a Markov step.

    Args:
        retailers: number of them.
        demand: mean of a day's Poisson demand.
        supply: what the warehouse gets on average, over what is demanded.
        largest: most that is ordered at once.
        holding: cost of a unit in a retailer's stock, per day.
        lost: cost of a unit of demand that is not served.

    Returns:
        `MarkovModel` on `Stock`; the action `order` (0 .. largest; policies see the retailer's
        stock after the day's demand, and the warehouse's, which orders are cut to), sites `demand`
        and `delivery`, rewards `holding` and `lost` below zero.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> from decisionppl.inference import markov
        >>> from decisionppl.models import replenishment
        >>> model = replenishment.replenishment(5)
        >>> runs = markov.rollout(model.step, model.init, 500, key=0)
        >>> bool((runs.state.warehouse >= 0).all() and (runs.state.retailer >= 0).all())
        True
    """
    count, most = check_count("retailers", retailers), check_count("largest", largest)
    for name, x in (("demand", demand), ("supply", supply)):
        check_number(name, x, above=0)
    for name, x in (("holding", holding), ("lost", lost)):
        check_number(name, x, least=0)
    lot = max(round(count * demand * supply), 1)  # what a round of all retailers may use

    def step(state: Stock) -> Stock:
        wanted: Any = numpyro.sample("demand", dist.Poisson(demand))
        served = jnp.minimum(wanted, state.retailer[state.turn])
        left = state.retailer[state.turn] - served
        space = dist.CategoricalLogits(jnp.zeros(most + 1))
        asked = dp.action("order", space, given=(left, state.warehouse))
        got = jnp.minimum(asked, state.warehouse)
        chance = dist.Bernoulli(1 / count)
        delivery = lot * jnp.asarray(numpyro.sample("delivery", chance))
        dp.reward("holding", -holding * (left + got))
        dp.reward("lost", -lost * (wanted - served))
        return Stock(
            dp.state("warehouse", state.warehouse - got + delivery),
            dp.state("retailer", state.retailer.at[state.turn].set(left + got)),
            dp.state("turn", (state.turn + 1) % count),
        )

    start = Stock(np.asarray(lot), np.full(count, round(demand)), np.asarray(0))
    return MarkovModel(step, start, None, lambda s: jnp.append(s.retailer, s.warehouse) * 1.0)


def days(key: Any, retailers: int, rounds: int, *, demand: float = 3.0, supply: float = 0.9) -> Day:
    """Demands and deliveries of `rounds` days of all retailers, [rounds * retailers].

    Example:
        >>> import jax
        >>> from decisionppl.models import replenishment
        >>> replenishment.days(jax.random.key(0), 5, 10).demand.shape
        (50,)
    """
    first, second = jax.random.split(key)
    steps = check_count("retailers", retailers) * check_count("rounds", rounds)
    lot = max(round(retailers * demand * supply), 1)
    came = jax.random.bernoulli(second, 1 / retailers, (steps,))
    return Day(jax.random.poisson(first, demand, (steps,)), lot * came.astype(jnp.int32))


def system(level: Any = 8, *, largest: int = 20) -> System:
    """The simulation for `inference.picard`: the warehouse is shared, a retailer's stock its own.

    Args:
        level: what retailers order up to, or a function `(stock, warehouse) -> order`.
        largest: most that is ordered at once.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from decisionppl.inference import picard
        >>> from decisionppl.models import replenishment
        >>> days = replenishment.days(jax.random.key(0), 5, 40)
        >>> run = picard.scan(
        ...     replenishment.system(), jnp.array(30), jnp.full(5, 3), jnp.arange(200) % 5, days,
        ...     prove=True)
        >>> run.equal
        True
    """
    asked: Any = level if callable(level) else lambda stock, warehouse: level - stock

    def served(mine: Any, day: Day) -> Any:
        return jnp.maximum(mine - day.demand, 0)

    def policy(warehouse: Any, mine: Any, day: Day) -> Any:
        order = jnp.clip(asked(served(mine, day), warehouse), 0, largest)
        return jnp.minimum(order, warehouse).astype(jnp.int32)

    def update(warehouse: Any, mine: Any, order: Any, day: Day) -> tuple:
        return warehouse - order + day.delivery, served(mine, day) + order

    return System(
        policy, update, lambda g, m, a, x: a <= g, lambda g, m, x: jnp.zeros((), jnp.int32)
    )
