"""Runs of a Markov model whose derivative is taken as a gradient mode says."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from decisionppl._play import play
from decisionppl._roles import role_of
from decisionppl.inference._advantage import crossed
from decisionppl.inference._gradient_modes import Mode, plain, relaxed
from decisionppl.inference._race import handler
from decisionppl.inference._trajectories import _like_next, net_reward


class Steps(NamedTuple):
    """What is kept of the steps of a run, each [steps, ...].

    Attributes:
        reward: rewards less costs.
        spent: how much of what is averaged over the step took.
        logs: log-probability of all that was drawn, decisions included; 0 where it is not needed.
        features: of the state before the step; () where there is no baseline of features.
        then: of the state after it, of `advantage`, and its expectation over what is summed over.
        entropy: of the laws of decisions; 0 where it is not asked for.
    """

    reward: Any
    spent: Any
    logs: Any
    features: Any
    then: Any
    entropy: Any


class Design(NamedTuple):
    """What is run, and how it is differentiated; see `pathwise.value`."""

    step: Callable
    mode: Mode
    policy: Any
    per: str | None
    args: tuple
    entropy: bool = False


def checked(mode: Any, **sizes: Any) -> None:
    """Refuse what is no mode, and numbers that are no sizes; those named burn_in may be zero."""
    for name, x in sizes.items():
        least = 0 if name == "burn_in" else 1
        if isinstance(x, bool) or not isinstance(x, int | np.integer) or x < least:
            raise ValueError(f"{name}: expected an int of at least {least}, got {x!r}.")
    if not isinstance(mode, Mode):
        raise ValueError(f"mode: expected ipa(), ste(), score() or advantage(), got {mode!r}.")


def forward(design: Design, key: jax.Array, state: Any, t: Any) -> tuple[Any, Steps]:
    """One step of a run: the next state, and what is kept."""
    step, mode, policy, per, args, entropy = design
    kept = []
    model = lambda *a: kept.append(step(*a))  # noqa: E731
    if mode.relax:
        model = relaxed(model)
    now = jax.random.fold_in(key, t)
    with handler(mode.beta):
        trace = play(model, now, policy)(state, *args)
    if per is not None and per not in trace:
        raise ValueError(f"per: the step has no site {per!r}; its sites are {list(trace)}.")
    spent = _spent(trace, per)
    scored = mode.name in ("score", "advantage")
    logs = log_density(trace, mode.expect) if scored else jnp.zeros(())
    after, reward, then = kept[0], net_reward(trace), ()
    if mode.name == "advantage":
        then = features_of(mode, after)
    if mode.expect is not None:
        reward, spent, then = _expected(design, now, state, trace)
    if scored:  # parameters are seen through laws alone
        after, reward, spent = jax.lax.stop_gradient((after, reward, spent))
    spread = _entropy(trace) if entropy else jnp.zeros(())
    return after, Steps(reward, spent, logs, features_of(mode, state), then, spread)


def _spent(trace: Any, per: str | None) -> jax.Array:
    return jnp.ones(()) if per is None else jnp.sum(trace[per]["value"])


def _expected(design: Design, key: jax.Array, state: Any, trace: Any) -> tuple:
    """Reward, time and features of the next state, in the mean over the site to sum over."""
    step, mode, policy, per, args, _ = design
    name: Any = mode.expect
    site = trace.get(name)
    if site is None or site["type"] != "sample" or role_of(site) == "action":
        raise ValueError(
            f"expect: expected a site of the step that is drawn and no decision, got {name!r}; its "
            f"sites are {list(trace)}."
        )
    law: Any = plain(site["fn"])
    if law.batch_shape or law.event_shape or not law.has_enumerate_support:
        raise ValueError(
            f"expect: site {name!r}, {type(law).__name__} of shape "
            f"{(*law.batch_shape, *law.event_shape)}, is not one number of finitely many values. "
            "Leave expect out."
        )
    values = law.enumerate_support(expand=False)

    def given(value: Any) -> tuple:
        # of the same key: what is drawn before this site, decisions for one, is drawn again
        kept = []
        found = play(lambda *a: kept.append(step(*a)), key, policy, data={name: value})(
            state, *args
        )
        return net_reward(found), _spent(found, per), features_of(mode, kept[0])

    chance = jnp.exp(law.log_prob(values))
    return jax.tree.map(lambda x: chance @ x, jax.vmap(given)(values))


def features_of(mode: Mode, state: Any) -> Any:
    """Features of a state that the baseline of a mode is fitted on, constants to a derivative."""
    if not callable(mode.baseline):
        return ()
    return jax.lax.stop_gradient(jnp.asarray(mode.baseline(state), jnp.result_type(float)))


def begin(design: Design, init: Any, burn_in: int, key: jax.Array) -> tuple[Any, jax.Array]:
    """The state in which a run begins to count, and the key of its steps."""
    first, key = jax.random.split(key)
    state = handlers.seed(init, first)(*design.args) if callable(init) else init
    state = _like_next(design.step, state, design.args)
    state = jax.lax.fori_loop(0, burn_in, lambda t, s: forward(design, key, s, t)[0], state)
    # what came before is where the runs begin
    return (jax.lax.stop_gradient(state) if burn_in else state), key


def steps_of(
    design: Design, state: Any, key: jax.Array, start: Any, steps: int, segment: int
) -> tuple[Any, Steps]:
    """The state after some steps, and what is kept; a segment is computed again at a time."""
    one = partial(forward, design, key)
    size = max(d for d in range(1, min(segment, steps) + 1) if steps % d == 0)
    if size < 16 or size == steps:  # no even split
        return jax.lax.scan(one, state, start + jnp.arange(steps))

    @jax.checkpoint
    def part(state: Any, first: jax.Array) -> tuple:
        return jax.lax.scan(one, state, first + jnp.arange(size))

    last, out = jax.lax.scan(part, state, start + size * jnp.arange(steps // size))
    return last, jax.tree.map(lambda x: x.reshape(steps, *x.shape[2:]), out)


def follows(mode: Mode, gain: jax.Array, out: Steps) -> jax.Array:
    """What the log-probabilities of each step are multiplied with, [runs, steps].

    Args:
        mode: `score` or `advantage`.
        gain: rewards less what they are on average, [runs, steps].
        out: of all runs, [runs, steps, ...].
    """
    if mode.name == "advantage":
        return crossed(out.features, out.then, gain, mode.trace)
    later = jnp.cumsum(gain[:, ::-1], axis=1)[:, ::-1]
    return later - baseline(mode.baseline, later, out.features)


def baseline(kind: Any, later: jax.Array, features: Any) -> jax.Array | float:
    """What is expected to follow, [runs, steps], from other runs."""
    runs, steps = later.shape
    if kind is None or runs == 1:
        return 0.0
    if kind == "mean":
        return (later.sum(0) - later) / (runs - 1)
    left = ((steps - jnp.arange(steps)) / steps)[:, None]
    rows = jnp.concatenate([features, features * left], axis=-1)
    rows = jnp.concatenate([rows, jnp.broadcast_to(left**2, (*rows.shape[:2], 1))], axis=-1)
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


def log_density(trace: Any, without: str | None = None) -> jax.Array:
    """Of all that was drawn in a step, decisions included, but for one site."""
    total = jnp.zeros(())
    for name, site in trace.items():
        if name != without and site["type"] == "sample" and not site["is_observed"]:
            law: Any = plain(site["fn"])
            each = law.log_prob(jax.lax.stop_gradient(site["value"]))
            # a draw may fall on the end of a support by rounding, an exponential one on zero
            total = total + jnp.sum(jnp.where(jnp.isfinite(each), each, 0.0))
    return total


def _entropy(trace: Any) -> jax.Array:
    """Of the laws of all decisions of a step."""
    total = jnp.zeros(())
    for name, site in trace.items():
        if role_of(site) == "action" and site["type"] == "sample":
            law: Any = plain(site["fn"])
            try:
                total = total + jnp.sum(law.entropy())
            except NotImplementedError:
                raise ValueError(
                    f"entropy: the law of action site {name!r}, {type(law).__name__}, has none in "
                    "closed form. Train with entropy=0."
                ) from None
    return total
