r"""Order fulfilment: which warehouse ships an order, when stock and capacity are short?

I products are kept in J nodes, with inventory :math:`n_{ij}`; node j can ship :math:`c_j` orders in
all. Orders come one at a time, for a product and to a place. An order is shipped from a node that
has the product and capacity left, at a price for the distance, or it is lost.

The coupling of products is weak: they meet in the capacities of the nodes only. So a policy that is
expensive to evaluate can be simulated by `inference.picard`.

References:
    Farias, Gijsbrechts, Khojandi, Peng and Zheng, Speeding up Policy Simulation in Supply Chain RL
    (ICML 2025), section 5.1, for the problem. Places and prices here are drawn, not theirs.
"""

import itertools
from collections.abc import Sequence
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

_NEVER = -1e30


class Warehouses(NamedTuple):
    """What is left.

    Attributes:
        capacity: orders that each node can still ship, int [nodes].
        inventory: of each product in each node, int [products, nodes].
    """

    capacity: Any
    inventory: Any


class Order(NamedTuple):
    """An order.

    Attributes:
        product: what is ordered.
        price: of shipping it from each node, [nodes].
    """

    product: Any
    price: Any


class Instance(NamedTuple):
    """A fulfilment problem with its orders.

    Attributes:
        warehouses: before the first order.
        orders: [orders, ...].
    """

    warehouses: Warehouses
    orders: Order


def instance(
    key: Any, products: int, nodes: int, orders: int, *, load: float = 1.25, skew: float = 0.0
) -> Instance:  # fmt: skip
    """Draw a problem.

    Nodes and customers lie in the unit square. Nodes have capacities in proportion to a size that
    is drawn, and inventory in proportion to the same.

    Args:
        key: PRNG key.
        products, nodes, orders: numbers of them.
        load: orders per unit of capacity; above one, some are lost.
        skew: products are ordered in proportion to rank to the power of -skew.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> import jax
        >>> from decisionppl.models import fulfilment
        >>> made = fulfilment.instance(jax.random.key(0), 50, 5, 1000)
        >>> made.warehouses.inventory.shape, made.orders.price.shape
        ((50, 5), (1000, 5))
    """
    for name, x in (("products", products), ("nodes", nodes), ("orders", orders)):
        check_count(name, x)
    check_number("load", load, above=0)
    check_number("skew", skew, least=0)
    keys = jax.random.split(key, 5)
    size = jax.random.dirichlet(keys[0], jnp.full(nodes, 5.0))
    law = -skew * jnp.log1p(jnp.arange(products))
    product = jax.random.choice(keys[1], products, (orders,), p=jax.nn.softmax(law))
    capacity = jnp.maximum(jnp.round(size * orders / load), 1).astype(jnp.int32)
    share = jax.nn.softmax(law)[:, None] * size
    mean = share * orders / load
    extra = jax.random.uniform(keys[2], mean.shape)
    inventory = jnp.floor(mean + extra).astype(jnp.int32)
    place, home = jax.random.uniform(keys[3], (nodes, 2)), jax.random.uniform(keys[4], (orders, 2))
    price = jnp.linalg.norm(home[:, None] - place, axis=-1)
    return Instance(Warehouses(capacity, inventory), Order(product.astype(jnp.int32), price))


def fulfilment(problem: Instance) -> MarkovModel:
    """One order as a Markov step; orders are drawn from those of an instance.

    Args:
        problem: from `instance`.

    Returns:
        `MarkovModel` on `Warehouses`; sites `which` (the order), the action `node` (the number of
        nodes stands for a lost order; the logging law picks a node that can ship at random), the
        reward `shipped`, one less the price.

    Example:
        >>> import jax
        >>> from decisionppl.inference import markov
        >>> from decisionppl.models import fulfilment
        >>> made = fulfilment.instance(jax.random.key(0), 20, 4, 500)
        >>> model = fulfilment.fulfilment(made)
        >>> runs = markov.rollout(model.step, model.init, 300, key=0)
        >>> bool((runs.state.capacity >= 0).all() and (runs.state.inventory >= 0).all())
        True
    """

    def step(state: Warehouses) -> Warehouses:
        law = dist.CategoricalLogits(jnp.zeros(len(problem.orders.product)))
        which: Any = numpyro.sample("which", law)
        order = jax.tree.map(lambda x: jnp.asarray(x)[which], problem.orders)
        mine = state.inventory[order.product]
        can = (mine > 0) & (state.capacity > 0)
        space = jnp.append(jnp.where(can, 0.0, _NEVER), jnp.where(can.any(), _NEVER, 0.0))
        node = dp.action("node", dist.CategoricalLogits(space), given=(state, order))
        price = jnp.append(order.price, 1.0)
        dp.reward("shipped", 1 - price[node])
        capacity, mine = _ship(state.capacity, mine, node, order)
        return Warehouses(
            dp.state("capacity", capacity),
            dp.state("inventory", state.inventory.at[order.product].set(mine)),
        )

    start = jax.tree.map(np.asarray, problem.warehouses)
    return MarkovModel(step, start, None, lambda state: jnp.append(state.capacity, 1) * 1.0)


def _ship(capacity: Any, mine: Any, node: Any, order: Order) -> tuple[Any, Any]:
    # the number of nodes, a lost order, is out of range and dropped
    used = jax.nn.one_hot(node, len(capacity), dtype=capacity.dtype)
    return capacity - used, mine - used


def init_policy(key: Any, nodes: int, hidden: Sequence[int] = (64, 64)) -> list:
    """Weights of a network from capacities, stock and prices to scores of nodes.

    Example:
        >>> import jax
        >>> from decisionppl.models import fulfilment
        >>> [w.shape for w, _ in fulfilment.init_policy(jax.random.key(0), 5, (8,))]
        [(15, 8), (8, 5)]
    """
    sizes = [3 * nodes, *hidden, nodes]
    keys = jax.random.split(key, len(sizes) - 1)
    make = jax.nn.initializers.he_normal()
    pairs = zip(keys, itertools.pairwise(sizes), strict=True)
    return [(make(k, pair), jnp.zeros(pair[1])) for k, pair in pairs]


def system(weights: Any = None, scale: float = 1.0) -> System:
    """The simulation for `inference.picard`: shared capacities, a product's inventory its own.

    Args:
        weights: of a network that scores nodes, from `init_policy`; what it says is added to the
            price with a minus. None ships from the cheapest node.
        scale: of capacities, so that the network sees numbers of order one.

    Example:
        >>> import jax
        >>> from decisionppl.inference import picard
        >>> from decisionppl.models import fulfilment
        >>> made = fulfilment.instance(jax.random.key(0), 20, 4, 300)
        >>> run = picard.scan(
        ...     fulfilment.system(), made.warehouses.capacity, made.warehouses.inventory,
        ...     made.orders.product, made.orders, prove=True)
        >>> run.equal
        True
    """

    def policy(capacity: Any, mine: Any, order: Order) -> Any:
        can = (mine > 0) & (capacity > 0)
        scores = -order.price
        if weights is not None:
            x = jnp.concatenate([capacity / scale, jnp.minimum(mine, 5) / 5.0, order.price])
            for w, b in weights[:-1]:
                x = jax.nn.relu(x @ w + b)
            w, b = weights[-1]
            scores = scores + x @ w + b
        best = jnp.argmax(jnp.where(can, scores, -jnp.inf))
        return jnp.where(can.any(), best, len(capacity)).astype(jnp.int32)

    def feasible(capacity: Any, mine: Any, node: Any, order: Order) -> Any:
        at = jnp.minimum(node, len(capacity) - 1)
        return (node == len(capacity)) | ((mine[at] > 0) & (capacity[at] > 0))

    return System(
        policy, lambda c, m, a, x: _ship(c, m, a, x), feasible,
        lambda c, m, x: jnp.asarray(len(c), jnp.int32),
    )  # fmt: skip
