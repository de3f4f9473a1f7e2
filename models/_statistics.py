"""Networks on statistics of the past."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import nnx

from decisionppl.models._heads import Head


class Statistics(NamedTuple):
    """A summary of the past, updated observation by observation.

    Attributes:
        init: `() -> statistics` of no observation, a pytree.
        update: `(statistics, x, y) -> statistics`.
        features: `(statistics, x) -> [size]`, what the network is shown.
        size: how many numbers that is.
    """

    init: Callable
    update: Callable
    features: Callable
    size: int


def successes() -> Statistics:
    r"""How many of the past observations, each in [0, 1], were successes: sufficient for a coin.

    With s successes in n, shown are the smoothed mean :math:`(s + 1/2) / (n + 1)`, its log-odds,
    and :math:`1 / (n + 1)` and its root, which tell how much they can be trusted.
    """

    def update(state: Any, x: Any, y: Any) -> Any:
        return state[0] + 1.0, state[1] + y

    def features(state: Any, x: Any) -> jax.Array:
        n, total = state
        odds = jnp.log(total + 0.5) - jnp.log(n - total + 0.5)
        return jnp.stack([(total + 0.5) / (n + 1), odds, 1 / (n + 1), (n + 1) ** -0.5])

    return Statistics(lambda: (jnp.zeros(()), jnp.zeros(())), update, features, 4)


def least_squares(columns: Callable, size: int, ridge: float = 1.0) -> Statistics:
    r"""Ridge regression of the past observations on some columns of x.

    The state is :math:`P = (\lambda I + \sum \phi\phi^T)^{-1}`, by Sherman and Morrison, and
    :math:`b = \sum \phi y`. Shown are the coefficients :math:`Pb`, the prediction
    :math:`\phi^T P b`, and its leverage :math:`\phi^T P \phi`.

    Args:
        columns: `x -> phi [size]`.
        size: number of columns.
        ridge: :math:`\lambda`.
    """

    def update(state: Any, x: Any, y: Any) -> Any:
        inverse, moment = state
        phi = columns(x)
        along = inverse @ phi
        return inverse - jnp.outer(along, along) / (1 + phi @ along), moment + phi * y

    def features(state: Any, x: Any) -> jax.Array:
        inverse, moment = state
        phi = columns(x)
        coefficients, along = inverse @ moment, inverse @ phi
        shown = jnp.stack([phi @ coefficients, phi @ along])
        return jnp.concatenate([shown, coefficients])

    return Statistics(lambda: (jnp.eye(size) / ridge, jnp.zeros(size)), update, features, size + 2)


class StatisticsNetwork(nnx.Module):
    """An MLP of the covariates and of statistics of the past, beside a linear map of the same.

    The linear map passes on what is nearly right already (the log-odds of a long record, the
    prediction of a regression); without it errors of the MLP add up along a generated sequence.

    Args:
        num_features: length of a covariate vector x; 0 without covariates.
        statistics: what the past is summarised by.
        head: how the last layer becomes a law.
        hidden: widths of the hidden layers.
        rngs: flax random streams, `nnx.Rngs(seed)`.
    """

    def __init__(
        self,
        num_features: int,
        statistics: Statistics,
        head: Head,
        *,
        hidden: tuple[int, ...] = (64, 64),
        rngs: nnx.Rngs,
    ) -> None:
        sizes = (num_features + statistics.size, *hidden)
        self.layers = nnx.List([
            nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)
        ])  # fmt: skip
        small = nnx.initializers.variance_scaling(0.01, "fan_in", "normal")
        self.out = nnx.Linear(sizes[-1], head.size, kernel_init=small, rngs=rngs)
        self.direct = nnx.Linear(sizes[0], head.size, kernel_init=small, rngs=rngs)
        self.statistics = statistics
        self.head = head
        self.num_features = num_features

    def __call__(self, *args: Any, method: str) -> Any:
        """Call a method by name; NumPyro's bridge calls modules."""
        return getattr(self, method)(*args)

    def _read(self, shown: jax.Array) -> dist.Distribution:
        hidden = shown
        for layer in self.layers:
            hidden = nnx.silu(layer(hidden))
        return self.head.law(self.out(hidden) + self.direct(shown))

    def laws(self, x: jax.Array, y: jax.Array) -> dist.Distribution:
        """Law of each y[..., t] given x[..., t] and the pairs before it, all at once."""
        shown = jax.vmap(self._shown)(x, y) if y.ndim > 1 else self._shown(x, y)
        return self._read(shown)

    def _shown(self, x: jax.Array, y: jax.Array) -> jax.Array:
        def step(state: Any, pair: tuple) -> tuple:
            x, y = pair
            return self.statistics.update(state, x, y), self._input(state, x)

        return jax.lax.scan(step, self.statistics.init(), (x, y.astype(float)))[1]

    def _input(self, state: Any, x: jax.Array) -> jax.Array:
        return jnp.concatenate([x, self.statistics.features(state, x)])

    def start(self, length: int) -> Any:
        """Statistics of no observation."""
        return self.statistics.init()

    def law(self, state: Any, x: jax.Array) -> dist.Distribution:
        """Law of the next observation at x [num_features]."""
        return self._read(self._input(state, x))

    def update(self, state: Any, x: jax.Array, y: jax.Array) -> Any:
        """Statistics with one more pair."""
        return self.statistics.update(state, x, y.astype(float))
