"""Parts of the benchmark of queues: events per second beside ciw, and admission by gradients."""

import json
import statistics
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _common import one_core, peer_python, row

from decisionppl.inference import markov, pathwise
from decisionppl.models import queueing


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
