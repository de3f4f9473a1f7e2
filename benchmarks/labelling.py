"""Adaptive labelling: closed forms, batches from a biased pool, gradients, digits, ensembles.

With `--only` the other parts of an existing `--out` are kept, so that parts can be run apart.
Seeds from 0 on are reported; what was chosen by trial (the kernel for digits) was chosen on others.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# thousands of small factorisations in threads of their own have been seen to wait for each other
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
from _common import row, run_parts

import decisionppl as dp
from decisionppl import _joint as gaussian
from decisionppl import inference, lookahead
from decisionppl._labelling import joint_of
from decisionppl.models import labelling

SES = 4.0  # standard errors that a Monte Carlo check is allowed


def started(engine, data, key):
    """The belief that has seen the labels that there are."""
    return engine.update(key, engine.init(key), data.labelled)


def exact(options):
    """Closed forms against Monte Carlo, and what holds by algebra."""
    draws = 20_000 if options.smoke else 400_000
    data = labelling.cluster_biased(options.seed)
    model = labelling.regression()
    engine = inference.gaussian_process(model, capacity=100)
    key = jax.random.key(options.seed)
    goal = data.functional
    found = lookahead.problem(model, engine, data.candidates, goal)
    joint = jax.tree.map(lambda x: np.asarray(x, float)[0],
                         joint_of(found, started(engine, data, key)))  # fmt: skip
    rng = np.random.default_rng(options.seed)
    weights, centre = np.asarray(goal.weights, float), np.asarray(goal.centre, float)
    batch = [3, 260, 300, 401, 499]
    block = joint.label_covariance[np.ix_(batch, batch)] + np.diag(joint.noise[batch] ** 2)
    through = joint.cross[batch].T @ np.linalg.solve(block, joint.cross[batch])
    after = joint.covariance - through

    def closed(covariance, mean):
        h, w = 2 * weights * (mean - centre), np.diag(weights)
        return h @ covariance @ h + 2 * np.trace(w @ covariance @ w @ covariance)

    values, vectors = np.linalg.eigh(joint.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    g = np.concatenate([
        ((joint.mean + rng.normal(size=(10_000, len(values))) @ root.T - centre) ** 2) @ weights
        for _ in range(draws // 10_000)
    ])  # fmt: skip
    squares = (g - g.mean()) ** 2
    now = closed(joint.covariance, joint.mean)
    error = abs(squares.mean() - now) / (squares.std() / np.sqrt(draws))
    gain = joint.cross[batch].T @ np.linalg.inv(block)
    labels = rng.multivariate_normal(np.zeros(5), block, 20_000)
    h = 2 * weights * (joint.mean + labels @ gain.T - centre)
    w = np.diag(weights)
    nested = np.einsum("st,tu,su->s", h, after, h) + 2 * np.trace(w @ after @ w @ after)
    stacked = jax.tree.map(lambda x: jnp.asarray(x)[None], joint)
    both = jax.jit(lambda j: (
        gaussian.functional_variance(j, goal),
        gaussian.subset_explained(j, goal, jnp.array(batch)),
        gaussian.soft_explained(j, goal, jnp.zeros(500).at[jnp.array(batch)].set(1.0)),
        gaussian.soft_explained(j, goal, jnp.zeros(500)),
    ))(stacked)  # fmt: skip
    ours, gone, soft, nothing = (float(v) for v in both)
    nested_error = abs(nested.mean() - (ours - gone)) / (nested.std() / np.sqrt(len(nested)))
    rows = [
        row(f"Var g in closed form {now:.6f}, {draws} draws: distance", error, "standard errors",
            SES, least=False),
        row("the library's Var g: relative distance to the formula in double precision",
            abs(ours / now - 1), "", 1e-3, least=False),
        row(f"expected next Var g {ours - gone:.6f}, 20,000 sets of labels: distance",
            nested_error, "standard errors", SES, least=False),
        row("weighted Gaussian process at w = 1 of a batch: relative distance to its labels",
            abs(soft / gone - 1), "", 1e-3, least=False),
        row("weighted Gaussian process at w = 0: variance explained", abs(nothing), "", 0.0,
            least=False),
    ]  # fmt: skip
    return rows + enumeration(options)


def pairs(count):
    return jnp.asarray(list(itertools.permutations(range(count), 2)))


def enumeration(options):
    """Plackett-Luce and the score function, five candidates, two drawn."""
    rng = np.random.default_rng(options.seed)
    logits, orders = jnp.asarray(rng.normal(size=5)), pairs(5)
    price = jnp.asarray(rng.uniform(1, 2, size=(5, 5)))
    price = price + price.T
    costs = price[orders[:, 0], orders[:, 1]]
    log_prob = jax.vmap(lookahead.plackett_luce_log_prob, (None, 0))
    chance = jnp.exp(log_prob(logits, orders))
    truth = jax.grad(lambda w: jnp.exp(log_prob(w, orders)) @ costs)(logits)
    rows = [row("Plackett-Luce, 20 ordered pairs: distance of the sum to one",
                abs(float(chance.sum()) - 1), "", 1e-5, least=False)]  # fmt: skip
    from decisionppl import _policy_gradient

    scores = jax.vmap(jax.grad(lookahead.plackett_luce_log_prob), (None, 0))(logits, orders)
    for baseline in ("leave_one_out",) if options.smoke else (None, "leave_one_out", "optimal"):
        one = lambda i, j, b=baseline: _policy_gradient._slope(  # noqa: E731
            scores[jnp.stack([i, j])], costs[jnp.stack([i, j])], b
        )
        every = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(jnp.arange(20), jnp.arange(20))
        mean = jnp.einsum("i,j,ijn->n", chance, chance, every)
        rows.append(row(f"score function, baseline {baseline}: bias over all pairs of draws",
                        float(jnp.abs(mean - truth).max()), "", 1e-5, least=False))  # fmt: skip
    return rows


PLANNERS = {
    "random": (lookahead.at_random, 0.0203),
    "static uncertainty": (functools.partial(lookahead.most_uncertain, sequential=False), 0.0208),
    "sequential uncertainty": (lookahead.most_uncertain, 0.0021),
    "least average variance": (lookahead.least_average_variance, 0.0010),
    "one-step lookahead": (lookahead.greedy, 0.00067),
}


def synthetic(options):
    """The published generator: ten batches of five from a pool of 500."""
    batches = 2 if options.smoke else 10
    model = labelling.regression()
    engine = inference.gaussian_process(model, capacity=100 + 5 * batches)
    rows = []
    for name, (planner, before) in PLANNERS.items():
        if options.smoke and name not in ("random", "one-step lookahead"):
            continue
        planner = functools.partial(planner, k=5)

        @jax.jit
        def run(key, planner=planner):
            data = labelling.cluster_biased(key)
            found = lookahead.problem(model, engine, data.candidates, data.functional)
            belief = started(engine, data, key)
            done = lookahead.simulate(key, found, planner, belief, data.labels, batches)
            return done.estimate, data.truth

        begun = time.perf_counter()
        jax.block_until_ready(run(jax.random.key(999)))
        compiled = time.perf_counter() - begun
        begun = time.perf_counter()
        keys = [jax.random.key(options.seed + i) for i in range(5)]
        found = [jax.block_until_ready(run(key)) for key in keys]
        took = (time.perf_counter() - begun) / (5 * batches)
        variance = np.array([f[0].variance for f in found])
        z = np.array([(f[0].mean - f[1]) / np.sqrt(f[0].variance) for f in found])
        best = name == "one-step lookahead" and not options.smoke
        path = ", ".join(f"{v:.4f}" for v in variance.mean(0))
        rows += [
            row(f"{name}: Var g after {batches} batches, mean of 5 seeds ({path})",
                variance[:, -1].mean(), "", 0.0007 if best else None, "as measured before",
                before, least=False),
            row(f"{name}: seconds per batch, learning included, pool of 500", took, "s",
                1.0 if best else None, least=False),
            row(f"{name}: truth within 1.96 sd, 5 seeds, all batches",
                float(np.mean(np.abs(z) < 1.96)), ""),
        ]  # fmt: skip
        if best:
            rows.append(row(f"{name}: compilation", compiled, "s"))
    return rows


def gradients(options):
    import _labelling_gradients

    return _labelling_gradients.quality_rows(options)


def descents(options):
    import _labelling_gradients

    return _labelling_gradients.descent_rows(options)


def sampled(options):
    import _labelling_gradients

    return _labelling_gradients.sampled_rows(options)


def digits(options):
    import _labelling_digits

    return _labelling_digits.rows(options)


def ensembles(options):
    import _labelling_ensembles

    return _labelling_ensembles.rows(options)


def information(options):
    """Estimators of expected information gain against the linear-Gaussian truth."""
    import numpyro
    import numpyro.distributions as dist

    def line():
        w = numpyro.sample("w", dist.Normal(0, 1).expand([4]).to_event(1))
        x = dp.action("x", dist.Normal(0, 1).expand([4]).to_event(1))
        dp.reward("y", dist.Normal(w @ x, 0.5))

    engine = inference.conjugate(line)
    x = np.random.default_rng(options.seed).normal(size=(50, 4))
    found = lookahead.problem(line, engine, x, lookahead.mean_outcome(x[:3]))
    belief, batch = engine.init(0), jnp.arange(5)[None]
    truth = float(lookahead.information_gain(0, found, belief, batch, method="exact")[0])
    phi = x[:5]
    formula = 0.5 * np.linalg.slogdet(np.eye(5) + phi @ phi.T / 0.25)[1]
    rows = [row(f"exact information of five labels {truth:.4f} nats: distance to the formula",
                abs(truth - formula), "nats", 1e-4, least=False)]  # fmt: skip
    keys = jax.random.split(jax.random.key(options.seed), 10 if options.smoke else 50)
    for name, settings in {
        "nested, 256 outcomes, 256 worlds": {"num_worlds": 256},
        "nested, 256 outcomes, 4096 worlds": {"num_worlds": 4096},
        "Laplace, 1024 worlds": {"method": "laplace"},
    }.items():
        if options.smoke and "4096" in name:
            continue
        run = jax.jit(lambda key, s=settings: lookahead.information_gain(
            key, found, belief, batch, **s)[0])  # fmt: skip
        got = np.array([run(key) for key in keys])
        begun = time.perf_counter()
        run(keys[0]).block_until_ready()
        took = time.perf_counter() - begun
        rows.append(row(f"{name}: bias (sd {got.std():.4f}, {took:.4f} s)", got.mean() - truth,
                        "nats"))  # fmt: skip
    return rows


PARTS = {
    "exact": exact,
    "synthetic": synthetic,
    "gradients": gradients,
    "descents": descents,
    "sampled": sampled,
    "digits": digits,
    "ensembles": ensembles,
    "information": information,
}


if __name__ == "__main__":
    run_parts(PARTS, __doc__)
