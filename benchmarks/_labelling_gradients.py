"""Score function against smoothed gradients at equal information: quality, objective, seconds.

Every method sees the same costs: either the closed form, or the published estimate of it, the
sample variance of g over 100 draws given imagined labels. Labels are drawn anew for every batch.
"""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import row

from decisionppl import _joint as gaussian
from decisionppl import inference, lookahead
from decisionppl._labelling import joint_of
from decisionppl.models import labelling

DRAWS, SAMPLES = 100, 10
METHODS = {
    "score function, no baseline": ("score", None),
    "score function, leave-one-out": ("score", "leave_one_out"),
    "score function, optimal baseline": ("score", "optimal"),
    "smoothed, temperature 0.1": ("smoothed", 0.1),
    "smoothed, temperature 0.5": ("smoothed", 0.5),
    "smoothed, temperature 2": ("smoothed", 2.0),
}
RATES = (0.1, 0.5)


def beliefs(seeds):
    """The reduced problem: 20 labelled, a pool of 60, 285 targets; one belief per seed."""
    model = labelling.regression()
    engine = inference.gaussian_process(model, capacity=20)

    @jax.jit
    def one(key):
        data = labelling.cluster_biased(key, num_labelled=20, pool=(10, 1))
        found = lookahead.problem(model, engine, data.candidates, data.functional)
        return joint_of(found, engine.update(key, engine.init(key), data.labelled)), data.functional

    found = [one(jax.random.key(s)) for s in seeds]
    return jax.tree.map(lambda *x: jnp.stack(x), *found)


def part_of(joint, chosen):
    """The belief about some of the candidates alone."""
    return joint._replace(
        cross=joint.cross[:, chosen],
        label_mean=joint.label_mean[:, chosen],
        label_covariance=joint.label_covariance[:, chosen][:, :, chosen],
        noise=joint.noise[:, chosen],
    )


def exact_costs(joint, goal):
    now = gaussian.functional_variance(joint, goal)
    hard = lambda key, chosen: 1 - gaussian.subset_explained(joint, goal, chosen) / now  # noqa: E731
    soft = lambda key, share: 1 - gaussian.soft_explained(joint, goal, share) / now  # noqa: E731
    return hard, soft


def sampled_costs(joint, goal):
    """Imagined labels, functions drawn given them (Matheron's rule), the sample variance of g."""
    now = gaussian.functional_variance(joint, goal)
    cross, pool, noise = joint.cross[0], joint.label_covariance[0], joint.noise[0]
    count, targets = cross.shape
    whole = jnp.block([[pool, cross], [cross.T, joint.covariance[0]]])
    values, vectors = jnp.linalg.eigh(whole)
    root = vectors * jnp.sqrt(jnp.maximum(values, 0))
    own = jnp.diagonal(pool)

    def variance(key, matrix, across, observe):
        function_key, noise_key = jax.random.split(key)
        f = jax.random.normal(function_key, (DRAWS + 1, count + targets)) @ root.T
        seen = observe(f[:, :count], jax.random.normal(noise_key, (DRAWS + 1, count)))
        # the first draw is the imagined truth, the others become draws given its labels
        gain = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(matrix), True), across)
        draws = joint.mean[0] + f[1:, count:] + (seen[:1] - seen[1:]) @ gain
        return jnp.var(goal(draws), ddof=1) / now

    def hard(key, chosen):
        matrix = pool[chosen][:, chosen] + jnp.diag(noise[chosen] ** 2)
        observe = lambda f, e: (f + noise * e)[:, chosen]  # noqa: E731
        return variance(key, matrix, cross[chosen], observe)

    def soft(key, share):
        index = jnp.arange(count)
        matrix = share[:, None] * share * pool
        matrix = matrix.at[index, index].set(jnp.maximum(share**2, 1) * own + noise**2)
        extra = jnp.sqrt(jnp.maximum(1 - share**2, 0) * own + noise**2)
        real = lambda f, e: jnp.concatenate([  # noqa: E731
            f[:1] + noise * e[:1], share * f[1:] + extra * e[1:]
        ])  # fmt: skip
        return variance(key, matrix, share[:, None] * cross, real)

    return hard, soft


def estimator_of(method, costs, k):
    kind, setting = METHODS[method]
    hard, soft = costs
    if kind == "score":
        return lookahead.score_function(hard, k, num_samples=SAMPLES, baseline=setting)
    return lookahead.smoothed(soft, k, num_samples=SAMPLES, temperature=setting)


def quality(options, joints, goals):
    """Bias and deviation of each estimate: twelve candidates, two drawn, truth by enumeration."""
    joint, goal = jax.tree.map(lambda x: x[0], (joints, goals))
    joint = part_of(joint, jnp.arange(0, 60, 5))
    orders = jnp.asarray(list(itertools.permutations(range(12), 2)))
    hard, _ = exact_costs(joint, goal)
    costs = jax.jit(jax.vmap(lambda o: hard(None, o)))(orders)
    log_prob = jax.vmap(lookahead.plackett_luce_log_prob, (None, 0))
    logits = jnp.zeros(12)
    truth = jax.grad(lambda w: jnp.exp(log_prob(w, orders)) @ costs)(logits)
    size, found = float(jnp.linalg.norm(truth)), []
    for kind, build in (("closed form", exact_costs),):
        repeats = 100 if options.smoke else 1000
        for method in METHODS:
            if options.smoke and method != "smoothed, temperature 0.5":
                continue
            estimate = estimator_of(method, build(joint, goal), 2)
            run = jax.jit(lambda keys, e=estimate: jax.lax.map(
                lambda key: e(key, logits).slope, keys))  # fmt: skip
            slopes = np.asarray(run(jax.random.split(jax.random.key(options.seed), repeats)))
            gap = slopes.mean(0) - np.asarray(truth)
            error = np.sqrt(slopes.var(0).sum() / repeats) / size
            spread = np.sqrt(slopes.var(0).sum()) / size
            cosine = float(slopes.mean(0) @ truth / np.linalg.norm(slopes.mean(0)) / size)
            found.append(row(
                f"gradient by {SAMPLES} batches, {kind}, {method}: bias over the size of the slope "
                f"(s.e. {error:.3f}; sd over size {spread:.2f}; cosine of the mean {cosine:.3f})",
                float(np.linalg.norm(gap)) / size, "",
            ))  # fmt: skip
    return found


def descents(options, joints, goals):
    """What each arrives at: the exact expected variance after the five largest logits."""
    seeds, k, found = joints.mean.shape[0], 5, []

    def share(joint, goal, chosen):
        return exact_costs(joint, goal)[0](None, chosen)

    planner = greedy_of(joints, goals)
    greedy = np.asarray(planner(joints, goals))
    begun = time.perf_counter()
    jax.block_until_ready(planner(joints, goals))
    found.append(row(f"K = 5 of 60, {seeds} seeds, exact one-step lookahead: share of Var g left",
                     greedy.mean(), ""))  # fmt: skip
    found.append(row("the same: seconds per plan", (time.perf_counter() - begun) / seeds, "s"))
    keys = jax.random.split(jax.random.key(options.seed), 200)

    def at_random(x):
        draw = lambda key: lookahead.plackett_luce(key, jnp.zeros(60), k)  # noqa: E731
        return jnp.mean(jax.lax.map(lambda key: share(*x, draw(key)), keys))

    random = jax.jit(lambda j, g: jax.lax.map(at_random, (j, g)))
    found.append(row(f"K = 5 of 60, {seeds} seeds, random batches: share of Var g left",
                     float(random(joints, goals).mean()), ""))  # fmt: skip
    return found + learned(options, joints, goals, greedy, exact_costs)


FEW = ("score function, leave-one-out", "smoothed, temperature 0.5")


def learned(options, joints, goals, greedy, build):
    """Of each method and rate: what is left after a descent."""
    steps = 5 if options.smoke else 100
    seeds, k, found = joints.mean.shape[0], 5, []
    closed = build is exact_costs
    kind = "closed form" if closed else "imagined labels"
    for method in METHODS:
        if (options.smoke or not closed) and method not in FEW:
            continue

        def one(x, rate, method=method):
            joint, goal, key = x
            estimate = estimator_of(method, build(joint, goal), k)
            adam = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(rate))
            end = lookahead.descend(key, estimate, jnp.zeros(60), num_steps=steps, optimizer=adam)
            chosen = jax.lax.top_k(end.logits, k)[1]
            return exact_costs(joint, goal)[0](None, chosen)

        keys = jax.random.split(jax.random.key(options.seed + 1), seeds)
        run = jax.jit(lambda j, g, keys, rate, one=one: jax.lax.map(
            lambda x: one(x, rate), (j, g, keys)))  # fmt: skip
        run = run.lower(joints, goals, keys, 0.1).compile()
        # estimates from draws take ten times as long
        for rate in RATES if closed and not options.smoke else RATES[:1]:
            begun = time.perf_counter()
            left = np.asarray(run(joints, goals, keys, rate))
            took = (time.perf_counter() - begun) / seeds
            found.append(row(
                f"K = 5 of 60, {seeds} seeds, {kind}, {method}, rate {rate}: share of Var g "
                f"left (s.e. {left.std() / np.sqrt(seeds):.3f}; {took:.2f} s per plan)",
                left.mean(), "", None, "exact one-step lookahead", greedy.mean(),
            ))  # fmt: skip
    return found


def greedy_of(joints, goals):
    def best(x):
        joint, goal = x
        picks = gaussian.pick(joint, 5, gaussian.by_variance(joint, goal), jnp.ones(60, bool))
        return exact_costs(joint, goal)[0](None, picks.chosen)

    return jax.jit(lambda j, g: jax.lax.map(best, (j, g)))


def problems(options):
    return beliefs(range(options.seed, options.seed + (1 if options.smoke else 4)))


def quality_rows(options):
    return quality(options, *problems(options))


def descent_rows(options):
    return descents(options, *problems(options))


def sampled_rows(options):
    if options.smoke:
        return []
    joints, goals = problems(options)
    greedy = np.asarray(greedy_of(joints, goals)(joints, goals))
    return learned(options, joints, goals, greedy, sampled_costs)
