"""Digits: how many labels until a classifier's accuracy on a shifted population is known."""

import functools
import time

import jax
import numpy as np
from _common import row

from decisionppl import inference, lookahead
from decisionppl.models import labelling

NOISE = 0.2  # of `labelling.correctness`
PLANNERS = {
    "random": lookahead.at_random,
    "uncertainty": lookahead.most_uncertain,
    "one-step lookahead": lookahead.greedy,
}


def needed(error, size, limit=0.02):
    """Labels after which the error stays within the limit; one batch beyond the last if never."""
    inside = np.asarray(error) <= limit
    last = np.flatnonzero(~inside)
    return size * (int(last[-1]) + 1) if len(last) else 0


def rows(options):
    seeds, batches, size = (3, 4, 5) if options.smoke else (20, 40, 5)
    model = labelling.correctness()
    engine = inference.gaussian_process(model, capacity=50 + batches * size)
    found = []
    for seen in (10,) if options.smoke else (10, 6):
        # fewer images lie in six clusters: a smaller pool, so that every seed has enough
        pool = {} if seen == 10 else {"num_candidates": 400}
        tables = [labelling.digits(options.seed + s, num_seen=seen, **pool) for s in range(seeds)]
        summary = {}
        for name, planner in PLANNERS.items():
            if options.smoke and name == "uncertainty":
                continue
            planner = functools.partial(planner, k=size)

            @jax.jit
            def run(key, data, planner=planner):
                problem = lookahead.problem(model, engine, data.candidates, data.functional)
                belief = engine.update(key, engine.init(key), data.labelled)
                done = lookahead.simulate(key, problem, planner, belief, data.labels, batches)
                return done.estimate, done.chosen

            jax.block_until_ready(run(jax.random.key(999), tables[0]))  # compiles
            errors, covers, plain = [], [], []
            begun = time.perf_counter()
            for s, data in enumerate(tables):
                estimate, chosen = run(jax.random.key(s), data)
                error = np.asarray(estimate.mean) - float(data.truth)
                # the accuracy of a finite population is itself a random number given f
                finite = NOISE**2 / data.functional.slope.size
                sd = np.sqrt(np.asarray(estimate.variance) + finite)
                errors.append(error)
                covers.append(np.abs(error) < 1.96 * sd)
                plain.append(float(data.labels[chosen.ravel()].mean()) - float(data.truth))
            took = (time.perf_counter() - begun) / (seeds * batches)
            errors, covers = np.array(errors), np.array(covers)
            rmse = np.sqrt((errors**2).mean(0))
            each = [needed(np.abs(e), size) for e in errors]
            summary[name] = needed(rmse, size)
            at = [i for i in (4, 10, 20, 40) if i <= batches]
            path = ", ".join(f"{size * i}: {100 * rmse[i]:.1f}" for i in at)
            cover = ", ".join(f"{size * i}: {covers[:, i].mean():.2f}" for i in at)
            beyond = " (never within the budget)" if summary[name] > batches * size else ""
            what = f"{seen} of 20 clusters seen, {name}"
            found += [
                row(f"{what}: labels until the rmse of {seeds} seeds stays within 2 points{beyond} "
                    f"(rmse in points after {path})", summary[name], "labels"),
                row(f"{what}: labels until the error stays within 2 points, median of seeds "
                    f"(quartiles {np.quantile(each, 0.25):.0f}, {np.quantile(each, 0.75):.0f})",
                    float(np.median(each)), "labels"),
                row(f"{what}: 95 % intervals cover, all batches (after {cover})",
                    float(covers[:, 1:].mean()), "",
                    0.9 if name == "one-step lookahead" and not options.smoke else None),
                row(f"{what}: seconds per batch", took, "s"),
            ]  # fmt: skip
            if name == "random":
                found.append(row(f"{what}: rmse of the plain mean of all {size * batches} labels, "
                                 "no model", 100 * float(np.sqrt(np.mean(np.square(plain)))),
                                 "points"))  # fmt: skip
        if summary["one-step lookahead"] > batches * size:
            continue  # a ratio of two numbers that were not reached says nothing
        for other in [n for n in summary if n != "one-step lookahead"]:
            least = "at least, " if summary[other] > batches * size else ""
            found.append(row(
                f"{seen} of 20 clusters seen: labels that {other} needs, {least}per label of "
                "one-step lookahead", summary[other] / summary["one-step lookahead"], "x", 1.0,
            ))  # fmt: skip
    return found
