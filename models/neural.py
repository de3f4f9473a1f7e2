r"""Neural sequence models: a transformer with cache, its permutation-invariant form, and
a network on sufficient statistics.

Each network gives the law of the next observation from its covariates :math:`x_t` and the
observations so far, :math:`p_\theta(y_t \mid x_t, (x_s, y_s)_{s<t})`. As a NumPyro model it has
two forms with the same parameters: `sequence`, a scan that draws observation by observation (for
generation, imputation and decisions), and `parallel`, all conditionals of given sequences at once
(for training).

- `Transformer`: a token for each past pair attends the pairs up to it; a query token for each
  :math:`x_t` attends the pairs before it. There is no positional encoding. In the scan, keys and
  values of the past are kept (the cache), so a step costs one pass over it.
- `InvariantTransformer`: the same network, but all pairs of the context attend each other, so the
  law does not depend on their order (a prior-data fitted network, a neural process). Nothing can
  be kept from step to step: each draw encodes the whole context again.
- `StatisticsNetwork`: an MLP of :math:`x_t` and of statistics of the past.

References:
    Active Exploration via Autoregressive Generation of Missing Data, arXiv 2405.19466; Contextual
    Thompson Sampling via Generation of Missing Data, arXiv 2502.07064 (statistics of the past);
    Architectural and Inferential Inductive Biases for Exchangeable Sequence Modeling, arXiv
    2503.01215 (the two masks compared); Müller et al., arXiv 2112.10510 (prior-data fitted
    networks); Nguyen and Grover, arXiv 2207.04179 (transformer neural processes).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.contrib.module import nnx_module

import decisionppl as dp

try:
    import flax as _flax  # noqa: F401
except ImportError as error:
    raise ImportError(
        "decisionppl.models.neural needs flax: pip install 'decisionppl[nn]'."
    ) from error

from decisionppl.models._heads import Head, bernoulli, beta, binned, gaussian
from decisionppl.models._statistics import (
    Statistics,
    StatisticsNetwork,
    least_squares,
    successes,
)
from decisionppl.models._transformer import Cache, Context, InvariantTransformer, Transformer

__all__ = [
    "Cache",
    "Context",
    "Head",
    "InvariantTransformer",
    "Statistics",
    "StatisticsNetwork",
    "Transformer",
    "bernoulli",
    "beta",
    "binned",
    "gaussian",
    "least_squares",
    "parallel",
    "sequence",
    "successes",
]


def _covariates(net: Any, x: Any) -> jax.Array:
    """Covariates [..., length, num_features]; a number is the length of a sequence without."""
    if isinstance(x, int):
        x = jnp.zeros((x, 0))
    x = jnp.asarray(x, float)
    if x.ndim < 2 or x.shape[-1] != net.num_features:
        raise ValueError(
            f"x: expected covariates [..., length, {net.num_features}], got shape {list(x.shape)}."
            + (" Without covariates give the length, an int." if not net.num_features else "")
        )
    return x


def sequence(net: Any, name: str = "net") -> Callable:
    """The network as a NumPyro model that draws one observation after the other.

    Args:
        net: `Transformer`, `InvariantTransformer` or `StatisticsNetwork`.
        name: of the module; its parameters are the param site `name + "$params"`.

    Returns:
        A model of covariates x [length, num_features] (of an int, the length, where there are no
        covariates); outcome site `y` [length]. `handlers.substitute(model, data=params)` puts
        trained parameters in.
    """

    def model(x: Any) -> jax.Array:
        x = _covariates(net, x)
        call = nnx_module(name, net)  # outside the scan: parameters are no part of a step

        def step(carry: Any, x: jax.Array) -> tuple[Any, jax.Array]:
            y = dp.outcome("y", call(carry, x, method="law"))
            return call(carry, x, y, method="update"), y

        return scan(step, call(x.shape[0], method="start"), x)[1]

    return model


def parallel(net: Any, name: str = "net") -> Callable:
    """The network as a NumPyro model of given sequences: all conditionals at once, to train it.

    The log density is the mean over observations, so that losses are nats per observation. For
    an `InvariantTransformer` a context length is drawn for each sequence, uniform on
    0 ... T - 1, and the mean is over what comes after the context.

    Args:
        net: `Transformer`, `InvariantTransformer` or `StatisticsNetwork`.
        name: of the module, as for `sequence`.

    Returns:
        A model of (x [sequences, length, num_features], y [sequences, length]); x is not used
        where there are no covariates.
    """

    def model(x: Any, y: jax.Array) -> None:
        y = jnp.asarray(y)
        # under compilation a length is no longer an int, and y has it too
        x = _covariates(net, x) if net.num_features else jnp.zeros((*y.shape, 0))
        x = jnp.broadcast_to(x, (*y.shape, x.shape[-1]))
        call = nnx_module(name, net)
        size, length = y.shape
        weight = jnp.full(y.shape, 1.0 / y.size)
        if isinstance(net, InvariantTransformer):
            key = numpyro.prng_key()
            if key is None:
                raise ValueError(
                    "parallel: an InvariantTransformer draws context lengths; run the model under "
                    "handlers.seed (inference.train does)."
                )
            context = jax.random.randint(key, (size,), 0, length)
            law = call(x, y, context, method="laws")
            target = jnp.arange(length) >= context[:, None]
            weight = target / (target.sum(axis=1, keepdims=True) * size)
        else:
            law = call(x, y, method="laws")
        with (
            numpyro.plate("sequence", size, dim=-2),
            numpyro.plate("step", length, dim=-1),
            handlers.mask(mask=weight > 0),
            handlers.scale(scale=jnp.where(weight > 0, weight, 1.0)),
        ):
            numpyro.sample("y", law, obs=y)

    return model
