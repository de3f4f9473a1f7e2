"""Queues and supply chains: exact solutions, long-run costs, gradients, training, speed, Picard.

With `--only` the other parts of an existing `--out` are kept, so that parts can be run apart.
Wall-clock seconds were taken beside other programs and are upper bounds; rates are per second of
CPU time on one core.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

<<<<<<< HEAD
from _common import run_parts
from _queue_costs import costs, exact, horizons, large, optimum
from _queue_fluid import fluids
from _queue_gradients import gradients, training
from _queue_little import little
from _queue_picard import picards
from _queue_ppo import ppo
from _queue_speed import admission, speed
=======
import json
import statistics
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import peer_python, row, run_parts
from _queue_costs import costs, exact, horizons, large, optimum
from _queue_picard import picards

from decisionppl.inference import markov, pathwise
from decisionppl.models import queueing


def one_core():
    """Keep this process on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


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
                         ("reentrant1_12", None), ("reentrant1_30", 8e6)):  # fmt: skip
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
    # as part of a program that wants the rewards, so that no states are kept
    rewards = jax.jit(
        lambda key: (
            markov.rollout(
                model.step, model.init, events // 4, key=key, policy=soft, num_runs=runs
            ).reward
        )
    )
    first, least = seconds(lambda: rewards(jax.random.key(options.seed)))
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

>>>>>>> truth

PARTS = {
    "exact": exact,
    "optimum": optimum,
    "horizons": horizons,
    "costs": costs,
    "large": large,
    "gradients": gradients,
    "training": training,
    "fluid": fluids,
    "little": little,
    "ppo": ppo,
    "speed": speed,
    "admission": admission,
    "picard": picards,
}


if __name__ == "__main__":
    run_parts(PARTS, __doc__)
