"""Heads: how the last layer of a network becomes a law."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist


class Head(NamedTuple):
    """How the last layer of a network becomes a law.

    Attributes:
        size: numbers it needs per observation.
        law: `raw [..., size] -> Distribution` of batch shape [...].
    """

    size: int
    law: Callable


def gaussian(min_scale: float = 1e-3) -> Head:
    """Normal law; its standard deviation stays above `min_scale`."""

    def law(raw: jax.Array) -> dist.Distribution:
        return dist.Normal(raw[..., 0], min_scale + jax.nn.softplus(raw[..., 1]))

    return Head(2, law)


def bernoulli() -> Head:
    """Zero or one."""
    return Head(1, lambda raw: dist.BernoulliLogits(raw[..., 0]))


def beta(min_concentration: float = 1e-2) -> Head:
    """Beta law on (0, 1); softplus keeps both concentrations above `min_concentration`."""

    def law(raw: jax.Array) -> dist.Distribution:
        concentration = min_concentration + jax.nn.softplus(raw)
        return dist.Beta(concentration[..., 0], concentration[..., 1])

    return Head(2, law)


class Histogram(dist.Distribution):
    """Piecewise constant density: a categorical law over intervals, uniform inside each.

    Args:
        logits: [..., bins], unnormalised log-probabilities of the intervals.
        edges: [bins + 1], increasing.
    """

    arg_constraints: ClassVar = {"logits": dist.constraints.real_vector}
    reparametrized_params: ClassVar = []
    pytree_data_fields = ("logits", "edges")

    def __init__(self, logits: Any, edges: Any, *, validate_args: bool | None = None) -> None:
        self.logits, self.edges = jnp.asarray(logits), jnp.asarray(edges)
        super().__init__(self.logits.shape[:-1], (), validate_args=validate_args)

    @property
    def support(self) -> Any:
        """The interval from the first edge to the last."""
        return dist.constraints.interval(self.edges[0], self.edges[-1])

    @property
    def probs(self) -> jax.Array:
        """Probabilities of the intervals, [..., bins]."""
        return jax.nn.softmax(self.logits, axis=-1)

    def _bin(self, value: jax.Array) -> jax.Array:
        inner = jnp.searchsorted(self.edges, value, side="right") - 1
        return jnp.clip(inner, 0, self.logits.shape[-1] - 1)

    def sample(self, key: Any, sample_shape: tuple = ()) -> jax.Array:
        """Draws [*sample_shape, ...]."""
        shape = sample_shape + self.batch_shape
        bin_key, place_key = jax.random.split(key)
        chosen = jax.random.categorical(bin_key, self.logits, shape=shape)
        width = jnp.diff(self.edges)
        return self.edges[chosen] + width[chosen] * jax.random.uniform(place_key, shape)

    def log_prob(self, value: Any) -> jax.Array:
        """Log density; -inf outside the edges."""
        value = jnp.asarray(value)
        index = self._bin(value)
        log_probs = jax.nn.log_softmax(self.logits, axis=-1)
        shape = jnp.broadcast_shapes(value.shape, self.batch_shape)
        log_probs = jnp.broadcast_to(log_probs, (*shape, log_probs.shape[-1]))
        index = jnp.broadcast_to(index, shape)
        height = jnp.take_along_axis(log_probs, index[..., None], axis=-1)[..., 0]
        inside = (value >= self.edges[0]) & (value <= self.edges[-1])
        return jnp.where(inside, height - jnp.log(jnp.diff(self.edges))[index], -jnp.inf)

    def cdf(self, value: Any) -> jax.Array:
        """Probability of at most `value`."""
        value = jnp.asarray(value)[..., None]
        part = (value - self.edges[:-1]) / jnp.diff(self.edges)
        return jnp.sum(self.probs * jnp.clip(part, 0.0, 1.0), axis=-1)

    def icdf(self, q: Any) -> jax.Array:
        """Quantiles."""
        q = jnp.asarray(q)[..., None]
        above = jnp.cumsum(self.probs, axis=-1)
        below = above - self.probs
        inside = (q - below) / jnp.maximum(self.probs, jnp.finfo(self.probs.dtype).tiny)
        width = jnp.diff(self.edges)
        # each interval adds the part of its width that lies below the quantile
        return self.edges[0] + jnp.sum(width * jnp.clip(inside, 0.0, 1.0), axis=-1)

    @property
    def mean(self) -> jax.Array:
        """Expected value."""
        return self.probs @ (0.5 * (self.edges[1:] + self.edges[:-1]))

    @property
    def variance(self) -> jax.Array:
        """Variance, that inside the intervals included."""
        middle, width = 0.5 * (self.edges[1:] + self.edges[:-1]), jnp.diff(self.edges)
        away = jnp.square(middle - self.mean[..., None])
        return jnp.sum(self.probs * (away + jnp.square(width) / 12), axis=-1)

    def entropy(self) -> jax.Array:
        """Differential entropy, nats."""
        log_probs = jax.nn.log_softmax(self.logits, axis=-1)
        return jnp.sum(self.probs * (jnp.log(jnp.diff(self.edges)) - log_probs), axis=-1)


def binned(edges: Any) -> Head:
    """Piecewise constant density on the intervals between `edges` (increasing, [bins + 1])."""
    edges = jnp.asarray(edges, float)
    if edges.ndim != 1 or len(edges) < 2 or not bool(jnp.all(jnp.diff(edges) > 0)):
        raise ValueError("edges: expected at least two increasing numbers.")

    return Head(len(edges) - 1, lambda raw: Histogram(raw, edges))
