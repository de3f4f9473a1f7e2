"""Our engine and BoTorch on the same tasks: `python benchmarks/_side_by_side.py [--smoke]`.

Both sides run on one thread, in float64, in a process of their own; what either reached is scored
again by one formula, in NumPy. Hyperparameters, where they are not what is timed, are those that
BoTorch fitted. Seconds are the processor's unless a row says otherwise, and leave out
compilation, which has rows of its own.
"""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from _common import finish, parser, peer_python, row, spread
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from scipy import linalg, optimize, special, stats

import decisionppl as dp
from decisionppl import inference, kernels, rules
from decisionppl._maximise import maximise
from decisionppl.models import test_functions

PEER = "BoTorch 0.18.1"
HERE = Path(__file__).resolve().parent
SINGLE_THREAD = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
    "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}  # fmt: skip
NOISE = 0.02
FLOOR = 1e-4  # BoTorch's least noise variance
NARROWEST = 0.025  # and its smallest length scale
DIM = 6
FIXED_COST = 5.0


# Two processes.


def _run(command, part, task):
    """What a process makes of a task; both are JSON."""
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "task.json", Path(folder) / "result.json"
        given.write_text(json.dumps(task))
        pinned = []
        if shutil.which("taskset"):
            pinned = ["taskset", "-c", str(max(os.sched_getaffinity(0)))]
        subprocess.run([*pinned, *command, part, str(given), str(result)], check=True,
                       env={**os.environ, **SINGLE_THREAD})  # fmt: skip
        return json.loads(result.read_text())


def botorch(part, task, options):
    """BoTorch's answer to a task, see `_botorch_peer.py`."""
    python = peer_python(
        options.peers / "botorch", "torch==2.13.0", "botorch==0.18.1", "mpmath",
        f"jax=={jax.__version__}", f"numpyro=={numpyro.__version__}",
    )  # fmt: skip
    return _run([str(python), str(HERE / "_botorch_peer.py")], part, task)


def ours(part, task):
    """Our answer to a task, from one of `JOBS`."""
    return _run([sys.executable, str(Path(__file__).resolve()), "--job"], part, task)


def timed(call):
    """What a call returns, with its processor and wall seconds."""
    processor, wall = time.process_time(), time.perf_counter()
    result = jax.block_until_ready(call())
    return result, [time.process_time() - processor, time.perf_counter() - wall]


def unit_cube(width):
    return dist.Uniform(jnp.zeros(width), jnp.ones(width)).to_event(1)


def hartmann(x, s, seed):
    """Noisy Hartmann-6, to be maximised."""
    noise = NOISE * np.random.default_rng(seed).normal(size=len(x))
    return noise - np.asarray(test_functions.augmented_hartmann()(x[:, :DIM], s))


def sobol(count, width, seed):
    points = stats.qmc.Sobol(width, seed=seed).random(2 ** math.ceil(math.log2(count)))
    return points[:count]


def surface(count, seed, width=DIM):
    """Sobol points and standardised values."""
    x = sobol(count, width, seed)
    y = hartmann(x, 1.0, seed)
    return {"x": x.tolist(), "y": ((y - y.mean()) / y.std(ddof=1)).tolist()}


# Our jobs: a task in, a result out.


def single_task():
    """The posterior that BoTorch's default model has.

    BoTorch maximises its density in the parameters themselves, we in their logarithms. The prior
    LogNormal(m, s) has the same density in the one, up to a constant, as LogNormal(m - s^2, s) in
    the other. BoTorch's mean has a flat prior, ours an all but flat one.
    """
    mean = numpyro.sample("mean", dist.Normal(0, 10))
    law = dist.LogNormal(math.sqrt(2) + 0.5 * math.log(DIM) - 3, math.sqrt(3))
    lengthscale = numpyro.sample("lengthscale", law.expand([DIM]).to_event(1))
    noise = numpyro.sample("noise", dist.LogNormal(-5, 1))
    f = numpyro.sample("f", dp.GaussianProcess(kernels.RBF(lengthscale), mean))
    x = dp.action("x", unit_cube(DIM))
    dp.reward("y", dist.Normal(f(x), jnp.sqrt(noise)))


def observed(model, case):
    return dp.observe(model, sites={n: np.asarray(v) for n, v in case.items()})


def fit_job(task):
    engine = inference.gaussian_process(single_task, num_restarts=task["restarts"])

    def one(case):
        return engine.update(1, engine.init(0), observed(single_task, case))

    _, first = timed(lambda: one(task["cases"][0]))
    found = []
    for case in task["cases"]:
        belief, times = timed(lambda case=case: one(case))
        at = jax.tree.map(lambda v: v[0].tolist(), engine.surrogate.hyperparameters(belief))
        found.append({"times": times, **at})
    return {"first": first, "fits": found}


def known_surface(known):
    """The model with its hyperparameters given."""

    def model():
        law = dp.GaussianProcess(kernels.RBF(jnp.asarray(known["lengthscale"])), known["mean"])
        f = numpyro.sample("f", law)
        x = dp.action("x", unit_cube(DIM))
        dp.outcome("y", dist.Normal(f(x), math.sqrt(known["noise"])))
        dp.reward("value", f(x))

    return model


def log_ei_job(task):
    """The search alone, with the peer's settings, and a whole decision of an experiment."""
    model = known_surface(task["hyperparameters"])
    engine = inference.gaussian_process(model)
    surrogate = engine.surrogate

    @jax.jit
    def search(key, belief, best):
        view = surrogate.view(belief)

        def score(action):
            law = surrogate.utility(view, {"x": action["x"][None]}, (), {}, True)
            arm = dist.Normal(law.loc[0], law.scale[0])
            return rules.log_ei(key, arm, best=best).scores[0]

        return maximise(
            score, {"x": unit_cube(DIM)}, key, num_candidates=task["candidates"],
            num_restarts=task["restarts"],
        ).action["x"]  # fmt: skip

    found = []
    decide = asker(model, engine, rules.log_ei)
    for seed, case in enumerate(task["cases"]):
        belief = engine.update(0, engine.init(0), observed(model, case))
        key, best = jax.random.key(seed), max(case["y"])
        if not found:
            _, first = timed(lambda belief=belief, key=key, best=best: search(key, belief, best))
            _, first_ask = timed(lambda belief=belief: decide(belief))
        x, times = timed(lambda belief=belief, key=key, best=best: search(key, belief, best))
        _, ask_times = decide(belief)
        found.append({"x": x.tolist(), "times": times, "ask_times": ask_times})
    return {"first": first, "first_ask": first_ask, "steps": found}


def asker(model, engine, rule):
    """`belief -> (action, times)`: a decision of a new experiment, compiled once.

    The state is saved before and restored after: a decision left open would be imagined.
    """
    trial = dp.experiment.Experiment(model, engine, rule, key=0)

    def decide(belief):
        trial.belief = belief
        with tempfile.TemporaryDirectory() as folder:
            trial.save(Path(folder) / "state.nc")
            found, times = timed(trial.ask)
            trial.load(Path(folder) / "state.nc")
        return found.action, times

    return decide


def known_fidelities(known):
    """The multi-fidelity model with its hyperparameters given."""
    wide, narrow = jnp.asarray(known["unbiased"]), jnp.asarray(known["biased"])

    def model():
        k = kernels.LinearTruncated(kernels.Matern52(wide), kernels.Matern52(narrow), 1, power=1)
        f = numpyro.sample("f", dp.GaussianProcess(known["variance"] * k, known["mean"]))
        x = dp.action("x", unit_cube(DIM))
        s = dp.action("s", dist.Uniform(0.0, 1.0))
        dp.cost("price", FIXED_COST + s)
        dp.outcome("y", dist.Normal(f(x, s), math.sqrt(known["noise"])))
        dp.reward("value", f(x, 1.0))

    return model


def knowledge_gradient_job(task):
    found = []
    for case, known in zip(task["cases"], task["hyperparameters"], strict=True):
        model = known_fidelities(known)
        engine = inference.gaussian_process(model)
        z = np.asarray(case["x"])
        data = {"x": z[:, :DIM], "s": z[:, DIM], "y": case["y"]}
        belief = engine.update(0, engine.init(0), observed(model, data))
        decide = asker(model, engine, rules.per_cost(rules.knowledge_gradient))
        _, first = timed(lambda decide=decide, belief=belief: decide(belief))
        action, times = decide(belief)
        chosen = [*action["x"].tolist(), float(action["s"])]
        found.append({"x": chosen, "times": times, "first": first})
    return {"steps": found}


def sparse_axes(width):
    """BoTorch's SAAS model."""

    def model():
        mean = numpyro.sample("mean", dist.Normal(0, 1))
        variance = numpyro.sample("variance", dist.Gamma(2, 0.15))
        tau = numpyro.sample("tau", dist.HalfCauchy(0.1))
        rho = numpyro.sample("rho", dist.HalfCauchy(1).expand([width]).to_event(1))
        noise = FLOOR + numpyro.sample("noise", dist.Gamma(0.9, 10))
        kernel = variance * kernels.Matern52(1 / jnp.sqrt(tau * rho))
        f = numpyro.sample("f", dp.GaussianProcess(kernel, mean))
        x = dp.action("x", unit_cube(width))
        dp.reward("y", dist.Normal(f(x), jnp.sqrt(noise)))

    return model


def saas_job(task):
    x, y = np.asarray(task["x"]), np.asarray(task["y"])
    model, start = sparse_axes(x.shape[1]), task["rows"]

    def engine(num_samples, num_draws):
        return inference.gaussian_process(
            model, fit="nuts", num_warmup=task["warmup"], num_samples=num_samples,
            num_draws=num_draws,
        )  # fmt: skip

    def rows(begin, end):
        return observed(model, {"x": x[begin:end], "y": y[begin:end]})

    def chain(whole, seed):
        belief = whole.update(seed, whole.init(seed), rows(0, start))
        belief = whole.update(seed, belief, rows(start, start + 1))
        return _log_draws(whole.surrogate.hyperparameters(belief))

    kept = engine(task["samples"], task["samples"] // task["thinning"])
    belief, first = timed(lambda: kept.update(1, kept.init(0), rows(0, start)))
    _, second = timed(lambda: kept.update(2, belief, rows(start, start + 1)))
    _, again = timed(lambda: kept.update(2, kept.init(1), rows(0, start)))
    refits = []
    for n in range(start, start + task["refits"]):
        now = belief
        belief, times = timed(lambda now=now, n=n: kept.update(n, now, rows(n, n + 1)))
        refits.append(times)
    # as many draws as are timed, and enough of them for R-hat to tell chains that disagree
    # from short ones
    chains, long_chains = (
        [chain(whole, seed) for seed in range(task["chains"])]
        for whole in (engine(n, n) for n in (task["samples"], task["long"]))
    )
    return {
        "first": first, "second": second, "same_shape": again, "refits": refits, "chains": chains,
        "long_chains": long_chains,
    }  # fmt: skip


def _log_draws(draws):
    """Logarithms of a chain's hyperparameters, [draws, number]."""
    tau, rho = draws["tau"][:, None], draws["rho"]
    parts = (tau**-0.5 * rho**-0.5, draws["variance"][:, None], FLOOR + draws["noise"][:, None])
    return np.log(np.concatenate(parts, axis=1)).tolist()


JOBS = {
    "fit": fit_job,
    "log_ei": log_ei_job,
    "knowledge_gradient": knowledge_gradient_job,
    "saas": saas_job,
}


# Scores: one formula for both sides.


def _rbf(x, z, lengthscale):
    gaps = (x[:, None] - z[None]) / lengthscale
    return np.exp(-0.5 * np.sum(gaps**2, axis=-1))


def log_posterior(case, found):
    """Log density of BoTorch's default model, in the parameters themselves, inside its bounds."""
    lengthscale = np.maximum(found["lengthscale"], NARROWEST)
    noise = max(found["noise"], FLOOR)
    x, y = np.asarray(case["x"]), np.asarray(case["y"]) - found["mean"]
    root = linalg.cholesky(_rbf(x, x, lengthscale) + noise * np.eye(len(y)), lower=True)
    half = linalg.solve_triangular(root, y, lower=True)
    value = -0.5 * half @ half - np.log(np.diag(root)).sum() - 0.5 * len(y) * np.log(2 * np.pi)
    scale = math.exp(math.sqrt(2) + 0.5 * math.log(DIM))
    value += stats.lognorm.logpdf(lengthscale, math.sqrt(3), scale=scale).sum()
    return value + stats.lognorm.logpdf(noise, 1.0, scale=math.exp(-4.0))


def log_ei_at(case, known, x):
    """Log expected improvement over the best value seen."""
    seen, y = np.asarray(case["x"]), np.asarray(case["y"])
    lengthscale = np.asarray(known["lengthscale"])
    total = _rbf(seen, seen, lengthscale) + known["noise"] * np.eye(len(y))
    cross = _rbf(seen, np.asarray(x)[None], lengthscale)[:, 0]
    solved = linalg.solve(total, np.stack([cross, y - known["mean"]], axis=1), assume_a="pos")
    mean, sd = known["mean"] + cross @ solved[:, 1], math.sqrt(1 - cross @ solved[:, 0])
    z = (mean - y.max()) / sd
    return math.log(sd) + math.log(stats.norm.pdf(z) + z * special.ndtr(z))


def _truncated(known, x, z):
    """BoTorch's multi-fidelity kernel, its power one."""

    def matern(lengthscale):
        gaps = (x[:, None, :-1] - z[None, :, :-1]) / np.asarray(lengthscale)
        r = math.sqrt(5) * np.sqrt(np.sum(gaps**2, axis=-1))
        return (1 + r + r**2 / 3) * np.exp(-r)

    a, b = x[:, None, -1], z[None, :, -1]
    factor = (1 - a) * (1 - b) * (1 + a * b)
    return known["variance"] * (matern(known["unbiased"]) + factor * matern(known["biased"]))


def _targets(x, chosen, seed, count):
    """A dense set at the target fidelity: everywhere, and around what either side looks at."""
    rng = np.random.default_rng(seed)
    centres = np.concatenate([x, *np.asarray(chosen)[:, None]])
    near = [centres]
    for width in (0.03, 0.1, 0.3):
        steps = width * rng.normal(size=(count // 32, *centres.shape))
        near.append((centres + steps).reshape(-1, centres.shape[1]))
    cube = sobol(count, DIM, seed)
    points = np.concatenate([cube, np.concatenate(near)[:, :DIM].clip(0, 1)])
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)


def rises_per_cost(case, known, chosen, seed, count, draws=4096):
    """Monte Carlo knowledge gradient per unit cost of each chosen point.

    On the same draws and the same targets: a dense set, and of each point and each of some
    outcomes the best place to go to, found by gradients.
    """
    x, y = np.asarray(case["x"]), np.asarray(case["y"])
    total = linalg.cho_factor(_truncated(known, x, x) + known["noise"] * np.eye(len(y)))
    weights = linalg.cho_solve(total, y - known["mean"])

    def told_by(point):
        cross = linalg.cho_solve(total, _truncated(known, x, point))
        law = _truncated(known, point, point) - _truncated(known, point, x) @ cross
        sd = math.sqrt(law[0, 0] + known["noise"])

        def at(targets):
            """Means of targets, and by how much an outcome one sd higher raises them."""
            past = _truncated(known, targets, x)
            change = _truncated(known, targets, point) - past @ cross
            return known["mean"] + past @ weights, change[:, 0] / sd

        return at

    points = np.asarray(chosen)[:, None]
    laws = [told_by(point) for point in points]
    targets = _targets(x, chosen, seed, count)
    targets = np.concatenate([targets, *[_best_after(at, targets) for at in laws]])
    noise = np.random.default_rng(seed).normal(size=draws)
    rises = []
    for point, at in zip(points, laws, strict=True):
        mean, change = at(targets)
        kept = _envelope(mean, change, np.abs(noise).max())
        after = (mean[kept] + noise[:, None] * change[kept]).max(axis=1)
        rises.append((after.mean() - mean.max()) / (FIXED_COST + point[0, -1]))
    return rises


def _best_after(at, targets, outcomes=32):
    """The best target after each of some outcomes, from the best of a dense set."""
    mean, change = at(targets)
    found = []
    for z in stats.norm.ppf((np.arange(outcomes) + 0.5) / outcomes):

        def worse(w, z=z):
            value, slope = at(np.append(w, 1.0)[None])
            return -(value[0] + z * slope[0])

        start = targets[np.argmax(mean + z * change), :DIM]
        end = optimize.minimize(worse, start, method="L-BFGS-B", bounds=[(0, 1)] * DIM)
        found.append(np.append(end.x, 1.0))
    return np.asarray(found)


def _envelope(mean, change, reach):
    """Targets that can be best for some draw within reach: the others only cost time."""
    least = (mean - reach * np.abs(change)).max()
    return mean + reach * np.abs(change) >= least


# Rows.


def _processor(times):
    return [t[0] for t in times]


def _wall(times):
    return [t[1] for t in times]


def _faster(name, mine, theirs, target, options):
    """Rows of the speed-up, by the processor and by the clock; times are in pairs."""
    ratios = np.divide(_processor(theirs), _processor(mine))
    walls = np.divide(_wall(theirs), _wall(mine))
    return [
        row(f"{name}: times as fast, {spread(ratios.tolist())}", float(np.median(ratios)), "x",
            None if options.smoke else target),
        row(f"{name}: the same by the clock, {spread(walls.tolist())}",
            float(np.median(walls)), "x"),
        row(f"{name}: seconds", statistics.median(_processor(mine)), "s", None, f"{PEER}, s",
            statistics.median(_processor(theirs))),
    ]  # fmt: skip


def _cold(name, first, warm, peer_first, peer_warm):
    """The row of what a first call costs beyond a later one."""
    mine = first[0] - statistics.median(_processor(warm))
    theirs = peer_first[0] - statistics.median(_processor(peer_warm))
    return row(f"{name}: compilation, first call less a later one", mine, "s", None,
               f"{PEER}, s", theirs)  # fmt: skip


def _gain(name, mine, theirs, slack, options, unit="nats"):
    """The row of how much more was reached, by the median; not worse than the slack."""
    more = np.subtract(mine, theirs)
    share = float(np.mean(more >= -slack))
    return row(f"{name}: value reached less the peer's, {spread(more.tolist())}, "
               f"not worse in {share:.0%} of {len(more)}", float(np.median(more)), unit,
               None if options.smoke else -slack)  # fmt: skip


def fits(options):
    """Maximum a posteriori fits."""
    found = []
    sizes = {50: 3.0} if options.smoke else {50: 3.0, 200: 2.0, 500: None}
    for count, target in sizes.items():
        repeats = 2 if options.smoke else (5 if count == 500 else 15)
        cases = [surface(count, options.seed + i) for i in range(repeats)]
        theirs = botorch("fit", {"cases": cases}, options)
        peer_times = [f["times"] for f in theirs["fits"]]
        reached = [log_posterior(c, f) for c, f in zip(cases, theirs["fits"], strict=True)]
        for restarts, wanted in ((1, target), (4, None))[: 1 if options.smoke else 2]:
            mine = ours("fit", {"cases": cases, "restarts": restarts})
            times = [f["times"] for f in mine["fits"]]
            starts = "one start each" if restarts == 1 else "our default of 4 starts"
            name = f"MAP fit, n={count}, d={DIM}, {starts}"
            got = [log_posterior(c, f) for c, f in zip(cases, mine["fits"], strict=True)]
            found += [
                *_faster(name, times, peer_times, wanted, options),
                _gain(name, got, reached, 1e-3, options),
                _cold(name, mine["first"], times, theirs["first"], peer_times),
            ]
    return found


def log_ei(options):
    """Maximisation of log EI, and a whole decision by it."""
    found = []
    for count in (50,) if options.smoke else (50, 200):
        repeats = 2 if options.smoke else 15
        cases = [surface(count, options.seed + i) for i in range(repeats)]
        known = botorch("fit", {"cases": cases[:1]}, options)["fits"][0]
        task = {"cases": cases, "hyperparameters": known, "restarts": 10, "candidates": 512}
        theirs, mine = botorch("log_ei", task, options), ours("log_ei", task)
        name = f"maximise log EI, n={count}, 10 restarts, 512 candidates"
        sides = [[log_ei_at(c, known, s["x"]) for c, s in zip(cases, side["steps"], strict=True)]
                 for side in (mine, theirs)]  # fmt: skip
        peer_times = [s["times"] for s in theirs["steps"]]
        times, asked = ([s[n] for s in mine["steps"]] for n in ("times", "ask_times"))
        decision = f"whole decision by log EI, incumbent searched for, n={count}"
        found += [
            *_faster(name, times, peer_times, 4.0, options),
            _gain(name, *sides, 1e-3, options),
            _cold(name, mine["first"], times, theirs["first"], peer_times),
            *_faster(decision, asked, peer_times, None, options),
            _cold(decision, mine["first_ask"], asked, theirs["first"], peer_times),
        ]
    return found


def fidelity_surface(seed, count=16):
    z = sobol(count, DIM + 1, seed)
    y = hartmann(z, z[:, DIM], seed)
    return {"x": z.tolist(), "y": ((y - y.mean()) / y.std(ddof=1)).tolist()}


def knowledge_gradient(options):
    """One step of multi-fidelity knowledge gradient."""
    fantasies, restarts, candidates, seeds, dense = 128, 10, 512, 5, 4096
    if options.smoke:
        fantasies, restarts, candidates, seeds, dense = 4, 1, 16, 1, 1024
    cases = [fidelity_surface(options.seed + i) for i in range(seeds)]
    task = {"cases": cases, "restarts": restarts, "candidates": candidates,
            "fantasies": fantasies, "fixed_cost": FIXED_COST}  # fmt: skip
    theirs = botorch("knowledge_gradient", task, options)["steps"]
    mine = ours("knowledge_gradient", {"cases": cases, "hyperparameters": theirs})["steps"]
    rises = []
    for i, (case, a, b) in enumerate(zip(cases, mine, theirs, strict=True)):
        chosen = [a["x"], b["x"], b["divided_x"]]
        rises.append(rises_per_cost(case, b, chosen, options.seed + i, dense))
    got, *reached = np.transpose(rises)
    name = f"knowledge-gradient step, augmented Hartmann-6, n=16, {fantasies} fantasies"
    cold = [s["first"][0] - s["times"][0] for s in mine]
    found = [row(f"{name}: our compilation, first call less a later one",
                 statistics.median(cold), "s")]  # fmt: skip
    times = [s["times"] for s in mine]
    variants = (("as shipped", "times"), ("losses divided by cost too", "divided_times"))
    for (variant, field), peer in zip(variants, reached, strict=True):
        versus = f"{name}, peer {variant}"
        ratios = got / peer
        found += [
            *_faster(versus, times, [s[field] for s in theirs], 15.0, options),
            row(f"{versus}: knowledge gradient per cost over the peer's, 4096 draws, "
                f"{spread(ratios.tolist())}", float(np.median(ratios)), "x",
                None if options.smoke else 1.0),
            row(f"{versus}: mean knowledge gradient per cost over {seeds} problems, over the "
                "peer's", float(got.mean() / peer.mean()), "x"),
        ]  # fmt: skip
    return found


def saas(options):
    """Fully Bayesian sparse-axis models: one row more."""
    found = []
    sizes = {6: 20} if options.smoke else {6: 50, 30: 50}
    for width, count in sizes.items():
        refits, chains = (1, 1) if options.smoke else (5, 4)
        warmup, samples, longer = (16, 16, 32) if options.smoke else (256, 128, 1024)
        case = surface(count + refits, options.seed, width)
        task = {**case, "rows": count, "refits": refits, "chains": chains, "warmup": warmup,
                "samples": samples, "thinning": 16, "long": longer}  # fmt: skip
        theirs, mine = botorch("saas", task, options), ours("saas", task)
        name = f"SAAS by NUTS, {warmup}+{samples}, d={width}"
        refit = f"{name}, refit at n={count}+1"
        found += [
            *_faster(refit, mine["refits"], theirs["refits"], 2.0, options),
            row(f"{name}, first fit, compilation included", mine["first"][0], "s", None,
                f"{PEER}, s", theirs["first"][0]),
            row(f"{name}, second fit, one row more, compilation included", mine["second"][0],
                "s", None, f"{PEER}, s", theirs["refits"][0][0]),
            row(f"{name}, another fit at n={count}", mine["same_shape"][0], "s", None,
                f"{PEER}, s", theirs["same_shape"][0]),
            *_mixing(refit, mine, theirs, options),
        ]  # fmt: skip
    return found


def _mixing(name, mine, theirs, options):
    """Rows of convergence over chains; every chain [draws, hyperparameters]."""
    (rhat, ess), (peer_rhat, peer_ess) = _diagnosed(mine["chains"]), _diagnosed(theirs["chains"])
    long_rhat, long_ess = _diagnosed(mine["long_chains"])
    chains, draws, _ = np.shape(mine["long_chains"])
    target = None if options.smoke else 1.02
    return [
        row(f"{name}: largest split R-hat, {chains} chains", rhat, "", target, PEER, peer_rhat,
            least=False),
        row(f"{name}: smallest effective sample size, {chains} chains", ess, "draws", None, PEER,
            peer_ess),
        row(f"{name}: largest split R-hat, {draws} draws", long_rhat, "", target, least=False),
        row(f"{name}: smallest effective sample size, {draws} draws", long_ess, "draws"),
    ]  # fmt: skip


def _diagnosed(chains):
    """The largest split R-hat and the smallest effective sample size of all hyperparameters."""
    draws = np.asarray(chains)
    each = [draws[:, :, i] for i in range(draws.shape[2])]
    return (
        max(float(split_gelman_rubin(x)) for x in each),
        min(float(effective_sample_size(x)) for x in each),
    )


PARTS = {"fits": fits, "log_ei": log_ei, "knowledge_gradient": knowledge_gradient, "saas": saas}


def rows(options):
    """Rows of the chosen parts: all of them unless `options.only` names some."""
    chosen = [p for p in options.only.split(",") if p in PARTS] or list(PARTS)
    with jax.enable_x64(True):
        return [line for part in chosen for line in PARTS[part](options)]


def job(part, task, result):
    """Run one of `JOBS`, in the process made for it."""
    Path(result).write_text(json.dumps(JOBS[part](json.loads(Path(task).read_text()))))


if __name__ == "__main__":
    if sys.argv[1] == "--job":
        job(*sys.argv[2:])
    else:
        options = parser(__doc__).parse_args()
        finish(rows(options), options)
