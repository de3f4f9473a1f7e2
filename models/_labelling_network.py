"""A network and a frozen one; public through `decisionppl.models.labelling`."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist

import decisionppl as dp


class Network(NamedTuple):
    """A network plus a frozen network of the same shape.

    Attributes:
        model: one round: the action `x` [dim], the outcome `label`.
        frozen: the sites of the second, for `inference.ensemble(..., frozen=frozen)`.
    """

    model: Callable
    frozen: tuple[str, ...]


def network(
    dim: int = 1,
    *,
    hidden: tuple[int, ...] = (50, 50),
    prior_scale: float = 1.0,
    noise: float = 0.1,
) -> Network:
    r"""One label of an unknown function that is a sum of two networks, one of them frozen.

    :math:`y = \mathrm{net}(w, x) + \alpha\, \mathrm{net}(v, x) + \epsilon`, with ReLU layers and
    independent normal weights of variance 2 / inputs (1 / inputs in the last layer).

    Args:
        dim: number of inputs.
        hidden: widths of the hidden layers.
        prior_scale: :math:`\alpha`.
        noise: standard deviation of a label.

    Returns:
        Network.

    Raises:
        ValueError: a scale that is not positive, or no hidden layer.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.models import labelling
        >>> net = labelling.network(hidden=(8,))
        >>> engine = dp.inference.ensemble(net.model, frozen=net.frozen, num_members=4)
        >>> engine.sample(0, engine.init(1), 4)["fit_0"].shape
        (4, 2, 8)

    References:
        Osband, Aslanides and Cassirer, arXiv 1806.03335.
    """
    for name, value in (("prior_scale", prior_scale), ("noise", noise)):
        if not value > 0:
            raise ValueError(f"{name}: expected a positive number, got {value!r}.")
    if not hidden:
        raise ValueError("hidden: expected at least one width, got none.")
    widths = [dim, *hidden, 1]

    def net(prefix: str) -> Callable:
        layers = []
        for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            gain = 1.0 if i == len(hidden) else 2.0
            law = dist.Normal(0, np.sqrt(gain / inputs)).expand([inputs + 1, outputs])
            layers.append(numpyro.sample(f"{prefix}_{i}", law.to_event(2)))

        def value(x: Any) -> Any:
            for layer in layers[:-1]:
                x = jax.nn.relu(x @ layer[1:] + layer[0])
            return (x @ layers[-1][1:] + layers[-1][0])[0]

        return value

    def model() -> None:
        fit, prior = net("fit"), net("prior")
        x = dp.action("x", dist.Normal(0, 10).expand([dim]).to_event(1))
        dp.outcome("label", dist.Normal(fit(x) + prior_scale * prior(x), noise))

    return Network(model, tuple(f"prior_{i}" for i in range(len(widths) - 1)))
