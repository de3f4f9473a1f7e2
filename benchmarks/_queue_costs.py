"""Exact solutions of queueing networks, and long-run costs against what is known of them."""

import time

import jax.numpy as jnp
import numpy as np
from _common import row
from jax.tree_util import Partial

from decisionppl.models import queueing

# Long-run costs measured before by another simulator, with 95 % half-widths: 100 episodes of
# 200,000 events from empty (400 of criss-cross), as here. Criss-cross under c-mu is exact.
_CLASSES = (6, 9, 12, 15, 18, 21, 24, 27, 30)
_MEASURED = {
    ("reentrant1", "cmu"): (
        (17.769, 0.282), (23.624, 0.416), (33.249, 0.545), (39.704, 0.742), (49.511, 1.012),
        (55.115, 1.11), (63.608, 1.332), (69.092, 1.487), (79.17, 2.07),
    ),
    ("reentrant1", "max_weight"): (
        (17.482, 0.263), (26.619, 0.501), (35.413, 0.724), (43.004, 0.774), (51.24, 0.921),
        (59.488, 1.202), (68.423, 1.287), None, (85.16, 1.85),
    ),
    ("reentrant1", "max_pressure_idle"): (
        (20.31, 0.324), (38.656, 0.699), (59.701, 1.32), (79.4, 1.992), (108.403, 2.707),
        (128.0, 3.098), (161.838, 4.296), None, None,
    ),
    ("reentrant1", "max_pressure"): (
        (16.338, 0.251), (23.882, 0.366), (31.923, 0.556), None, None, None, None, None, None,
    ),
    ("reentrant2", "cmu"): (
        (18.627, 0.292), (24.52, 0.389), (35.123, 0.665), (42.182, 0.788), (52.265, 1.252),
        (58.103, 1.326), (68.666, 1.799), None, (83.58, 2.32),
    ),
    ("reentrant2", "max_weight"): (
        (17.359, 0.276), (26.121, 0.442), (34.849, 0.67), (44.046, 0.93), (50.474, 1.133),
        (59.363, 1.331), (67.957, 1.684), None, (85.57, 2.41),
    ),
    ("reentrant2", "max_pressure_idle"): (
        (31.266, 0.638), (53.419, 1.184), (79.572, 2.009), (100.09, 3.152), (133.776, 4.091),
        (154.564, 5.407), (192.836, 6.173), None, None,
    ),
    ("reentrant2", "max_pressure"): (
        (16.702, 0.249), (24.711, 0.409), (32.273, 0.614), None, None, None, None, None, None,
    ),
}  # fmt: skip
_CRISS_CROSS = {
    "cmu": (18.0, 0.0), "max_weight": (17.958, 0.107), "max_pressure": (16.806, 0.227),
    "max_pressure_idle": (19.56, 0.119), "threshold": (15.201, 0.06),
}  # fmt: skip
_HALF_WIDTH = 0.025  # of the cost, for networks of more than 12 classes


def exact(options):
    """Closed forms and relative value iteration against known numbers."""
    rows = []
    table = {
        "M/M/1 rho .9: L": (queueing.mm1_length(0.9), 9.0, 1e-9),
        "M/M/2 rho .9: Erlang C": (queueing.erlang_c(0.9, 2), 0.852632, 5e-7),
        "M/M/10 rho .9: L": (queueing.mmc_length(0.9, 10), 15.018584, 5e-7),
        "M/G/1 rho .9, SCV 2.28: L": (queueing.mg1_length(0.9, 2.28), 14.184, 5e-4),
        "five classes: cmu": (queueing.best_priorities([0.18] * 5, [1] * 5, [5, 4, 3, 2, 1])[1],
                              13.527354, 5e-7),
        "criss-cross BH: cmu": (queueing.criss_cross_priority(queueing.criss_cross()), 18.0, 1e-6),
        "admission, b = 100: best cost": (min(queueing.admission_cost(b, 0.9) for b in range(60)),
                                          7.5872, 5e-5),
    }  # fmt: skip
    for name, (found, known, limit) in table.items():
        rows.append(row(f"{name} {known:g}: distance", abs(found - known), "", limit, least=False))
    grids = {"IL": (20, 0.6706, 1e-4), "BL": (24, 0.8432, 1e-4)}
    if not options.smoke:
        # IH as truncated when it was measured, to the digits that are known
        grids |= {"IM": (40, 2.0836, 1e-4), "BM": (50, 2.8289, 1e-4), "IH": (89, 9.967, 1e-3)}
    for regime, (most, known, limit) in grids.items():
        solved, took = _solved(regime, most, limit / 100)
        rows += [
            row(f"criss-cross {regime}: optimum {solved.cost:.4f}, distance to {known:g}",
                abs(solved.cost - known), "", limit, least=False),
            row(f"criss-cross {regime}: relative value iteration, {most + 1}^3 states, "
                f"{solved.iterations} sweeps", took, "CPU s"),
        ]  # fmt: skip
    return rows


def _solved(regime, most, tolerance):
    start = time.process_time()
    net = queueing.criss_cross(regime)
    solved = queueing.relative_value_iteration(net, most, tolerance=tolerance)
    return solved, time.process_time() - start


def _inside(inner, outer, most, length, space=None):
    """One policy while no queue is longer than `most`, another one outside."""
    return jnp.where((length <= most).all(), inner(length, space), outer(length, space))


def optimum(options):
    """The heavily loaded balanced criss-cross network: the best policy of a grid, simulated.

    The solution of the grid is too low, since arrivals to full queues are lost there. The policy,
    followed on the whole space, has a cost that the optimum cannot exceed.
    """
    most, kept, (runs, events) = (
        (20, 14, (20, 20_000)) if options.smoke else (109, 80, (1000, 600_000))
    )
    net = queueing.criss_cross("BH")
    solved, took = _solved("BH", most, 1e-3)
    table = jnp.asarray(solved.choice[: kept + 1, : kept + 1, : kept + 1])
    inner = Partial(solved.policy.func, table)
    policy = Partial(_inside, inner, queueing.threshold(net, 3), float(kept))
    start = time.process_time()
    found = queueing.simulate(net, policy, events, key=options.seed, num_runs=runs).average()
    simulated = time.process_time() - start
    # 95 % half-widths of both measurements, three standard errors
    limit = None if options.smoke else 3 * np.hypot(found.stderr, 0.025 / 1.96)
    name = "criss-cross BH"
    return [
        row(f"{name}: relative value iteration, {most + 1}^3 states, {solved.iterations} sweeps",
            took, "CPU s"),
        row(f"{name}: best cost on the grid, where arrivals to full queues are lost", solved.cost,
            ""),
        row(f"{name}: the same policy, thresholds outside of {kept}^3: cost, 95 % "
            f"+- {1.96 * found.stderr:.3f}", found.estimate, ""),
        row(f"{name}: distance to 15.121 +- 0.025", abs(found.estimate - 15.121), "", limit,
            least=False),
        row(f"{name}: {runs} x {events} events of a policy that is looked up, compiling included",
            simulated, "CPU s"),
    ]  # fmt: skip


def horizons(options):
    """What it changes that runs begin empty: criss-cross under c-mu, exactly 18."""
    net = queueing.criss_cross("BH")
    known = {10_000: (17.50, 0.48), 200_000: (18.10, 0.12), 800_000: (18.00, 0.05)}
    runs = {10_000: 8000, 50_000: 2000, 200_000: 1000, 800_000: 600}
    rows = []
    for events, count in runs.items():
        if options.smoke and events > 50_000:
            continue
        count = 50 if options.smoke else count
        # a key of its own: else the short runs are the beginnings of the long ones
        found = queueing.simulate(
            net, queueing.cmu(net), events, key=options.seed + events, num_runs=count
        ).average()
        name = f"criss-cross BH, cmu, {count} runs of {events} events from empty"
        rows.append(row(f"{name}: cost, 95 % +- {1.96 * found.stderr:.3f}", found.estimate, ""))
        if events in known:
            value, half = known[events]
            limit = None if options.smoke else 3 * np.hypot(found.stderr, half / 1.96)
            rows.append(row(f"{name}: distance to {value:g} +- {half:g}",
                            abs(found.estimate - value), "", limit, least=False))  # fmt: skip
    return rows


def costs(options):
    """Criss-cross and six classes; `large` has the others."""
    cells = [("criss_cross_bh", rule, known) for rule, known in _CRISS_CROSS.items()]
    cells += _cells(lambda classes: classes == 6)
    return _costs(options, cells)


def large(options):
    """Nine classes and more."""
    return _costs(options, [] if options.smoke else _cells(lambda classes: classes > 6))


def _cells(wanted):
    return [
        (f"{family}_{classes}", rule, known)
        for (family, rule), all_known in _MEASURED.items()
        for classes, known in zip(_CLASSES, all_known, strict=True)
        if wanted(classes)
    ]


def _policy(net, rule):
    if rule == "threshold":
        return queueing.threshold(net, 3)
    if rule == "max_pressure_idle":
        return queueing.max_pressure(net, idle=True)
    return getattr(queueing, rule)(net)


def _costs(options, cells):
    """Episodes of 200,000 events from empty: 400 of criss-cross, 100, 200 of large networks."""
    rows = []
    for name, rule, known in cells:
        net = queueing.instance(name)
        runs, events = (20, 20_000) if options.smoke else (100, 200_000)
        if net.num_classes == 3:
            runs *= 4
        elif net.num_classes > 12:
            runs *= 2
        start = time.process_time()
        found = queueing.simulate(net, _policy(net, rule), events, key=options.seed, num_runs=runs)
        found = found.average()
        took = time.process_time() - start
        rows.append(row(f"{name}, {rule}: cost, 95 % +- {1.96 * found.stderr:.3f}", found.estimate,
                        ""))  # fmt: skip
        if known is not None:
            value, half = known
            # three standard errors of both measurements; short runs from empty are biased
            limit = None if options.smoke else 3 * np.hypot(found.stderr, half / 1.96)
            rows.append(row(f"{name}, {rule}: distance to {value:g} +- {half:g}",
                            abs(found.estimate - value), "", limit, least=False))  # fmt: skip
        if net.num_classes > 12:
            rows.append(row(f"{name}, {rule}: 95 % half-width over the cost",
                            found.diagnostics["half_width"], "",
                            None if options.smoke else _HALF_WIDTH, least=False))  # fmt: skip
        rows.append(row(f"{name}, {rule}: {runs} x {events} events, compiling included", took,
                        "CPU s"))  # fmt: skip
    return rows
