"""Interventions: replace the law of action sites."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from numpyro.primitives import Messenger

Policy = Any  # value | Distribution | f(given, space) -> value or Distribution | dict of those

# Positions of the callables in NumPyro's control-flow messages, by the message's function.
_BODIES = {"scan_wrapper": (0,), "cond_wrapper": (1, 2)}


def _law(name: str, policy: Policy, space: dist.Distribution, given: Any) -> dist.Distribution:
    chosen = policy
    if callable(policy) and not isinstance(policy, dist.Distribution):
        chosen = policy(given, space)
    if chosen is None:
        raise TypeError(
            f"action site {name!r}: the policy returned None. Expected a value of the action "
            "space or a Distribution over it."
        )
    if isinstance(chosen, dist.Distribution):
        if chosen.event_shape != space.event_shape:
            raise ValueError(
                f"action site {name!r}: the policy's law has event shape {chosen.event_shape}, "
                f"the action space has {space.event_shape}. Use .to_event(...) so they agree."
            )
        return chosen.mask(False)  # pyright: ignore[reportArgumentType]  # a decision is not evidence
    return dist.Delta(_value(name, chosen, space), event_dim=space.event_dim).mask(False)  # pyright: ignore


def _value(name: str, chosen: Any, space: dist.Distribution) -> jax.Array:
    prototype = jax.eval_shape(lambda: space.sample(jax.random.key(0)))
    try:
        with jax.ensure_compile_time_eval():
            value = jnp.asarray(chosen)
    except TypeError as error:
        raise TypeError(
            f"action site {name!r}: expected a value of {type(space).__name__}, got {chosen!r}."
        ) from error
    event = space.event_shape
    if event and value.shape[max(value.ndim - len(event), 0) :] != event:
        raise ValueError(
            f"action site {name!r}: the policy gave shape {value.shape}, the action space has "
            f"event shape {event}. Give a value of that shape."
        )
    if not _inside(value, space):
        raise ValueError(
            f"action site {name!r}: the policy gave {chosen!r}, which is outside the "
            f"support of the action space {type(space).__name__} ({space.support})."
        )
    # carries of scan are dtype-strict: an action keeps the dtype its space would draw
    return value.astype(prototype.dtype)


def _inside(value: jax.Array, space: dist.Distribution) -> bool:
    """Whether a value lies in the support; True where that is not known yet (traced)."""
    if isinstance(value, Tracer):
        return True
    try:
        with jax.ensure_compile_time_eval():  # known values are checked inside scan too
            inside = space.support(value)
    except (NotImplementedError, TypeError):
        return True
    return isinstance(inside, Tracer) or bool(np.asarray(inside).all())


class act(Messenger):
    """Intervene on a model: decide its action sites by a policy.

    The LAW of each action site is replaced, and its log density masked (a decision is not
    evidence); the site is still sampled, so it consumes its random key and paired runs
    share all other randomness. Works inside `scan`, nested `scan`, `cond` and plates,
    where `numpyro.handlers.do` is silently ignored. Composes with
    `numpyro.handlers.condition` in either order (a conditioned prefix stays as logged);
    of two nested `act`, the inner one wins.

    Args:
        fn: a model (a callable with NumPyro primitives).
        policy: a value, a Distribution, a feedback rule `f(given, space) -> value or
            Distribution`, or a dict of those by site name. Sites absent from the dict keep
            their logging law.

    Returns:
        The model under the policy.

    Raises:
        ValueError: a value outside the support of the action space, or a wrong shape.
        TypeError: a policy that gives neither a value nor a Distribution.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model():
        ...     a = dp.action("dose", dist.Uniform(0.0, 1.0), given=0.3)
        ...     return dp.reward("y", dist.Normal(2 * a, 1e-6))
        >>> round(float(numpyro.handlers.seed(dp.act(model, lambda given, space: given), 0)()), 3)
        0.6
    """

    def __init__(self, fn: Callable | None = None, policy: Policy = None) -> None:
        if policy is None:
            raise TypeError(
                "act needs a policy: a value, a Distribution, f(given, space), or a dict of "
                "those by action site."
            )
        self.policy = policy
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        """Answer the helper message of an action site; follow control flow into its bodies."""
        if msg["type"] == "control_flow":
            self._enter_bodies(msg)
        # an inner `act` has already answered when the value is set
        elif msg["type"] == "policy" and msg["value"] is None:
            policy = self.policy
            if isinstance(policy, Mapping):
                if msg["site"] not in policy:
                    return
                policy = policy[msg["site"]]
            msg["value"] = _law(msg["site"], policy, msg["space"], msg["given"])

    def _enter_bodies(self, msg: Any) -> None:
        # Handlers see only the stacked sites after the loop, and what happens inside must
        # be told from inside: the bodies are wrapped in the same intervention.
        positions = _BODIES.get(getattr(msg["fn"], "__name__", ""), ())
        args = list(msg["args"])
        for i in positions:
            args[i] = act(args[i], self.policy)
        msg["args"] = tuple(args)
