"""Part of the benchmark of queues: what Little's law takes from the variance."""

import jax
import jax.numpy as jnp
import numpy as np
from _common import row

from decisionppl.inference import effects, markov
from decisionppl.models import queue_experiment, queueing


def little(options):
    """Costs with known rates as controls, and the mixture of Differences-in-Q."""
    rows = []
    cases = {
        "M/M/1 rho .5": (queueing.mm1(0.5), 1.0, 3.0),
        "M/M/1 rho .9": (queueing.mm1(0.9), 9.0, 19 / 9),
        "criss-cross BM, cmu": (queueing.criss_cross("BM"), 3.0, None),
        "criss-cross BH, cmu": (queueing.criss_cross("BH"), 18.0, None),
    }
    count, events = (100, 5000) if options.smoke else (400, 200_000)
    for name, (net, known, factor) in cases.items():
        runs = queueing.simulate(net, queueing.cmu(net), events, key=options.seed, num_runs=count,
                                 count=True)  # fmt: skip
        found = queueing.littles_law(net, runs, warm_up=0.1)
        better = found.controlled
        theory = "" if factor is None else f" (in theory {factor:.3g})"
        rows += [
            row(f"{name}: cost with controls, 95 % +- {1.96 * better.stderr:.4f}", better.estimate,
                ""),
            row(f"{name}: its distance to {known:g}, standard errors",
                abs(better.estimate - known) / better.stderr, "", 3.0, least=False),
            row(f"{name}: variance of the plain cost over it{theory}",
                better.diagnostics["variance_ratio"], "x"),
            row(f"{name}: the same for L = lambda W with the known rate",
                found.by_response.diagnostics["variance_ratio"], "x"),
        ]  # fmt: skip
    return rows + _mixtures(options)


def _mixtures(options):
    """Experiments of 40,000 ticks against the exact derivative."""
    cases = {
        "speed of service 1 or 1.3": (
            {"arrival": (0.5, 0.5), "service": (1.0, 1.3), "buffer": 25}, 0.0),
        "arrivals at .7 or .6": (
            {"arrival": (0.7, 0.6), "service": (1.0, 1.0), "buffer": 60}, -0.1 / 1.7),
    }  # fmt: skip
    count, steps = (50, 5000) if options.smoke else (500, 40_000)
    rows = []
    for name, (settings, known) in cases.items():
        model = queue_experiment.queue_experiment(**settings)
        truth = effects.taylor(markov.kernel(model.step, model.states)).estimate
        found = []
        for part in range(0, count, 50):
            runs = markov.rollout(model.step, 1, steps, key=options.seed + part, num_runs=50,
                                  burn_in=200)  # fmt: skip
            came = jnp.diff(runs.state, axis=1) == 1
            found.append(_mixed(runs, came, known, settings["buffer"] + 1))
        found = jax.tree.map(lambda *x: np.concatenate(x).astype(float), *found)
        low, high = found.interval
        cover = float(((low < truth) & (truth < high)).mean())
        plain = found.diagnostics["by_length"]
        error = found.estimate.std() / count**0.5
        what = f"experiment, {name}"
        rows += [
            row(f"{what}: mixture of Differences-in-Q, distance of the mean to {truth:.4f}, "
                "standard errors", abs(found.estimate.mean() - truth) / error, "", 3.0,
                least=False),
            row(f"{what}: coverage of 95 % intervals of the mixture, {count} logs", cover, "",
                None if options.smoke else 0.92),
            row(f"{what}: variance of Differences-in-Q over that of the mixture",
                plain.var() / found.estimate.var(), "x"),
        ]  # fmt: skip
    return rows


def _mixed(runs, came, known, size):
    def one(log):
        data, came = jax.tree.map(lambda x: x[None], log)
        return effects.dq_little(data, came, size, arrival_effect=known)

    return jax.lax.map(one, (runs, came))
