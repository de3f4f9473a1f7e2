"""Ensembles as beliefs on the small published problems, judged by the exact law of the data."""

import functools
import time

import jax
import numpy as np
import optax
from _common import row

from decisionppl import _joint as gaussian
from decisionppl import inference, lookahead
from decisionppl._labelling import joint_of
from decisionppl.models import labelling

PROBLEMS = {
    "2 anchors, K = 1": (1, {"num_anchors": 2, "num_labelled": 20, "pool": (100, 10),
                             "population": (10, 10, 10)}),
    "5 anchors, K = 2": (2, {"num_anchors": 5, "num_labelled": 20, "pool": (2, 2),
                             "population": (52, 50, 50)}),
}  # fmt: skip


def rows(options):
    seeds, steps = (2, 50) if options.smoke else (20, 200)
    members = 10
    net = labelling.network(prior_scale=1.0)
    engine = inference.ensemble(
        net.model, frozen=net.frozen, num_members=members, perturb="bootstrap", num_steps=steps,
        capacity=32, optimizer=optax.adam(optax.cosine_decay_schedule(0.02, steps)),
    )  # fmt: skip
    truth_model = labelling.regression()
    truth_engine = inference.gaussian_process(truth_model, capacity=32)
    draws = {"num_outcomes": members, "num_worlds": members}
    found = []
    for name, (k, options_of) in PROBLEMS.items():
        if options.smoke and k == 1:
            continue
        planners = {
            "random": functools.partial(lookahead.at_random, k=k),
            "members' disagreement": functools.partial(
                lookahead.most_uncertain, k=k, sequential=False, num_worlds=members
            ),
            "one-step lookahead": functools.partial(lookahead.greedy, k=k, **draws),
            "score function, leave-one-out": functools.partial(
                lookahead.policy_gradient, k=k, num_steps=100, **draws
            ),
            "smoothed, temperature 1": functools.partial(
                lookahead.policy_gradient, k=k, estimator="smoothed", num_steps=100, **draws
            ),
        }
        if options.smoke:
            planners = {n: planners[n] for n in ("random", "one-step lookahead")}

        @jax.jit
        def run(key, planners=planners, k=k, options_of=options_of):
            data = labelling.cluster_biased(key, **options_of)
            exact = lookahead.problem(truth_model, truth_engine, data.candidates, data.functional)
            knows = truth_engine.update(key, truth_engine.init(key), data.labelled)
            joint = joint_of(exact, knows)
            now = gaussian.functional_variance(joint, data.functional)
            best = lookahead.greedy(key, exact, knows, k=k)
            problem = lookahead.problem(net.model, engine, data.candidates, data.functional)
            belief = engine.update(key, engine.init(key), data.labelled)
            after = {
                "exact Gaussian process": now
                - gaussian.subset_explained(joint, data.functional, best.chosen)
            }
            own = {}
            for planner_name, planner in planners.items():
                done = lookahead.simulate(
                    key, problem, planner, belief, data.labels, 1, num_worlds=members
                )
                gone = gaussian.subset_explained(joint, data.functional, done.chosen[0])
                after[planner_name] = now - gone
                own[planner_name] = done.estimate.variance
            return now, after, own

        begun = time.perf_counter()
        jax.block_until_ready(run(jax.random.key(999)))
        compiled = time.perf_counter() - begun
        begun = time.perf_counter()
        every = [jax.block_until_ready(run(jax.random.key(options.seed + s))) for s in range(seeds)]
        took = (time.perf_counter() - begun) / seeds
        now = np.array([e[0] for e in every])
        for planner_name in every[0][1]:
            left = np.array([e[1][planner_name] for e in every])
            extra = ""
            if planner_name in every[0][2]:
                own = np.array([e[2][planner_name] for e in every])
                extra = f"; by the ensemble itself {own[:, 0].mean():.4f} -> {own[:, 1].mean():.4f}"
            share = left / now
            error = share.std() / np.sqrt(seeds)
            target = None
            if planner_name == "one-step lookahead" and not options.smoke:
                target = float(np.mean([e[1]["random"] for e in every] / now))
            found.append(row(f"ensemble, {name}, {planner_name}: exact expected Var g left, share "
                             f"of the present {now.mean():.4f} (s.e. {error:.3f}{extra})",
                             float(share.mean()), "", target, least=False))  # fmt: skip
        found.append(row(f"ensemble, {name}: all planners and fits, seconds per seed (compiled in "
                         f"{compiled:.0f} s)", took, "s"))  # fmt: skip
    return found
