"""Part 1 of `fidelity.py`: the best mixture of a simulated scaling law, and what it cost to find.

Every method is scored by the mixture that it recommends, at what it has spent so far. Its cost is
what it spent when the regret of that mixture first fell to a level: the median regret of the best
of 50 full runs at random, computed for each instance from many repetitions. Costs are in units of
a hundred steps of the largest model; a full run is 197.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from _common import row

import decisionppl as dp
from decisionppl import kernels, means, rules
from decisionppl._maximise import maximise
from decisionppl._play import as_key
from decisionppl.models import data_mixture

SOURCES = 5
STEPS = (10, 30, 60, 120, data_mixture.NUM_STEPS)
FULL = float(data_mixture.NUM_STEPS)
INITIAL = 20  # short runs of all sizes, as in the paper; shared by methods that use short runs
INITIAL_FULL = 6  # of their mixtures, run in full by methods that do not


class Path(NamedTuple):
    """What a method had spent, and the mixture that it would have settled for; in time order."""

    spent: list[float]
    mixtures: list[np.ndarray]


class Task(NamedTuple):
    """One instance of the simulator and the initial design that all methods share."""

    problem: data_mixture.MixtureScaling
    seed: int
    mixtures: np.ndarray  # [INITIAL, sources]
    sizes: np.ndarray  # [INITIAL], indices of sizes
    steps: np.ndarray  # [INITIAL], indices of STEPS

    def regrets(self, mixtures):
        return np.asarray(self.problem.truth(np.asarray(mixtures))) - self.problem.optimum.value

    def loss(self, run, mixture, size, steps):
        """Loss of a run, by its number: the same number is the same training run."""
        key = jax.random.fold_in(jax.random.key(self.seed), run)
        return float(self.problem.simulate(key, np.asarray(mixture, float), size, steps)["loss"])

    def price(self, size, steps, done=0):
        return float(self.problem.cost(size, steps, done))


def task(variant, seed):
    rng = np.random.default_rng([7, seed])
    return Task(
        data_mixture.mixture_scaling(variant, seed=seed, num_sources=SOURCES),
        seed,
        rng.dirichlet(np.ones(SOURCES), INITIAL),
        rng.integers(0, len(data_mixture.SIZES), INITIAL),
        np.zeros(INITIAL, int),
    )


def level(problem, seed, runs=50, repeats=2000):
    """Median regret of the best looking of so many full runs at random."""
    rng = np.random.default_rng([11, seed])
    pool = rng.dirichlet(np.ones(SOURCES), 20_000)
    truth = np.asarray(problem.truth(pool))
    noise = float(problem.noise_scale(data_mixture.SIZES[-1], FULL))
    drawn = rng.integers(0, len(pool), (repeats, runs))
    seen = truth[drawn] + noise * rng.standard_normal(drawn.shape)
    best = np.take_along_axis(drawn, seen.argmin(1)[:, None], 1)[:, 0]
    return float(np.median(truth[best]) - problem.optimum.value)


# --- methods without a model -----------------------------------------------------------------


def random_search(problem, budget):
    """Full runs of random mixtures; the best looking is recommended."""
    rng = np.random.default_rng([13, problem.seed])
    path, best, spent = Path([], []), (np.inf, None), 0.0
    for i in range(int(budget / FULL)):
        w = rng.dirichlet(np.ones(SOURCES))
        spent += FULL
        y = problem.loss(1000 + i, w, data_mixture.SIZES[-1], data_mixture.NUM_STEPS)
        best = min(best, (y, i), key=lambda pair: pair[0])
        path.spent.append(spent)
        path.mixtures.append(w if best[1] == i else path.mixtures[-1])
    return path


def hyperband(problem, budget, ladder, eta=3):
    """Hyperband over a ladder of rungs (size, steps), the last at the target.

    Mixtures are random. A rung of the same size as the one before continues its runs, and pays for
    the steps that are added. Recommended is the best looking mixture of the highest rung reached
    (arXiv 1603.06560, algorithm 1, with the rungs given by their price).
    """
    rng = np.random.default_rng([17, problem.seed])
    path, best, spent, run = Path([], []), (-1, np.inf, None), 0.0, 0
    top = len(ladder) - 1
    while spent < budget:
        for first in range(top + 1):  # brackets: from all rungs to the last alone
            left = top - first
            count = int(np.ceil((top + 1) / (left + 1) * eta**left))
            alive = [(run + i, rng.dirichlet(np.ones(SOURCES))) for i in range(count)]
            run += count
            for rung in range(first, top + 1):
                size, steps = ladder[rung]
                same = rung > first and ladder[rung - 1][0] == size
                done = ladder[rung - 1][1] if same else 0
                scored = []
                for number, w in alive:
                    spent += problem.price(size, steps, done)
                    # a run of another size is another training run
                    name = number if same or rung == first else number + 100_000 * rung
                    y = problem.loss(10_000 + name, w, size, steps)
                    scored.append((y, number, w))
                    if rung > best[0] or (rung == best[0] and y < best[1]):
                        best = (rung, y, w)
                    path.spent.append(spent)
                    path.mixtures.append(best[2])
                    if spent >= budget:
                        return path
                scored.sort(key=lambda s: s[0])
                alive = [(n, w) for _, n, w in scored[: max(1, len(scored) // eta)]]
    return path


LADDERS = {
    "steps": [(1000, 2), (1000, 7), (1000, 22), (1000, 66), (1000, 197)],
    "sizes": [(20, 197), (60, 197), (150, 197), (700, 197), (1000, 197)],
}


def promote(problem, budget, screened=64):
    """Screen mixtures at the smallest size, then run them in full from the best on."""
    rng = np.random.default_rng([19, problem.seed])
    pool = rng.dirichlet(np.ones(SOURCES), screened)
    cheap, dear = data_mixture.SIZES[0], data_mixture.SIZES[-1]
    seen = [problem.loss(30_000 + i, w, cheap, data_mixture.NUM_STEPS) for i, w in enumerate(pool)]
    spent = screened * problem.price(cheap, data_mixture.NUM_STEPS)
    order = np.argsort(seen)
    path, best = Path([spent], [pool[order[0]]]), (np.inf, None)
    for i in order[: int((budget - spent) / FULL)]:
        spent += FULL
        y = problem.loss(40_000 + i, pool[i], dear, data_mixture.NUM_STEPS)
        best = min(best, (y, i), key=lambda pair: pair[0])
        path.spent.append(spent)
        path.mixtures.append(pool[best[1]])
    return path


# --- methods with a model --------------------------------------------------------------------


class Loop:
    """An experiment of the library, compiled once and begun anew for each instance."""

    def __init__(self, model, rule, capacity, sizes, steps, fit="map"):
        self.model, self.sizes, self.steps = model, sizes, steps
        engine = dp.inference.gaussian_process(model, capacity=capacity, num_restarts=2, fit=fit)
        self.template = dp.experiment.Experiment(model, engine, rule, key=0)

    def search(self, problem, design, budget, decisions):
        """Buy the design, then what the rule asks for, until budget or decisions are spent.

        Outcomes are shifted and scaled by what the design shows, so that one model, compiled
        once, serves all instances.
        """
        trial = self.template.restart(problem.seed)
        losses, spent = [], 0.0
        for i, (w, size, steps) in enumerate(design):
            losses.append(problem.loss(i, w, self.sizes[size], self.steps[steps]))
            spent += problem.price(self.sizes[size], self.steps[steps])
        centre, spread = scale_of(design, np.array(losses), self.sizes)
        trial.learn(self._rows(design, (np.array(losses) - centre) / spread))
        path, number = Path([], []), len(design)
        while True:
            path.spent.append(spent)
            path.mixtures.append(np.asarray(trial.recommend().action["mixture"], float))
            if spent >= budget or number >= len(design) + decisions:
                return path
            ask = trial.ask()
            action = ask.action
            size, steps = self.sizes[action["size"]], self.steps[action.get("steps", 0)]
            y = problem.loss(number, action["mixture"], size, steps)
            trial.tell(ask.token, (y - centre) / spread)
            spent += problem.price(size, steps)
            number += 1

    def _rows(self, design, values):
        sites = {"mixture": np.array([w for w, *_ in design]),
                 "size": np.array([m for _, m, _ in design]), "loss": values}  # fmt: skip
        if len(self.steps) > 1:
            sites["steps"] = np.array([z for *_, z in design])
        return dp.observe(self.model, sites=sites)


def scale_of(design, losses, sizes):
    """Least loss, and the spread that the size does not explain, of a design."""
    columns = [np.ones(len(design))]
    if len(sizes) > 1:
        columns.append(np.log([sizes[m] for _, m, _ in design]))
    columns = np.stack(columns, axis=1)
    rest = losses - columns @ np.linalg.lstsq(columns, losses, rcond=None)[0]
    return losses.min(), rest.std()


def prices(problem):
    return [[problem.price(m, z) for z in STEPS] for m in data_mixture.SIZES]


def ours(problem, fit="map", rule=rules.knowledge_gradient):
    model = data_mixture.surface(SOURCES, data_mixture.SIZES, STEPS, price=prices(problem))
    return Loop(model, rules.per_cost(rule), 128, data_mixture.SIZES, STEPS, fit)


def full_fidelity(rule=rules.log_ei):
    sizes = data_mixture.SIZES[-1:]
    return Loop(data_mixture.surface(SOURCES, sizes), rule, 64, sizes, (data_mixture.NUM_STEPS,))


def short_design(problem):
    return list(zip(problem.mixtures, problem.sizes, problem.steps, strict=True))


def full_design(problem):
    return [(w, 0, 0) for w in problem.mixtures[:INITIAL_FULL]]


def published_model(noise):
    """`data_mixture.published`, with the loss of the run itself as what an action is worth."""
    m = jnp.asarray(data_mixture.SIZES) / (10 * data_mixture.SIZES[-1])
    z = jnp.asarray(STEPS) / STEPS[-1]

    def model():
        wide = dist.LogNormal(0.0, jnp.log(10.0))
        scales = [numpyro.sample(f"{n}_lengthscale", wide) for n in ("mixture", "size", "steps")]
        slope = numpyro.sample("slope", dist.Normal(0, 10).expand([SOURCES + 2]).to_event(1))
        offset = numpyro.sample("offset", dist.Normal(0, 10))
        kernel = kernels.On(kernels.RBF(scales[0]), 0)
        kernel = kernel * kernels.On(kernels.RBF(scales[1]), 1)
        kernel = kernel * kernels.On(kernels.RBF(scales[2]), 2)
        f = numpyro.sample("f", dp.GaussianProcess(kernel, means.Linear(slope, offset)))
        w = dp.action("mixture", dist.Dirichlet(jnp.ones(SOURCES)))
        i, j = dp.action("size", len(m)), dp.action("steps", len(z))
        dp.outcome("loss", dist.Normal(f(w, m[i], z[j]), noise))
        dp.reward("value", -f(w, m[i], z[j]))

    return model


class Published:
    """MFMS-GP of arXiv 2503.21023 with the defects of its code mended.

    Kept: kernels, linear mean, improvement of the loss at (w, m, z) per price to the power
    alpha, alpha = 0.99 to the number of decisions, the grid of sizes and steps. Mended: the
    variance of the noise stays what it is (about that of the short runs), gradients go through the
    simplex, the incumbent is the least posterior mean at the target, not the least observation at
    any fidelity. Given on top: standardised losses, hyperparameters refitted at each decision.
    """

    def __init__(self, noise, problem):
        self.model = published_model(noise)
        self.engine = dp.inference.gaussian_process(self.model, capacity=128, num_restarts=2)
        self.space = {"mixture": dist.Dirichlet(jnp.ones(SOURCES)),
                      "size": dist.DiscreteUniform(0, len(data_mixture.SIZES) - 1),
                      "steps": dist.DiscreteUniform(0, len(STEPS) - 1)}  # fmt: skip
        self.prices = jnp.asarray(prices(problem))
        self.decide = jax.jit(self._decide)

    def _decide(self, key, belief, alpha):
        surrogate = self.engine.surrogate
        view = surrogate.view(belief)
        last = {"size": len(data_mixture.SIZES) - 1, "steps": len(STEPS) - 1}
        rows, _ = surrogate.visited(belief)

        def law(action):
            found = surrogate.utility(
                view, {n: jnp.asarray(a)[None] for n, a in action.items()}, (), {}, False
            )
            return found.loc[0, 0], found.scale[0, 0]

        keys = jax.random.split(key, 3)
        best = maximise(
            lambda a: law({**a, **last})[0], {"mixture": self.space["mixture"]}, keys[0],
            starts={"mixture": rows["mixture"]},
        )  # fmt: skip

        def score(action):
            loc, scale = law(action)
            value = rules.log_ei(keys[1], dist.Normal(loc[None], scale[None]), best=best.value)
            price = self.prices[action["size"], action["steps"]]
            return value.scores[0] - alpha * jnp.log(price)

        return maximise(score, self.space, keys[2]).action, best.action["mixture"]

    def search(self, problem, design, budget, decisions):
        losses, spent = [], 0.0
        for i, (w, size, steps) in enumerate(design):
            losses.append(problem.loss(i, w, data_mixture.SIZES[size], STEPS[steps]))
            spent += problem.price(data_mixture.SIZES[size], STEPS[steps])
        centre, spread = scale_of(design, np.array(losses), data_mixture.SIZES)
        key = as_key(problem.seed)
        sites = {"mixture": np.array([w for w, *_ in design]),
                 "size": np.array([m for _, m, _ in design]),
                 "steps": np.array([z for *_, z in design]),
                 "loss": (np.array(losses) - centre) / spread}  # fmt: skip
        belief = self.engine.update(key, self.engine.init(key), dp.observe(self.model, sites=sites))
        path = Path([], [])
        for number in range(decisions + 1):
            now = jax.random.fold_in(key, number)
            action, best = self.decide(now, belief, 0.99**number)
            path.spent.append(spent)
            path.mixtures.append(np.asarray(best, float))
            if spent >= budget:
                break
            size, steps = data_mixture.SIZES[int(action["size"])], STEPS[int(action["steps"])]
            y = problem.loss(len(design) + number, action["mixture"], size, steps)
            spent += problem.price(size, steps)
            sites = {n: np.asarray(a)[None] for n, a in action.items()}
            sites["loss"] = np.array([(y - centre) / spread])
            belief = self.engine.update(now, belief, dp.observe(self.model, sites=sites))
        return path


# --- what is reported ------------------------------------------------------------------------


def cost_to(path, regrets, target):
    """What was spent when the recommendation first was as good as the target; and whether it was.

    A path that never gets there counts with all that it spent.
    """
    there = np.flatnonzero(regrets <= target)
    return (path.spent[there[0]], True) if len(there) else (path.spent[-1], False)


def at(path, regrets, cost):
    """Regret of the recommendation at a cost."""
    return regrets[max(0, np.searchsorted(path.spent, cost, side="right") - 1)]


def ratio_row(name, ours, theirs, target=None):
    """How many times cheaper, by the median over seeds, with a paired bootstrap interval.

    Where we never get there the ratio is zero; where the others do not, what they spent counts.
    """
    ratio = np.asarray(theirs) / np.asarray(ours)
    rng = np.random.default_rng(0)
    draws = np.median(ratio[rng.integers(0, len(ratio), (4000, len(ratio)))], axis=1)
    low, high = np.quantile(draws, [0.05, 0.95])
    label = f"{name} (90 % bootstrap {low:.3g} to {high:.3g}, {len(ratio)} seeds)"
    return row(label, float(np.median(ratio)), "times", target)


def compare(variant, options, targets, with_published=True):
    """All methods on one variant of the simulator."""
    seeds = range(2 if options.smoke else options.seeds)
    decisions = 4 if options.smoke else 64
    problems = [task(variant, seed) for seed in seeds]
    loops = {"ours": ours(problems[0]), "logEI at full fidelity": full_fidelity()}
    if with_published:
        loops["published, mended"] = Published(0.05, problems[0])
    runs = {
        "random": lambda p: random_search(p, 200 * FULL),
        "Hyperband over steps": lambda p: hyperband(p, 100 * FULL, LADDERS["steps"]),
        "Hyperband over sizes": lambda p: hyperband(p, 100 * FULL, LADDERS["sizes"]),
        "screen and promote": lambda p: promote(p, 66 * FULL),
    }
    paths = {name: [search(p) for p in problems] for name, search in runs.items()}
    for name, loop in loops.items():
        full = name == "logEI at full fidelity"
        paths[name] = [
            loop.search(p, full_design(p), 30 * FULL, 24 if not options.smoke else 2)
            if full else loop.search(p, short_design(p), 10 * FULL, decisions)
            for p in problems
        ]  # fmt: skip
        print(variant, name, "searched", flush=True)
    return report(variant, problems, paths, targets)


def report(variant, problems, paths, targets):
    """Rows: cost to the level by method, ratios to ours, regret at fixed costs."""
    levels = [level(p.problem, p.seed) for p in problems]
    regrets = {n: [p.regrets(np.array(q.mixtures)) for p, q in zip(problems, v, strict=True)]
               for n, v in paths.items()}  # fmt: skip
    costs, missed = {}, {}
    for name, of in paths.items():
        found = [cost_to(q, r, aim) for q, r, aim in zip(of, regrets[name], levels, strict=True)]
        costs[name] = [c for c, _ in found]
        missed[name] = [not there for _, there in found]
    reached = np.where(missed["ours"], np.inf, costs["ours"])
    rows = [row(f"T1 {variant}: level, the median regret of 50 random full runs", np.median(levels),
                "regret")]  # fmt: skip
    for name, cost in costs.items():
        label = f"T1 {variant}, {name}: cost to the level, median (never there {sum(missed[name])})"
        rows.append(row(label, float(np.median(cost)), "units"))
    for name in paths:
        if name != "ours":
            rows.append(ratio_row(f"T1 {variant}: times cheaper than {name}", reached, costs[name],
                                  targets.get(name)))  # fmt: skip
    for cost in (100.0, 200.0, 6 * FULL):
        for name in ("ours", "logEI at full fidelity"):
            final = [at(q, r, cost) for q, r in zip(paths[name], regrets[name], strict=True)]
            if min(q.spent[0] for q in paths[name]) <= cost:
                quartiles = np.quantile(final, [0.25, 0.75])
                label = (f"T1 {variant}, {name}: regret at cost {cost:g} or the end, median "
                         f"(quartiles {quartiles[0]:.4f}, {quartiles[1]:.4f})")  # fmt: skip
                rows.append(row(label, float(np.median(final)), "regret"))
    return rows


HEADLINE = {
    "random": 3.3, "Hyperband over steps": 2.6, "Hyperband over sizes": 2.6,
    "published, mended": 1.5,
}  # fmt: skip


def interior(options):
    return compare("interior", options, HEADLINE)


def vertex(options):
    return compare("vertex", options, HEADLINE, with_published=False)


def noisy(options):
    return compare("noisy", options, HEADLINE, with_published=False)


def flipped(options):
    # never more than 10 % worse than the search at full fidelity
    targets = {"logEI at full fidelity": 1 / 1.1}
    return compare("sign_flipped", options, targets, with_published=False)
