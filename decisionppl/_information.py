r"""Expected information gain of batches: nested Monte Carlo, Laplace, exact.

What labels y of a batch S are expected to tell about the unknowns :math:`\theta`, in nats,

.. math:: I(S) = E\, \log \frac{p(y | \theta, S)}{p(y | S)}.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree

from decisionppl._imagined import table
from decisionppl._labelling import Problem, joint_of, law_of
from decisionppl._play import as_key, example_run

Array = jax.Array
_METHODS = ("exact", "nested", "laplace")
# variance is a function of the mean, so (d mean)^2 / variance is the Fisher information; of the
# Normal too, for a known scale
_FAMILIES = (
    dist.Normal, dist.BernoulliProbs, dist.BernoulliLogits, dist.Poisson, dist.BinomialProbs,
    dist.BinomialLogits, dist.Exponential, dist.GeometricProbs, dist.GeometricLogits,
)  # fmt: skip


def information_gain(
    key: Any,
    found: Problem,
    belief: Any,
    batches: Any,
    *,
    method: str = "nested",
    about: str = "world",
    num_outcomes: int = 256,
    num_worlds: int = 1024,
) -> Array:
    r"""Expected information gain of batches of labels, in nats.

    - "exact": for a Gaussian belief, :math:`\tfrac12 \log \det(I + N^{-1} K_{SS})`, N the noise
      variances, K the covariance of the candidates' means; about the targets,
      :math:`\tfrac12 \log \det(K_{SS} + N) - \tfrac12 \log \det(K_{SS|T} + N)`.
    - "nested": :math:`\frac1M \sum_m \log p(y_m | \theta_m) - \log \frac1{L+1} \sum_{l=0}^{L}
      p(y_m | \theta_l)`, with :math:`\theta_0 = \theta_m` among the worlds of the inner average. Of
      any model; its expectation is a lower bound, at most :math:`\log(L + 1)`, and rises to the
      truth with L.
    - "laplace": :math:`\tfrac12 E \log \det(I + C\, F_S(\theta))`, C the covariance of drawn worlds
      and F the Fisher information of the batch: the posterior taken as Gaussian about each truth.
      Exact for linear models with Gaussian noise and belief, up to the draws.

    Args:
        key: PRNG key (typed or raw) or an int seed; "exact" needs none.
        found: the problem.
        belief: of its engine.
        batches: int [batches, k], indices of distinct candidates; -1 is no label.
        method: "exact", "nested" or "laplace".
        about: "world", all unknowns; or "targets", the means there, with "exact".
        num_outcomes: M, labels imagined, with "nested".
        num_worlds: L, worlds of the inner average; with "laplace", draws.

    Returns:
        [batches].

    Raises:
        ValueError: an unknown method; "exact" for a belief that is not Gaussian; about the targets
            with another method; indices that are no matrix.
        TypeError: "laplace" for a label whose law is no one-parameter exponential family, or for
            latents that are functions.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl import lookahead
        >>> def model():
        ...     w = numpyro.sample("w", dist.Normal(0, 1))
        ...     dp.reward("y", dist.Normal(w * dp.action("x", dist.Normal(0, 1)), 1.0))
        >>> engine = dp.inference.conjugate(model)
        >>> x = jnp.array([0.0, 1.0, 3.0])
        >>> pool = lookahead.problem(model, engine, x, lookahead.mean_outcome(x))
        >>> gain = lookahead.information_gain(0, pool, engine.init(0), [[0], [2]], method="exact")
        >>> [round(float(g), 3) for g in jnp.exp(2 * gain)]             # 1 + x^2
        [1.0, 10.0]

    References:
        Lindley (1956); Rainforth et al., arXiv 1709.06181, and Foster et al., arXiv 1903.05480
        (nested and contrastive estimators); Long et al., Fast estimation of expected information
        gains for Bayesian experimental designs based on Laplace approximations (2013).
    """
    batches = jnp.asarray(batches)
    if batches.ndim != 2 or not jnp.issubdtype(batches.dtype, jnp.integer):
        raise ValueError(
            f"batches: expected indices int [batches, k], got {batches.dtype} "
            f"{list(batches.shape)}."
        )
    if method not in _METHODS:
        raise ValueError(f"method: expected one of {_METHODS}, got {method!r}.")
    if about not in ("world", "targets") or (about == "targets" and method != "exact"):
        raise ValueError(
            f'about: expected "world", or "targets" with method="exact", got {about!r} with '
            f"{method!r}."
        )
    if method == "exact":
        if not found.is_gaussian:
            raise ValueError(
                'method="exact" needs a Gaussian belief, which this problem has not; use "nested".'
            )
        return _exact(found, belief, batches, about)
    if method == "laplace":
        _check_family(found)
        return _laplace(as_key(key), found, belief, batches, num_worlds)
    return _nested(as_key(key), found, belief, batches, num_outcomes, num_worlds)


@partial(jax.jit, static_argnums=3)
def _exact(found: Problem, belief: Any, batches: Array, about: str) -> Array:
    joint = joint_of(found, belief)

    def log_det(batch: Array, covariance: Array) -> Array:
        """Of standardised labels, [draws]."""
        real = batch >= 0
        root = jnp.where(real, 1 / joint.noise[:, batch], 0.0)
        block = covariance * root[:, :, None] * root[:, None, :]
        return jnp.linalg.slogdet(jnp.eye(batch.shape[0]) + block)[1]

    def one(batch: Array) -> Array:
        block = joint.label_covariance[:, batch][:, :, batch]
        total = log_det(batch, block)
        if about == "targets":
            cross = joint.cross[:, batch]
            solved = jax.vmap(_pseudo_solve)(joint.covariance, jnp.swapaxes(cross, 1, 2))
            total = total - log_det(batch, block - cross @ solved)
        return 0.5 * jnp.mean(total)

    return jax.lax.map(one, batches)


def _pseudo_solve(covariance: Array, right: Array) -> Array:
    """The covariance of targets is singular where they are many and close."""
    values, vectors = jnp.linalg.eigh(covariance)
    size = covariance.shape[-1]
    floor = size * jnp.finfo(values.dtype).eps * values[-1]
    inverse = jnp.where(values > floor, 1 / jnp.where(values > floor, values, 1.0), 0.0)
    return vectors @ (inverse[:, None] * (vectors.T @ right))


@partial(jax.jit, static_argnums=(4, 5))
def _nested(
    key: Array, found: Problem, belief: Any, batches: Array, num_outcomes: int, num_worlds: int
) -> Array:
    imagined = table(found, key, belief, num_outcomes, num_worlds)

    def one(batch: Array) -> Array:
        real = batch >= 0
        own = jnp.sum(jnp.where(real, imagined.own[:, batch], 0.0), axis=-1)
        others = jnp.sum(jnp.where(real, imagined.log_likelihood[..., batch], 0.0), axis=-1)
        every = jnp.concatenate([own[:, None], others], axis=1)
        marginal = jax.nn.logsumexp(every, axis=1) - jnp.log(num_worlds + 1.0)
        return jnp.mean(own - marginal)

    return jax.lax.map(one, batches)


@partial(jax.jit, static_argnums=4)
def _laplace(key: Array, found: Problem, belief: Any, batches: Array, num_worlds: int) -> Array:
    worlds = found.inference.sample(key, belief, num_worlds)
    flat = jax.vmap(lambda w: ravel_pytree(w)[0])(worlds)
    unravel: Callable = ravel_pytree(jax.tree.map(lambda w: w[0], worlds))[1]
    centred = flat - jnp.mean(flat, axis=0)
    root = jnp.linalg.qr(centred / jnp.sqrt(num_worlds - 1), mode="r")

    def whitened(vector: Array) -> Array:
        """Slopes of the candidates' means over their deviations, [candidates, latents]."""

        def mean(vector: Array, action: Any) -> tuple[Array, Array]:
            law = law_of(found, unravel(vector), action)["fn"]
            return law.mean, law.variance

        def one(action: Any) -> Array:
            slope, variance = jax.grad(lambda v: mean(v, action), has_aux=True)(vector)
            return slope / jnp.sqrt(variance)

        return jax.vmap(one)(found.candidates) @ root.T

    slopes = jax.lax.map(whitened, flat, batch_size=64)

    def gain(batch: Array) -> Array:
        rows = jnp.where((batch >= 0)[:, None], slopes[:, batch], 0.0)
        matrix = jnp.eye(batch.shape[0]) + rows @ jnp.swapaxes(rows, 1, 2)
        return 0.5 * jnp.mean(jnp.linalg.slogdet(matrix)[1])

    return jax.lax.map(gain, batches)


def _check_family(found: Problem) -> None:
    trace = example_run(found.model, found.args, at_mean=True)
    law = trace[found.label]["fn"]
    if not isinstance(law, _FAMILIES):
        raise TypeError(
            f"label site {found.label!r} is {type(law).__name__}: the Laplace estimate reads the "
            "Fisher information off mean and variance, for "
            f'{[f.__name__ for f in _FAMILIES]}. Use method="nested".'
        )
    functions = [n for n, s in trace.items() if s["type"] == "sample" and callable(s["value"])]
    if functions:
        raise TypeError(
            f"latent site {functions[0]!r} holds a function: the Laplace estimate needs arrays. "
            'Use method="exact" or "nested".'
        )
