"""Regression and labelling by generation: parts 1, 4, 5, 7 and 8 of `sequences.py`."""

import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from _common import row, spread
from _learned import REGIONS, click_sequences, gp_sequences, learned, region_sequences
from flax import nnx
from numpyro import handlers

import decisionppl as dp
from decisionppl import inference, testing
from decisionppl.inference._steps import fork, steps_of
from decisionppl.models import neural, sequences


def trained(name, options):
    net, params, fit = learned(name, options.learned, seed=options.seed, smoke=options.smoke)
    return handlers.substitute(neural.sequence(net), data=params), fit


def exact_gp(x):
    return sequences.gaussian_process(x, noise_variance=0.1).sequence(jnp.arange(len(x)))


def exactness(options):
    """Draws against closed forms; each row a standardised distance or an absolute difference."""
    draws = 2000 if options.smoke else 50_000
    key = jax.random.key(options.seed)
    rows = []

    urn = sequences.polya_urn(2.0, 1.0).sequence
    engine = inference.autoregressive(urn, 20)
    seen = dp.Rows((), {"y": jnp.asarray([1, 1, 0])}, jnp.ones(3, bool))
    counts = engine.sample(key, engine.update(key, engine.init(key), seen), draws)["y"][:, 3:].sum(
        1
    )
    law = np.exp(dist.BetaBinomial(4.0, 2.0, 17).log_prob(jnp.arange(18)))
    found = np.bincount(np.asarray(counts), minlength=18)
    chi2 = float((np.square(found - draws * law) / (draws * law)).sum())
    from scipy import stats

    rows.append(row("exactness: urn, imagined count against BetaBinomial, p value",
                    float(stats.chi2.sf(chi2, 17)), "probability", 1e-3))  # fmt: skip

    y = jnp.asarray([0.3, 0.5, -0.1, 0.8])
    engine = inference.autoregressive(sequences.normal_normal(0.0, 0.9, 0.5).sequence, 50)
    belief = engine.update(key, engine.init(key), dp.Rows((), {"y": y}, jnp.ones(4, bool)))
    means = np.asarray(engine.sample(key, belief, draws)["y"][:, 4:].mean(axis=1), float)
    v = 1 / (1 / 0.81 + 4 / 0.25)
    mean, variance = v * float(y.sum()) / 0.25, v + 0.25 / 46
    for what, z in (
        ("mean", abs(means.mean() - mean) / (variance / draws) ** 0.5),
        ("variance", abs(means.var() / variance - 1) / (2 / draws) ** 0.5),
    ):
        label = f"exactness: normal-normal, posterior {what}, standard errors away"
        rows.append(row(label, z, "z", 4, least=False))

    x = jnp.linspace(-2, 2, 12)[:, None]
    table = np.full(12, np.nan)
    table[[1, 6, 7]] = [0.5, -0.4, 0.2]
    known = np.isfinite(table)
    full = inference.impute(
        sequences.gaussian_process(x, noise_variance=0.1).sequence, (jnp.arange(12),), table,
        key=key, num_worlds=draws,
    )["y"]  # fmt: skip
    cov = np.exp(-0.5 * np.square(np.asarray(x) - np.asarray(x).T)) + 0.1 * np.eye(12)
    gain = cov[~known][:, known] @ np.linalg.inv(cov[known][:, known])
    mean = gain @ table[known]
    cov = cov[~known][:, ~known] - gain @ cov[known][:, ~known]
    got = np.asarray(full, float)[:, ~known]
    z = np.abs(got.mean(0) - mean) / np.sqrt(np.diag(cov) / draws)
    rows.append(row("exactness: GP, nine imputed cells, largest z of a mean", float(z.max()), "z",
                    4.5, least=False))  # fmt: skip
    se = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / draws)
    z = np.abs(np.cov(got.T) - cov) / se
    rows.append(row("exactness: GP, nine imputed cells, largest z of a covariance",
                    float(z.max()), "z", 4.5, least=False))  # fmt: skip

    at = jnp.linspace(-2, 2, 30)
    near = jnp.exp(-0.5 * jnp.square(at[:, None] - at[None]))
    for name, model, args, law in (
        ("normal-normal", sequences.normal_normal(0.2, 0.9, 0.5).sequence, 30,
         dist.MultivariateNormal(jnp.full(30, 0.2), 0.81 + 0.25 * jnp.eye(30))),
        ("GP", exact_gp, at[:, None],
         dist.MultivariateNormal(jnp.zeros(30), near + 0.1 * jnp.eye(30))),
    ):  # fmt: skip
        with jax.enable_x64(True):
            args = args if isinstance(args, int) else jnp.asarray(args, float)
            y = dp.play(model, options.seed)(args)["y"]["value"]
            steps = steps_of(model, args)
            absorb = lambda c, i, s=steps, y=y: s.absorb(  # noqa: E731
                c, jax.tree.map(lambda v: v[i], s.xs), {"y": y[i]})  # fmt: skip
            chain = jax.lax.scan(absorb, steps.init, jnp.arange(30))[1].sum()
            law = jax.tree.map(lambda v: jnp.asarray(v, float), law)
            law = dist.MultivariateNormal(law.loc, law.scale_tril @ law.scale_tril.T)
            gap = float(jnp.abs(chain / law.log_prob(y) - 1))
        rows.append(row(f"exactness: {name}, joint against multivariate normal, relative", gap,
                        "ratio", 1e-5, least=False))  # fmt: skip
    rows.append(matching(draws, options.seed))
    return rows


def matching(draws, seed):
    """Probability of each arm being chosen against P(it is best), by enumeration of the table."""
    horizon, seen = 6, [(0, 1), (1, 0), (0, 0)]
    problem = inference.potential_outcomes(sequences.polya_urn(1.0, 1.0).sequence, horizon, arms=2)
    engine = problem.inference
    key = jax.random.key(seed)
    arm, y = (jnp.asarray(v) for v in zip(*seen, strict=True))
    rows = dp.Rows((), {"arm": arm, "y": y}, jnp.ones(3, bool))
    belief = engine.update(key, engine.init(key), rows)
    U = dp.utility(problem.model, engine.sample(key, belief, draws), key=0)
    found = float(jnp.mean((U[:, 0] > U[:, 1]) + 0.5 * (U[:, 0] == U[:, 1])))

    def totals(successes, failures, left):
        n = np.arange(left + 1)
        law = dist.BetaBinomial(1.0 + successes, 1.0 + failures, left).log_prob(jnp.asarray(n))
        return successes + n, np.exp(np.asarray(law, float))

    (a, p), (b, q) = totals(1, 1, horizon - 2), totals(0, 1, horizon - 1)
    wins = (a[:, None] > b[None]) + 0.5 * (a[:, None] == b[None])
    truth = float(p @ wins @ q)
    z = abs(found - truth) / (truth * (1 - truth) / draws) ** 0.5
    return row("exactness: probability of choice against P(best) by enumeration", z, "z", 4,
               least=False)  # fmt: skip


def after_context(model, n, count):
    """Loss per target given the first n pairs only: one-step inference, [sequences]."""

    @jax.jit
    def run(x, y):
        def one(x, y):
            steps = steps_of(model, x)

            def take_in(carry, i):
                at = jax.tree.map(lambda v: v[i], steps.xs)
                return steps.absorb(carry, at, {"y": y[i]})[0], None

            carry = jax.lax.scan(take_in, steps.init, jnp.arange(n))[0] if n else steps.init
            carry = fork(carry, 1)
            targets = jax.tree.map(lambda v: v[n : n + count], steps.xs)
            law = jax.vmap(lambda x, y: steps.law(carry, x).log_prob(y))(targets, y[n : n + count])
            return -law.mean()

        return jax.lax.map(lambda a: one(*a), (x, y), batch_size=16)

    return run


def gaussian_process(options):
    """d = 1, noise variance 0.1: loss per point over T = 100, and joint losses of 50 targets."""
    size = 16 if options.smoke else 512
    x, y = gp_sequences(jax.random.key(options.seed + 5), 0, size=size)
    rows = []
    models = {"exact": exact_gp}
    for name in ("gp_causal", "gp_invariant"):
        models[name], fit = trained(name, options)
        rows.append(row(f"GP: {name} trained in", fit.seconds, "s"))
    reference = inference.sequence_loss(exact_gp, (x,), y)
    for name, model in models.items():
        loss = inference.sequence_loss(model, (x,), y)
        gap = np.asarray((loss - reference).mean(axis=1))
        target = 0.02 if name == "gp_causal" else None
        if name == "exact":
            rows.append(row("GP: exact model, loss per point", float(loss.mean()), "nats", None,
                            "notes", 0.388))  # fmt: skip
        else:
            error = gap.std() / len(gap) ** 0.5
            rows.append(row(f"GP: {name}, loss per point above exact (s.e. {error:.2g})",
                            float(gap.mean()), "nats", target, least=False))  # fmt: skip
        for n, exact_joint, exact_marginal in ((0, 0.468, 1.467), (5, 0.393, 0.700),
                                               (15, 0.347, 0.435)):  # fmt: skip
            joint = float(loss[:, n : n + 50].mean())
            marginal = float(after_context(model, n, 50)(x, y).mean())
            entry = row(f"GP: {name}, n = {n}, multi-step joint loss of 50 targets", joint, "nats",
                        exact_joint + 0.05 if name == "gp_causal" else None, "notes, exact",
                        exact_joint, least=False)  # fmt: skip
            rows.append(entry)
            rows.append(row(f"GP: {name}, n = {n}, one-step loss of 50 targets", marginal, "nats",
                            None, "notes, exact", exact_marginal))  # fmt: skip
    return rows


def architecture(options):
    """Causal and permutation-invariant networks of equal size and budget: gaps measured."""
    rows = []
    # each place twice: laws are compared at one place, and positions 0, 6, 12, 18 are looked at
    x = jnp.repeat(jax.random.uniform(jax.random.key(3), (10, 1), minval=-2, maxval=2), 2, axis=0)
    for task, at in (("gp", x), ("al", 2.5 * x)):
        for kind in ("causal", "invariant"):
            model, fit = trained(f"{task}_{kind}", options)
            swap = testing.check_exchangeable(
                model, at, num_sequences=4 if options.smoke else 16,
                num_permutations=8 if options.smoke else 64, tolerance=math.inf,
            )  # fmt: skip
            drift = testing.check_martingale(
                model, at, num_sequences=2 if options.smoke else 8, num_samples=64,
                tolerance=math.inf,
            )  # fmt: skip
            name = f"architecture: {task}, {kind}"
            rows.append(row(f"{name}, trained in", fit.seconds, "s"))
            rows.append(row(f"{name}, held-out loss as trained", fit.held_out[-1][1], "nats"))
            spread_of = float(swap.log_prob.std(axis=1).mean())
            rows.append(row(f"{name}, log p of 20 points under permutation, mean sd", spread_of,
                            "nats"))  # fmt: skip
            cdf = np.abs(drift.gap[..., :-1])
            rows.append(row(f"{name}, martingale gap of the cdf, mean absolute", float(cdf.mean()),
                            "probability"))  # fmt: skip
    return rows


def diagnostics(options):
    """Loss of learned models above the exact one, and the term of the regret bound it implies."""
    rows = []
    size = 16 if options.smoke else 256
    clicks = lambda x: sequences.beta_mixture(x[0]).sequence(x.shape[0])  # noqa: E731
    held_out = functools.partial(click_sequences, rows=100_000)
    regions = lambda x: sequences.regions(*REGIONS["al"]).sequence(x[:, 0])  # noqa: E731
    for name, reference, batches in (
        ("clicks", clicks, functools.partial(held_out, length=60 if options.smoke else 500)),
        ("al_causal", regions, functools.partial(region_sequences, "al")),
    ):
        x, y = batches(jax.random.key(options.seed + 8), 0, size=size)
        found = inference.loss_gap(trained(name, options)[0], reference, (x,), y)
        label = f"diagnostics: {name}, {y.shape[1]} observations"
        rows.append(row(f"{label}, loss above exact (s.e. {found.stderr:.2g})", found.gap, "nats"))
        rows.append(row(f"{label}, term of the regret bound", found.regret_term, "per period"))
    return rows


RULES = (("information", True), ("epistemic", False), ("total", False), ("random", False))
LABELS = (1, 5, 10, 19)


def labelling(options):
    """5 labelled, 95 in the pool, 100 test points: loss after k labels, by rule."""
    rows = []
    for task, title in (("al", "al_regions_v2_50"), ("alh", "al_hregions")):
        scales, noises = REGIONS[task]
        exact = lambda x, s=scales, n=noises: sequences.regions(s, n).sequence(x[:, 0])  # noqa: E731
        rows += label_table(task, f"{title}, exact", exact, 2000, 7, RULES, options, 0.515)
        model = trained(f"{task}_causal", options)[0]
        rows += label_table(task, f"{title}, causal", model, 100, 6, RULES, options, 0.60)
    return rows


def labelling_invariant(options):
    """The same by the permutation-invariant network, which encodes the context for every draw."""
    model = trained("al_invariant", options)[0]
    return label_table("al", "al_regions_v2_50, invariant", model, 10, 6, RULES[1:], options)


def label_table(task, title, model, tables, stream, rules, options, target=None):
    tables = 4 if options.smoke else tables
    key = jax.random.key(options.seed + stream)
    x, y = region_sequences(task, key, 0, tables, 200)
    rows = []
    for score, sequential in rules:
        loss = label_losses(model, x, y, score, sequential, LABELS, options)
        for k, each in zip(LABELS, loss.T, strict=True):
            error = each.std() / len(each) ** 0.5
            how = "sequential" if sequential else "top-k"
            label = f"labels: {title}, {how} {score}, k = {k} (s.e. {error:.2g})"
            asked = task == "al" and k == 19 and score == "information"
            rows.append(row(label, float(each.mean()), "nats", target if asked else None,
                            least=False))  # fmt: skip
    return rows


def label_losses(model, x, y, score, sequential, ks, options):
    observed = jnp.arange(200) < 5
    candidates = jnp.arange(5, 100)
    test = np.arange(100, 200)

    def one(key, x, y):
        found = inference.label(
            model, (x,), y, observed=observed, num_labels=max(ks), key=key, score=score,
            sequential=sequential, candidates=candidates, num_paths=6, num_steps=10,
        )  # fmt: skip
        out = []
        for k in ks:
            seen = observed.at[found.order[:k]].set(True)
            loss = inference.predictive_loss(model, (x,), y, seen)
            out.append(loss[test].mean())
        return jnp.stack(out)

    keys = jax.random.split(jax.random.key(options.seed), len(x))
    run = jax.jit(lambda *a: jax.lax.map(lambda b: one(*b), a, batch_size=4))
    return np.asarray(run(keys, x, y))


def speed(options):
    """64 paths, context 100, horizon 100: the shared cache against the whole network each step."""
    paths, length, depth = (4, 8, 2) if options.smoke else (64, 100, 4)
    net = neural.Transformer(
        1, neural.gaussian(), width=64, depth=depth, hidden=256, rngs=nnx.Rngs(options.seed)
    )
    model = neural.sequence(net)
    x, y = gp_sequences(jax.random.key(options.seed), 0, size=1, length=2 * length)
    x, y = x[0], y[0]
    key = jax.random.key(options.seed)
    engine = inference.autoregressive(model, x)
    seen = dp.Rows((x,), {"y": y}, jnp.arange(2 * length) < length)
    belief = jax.block_until_ready(engine.update(key, engine.init(key), seen))
    graph, weights = nnx.split(net)

    @functools.partial(jax.jit, static_argnums=3)
    def rerun(key, x, y, paths):
        """The same law, without a cache: each step runs the network on the whole sequence."""

        def path(key):
            def step(y, inputs):
                t, key = inputs
                law = nnx.merge(graph, weights).laws(x, y)
                drawn = law.loc[t] + law.scale[t] * jax.random.normal(key)
                return y.at[t].set(drawn), None

            times = jnp.arange(length, 2 * length)
            return jax.lax.scan(step, y, (times, jax.random.split(key, length)))[0]

        return jax.vmap(path)(jax.random.split(key, paths))

    def seconds(fn):
        started = time.perf_counter()
        out = jax.block_until_ready(fn())
        return time.perf_counter() - started, out

    compile_cached = seconds(lambda: engine.sample(key, belief, paths))[0]
    compile_rerun = seconds(lambda: rerun(key, x, y, paths))[0]
    cached, whole = [], []
    for _ in range(3):
        cached.append(seconds(lambda: engine.sample(key, belief, paths))[0])
        whole.append(seconds(lambda: rerun(key, x, y, paths))[0])
    ratios = [b / a for a, b in zip(cached, whole, strict=True)]
    drawn = engine.sample(key, belief, 1)["y"][0]
    steps = steps_of(model, x)
    absorb = lambda c, i: steps.absorb(c, x[i], {"y": drawn[i]})  # noqa: E731
    cached_law = jax.lax.scan(absorb, steps.init, jnp.arange(2 * length))[1]
    gap = float(jnp.abs(cached_law - net.laws(x, drawn).log_prob(drawn)).max())
    size = f"{paths} paths, context and horizon {length}"
    rows = [
        row(f"speed: {size}, shared cache, {spread(cached)}", float(np.median(cached)), "s"),
        row(f"speed: {size}, whole network each step, {spread(whole)}", float(np.median(whole)),
            "s"),
        row(f"speed: ratio, {spread(ratios)}", float(np.median(ratios)), "times", 30.0),
        row("speed: cached against parallel, log p of a path, largest difference", gap, "nats",
            1e-3, least=False),
        row("speed: first call, shared cache", compile_cached, "s"),
        row("speed: first call, whole network", compile_rerun, "s"),
    ]  # fmt: skip
    return rows
