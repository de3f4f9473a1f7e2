"""Do decisions follow the posterior, and does regret stop growing?"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from decisionppl import rules
from decisionppl._decide import decide, decider
from decisionppl._decision import NUM_KEYS, Context, as_context
from decisionppl._inference import Inference, Rows
from decisionppl._play import as_key
from decisionppl._space import availability
from decisionppl._utility import utility
from decisionppl.testing._check import (
    Statistic,
    check_count,
    check_probability,
    evidence,
    verdict,
)


class ProbabilityMatching(NamedTuple):
    """How often each action is chosen, beside how often it should be.

    Attributes:
        passed: whether the frequencies agree at `level`.
        message: the verdict.
        statistics: -log10(p), beside its limit.
        frequency: share of decisions, [actions].
        expected: probability that the action is best, [actions].
        p_value: of the chi-squared test.
        level: probability that matching decisions fail.
    """

    passed: bool
    message: str
    statistics: tuple[Statistic, ...]
    frequency: np.ndarray
    expected: np.ndarray
    p_value: float
    level: float


class RegretSlope(NamedTuple):
    """How fast cumulative regret grows: like rounds to the power of `slope`.

    Attributes:
        passed: whether the upper confidence limit of the slope is at most `below`.
        message: the verdict.
        statistics: the upper confidence limit, beside `below`.
        slope: of log cumulative regret against log rounds.
        stderr: its standard error, by the jackknife over replications; 0 for one replication.
        upper: upper confidence limit.
        regret: mean cumulative regret, [rounds].
    """

    passed: bool
    message: str
    statistics: tuple[Statistic, ...]
    slope: float
    stderr: float
    upper: float
    regret: np.ndarray


def probability_matching(
    model: Callable,
    inference: Inference,
    rows: Rows | None = None,
    context: Any = None,
    *,
    key: Any,
    rule: Callable = rules.thompson,
    expected: Any = None,
    actions: Any = None,
    draws: int | None = None,
    num_decisions: int = 10_000,
    level: float = 0.01,
) -> ProbabilityMatching:
    """Check that actions are chosen as often as the posterior says that they are best.

    That is what defines Thompson sampling. The belief after `rows` decides many times under
    different keys, and the choices are compared with `expected`.

    Args:
        model: a one-round model.
        inference: any `Inference` for it.
        rows: what was learned before, see `decisionppl.observe`; default nothing.
        context: the context of the decision: a tuple of the model's arguments, a dict of its
            context sites, or None.
        key: PRNG key or int seed.
        rule: the rule that decides.
        expected: probability that each action is best, [actions], such as a closed form; or
            an `Inference` that is known to be right, whose worlds are counted; default
            `inference` itself, which checks the rule alone.
        actions: candidates, as in `utility`; default the finite action space.
        draws: worlds per decision, as in `experiment.run`.
        num_decisions: how many decisions.
        level: probability that matching decisions fail.

    Returns:
        `ProbabilityMatching`.

    Raises:
        ValueError: probabilities of the wrong shape, or a bad setting.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl import inference, testing
        >>> from decisionppl.models import bandits
        >>> model = bandits.beta_bernoulli(2)
        >>> rows = dp.observe(model, sites={"arm": [0, 1, 1], "reward": [1, 0, 1]})
        >>> engine = inference.conjugate(model)
        >>> testing.probability_matching(model, engine, rows, key=0).passed
        True
        >>> testing.probability_matching(model, engine, rows, key=0, rule=dp.rules.greedy).passed
        False

    References:
        Russo et al., A Tutorial on Thompson Sampling, arXiv 1707.02038, section 3.
    """
    check_probability("level", level)
    check_count("num_decisions", num_decisions)
    known = as_context(context)
    parts = decider(model, inference, rule, known, actions=actions, draws=draws)
    keys = jax.random.split(as_key(key), 6)
    belief = _learned(inference, rows, keys[0])

    @jax.jit
    def choices(key: jax.Array, belief: Any) -> jax.Array:
        many = jax.random.split(key, (num_decisions, NUM_KEYS))
        one = lambda k: decide(parts, k, belief, known).index  # noqa: E731
        return jax.lax.map(one, many, batch_size=min(num_decisions, 1000))

    size = len(next(iter(parts.actions.values())))
    counts = np.bincount(np.asarray(choices(keys[1], belief)), minlength=size)
    if expected is None or isinstance(expected, Inference):
        right = inference if expected is None else expected
        other = belief if expected is None else _learned(right, rows, keys[2])
        among = _best_counts(model, right, other, parts.actions, known, keys[3:], num_decisions)
        p_value = _two_samples(counts, among)
        law = among / among.sum()
    else:
        law = np.asarray(expected, float)
        if law.shape != (size,) or not np.isclose(law.sum(), 1.0, atol=1e-4) or (law < 0).any():
            raise ValueError(
                f"expected: probabilities of {size} actions, got {law.tolist()} (sum {law.sum()})."
            )
        p_value = _one_sample(counts, law / law.sum())
    frequency = counts / num_decisions
    worst = int(np.abs(frequency - law).argmax())
    text = (
        f"action {worst} is chosen with frequency {frequency[worst]:.4f} in {num_decisions} "
        f"decisions, expected {law[worst]:.4f}"
    )
    statistic = evidence("chosen against best", p_value, level)
    passed, message = verdict([statistic], f"{text}.", f"choices do not match: {text};")
    return ProbabilityMatching(passed, message, (statistic,), frequency, law, p_value, level)


def _learned(inference: Inference, rows: Rows | None, key: jax.Array) -> Any:
    init_key, update_key = jax.random.split(key)
    belief = inference.init(init_key)
    return belief if rows is None else inference.update(update_key, belief, rows)


def _best_counts(
    model: Callable, inference: Inference, belief: Any, actions: Any, context: Context,
    keys: Any, count: int,
) -> np.ndarray:  # fmt: skip
    """In how many worlds each action is best, ties at random."""
    worlds = inference.sample(keys[0], belief, count)
    sites = dict(context.sites)
    table = np.asarray(
        utility(model, worlds, actions, key=keys[1], args=context.args, data=sites or None)
    )
    possible = np.asarray(availability(model, actions, context.args, sites))
    table = np.broadcast_to(np.where(possible, table, -np.inf), (count, table.shape[1]))
    best = table == table.max(axis=1, keepdims=True)
    order = np.asarray(jax.random.uniform(keys[2], table.shape))
    return np.bincount(np.where(best, order, -1.0).argmax(axis=1), minlength=table.shape[1])


def _one_sample(counts: np.ndarray, law: np.ndarray) -> float:
    """p-value of counts under a law; actions too rare for the approximation are pooled."""
    if counts[law == 0].sum():
        return 0.0
    wanted = law * counts.sum()
    order = np.argsort(wanted)
    groups = _pooled(wanted[order])
    seen = np.bincount(groups, counts[order])
    hoped = np.bincount(groups, wanted[order])
    if len(seen) < 2:
        return 1.0
    return float(stats.chi2.sf(((seen - hoped) ** 2 / hoped).sum(), len(seen) - 1))


def _two_samples(a: np.ndarray, b: np.ndarray) -> float:
    both = (a + b) / 2.0
    order = np.argsort(both)
    groups = _pooled(both[order])
    table = np.stack([np.bincount(groups, x[order]) for x in (a, b)])
    if table.shape[1] < 2:
        return 1.0
    found: Any = stats.chi2_contingency(table, correction=False)
    return float(found.pvalue)


def _pooled(wanted: np.ndarray) -> np.ndarray:
    """Groups of increasing expected counts, each of at least 5 together."""
    groups, total, group = np.zeros(len(wanted), int), 0.0, 0
    for i, value in enumerate(wanted):
        groups[i], total = group, total + value
        if total >= 5:
            group, total = group + 1, 0.0
    # what is left over at the end joins the last full group
    return np.minimum(groups, max(group - 1, 0)) if total else groups


def regret_slope(
    regret: Any, *, below: float = 1.0, start: int | None = None, level: float = 0.01
) -> RegretSlope:
    """Check that cumulative regret grows slower than a power of the number of rounds.

    The slope of log mean cumulative regret against log rounds is 1 for a policy that never
    learns, 1/2 for regret of the order sqrt(T), and near 0 for logarithmic regret.

    Args:
        regret: regret per round, [replications, rounds], or an `experiment.run` result.
        below: the slope must be at most this.
        start: first round of the fit; default a tenth of the rounds, since early rounds
            explore in any policy.
        level: one minus the confidence of the upper limit that is compared with `below`.

    Returns:
        `RegretSlope`.

    Raises:
        ValueError: fewer than 20 rounds, regret that is not finite, a result without regret.

    Example:
        >>> import numpy as np
        >>> from decisionppl import testing
        >>> rounds = np.arange(1, 1001)
        >>> found = testing.regret_slope(0.5 / np.sqrt(rounds)[None].repeat(3, 0), below=0.6)
        >>> found.passed, round(found.slope, 1)
        (True, 0.5)
    """
    check_probability("level", level)
    values = _regret_array(regret)
    replications, rounds = values.shape
    first = max(rounds // 10, 1) if start is None else check_count("start", start)
    if rounds < 20 or first > rounds // 2:
        raise ValueError(
            f"regret: expected at least 20 rounds, half of them after start={first}, got {rounds}."
        )
    at = np.unique(np.geomspace(first, rounds, 20).round().astype(int))
    total = np.cumsum(values, axis=1)
    x = np.log(at)
    weight = (x - x.mean()) / ((x - x.mean()) ** 2).sum()

    def slope(curve: np.ndarray) -> float:
        # regret that has not begun by `at[0]` counts as a vanishing amount
        floor = 1e-12 * max(float(np.abs(curve).max()), 1e-300)
        return float(weight @ np.log(np.maximum(curve[at - 1], floor)))

    mean = total.mean(axis=0)
    if not np.any(mean[at - 1] > 0):
        estimate, error = 0.0, 0.0
    else:
        estimate, error = slope(mean), 0.0
        if replications > 1:
            left = (total.sum(axis=0) - total) / (replications - 1)
            each = np.array([slope(curve) for curve in left])
            error = float(np.sqrt((replications - 1) * each.var()))
    quantile = stats.t.isf(level, replications - 1) if replications > 1 else 0.0
    upper = estimate + float(quantile) * error
    statistic = Statistic("growth exponent of regret, upper limit", upper, below)
    text = f"regret grows like rounds^{estimate:.2f} (standard error {error:.2g}) up to {rounds}"
    passed, message = verdict([statistic], f"{text}.", f"{text}:")
    return RegretSlope(passed, message, (statistic,), estimate, error, upper, mean)


def _regret_array(regret: Any) -> np.ndarray:
    data: Any = getattr(regret, "data", None)
    if hasattr(data, "data_vars"):
        if "regret" not in data:
            raise ValueError(
                "the result has no regret: its environment does not know expected utilities. Give "
                "an Environment with `value`."
            )
        values = data["regret"]
        regret = values.sum([d for d in values.dims if d not in ("replication", "round")])
    values = np.atleast_2d(np.asarray(regret, float))
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(
            f"regret: expected finite numbers [replications, rounds], got shape {values.shape}."
        )
    return values
