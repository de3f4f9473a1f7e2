"""Effects in Markov models: exact tables, Monte Carlo, two benchmarks of estimators, speed.

With `--only` the other parts of an existing `--out` are kept, so that parts can be run apart.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import time

import jax
import jax.numpy as jnp
import numpy as np
from _common import row, run_parts, seconds

from decisionppl import testing
from decisionppl.inference import effects, markov, value
from decisionppl.models import rental_marketplace, two_state


def market(size):
    model = rental_marketplace.rental_marketplace(size)
    return markov.kernel(model.step, model.states)


def exact(options):
    chain = two_state.two_state()
    known = markov.kernel(chain.step, chain.states)
    first = effects.taylor(known)
    naive = effects.taylor(known, 0, form="kernel").estimate
    table = {
        "two-state: effect": (first.effect, 1.5555555556),
        "two-state: naive": (naive, 1.0),
        "two-state: DQ": (first.estimate, 1.4166666667),
    }
    published = {
        10: (0.0153478329, 0.0187418484, 0.0153470436, 0.5092, 0.5095, 0.6562),
        50: (0.0154976650, 0.0188646304, 0.0154970757, 0.5248, 0.5255, 0.6574),
    }
    rows, names = [], ("effect", "naive", "DQ", "DQ sd", "off-policy sd", "naive sd")
    for size, numbers in published.items():
        known = market(size)
        limits, series = effects.asymptotics(known), effects.taylor(known)
        ours = (series.effect, limits["naive"].estimand, series.estimate, limits["dq"].sd,
                limits["off-policy"].sd, limits["naive"].sd)  # fmt: skip
        table |= {f"rental N={size}: {n}": pair for n, pair in
                  zip(names, zip(ours, numbers, strict=True), strict=True)}  # fmt: skip
    for name, (found, known) in table.items():
        limit = 5e-5 if name.endswith("sd") else 1e-9
        rows.append(row(f"{name}: {found:.10g}, distance to the known {known:.10g}",
                        abs(found - known), "", limit, least=False))  # fmt: skip
    sizes = (100, 1000) if options.smoke else (100, 500, 1000, 2000, 5000, 10_000)
    for size in sizes:
        start = time.perf_counter()
        known = market(size)
        made = time.perf_counter() - start
        start = time.perf_counter()
        limits = effects.asymptotics(known)
        solved = time.perf_counter() - start
        truth = rental_marketplace.value(1.0, size) - rental_marketplace.value(0.0, size)
        gap = abs(limits["off-policy"].estimand - truth)
        rows += [
            row(f"rental N={size}: effect {truth:.8f} by the product form, distance of the solve",
                gap, "", 1e-9, least=False),
            row(f"rental N={size}: DQ asymptotic sd", limits["dq"].sd, ""),
            row(f"rental N={size}: off-policy asymptotic sd", limits["off-policy"].sd, ""),
            row(f"rental N={size}: three asymptotic laws solved", solved, "s",
                1.0, least=False),
            row(f"rental N={size}: kernel enumerated, compiling included", made, "s"),
        ]  # fmt: skip
    return rows


def identities(options):
    """Orders of bias and rates of the series; the identities are in tests/inference."""
    rng = np.random.default_rng(options.seed)
    base, other = rng.dirichlet(np.ones(6), (2, 6))
    gain, more = rng.normal(size=(2, 6))

    def pair(delta, p, order, form):
        delta = float(delta)
        table = np.stack([base, (1 - delta) * base + delta * other])
        known = markov.tabular(table, np.stack([gain, gain + delta * more]), p)
        found = effects.taylor(known, order, form=form)
        return found.estimate, found.effect

    sizes, rows = (0.2, 0.1, 0.05, 0.025, 0.0125), []
    for name, p, order, form, slope in (
        ("naive", 0.5, 0, "kernel", 1), ("DQ, p = .7", 0.7, 1, "policy", 2),
        ("DQ, p = .5", 0.5, 1, "policy", 3),
    ):  # fmt: skip
        found = testing.bias_order(
            lambda d, ask=(p, order, form): pair(d, *ask), sizes, order=slope
        )
        rows.append(row(f"{name}: slope of the bias, distance to {slope}",
                        abs(found.order - slope), "", 0.15, least=False))  # fmt: skip
    chain = two_state.two_state()
    series = effects.taylor(markov.kernel(chain.step, chain.states), 15)
    error = np.abs(series.by_order - series.effect)[1::2]
    rate = (error[-1] / error[0]) ** (1 / (len(error) - 1))
    rows += [
        row("geometric convergence at p = .5: error ratio per two orders", float(rate), ""),
        row("the same, by the spectral radius squared", float(series.ratio.max() ** 2), ""),
    ]
    wild = two_state.two_state(up=(0.01, 0.9), down=(0.02, 0.5), p=0.2)
    lost = effects.taylor(markov.kernel(wild.step, wild.states), 10)
    rows.append(row(f"a divergent series is flagged (ratio {lost.ratio.max():.2f}, error of order "
                    f"10 {abs(lost.bias):.3g})", float(not lost.converges), "", 1))  # fmt: skip
    ended = effects.taylor(markov.tabular(np.stack([base, other]), np.stack([gain, more]), 0.3), 7,
                           horizon=7, initial=0)  # fmt: skip
    rows.append(row("horizon T = 7, order 7: error", abs(ended.bias), "", 1e-10, least=False))
    return rows


def _estimators(size, long):
    found = {
        "naive": effects.naive,
        "difference in means": effects.difference_in_means,
        "DQ, tabular": lambda d: effects.dq(d, size + 1),
        "DQ, scores traced (.9)": lambda d: effects.dq(d, size + 1, score_trace=0.9),
        "DQ, Monte Carlo (20)": lambda d: effects.dq_monte_carlo(d, 20),
        "off-policy LSTD": lambda d: effects.off_policy_lstd(d, size + 1),
    }
    if long:
        return found
    quadratic = lambda m: jnp.array([m / size, (m / size) ** 2])  # noqa: E731
    return found | {"DQ, LSTD on m, m^2": lambda d: effects.dq(d, quadratic)}


def monte_carlo(options):
    """Rental marketplace, N = 50."""
    size, model = 50, rental_marketplace.rental_marketplace(50)
    known = market(size)
    truth = effects.taylor(known).effect
    limits, rows = effects.asymptotics(known), []
    settings = ((2000, 20), (1000, 20)) if options.smoke else ((200_000, 500), (20_000, 500))
    for steps, repeats in settings:
        estimators = _estimators(size, steps > 100_000)

        def one(key, steps=steps, estimators=estimators):
            data = markov.rollout(model.step, 40, steps, key=key, burn_in=500)
            found = {n: f(data) for n, f in estimators.items()}
            return {n: (e.estimate, e.stderr, *e.interval) for n, e in found.items()}

        keys = jax.random.split(jax.random.key(options.seed + steps), repeats)
        found = jax.jit(lambda k, one=one: jax.lax.map(one, k))(keys)
        for name, (guess, stderr, low, high) in found.items():
            guess, stderr, low, high = (np.asarray(x, float) for x in (guess, stderr, low, high))
            limit = {"naive": "naive", "difference in means": "naive", "off-policy LSTD":
                     "off-policy"}.get(name, "dq")  # fmt: skip
            aim = limits[limit].estimand
            cover = np.mean((low <= aim) & (aim <= high))
            error = 100 * np.sqrt(np.mean((guess - truth) ** 2)) / truth
            target = {200_000: 7, 20_000: 24}.get(steps) if name == "DQ, tabular" else None
            text = (f"T={steps}, {repeats} experiments, {name}: rmse (bias "
                    f"{100 * (guess.mean() / truth - 1):.1f}, sd {100 * guess.std() / truth:.1f}, "
                    f"stderr/sd {stderr.mean() / guess.std():.2f})")  # fmt: skip
            rows.append(row(text, error, "% of the effect", target, least=False))
            name_it = f"T={steps}, {name}: 95 % intervals cover what it estimates"
            rows.append(row(name_it, float(cover), ""))
        if steps in (20_000, 200_000):
            rows.append(
                row(
                    f"T={steps}: asymptotic sd of DQ, by its influence function",
                    100 * limits["dq"].sd / np.sqrt(steps) / truth,
                    "% of the effect",
                )
            )
    return rows


def structural(options):
    """The posterior of four structural parameters, from 20,000 steps."""
    from decisionppl import inference

    size = 50
    truth = rental_marketplace.value(1.0, size) - rental_marketplace.value(0.0, size)
    model = rental_marketplace.rental_marketplace(size, unknown=True)
    true = rental_marketplace.rental_marketplace(size)
    steps, repeats = (2000, 3) if options.smoke else (20_000, 100)
    engine = inference.laplace(model.step, jnp.asarray(size))

    def log(key):
        data = markov.rollout(true.step, 40, steps, key=key, burn_in=500)
        before, after = data.state[0, :-1], data.state[0, 1:]
        booked = data.reward[0].astype(int)
        sites = {"treat": data.arm[0], "booking": booked, "return": after - before + booked}
        return before, sites

    rows_of = jax.jit(log)
    estimates, spreads, lows, highs = [], [], [], []
    started = time.perf_counter()
    for i in range(repeats):
        key = jax.random.key(options.seed + 10_000 + i)
        before, sites = rows_of(key)
        logged = inference.Rows((before,), sites, jnp.ones(steps, bool))
        belief = engine.update(key, engine.init(key), logged)
        worlds = engine.sample(key, belief, 100)
        draws = effects.posterior(markov.kernel(model.step, model.states, world=worlds)).effect
        estimates.append(draws.mean())
        spreads.append(draws.std())
        lows.append(np.quantile(draws, 0.025))
        highs.append(np.quantile(draws, 0.975))
    took = (time.perf_counter() - started) / repeats
    error = np.array(estimates) - truth
    cover = np.mean((np.array(lows) <= truth) & (truth <= np.array(highs)))
    return [
        row(f"T={steps}, {repeats} experiments, posterior mean of four structural parameters: rmse",
            100 * np.sqrt(np.mean(error**2)) / truth, "% of the effect", 20, least=False),
        row(f"T={steps}, structural posterior: 95 % intervals cover the effect", float(cover), ""),
        row(f"T={steps}, structural posterior: sd over rmse",
            float(np.mean(spreads) / np.sqrt(np.mean(error**2))), ""),
        row(f"T={steps}, structural posterior, Laplace and kernel of 100 worlds", took, "s"),
    ]  # fmt: skip


def bound(options):
    """How well the effect can be known from 20,000 steps: Cramer-Rao, four parameters."""
    size, step = 50, 1e-5
    model = rental_marketplace.rental_marketplace(size, unknown=True)
    base = np.array([0.5, 0.5, 0.315, 0.3937])  # arrival, return, utilities
    points = np.stack([base, *(base - step * np.eye(4))])
    world = {"event": np.c_[points[:, :2], 1 - points[:, :2].sum(1)], "utility": points[:, 2:]}
    known = markov.kernel(model.step, model.states, world=world)
    effect = effects.posterior(known).effect
    slope = (effect[0] - effect[1:]) / step
    score = (known.probability[0] - known.probability[1:]) / step
    law = value.stationary(market(size))[known.source] / 2
    chance = known.probability[0]
    weight = np.where(chance > 0, law / np.where(chance > 0, chance, 1), 0)
    information = np.einsum("e,ie,je->ij", weight, score, score)
    sd = np.sqrt(slope @ np.linalg.solve(information, slope) / 20_000)
    return [row("T=20000: least sd of an unbiased estimate, four structural parameters "
                "(Cramer-Rao)", 100 * sd / effect[0], "% of the effect")]  # fmt: skip


def nonstationary(options):
    import _nonstationary

    return _nonstationary.rows(options)


def city(options):
    import _city

    return _city.rows(options)


def speed(options):
    steps, size = (100_000, 20) if options.smoke else (1_000_000, 20)
    rng = np.random.default_rng(options.seed)
    arm = rng.integers(0, 2, steps)
    from scipy.signal import lfilter

    state = lfilter([1], [1, -0.9], rng.normal(size=(steps + 1, size)) * 0.3, axis=0)
    state[1:] += 0.1 * arm[:, None]
    reward = state[:-1, 0] + arm + rng.normal(size=steps)
    data = markov.Trajectories(
        jnp.asarray(state, jnp.float32)[None], jnp.asarray(arm)[None],
        jnp.full((1, steps, 2), 0.5, jnp.float32), jnp.asarray(reward, jnp.float32)[None],
        jnp.ones((1, steps), bool),
    )  # fmt: skip
    score = np.where(arm == 1, 2.0, -2.0)

    def differential(x, r, score):
        """LSTD for V in chunks, then the mean of scores times errors: one feature set."""
        matrix, gain, mean = np.zeros((size, size)), np.zeros(size), r.mean()
        for i in range(0, steps, 50_000):
            here, later = x[i : i + 50_000], x[i + 1 : i + 50_001]
            here = here[: len(later)]
            matrix += here.T @ (here - later)
            gain += here.T @ (r[i : i + 50_000] - mean)
        values = x @ np.linalg.solve(matrix, gain).astype(x.dtype)
        return np.mean(score * (r - mean + values[1:] - values[:-1]))

    def by_arm(x, r):
        """LSTD for Q on 2 x 20 features of state and arm, in chunks; the mean of Q1 - Q0."""
        pairs = 2 * size
        matrix, gain, mean = np.zeros((pairs, pairs)), np.zeros(pairs), r.mean()
        hot = np.eye(2)[arm]
        for i in range(0, steps - 1, 50_000):
            stop = min(i + 50_000, steps - 1)
            here = (hot[i:stop, :, None] * x[i:stop, None]).reshape(-1, pairs)
            both = x[i + 1 : stop + 1, None].repeat(2, 1).reshape(-1, pairs) / 2
            matrix += here.T @ (here - both)
            gain += here.T @ (r[i:stop] - mean)
        weights = np.linalg.solve(matrix + 1e-9 * steps * np.eye(pairs), gain)
        return np.mean(x[:-1] @ (weights[size:] - weights[:size]))

    small = state.astype(np.float32), reward.astype(np.float32), score.astype(np.float32)
    peers = {
        "NumPy, point estimate, 2 x 20 features of state and arm, float64":
            lambda: by_arm(state, reward),
        "NumPy, point estimate, 20 features, float64": lambda: differential(state, reward, score),
        "NumPy, point estimate, 20 features, float32": lambda: differential(*small),
    }  # fmt: skip
    draw = effects.bootstrap(0, 500)
    ours = lambda: effects.dq(data, interval=draw)  # noqa: E731
    times, rows = {n: [] for n in ("ours", *peers)}, []
    ours()
    for _ in range(5):  # in turn
        for name, fn in {"ours": ours, **peers}.items():
            start = time.perf_counter()
            jax.block_until_ready(fn())
            times[name].append(time.perf_counter() - start)
    best = {n: min(t) for n, t in times.items()}
    rows.append(row(f"DQ and 500 bootstrap replicates, {steps} transitions x {size} features",
                    best["ours"], "s"))  # fmt: skip
    for name in peers:
        target = 2.0 if "2 x 20" in name else None
        rows.append(row(f"times as fast as {name}", best[name] / best["ours"], "x", target,
                        name, best[name]))  # fmt: skip
    every = {
        "naive": lambda: effects.naive(data),
        "difference in means": lambda: effects.difference_in_means(data),
        "DQ": lambda: effects.dq(data),
        "DQ, value trace": lambda: effects.dq(data, value_trace=0.9),
        "DQ, score trace": lambda: effects.dq(data, score_trace=0.9),
        "DQ, Monte Carlo": lambda: effects.dq_monte_carlo(data, 50),
        "off-policy LSTD": lambda: effects.off_policy_lstd(data),
        "doubly robust": lambda: effects.off_policy_lstd(data, doubly_robust=True),
    }
    took = {n: seconds(f, 3) for n, f in every.items()}
    rows += [row(f"{n}, {steps} transitions, with interval", t, "s") for n, t in took.items()]
    total = sum(took.values()) + best["ours"]
    rows.append(row("all of them together", total, "s", 2.0, least=False))
    states = 200 if options.smoke else 1000
    tables = rng.dirichlet(np.ones(states), (2, states))
    known = markov.tabular(tables, rng.normal(size=(2, states)))
    took = seconds(lambda: effects.taylor(known, 7).by_order, 3)
    rows.append(row(f"exact DQ and order-7 Taylor series, {states} states, dense kernel", took, "s",
                    1.0, least=False))  # fmt: skip
    thin = market(states)
    took = seconds(lambda: effects.taylor(thin, 7).by_order, 3)
    rows.append(row(f"the same, rental marketplace of {states + 1} states", took, "s", 1.0,
                    least=False))  # fmt: skip
    return rows


PARTS = {
    "exact": exact,
    "identities": identities,
    "monte_carlo": monte_carlo,
    "structural": structural,
    "bound": bound,
    "nonstationary": nonstationary,
    "city": city,
    "speed": speed,
}


if __name__ == "__main__":
    run_parts(PARTS, __doc__)
