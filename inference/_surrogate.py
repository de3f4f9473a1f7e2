"""A Gaussian process given data: moments, what an outcome would tell, functions drawn."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from decisionppl._gaussian_process import Correction, NoFeatures, SamplePath
from decisionppl._inference import Rows
from decisionppl.inference._functions import (
    Layout,
    Seen,
    Worth,
    covariance,
    means_at,
    rows_seen,
    variances,
)
from decisionppl.inference._marginal import cholesky, log_density, solve, triangular_inverse

Values = Mapping[str, Any]


class Parts(NamedTuple):
    """What the model says, taken apart once; static.

    Attributes:
        processes: `world -> dict of GaussianProcess`.
        seen_layout, seen: of logged rows, see `observation`.
        worth: layout and function of utilities, see `worth`, of rewards less costs (True) and of
            rewards alone (False); empty if they are not linear in the functions.
    """

    processes: Callable
    seen_layout: Layout
    seen: Callable
    worth: dict[bool, tuple[Layout, Callable]]


class View(NamedTuple):
    """The posterior at one value of the hyperparameters, ready to be asked.

    Attributes:
        world: hyperparameters.
        laws: dict from site to `GaussianProcess`.
        rows: `Seen` of the history, padding neutral.
        root: Cholesky factor [n, n] of the covariance of all logged values.
        weights: [n], its inverse times the residuals.
    """

    world: Any
    laws: Any
    rows: Seen
    root: jax.Array
    weights: jax.Array


def _family(layout: Layout, inputs: Any, coefficients: jax.Array) -> tuple:
    return layout.sites, inputs, coefficients


def residuals(parts: Parts, laws: Values, rows: Seen) -> jax.Array:
    """Logged values less what the prior mean says, [rows * outcomes]."""
    expected = rows.offset
    if parts.seen_layout.keep:
        at = means_at(laws, parts.seen_layout.sites, rows.inputs)
        expected = expected + jnp.einsum("nop,np->no", rows.coefficients, at)
    return (rows.values - expected).ravel()


def total_covariance(parts: Parts, laws: Values, rows: Seen) -> jax.Array:
    """Covariance of all logged values, noise included, [n, n]; unit where there is padding."""
    mine = _family(parts.seen_layout, rows.inputs, rows.coefficients)
    n = rows.noise.size
    return covariance(laws, mine, mine).reshape(n, n) + jnp.diag(rows.noise.ravel() ** 2)


def log_marginal(parts: Parts, world: Values, rows: Rows) -> jax.Array:
    """Log density of the logged values at given hyperparameters, the functions summed out."""
    seen = rows_seen(parts.seen, world, rows)
    laws = parts.processes(world)
    value = log_density(total_covariance(parts, laws, seen), residuals(parts, laws, seen))
    # padding: values of zero under a law of unit variance
    padding = jnp.sum(~rows.mask) * seen.noise.shape[1]
    return value + 0.5 * jnp.log(2 * jnp.pi) * padding


def factorised(parts: Parts, world: Values, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """Cholesky factor and weights of a history."""
    seen = rows_seen(parts.seen, world, rows)
    laws = parts.processes(world)
    root = cholesky(total_covariance(parts, laws, seen))
    return root, solve(root, residuals(parts, laws, seen))


def view_of(parts: Parts, world: Values, rows: Rows, root: jax.Array, weights: jax.Array) -> View:
    """The posterior, ready to be asked."""
    return View(world, parts.processes(world), rows_seen(parts.seen, world, rows), root, weights)


def half_of(parts: Parts, view: View, family: tuple) -> tuple[jax.Array, jax.Array]:
    """Prior covariance [m, n] of a family with the data; the same times the inverse root, [n, m].

    The posterior covariance of two families is the prior's less the product of their halves.
    """
    data = _family(parts.seen_layout, view.rows.inputs, view.rows.coefficients)
    cross = covariance(view.laws, family, data)
    cross = cross.reshape(cross.shape[0] * cross.shape[1], -1)
    return cross, solve_triangular(view.root, cross.T, lower=True)


class Family(NamedTuple):
    """Linear quantities, each with its place relative to the data.

    Attributes:
        family: sites, inputs, coefficients [count, outcomes, points].
        mean: posterior means [count, outcomes].
        half: [n, count * outcomes], see `half_of`.
    """

    family: tuple
    mean: jax.Array
    half: jax.Array


def _placed(parts: Parts, view: View, layout: Layout, inputs: Any, offset: jax.Array,
            coefficients: jax.Array) -> Family:  # fmt: skip
    family = _family(layout, inputs, coefficients)
    mean = offset
    if layout.keep:
        at = means_at(view.laws, layout.sites, inputs)
        mean = mean + jnp.einsum("nop,np->no", coefficients, at)
    cross, half = half_of(parts, view, family)
    return Family(family, mean + (cross @ view.weights).reshape(mean.shape), half)


def worths(
    parts: Parts, view: View, args: tuple, actions: Values, data: Values, net: bool = True
) -> Family:
    """Utilities of actions [actions, ...]; one outcome each."""
    layout, value = parts.worth[net]
    found: Worth = jax.vmap(value, (None, None, 0, None))(view.world, args, dict(actions), data)
    return _placed(
        parts, view, layout, found.inputs, found.offset[:, None], found.coefficients[:, None]
    )


def outcomes(
    parts: Parts, view: View, args: tuple, actions: Values, data: Values, example: Values
) -> tuple[Family, jax.Array]:
    """What would be logged after actions, and its noise [actions, outcomes]."""

    def one(action: Values) -> Seen:
        return parts.seen(view.world, args, {**example, **data, **action})

    found = jax.vmap(one)(dict(actions))
    placed = _placed(parts, view, parts.seen_layout, found.inputs, found.offset, found.coefficients)
    return placed, found.noise


def cross_covariance(view: View, left: Family, right: Family) -> jax.Array:
    """Posterior covariance [left, outcomes, right, outcomes]."""
    prior = covariance(view.laws, left.family, right.family)
    return prior - (left.half.T @ right.half).reshape(prior.shape)


def variance(view: View, placed: Family) -> jax.Array:
    """Posterior variances [count] of quantities with one outcome each, not below rounding."""
    sites, inputs, weights = placed.family
    if not sites:
        return jnp.zeros(weights.shape[0])
    prior = variances(view.laws, sites, inputs, weights[:, 0])
    floor = 4 * jnp.finfo(prior.dtype).eps * prior
    return jnp.maximum(prior - jnp.sum(placed.half**2, axis=0), floor)


def block_covariances(view: View, placed: Family) -> jax.Array:
    """Posterior covariance of the outcomes of each action, [actions, outcomes, outcomes]."""
    sites, inputs, weights = placed.family
    count, width = weights.shape[:2]
    if width == 1:
        return variance(view, placed)[:, None, None]

    def one(x: Any, w: jax.Array) -> jax.Array:
        mine = (sites, jax.tree.map(lambda a: a[None], x), w[None])
        return covariance(view.laws, mine, mine)[0, :, 0, :]

    prior = jax.vmap(one)(tuple(inputs), weights)
    half = placed.half.reshape(-1, count, width)
    return prior - jnp.einsum("nao,nap->aop", half, half)


def drawn_functions(parts: Parts, view: View, key: Any) -> dict[str, SamplePath]:
    """One posterior draw of every function, by conditioning a prior draw on the data.

    References:
        Wilson et al., Efficiently Sampling Functions from Gaussian Process Posteriors, arXiv
        2002.09309, equation 9 (Matheron's rule).
    """
    noise_key, *keys = jax.random.split(key, 1 + len(view.laws))
    try:
        prior = {n: law.sample(k) for k, (n, law) in zip(keys, view.laws.items(), strict=True)}
    except NotImplementedError as error:
        # without one function the data cannot be simulated, so none can be drawn
        missing = NoFeatures(str(error))
        laws = view.laws.items()
        return {n: SamplePath(law.mean_function, missing, noise_key) for n, law in laws}
    rows, layout = view.rows, parts.seen_layout
    noise = rows.noise * jax.random.normal(noise_key, rows.noise.shape)
    parts_of = []
    for site, x in zip(layout.sites, rows.inputs, strict=True):
        count, points = x[0].shape[:2]
        flat = tuple(a.reshape(count * points, -1) for a in x)
        values = prior[site].at(flat) - view.laws[site].mean_function(flat)
        parts_of.append(values.reshape(count, points))
    at = jnp.concatenate(parts_of, axis=1) if parts_of else jnp.zeros((rows.noise.shape[0], 0))
    simulated = jnp.einsum("nop,np->no", rows.coefficients, at) + noise
    # padding has zero coefficients, so whatever noise it draws is told nothing
    weights = view.weights - solve(view.root, simulated.ravel())
    weights = weights.reshape(rows.noise.shape)
    corrections: dict[str, list[Correction]] = {n: [] for n in prior}
    start = 0
    for site, x in zip(layout.sites, rows.inputs, strict=True):
        count, points = x[0].shape[:2]
        spread = jnp.einsum("nop,no->np", rows.coefficients[..., start : start + points], weights)
        start += points
        flat = tuple(a.reshape(count * points, -1) for a in x)
        corrections[site].append(Correction(view.laws[site].kernel, flat, spread.ravel()))
    return {n: dataclasses.replace(f, corrections=tuple(corrections[n])) for n, f in prior.items()}


def leave_one_out(view: View) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of each logged value given all others, [rows, outcomes].

    From one inverse, as Rasmussen and Williams (2006), equation 5.12.
    """
    precision = jnp.sum(triangular_inverse(view.root) ** 2, axis=0)
    values = view.rows.values
    mean = values - (view.weights / precision).reshape(values.shape)
    return mean, jax.lax.rsqrt(precision).reshape(values.shape)
