"""Queues and supply chains: exact solutions, long-run costs, gradients, training, speed, Picard.

With `--only` the other parts of an existing `--out` are kept, so that parts can be run apart.
Wall-clock seconds were taken beside other programs and are upper bounds; rates are per second of
CPU time on one core.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import row, run_parts
from _queue_fluid import fluids, fluids_reentrant
from _queue_little import little
from _queue_ppo import ppo, ppo_reentrant
from _queue_speed import admission, one_core, speed

from decisionppl.inference import pathwise, picard
from decisionppl.models import fulfilment, queueing


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


def gradients(options):
    """Bias and spread of the derivative of an M/M/1 queue, and cosines in a network."""
    runs, steps = (50, 1000) if options.smoke else (600, 5000)
    rows = []

    def length(mu, load, key, mode):
        net = queueing.mm1(load).replace(service=jnp.array([[mu]]))
        model = queueing.event_model(net)
        return -pathwise.value(model.step, model.init, steps, key=key, mode=mode, per="elapsed",
                               policy=queueing.cmu(net))[0]  # fmt: skip

    cases = [(0.5, pathwise.ipa(), "ipa", 1.0, 0.03), (0.8, pathwise.ipa(), "ipa", 1.0, 0.03)]
    cases += [(0.5, pathwise.ste(1 / t), f"ste, temperature {t:g}", k, 0.03)
              for t, k in ((0.1, 1.12), (0.5, 1.02), (1.0, 0.89), (2.0, 0.69))]  # fmt: skip
    for load, mode, name, known, width in cases:
        one = jax.grad(lambda mu, key, load=load, mode=mode: length(mu, load, key, mode))
        keys = jax.random.split(jax.random.key(options.seed + 7), runs)
        found = np.asarray(jax.jit(jax.vmap(one, in_axes=(None, 0)))(1.0, keys), float)
        found /= -load / (1 - load) ** 2
        target = None if options.smoke else width
        rows += [
            row(f"M/M/1 rho {load:g}, {name}: estimate over truth, standard error "
                f"{found.std() / runs**0.5:.3f}", found.mean(), ""),
            row(f"M/M/1 rho {load:g}, {name}: distance to {known:g}", abs(found.mean() - known), "",
                target, least=False),
            row(f"M/M/1 rho {load:g}, {name}: sd over mean of one run",
                found.std() / abs(found.mean()), ""),
        ]  # fmt: skip
    return rows + _study(options)


def _study(options):
    """Cosine of one run with `ste`, and of many with `score`, to the mean of very many."""
    net = queueing.criss_cross()
    model = queueing.event_model(net)
    rows, steps = [], 200 if options.smoke else 1000
    many, thetas = (200, 1) if options.smoke else (2000, 2)
    rng = np.random.default_rng(options.seed)
    for name in ("soft_priority", "soft_max_weight", "soft_max_pressure"):
        make = getattr(queueing, name)
        cosines = {"ste, one run": [], "score, 100 runs": []}
        spreads = {n: [] for n in cosines}

        def slope(theta, key, mode, runs, make=make):
            return jax.grad(lambda t: -pathwise.value(
                model.step, model.init, steps, key=key, mode=mode, per="elapsed",
                policy=make(net, t), num_runs=runs).mean())(theta)  # fmt: skip

        def several(theta, keys, mode, runs, slope=slope):
            return jax.jit(lambda k: jax.lax.map(lambda k: slope(theta, k, mode, runs), k))(keys)

        for i in range(thetas):
            theta = jnp.asarray(rng.lognormal(0, 1, 3), jnp.float32)
            first, second = jax.random.split(jax.random.key(options.seed + 100 + i))
            reward = pathwise.score()
            truth = several(theta, jax.random.split(first, many // 100), reward, 100)
            mean = np.asarray(truth, float).mean(0)
            for label, mode, runs in (("ste, one run", pathwise.ste(1.0), 1),
                                      ("score, 100 runs", reward, 100)):  # fmt: skip
                found = several(theta, jax.random.split(second, 10), mode, runs)
                found = np.asarray(found, float)
                norm = np.linalg.norm(found, axis=1) * np.linalg.norm(mean)
                cosines[label].append((found @ mean / np.maximum(norm, 1e-30)).mean())
                spread = np.sqrt((found.std(0) ** 2).sum()) / np.linalg.norm(found.mean(0))
                spreads[label].append(spread)
        for label in cosines:
            what = f"criss-cross, {name}, {thetas} parameters: cosine to the mean of {many}"
            rows.append(row(f"{what}, {label}", float(np.mean(cosines[label])), ""))
            what = f"criss-cross, {name}: sd over length"
            rows.append(row(f"{what}, {label}", float(np.mean(spreads[label])), ""))
    return rows


def training(options):
    """Policies trained by `ste`, final averaged iterate, on one core."""
    one_core()
    rows = []
    settings = {
        "criss_cross_bh": (1.0, 200, 15.3, 60.0),
        "reentrant1_6": (1.0, 200, 14.5, None),
        "reentrant1_12": (1.0, 150, 30.0, None),
    }
    for name, (temperature, updates, target, limit) in settings.items():
        if options.smoke and name != "criss_cross_bh":
            continue
        net = queueing.instance(name)
        model = queueing.event_model(net)
        updates = 3 if options.smoke else updates
        start = time.perf_counter()
        schedule = optax.cosine_decay_schedule(3e-3, updates, 0.05)
        adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b1=0.8, b2=0.9))
        fit = pathwise.train(
            model.step, model.init, 1000, lambda w, net=net: queueing.neural(net, w),
            queueing.init_neural(jax.random.key(options.seed), net, (32, 32)), updates,
            key=options.seed, mode=pathwise.ste(1 / temperature), num_runs=20, burn_in=1000,
            per="elapsed", optimizer=adam, average=0.5, progress=False,
        )  # fmt: skip
        took = time.perf_counter() - start
        policy = queueing.hardened(queueing.neural(net, fit.params["policy"]))
        runs, events = (10, 5000) if options.smoke else (400, 200_000)
        found = queueing.simulate(net, policy, events, key=options.seed + 1, num_runs=runs)
        found = found.average()
        rows += [
            row(f"{name}: cost of the trained policy, final averaged iterate", found.estimate, "",
                None if options.smoke else target, least=False),
            row(f"{name}: 95 % half-width over the cost", found.diagnostics["half_width"], "",
                None if options.smoke else 0.01, least=False),
            row(f"{name}: training, {updates} updates of 20 x 2000 events, compiling included",
                took, "s", None if options.smoke else limit, least=False),
        ]  # fmt: skip
    return rows


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
    "fluid": fluids,
    "fluid_reentrant": fluids_reentrant,
    "little": little,
    "ppo": ppo,
    "ppo_reentrant": ppo_reentrant,
    "speed": speed,
    "admission": admission,
    "picard": picards,
}


if __name__ == "__main__":
    run_parts(PARTS, __doc__)
