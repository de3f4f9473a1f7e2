"""Points in clusters, labels from one of them; public through `decisionppl.models.labelling`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import decisionppl as dp
from decisionppl import kernels, lookahead
from decisionppl._play import as_key
from decisionppl.inference._marginal import cholesky


class Labelling(NamedTuple):
    """A pool of candidates, a population, and what is known at the start.

    Attributes:
        labelled: Rows of the labels that there are.
        candidates: dict from action site to inputs [candidates, ...].
        labels: the labels of the candidates, [candidates]: to be revealed, not to be planned with.
        functional: what is to be known about the population.
        truth: its true value, a scalar.
    """

    labelled: dp.Rows
    candidates: dict[str, Any]
    labels: jax.Array
    functional: lookahead.Functional
    truth: jax.Array


def regression(
    dim: int = 1,
    *,
    lengthscale: float = 1.0,
    variance: float = 0.69,
    noise: float = 0.1,
    mean: float = 0.0,
) -> Callable:
    """One label of an unknown function: the action is the input `x` [dim], the outcome `label`.

    Args:
        dim: number of inputs.
        lengthscale, variance: of the Gaussian process, with a squared-exponential kernel.
        noise: standard deviation of a label.
        mean: of the process.

    Returns:
        A one-round model without arguments.

    Raises:
        ValueError: a scale that is not positive.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.models import labelling
        >>> sorted(dp.play(labelling.regression(), 0)())
        ['f', 'label', 'x']
    """
    for name, value in (("lengthscale", lengthscale), ("variance", variance), ("noise", noise)):
        if not value > 0:
            raise ValueError(f"{name}: expected a positive number, got {value!r}.")
    kernel: Any = variance * kernels.RBF(lengthscale)

    def model() -> None:
        f: Any = numpyro.sample("f", dp.GaussianProcess(kernel, mean))
        x = dp.action("x", dist.Normal(0, 10).expand([dim]).to_event(1))
        dp.outcome("label", dist.Normal(f(x), noise))

    return model


def cluster_biased(
    key: Any,
    predictor: Callable | None = None,
    *,
    dim: int = 1,
    num_anchors: int = 51,
    num_labelled: int = 100,
    pool: tuple[int, int] = (250, 5),
    population: tuple[int, int, int] = (10, 10, 1),
    lengthscale: float = 1.0,
    variance: float = 0.69,
    noise: float = 0.1,
) -> Labelling:
    r"""A draw of the synthetic generator, with the truth of `regression`.

    Pure: it works under `jit` and `vmap`, with one compilation for all keys.

    Args:
        key: PRNG key (typed or raw) or an int seed.
        predictor: the predictor under evaluation, `inputs [points, dim] -> [points]`; None says 0.
        dim: d, number of inputs.
        num_anchors: anchors, the one at the origin included.
        num_labelled: labelled points, all about anchor 0.
        pool: candidates about anchor 0, and about each other anchor.
        population: targets about anchor 0, about each anchor of the nearer half, and about each
            beyond.
        lengthscale, variance, noise: as for `regression`.

    Returns:
        Labelling; `functional` is the squared loss of the predictor over the population.

    Raises:
        ValueError: fewer than two anchors or no labelled point.

    Example:
        >>> from decisionppl.models import labelling
        >>> found = labelling.cluster_biased(0)
        >>> found.candidates["x"].shape, found.functional.centre.shape
        ((500, 1), (285,))

    References:
        arXiv 2502.06076.
    """
    if num_anchors < 2 or num_labelled < 1:
        raise ValueError(
            f"expected two anchors or more and a labelled point or more, got num_anchors="
            f"{num_anchors}, num_labelled={num_labelled}."
        )
    near = (num_anchors - 1) // 2
    far = num_anchors - 1 - near
    anchor_of = {
        "labelled": np.zeros(num_labelled, int),
        "pool": np.repeat(np.arange(num_anchors), [pool[0], *[pool[1]] * (num_anchors - 1)]),
        "population": np.repeat(
            np.arange(num_anchors), [population[0], *[population[1]] * near, *[population[2]] * far]
        ),
    }
    spread = np.concatenate([np.full(len(a), 0.5 if n == "labelled" else 0.25)
                             for n, a in anchor_of.items()])  # fmt: skip
    every = np.concatenate(list(anchor_of.values()))
    place_key, point_key, value_key, noise_key = jax.random.split(as_key(key), 4)
    direction = jax.random.normal(place_key, (num_anchors, dim))
    direction = direction / jnp.linalg.norm(direction, axis=1, keepdims=True)
    anchors = np.sqrt(dim) * np.arange(num_anchors)[:, None] * direction
    x = anchors[every] + spread[:, None] * jax.random.normal(point_key, (len(every), dim))
    kernel: Any = variance * kernels.RBF(lengthscale)
    root = cholesky(kernel((x,), (x,)))
    f = root @ jax.random.normal(value_key, (len(every),))
    y = f + noise * jax.random.normal(noise_key, f.shape)
    bounds = np.cumsum([len(a) for a in anchor_of.values()])[:-1]
    (x0, x1, x2), (y0, y1, _), (_, _, f2) = (jnp.split(v, bounds) for v in (x, y, f))
    says = jnp.zeros(len(x2)) if predictor is None else predictor(x2)
    goal = lookahead.squared_loss({"x": x2}, says)
    known = dp.Rows((), {"x": x0, "label": y0}, jnp.ones(num_labelled, bool))
    return Labelling(known, {"x": x1}, y1, goal, goal(f2))
