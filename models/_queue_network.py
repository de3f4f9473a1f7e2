"""Multi-class queueing networks: topology, rates, routing, clocks."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

_UNIT = 0.02  # how far the mean of a clock may be from one


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("arrival", "service", "holding", "interarrival", "workload", "buffer",
                 "rejection", "switches"),
    meta_fields=("served", "routing", "pools", "limited"),
)  # fmt: skip
@dataclass(frozen=True)
class Network:
    """A queueing network of n classes of jobs and m servers, a pytree; made by `network`.

    Attributes:
        arrival: rates of arrivals from outside, [n], or [phases, n] where they change.
        service: rate at which a server works on a class, [m, n]; 0 where it cannot.
        holding: cost of a job per unit of time, [n].
        interarrival, workload: laws of mean one of the clocks, see `network`.
        buffer: most jobs in a class, [n], inf where there is no limit.
        rejection: cost of an arrival that finds its buffer full, [n].
        switches: lengths of all phases but the last, [phases - 1].
        served: classes that each server can work on, a tuple of tuples.
        routing: probability that a job of one class becomes one of another, a tuple of rows.
        pools: number of equal servers that each row of `service` stands for.
        limited: whether there are buffers.
    """

    arrival: Any
    service: Any
    holding: Any
    interarrival: Any
    workload: Any
    buffer: Any
    rejection: Any
    switches: Any
    served: tuple
    routing: tuple
    pools: tuple
    limited: bool

    @property
    def num_classes(self) -> int:
        """Number of classes n."""
        return len(self.routing)

    @property
    def num_servers(self) -> int:
        """Number of servers, or of pools of servers, m."""
        return len(self.served)

    @property
    def topology(self) -> np.ndarray:
        """Whether a server can work on a class, bool [m, n]."""
        found = np.zeros((self.num_servers, self.num_classes), bool)
        for i, classes in enumerate(self.served):
            found[i, list(classes)] = True
        return found

    @property
    def num_phases(self) -> int:
        """Number of arrival rates one after the other."""
        return 1 if np.ndim(self.arrival) == 1 else len(self.arrival)

    @property
    def exponential(self) -> bool:
        """Whether all clocks are exponential and all rates constant: a Markov chain."""
        plain = all(_is_exponential(law) for law in (self.interarrival, self.workload))
        return plain and self.num_phases == 1

    def replace(self, **arrays: Any) -> "Network":
        """The same network with other arrays, such as rates that are differentiated.

        Which servers can work on which classes, routing and pools stay as they are.

        Example:
            >>> import jax.numpy as jnp
            >>> from decisionppl.models import queueing
            >>> queueing.mm1(0.5).replace(service=jnp.array([[2.0]])).load().tolist()
            [0.25]
        """
        return dataclasses.replace(self, **arrays)

    def flow(self, phase: int = 0) -> np.ndarray:
        r"""Arrivals per unit of time to each class, from outside and inside, [n].

        The traffic equations :math:`\theta = (I - P')^{-1} \lambda`.
        """
        outside = np.atleast_2d(np.asarray(self.arrival, float))[phase]
        moves = np.asarray(self.routing, float)
        return np.linalg.solve(np.eye(self.num_classes) - moves.T, outside)

    def load(self, phase: int = 0) -> np.ndarray:
        """Work that arrives per unit of time over what a server can do, [m].

        For servers that share no class: with shared ones, what a server gets is decided.
        """
        service = np.asarray(self.service, float)
        topology = self.topology
        work = np.where(topology, self.flow(phase) / np.where(topology, service, 1.0), 0.0)
        return work.sum(1) / np.asarray(self.pools)


def hyperexponential(means: Any = (1.8, 0.2), weights: Any = (0.5, 0.5)) -> dist.Distribution:
    """A clock that is exponential with a mean drawn first; the default has SCV 2.28.

    Args:
        means: of the components.
        weights: their probabilities.

    Returns:
        A NumPyro distribution; its mean is one if the weighted means are.

    Example:
        >>> from decisionppl.models import queueing
        >>> float(queueing.hyperexponential().mean)
        1.0
    """
    mix = dist.Categorical(probs=jnp.asarray(weights, jnp.result_type(float)))
    parts = dist.Exponential(1 / jnp.asarray(means, jnp.result_type(float)))
    return dist.MixtureSameFamily(mix, parts)


def network(
    arrival: Any,
    service: Any,
    *,
    next_class: Any = None,
    routing: Any = None,
    holding: Any = 1.0,
    interarrival: dist.Distribution | None = None,
    workload: dist.Distribution | None = None,
    buffer: Any = np.inf,
    rejection: Any = 0.0,
    switches: Any = (),
    pools: Any = 1,
) -> Network:
    r"""A multi-class queueing network.

    Jobs of class j arrive at rate :math:`\lambda_j`, each with a workload of mean one. Server i
    works on the first job of class j at rate :math:`\mu_{ij}`. What is done leaves, or becomes a
    job of another class.

    Args:
        arrival: :math:`\lambda`, [n], 0 for classes that are fed from inside only; or
            [phases, n], rates one after the other.
        service: :math:`\mu`, [m, n], 0 where a server cannot serve a class.
        next_class: class that a job becomes when done, [n], -1 where it leaves; default leaves.
        routing: instead, probabilities [n, n] of becoming another class; the rest leaves.
        holding: cost of a job in the system per unit of time, [n] or one for all.
        interarrival, workload: laws of mean one, for all classes or with batch shape [n]; default
            exponential. An interval between arrivals lasts until the rate has added up to a draw,
            so that exponential draws make a Poisson process, of varying rate too.
        buffer: most jobs in a class, [n] or one for all. A job that finds it full is lost.
        rejection: cost of a lost job, [n] or one for all.
        switches: lengths of all phases of `arrival` but the last.
        pools: number of equal servers in each row of `service`, [m] or one for all. More than one
            needs `chain_model`.

    Returns:
        `Network`.

    Raises:
        ValueError: shapes that disagree, rates below zero, a class that arrives and nobody
            serves, a clock whose mean is not one.

    Example:
        >>> from decisionppl.models import queueing
        >>> tandem = queueing.network([0.5, 0.0], [[1.0, 0.0], [0.0, 1.0]], next_class=[1, -1])
        >>> tandem.flow().tolist(), tandem.load().tolist()
        ([0.5, 0.5], [0.5, 0.5])

    References:
        Che, Dong and Namkoong, Differentiable Discrete Event Simulation for Queuing Network
        Control, arXiv 2409.03740, for networks of this kind.
    """
    rates = np.asarray(service, float)
    coming = np.asarray(arrival, float)
    if rates.ndim != 2 or coming.ndim not in (1, 2) or coming.shape[-1] != rates.shape[1]:
        raise ValueError(
            "expected arrival [classes] or [phases, classes] and service [servers, classes], got "
            f"{list(coming.shape)} and {list(rates.shape)}."
        )
    servers, classes = rates.shape
    for name, x in (("arrival", coming), ("service", rates)):
        if not np.isfinite(x).all() or (x < 0).any():
            raise ValueError(f"{name}: expected finite rates of at least zero, got {x.tolist()}.")
    phases = 1 if coming.ndim == 1 else len(coming)
    lengths = np.asarray(switches, float).reshape(-1)
    if len(lengths) != phases - 1 or (lengths <= 0).any():
        raise ValueError(
            f"switches: expected {phases - 1} lengths of phases above zero, for {phases} rows of "
            f"arrival rates, got {lengths.tolist()}."
        )
    moves = _moves(next_class, routing, classes)
    reached = np.linalg.solve(np.eye(classes) - moves.T, np.atleast_2d(coming).sum(0))
    idle = (reached > 0) & (rates.max(0) == 0)
    if idle.any():
        raise ValueError(
            f"service: nobody serves class {int(np.flatnonzero(idle)[0])}, and jobs reach it. Give "
            "some server a rate above zero in that column."
        )
    with jax.ensure_compile_time_eval():  # networks are made inside of traced functions too
        laws = [dist.Exponential(1.0) if w is None else w for w in (interarrival, workload)]
        means = [np.asarray(w.mean) for w in laws]
    for name, law, mean in zip(("interarrival", "workload"), laws, means, strict=True):
        if law.event_shape or law.batch_shape not in ((), (classes,)):
            raise ValueError(
                f"{name}: expected a law of batch shape () or ({classes},), got "
                f"{law.batch_shape} and event shape {law.event_shape}."
            )
        if not (np.abs(mean - 1) < _UNIT).all():
            raise ValueError(
                f"{name}: expected a law of mean one, since rates say how fast clocks run; the "
                f"mean is {mean.tolist()}."
            )
    per_class = {
        name: np.broadcast_to(np.asarray(x, float), (classes,))
        for name, x in (("holding", holding), ("buffer", buffer), ("rejection", rejection))
    }
    if (per_class["buffer"] < 0).any():
        raise ValueError(f"buffer: expected numbers of at least zero, got {buffer!r}.")
    sizes = np.broadcast_to(np.asarray(pools, int), (servers,))
    if (sizes < 1).any():
        raise ValueError(f"pools: expected at least one server in each, got {pools!r}.")
    return Network(
        arrival=coming, service=rates, interarrival=laws[0], workload=laws[1], switches=lengths,
        **{name: np.array(x) for name, x in per_class.items()},
        served=tuple(tuple(np.flatnonzero(r).tolist()) for r in rates),
        routing=tuple(tuple(r) for r in moves.tolist()), pools=tuple(sizes.tolist()),
        limited=bool(np.isfinite(per_class["buffer"]).any()),
    )  # fmt: skip


def _moves(next_class: Any, routing: Any, classes: int) -> np.ndarray:
    """Routing probabilities [n, n]."""
    if next_class is not None and routing is not None:
        raise ValueError("give next_class or routing, not both.")
    if routing is None:
        after = np.full(classes, -1) if next_class is None else np.asarray(next_class, int)
        if after.shape != (classes,) or (after < -1).any() or (after >= classes).any():
            raise ValueError(
                f"next_class: expected {classes} classes from -1 to {classes - 1}, got "
                f"{next_class!r}."
            )
        moves = (after[:, None] == np.arange(classes)).astype(float)
    else:
        moves = np.asarray(routing, float)
        square = moves.shape == (classes, classes)
        if not square or (moves < 0).any() or (moves.sum(1) > 1 + 1e-9).any():
            raise ValueError(
                f"routing: expected probabilities [{classes}, {classes}] with rows that sum to "
                f"one at most, got {moves.tolist()}."
            )
    if np.abs(np.linalg.eigvals(moves)).max() > 1 - 1e-9:
        raise ValueError("routing: some jobs never leave. Let each class reach the way out.")
    return moves


def _is_exponential(law: dist.Distribution) -> bool:
    return isinstance(law, dist.Exponential) and not law.batch_shape
