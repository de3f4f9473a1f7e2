"""Does deciding reach everything that follows from the decision, and nothing else?"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from scipy import stats

from decisionppl._act import act
from decisionppl._play import Trace, as_key, play
from decisionppl._roles import role_of
from decisionppl._structure import dependent_outputs
from decisionppl._utility import split_utility
from decisionppl.testing._check import Statistic, check_count, check_probability, verdict

_MOST_ACTIONS = 8
_RUNS = 64


class Intervention(NamedTuple):
    """What `check_intervention` found.

    Attributes:
        passed: whether interventions do what they must, and only that.
        message: the verdict.
        statistics: largest deviations, beside what rounding allows, and abs(z) of confounding.
        descendants: sites that can depend on the action, proven from the program.
        actions: the actions tried, dict from site to [actions, ...].
        observed: mean utility among runs that happened to take each action, [actions]; None
            for actions that repeat or are continuous, and for models without a reward.
        intervened: mean utility under do(action), [actions], or None.
        confounding: abs(z) of the difference between the two, [actions], or None; NaN for actions
            that the logging policy never took.
    """

    passed: bool
    message: str
    statistics: tuple[Statistic, ...]
    descendants: tuple[str, ...]
    actions: dict[str, np.ndarray]
    observed: np.ndarray | None
    intervened: np.ndarray | None
    confounding: np.ndarray | None


def check_intervention(
    model: Callable,
    *args: Any,
    key: Any = 0,
    actions: Any = None,
    confounded: bool | None = None,
    intervene: Callable = act,
    num_samples: int = 4096,
    level: float = 0.01,
) -> Intervention:
    """Check that interventions act on a model, everywhere they should and nowhere else.

    Under each of some actions: the action sites hold the action, in every step of a `scan` and
    every unit of a plate; with the same key, sites that do not descend from the action keep
    their values exactly; and something that does descend changes. For a finite action it also
    compares seeing with doing: the mean utility among runs that took an action by the
    logging policy against the mean under do(action). They differ if the logging policy depends on
    something that moves the reward too.

    Args:
        model: a one-round model, a Markov step or a whole trajectory.
        *args: its arguments.
        key: PRNG key or int seed.
        actions: actions to try, dict from site to [actions, ...], or an array if there is one
            site; default up to eight of the action space.
        confounded: True if seeing and doing must differ, False if they must not, None if the
            difference is only reported.
        intervene: `(model, dict of values) -> model`, what is checked.
        num_samples: runs per action behind the comparison of seeing with doing.
        level: probability that the comparison errs.

    Returns:
        `Intervention`.

    Raises:
        ValueError: a model without action sites, or a bad setting.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl import testing
        >>> def model():
        ...     ill = numpyro.sample("ill", dist.Bernoulli(0.5))
        ...     treat = dp.action("treat", dist.Bernoulli(0.1 + 0.8 * ill))
        ...     dp.reward("recovery", 0.3 * treat - ill)
        >>> found = testing.check_intervention(model, confounded=True)
        >>> found.passed, [round(float(x), 1) for x in found.intervened]
        (True, [-0.5, -0.2])
    """
    check_probability("level", level)
    check_count("num_samples", num_samples, 2)
    key = as_key(key)
    logged = play(model, key)(*args)
    sites = {n: s for n, s in logged.items() if role_of(s) == "action"}
    if not sites:
        raise ValueError(
            f"the model has no action site (its sites: {list(logged)}). Declare the decision "
            'with dp.action("name", space).'
        )
    candidates = _candidates(sites, actions)
    runs = _Runs(model, args, intervene, sorted(n for n, s in logged.items() if "value" in s))
    chosen = {n: a[0] for n, a in candidates.items()}
    moved = dependent_outputs(lambda a: runs.values(key, a, _by_policy), 0, chosen)
    descendants = tuple(n for n, m in zip(runs.names, moved, strict=True) if m)

    still, moved = _many_runs(runs, key, candidates, descendants)
    statistics = _reach_and_stay(runs, key, candidates, moved)
    statistics.append(Statistic("no site changes with the action", float(still), 0.0))
    passed, message = verdict(statistics, "", "interventions do not do what they must:")
    if still:
        message += " At these arguments the action is without effect: use what dp.action returns."
    seeing = _seeing_and_doing(runs, key, candidates, logged, num_samples)
    note = ""
    if seeing is None:
        if confounded is not None:
            raise ValueError(
                "confounded: seeing and doing can be compared only for one finite action per "
                "run in a model with a reward."
            )
    else:
        z = seeing[2]
        limit = float(stats.norm.isf(level / (2 * len(z))))
        worst = float(np.nanmax(np.append(z, 0.0)))
        if confounded is True:
            # written so that larger is worse, as everywhere
            statistics.append(Statistic("limit / abs(z) of seeing against doing",
                                        limit / worst if worst else math.inf, 1.0))  # fmt: skip
        else:
            allowed = limit if confounded is False else math.inf
            statistics.append(Statistic("abs(z) of seeing against doing", worst, allowed))
        if not statistics[-1].passed:
            fault = "differ" if confounded is False else "do not differ"
            passed = False
            message = f"{message} Seeing and doing {fault} (abs(z) {worst:.1f}).".strip()
        note = f" Seeing and doing {'differ' if worst > limit else 'agree'} (abs(z) {worst:.1f})."
    if passed:
        kept = len(runs.names) - len(descendants)
        tried = len(next(iter(candidates.values())))
        message = (
            f"{tried} actions reach their sites and what descends from them "
            f"({', '.join(descendants)}); {kept} other sites keep their values.{note}"
        )
    observed, intervened, z = seeing or (None, None, None)
    return Intervention(
        passed, message, tuple(statistics), descendants, candidates, observed, intervened, z
    )


class _Runs(NamedTuple):
    model: Callable
    args: tuple
    intervene: Callable
    names: list[str]

    def values(
        self, key: jax.Array, action: Mapping[str, Any] | None, intervene: Callable | None = None
    ) -> dict[str, jax.Array]:
        """Values of all sites of one run, under an action or, for None, as logged."""
        fn = self.model
        if action is not None:
            fn = (intervene or self.intervene)(fn, action)
        trace = handlers.trace(handlers.seed(fn, key)).get_trace(*self.args)
        return {n: jnp.asarray(trace[n]["value"]) for n in self.names}


def _by_policy(model: Callable, action: Mapping[str, Any]) -> Callable:
    # through functions of nothing: `act` would look at the values of arrays
    return act(model, {n: (lambda given, space, a=a: a) for n, a in action.items()})


def _candidates(sites: Mapping[str, Any], actions: Any) -> dict[str, np.ndarray]:
    if actions is not None:
        if not isinstance(actions, Mapping):
            if len(sites) > 1:
                raise ValueError(f"actions: give a dict with one array for each of {list(sites)}.")
            actions = {next(iter(sites)): actions}
        if set(actions) != set(sites):
            raise ValueError(
                f"actions names {sorted(actions)}, the action sites are {list(sites)}."
            )
        # in the dtype that the site keeps, or 0.1 would not be found again
        arrays = {n: np.asarray(a, sites[n]["value"].dtype) for n, a in actions.items()}
        if len({len(a) for a in arrays.values()}) > 1 or min(map(len, arrays.values())) < 2:
            raise ValueError("actions: expected a common leading axis of at least two actions.")
        return arrays
    found = {}
    for name, site in sites.items():
        fn = site["fn"]
        event = fn.event_shape
        if fn.has_enumerate_support:
            values = fn.enumerate_support(expand=False).reshape(-1, *event)
        else:
            drawn = fn.sample(jax.random.key(1), (_MOST_ACTIONS,))
            values = drawn.reshape(_MOST_ACTIONS, -1, *event)[:, 0]
        # the ends of the space are the actions that differ most
        index = np.unique(np.linspace(0, len(values) - 1, _MOST_ACTIONS).round().astype(int))
        found[name] = np.asarray(values)[index]
    count = max(map(len, found.values()))
    return {n: a[np.arange(count) % len(a)] for n, a in found.items()}


def _pick(candidates: Mapping[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
    return {n: a[i] for n, a in candidates.items()}


def _count(candidates: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(candidates.values())))


def _under(runs: _Runs, candidates: Mapping[str, np.ndarray]) -> Iterator[Callable]:
    """Per action a program of a model's runs: `(f, keys) -> f(model under the action, key)`."""
    if runs.intervene is not act:  # each action is a constant, and needs its own program
        for i in range(_count(candidates)):
            action = _pick(candidates, i)
            yield lambda f, a=action: jax.jit(
                jax.vmap(lambda k: f(runs.intervene(runs.model, a), k))
            )
        return
    programs: dict[Callable, Callable] = {}
    for i in range(_count(candidates)):

        def of(f: Callable, i: int = i) -> Callable:
            if f not in programs:
                over_keys = jax.vmap(lambda k, a: f(_by_policy(runs.model, a), k), (0, None))
                programs[f] = jax.jit(over_keys)
            return lambda keys: programs[f](keys, _pick(candidates, i))

        yield of


def _reach_and_stay(
    runs: _Runs, key: jax.Array, candidates: Mapping[str, np.ndarray], moved: dict[str, float]
) -> list[Statistic]:
    """Action sites hold the action everywhere; what does not descend from it stays as it was.

    Run as written, without jit: compilation may round two programs differently.
    """
    before = runs.values(key, None)
    missed = dict.fromkeys(candidates, 0.0)
    for i in range(_count(candidates)):
        after = runs.values(key, _pick(candidates, i))
        for name, action in _pick(candidates, i).items():
            missed[name] = max(missed[name], float(np.mean(np.asarray(after[name]) != action)))
        for name in moved:
            a, b = (np.asarray(x[name], float) for x in (before, after))
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            gap = float(np.max(np.where(same, 0.0, abs(a - b)), initial=0.0))
            moved[name] = max(moved[name], gap)
    held = [Statistic(f"share of {n!r} that is not the action", x, 0.0) for n, x in missed.items()]
    kept = [Statistic(f"{n!r} moved, which does not descend", x, 0.0) for n, x in moved.items()]
    return held + kept


def _many_runs(
    runs: _Runs, key: jax.Array, candidates: Mapping[str, np.ndarray], descendants: tuple[str, ...]
) -> tuple[bool, dict[str, float]]:
    """Over many keys: whether all actions lead to the same values, and what moved by mistake."""

    def values(model: Callable, key: jax.Array) -> dict[str, jax.Array]:
        trace = handlers.trace(handlers.seed(model, key)).get_trace(*runs.args)
        return {n: jnp.asarray(trace[n]["value"]) for n in runs.names}

    keys = jax.random.split(key, _RUNS)
    logged = jax.device_get(jax.jit(jax.vmap(lambda k: values(runs.model, k)))(keys))
    results = [jax.device_get(program(values)(keys)) for program in _under(runs, candidates)]
    follow = [n for n in descendants if n not in candidates]
    still = all(np.array_equal(results[0][n], r[n]) for r in results[1:] for n in follow)
    moved = {n: 0.0 for n in runs.names if n not in descendants and n not in candidates}
    for name in moved:
        a = np.asarray(logged[name], float)
        # two programs may round differently; that nothing moves at all is seen without jit
        rounding = 1e-4 * (1 + np.abs(a))
        for result in results:
            b = np.asarray(result[name], float)
            same = (np.abs(a - b) <= rounding) | (np.isnan(a) & np.isnan(b)) | (a == b)
            gap = float(np.max(np.where(same, 0.0, np.abs(a - b)), initial=0.0))
            moved[name] = max(moved[name], gap)
    return still, moved


def _seeing_and_doing(
    runs: _Runs,
    key: jax.Array,
    candidates: Mapping[str, np.ndarray],
    logged: Trace,
    num_samples: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(mean utility where the action was seen, mean under do, abs(z)), per action."""
    sites = [s for s in logged.values() if role_of(s) == "action"]
    finite = len(sites) == 1 and sites[0]["fn"].has_enumerate_support
    if not finite or sites[0]["fn"].batch_shape:
        return None
    if not any(role_of(s) == "reward" for s in logged.values()):
        return None
    (name,) = candidates

    def run(model: Callable, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        trace = handlers.trace(handlers.seed(model, key)).get_trace(*runs.args)
        reward, cost = split_utility(trace)
        return jnp.asarray(trace[name]["value"]), reward - cost

    count = _count(candidates)
    see_key, *do_keys = jax.random.split(key, count + 1)
    as_logged = jax.jit(jax.vmap(lambda k: run(runs.model, k)))
    taken, seen = jax.device_get(as_logged(jax.random.split(see_key, count * num_samples)))
    results = np.zeros((3, count))
    for i, program in enumerate(_under(runs, candidates)):
        done = np.asarray(program(run)(jax.random.split(do_keys[i], num_samples))[1], float)
        same = (taken == candidates[name][i]).reshape(len(taken), -1).all(axis=1)
        among = np.asarray(seen[same], float)
        results[:, i] = np.nan, done.mean(), np.nan
        if len(among) < 2:
            continue  # the logging policy does not take it
        results[0, i] = among.mean()
        error = math.sqrt(among.var() / len(among) + done.var() / len(done))
        gap = abs(results[0, i] - results[1, i])
        tiny = 1e-5 * (1 + abs(results[1, i]))
        results[2, i] = 0.0 if gap <= tiny else gap / error if error > 0 else np.inf
    return results[0], results[1], results[2]
