"""Gradients of queues against exact ones, and policies trained by them: parts of `queues.py`."""

import itertools
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from _common import one_core, row
from scipy import sparse
from scipy.sparse.linalg import splu

from decisionppl.inference import pathwise
from decisionppl.models import queueing
from decisionppl.models._queue_chain import probabilities, tick


def gradients(options):
    """Bias and spread of the derivative of an M/M/1 queue, and cosines in a network."""
    runs, steps = (50, 1000) if options.smoke else (4000, 5000)
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
    return rows + growth(options) + study(options)


def growth(options):
    """How variances of the slope of an M/M/1 queue grow as its load goes to one.

    The cost of a job is mu - lambda per unit of time, so that costs of all loads are alike.
    """
    runs, steps, burn_in = (40, 500, 200) if options.smoke else (400, 4000, 2000)
    loads = np.array([0.5, 0.6, 0.7, 0.8])

    def slope(chain, mode, load, key):
        def cost(mu):
            net = queueing.mm1(0.5).replace(
                arrival=load[None], service=jnp.reshape(mu, (1, 1)), holding=1 - load[None]
            )
            model = (queueing.chain_model if chain else queueing.event_model)(net)
            return -pathwise.value(
                model.step, model.init, steps, key=key, mode=mode, burn_in=burn_in,
                per=None if chain else "elapsed", policy=queueing.cmu(net))[0]  # fmt: skip

        return jax.grad(cost)(1.0)

    rows = []
    for name, chain, mode, known in (
        ("ipa", False, pathwise.ipa(), 3), ("ste, temperature 1", False, pathwise.ste(1.0), 3),
        ("score, no baseline", True, pathwise.score(None), 4),
    ):  # fmt: skip
        many = jax.jit(jax.vmap(partial(slope, chain, mode), in_axes=(None, 0)))
        keys = jax.random.split(jax.random.key(options.seed + 17), runs)
        found = np.stack([np.asarray(many(jnp.float32(x), keys), float) for x in loads])
        variance = found.var(1, ddof=1)
        # standard error of the logarithm of a variance, from fourth moments
        scaled = (found - found.mean(1, keepdims=True)) ** 2
        error = scaled.std(1, ddof=1) / runs**0.5 / variance
        x = -np.log(1 - loads)
        weight = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
        stderr = np.sqrt((weight**2 * error**2).sum())
        rows += [
            row(f"M/M/1 rho .5 to .8, {steps} steps, {name}: power of 1 / (1 - rho) in the variance"
                f" ({known} by theory), standard error {stderr:.2f}", weight @ np.log(variance),
                ""),
            row(f"M/M/1 rho .8, {steps} steps, {name}: sd of a run over the slope -rho / (1 - rho)",
                variance[-1] ** 0.5 * 0.2 / 0.8, ""),
        ]  # fmt: skip
    return rows


def exact_gradient(net, make, theta, most):
    """Slope of the long-run cost of a soft policy in its parameters, by solving its chain.

    States are lengths up to `most`; what would leave them stays. With the stationary law d and the
    differential cost V of the chain P, the slope is that of d P V in the parameters of P.

    Returns:
        (slope, cost, probability of the states at the edge).
    """
    n = net.num_classes
    states = np.stack(np.meshgrid(*[np.arange(most + 1)] * n, indexing="ij"), -1).reshape(-1, n)
    size, place = len(states), (most + 1) ** np.arange(n)[::-1]
    events = jnp.arange(2 * n + 1)
    after, cost, _ = jax.jit(
        jax.vmap(lambda x: jax.vmap(lambda e: tick(net, x, e))(events))
    )(jnp.asarray(states))  # fmt: skip
    after, cost = np.asarray(after, int), np.asarray(cost, float)[:, 0]
    inside = ((after >= 0) & (after <= most)).all(-1)
    column = np.where(inside, after @ place, np.arange(size)[:, None])

    def law(theta):
        def chance(x):
            share = make(net, theta)(x, None).probs[:, :n] * (x > 0)
            return probabilities(net, share)

        return jax.vmap(chance)(jnp.asarray(states, jnp.float32))

    chance = np.asarray(jax.jit(law)(theta), float)
    chance /= chance.sum(1, keepdims=True)
    line = np.repeat(np.arange(size), 2 * n + 1)
    matrix = sparse.csc_matrix((chance.ravel(), (line, column.ravel())), (size, size))
    # one state has value zero, and the law of the states is of the length one
    gap = (sparse.identity(size, format="csc") - matrix)[1:, 1:]
    factors = splu(gap.tocsc())
    start = np.asarray(matrix[[0], 1:].todense()).ravel()
    stationary = np.append(1.0, factors.solve(start, trans="T"))
    stationary /= stationary.sum()
    level = stationary @ cost
    value = np.append(0.0, factors.solve((cost - level)[1:]))
    ahead = value[column]
    found = []
    for i in range(len(theta)):
        tangent = jax.jvp(law, (theta,), (jnp.zeros_like(theta).at[i].set(1.0),))[1]
        found.append((stationary[:, None] * np.asarray(tangent, float) * ahead).sum())
    edge = stationary[(states == most).any(1)].sum()
    return np.asarray(found), level, edge


def _features(x):
    x = getattr(x, "length", x) * 1.0
    return jnp.concatenate([x, *[x[i] * x[i:] for i in range(len(x))], jnp.exp(-x / 3)])


def study(options):
    """Estimates of the slope of three soft policies of a criss-cross network, against exact ones.

    Estimates are of 1000 events (or ticks of the chain) after 500 from empty.
    """
    net = queueing.criss_cross("IM")
    most = 12 if options.smoke else 24
    steps, repeats, thetas = (100, 4, 1) if options.smoke else (1000, 10, 2)
    events, chain = queueing.event_model(net), queueing.chain_model(net)
    kinds = {
        "ipa, one run": (events, pathwise.ipa(), 1),
        "ste, temperature 1, one run": (events, pathwise.ste(1.0), 1),
        "ste, temperature 1, 50 runs": (events, pathwise.ste(1.0), 50),
        "score, no baseline, 50 runs": (events, pathwise.score(None), 50),
        "score, features, 50 runs": (events, pathwise.score(_features), 50),
        "advantage, trace .95, 50 runs": (events, pathwise.advantage(_features, 0.95), 50),
        "advantage, trace .95, over events, 50 runs": (
            chain, pathwise.advantage(_features, 0.95, expect="event"), 50),
    }  # fmt: skip
    rng = np.random.default_rng(options.seed)
    points = rng.lognormal(0, 1, (thetas, 3)).astype(np.float32)
    rows, cosines, spreads, offs, edges = [], {}, {}, {}, []
    names = ("soft_priority", "soft_max_weight", "soft_max_pressure")
    if options.smoke:
        names, kinds = names[1:2], dict(list(kinds.items())[-2:])
    for name, (kind, (model, mode, runs)) in itertools.product(names, kinds.items()):
        make = getattr(queueing, name)

        def slope(theta, key, make=make, model=model, mode=mode, runs=runs):
            return jax.grad(lambda t: -pathwise.value(
                model.step, model.init, steps, key=key, mode=mode, burn_in=steps // 2,
                per="elapsed" if model is events else None, policy=make(net, t), num_runs=runs,
            ).mean())(theta)  # fmt: skip

        many = jax.jit(lambda t, keys, slope=slope: jax.lax.map(partial(slope, t), keys))
        for i, theta in enumerate(points):
            known, _, edge = _known(net, name, tuple(theta.tolist()), most)
            edges.append(edge)
            keys = jax.random.split(jax.random.key(options.seed + 100 + i), repeats)
            found = np.asarray(many(jnp.asarray(theta), keys), float)
            size = np.linalg.norm(known)
            length = np.maximum(np.linalg.norm(found, axis=1), 1e-30)
            cosines.setdefault(kind, []).append((found @ known / length / size).mean())
            spreads.setdefault(kind, []).append(np.sqrt((found.std(0) ** 2).sum()) / size)
            error = np.sqrt((found.var(0, ddof=1) / repeats).sum()) / size
            offs.setdefault(kind, []).append(
                (np.linalg.norm(found.mean(0) - known) / size, error)
            )  # fmt: skip
    what = f"criss-cross IM, {len(names)} policies x {thetas} parameters"
    rows.append(row(f"{what}: exact slopes, probability of the edge at {most} jobs, at most",
                    max(edges), ""))  # fmt: skip
    for kind in kinds:
        off, error = np.asarray(offs[kind]).mean(0)
        rows += [
            row(f"{what}, {kind}: cosine to the exact slope", float(np.mean(cosines[kind])), ""),
            row(f"{what}, {kind}: sd over length", float(np.mean(spreads[kind])), ""),
            row(f"{what}, {kind}: distance of the mean of {repeats} over length, by chance "
                f"{error:.3f}", off, ""),
        ]  # fmt: skip
    return rows


_SOLVED = {}


def _known(net, name, theta, most):
    """`exact_gradient`, once for each parameter."""
    at = (name, theta, most)
    if at not in _SOLVED:
        make = getattr(queueing, name)
        _SOLVED[at] = exact_gradient(net, make, jnp.asarray(theta, jnp.float32), most)
    return _SOLVED[at]


# instance: (cost to reach, CPU seconds to reach it in)
_TRAINED = {"criss_cross_bh": (15.3, 60.0), "reentrant1_6": (14.5, None),
            "reentrant1_12": (30.0, None)}  # fmt: skip


def training(options):
    """Criss-cross and six classes; `training_large` has twelve."""
    return _training(options, ["criss_cross_bh"] if options.smoke else list(_TRAINED)[:2])


def training_large(options):
    """Twelve classes."""
    return [] if options.smoke else _training(options, list(_TRAINED)[2:])


def _training(options, names):
    """Policies trained by the recipe of `train_neural`, final averaged iterate, on one core.

    Seconds are of CPU time: on one core, what a core of one's own would take.
    """
    one_core()
    rows = []
    for name in names:
        target, limit = _TRAINED[name]
        net = queueing.instance(name)
        settings = {"num_updates": 4, "num_events": 20, "num_runs": 10} if options.smoke else {}
        begun, wall = time.process_time(), time.perf_counter()
        fit = queueing.train_neural(net, key=options.seed, progress=False, **settings)
        took, wall = time.process_time() - begun, time.perf_counter() - wall
        policy = queueing.hardened(queueing.neural(net, fit.params["policy"]))
        runs, events = (10, 5000) if options.smoke else (400, 200_000)
        found = queueing.simulate(net, policy, events, key=options.seed + 1, num_runs=runs)
        found = found.average()
        rows += [
            row(f"{name}: cost of the trained policy, final averaged iterate, 95 % +- "
                f"{1.96 * found.stderr:.3f}", found.estimate, "",
                None if options.smoke else target, least=False),
            row(f"{name}: 95 % half-width over the cost", found.diagnostics["half_width"], "",
                None if options.smoke else 0.01, least=False),
            row(f"{name}: training, {len(fit.losses)} updates of {settings.get('num_runs', 100)} x "
                f"{settings.get('num_events', 100)} ticks, compiling included", took, "CPU s",
                None if options.smoke else limit, least=False),
            row(f"{name}: training, wall-clock beside other programs", wall, "s"),
        ]  # fmt: skip
    return rows
