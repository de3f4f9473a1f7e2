"""Synthetic control in experiments and on panels: regret, accuracy, coverage, a user's CSV.

Part of `networks.py`; also runs alone. The target of regret, 4 at an effect of 0.3, is missed for
a reason that rows of more experiments show: Thompson sampling does not reach it with the factors
known either, but in a lucky set of 60 experiments. So is that of the RMSE, 0.11, by less: it is met
where the factors are known, and what they cost is the difference of the two rows.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import csv
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _common import finish, parser, row

import decisionppl as dp
from decisionppl import inference
from decisionppl.inference import panels
from decisionppl.models import synthetic_control

PART = "synthetic control"
DRAWS = 60  # experiments of the protocol


def _without_controls(problem, environment):
    """The same problem for one who does not look at the controls."""

    def step(key, state, t, context, action):
        outcomes = environment.step(key, state, t, context, action)
        return {"outcome": outcomes["outcome"]}

    def value(state, t, context, actions):
        return state["effect"] * actions["treat"]

    return environment._replace(step=step, value=value)


def _oracle(problem, environment):
    """The same problem for one who knows the factors."""
    blind = _without_controls(problem, environment)

    def context(key, state, t):
        return (t, state["factors"][:, t])

    def step(key, state, t, context, action):
        return blind.step(key, state, t, dp.experiment.Context((t,), {}), action)

    return blind._replace(context=context, step=step)


class Experiments:
    """The protocol, with what is compiled for it."""

    def __init__(self, replications, seed, **changes):
        self.problem = synthetic_control.synthetic_control(**changes)
        blind = dict.fromkeys(("num_controls", "rank"), 0)
        sizes = {n: v for n, v in changes.items() if n in ("pre_periods", "periods")}
        self.blind = synthetic_control.synthetic_control(**sizes, **blind)
        self.replications, self.seed = replications, seed
        rank = self.problem.environment().init(jax.random.key(0))["factors"].shape[0]
        self.engines = {
            "synthetically controlled Thompson sampling": (
                self.problem.model, inference.synthetic_control(self.problem.model, 0), (0,)),
            "Thompson sampling without controls": (
                self.blind.model, inference.conjugate(self.blind.model, 0), (0,)),
            "Thompson sampling, factors known": (
                self.problem.given_factors,
                inference.conjugate(self.problem.given_factors, 0, jnp.zeros(rank)),
                (0, jnp.zeros(rank))),
        }  # fmt: skip

    def bandit(self, name, effect):
        """Regret, estimates, interval bounds; each [replications]. And seconds, compiling apart."""
        model, engine, args = self.engines[name]
        environment = self.problem.environment(effect)
        if "without" in name:
            environment = _without_controls(self.problem, environment)
        elif "known" in name:
            environment = _oracle(self.problem, environment)
        run = dp.experiment.run(
            model, engine, dp.rules.thompson, environment, horizon=self.problem.num_periods,
            key=self.seed, replications=self.replications, propensities=False,
        )  # fmt: skip
        regret = np.asarray(run.data.regret)[:, self.problem.pre_periods :].sum(1)
        found = jax.vmap(lambda b: panels.treatment_effect(engine, b, args))(run.belief)
        return regret, found, (run.attrs["run_seconds"], run.attrs["compile_seconds"])

    def design(self, name, effect):
        """Panels of a design that does not look at outcomes, as rows and as panels."""
        problem = self.problem
        before, after = problem.pre_periods, problem.num_periods - problem.pre_periods
        for i in range(self.replications):
            key = jax.random.key(1_000_000 * (self.seed + 1) + i)
            path = np.arange(before + after) >= before
            if name == "switchback":
                path = synthetic_control.switchback(key, before, after)
            rows = problem.simulate(key, path, effect)
            series = [np.asarray(rows.sites[n], float) for n in ("outcome", "controls")]
            yield path, rows, panels.panel(np.vstack([series[0][None], series[1].T]), path)


def _summary(regret, estimate, low, high, effect):
    error = np.asarray(estimate, float) - effect
    cover = np.mean((np.asarray(low) <= effect) & (effect <= np.asarray(high)))
    return {
        "regret": float(np.mean(regret)),
        "error": float(np.std(regret) / np.sqrt(len(error))),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "bias": float(error.mean()),
        "bias error": float(error.std() / np.sqrt(len(error))),
        "cover": float(cover),
    }


def _report(title, found, targets=()):
    targets = dict(targets)
    regret = f"{title}: regret (standard error {found['error']:.2f})"
    bias = f"{title}: bias (standard error {found['bias error']:.3f})"
    return [
        row(regret, found["regret"], "outcome", targets.get("regret"), least=False),
        row(f"{title}: RMSE of the effect", found["rmse"], "outcome", targets.get("rmse"),
            least=False),
        row(bias, found["bias"], "outcome"),
        row(f"{title}: 95 % intervals cover", found["cover"], "", targets.get("cover")),
    ]  # fmt: skip


def _protocol(seed, smoke):
    """The protocol: effects of both signs, by bandits and by fixed designs."""
    count = 12 if smoke else DRAWS
    sizes = {"pre_periods": 20, "periods": 40} if smoke else {}
    made = Experiments(count, seed, **sizes)
    posterior = jax.jit(lambda rows: _learn(made, rows))
    rows, ours = [], "synthetically controlled Thompson sampling"
    for effect in (0.3,) if smoke else (0.3, -0.3):
        regrets = {}
        for name in list(made.engines)[: 2 if smoke else 3]:
            regret, found, took = made.bandit(name, effect)
            summary = _summary(regret, found.estimate, *found.interval, effect)
            regrets[name] = summary["regret"]
            targets = {}
            if name == ours and not smoke:
                targets = {"cover": 0.93}
                targets |= {"regret": 4, "rmse": 0.11} if effect > 0 else {}
            rows += _report(f"effect {effect}, {count} experiments, {name}", summary, targets)
            if name == ours and effect > 0:
                rows += [row(f"{name}: {count} experiments, {made.problem.num_periods} periods",
                             took[0], "s"), row(f"{name}: compiling", took[1], "s")]  # fmt: skip
        for name in ("switchback", "treated throughout"):
            regret, by = [], {"posterior": [], "latent regression": []}
            for path, logged, data in made.design(name, effect):
                regret.append(made.problem.regret(path, effect))
                by["posterior"].append([float(x) for x in posterior(logged)])
                found = panels.latent_regression(data, 3)
                by["latent regression"].append([found.estimate, *found.interval])
            for how, values in by.items():
                summary = _summary(np.array(regret), *np.array(values).T, effect)
                title = f"effect {effect}, {count} experiments, {name}, {how}"
                rows += _report(title, summary)
            regrets[name] = summary["regret"]
        ratio = regrets["switchback"] / regrets[ours]
        rows.append(row(f"effect {effect}: regret of a switchback over ours", ratio, "x"))
    return rows


def _learn(made, rows):
    engine = made.engines["synthetically controlled Thompson sampling"][1]
    key = jax.random.key(0)
    belief = engine.update(key, engine.init(key), rows)
    found = panels.treatment_effect(engine, belief, (0,))
    return found.estimate, *found.interval


def _more(seed):
    """What 60 experiments leave open: 480, and units that move less with the others."""
    rows, ours = [], "synthetically controlled Thompson sampling"
    for text, scale in (("", 1.0), (", loadings of variance 1 / rank", 3**-0.5)):
        made = Experiments(8 * DRAWS, seed + 1, loading_scale=scale)
        for name in (ours, "Thompson sampling, factors known"):
            regret, found, _ = made.bandit(name, 0.3)
            summary = _summary(regret, found.estimate, *found.interval, 0.3)
            rows += _report(f"effect 0.3, {8 * DRAWS} experiments{text}, {name}", summary)
            share = float(np.mean(regret.reshape(-1, DRAWS).mean(1) <= 4))
            title = f"the same: share of 8 sets of {DRAWS} whose mean regret is at most 4"
            rows.append(row(title, share, ""))
    return rows


def _classic(seed, smoke):
    """Classic estimators where a unit is an average of others, treated from a time on."""
    count, effect = (20 if smoke else 200), 0.5
    estimators = {
        "robust synthetic control": panels.robust_synthetic_control,
        "ridge": panels.ridge,
        "synthetic difference-in-differences": panels.synthetic_did,
        "latent regression": panels.latent_regression,
        "nuclear norm": panels.nuclear_norm,
    }
    found = {n: [] for n in estimators}
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        walk = (0.3 * rng.normal(size=(3, 80))).cumsum(1)
        y = rng.dirichlet(np.ones(3), 21) @ walk + 0.5 * rng.normal(size=(21, 80))
        path = np.arange(80) >= 60
        y[0] += effect * path
        data = panels.panel(y, path)
        for name, estimate in estimators.items():
            answer = estimate(data)
            found[name].append([answer.estimate, *answer.interval])
    rows = []
    for name, values in found.items():
        summary = _summary(np.zeros(count), *np.array(values).T, effect)
        rows += _report(f"treated from period 60 of 80, {count} panels, {name}", summary)[1:]
    return rows


def write_panel(path, seed):
    """A user's long CSV: sales of shops by week, one of which had a promotion at the end."""
    rng = np.random.default_rng([seed, 99])
    walk = rng.normal(size=(2, 104)).cumsum(1)
    level = rng.uniform(400, 2000, (25, 1))
    sales = level + 20 * rng.dirichlet(np.ones(2), 25) @ walk + 10 * rng.normal(size=(25, 104))
    sales[7, 80:] += 25
    with Path(path).open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["shop", "week", "sales", "promotion"])
        cells = [(i, t) for i in range(25) for t in range(104)]
        for i, t in rng.permutation(cells):
            out.writerow([f"shop {i:02d}", t, f"{sales[i, t]:.2f}", int(i == 7 and t >= 80)])
    return 25.0


def _from_file(seed, smoke):
    """A panel read from a user's CSV: estimates, then an experiment replayed on another unit."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sales.csv"
        effect = write_panel(file, seed)
        start = time.perf_counter()
        data = panels.from_long(
            file, unit="shop", period="week", outcome="sales", treated="promotion"
        )
        rows.append(row("CSV of 25 units x 104 periods, read and checked",
                        time.perf_counter() - start, "s"))  # fmt: skip
    for name in ("robust_synthetic_control", "ridge", "synthetic_did", "latent_regression"):
        found = getattr(panels, name)(data)
        low, high = found.interval
        text = f"CSV, effect {effect}: {name} [{low:.1f}, {high:.1f}] covers"
        rows.append(row(f"{text}, estimate {found.estimate:.1f}", float(low <= effect <= high), ""))
    ours = synthetic_control.from_panel(data, "shop 03", 2, pre_periods=40, prior=(0.0, 2.0))
    problem, count = ours.problem, 8 if smoke else DRAWS
    engine = inference.synthetic_control(problem.model, 0)
    run = dp.experiment.run(
        problem.model, engine, dp.rules.thompson, ours.replay(effect), horizon=104, key=seed,
        replications=count, propensities=False,
    )  # fmt: skip
    found = jax.vmap(lambda b: panels.treatment_effect(engine, b, (0,)))(run.belief)
    regret = ours.scale * np.asarray(run.data.regret)[:, 40:].sum(1)
    estimate, low, high = (ours.scale * np.asarray(x) for x in (found.estimate, *found.interval))
    title = f"CSV, {count} replayed experiments on an untreated unit, effect {effect}"
    rows += _report(title, _summary(regret, estimate, low, high, effect))
    rows.append(row("the same: regret of a switchback", effect * 32, "outcome"))
    return rows


def rows(seed: int, smoke: bool) -> list[dict]:
    """Rows of this part."""
    found = _protocol(seed, smoke) + _classic(seed, smoke) + _from_file(seed, smoke)
    found += [] if smoke else _more(seed)
    return [{**r, "part": PART} for r in found]


def main():
    options = parser(__doc__).parse_args()
    finish(rows(options.seed, options.smoke), options, earlier=True)


if __name__ == "__main__":
    main()
