"""Transformers over pairs (x, y): causal with a cache, and blind to the order of the context."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import nnx

from decisionppl.models._heads import Head


def _scaled(x: jax.Array) -> jax.Array:
    """Root mean square one over the last axis."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


class Embedding(nnx.Module):
    """Tokens of pairs (x, y) and of queries x.

    Args:
        num_features: length of a covariate vector x.
        width: length of a token.
        max_frequency, num_frequencies: each covariate enters also as sines and cosines of
            learned frequencies, begun between 0.3 and `max_frequency` radians per unit of x. With
            them, nearness in x is found by attention in few steps; set the largest to about
            2 pi over the smallest distance in x that matters.
        rngs: flax random streams.
    """

    def __init__(
        self, num_features: int, width: int, max_frequency: float, num_frequencies: int,
        *, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        grid = jnp.geomspace(0.3, max_frequency, num_frequencies)
        self.frequencies = nnx.Param(jnp.tile(grid, (num_features, 1)))
        size = num_features * (1 + 2 * num_frequencies) + 2
        self.first = nnx.Linear(size, 2 * width, rngs=rngs)
        self.second = nnx.Linear(2 * width, width, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array, y: jax.Array | None) -> jax.Array:
        """Tokens [..., width] of x [..., num_features] with y [...], or of queries."""
        angles = (x[..., None] * self.frequencies[...]).reshape(*x.shape[:-1], -1)
        known = jnp.zeros(x.shape[:-1]) if y is None else jnp.ones(x.shape[:-1])
        value = jnp.zeros(x.shape[:-1]) if y is None else y.astype(float)
        parts = [x, jnp.sin(angles), jnp.cos(angles), value[..., None], known[..., None]]
        return self.second(nnx.gelu(self.first(jnp.concatenate(parts, axis=-1))))


class Block(nnx.Module):
    """One layer: attention to pairs (and to a learned null pair), then an MLP."""

    def __init__(self, width: int, num_heads: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        size = width // num_heads
        small = nnx.initializers.variance_scaling(0.04, "fan_in", "normal")
        self.query = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.key_value = nnx.Linear(width, 2 * width, use_bias=False, rngs=rngs)
        self.output = nnx.Linear(width, width, use_bias=False, kernel_init=small, rngs=rngs)
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, use_bias=False, kernel_init=small, rngs=rngs)
        self.null_key = nnx.Param(jnp.zeros((num_heads, size)))
        self.null_value = nnx.Param(jnp.zeros((num_heads, size)))
        # queries and keys have unit root mean square, so this is how sharp attention begins
        self.sharpness = nnx.Param(jnp.full((num_heads,), 2.0 * size**0.25))
        self.shape = (num_heads, size)

    def keys_values(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values [..., heads, size] of tokens [..., width]."""
        both = self.key_value(_scaled(tokens)).reshape(*tokens.shape[:-1], 2, *self.shape)
        return _scaled(both[..., 0, :, :]), both[..., 1, :, :]

    def __call__(self, tokens: jax.Array, seen: list[tuple]) -> jax.Array:
        """Tokens after the layer.

        Args:
            tokens: [..., i, width].
            seen: parts of what is attended, (keys [..., j, heads, size], values, mask that
                broadcasts to [..., heads, i, j]).
        """
        query = self.query(_scaled(tokens)).reshape(*tokens.shape[:-1], *self.shape)
        query = _scaled(query) * self.sharpness[...][:, None]
        logits = [jnp.einsum("...ihd,hd->...hi", query, self.null_key[...])[..., None]]
        for keys, _, mask in seen:
            logits.append(
                jnp.where(mask, jnp.einsum("...ihd,...jhd->...hij", query, keys), -jnp.inf)
            )
        weights = jax.nn.softmax(jnp.concatenate(logits, axis=-1), axis=-1)
        mixed = jnp.einsum("...hi,hd->...ihd", weights[..., 0], self.null_value[...])
        start = 1
        for _, values, _ in seen:
            stop = start + values.shape[-3]
            mixed += jnp.einsum("...hij,...jhd->...ihd", weights[..., start:stop], values)
            start = stop
        tokens = tokens + self.output(mixed.reshape(tokens.shape))
        return tokens + self.down(nnx.gelu(self.up(_scaled(tokens))))


class Cache(NamedTuple):
    """Keys and values of the past, [layers, pairs, heads, size] each.

    Attributes:
        prefix_keys, prefix_values, prefix_mask: what was known when generation began; nothing
            is written here, so that all paths share it.
        keys, values: with room for what is drawn.
        count: how many pairs `keys` holds.
    """

    prefix_keys: jax.Array
    prefix_values: jax.Array
    prefix_mask: jax.Array
    keys: jax.Array
    values: jax.Array
    count: jax.Array

    def fork(self, horizon: int) -> "Cache":
        """All that is known as the prefix, and room for `horizon` more pairs."""
        empty = jnp.zeros((self.keys.shape[0], horizon, *self.keys.shape[2:]))
        return Cache(
            jnp.concatenate([self.prefix_keys, self.keys], axis=1),
            jnp.concatenate([self.prefix_values, self.values], axis=1),
            jnp.concatenate([self.prefix_mask, jnp.arange(self.keys.shape[1]) < self.count]),
            empty, empty, jnp.zeros((), jnp.int32),
        )  # fmt: skip


class Transformer(nnx.Module):
    """A causal transformer over pairs (x, y), without positional encoding.

    Args:
        num_features: length of a covariate vector x; 0 without covariates.
        head: how the last layer becomes a law.
        width, depth, num_heads, hidden: of the transformer; `hidden` is the width inside the
            MLPs (default twice the width).
        max_frequency, num_frequencies: of the covariates' sines and cosines, see `Embedding`.
        rngs: flax random streams, `nnx.Rngs(seed)`.

    Raises:
        ValueError: a width that the heads do not divide.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> import decisionppl as dp
        >>> from decisionppl.models import neural
        >>> net = neural.Transformer(1, neural.gaussian(), width=8, depth=1, rngs=nnx.Rngs(0))
        >>> trace = dp.play(neural.sequence(net), 0)(jnp.zeros((5, 1)))
        >>> trace["y"]["value"].shape
        (5,)
    """

    def __init__(
        self,
        num_features: int,
        head: Head,
        *,
        width: int = 64,
        depth: int = 4,
        num_heads: int = 4,
        hidden: int | None = None,
        max_frequency: float = 4.0,
        num_frequencies: int = 8,
        rngs: nnx.Rngs,
    ) -> None:
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}.")
        hidden = 2 * width if hidden is None else hidden
        self.embedding = Embedding(num_features, width, max_frequency, num_frequencies, rngs=rngs)
        self.blocks = nnx.List([Block(width, num_heads, hidden, rngs=rngs) for _ in range(depth)])
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.out = nnx.Linear(
            2 * width, head.size, rngs=rngs,
            kernel_init=nnx.initializers.variance_scaling(0.01, "fan_in", "normal"),
        )  # fmt: skip
        self.head = head
        self.num_features = num_features

    def __call__(self, *args: Any, method: str) -> Any:
        """Call a method by name; NumPyro's bridge calls modules."""
        return getattr(self, method)(*args)

    def _read(self, tokens: jax.Array) -> dist.Distribution:
        return self.head.law(self.out(nnx.gelu(self.up(_scaled(tokens)))))

    def _encode(
        self, x: jax.Array, y: jax.Array, among: jax.Array, before: jax.Array
    ) -> dist.Distribution:
        """Laws at all x; masks say which pairs each pair, and each query, attends."""
        pairs, queries = self.embedding(x, y), self.embedding(x, None)
        for block in self.blocks:
            keys, values = block.keys_values(pairs)
            queries = block(queries, [(keys, values, before)])
            pairs = block(pairs, [(keys, values, among)])
        return self._read(queries)

    def laws(self, x: jax.Array, y: jax.Array) -> dist.Distribution:
        """Law of each y[..., t] given x[..., t] and the pairs before it, all at once."""
        i = jnp.arange(y.shape[-1])
        return self._encode(x, y, i[None] <= i[:, None], i[None] < i[:, None])

    def start(self, length: int) -> Cache:
        """The cache before any pair, with room for `length`."""
        shape = self.blocks[0].shape
        none = jnp.zeros((len(self.blocks), 0, *shape))
        room = jnp.zeros((len(self.blocks), length, *shape))
        return Cache(none, none, jnp.zeros(0, bool), room, room, jnp.zeros((), jnp.int32))

    def law(self, cache: Cache, x: jax.Array) -> dist.Distribution:
        """Law of the next observation at x [num_features]."""
        tokens = self.embedding(x, None)[None]
        held = jnp.arange(cache.keys.shape[1]) < cache.count
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, [
                (cache.prefix_keys[i], cache.prefix_values[i], cache.prefix_mask),
                (cache.keys[i], cache.values[i], held),
            ])  # fmt: skip
        return self._read(tokens[0])

    def update(self, cache: Cache, x: jax.Array, y: jax.Array) -> Cache:
        """The cache with one more pair."""
        tokens = self.embedding(x, y)[None]
        held = jnp.arange(cache.keys.shape[1]) <= cache.count
        all_keys, all_values = cache.keys, cache.values
        for i, block in enumerate(self.blocks):
            keys, values = block.keys_values(tokens)
            place = (i, cache.count, 0, 0)
            all_keys = jax.lax.dynamic_update_slice(all_keys, keys[None], place)
            all_values = jax.lax.dynamic_update_slice(all_values, values[None], place)
            tokens = block(tokens, [
                (cache.prefix_keys[i], cache.prefix_values[i], cache.prefix_mask),
                (all_keys[i], all_values[i], held),
            ])  # fmt: skip
        return cache._replace(keys=all_keys, values=all_values, count=cache.count + 1)


class Context(NamedTuple):
    """The pairs so far, with room for more.

    Attributes:
        x: [pairs, num_features].
        y: [pairs].
        count: how many there are.
    """

    x: jax.Array
    y: jax.Array
    count: jax.Array

    def fork(self, horizon: int) -> "Context":
        """The same pairs with room for `horizon` more."""
        x = jnp.concatenate([self.x, jnp.zeros((horizon, *self.x.shape[1:]))])
        return Context(x, jnp.concatenate([self.y, jnp.zeros(horizon)]), self.count)


class InvariantTransformer(Transformer):
    """A transformer whose law does not depend on the order of the context.

    The network of `Transformer` with another mask: pairs of the context attend each other. Train
    it on contexts of every length, none included, as `neural.parallel` does.
    """

    def laws(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: jax.Array, y: jax.Array, context: jax.Array
    ) -> dist.Distribution:
        """Law of each y[..., t] given x[..., t] and the first `context` [...] pairs."""
        seen = jnp.arange(y.shape[-1]) < jnp.asarray(context)[..., None]
        seen = seen[..., None, None, :]
        return self._encode(x, y, seen, seen)

    def start(self, length: int) -> Context:  # pyright: ignore[reportIncompatibleMethodOverride]
        """No pairs, with room for `length`."""
        x = jnp.zeros((length, self.num_features))
        return Context(x, jnp.zeros(length), jnp.zeros((), jnp.int32))

    def law(self, cache: Context, x: jax.Array) -> dist.Distribution:  # pyright: ignore
        """Law of the next observation at x [num_features]."""
        seen = jnp.arange(cache.y.shape[0]) < cache.count
        pairs, query = self.embedding(cache.x, cache.y), self.embedding(x, None)[None]
        for block in self.blocks:
            keys, values = block.keys_values(pairs)
            query = block(query, [(keys, values, seen)])
            pairs = block(pairs, [(keys, values, seen)])
        return self._read(query[0])

    def update(self, cache: Context, x: jax.Array, y: jax.Array) -> Context:  # pyright: ignore
        """The context with one more pair."""
        return Context(
            jax.lax.dynamic_update_index_in_dim(cache.x, x, cache.count, 0),
            jax.lax.dynamic_update_index_in_dim(cache.y, y.astype(float), cache.count, 0),
            cache.count + 1,
        )
