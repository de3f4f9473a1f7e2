"""Streaming Laplace: a Gaussian belief, updated to second order as rounds arrive."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer

from decisionppl._inference import Inference, Rows
from decisionppl._play import example_run, known_now, play
from decisionppl._space import as_actions
from decisionppl._structure import (
    dependent_outputs,
    depends,
    is_affine,
    is_quadratic,
    selected_row,
)
from decisionppl._utility import split_utility
from decisionppl.inference._gaussian import Gaussian, JointNormal, Layout, draw
from decisionppl.inference._likelihood import (
    Latents,
    check_logged,
    latents_of,
    logged_sites,
    row_log_likelihood,
)
from decisionppl.inference._newton import Terms, absorb_row, absorb_rows, curvature_of
from decisionppl.inference._prior import gaussian_prior, is_block_diagonal, prior_belief

Values = Mapping[str, Any]


class Parts(NamedTuple):
    """A Gaussian engine before it is closed into an `Inference`.

    Attributes:
        latents: the analysed model.
        layout: blocks of the latents.
        prior: the Gaussian prior.
        prior_exact: whether the prior is that Gaussian.
        block_of: `(args, sites) -> block` that a row reads.
        terms: `frozenset of logged sites -> Terms`.
    """

    latents: Latents
    layout: Layout
    prior: Gaussian
    prior_exact: bool
    block_of: Callable
    terms: Callable


def _whole(latents: Latents) -> Layout:
    return Layout(latents.prototype, False)


def _layout(latents: Latents, row_value: Callable) -> tuple[Layout, Callable | None]:
    """Blocks, where every row is proven to read only one of them."""
    leading = {p.shape[:1] for p in latents.prototype.values()}
    if len(leading) != 1 or leading == {()} or leading <= {(1,)}:
        return _whole(latents), None
    rows = selected_row(row_value, latents.prototype, latents.args, latents.sites)
    if rows is None:
        return _whole(latents), None
    return Layout(latents.prototype, True), rows.index


def analyse(model: Callable, args: tuple, *, blocked: bool = True) -> Parts:
    """Structure, prior and likelihood terms of a model for a Gaussian belief."""
    latents = latents_of(model, args)
    row = row_log_likelihood(model)

    def row_value(z: Values, args: tuple, sites: Values) -> jax.Array:
        return row(latents.constrain(z), args, sites)

    layout, reader = _layout(latents, row_value) if blocked else (_whole(latents), None)
    prior = gaussian_prior(latents)
    if layout.blocked and not (prior.exact and is_block_diagonal(prior, layout)):
        layout, reader = _whole(latents), None

    def block_of(args: tuple, sites: Values) -> jax.Array:
        if reader is None:
            return jnp.zeros((), int)
        return jnp.clip(reader(args, {**latents.sites, **sites}), 0, layout.num_blocks - 1)

    cache: dict[frozenset, Terms] = {}

    def terms(names: frozenset) -> Terms:
        if names not in cache:
            cache[names] = _terms(latents, layout, row_value, names)
        return cache[names]

    belief = prior_belief(prior, layout, latents)
    return Parts(latents, layout, belief, prior.exact, block_of, terms)


def _terms(latents: Latents, layout: Layout, row_value: Callable, names: frozenset) -> Terms:
    """Likelihood terms of rows that log the sites `names`."""
    sites = {n: v for n, v in latents.sites.items() if n in names}
    world = jax.jit(latents.constrain)(latents.prototype)
    check_logged(latents.model, latents.args, sites, world)

    def value(v: jax.Array, row: tuple) -> jax.Array:
        return local_value(layout.one(v), *row)[0]

    def leaves(v: jax.Array, row: tuple) -> list[jax.Array]:
        return local_leaves(layout.one(v), *row)

    def law_leaves(z: Values, args: tuple, sites: Values) -> list[jax.Array]:
        world = latents.constrain(z)
        trace = play(latents.model, jax.random.key(0), world=world, data=sites)(*args)
        found = [jax.tree.leaves(s["fn"]) for s in logged_sites(trace, sites).values()]
        flat = [jnp.asarray(x) for leaf in found for x in leaf]
        return [x.ravel() for x in flat if jnp.issubdtype(x.dtype, jnp.floating)]

    example = (latents.prototype, latents.args, sites)
    local_value = _localised(lambda *x: [row_value(*x)], layout, example)
    local_leaves = _localised(law_leaves, layout, example)
    v, row = jnp.zeros(layout.dim), (latents.args, sites)
    varies = dependent_outputs(leaves, 0, v, row)
    shapes = jax.eval_shape(leaves, v, row)
    count = sum(x.size for x, d in zip(shapes, varies, strict=True) if d)

    def parameters(v: jax.Array, row: tuple) -> jax.Array:
        kept = [x for x, d in zip(leaves(v, row), varies, strict=True) if d]
        return jnp.concatenate(kept) if kept else jnp.zeros(1)

    curvature = curvature_of(value, parameters, max(count, 1), layout.dim)
    return Terms(value, curvature, is_quadratic(value, v, row))


def _localised(fn: Callable, layout: Layout, example: tuple) -> Callable:
    """`fn` as a function of the block that it reads; the whole is one block if not blocked."""
    if not layout.blocked:
        return fn
    rows = selected_row(fn, *example)
    if rows is None:  # nothing of the latents is read, so any block will do
        return lambda one, *rest: fn(
            {n: jnp.broadcast_to(x, layout.prototype[n].shape) for n, x in one.items()}, *rest
        )
    return rows.local


def absorb(parts: Parts, belief: Gaussian, rows: Rows) -> tuple[Gaussian, jax.Array, jax.Array]:
    """Update by rows; returns (belief, whitened steps, modes), see `_newton`."""
    sites = {n: v for n, v in rows.sites.items() if n in parts.latents.sites}
    terms = parts.terms(frozenset(sites))
    blocks = jax.vmap(parts.block_of)(rows.args, sites)
    if rows.mask.shape[0] == 1:
        row = jax.tree.map(lambda x: x[0], (rows.args, sites))
        return absorb_row(belief, terms, row, blocks[0], rows.mask[0])
    return absorb_rows(belief, terms, (rows.args, sites), blocks, rows.mask)


def _predictor(parts: Parts) -> Callable | None:
    """Gaussian law of the utilities, where utility is proven affine in the latents."""
    latents, layout = parts.latents, parts.layout
    model, contexts = latents.model, _contexts(latents)

    def value(z: Values, key: Any, action: Values, args: tuple, data: Values) -> jax.Array:
        world = latents.constrain(z)
        trace = play(model, key, policy=action, world=world, data=data)(*args)
        reward, cost = split_utility(trace)
        return reward - cost

    key = jax.random.key(0)
    actions = {n: v for n, v in latents.sites.items() if n in _action_names(latents)}
    example = (latents.prototype, key, actions, latents.args, contexts)
    if not is_affine(value, *example) or depends(value, 1, *example):
        return None
    rows = selected_row(value, *example) if layout.blocked else None
    fixed = rows is not None and not any(
        depends(lambda *rest: rows.index(*rest), i, *example[1:]) for i in (2, 3)
    )

    def blocks_of(actions: Values) -> Any:
        """Block per action if that is known now and no two actions share one, else None."""
        if not fixed or any(isinstance(a, Tracer) for a in jax.tree.leaves(actions)):
            return None
        known = tuple(np.asarray(actions[n]).tobytes() for n in sorted(actions))
        if known not in blocks:
            # also when called while tracing: the actions are known, so their blocks are too
            with known_now():
                at = jax.jit(jax.vmap(lambda a: rows.index(key, a, latents.args, contexts)))
                blocks[known] = np.asarray(at(actions))
        index = blocks[known]
        return index if len(set(index.tolist())) == len(index) else None

    blocks: dict[tuple, np.ndarray] = {}
    if fixed:
        with contextlib.suppress(ValueError):  # no finite action space: candidates come later
            blocks_of(as_actions(model, None, *latents.args))

    def predict(
        belief: Gaussian, actions: Any, args: tuple = (), data: Values | None = None
    ) -> dist.Distribution:
        if not isinstance(actions, Mapping):
            actions = as_actions(model, actions, *latents.args)
        data = contexts if data is None else data
        index = blocks_of(actions)
        if index is None or rows is None:
            return _joint(value, belief, layout, (actions, args, data))
        mean, root = belief.mean, belief.root
        if index.tolist() != list(range(layout.num_blocks)):
            mean, root = mean[index], root[index]

        def one(m: jax.Array, s: jax.Array, action: Values) -> tuple[jax.Array, jax.Array]:
            at = lambda v: rows.local(layout.one(v), key, action, args, data)[0]  # noqa: E731
            loc, slope = jax.value_and_grad(at)(m)
            # a sum rather than a matrix product: on a CPU that would transpose every root
            return loc, jnp.sqrt(jnp.sum(jnp.sum(s * slope[:, None], axis=0) ** 2))

        loc, scale = jax.vmap(one)(mean, root, actions)
        return dist.Normal(loc, scale)

    return predict


def _joint(value: Callable, belief: Gaussian, layout: Layout, inputs: tuple) -> JointNormal:
    actions, args, data = inputs

    def one(action: Values) -> tuple[jax.Array, jax.Array]:
        at = lambda b: value(layout.unpack(b), jax.random.key(0), action, args, data)  # noqa: E731
        loc, slope = jax.value_and_grad(at)(belief.mean)
        return loc, jnp.einsum("bji,bj->bi", belief.root, slope).ravel()

    return JointNormal(*jax.vmap(one)(actions))


def _roles(latents: Latents) -> dict[str, str]:
    from decisionppl._roles import role_of

    return {n: role_of(s) or "" for n, s in example_run(latents.model, latents.args).items()}


def _action_names(latents: Latents) -> list[str]:
    return [n for n, r in _roles(latents).items() if r == "action"]


def _contexts(latents: Latents) -> dict[str, jax.Array]:
    roles = _roles(latents)
    return {n: v for n, v in latents.sites.items() if roles[n] == "context"}


def engine(parts: Parts) -> Inference:
    """Close the parts into an `Inference`."""

    def init(key: Any) -> Gaussian:
        return parts.prior

    def update(key: Any, belief: Gaussian, rows: Rows) -> Gaussian:
        return absorb(parts, belief, rows)[0]

    def sample(key: Any, belief: Gaussian, num_worlds: int) -> dict[str, jax.Array]:
        blocks = draw(key, belief, num_worlds)
        return jax.vmap(lambda b: parts.latents.constrain(parts.layout.unpack(b)))(blocks)

    roles = _roles(parts.latents).values()
    can_predict = "action" in roles and "reward" in roles
    predict = _predictor(parts) if can_predict else None
    return Inference(init, jax.jit(update), jax.jit(sample, static_argnums=2), predict)


def laplace(model: Callable, *args: Any) -> Inference:
    """Streaming Laplace approximation of any model with continuous latents.

    The belief is Gaussian in unconstrained coordinates, `N(mean, root root^T)`. An update
    finds the mode of belief times likelihood of the new rows by damped Newton steps, and
    adds the curvature there: memory does not grow, and a single row with a scalar outcome
    costs O(n^2). For linear-Gaussian models this is exact Bayesian linear regression, in any
    order and batching. Priors that are not Gaussian in unconstrained coordinates enter by
    their moments.

    Latents whose leading axis is only ever read at one row per round (arms with parameters
    of their own) are kept as independent blocks; that they are is proven from the program.

    Args:
        model: a one-round model.
        *args: example arguments of one round (a context).

    Returns:
        An `Inference`. `predict` is there if the expected utility is proven affine in the
        latents.

    Raises:
        TypeError: no latents, discrete or function-valued ones, or `obs=` in the model.
        ValueError: a latent that differs between rounds.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model(x):
        ...     w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
        ...     dp.reward("y", dist.Normal(w[dp.action("arm", 2)] * x, 1.0))
        >>> engine = dp.inference.laplace(model, 1.0)
        >>> rows = dp.observe(model, (jnp.ones(1),), {"arm": [0], "y": [3.0]})
        >>> belief = engine.update(jax.random.key(0), engine.init(jax.random.key(0)), rows)
        >>> engine.predict(belief, None, (1.0,)).mean.tolist()
        [1.5, 0.0]

    References:
        Spiegelhalter and Lauritzen (1990), sequential updating by second-order expansion;
        Potter (1963), square-root covariance updates.
    """
    return engine(analyse(model, args))
