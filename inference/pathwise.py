r"""Gradients of the long-run value of a simulated model, and policies trained by them.

A Markov model is its step (`markov.chain`). Its value is the average reward, less costs, per step
or per unit of what a site measures, such as elapsed time. Models whose next state is decided by
which of several clocks ends first say so by `race`; then one model has three derivatives:

- `ipa`: times are differentiated, the order of events is constant;
- `ste`: the order of events is differentiated as a softmin of times, straight through;
- `score`: log-probabilities of the sites times what follows.

`value` is what JAX differentiates, `gradient_check` compares a mode with finite differences under
common random numbers, and `train` fits the parameters of a policy.

References:
    Glasserman, Gradient Estimation via Perturbation Analysis (1991), for `ipa`; Che, Dong and
    Namkoong, arXiv 2409.03740, for `ste`; Williams (1992), for `score`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.flatten_util import ravel_pytree
from numpyro import handlers

from decisionppl._play import as_key, play
from decisionppl.inference._gradient_modes import Mode, ipa, plain, relaxed, score, ste
from decisionppl.inference._race import First, handler, race
from decisionppl.inference._trajectories import _like_next, net_reward
from decisionppl.inference.training import Trained
from decisionppl.inference.training import train as _train

__all__ = [
    "First",
    "GradientCheck",
    "Mode",
    "gradient_check",
    "ipa",
    "race",
    "score",
    "ste",
    "train",
    "value",
]

_SEGMENT = 250  # steps whose intermediate results are kept for the derivative at one time


def value(
    step: Callable,
    init: Any,
    num_steps: int,
    *,
    key: Any,
    mode: Mode,
    policy: Any = None,
    num_runs: int = 1,
    burn_in: int = 0,
    per: str | None = None,
    args: tuple = (),
    segment: int = _SEGMENT,
) -> jax.Array:
    """The average reward of each of several runs, which JAX differentiates as a mode says.

    The derivative is taken in whatever the policy and the step depend on: arrays in a
    `jax.tree_util.Partial`, or variables of an enclosing function.

    Args:
        step: `(state, *args) -> next state`, a model with at least one reward or cost.
        init: the first state, or a model `(*args) -> state` that draws it.
        num_steps: steps of each run.
        key: PRNG key or int seed. Calls that differ in parameters share all random numbers.
        mode: `ipa`, `ste` or `score`.
        policy: what decides, see `decisionppl.act`. None keeps the logging law.
        num_runs: runs, independent of each other.
        burn_in: steps before those that count, which are not differentiated.
        per: a site that says how much of what is averaged over a step takes, such as elapsed time;
            None counts steps.
        args: further arguments of the step.
        segment: derivatives keep the intermediate results of so many steps at a time, and compute
            others again.

    Returns:
        [runs].

    Raises:
        ValueError: sizes below one, no reward or cost, or a `per` that is no site.

    Example:
        >>> import jax
        >>> from decisionppl.inference import pathwise
        >>> from decisionppl.models import queueing
        >>> def length(rate):  # of a queue, by the rate of its server
        ...     net = queueing.mm1(0.5).replace(service=jax.numpy.array([[rate]]))
        ...     model = queueing.event_model(net)
        ...     return -pathwise.value(
        ...         model.step, model.init, 2000, key=0, mode=pathwise.ipa(), num_runs=50,
        ...         per="elapsed", policy=queueing.cmu(net)).mean()
        >>> slope = jax.jit(jax.grad(length))(1.0)
        >>> bool(abs(slope + 2.0) < 0.4)    # -lambda / (mu - lambda)^2
        True
    """
    for name, x, least in (("num_steps", num_steps, 1), ("num_runs", num_runs, 1),
                           ("burn_in", burn_in, 0), ("segment", segment, 1)):  # fmt: skip
        if isinstance(x, bool) or not isinstance(x, int | np.integer) or x < least:
            raise ValueError(f"{name}: expected an int of at least {least}, got {x!r}.")
    if not isinstance(mode, Mode):
        raise ValueError(f"mode: expected ipa(), ste() or score(), got {mode!r}.")
    scored = mode.name == "score"

    def forward(key: jax.Array, state: Any, t: jax.Array) -> tuple:
        kept = []
        model = lambda *a: kept.append(step(*a))  # noqa: E731
        if mode.relax:
            model = relaxed(model)
        with handler(mode.beta):
            trace = play(model, jax.random.fold_in(key, t), policy)(state, *args)
        if per is not None and per not in trace:
            raise ValueError(f"per: the step has no site {per!r}; its sites are {list(trace)}.")
        spent = 1.0 if per is None else jnp.sum(trace[per]["value"])
        logs = _log_density(trace) if scored else jnp.zeros(())
        after, reward, spent = kept[0], net_reward(trace), jnp.asarray(spent)
        if scored:  # parameters are seen through laws alone
            after, reward, spent = jax.lax.stop_gradient((after, reward, spent))
        features = ()
        if callable(mode.baseline):
            features = jnp.asarray(mode.baseline(state))
        return after, (reward, spent, logs, features)

    def run(key: jax.Array) -> tuple:
        begin, key = jax.random.split(key)
        first = handlers.seed(init, begin)(*args) if callable(init) else init
        state = _like_next(step, first, args)
        state = jax.lax.fori_loop(0, burn_in, lambda t, s: forward(key, s, t)[0], state)
        # what came before is where the runs begin
        state = jax.lax.stop_gradient(state) if burn_in else state
        return _segmented(partial(forward, key), state, burn_in, num_steps, segment)

    with handlers.block():  # an enclosing model must not see the sites of these runs
        rewards, spent, logs, features = jax.vmap(run)(jax.random.split(as_key(key), num_runs))
    each = rewards.sum(1) / spent.sum(1)
    if not scored:
        return each
    level = rewards.sum() / spent.sum()
    later = jnp.cumsum((rewards - level * spent)[:, ::-1], axis=1)[:, ::-1]
    later = later - _baseline(mode.baseline, later, features)
    found = (logs * jax.lax.stop_gradient(later)).sum(1) / spent.mean(0).sum()
    return each + found - jax.lax.stop_gradient(found)


def _log_density(trace: Any) -> jax.Array:
    """Of all that was drawn in a step, decisions included."""
    total = jnp.zeros(())
    for site in trace.values():
        if site["type"] == "sample" and not site["is_observed"]:
            law: Any = plain(site["fn"])
            each = law.log_prob(jax.lax.stop_gradient(site["value"]))
            # a draw may fall on the end of a support by rounding, an exponential one on zero
            total = total + jnp.sum(jnp.where(jnp.isfinite(each), each, 0.0))
    return total


def _segmented(forward: Callable, state: Any, start: int, steps: int, segment: int) -> tuple:
    """Outputs of all steps [steps, ...]; derivatives compute a segment again at a time."""
    size = max(d for d in range(1, min(segment, steps) + 1) if steps % d == 0)
    if size < 16 or size == steps:  # no even split
        return jax.lax.scan(forward, state, start + jnp.arange(steps))[1]

    @jax.checkpoint
    def part(state: Any, first: jax.Array) -> tuple:
        return jax.lax.scan(forward, state, first + jnp.arange(size))

    out = jax.lax.scan(part, state, start + size * jnp.arange(steps // size))[1]
    return jax.tree.map(lambda x: x.reshape(steps, *x.shape[2:]), out)


def _baseline(baseline: Any, later: jax.Array, features: Any) -> jax.Array | float:
    """What is expected to follow, [runs, steps], from other runs."""
    runs, steps = later.shape
    if baseline is None or runs == 1:
        return 0.0
    if baseline == "mean":
        return (later.sum(0) - later) / (runs - 1)
    left = ((steps - jnp.arange(steps)) / steps)[:, None]
    rows = jnp.concatenate([features, features * left], axis=-1)
    rows = jnp.concatenate([rows, jnp.broadcast_to(left**2, (*rows.shape[:2], 1))], axis=-1)
    rows = jax.lax.stop_gradient(rows)
    half = jnp.arange(runs) % 2

    def fitted(own: jax.Array) -> jax.Array:
        weight = (half != own)[:, None, None]
        scale = jnp.sqrt((weight * rows**2).mean((0, 1))) + 1e-12
        scaled = rows / scale
        square = jnp.einsum("rti,rtj->ij", weight * scaled, scaled)
        square = square + 1e-4 * jnp.trace(square) / len(square) * jnp.eye(len(square))
        right = jnp.einsum("rti,rt->i", weight * scaled, later)
        return scaled @ jnp.linalg.solve(square, right)

    return jnp.where(half[:, None] == 0, fitted(jnp.array(0)), fitted(jnp.array(1)))


class GradientCheck(NamedTuple):
    """A derivative beside finite differences.

    Attributes:
        gradient: mean over runs, flat [parameters].
        finite: finite differences with common random numbers, [parameters].
        stderr: of the difference of the two, paired by run, [parameters].
        cosine: of the angle between the two.
        ratio: length of the gradient along the finite differences, over theirs: 1 if right.
        passed: whether all differences are within `z` standard errors and the tolerance.
        message: what was found.
    """

    gradient: np.ndarray
    finite: np.ndarray
    stderr: np.ndarray
    cosine: float
    ratio: float
    passed: bool
    message: str


def gradient_check(
    objective: Callable,
    params: Any,
    mode: Mode,
    *,
    key: Any,
    num_runs: int = 100,
    epsilon: float = 0.02,
    tolerance: float = 0.05,
    z: float = 4.0,
    batch: int = 50,
) -> GradientCheck:
    """Compare a derivative with central finite differences of the same runs.

    Both sides of a difference see the same random numbers, and both estimates the same runs. Finite
    differences have a bias of order epsilon squared, and a variance that grows as epsilon falls
    where events change their order.

    Args:
        objective: `(params, key, mode) -> number`, usually the mean of `value(..., key=key,
            mode=mode)`; evaluated with `num_runs` keys.
        params: pytree of floats.
        mode: whose derivative is checked. Differences are of the same runs: relaxed, if it is.
        key: PRNG key or int seed.
        num_runs: keys.
        epsilon: step of the differences, relative to one plus the parameter's size.
        tolerance: difference that does not matter, relative to the length of the gradient.
        z: standard errors that are allowed.
        batch: keys at a time.

    Returns:
        `GradientCheck`.

    Raises:
        ValueError: sizes out of range.

    Example:
        >>> from decisionppl.inference import pathwise
        >>> found = pathwise.gradient_check(
        ...     lambda x, key, mode: x["a"] ** 2, {"a": 3.0}, pathwise.ipa(), key=0, num_runs=2)
        >>> found.passed, round(found.ratio, 3)
        (True, 1.0)
    """
    if num_runs < 2 or batch < 1 or not epsilon > 0:
        raise ValueError(
            f"expected num_runs of at least 2, batch of at least 1 and epsilon above zero, got "
            f"{num_runs}, {batch} and {epsilon}."
        )
    flat, restore = ravel_pytree(
        jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), params)
    )
    steps = epsilon * (1 + jnp.abs(flat))

    @jax.jit
    def both(keys: jax.Array) -> tuple:
        def one(key: jax.Array) -> tuple:
            slope = jax.grad(lambda x: objective(restore(x), key, mode))(flat)

            def moved(i: jax.Array) -> jax.Array:
                by = jnp.zeros_like(flat).at[i].set(steps[i])
                up, down = (objective(restore(flat + s * by), key, mode) for s in (1, -1))
                return (up - down) / (2 * steps[i])

            return slope, jax.lax.map(moved, jnp.arange(len(flat)))

        return jax.lax.map(one, keys, batch_size=min(batch, num_runs))

    slope, finite = (np.asarray(x, float) for x in both(jax.random.split(as_key(key), num_runs)))
    gap = (slope - finite).mean(0)
    stderr = (slope - finite).std(0, ddof=1) / num_runs**0.5
    slope, finite = slope.mean(0), finite.mean(0)
    length = np.linalg.norm(finite)
    along, least = slope @ finite, np.finfo(float).tiny  # gradients may be zero
    cosine = float(along / max(np.linalg.norm(slope) * length, least))
    ratio = float(along / max(length**2, least))
    far = np.abs(gap) > z * stderr + tolerance * length
    message = (
        f"{mode.name}: {far.sum()} of {len(far)} components differ from finite differences; "
        f"length {ratio:.3g} of theirs, cosine of the angle {cosine:.3g}."
    )
    return GradientCheck(slope, finite, stderr, cosine, ratio, not far.any(), message)


def train(
    step: Callable,
    init: Any,
    num_steps: int,
    policy: Callable,
    params: Any,
    num_updates: int,
    *,
    key: Any,
    mode: Mode,
    num_runs: int = 20,
    burn_in: int = 0,
    per: str | None = None,
    args: tuple = (),
    segment: int = _SEGMENT,
    average: float = 0.5,
    **settings: Any,
) -> Trained:
    """Fit the parameters of a policy to the value of a model, by gradient steps.

    What is returned is the average of the parameters over the last updates, which is less noisy
    than the last ones, and needs no choice among them by evaluation.

    Args:
        step, init, num_steps, mode, num_runs, burn_in, per, args, segment: see `value`.
        policy: `(params) -> policy`, see `decisionppl.act`.
        params: where to begin, a pytree.
        num_updates: gradient steps, each on fresh runs.
        key: PRNG key or int seed.
        average: share of the updates over whose parameters the mean is taken; 0 takes the last.
        **settings: of `inference.train`: learning_rate, optimizer, progress, checkpoint.

    Returns:
        `inference.Trained`; its `params` has one entry, "policy".

    Raises:
        ValueError: see `value` and `inference.train`.
        FloatingPointError: the value became NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.inference import pathwise
        >>> from decisionppl.models import queueing
        >>> net = queueing.multiclass([0.3, 0.3], 1.0, [1, 4])
        >>> model = queueing.event_model(net)
        >>> fit = pathwise.train(
        ...     model.step, model.init, 200, lambda w: queueing.soft_priority(net, w), jnp.zeros(2),
        ...     30, key=0, mode=pathwise.ste(5.0), per="elapsed", learning_rate=0.1)
        >>> bool(fit.params["policy"][1] > fit.params["policy"][0])
        True
    """

    def model(key: jax.Array) -> None:
        chosen = policy(numpyro.param("policy", params))
        found = value(
            step, init, num_steps, key=key, mode=mode, policy=chosen, num_runs=num_runs,
            burn_in=burn_in, per=per, args=args, segment=segment,
        )  # fmt: skip
        numpyro.factor("value", found.mean())

    return _train(
        model, lambda key, step: (key,), num_updates, key=key, average=average, **settings
    )
