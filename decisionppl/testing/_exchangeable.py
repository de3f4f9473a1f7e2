"""Does the order of the data matter?"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl.testing._check import Statistic, check_count, verdict
from decisionppl.testing._sequence import rounding, sequence_of


class Exchangeability(NamedTuple):
    """How much the joint probability depends on the order of the data.

    Attributes:
        passed: whether `gap` is within `tolerance`.
        message: the verdict.
        statistics: the gap, beside the tolerance.
        gap: largest abs(log p(permuted data) - log p(data)), nats.
        spread: standard deviation of log p over permutations, nats, largest over sequences.
        tolerance: what was allowed.
        log_prob: log p of every sequence in every order, [sequences, permutations]; the first
            order is the one drawn.
    """

    passed: bool
    message: str
    statistics: tuple[Statistic, ...]
    gap: float
    spread: float
    tolerance: float
    log_prob: np.ndarray


def check_exchangeable(
    model: Callable,
    *args: Any,
    key: Any = 0,
    sites: str | Iterable[str] | None = None,
    num_sequences: int = 8,
    num_permutations: int = 64,
    tolerance: float | None = None,
) -> Exchangeability:
    """Check that the joint probability of a sequence does not depend on its order.

    Sequences are drawn from the model, and their joint log-probability is evaluated under random
    permutations of the steps. Arguments whose leading axis has as many entries as there are
    steps (covariates) are permuted along. Latent sites keep their values.

    Args:
        model: a sequence model; its data sites are [steps, ...].
        *args: its arguments.
        key: PRNG key or int seed.
        sites: the data sites; default all random sites that carry a role.
        num_sequences: sequences drawn.
        num_permutations: orders per sequence.
        tolerance: largest gap that passes, nats; default rounding. Give `math.inf` to only
            measure, for models that are not exchangeable by construction.

    Returns:
        `Exchangeability`, with the measured gap.

    Raises:
        ValueError: no data site, or several of different lengths.

    Example:
        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl import testing
        >>> from numpyro.contrib.control_flow import scan
        >>> def urn():
        ...     def step(counts, _):
        ...         y = dp.outcome("y", dist.Bernoulli(counts[1] / counts.sum()))
        ...         return counts.at[y].add(1.0), y
        ...     return scan(step, jnp.ones(2), jnp.arange(6))
        >>> testing.check_exchangeable(urn).passed
        True
    """
    check_count("num_sequences", num_sequences)
    check_count("num_permutations", num_permutations)
    parts = sequence_of(model, args, sites, key)

    def one(key: jax.Array) -> jax.Array:
        draw_key, order_key = jax.random.split(key)
        values = parts.draw(draw_key)

        def log_prob(order: jax.Array) -> jax.Array:
            move = lambda x: x[order] if _per_step(x, parts.length) else x  # noqa: E731
            moved = {n: v[order] if n in parts.names else v for n, v in values.items()}
            trace = parts.trace(moved, jax.tree.map(move, parts.args))
            used = [s for s in trace.values() if s["type"] == "sample" and not callable(s["value"])]
            return sum((jnp.sum(s["fn"].log_prob(s["value"])) for s in used), jnp.zeros(()))

        keys = jax.random.split(order_key, num_permutations)
        orders = jax.vmap(lambda k: jax.random.permutation(k, parts.length))(keys)
        orders = jnp.concatenate([jnp.arange(parts.length)[None], orders])
        return jax.vmap(log_prob)(orders)

    keys = jax.random.split(parts.key, num_sequences)
    log_prob = np.asarray(jax.jit(lambda k: jax.lax.map(one, k))(keys), float)
    gap = float(np.abs(log_prob - log_prob[:, :1]).max())
    if tolerance is None:
        tolerance = rounding(parts.length + np.nanmax(np.abs(log_prob)))
    statistic = Statistic("change of log p under permutation, nats", gap, tolerance)
    passed, message = verdict(
        [statistic],
        f"log p of {num_sequences} sequences of {parts.length} steps changes by at most {gap:.2g} "
        f"nats under permutation (allowed {tolerance:.2g}).",
        "the sequence is not exchangeable:",
    )
    spread = float(log_prob.std(axis=1).max())
    return Exchangeability(passed, message, (statistic,), gap, spread, tolerance, log_prob)


def _per_step(x: Any, length: int) -> bool:
    return bool(np.ndim(x)) and np.shape(x)[0] == length
