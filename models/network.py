r"""Units on a known graph: each is affected by its own treatment and by those of its neighbours.

With the treatment :math:`Z_i` of unit i and the share :math:`e_i` of treated among its neighbours,
the exposure, the outcome of a unit is

.. math:: Y_i \sim \mathrm{Normal}(\alpha + \delta Z_i + \gamma h(e_i) + \iota Z_i h(e_i),
    \sigma),

where h grows from h(0) = 0 to h(1) = 1 and is

- "linear": :math:`h(e) = e`; with :math:`\iota = 0` effects add up over neighbours;
- "saturating": :math:`h(e) = (1 - \exp(-\kappa e)) / (1 - \exp(-\kappa))`, the first treated
  neighbours matter most;
- "threshold": :math:`h(e) = 1\{e \ge q\}`, as where a product is worth having once enough have it.

The global effect, all treated less none, is :math:`\delta + \gamma + \iota` for units that have
neighbours, and :math:`\delta` for the others.

References:
    Aronow and Samii, arXiv 1305.6156, for exposures; Peng, Ye and Zheng, arXiv 2503.02271, for the
    estimator that such models are made to test. The numbers are our own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import decisionppl as dp
from decisionppl.inference.network import Graph
from decisionppl.models._arguments import check_number

_RESPONSES = ("linear", "saturating", "threshold")


class NetworkModel(NamedTuple):
    """A model of units on a graph.

    Attributes:
        model: `(design)`, see `decisionppl.inference.designs`.
        effect: the global effect, in closed form; of the parameters given, if they are known.
    """

    model: Callable
    effect: float


def spillovers(
    graph: Graph,
    *,
    response: str = "saturating",
    base: float = 0.85,
    direct: float = 0.65,
    spill: float = 0.75,
    interaction: float = 0.0,
    noise: float = 0.9,
    curvature: float = 1.0,
    threshold: float = 0.5,
    unknown: bool = False,
) -> NetworkModel:
    r"""Outcomes that spill over to neighbours.

    Args:
        graph: over units, see `decisionppl.inference.network.graph`.
        response: "linear", "saturating" or "threshold".
        base: outcome without treatment :math:`\alpha`.
        direct: effect of the own treatment :math:`\delta`.
        spill: effect of all neighbours' treatment :math:`\gamma`.
        interaction: how much more that is for the treated :math:`\iota`.
        noise: standard deviation :math:`\sigma`.
        curvature: of the saturating response :math:`\kappa`.
        threshold: of the threshold response q, above 0.
        unknown: make the coefficients a latent site `coefficients` [4], standard normal: the
            numbers above are then not used.

    Returns:
        `NetworkModel`; sites `treat` (the action), `exposure` [units] and the reward `outcome`
        [units].

    Raises:
        ValueError: a parameter out of range.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.inference import designs, network
        >>> from decisionppl.models import network as gallery
        >>> path = network.graph([[0, 1], [1, 2]])
        >>> market = gallery.spillovers(path, response="linear", noise=1e-6)
        >>> trace = dp.play(market.model, 0, policy=1)(designs.unit(3))
        >>> round(float(trace["outcome"]["value"].mean()), 2), round(market.effect, 2)
        (2.25, 1.4)
    """
    if not isinstance(graph, Graph):
        raise TypeError(f"graph: expected network.graph(...), got {type(graph).__name__}.")
    if response not in _RESPONSES:
        raise ValueError(f"response: expected one of {_RESPONSES}, got {response!r}.")
    numbers = {"base": base, "direct": direct, "spill": spill, "interaction": interaction}
    for name, x in numbers.items():
        check_number(name, x)
    check_number("noise", noise, above=0)
    check_number("curvature", curvature, above=0)
    check_number("threshold", threshold, above=0)
    if threshold > 1:
        raise ValueError(f"threshold: expected a share of neighbours up to 1, got {threshold!r}.")

    def rise(share: Any) -> Any:
        if response == "linear":
            return share
        if response == "threshold":
            # shares are quotients of whole numbers
            return jnp.where(share >= threshold - 1e-6, 1.0, 0.0)
        return jnp.expm1(-curvature * share) / np.expm1(-curvature)

    def model(design: Any) -> Any:
        if unknown:
            prior = dist.Normal(0.0, 1.0).expand([4]).to_event(1)
            values = jnp.asarray(numpyro.sample("coefficients", prior))
        else:
            values = jnp.asarray(list(numbers.values()))
        treated = design("treat")
        exposure = numpyro.deterministic("exposure", graph.share(treated))
        felt = rise(exposure)
        mean = values[0] + values[1] * treated + (values[2] + values[3] * treated) * felt
        return dp.reward("outcome", dist.Normal(mean, noise))

    connected = float(np.mean(np.asarray(graph.degree) > 0))
    return NetworkModel(model, direct + (spill + interaction) * connected)
