"""Uncertainty at the rows of a table, by labels generated there."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from decisionppl.inference._labels import count
from decisionppl.inference._steps import Steps, at, fork

# draws behind a moment or an entropy that NumPyro has no formula for
_DRAWS = 128
SCORES = ("information", "epistemic", "total", "random")


class Uncertainty(NamedTuple):
    """What is uncertain about the next label at each row's covariate, given the labelled rows.

    Attributes:
        total: variance of the predictive law, [rows].
        epistemic: variance, over paths of labels generated there, of the predictive mean after
            them, [rows].
        aleatoric: mean, over the same paths, of the predictive variance after them, [rows].
        information: entropy of the predictive law less its mean after the paths, nats, [rows].
    """

    total: jax.Array
    epistemic: jax.Array
    aleatoric: jax.Array
    information: jax.Array


class Sizes(NamedTuple):
    """Paths of generated labels at each row, and labels in each."""

    paths: int
    steps: int


def sizes_of(num_paths: int, num_steps: int) -> Sizes:
    return Sizes(count("num_paths", num_paths, 2), count("num_steps", num_steps, 1))


def scores_of(
    score: Any, steps: Steps, carry: Any, rows: jax.Array, key: Any, sizes: Sizes
) -> jax.Array:
    if score == "random":
        return jax.random.uniform(key, rows.shape)
    if score == "total":
        law_key = jax.random.split(key)[1]
        return _over_rows(steps, rows, lambda x: jnp.sum(_moments(steps.law(carry, x), law_key)[1]))
    # parts that are not asked for are dead code, which the compiler drops
    parts = parts_of(steps, carry, rows, key, sizes)
    if isinstance(score, str):
        return getattr(parts, score)
    scores = jnp.asarray(score(parts))
    if scores.shape != rows.shape:
        raise ValueError(
            f"score: expected one number for each of the {rows.shape[0]} candidates, got shape "
            f"{scores.shape}."
        )
    return scores


def parts_of(steps: Steps, carry: Any, rows: jax.Array, key: Any, sizes: Sizes) -> Uncertainty:
    path_key, law_key = jax.random.split(key)
    # the same numbers at every row, so that rows differ by what is known of them alone
    keys = jax.random.split(path_key, (sizes.paths, sizes.steps))
    # what is known is no part of what a path writes to: all paths and rows share it
    ahead = fork(carry, sizes.steps)

    def here(x: Any) -> Uncertainty:
        def path(keys: jax.Array) -> tuple:
            last, _ = jax.lax.scan(lambda carry, k: (steps.draw(k, carry, x)[0], None), ahead, keys)
            law = steps.law(last, x)
            return *_moments(law, law_key), _entropy(law, law_key)

        now = steps.law(carry, x)
        means, variances, entropies = jax.vmap(path)(keys)
        return Uncertainty(
            jnp.sum(_moments(now, law_key)[1]),
            jnp.sum(jnp.var(means, axis=0, ddof=1)),
            jnp.sum(jnp.mean(variances, axis=0)),
            _entropy(now, law_key) - jnp.mean(entropies),
        )

    return _over_rows(steps, rows, here)


def _over_rows(steps: Steps, rows: jax.Array, fn: Callable) -> Any:
    """`fn(covariates of a row)` for all rows; once, if rows have none to differ in."""
    if all(x.size == 0 for x in jax.tree.leaves(steps.xs)):
        once = fn(at(steps.xs, jnp.zeros((), int)))
        return jax.tree.map(lambda x: jnp.broadcast_to(x, rows.shape + x.shape), once)
    return jax.vmap(lambda row: fn(at(steps.xs, row)))(rows)


def _moments(law: dist.Distribution, key: Any) -> tuple[jax.Array, jax.Array]:
    """Means and variances of the numbers of a label; of its indicators if it is a category."""
    while isinstance(law, dist.Independent):
        law = law.base_dist
    if isinstance(law, dist.CategoricalProbs | dist.CategoricalLogits):
        probs = jnp.asarray(law.probs)
        return probs, probs * (1 - probs)
    try:
        return jnp.asarray(law.mean), jnp.asarray(law.variance)
    except NotImplementedError:
        draws = jnp.asarray(law.sample(key, (_DRAWS,)), float)
        return jnp.mean(draws, axis=0), jnp.var(draws, axis=0, ddof=1)


def _entropy(law: dist.Distribution, key: Any) -> jax.Array:
    try:
        return jnp.sum(law.entropy())
    except NotImplementedError:
        # with one key for all laws the error of a location-scale family cancels in differences
        log_prob = law.log_prob(law.sample(key, (_DRAWS,)))
        return -jnp.sum(jnp.mean(log_prob, axis=0))
