"""Queueing networks of the literature: parameters as facts, each by name."""

from typing import Any

import numpy as np
import numpyro.distributions as dist

from decisionppl.models._arguments import check_count, check_number
from decisionppl.models._queue_network import Network, hyperexponential, network

# arrival rate of classes 0 and 2, service rate of class 1 (the load regimes of Dai and Gluzman)
_CRISS_CROSS = {
    "IL": (0.3, 1.5), "BL": (0.3, 1.0), "IM": (0.6, 1.5), "BM": (0.6, 1.0), "IH": (0.9, 1.5),
    "BH": (0.9, 1.0),
}  # fmt: skip
_EVEN, _ODD = (1 / 8, 1 / 2, 1 / 4), (1 / 6, 1 / 7, 1.0)  # service rates by parity of the station
_REENTRANT_ARRIVAL = 9 / 140

# ward, specialty, mean days of stay
_WARDS = (
    (0, 0, 4.625), (0, 2, 3.6), (1, 4, 4.5), (1, 7, 5.0), (2, 2, 3.6), (3, 2, 3.6), (3, 7, 4.0),
    (4, 1, 4.4), (5, 1, 4.4), (6, 4, 4.5), (6, 5, 4.625), (7, 1, 4.4), (7, 2, 3.6), (8, 6, 4.5),
    (9, 0, 3.7), (10, 5, 3.7), (11, 0, 3.7), (12, 3, 3.6),
)  # fmt: skip
_BEDS = (44, 44, 44, 44, 39, 26, 46, 50, 35, 17, 14, 44, 50)
_PATIENTS = (19.8, 13.2, 17.5, 8.2, 17.8, 5.9, 6.2, 4.6)


def mm1(load: float = 0.9, *, workload: dist.Distribution | None = None) -> Network:
    """One queue, one server of rate one; M/G/1 with a `workload`.

    Example:
        >>> from decisionppl.models import queueing
        >>> queueing.mm1(0.5).load().tolist()
        [0.5]
    """
    check_number("load", load, above=0)
    return network([load], [[1.0]], workload=workload)


def mmc(load: float = 0.9, servers: int = 2) -> Network:
    """One queue, a pool of servers of rate one each: for `chain_model` and the exact solution.

    Example:
        >>> from decisionppl.models import queueing
        >>> queueing.mmc(0.9, 5).pools
        (5,)
    """
    check_number("load", load, above=0)
    count = check_count("servers", servers)
    return network([load * count], [[1.0]], pools=count)


def multiclass(
    arrival: Any = (0.18,) * 5, service: Any = 1.0, holding: Any = (5, 4, 3, 2, 1)
) -> Network:
    """Several classes of jobs, one server. The default is the five classes of QueueTorch.

    Example:
        >>> from decisionppl.models import queueing
        >>> queueing.multiclass([0.5, 0.4], holding=[2, 1]).load().round(3).tolist()
        [0.9]
    """
    coming = np.asarray(arrival, float)
    return network(coming, np.broadcast_to(service, (1, len(coming))), holding=holding)


def criss_cross(
    regime: str = "BH", *, interarrival: dist.Distribution | None = None
) -> Network:  # fmt: skip
    """Two servers: the first works on classes 0 and 2, class 0 becomes class 1 at the second.

    Args:
        regime: load of the first server light, medium or heavy (L, M, H), and of the second one
            lighter or the same (I, B); "varying" has hyper-exponential clocks and arrival rates
            that change at time 700.
        interarrival: `hyperexponential()` makes the hyper-exponential variant.

    Raises:
        ValueError: an unknown regime.

    Example:
        >>> from decisionppl.models import queueing
        >>> queueing.criss_cross("BH").load().round(3).tolist()
        [0.9, 0.9]
    """
    if regime == "varying":
        hyper = hyperexponential()
        return network(
            [[1.1, 0, 0.8], [0.8, 0, 0.9]], [[2, 0, 2], [0, 1, 0]], next_class=[1, -1, -1],
            interarrival=interarrival or hyper, workload=hyper, switches=[700.0],
        )  # fmt: skip
    if regime not in _CRISS_CROSS:
        raise ValueError(f"regime: expected one of {[*_CRISS_CROSS, 'varying']}, got {regime!r}.")
    rate, second = _CRISS_CROSS[regime]
    return network(
        [rate, 0, rate], [[2, 0, 2], [0, second, 0]], next_class=[1, -1, -1],
        interarrival=interarrival,
    )  # fmt: skip


def n_model() -> Network:
    """Two servers, the first of which can help with the class of the second; total load 0.95.

    Example:
        >>> from decisionppl.models import queueing
        >>> queueing.n_model().served
        ((0, 1), (1,))
    """
    return network([0.38, 1.235], [[1, 0.5], [0, 1]], holding=[1, 3])


def five_by_five() -> Network:
    """Five servers, five classes; arrival rates that change at time 100.

    Example:
        >>> from decisionppl.models import queueing
        >>> queueing.five_by_five().num_phases
        2
    """
    service = np.zeros((5, 5))
    for i, j, rate in ((0, 0, 1), (1, 0, 0.8), (1, 1, 1), (2, 0, 0.8), (2, 2, 1), (3, 2, 0.8),
                       (3, 3, 1), (4, 3, 0.8), (4, 4, 1)):  # fmt: skip
        service[i, j] = rate
    return network(
        [[2.4, 0.6, 0.8, 1.6, 0.6], [0.4, 0.8, 0.8, 0.8, 0.6]], service, holding=[2, 1, 1, 2, 1],
        switches=[100.0],
    )  # fmt: skip


def input_switch() -> Network:
    """Three servers with two classes each, fed crosswise.

    Example:
        >>> from decisionppl.models import queueing
        >>> queueing.input_switch().load().round(3).tolist()
        [0.4, 0.8, 0.8]
    """
    service = np.kron(np.eye(3), [[1.0, 1.0]])
    return network([0.4, 0, 0.4, 0, 0.4, 0], service, next_class=[3, -1, -1, 4, -1, 1])


def reentrant(
    stations: int = 2, *, family: int = 1, workload: dist.Distribution | None = None,
    interarrival: dist.Distribution | None = None,
) -> Network:  # fmt: skip
    """Re-entrant line: jobs pass all stations, some of them twice; every load is 0.9.

    Args:
        stations: L; there are 3 L classes, three at each station.
        family: 1, jobs arrive to classes 0 and 2, and those of class 0 come again as class 1;
            2, jobs arrive to class 0 only, and come again as class 1 and then as class 2.
        workload, interarrival: `hyperexponential()` for the hyper-exponential variants.

    Raises:
        ValueError: a family other than 1 and 2, or no station.

    Example:
        >>> from decisionppl.models import queueing
        >>> queueing.reentrant(4, family=2).load().round(6).tolist()
        [0.9, 0.9, 0.9, 0.9]

    References:
        Che, Dong and Namkoong, arXiv 2409.03740, section 6.
    """
    count = check_count("stations", stations)
    if family not in (1, 2):
        raise ValueError(f"family: expected 1 or 2, got {family!r}.")
    service = np.zeros((count, 3 * count))
    after = np.arange(3, 3 * count + 3)
    after[-3:] = (1, -1, -1) if family == 1 else (1, 2, -1)
    arrival = np.zeros(3 * count)
    arrival[[0, 2] if family == 1 else [0]] = _REENTRANT_ARRIVAL
    for i in range(count):
        service[i, 3 * i : 3 * i + 3] = _ODD if i % 2 else _EVEN
    return network(arrival, service, next_class=after, workload=workload, interarrival=interarrival)


def hospital() -> Network:
    """Thirteen wards of 14 to 50 beds, eight specialties; times in days. For `chain_model`.

    Example:
        >>> from decisionppl.models import queueing
        >>> sum(queueing.hospital().pools)
        497
    """
    service = np.zeros((13, 8))
    for ward, specialty, days in _WARDS:
        service[ward, specialty] = 1 / days
    return network(_PATIENTS, service, pools=_BEDS)


INSTANCES = {
    "mm1": mm1,
    "mmc": mmc,
    "multiclass": multiclass,
    "criss_cross": criss_cross,
    **{f"criss_cross_{r.lower()}": lambda r=r: criss_cross(r) for r in (*_CRISS_CROSS, "varying")},
    "criss_cross_hyper": lambda: criss_cross(interarrival=hyperexponential()),
    "n_model": n_model,
    "five_by_five": five_by_five,
    "input_switch": input_switch,
    **{f"reentrant{f}_{3 * k}": lambda f=f, k=k: reentrant(k, family=f)
       for f in (1, 2) for k in range(2, 11)},
    **{f"reentrant{f}_{3 * k}_hyper": lambda f=f, k=k: reentrant(
        k, family=f, workload=hyperexponential(), interarrival=hyperexponential())
       for f in (1, 2) for k in range(2, 11)},
    "hospital": hospital,
}  # fmt: skip


def instance(name: str) -> Network:
    """A network by name.

    Args:
        name: a key of `INSTANCES`, such as "criss_cross_bh", "reentrant1_6" (6 classes of family
            1), "n_model".

    Raises:
        ValueError: an unknown name.

    Example:
        >>> from decisionppl.models import queueing
        >>> queueing.instance("reentrant1_30").num_classes
        30
    """
    import difflib

    if name not in INSTANCES:
        close = difflib.get_close_matches(name, INSTANCES, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"no queueing network named {name!r}; there are {sorted(INSTANCES)}.{hint}"
        )
    return INSTANCES[name]()
