"""Hyperparameters given a history: their mode, draws about the mode, or draws by NUTS."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from decisionppl._inference import Rows
from decisionppl._minimise import minimise
from decisionppl.inference._buffer import filled
from decisionppl.inference._chains import Chains, Stats, chain_of, spread, unit_mass
from decisionppl.inference._likelihood import Latents

_CENTRE_DRAWS = 256
_PROPOSALS = 8  # of each draw that is kept
_DEGREES = 8.0  # of freedom of the proposals: tails heavier than those of most posteriors
_WIDEST = 2.0  # times the prior's standard deviation, in any direction of a proposal


class Fit(NamedTuple):
    """How the last search for the mode went; every leaf [restarts].

    Attributes:
        log_density: of hyperparameters and data, in unconstrained coordinates.
        converged: whether the gradient vanished.
    """

    log_density: jax.Array
    converged: jax.Array


class Weighing(NamedTuple):
    """How draws about the mode went.

    Attributes:
        fit: the search for the mode.
        mode: dict from hyperparameter site to unconstrained values.
        ess: effective number of the proposals, by their importance weights; a few mean that the
            posterior is far from what its mode and curvature say.
    """

    fit: Fit
    mode: dict[str, jax.Array]
    ess: jax.Array


class Search(NamedTuple):
    """How hyperparameters are found: `start(key)` and `fit(key, belief)` -> (position, state)."""

    start: Callable
    fit: Callable


Likelihood = Callable[[dict[str, jax.Array], Rows], jax.Array]


def nothing() -> Search:
    """Where there are no hyperparameters."""
    none = Fit(jnp.zeros(0), jnp.zeros(0, bool))
    return Search(lambda key: ({}, none), lambda key, belief: ({}, none))


class _Flat(NamedTuple):
    """Hyperparameters as one vector.

    Attributes:
        unravel: [n] -> dict from site to unconstrained values.
        centre, spread: of the prior, [n].
        draw: key -> a draw from the prior, [n].
        loss: `(vector, rows)` -> minus the log density of vector and data.
    """

    unravel: Callable
    centre: jax.Array
    spread: jax.Array
    draw: Callable
    loss: Callable


def _flat(latents: Latents, log_likelihood: Likelihood) -> _Flat:
    example, unravel = ravel_pytree(latents.prototype)

    def draw(key: jax.Array) -> jax.Array:
        return ravel_pytree(latents.draw(key))[0]

    def loss(z: jax.Array, rows: Rows) -> jax.Array:
        position = unravel(z)
        return -latents.log_prior(position) - log_likelihood(latents.constrain(position), rows)

    keys = jax.random.split(jax.random.key(20), _CENTRE_DRAWS)
    draws = np.asarray(jax.jit(jax.vmap(draw))(keys))
    low, centre, high = np.quantile(draws, [0.16, 0.5, 0.84], axis=0)
    as_array = partial(jnp.asarray, dtype=example.dtype)
    return _Flat(unravel, as_array(centre), as_array((high - low) / 2), draw, loss)


def modes(
    latents: Latents, log_likelihood: Likelihood, num_restarts: int, max_steps: int
) -> Search:
    """The mode of the hyperparameters' posterior, in unconstrained coordinates."""
    flat = _flat(latents, log_likelihood)

    def start(key: jax.Array) -> tuple:
        return jax.tree.map(lambda x: x[None], flat.unravel(flat.centre)), _none(flat, num_restarts)

    def fit(key: jax.Array, belief: Any) -> tuple:
        last = jax.tree.map(lambda x: x[0], belief.position)
        best, found = _mode(flat, key, last, filled(belief.buffer), num_restarts, max_steps)
        return jax.tree.map(lambda x: x[None], flat.unravel(best)), found

    return Search(start, fit)


def about_modes(
    latents: Latents,
    log_likelihood: Likelihood,
    num_restarts: int,
    max_steps: int,
    num_draws: int,
) -> Search:
    """Draws from the Laplace approximation at the mode, resampled by their importance weights."""
    flat = _flat(latents, log_likelihood)

    def start(key: jax.Array) -> tuple:
        position = jax.vmap(latents.draw)(jax.random.split(key, num_draws))
        ess = jnp.asarray(float(_PROPOSALS * num_draws), flat.centre.dtype)
        return position, Weighing(_none(flat, num_restarts), flat.unravel(flat.centre), ess)

    def fit(key: jax.Array, belief: Any) -> tuple:
        rows = filled(belief.buffer)
        keys = jax.random.split(key, 3)
        mode, found = _mode(flat, keys[0], belief.state.mode, rows, num_restarts, max_steps)
        root = _proposal(flat, mode, rows)
        count = _PROPOSALS * num_draws
        z = jax.random.normal(keys[1], (count, mode.size), mode.dtype)
        # chi-square over its degrees: with it z is Student's t
        scale = jax.random.gamma(keys[2], _DEGREES / 2, (count,), mode.dtype) * 2 / _DEGREES
        t = z / jnp.sqrt(scale)[:, None]
        proposals = mode + t @ root.T
        log_target = -_mapped(lambda x: flat.loss(x, rows), proposals)
        # the density of a multivariate t, up to what all proposals share
        log_proposal = -0.5 * (_DEGREES + mode.size) * jnp.log1p(jnp.sum(t**2, 1) / _DEGREES)
        log_weights = jnp.where(jnp.isfinite(log_target), log_target - log_proposal, -jnp.inf)
        share = jax.nn.softmax(log_weights)
        # without a finite weight the mode stands for all draws
        usable = jnp.any(jnp.isfinite(log_weights))
        # no weight above the mean times the root of their number: bias for variance, as in
        # truncated importance sampling (Ionides 2008)
        share = jnp.minimum(jnp.where(usable, share, 1.0), count**-0.5)
        kept = _systematic(jax.random.fold_in(key, 3), share / jnp.sum(share), num_draws)
        chosen = jnp.where(usable, proposals[kept], mode)
        ess = jnp.where(usable, jnp.sum(share) ** 2 / jnp.sum(share**2), 0.0)
        return jax.vmap(flat.unravel)(chosen), Weighing(found, flat.unravel(mode), ess)

    return Search(start, fit)


def _none(flat: _Flat, num_restarts: int) -> Fit:
    dtype = flat.centre.dtype
    return Fit(jnp.full(num_restarts, -jnp.inf, dtype), jnp.zeros(num_restarts, bool))


def _mode(
    flat: _Flat, key: jax.Array, last: Any, rows: Rows, num_restarts: int, max_steps: int
) -> tuple[jax.Array, Fit]:
    """The best point of all searches: from the last mode, the prior's centre, and prior draws."""
    first = ravel_pytree(last)[0]
    others = flat.centre[None]
    if num_restarts > 2:
        fresh = jax.vmap(flat.draw)(jax.random.split(key, num_restarts - 2))
        others = jnp.concatenate([others, fresh])
    starts = jnp.concatenate([first[None], others])[:num_restarts]
    found = _each(lambda z: flat.loss(z, rows), starts, max_steps)
    value = jnp.where(jnp.isfinite(found.value), found.value, jnp.inf)
    best = jnp.where(jnp.isfinite(jnp.min(value)), found.x[jnp.argmin(value)], first)
    return best, Fit(-found.value, found.converged)


def _each(loss: Callable, starts: jax.Array, max_steps: int) -> Any:
    """The minimum from each start."""
    found = _mapped(lambda x: minimise(loss, x[None], max_steps=max_steps), starts)
    return jax.tree.map(lambda x: x[:, 0], found)


def _mapped(fn: Callable, rows: jax.Array) -> Any:
    """A function of each row.

    On a CPU one after the other: batched, every search waits for that which takes longest, and
    small factorisations gain nothing from a batch.
    """
    return jax.lax.map(fn, rows) if jax.default_backend() == "cpu" else jax.vmap(fn)(rows)


def _proposal(flat: _Flat, mode: jax.Array, rows: Rows) -> jax.Array:
    """A root of the inverse curvature at the mode, [n, n].

    Coordinates are scaled by the prior's spread. Where the curvature says less than a prior that
    is `_WIDEST` times as wide, or is negative, it counts as that.
    """
    slope = jax.grad(lambda z: flat.loss(z, rows))
    columns = _mapped(lambda v: jax.jvp(slope, (mode,), (v,))[1], jnp.diag(flat.spread))
    curvature = columns * flat.spread
    curvature = jnp.where(jnp.isfinite(curvature), (curvature + curvature.T) / 2, 0.0)
    values, vectors = jnp.linalg.eigh(curvature)
    sd = jax.lax.rsqrt(jnp.maximum(values, _WIDEST**-2))
    return flat.spread[:, None] * vectors * sd


def _systematic(key: jax.Array, share: jax.Array, count: int) -> jax.Array:
    """Indices [count], each as often as its share says to within one."""
    places = (jnp.arange(count) + jax.random.uniform(key, (), share.dtype)) / count
    found = jnp.searchsorted(jnp.cumsum(share), places)
    return jnp.minimum(found, share.shape[0] - 1)


def chains(
    latents: Latents, log_likelihood: Likelihood, settings: dict, num_samples: int, num_draws: int
) -> Search:
    """Draws from the hyperparameters' posterior, by one chain of NumPyro's No-U-Turn sampler."""
    chain = chain_of(latents, settings, num_samples, log_likelihood)
    kept = np.linspace(num_samples // num_draws - 1, num_samples - 1, num_draws).astype(int)

    def unconstrained(draws: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return jax.vmap(latents.unconstrain)(jax.tree.map(lambda x: x[kept], draws))

    def start(key: jax.Array) -> tuple:
        position = jax.vmap(latents.draw)(jax.random.split(key, num_draws))
        mass = unit_mass(latents.prototype, settings)
        mass = jax.tree.map(lambda x: x[None], mass)
        first = jax.tree.map(lambda x: x[:1], position)
        stats = Stats(jnp.zeros(1, int), jnp.ones(1), jnp.zeros(1))
        return position, (Chains(first, jnp.ones(1), mass), stats)

    def fit(key: jax.Array, belief: Any) -> tuple:
        last, _ = belief.state
        keys = jax.random.split(key, 1)
        last, draws, stats = spread(chain, "sequential", keys, last, filled(belief.buffer))
        position = unconstrained(jax.tree.map(lambda x: x[0], draws))
        return position, (last, stats)

    return Search(start, fit)
