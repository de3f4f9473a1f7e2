r"""The fluid model of a network: its optimal control by linear programming, and as a policy."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.tree_util import Partial

from decisionppl._play import as_key
from decisionppl.models._arguments import check_count, check_number
from decisionppl.models._queue_events import servable
from decisionppl.models._queue_network import Network
from decisionppl.models._queue_policies import _best
from decisionppl.models._queue_simulate import simulate

_LATE = 3.0  # horizon over the shortest time in which the network can be emptied
_FIRST = 0.002  # first step over the horizon
_SERVICES = 3.0  # of the slowest class, between reviews
_BUSY = 1e-4  # what effort counts beside cost, where several controls cost the same
_SMALL = 1e-3  # share of a server that is rounding
_ROUNDS = 4
_FAR = 5  # one state in so many is ten times as long as a visited one


class Fluid(NamedTuple):
    """The cheapest way to empty a network of fluids.

    Attributes:
        cost: holding cost until all is empty, of controls that are constant between `time`.
        time: grid, [steps + 1].
        length: fluid in each class, [steps + 1, n].
        effort: share of each server that works on each class, [steps, m, n].
        price: derivative of the cost in the fluid of each class at the beginning, [n].
    """

    cost: float
    time: np.ndarray
    length: np.ndarray
    effort: np.ndarray
    price: np.ndarray


def _check_fluid(network: Network) -> None:
    if max(network.pools) > 1 or network.limited or network.num_phases > 1:
        raise ValueError(
            "fluid: expected single servers, no buffers and constant arrival rates; this network "
            f"has pools {network.pools}, {'' if network.limited else 'no '}buffers and "
            f"{network.num_phases} phases."
        )


def _flows(network: Network) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (server, class) [pairs, 2], and what a unit of effort changes, [n, pairs]."""
    pairs = np.argwhere(network.topology)
    rate = np.asarray(network.service, float)[pairs[:, 0], pairs[:, 1]]
    moves = np.asarray(network.routing, float)
    change = np.eye(network.num_classes) - moves.T
    return pairs, -change[:, pairs[:, 1]] * rate


def _solved(problem: Any, what: str) -> Any:
    if problem.status != 0:
        raise ValueError(
            f"fluid: {what} has no solution ({problem.message.strip()}). Fluids empty only where "
            "every load is below one; see network.load()."
        )
    return problem


def emptying_time(network: Network, length: Any) -> float:
    """The shortest time in which a network of fluids can be emptied.

    Args:
        network: from `network`.
        length: fluid in each class, [n].

    Raises:
        ValueError: a load of one or more, pools, buffers, arrival rates that change.

    Example:
        >>> from decisionppl.models import queueing
        >>> round(queueing.emptying_time(queueing.mm1(0.5), [3.0]), 6)
        6.0
    """
    from scipy.optimize import linprog

    _check_fluid(network)
    start = _lengths(network, length)
    pairs, change = _flows(network)
    arrival = np.asarray(network.arrival, float)
    servers = np.eye(network.num_servers)[:, pairs[:, 0]]
    # unknown are the effort of each pair in all, and the time: fluids may go on a straight line
    found = linprog(
        np.append(np.zeros(len(pairs)), 1.0),
        A_eq=np.column_stack([-change, -arrival]), b_eq=start,
        A_ub=np.column_stack([servers, -np.ones(len(servers))]), b_ub=np.zeros(len(servers)),
    )  # fmt: skip
    return float(_solved(found, "emptying the network").fun)


def _lengths(network: Network, length: Any) -> np.ndarray:
    start = np.asarray(length, float)
    if start.shape != (network.num_classes,) or not (start >= 0).all():
        raise ValueError(
            f"length: expected {network.num_classes} numbers of at least zero, got {length!r}."
        )
    return start


def fluid_plan(
    network: Network, length: Any, *, steps: int = 100, horizon: float | None = None,
    first: float | None = None,
) -> Fluid:  # fmt: skip
    r"""The cheapest way to empty a network in which jobs flow like fluids at their mean rates.

    .. math:: \min_u \int_0^T h \cdot x \, dt, \quad \dot x_k = \lambda_k - \sum_i u_{ik} \mu_{ik}
        + \sum_{ij} P_{jk} u_{ij} \mu_{ij}, \quad \sum_j u_{ij} \le 1, \ u, x \ge 0, \ x(T) = 0,

    over controls that are constant between the points of a grid, whose steps grow geometrically: a
    linear program, solved by HiGHS. On such a grid x is linear between points and the integral
    exact, so that the cost is that of a feasible control: the optimum from above.

    Args:
        network: from `network`, with single servers, constant rates and no buffers; only means of
            its clocks matter.
        length: fluid in each class, [n].
        steps: of the grid.
        horizon: T; default three times the shortest time in which the network can be emptied.
        first: the first step; default a five-hundredth of the horizon.

    Returns:
        `Fluid`.

    Raises:
        ValueError: a load of one or more, a horizon in which the network cannot be emptied, pools,
            buffers, arrival rates that change.

    Example:
        >>> from decisionppl.models import queueing
        >>> plan = queueing.fluid_plan(queueing.mm1(0.5), [3.0], steps=600)   # 3^2 / (2 x 0.5)
        >>> round(plan.cost, 2), round(float(plan.price[0]), 1)
        (9.0, 6.0)

    References:
        Chen and others, QGym, arXiv 2410.06170, for the linear program; Meyn, Control Techniques
        for Complex Networks (2007), chapter 4.
    """
    check_count("steps", steps)
    start = _lengths(network, length)
    shortest = emptying_time(network, start)
    if horizon is None:
        horizon = _LATE * shortest
    check_number("horizon", horizon, least=0)
    if horizon < shortest * (1 - 1e-9):
        raise ValueError(
            f"horizon: the network cannot be emptied in {horizon:g}, which takes {shortest:g}."
        )
    if first is not None:
        check_number("first", first, above=0)
    n, m = network.num_classes, network.num_servers
    if not start.any():
        zeros = np.zeros((steps + 1, n))
        return Fluid(0.0, np.zeros(steps + 1), zeros, np.zeros((steps, m, n)), zeros[0])
    width = horizon * _steps(steps, _FIRST if first is None else first / horizon)
    return _plan(network, start, width)


def _plan(network: Network, start: np.ndarray, width: np.ndarray, busy: float = 0.0) -> Fluid:
    """The linear program on a grid of the given steps.

    Of controls that cost the same, those are taken that work most in the first step, by `busy`: a
    reward of effort, of no weight in what is called cost.
    """
    from scipy import sparse
    from scipy.optimize import linprog

    n, m, steps = network.num_classes, network.num_servers, len(width)
    pairs, change = _flows(network)
    holding = np.asarray(network.holding, float)
    arrival = np.asarray(network.arrival, float)
    # unknown are the efforts of each step, [steps, pairs], and lengths after it, [steps, n]
    after = sparse.eye_array(steps) - sparse.eye_array(steps, k=-1)
    balance = sparse.hstack([
        sparse.kron(sparse.eye_array(steps), -change), sparse.kron(after, np.eye(n))
    ])  # fmt: skip
    known = np.outer(width, arrival)
    known[0] += start
    used = sparse.kron(sparse.eye_array(steps), np.eye(m)[:, pairs[:, 0]])
    each = (width + np.append(width[1:], 0.0)) / 2  # the trapezoidal rule
    paid = np.concatenate([np.zeros(steps * len(pairs)), np.outer(each, holding).ravel()])
    wished = paid.copy()
    wished[: len(pairs)] -= busy
    most = np.full((steps, n), np.inf)
    most[-1] = 0.0
    found = linprog(
        wished, A_eq=balance.tocsr(), b_eq=known.ravel(),
        A_ub=sparse.hstack([used, sparse.csr_array((steps * m, steps * n))]).tocsr(),
        b_ub=np.repeat(width, m),
        bounds=np.column_stack([
            np.zeros(len(paid)), np.append(np.full(steps * len(pairs), np.inf), most.ravel()),
        ]),
        method="highs",
    )  # fmt: skip
    found = _solved(found, "the control problem")
    at = steps * len(pairs)
    effort = np.zeros((steps, m, n))
    effort[:, pairs[:, 0], pairs[:, 1]] = found.x[:at].reshape(steps, -1) / width[:, None]
    lengths = np.vstack([start, found.x[at:].reshape(steps, n)])
    first = width[0] / 2 * holding  # what the integral charges the fluid of the beginning with
    price = first + found.eqlin.marginals[:n]
    cost = float(first @ start + paid @ found.x)
    return Fluid(cost, np.append(0.0, np.cumsum(width)), lengths, effort, price)


def _steps(count: int, first: float) -> np.ndarray:
    """Geometrically growing steps that sum to one; equal ones where there are too few."""
    first = min(first, 1 / count)
    low, high = 1.0, first ** (-1 / max(count - 1, 1))  # the last step alone would fill one
    for _ in range(60):
        ratio = (low + high) / 2
        less = first * (ratio ** np.arange(count)).sum() < 1
        low, high = (ratio, high) if less else (low, ratio)
    width = low ** np.arange(count)
    return width / width.sum()


def fluid(
    network: Network, *, review: float | None = None, num_states: int = 400, steps: int = 20,
    key: Any = 0,
) -> Partial:  # fmt: skip
    r"""The policy that is best for fluids: linear programs, solved beforehand into a table.

    At queues x each server splits its time as `fluid_plan` from x does over its first step, of the
    length `review`; here it draws a class with these probabilities, among those with jobs. The
    step should hold a few services: in it the plan sees that a station will run out of work, and
    feeds it before it has. Published versions solve the program every few hundred events and keep
    to its control between; here it holds at every event. What is best for fluids need not be for
    jobs: on the criss-cross network under heavy load the c-mu rule costs less.

    Programs are solved at states that the policy itself visits, in rounds, and the control at
    another state is that of the nearest of these in :math:`\log(1 + x)`. So the policy runs inside
    compiled simulations; with more classes it needs more states. What a server would rest for, as
    its classes in the plan are empty, it gives to the class of the largest :math:`h \mu`.

    Args:
        network: see `fluid_plan`.
        review: the first step, in units of time; default the time in which the slowest class is
            served three times.
        num_states: programs that are solved, some milliseconds each for a few classes.
        steps: of their grid.
        key: PRNG key or int seed, of the runs that visit states.

    Returns:
        A policy; see the module.

    Raises:
        ValueError: see `fluid_plan`.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.models import queueing
        >>> rule = queueing.fluid(queueing.criss_cross(), num_states=20)
        >>> law = rule(jnp.array([9.0, 0.0, 9.0]), None)   # the second server has no work
        >>> bool(law.probs[0, 0] > 0.1)                    # and is fed
        True

    References:
        Chen and others, QGym, arXiv 2410.06170, for the linear program as a policy; Maglaras,
        Discrete-review policies for scheduling stochastic networks, Annals of Applied Probability
        (2000), for reviews.
    """
    _check_fluid(network)
    check_count("num_states", num_states)
    service = np.asarray(network.service, float)
    if review is None:
        review = _SERVICES / float(service[network.topology].min())
    check_number("review", review, above=0)
    key, n = as_key(key), network.num_classes
    rng = np.random.default_rng(int(jax.random.randint(key, (), 0, 2**31 - 1)))
    table: dict[tuple, np.ndarray] = {}

    def learn(states: Any, count: int) -> None:
        for state in states:
            place = tuple(float(x) for x in state)
            if count > 0 and any(place) and place not in table:
                table[place] = _control(network, np.array(place), review, steps)
                count -= 1

    def rule() -> Partial:
        # of one size in all rounds, so that runs are compiled once; infinity is near to nothing
        places = np.full((num_states, n), np.inf)
        efforts = np.zeros((num_states, network.num_servers, n))
        places[: len(table)], efforts[: len(table)] = list(table), list(table.values())
        number = jnp.result_type(float)
        return Partial(_fluid, network, jnp.asarray(np.log1p(places), number),
                       jnp.asarray(efforts, number))  # fmt: skip

    learn([network.flow() > 0], 1)  # classes that nothing reaches stay empty
    for number in range(_ROUNDS):
        left = num_states - len(table)
        visits = simulate(network, rule(), 10_000, key=jax.random.fold_in(key, number),
                          num_runs=50)  # fmt: skip
        states = rng.permutation(visits.length[:, 1:].reshape(-1, n))
        states[::_FAR] *= 10  # rarely visited, and nothing else would be near
        learn(states, -(-left // (_ROUNDS - number)))
    return rule()


def _control(network: Network, state: np.ndarray, review: float, steps: int) -> np.ndarray:
    """Shares of the servers over the first step of a plan, [m, n]."""
    horizon = _LATE * max(emptying_time(network, state), review)
    speed = np.asarray(network.holding) * np.asarray(network.service).max(0)
    plan = _plan(network, state, horizon * _steps(steps, review / horizon),
                 busy=_BUSY * float(speed.max()) * horizon)  # fmt: skip
    return plan.effort[0]


def _fluid(network: Network, places: Any, efforts: Any, length: Any, space: Any = None) -> Any:
    nearest = jnp.argmin(jnp.square(places - jnp.log1p(length)).sum(1))
    can = servable(network, length)
    chance = jnp.where(can, jnp.clip(efforts[nearest], 0.0, 1.0), 0.0)
    best = jax.nn.one_hot(
        _best(network, network.service, network.holding, length), network.num_classes
    )
    chance = jnp.where(chance.sum(1, keepdims=True) > _SMALL, chance, best)
    rest = ~can.any(1, keepdims=True)
    chance = jnp.concatenate([chance, rest], axis=1)
    return dist.Categorical(chance / chance.sum(1, keepdims=True))
