"""Queues and supply chains: exact solutions, long-run costs, gradients, training, speed, Picard.

With `--only` the other parts of an existing `--out` are kept, so that parts can be run apart.
Wall-clock seconds were taken beside other programs and are upper bounds; rates are per second of
CPU time on one core.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import statistics
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _common import peer_python, row, run_parts
from _queue_gradients import gradients, one_core, training, training_large

from decisionppl.inference import markov, pathwise, picard
from decisionppl.models import fulfilment, queueing


def seconds(fn, repeats=5, clock=time.process_time):
    """(first call, least of the later ones), in seconds of CPU time.

    On one core this is what a core of one's own would take; wall-clock time also counts what other
    programs took of it.
    """
    found = []
    for _ in range(repeats + 1):
        start = clock()
        jax.block_until_ready(fn())
        found.append(clock() - start)
    return found[0], min(found[1:])


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
    grids = {"IL": (20, 0.6706), "BL": (24, 0.8432)}
    if not options.smoke:
        grids |= {"IM": (40, 2.0836), "BM": (50, 2.8289)}
    for regime, (most, known) in grids.items():
        start = time.perf_counter()
        solved = queueing.relative_value_iteration(queueing.criss_cross(regime), most)
        took = time.perf_counter() - start
        rows += [
            row(f"criss-cross {regime}: optimum {solved.cost:.4f}, distance to {known:g}",
                abs(solved.cost - known), "", 1e-4, least=False),
            row(f"criss-cross {regime}: relative value iteration, {most + 1}^3 states", took, "s"),
        ]  # fmt: skip
    return rows


# long-run costs measured before by another simulator, with 95 % half-widths
_MEASURED = {
    ("criss_cross_bh", "cmu"): (18.0, 0.0), ("criss_cross_bh", "max_weight"): (17.958, 0.107),
    ("criss_cross_bh", "max_pressure"): (16.806, 0.227),
    ("criss_cross_bh", "threshold"): (15.201, 0.06),
    ("reentrant1_6", "cmu"): (17.769, 0.282), ("reentrant1_6", "max_weight"): (17.482, 0.263),
    ("reentrant1_6", "max_pressure"): (16.338, 0.251),
    ("reentrant2_6", "cmu"): (18.627, 0.292), ("reentrant2_6", "max_weight"): (17.359, 0.276),
    ("reentrant2_6", "max_pressure"): (16.702, 0.249),
    ("reentrant1_12", "cmu"): (33.249, 0.545), ("reentrant1_12", "max_weight"): (35.413, 0.724),
    ("reentrant1_12", "max_pressure"): (31.923, 0.556),
    ("reentrant2_12", "cmu"): (35.123, 0.665), ("reentrant2_12", "max_weight"): (34.849, 0.67),
    ("reentrant1_18", "cmu"): (49.511, 1.012), ("reentrant1_18", "max_weight"): (51.24, 0.921),
    ("reentrant1_30", "cmu"): (79.17, 2.07), ("reentrant1_30", "max_weight"): (85.16, 1.85),
    ("reentrant2_30", "cmu"): (83.58, 2.32),
}  # fmt: skip


def costs(options):
    """Criss-cross and six classes; `large` has the others."""
    return _costs(options, lambda classes: classes <= 6)


def large(options):
    """Twelve classes and more."""
    return _costs(options, lambda classes: classes > 6)


def _costs(options, wanted):
    """Episodes of 200,000 events from empty: 400 of criss-cross, 100, 25 of large networks."""
    rows = []
    for (name, rule), (known, half) in _MEASURED.items():
        net = queueing.instance(name)
        if not wanted(net.num_classes) or (options.smoke and net.num_classes > 6):
            continue
        policy = queueing.threshold(net, 3) if rule == "threshold" else getattr(queueing, rule)(net)
        runs, events = (20, 20_000) if options.smoke else (100, 200_000)
        runs *= 4 if net.num_classes == 3 else 1
        runs = runs if net.num_classes <= 12 else runs // 4
        start = time.perf_counter()
        found = queueing.simulate(net, policy, events, key=options.seed, num_runs=runs).average()
        took = time.perf_counter() - start
        # three standard errors of both measurements; short runs from empty are biased
        limit = None if options.smoke else 3 * np.hypot(found.stderr, half / 1.96)
        rows += [
            row(f"{name}, {rule}: cost, 95 % +- {1.96 * found.stderr:.3f}", found.estimate, ""),
            row(f"{name}, {rule}: distance to {known:g} +- {half:g}", abs(found.estimate - known),
                "", limit, least=False),
            row(f"{name}, {rule}: {runs} x {events} events, compiling included", took, "s"),
        ]  # fmt: skip
    return rows


_CIW = """
import json, time, ciw
net = ciw.create_network(arrival_distributions=[ciw.dists.Exponential(0.9)],
                         service_distributions=[ciw.dists.Exponential(1.0)], number_of_servers=[1])
best = 1e9
for seed in range(3):
    ciw.seed(seed)
    sim = ciw.Simulation(net)
    start = time.process_time()
    sim.simulate_until_max_time(MAXIMUM)
    best = min(best, (time.process_time() - start) / (2 * len(sim.get_all_records())))
print(json.dumps({"rate": 1 / best}))
"""


def speed(options):
    """Events per second of CPU time on one core."""
    one_core()
    runs, events = (100, 1000) if options.smoke else (1000, 2000)
    rows, rates = [], {}
    for name, target in (("mm1", None), ("criss_cross_bh", 20e6), ("reentrant1_6", 8e6),
                         ("reentrant1_30", None)):  # fmt: skip
        net = queueing.instance(name)
        policy = queueing.max_weight(net)
        first, least = seconds(lambda net=net, policy=policy: queueing.simulate(
            net, policy, events, key=options.seed, num_runs=runs).time)  # fmt: skip
        rates[name] = runs * events / least
        rows += [
            row(f"{name}, MaxWeight, batch {runs}: events", rates[name], "1/CPU s",
                None if options.smoke else target),
            row(f"{name}: compiling", first - least, "CPU s"),
        ]  # fmt: skip
    net = queueing.criss_cross()
    model, soft = queueing.event_model(net), queueing.soft_max_weight(net, jnp.ones(3))
    first, least = seconds(
        lambda: (
            markov.rollout(
                model.step, model.init, events // 4, key=options.seed, policy=soft, num_runs=runs
            ).reward
        )
    )
    rows.append(row(f"criss-cross through NumPyro sites, sampled soft MaxWeight, batch {runs}: "
                    "events", runs * (events // 4) / least, "1/CPU s",
                    None if options.smoke else 3e6))  # fmt: skip

    batch, steps = (10, 100) if options.smoke else (100, 500)
    weights = queueing.init_neural(jax.random.key(0), net)

    @jax.jit
    def slope(weights, key):
        return jax.grad(
            lambda w: pathwise.value(
                model.step,
                model.init,
                steps,
                key=key,
                mode=pathwise.ste(10.0),
                per="elapsed",
                policy=queueing.neural(net, w),
                num_runs=batch,
                segment=100,
            ).mean()
        )(weights)

    first, least = seconds(lambda: slope(weights, jax.random.key(1)))
    rows += [
        row(f"criss-cross, ste through a 4 x 128 network, forward and backward, batch {batch}: "
            "events", batch * steps / least, "1/CPU s", None if options.smoke else 200e3),
        row("ste through a 4 x 128 network: compiling", first - least, "CPU s"),
    ]  # fmt: skip
    return rows + ([] if options.smoke else _peers(options, rates))


def _peers(options, rates):
    python = peer_python(options.peers / "ciw", "ciw==3.2.7")
    script = Path(options.peers) / "mm1_ciw.py"
    script.write_text(_CIW.replace("MAXIMUM", "20000"))
    done = subprocess.run([python, script], capture_output=True, text=True, check=True)
    peer = json.loads(done.stdout.splitlines()[-1])["rate"]
    return [row("mm1: times the events per second of ciw (one run there, a batch here)",
                rates["mm1"] / peer, "x", None, "ciw, events per CPU s", peer)]  # fmt: skip


def admission(options):
    """The buffer of an M/M/1 queue by signs of a pathwise derivative; scored by the exact cost."""
    net = queueing.network([0.9], [[1.0]], buffer=5, rejection=100.0)
    steps, runs, updates = (500, 4, 10) if options.smoke else (5000, 20, 60)

    @jax.jit
    def slope(buffer, key):
        def cost(b):
            moved = net.replace(buffer=b[None])
            model = queueing.event_model(moved)
            return -pathwise.value(
                model.step, model.init, steps, key=key, mode=pathwise.ipa(), per="elapsed",
                policy=queueing.cmu(moved), num_runs=runs, burn_in=1000).mean()  # fmt: skip

        return jax.grad(cost)(buffer)

    buffer, path = 5.0, []
    for i in range(updates):
        key = jax.random.fold_in(jax.random.key(options.seed), i)
        buffer = max(1.0, buffer - float(np.sign(slope(jnp.array(buffer), key))))
        path.append(buffer)
    chosen = round(statistics.median(path[-20:]))
    best = min(queueing.admission_cost(b, 0.9) for b in range(60))
    return [
        row("M/M/1 admission, b = 100: buffer found (best 17)", chosen, ""),
        row("M/M/1 admission: its exact cost over the optimum 7.5872",
            queueing.admission_cost(chosen, 0.9) / best - 1, "",
            None if options.smoke else 0.01, least=False),
    ]  # fmt: skip


def picards(options):
    """Equality with the sequential path, iterations, and speed against the same jitted scan."""
    sizes = [(50, 5, 1000), (200, 10, 2000), (100, 8, 2000)]
    count = 6 if options.smoke else 100
    greedy = fulfilment.system()
    equal, over = 0, []
    for seed in range(count):
        products, nodes, orders = sizes[seed % 3]
        made = fulfilment.instance(jax.random.key(options.seed + 1000 + seed), products, nodes,
                                   orders)  # fmt: skip
        run = picard.scan(greedy, made.warehouses.capacity, made.warehouses.inventory,
                          made.orders.product, made.orders, batch=64, prove=True)  # fmt: skip
        equal += run.equal
        over.append(int(run.iterations[0]) - int((run.shared == 0).sum()))
    rows = [
        row(f"Picard, {count} fulfilment instances, cheapest node: equal to the sequential path",
            equal, "", count),
        row("Picard: most iterations above the number of exhausted nodes", max(over), "", 2,
            least=False),
    ]  # fmt: skip
    products, nodes, orders = (1000, 10, 3000) if options.smoke else (100_000, 30, 300_000)
    made = fulfilment.instance(jax.random.key(options.seed), products, nodes, orders)
    scale = float(made.warehouses.capacity.mean())
    for hidden in ((64, 64),):
        weights = fulfilment.init_policy(jax.random.key(1), nodes, hidden)
        weights[-1] = (0.05 * weights[-1][0], weights[-1][1])
        system = fulfilment.system(weights, scale)
        begin = (made.warehouses.capacity, made.warehouses.inventory, made.orders.product,
                 made.orders)  # fmt: skip
        kept = {}

        def plain(system=system, begin=begin, kept=kept):
            kept["plain"] = picard.sequential(system, *begin)[0]
            return kept["plain"]

        def fast(system=system, begin=begin, kept=kept):
            kept["run"] = picard.scan(system, *begin, chunk=orders // 1000, batch=256)
            return kept["run"].actions

        slow, quick = [], []
        plain(), fast()
        for _ in range(1 if options.smoke else 2):  # in turn
            for fn, times in ((plain, slow), (fast, quick)):
                start = time.perf_counter()
                jax.block_until_ready(fn())
                times.append(time.perf_counter() - start)
        name = f"fulfilment, {orders} orders, {products} products, {nodes} nodes, network {hidden}"
        run = kept["run"]
        same = float((run.actions == kept["plain"]).mean())
        rows += [
            row(f"{name}: share of actions equal to the sequential ones", same, "", 1.0),
            row(f"{name}: most iterations of a thousandth of them", int(run.iterations.max()), ""),
            row(f"{name}: sequential scan", min(slow), "s"),
            row(f"{name}: Picard", min(quick), "s"),
            row(f"{name}: speed-up on this CPU", min(slow) / min(quick), "x"),
        ]  # fmt: skip
    return rows


PARTS = {
    "exact": exact,
    "costs": costs,
    "large": large,
    "gradients": gradients,
    "training": training,
    "training_large": training_large,
    "speed": speed,
    "admission": admission,
    "picard": picards,
}


if __name__ == "__main__":
    run_parts(PARTS, __doc__)
