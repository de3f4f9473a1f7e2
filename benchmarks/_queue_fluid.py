"""Part of the benchmark of queues: fluid models, and the policy of their linear programs."""

import time

from _common import row

from decisionppl.models import queueing

# published costs of the policy of a linear program, solved anew every few hundred events
_PUBLISHED = {"criss_cross_bh": 18.2, "reentrant1_6": 16.8, "reentrant2_6": 18.6}


def fluids(options):
    """Costs of emptying in closed form; the policy on the criss-cross network."""
    net = queueing.criss_cross("BH")
    rows = []
    for start, known in (([1, 0, 1], 10.0), ([2, 0, 1], 25.0), ([1, 0, 2], 22.5)):
        found = queueing.fluid_plan(net, start, steps=300).cost
        rows.append(row(f"criss-cross BH, fluids {start}: cost over {known:g}, less one",
                        found / known - 1, "", 0.002, least=False))  # fmt: skip
    return rows + _policy("criss_cross_bh", options)


def fluids_reentrant(options):
    """The policy on re-entrant lines of six classes."""
    names = ("reentrant1_6",) if options.smoke else ("reentrant1_6", "reentrant2_6")
    return [r for name in names for r in _policy(name, options)]


def _policy(name, options):
    """Long-run cost, from the last four fifths of 100 runs of 50,000 events."""
    net = queueing.instance(name)
    start = time.process_time()
    policy = queueing.fluid(net, num_states=40 if options.smoke else 400, key=options.seed)
    solving = time.process_time() - start
    count, events = (10, 5000) if options.smoke else (100, 50_000)
    start = time.process_time()
    runs = queueing.simulate(net, policy, events, key=options.seed, num_runs=count)
    took = time.process_time() - start
    found = runs.average(warm_up=0.2)
    return [
        row(f"{name}, fluid: cost, 95 % +- {1.96 * found.stderr:.3f}", found.estimate, "",
            None, "published", _PUBLISHED[name]),
        row(f"{name}, fluid: solving the programs, runs that visit states included", solving,
            "CPU s"),
        row(f"{name}, fluid: events of the simulation, compiling included",
            count * events / took, "1/CPU s"),
    ]  # fmt: skip
