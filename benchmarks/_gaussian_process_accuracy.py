"""Kernels and acquisition values against BoTorch, high precision and Monte Carlo.

`python benchmarks/_gaussian_process_accuracy.py [--smoke]`. All in float64. A row of z scores
gives the largest distance between a rule's score and a Monte Carlo estimate of 4096 samples, in
standard errors of the estimate.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from _common import finish, parser, row
from _side_by_side import PEER, botorch
from scipy import stats

import decisionppl as dp
from decisionppl import inference, kernels, rules

KEY = jax.random.key(0)
SAMPLES = 4096
LARGEST_Z = 4.5  # of some hundred comparisons; a score off by 4.5 standard errors is wrong
NOISE = 0.1
WIDE, NARROW = [0.3, 0.5, 1.2], [0.7, 0.2, 0.9]


# Kernels.


def _stationary(kind, lengthscale, nu=None, dims=None):
    """BoTorch's description and ours of a stationary kernel of the columns `dims`."""
    ours = {None: kernels.RBF, 0.5: kernels.Matern12, 1.5: kernels.Matern32, 2.5: kernels.Matern52}
    return {"kind": kind, "lengthscale": lengthscale, "nu": nu, "dims": dims}, ours[nu](lengthscale)


def _truncated(fidelities, power, nu=2.5):
    """The linear truncated kernel on three columns and one or two fidelities after them."""
    spec = {"kind": "linear truncated", "fidelities": [3, 4][:fidelities], "width": 3 + fidelities,
            "nu": nu, "power": power, "unbiased": WIDE, "biased": NARROW}  # fmt: skip
    parts = [_stationary("matern", scales, nu)[1] for scales in (WIDE, NARROW)]
    return spec, kernels.LinearTruncated(*parts, *range(1, 1 + fidelities), power=power)


def _kernel_pairs():
    """Name, BoTorch's description, our kernel, and widths of the arguments of f."""
    pairs = [("RBF, ARD", *_stationary("rbf", WIDE), (3,))]
    for nu, name in ((0.5, "1/2"), (1.5, "3/2"), (2.5, "5/2")):
        pairs.append((f"Matern-{name}, ARD", *_stationary("matern", WIDE, nu), (3,)))
    for power in (1, 2.6):
        pairs.append((f"linear truncated, power {power}", *_truncated(1, power), (3, 1)))
        pairs.append(
            (f"linear truncated, 2 fidelities, power {power}", *_truncated(2, power), (3, 1, 1))
        )
    pairs.append(("linear truncated, Matern-1/2", *_truncated(1, 1, 0.5), (3, 1)))
    decay = {"kind": "exponential decay", "beta": 0.4, "alpha": 1.7, "offset": 0.3}
    sampling = {"kind": "downsampling", "power": 1.3, "offset": 0.6}
    ours_decay = kernels.ExponentialDecay(beta=0.4, alpha=1.7, offset=0.3)
    ours_sampling = kernels.Downsampling(power=1.3, offset=0.6)
    pairs.append(("exponential decay", decay, ours_decay, (1,)))
    pairs.append(("downsampling", sampling, ours_sampling, (1,)))
    spec, own = _stationary("rbf", WIDE, dims=[0, 1, 2])
    product = {
        "kind": "product",
        "parts": [spec, {**decay, "dims": [3]}, {**sampling, "dims": [4]}],
    }
    made = kernels.On(own, 0) * kernels.On(ours_decay, 1) * kernels.On(ours_sampling, 2)
    pairs.append(("RBF x exponential decay x downsampling", product, made, (3, 1, 1)))
    spec, own = _truncated(1, 1)
    scaled = {"kind": "scale", "kernel": spec, "variance": 2.7}
    pairs.append(("2.7 x linear truncated", scaled, 2.7 * own, (3, 1)))
    return pairs


def grams(options):
    """The largest difference of any entry, per kernel."""
    count = 20 if options.smoke else 200
    rng = np.random.default_rng(options.seed)
    pairs, cases = _kernel_pairs(), []
    for _, spec, _, widths in pairs:
        x, z = rng.random((2, count, sum(widths)))
        z[0] = x[0]  # one pair at distance zero
        cases.append({"kernel": spec, "x": x.tolist(), "z": z.tolist()})
    theirs = botorch("grams", {"cases": cases}, options)["grams"]
    found = []
    for (name, _, own, widths), case, gram in zip(pairs, cases, theirs, strict=True):
        x, z = (_arguments(case[n], widths) for n in ("x", "z"))
        error = np.abs(np.asarray(own(x, z)) - np.asarray(gram)).max()
        found.append(row(f"Gram matrix, {name}: largest difference from BoTorch", float(error), "",
                         1e-10, least=False))  # fmt: skip
    return found


def _arguments(points, widths):
    ends = np.cumsum(widths)[:-1]
    return tuple(jnp.asarray(a) for a in np.split(np.asarray(points), ends, axis=1))


# Expected improvement.


def improvement(options):
    """Against 50 digits, near and in the deep tail."""
    near = np.linspace(-5, 5, 41)
    deep = -np.logspace(math.log10(5), 6, 41)
    values = botorch("log_ei_values", {"z": [*near, *deep]}, options)
    exact, peer = np.asarray(values["exact"]), np.asarray(values["botorch"])
    z = jnp.concatenate([near, deep])
    arms = dist.Normal(z, jnp.ones(len(z)))
    ours = np.asarray(rules.log_ei(KEY, arms, best=0.0).scores)
    plain = np.asarray(rules.expected_improvement(KEY, arms, best=0.0).scores)
    # where log EI crosses zero, its absolute error is what matters: the relative one of EI
    errors, peer_errors = (np.abs(v - exact) / np.maximum(1, np.abs(exact)) for v in (ours, peer))
    size = len(near)
    improvements = np.abs(plain[:size] / np.exp(exact[:size]) - 1).max()
    return [
        row("EI, z in [-5, 5]: largest relative error", float(improvements), "", 1e-10,
            least=False),
        row("log EI, z in [-5, 5]: largest error", float(errors[:size].max()), "", 1e-10, PEER,
            float(peer_errors[:size].max()), least=False),
        row("log EI, z in [-1e6, -5]: largest relative error", float(errors[size:].max()), "",
            1e-10, PEER, float(peer_errors[size:].max()), least=False),
    ]  # fmt: skip


# One step ahead, on a posterior that NumPy computes again.


def _matern52(x, z, lengthscale):
    gaps = (x[:, None] - z[None]) / lengthscale
    r = math.sqrt(5) * np.sqrt(np.sum(gaps**2, axis=-1))
    return (1 + r + r**2 / 3) * np.exp(-r)


def _covariance(x, z):
    """Linear truncated kernel of power one; the last column is the fidelity."""
    a, b = x[:, None, -1], z[None, :, -1]
    factor = (1 - a) * (1 - b) * (1 + a * b)
    unbiased = _matern52(x[:, :-1], z[:, :-1], np.asarray(WIDE))
    return unbiased + factor * _matern52(x[:, :-1], z[:, :-1], np.asarray(NARROW))


def surface():
    """The same as a model."""
    own = (kernels.Matern52(WIDE), kernels.Matern52(NARROW))
    f = numpyro.sample("f", dp.GaussianProcess(kernels.LinearTruncated(*own, 1)))
    x = dp.action("x", dist.Uniform(jnp.zeros(3), jnp.ones(3)).to_event(1))
    s = dp.action("s", dist.Uniform(0.0, 1.0))
    dp.outcome("y", dist.Normal(f(x, s), NOISE))
    dp.reward("value", f(x, 1.0))


class _Posterior:
    """A belief of the engine, and the same data for NumPy."""

    def __init__(self, seed, count=12, actions=12, targets=40):
        rng = np.random.default_rng(seed)
        self.x = rng.random((count, 4))
        self.y = np.sin(5 * self.x[:, 0]) + self.x[:, 1] + NOISE * rng.normal(size=count)
        self.actions = rng.random((actions, 4))
        self.targets = rng.random((targets, 4))
        self.targets[:, -1] = 1.0
        self.engine = inference.gaussian_process(surface)
        rows = dp.observe(surface, sites={**self.sites(self.x), "y": self.y})
        self.belief = self.engine.update(0, self.engine.init(0), rows)

    @staticmethod
    def sites(points):
        return {"x": jnp.asarray(points[:, :3]), "s": jnp.asarray(points[:, 3])}

    def ahead(self):
        """What the engine says that outcomes of actions would tell about targets."""
        surrogate = self.engine.surrogate
        view = surrogate.view(self.belief)
        own = self.sites(self.actions)
        return surrogate.preposterior(view, own, self.sites(self.targets), (), {}, True)

    def moments(self, points, extra=None, values=None):
        """Mean and covariance at points, of data with `extra` points of given `values` added."""
        x = self.x if extra is None else np.concatenate([self.x, extra])
        y = self.y if values is None else np.concatenate([self.y, values])
        cross = _covariance(points, x)
        solved = np.linalg.solve(_covariance(x, x) + NOISE**2 * np.eye(len(x)), cross.T)
        return solved.T @ y, _covariance(points, points) - cross @ solved

    def at_target(self, action):
        return np.append(action[:3], 1.0)[None]


def _largest_z(pairs):
    """Of pairs (score, samples of what it is the expectation of)."""
    scores = [abs(np.mean(s) - v) / (np.std(s) / math.sqrt(len(s))) for v, s in pairs]
    return float(max(scores)), len(scores)


def _z_row(name, pairs):
    largest, count = _largest_z(pairs)
    return row(
        f"{name}: largest of {count} z scores, {SAMPLES} samples each", largest, "", LARGEST_Z,
        least=False,
    )  # fmt: skip


def _updated_best(post, action, rng):
    """Best means after outcomes that are drawn and conditioned on, less the best mean before."""
    goals = np.concatenate([post.targets, post.at_target(action)])
    before, _ = post.moments(goals)
    mean, variance = post.moments(action[None])
    outcomes = mean + math.sqrt(variance[0, 0] + NOISE**2) * rng.normal(size=SAMPLES)
    # conditioning is affine in the outcome: two outcomes give every other
    low, high = (post.moments(goals, action[None], np.array([v]))[0] for v in (0.0, 1.0))
    after = low + outcomes[:, None] * (high - low)
    # what the action itself is worth is known to be a target from the start
    return after.max(axis=1) - before.max()


def _envelope_rise(mean, change):
    """E max(mean + change Z) - max(mean) by a sweep over the upper envelope, slope by slope."""
    order = np.lexsort((mean, change))
    hull, begins = [], []
    for i in order:
        while hull:
            last = hull[-1]
            if change[i] == change[last]:
                meet = -np.inf
            else:
                meet = (mean[last] - mean[i]) / (change[i] - change[last])
            if meet > begins[-1]:
                break
            hull.pop()
            begins.pop()
        begins.append(meet if hull else -np.inf)
        hull.append(i)
    steps = np.diff(change[hull])
    at = -np.abs(np.asarray(begins[1:]))
    return float(np.sum(steps * (stats.norm.pdf(at) + at * stats.norm.cdf(at))))


def lookahead(options):
    """Expected improvement, knowledge gradient and entropy search of the engine's posterior."""
    rng = np.random.default_rng(options.seed + 1)
    posts = [_Posterior(options.seed + i) for i in range(1 if options.smoke else 4)]
    return [*_improvements(posts, rng), *_gradients(posts, rng), *_traces(rng, options),
            *_entropies(posts, rng, options)]  # fmt: skip


def _improvements(posts, rng):
    pairs = []
    for post in posts:
        # so low that samples improve on it: the tails are compared with 50 digits above
        goals = np.concatenate([post.at_target(action) for action in post.actions])
        best = post.moments(goals)[0].min()
        law = post.engine.predict(post.belief, post.sites(post.actions))
        scores = rules.expected_improvement(KEY, law, best=best).scores
        for action, score in zip(post.actions, scores, strict=True):
            mean, variance = post.moments(post.at_target(action))
            draws = mean + math.sqrt(variance[0, 0]) * rng.normal(size=SAMPLES)
            pairs.append((float(score), np.maximum(draws - best, 0.0)))
    return [_z_row("expected improvement and Monte Carlo", pairs)]


def _gradients(posts, rng):
    pairs, errors = [], []
    for post in posts:
        known = post.ahead()
        scores = np.asarray(rules.knowledge_gradient(KEY, known).scores)
        for i, action in enumerate(post.actions):
            pairs.append((scores[i], _updated_best(post, action, rng)))
            mean = np.append(known.mean[0], known.own_mean[0, i])
            change = np.append(known.change[0, i, 0], known.own_change[0, i, 0])
            errors.append(abs(_envelope_rise(mean, change) / scores[i] - 1))
    return [
        _z_row("knowledge gradient and outcomes drawn and conditioned on", pairs),
        row(f"knowledge gradient and the closed form by a sweep: largest relative error of "
            f"{len(errors)}", float(max(errors)), "", 1e-8, least=False),
    ]  # fmt: skip


def _traces(rng, options):
    """Knowledge gradient of outcomes with three numbers, which 512 quasi-random points average."""
    scores, simulated = [], []
    for _ in range(4 if options.smoke else 40):
        mean, change = rng.normal(size=20), rng.normal(size=(3, 20))
        known = rules.Preposterior(
            jnp.asarray(mean)[None], jnp.eye(20)[None], jnp.asarray(change)[None, None],
            jnp.full((1, 1), -9.0), jnp.ones((1, 1)), jnp.zeros((1, 1, 3)),
        )  # fmt: skip
        scores.append(float(rules.knowledge_gradient(KEY, known).scores[0]))
        draws = rng.normal(size=(100_000, 3)) @ change + mean
        simulated.append(draws.max(axis=1).mean() - mean.max())
    errors = np.abs(np.divide(scores, simulated) - 1)
    name = f"knowledge gradient of three outcomes and 100,000 samples, {len(errors)} laws"
    return [
        row(f"{name}: median relative error", float(np.median(errors)), ""),
        row(f"{name}: largest relative error", float(errors.max()), ""),
    ]


def _information_samples(gamma, rho, rng):
    """Samples with the mean I(Y; X <= gamma), X and Y standard normal with correlation rho.

    The information is the Kullback-Leibler divergence of Y given the event from Y, plus what the
    second moment of Y loses: entropy before less entropy after.
    """
    x = stats.truncnorm.rvs(-np.inf, gamma, size=SAMPLES, random_state=rng)
    y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=SAMPLES)
    log_law = stats.norm.logpdf(y) - stats.norm.logcdf(gamma)
    log_law += stats.norm.logcdf((gamma - rho * y) / math.sqrt(1 - rho**2))
    return 0.5 * math.log(2 * math.pi * math.e) + log_law


def _entropies(posts, rng, options):
    """Entropy search with the largest utility given, then drawn."""
    pairs = []
    for post in posts:
        known = post.ahead()
        bound = float(known.mean.max())
        # targets without variance have a largest utility that is known
        certain = known._replace(covariance=jnp.zeros_like(known.covariance))
        scores = np.asarray(rules.max_value_entropy(KEY, certain).scores)
        for i in range(len(post.actions)):
            sd = float(known.own_sd[0, i])
            rho = abs(float(known.own_change[0, i, 0])) / sd
            gamma = (bound - float(known.own_mean[0, i])) / sd
            pairs.append((scores[i], _information_samples(gamma, rho, rng)))
    return [
        _z_row("max-value entropy search, largest utility given, and Monte Carlo", pairs),
        _drawn_maxima(posts[0], rng, 16 if options.smoke else 256),
    ]


def _drawn_maxima(post, rng, keys):
    """Scores averaged over keys, 16 draws each, against 4096 drawn largest utilities.

    Both are random: the difference is in standard errors of both.
    """
    known = post.ahead()
    score = jax.jit(jax.vmap(lambda key: rules.max_value_entropy(key, known).scores))
    scores = np.asarray(score(jax.random.split(KEY, keys)))
    root = np.linalg.cholesky(known.covariance[0] + 1e-10 * np.eye(known.mean.shape[1]))
    drawn = np.asarray(known.mean[0]) + rng.normal(size=(SAMPLES, len(root))) @ root.T
    best = np.maximum(drawn.max(axis=1), float(known.mean.max()))
    zs = []
    for i in range(len(post.actions)):
        sd = float(known.own_sd[0, i])
        rho = abs(float(known.own_change[0, i, 0])) / sd
        gammas = (best - float(known.own_mean[0, i])) / sd
        samples = np.concatenate([_information(g, rho) for g in np.split(gammas, 64)])
        error = math.hypot(samples.std() / math.sqrt(SAMPLES), scores[:, i].std() / math.sqrt(keys))
        zs.append(abs(scores[:, i].mean() - samples.mean()) / error)
    return row(f"max-value entropy search, {keys} keys, and {SAMPLES} drawn maxima: largest of "
               f"{len(zs)} z scores", float(max(zs)), "", LARGEST_Z, least=False)  # fmt: skip


def _information(gamma, rho):
    """I(Y; X <= gamma) by a fine sum over y, [gammas]."""
    y = np.linspace(-9, 9, 2001)  # far finer than any step of the law
    sharp = math.sqrt(1 - rho**2)
    log_law = stats.norm.logpdf(y) + stats.norm.logcdf((gamma[:, None] - rho * y) / sharp)
    log_law -= stats.norm.logcdf(gamma)[:, None]
    law = np.exp(log_law)
    return 0.5 * math.log(2 * math.pi * math.e) + (y[1] - y[0]) * np.sum(law * log_law, axis=1)


PARTS = {"grams": grams, "improvement": improvement, "lookahead": lookahead}


def rows(options):
    """Rows of the chosen parts: all of them unless `options.only` names some."""
    chosen = [p for p in options.only.split(",") if p in PARTS] or list(PARTS)
    with jax.enable_x64(True):
        return [line for part in chosen for line in PARTS[part](options)]


if __name__ == "__main__":
    options = parser(__doc__).parse_args()
    finish(rows(options), options)
