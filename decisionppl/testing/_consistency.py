"""Is a sequence model the product of its one-step laws?"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl.testing._check import Statistic, check_count, verdict
from decisionppl.testing._sequence import rounding, sequence_of


class Consistency(NamedTuple):
    """Whether a sequence model is the product of its one-step predictive laws.

    Attributes:
        passed: whether all gaps are within `tolerance`.
        message: the verdict.
        statistics: the gaps, beside the tolerance.
        future_gap: largest change of log p(y_t | past), t <= n, when y_n and what follows are
            replaced, nats.
        joint_gap: largest abs(sum of log p(y_t | past) - joint log probability), nats.
        prefix_gap: largest difference of log p(y_t | past) between the model and its shorter
            version, nats; None if no shorter version was given.
        tolerance: what was allowed.
    """

    passed: bool
    message: str
    statistics: tuple[Statistic, ...]
    future_gap: float
    joint_gap: float
    prefix_gap: float | None
    tolerance: float


def check_consistency(
    model: Callable,
    *args: Any,
    key: Any = 0,
    sites: str | Iterable[str] | None = None,
    joint: Callable | None = None,
    shorter: tuple | None = None,
    num_sequences: int = 4,
    tolerance: float | None = None,
) -> Consistency:
    r"""Check that one-step predictive laws see the past only, and multiply to the joint.

    Three gaps are measured on sequences drawn from the model. Future: no
    :math:`p(y_t \mid y_{<t})` changes when :math:`y_t` and what follows are replaced by another
    draw. Joint: the sum of :math:`\log p(y_t \mid y_{<t})`, each computed so, equals the joint
    log-probability. Prefix: a shorter version of the model gives the first steps the same laws.

    Args:
        model: a sequence model; its data sites are [steps, ...].
        *args: its arguments.
        key: PRNG key or int seed.
        sites: the data sites; default all random sites that carry a role.
        joint: `(dict of data, all sites [steps, ...]) -> log probability`, computed in another
            way (a closed form, the parallel form of a network); default the model itself,
            given all data at once.
        shorter: arguments that give the model fewer steps.
        num_sequences: sequences drawn.
        tolerance: largest gap that passes, nats; default rounding.

    Returns:
        `Consistency`, with the measured gaps.

    Raises:
        ValueError: no data site, several of different lengths, or a "shorter" version that is
            longer.

    Example:
        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl import testing
        >>> from numpyro.contrib.control_flow import scan
        >>> def walk(x):
        ...     def step(last, x):
        ...         y = dp.outcome("y", dist.Normal(last + x, 1.0))
        ...         return y, y
        ...     return scan(step, 0.0, x)
        >>> testing.check_consistency(walk, jnp.ones(5), shorter=(jnp.ones(3),)).passed
        True
    """
    check_count("num_sequences", num_sequences)
    parts = sequence_of(model, args, sites, key)
    short = None if shorter is None else sequence_of(model, shorter, parts.names, key)
    if short is not None and short.length > parts.length:
        raise ValueError(
            f"shorter: it gives {short.length} steps, the model itself {parts.length}. Give "
            "arguments of fewer steps."
        )

    def one(key: jax.Array) -> tuple:
        first_key, second_key = jax.random.split(key)
        values, other = parts.draw(first_key), parts.draw(second_key)
        data = {n: values[n] for n in parts.names}
        whole = parts.steps(parts.trace(values), data)

        def from_past(t: jax.Array) -> jax.Array:
            past = jnp.arange(parts.length) < t

            def replace(name: str) -> jax.Array:
                keep = past.reshape(-1, *(1,) * (values[name].ndim - 1))
                return jnp.where(keep, values[name], other[name])

            given = {**values, **{n: replace(n) for n in parts.names}}
            # steps after t stand on what was replaced, so they are not compared
            each = parts.steps(parts.trace(given), data)
            return jnp.where(jnp.arange(parts.length) <= t, each, whole)

        each = jax.vmap(from_past)(jnp.arange(parts.length))
        chain = jnp.sum(jnp.diagonal(each))
        total = jnp.sum(whole) if joint is None else jnp.asarray(joint(data))
        prefix = jnp.zeros(())
        if short is not None:
            cut = {n: v[: short.length] if n in parts.names else v for n, v in values.items()}
            found = short.steps(short.trace(cut), {n: cut[n] for n in parts.names})
            prefix = jnp.max(jnp.abs(found - whole[: short.length]))
        scale = jnp.sum(jnp.abs(whole))
        return jnp.max(jnp.abs(each - whole)), jnp.abs(chain - total), prefix, scale

    keys = jax.random.split(parts.key, num_sequences)
    found = jax.jit(lambda k: jax.lax.map(one, k))(keys)
    future, joint_gap, prefix, scale = (float(np.max(np.asarray(x, float))) for x in found)
    if tolerance is None:
        tolerance = rounding(parts.length + scale)
    statistics = [
        Statistic("change of log p(y_t | past) with the future, nats", future, tolerance),
        Statistic("sum of log p(y_t | past) against the joint, nats", joint_gap, tolerance),
    ]
    if short is not None:
        name = "change of log p(y_t | past) in the shorter version, nats"
        statistics.append(Statistic(name, prefix, tolerance))
    passed, message = verdict(
        statistics,
        f"one-step laws of {parts.length} steps see the past only and multiply to the joint "
        f"(largest gap {max(s.value for s in statistics):.2g} nats).",
        "the sequence model is inconsistent:",
    )
    return Consistency(
        passed, message, tuple(statistics), future, joint_gap,
        None if short is None else prefix, tolerance,
    )  # fmt: skip
