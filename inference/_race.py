"""Clocks that run down at given rates: which one ends first, and what gradients pass through."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.primitives import _PYRO_STACK, Messenger, apply_stack

_NEVER = 1e30  # finite where a time is infinite: differences of infinities are NaN
_LEAST = 1e-9  # of the largest rate; a clock that runs slower stands still


class First(NamedTuple):
    """The first clock to end.

    Attributes:
        event: [clocks], one at the clock that ended and zero elsewhere.
        time: how long it took.
        clock: [clocks], afterwards: the one that ended is set anew, the others have run down.
    """

    event: Any
    time: Any
    clock: Any


def race(clock: Any, rate: Any, fresh: Any = 0.0, *, held: Any = None) -> First:
    r"""The next event of several clocks.

    A clock with w left that runs at rate r ends after w / r, and never if r is zero, or less than
    1e-9 of the largest rate. The first one ends after :math:`\tau = \min_j w_j / r_j` and is set
    to a fresh value; the others keep :math:`w_j - \tau r_j`.

    What is differentiated is decided where the model is run, by the gradient mode of
    `pathwise.value`; elsewhere the event is a constant, and times and clocks are differentiated as
    written.

    Args:
        clock: what is left on each clock w, [clocks].
        rate: how fast each runs r, [clocks].
        fresh: what the clock that ends is set to, [clocks] or one value.
        held: bool [clocks]: clocks of work whose rates decisions set. `pathwise.ste` holds what is
            left on these constant. Default none.

    Returns:
        `First`.

    Raises:
        ValueError: shapes that disagree.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.inference import pathwise
        >>> first = pathwise.race(jnp.array([1.0, 3.0, 5.0]), jnp.array([1.0, 6.0, 0.0]), 7.0)
        >>> first.event.tolist(), float(first.time), first.clock.tolist()
        ([0.0, 1.0, 0.0], 0.5, [0.5, 7.0, 5.0])
    """
    clock, rate = jnp.asarray(clock), jnp.asarray(rate)
    if clock.ndim != 1 or clock.shape != rate.shape:
        raise ValueError(
            f"race: expected clocks and rates of one shape [clocks], got {list(clock.shape)} and "
            f"{list(rate.shape)}."
        )
    fresh = jnp.broadcast_to(jnp.asarray(fresh, clock.dtype), clock.shape)
    if not _PYRO_STACK:
        return hard(clock, rate, fresh, held)
    message = {
        "type": "race", "fn": hard, "args": (clock, rate, fresh, held), "kwargs": {},
        "value": None,
    }  # fmt: skip
    return apply_stack(message)["value"]


def _after(clock: jax.Array, rate: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Times [clocks], the event, when it happens, and what the other clocks keep."""
    # the square of a rate that is next to nothing underflows in the derivative of a time
    runs = rate > _LEAST * jnp.max(rate)
    times = jnp.where(runs, clock / jnp.where(runs, rate, 1.0), jnp.inf)
    first = jnp.argmin(times)
    time = times[first]
    # rounding may leave less than nothing on a clock that is about to end
    left = jnp.maximum(clock - time * rate, 0.0)
    return times, jax.nn.one_hot(first, len(clock), dtype=clock.dtype), time, left


def hard(clock: jax.Array, rate: jax.Array, fresh: jax.Array, held: Any = None) -> First:
    """The event is a constant; times and clocks are differentiated."""
    _, event, time, left = _after(clock, rate)
    return First(event, time, jnp.where(event > 0, fresh, left))


def smoothed(
    beta: float, clock: jax.Array, rate: jax.Array, fresh: jax.Array, held: Any = None
) -> First:
    """The event is that of `hard`, and is differentiated as a softmin of the times."""
    times, event, time, left = _after(clock, rate)
    possible = jnp.isfinite(times)
    logits = jnp.where(possible, -beta * jnp.where(possible, times, 0.0), -_NEVER)
    soft = jax.nn.softmax(logits)
    # zero in value, exactly: queues stay whole numbers
    event = event + (soft - jax.lax.stop_gradient(soft))
    after = jnp.where(event > 0, fresh, left)
    if held is not None:
        after = jnp.where(held, jax.lax.stop_gradient(after), after)
    return First(event, time, after)


class smooth(Messenger):
    """Answer every `race` with `smoothed`."""

    def __init__(self, fn: Callable | None = None, beta: float = 1.0) -> None:
        self.beta = beta
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        """Put the smoothed race in the place of the hard one."""
        if msg["type"] == "race":
            msg["fn"] = partial(smoothed, self.beta)


def handler(beta: float | None) -> Any:
    """What to run a step under: `smooth`, or nothing."""
    return contextlib.nullcontext() if beta is None else smooth(beta=beta)
