"""A parametric posterior, fitted by stochastic variational inference."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from numpyro import handlers
from numpyro.infer import SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal
from numpyro.infer.svi import SVIState

from decisionppl._inference import Inference, Rows
from decisionppl._play import as_key
from decisionppl._roles import role_of
from decisionppl.inference._buffer import (
    Buffer,
    append,
    check_capacity,
    check_count,
    check_room,
    declared_sites,
    empty,
    filled,
    poisoned,
    updater,
)
from decisionppl.inference._likelihood import Latents, latents_of, log_likelihood

_LEARNING_RATE = 0.05


class Belief(NamedTuple):
    """A fitted guide and the history it is fitted to.

    Attributes:
        buffer: the history.
        params: dict from the guide's parameters to unconstrained values.
        loss: negative evidence lower bound, mean over the last tenth of the last fit.
    """

    buffer: Buffer
    params: dict[str, jax.Array]
    loss: jax.Array


def svi(
    model: Callable,
    *args: Any,
    capacity: int | None = None,
    guide: Callable | None = None,
    num_steps: int = 1000,
    optimizer: optax.GradientTransformation | None = None,
    num_particles: int = 4,
    sites: Iterable[str] | None = None,
) -> Inference:
    """A parametric approximation to the posterior, by NumPyro's variational inference.

    Every update takes `num_steps` steps on the whole history, from the parameters of the
    last fit; the optimizer starts afresh, so a schedule runs once per update. Before any
    row, worlds are drawn from the prior itself, not from a guide. One compilation serves
    all histories of up to the same power of two of rows.

    Args:
        model: a one-round model.
        *args: example arguments of the model: the context of one row.
        capacity: the largest number of rows. None lets the history grow, one compilation
            per power of two; inside `jit`, `vmap` or `scan` a number is needed. Rows that
            do not fit inside `jit` turn the worlds into NaN.
        guide: `model -> guide`, such as a class of `numpyro.infer.autoguide`; default
            AutoMultivariateNormal, a Gaussian in unconstrained coordinates. A guide is
            called with the Rows and samples every latent site.
        num_steps: optimisation steps per update.
        optimizer: an optax optimizer; default Adam at 0.05 with a cosine schedule down to 0,
            which moves a parameter by some num_steps / 40 at most: scale latents to order 1.
        num_particles: draws per step that estimate the evidence lower bound.
        sites: the sites that will be logged; default all that can be.

    Returns:
        Inference.

    Raises:
        TypeError: no latent, a discrete one, or `obs=` in the model.
        ValueError: a latent whose prior differs between rows, a guide that leaves out a
            latent, or a bad setting; from `update`, rows that do not fit, or that are
            impossible under the model.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl.inference.svi import svi
        >>> def model():
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     dp.reward("y", dist.Normal(mu, 1.0))
        >>> engine = svi(model)
        >>> belief = engine.update(1, engine.init(0), dp.observe(model, sites={"y": [2.0, 4.0]}))
        >>> round(float(engine.sample(2, belief, 1000)["mu"].mean()))
        2

    References:
        Hoffman et al. (2013), arXiv:1206.7051; Kucukelbir et al. (2017), arXiv:1603.00788.
    """
    check_count("num_steps", num_steps)
    start_capacity = check_capacity(capacity)
    latents = latents_of(model, args)
    logged = declared_sites(latents, sites)
    joint = _joint(latents)
    fitted = (guide or AutoMultivariateNormal)(joint)
    if optimizer is None:
        optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, num_steps))
    elbo = Trace_ELBO(num_particles=check_count("num_particles", num_particles))
    engine = SVI(joint, fitted, optimizer, elbo)
    # a guide keeps what it finds at its first call, so that call is not traced
    first = engine.init(jax.random.key(0), None)
    start = engine.optim.get_params(first.optim_state)
    constrain: Callable = engine.constrain_fn  # pyright: ignore
    _check_guide(fitted, constrain(start), latents)

    @jax.jit
    def prior(key: jax.Array) -> Belief:
        params = jax.tree.map(jnp.asarray, start)
        return Belief(empty(latents.args, logged, start_capacity), params, jnp.zeros(()))

    def refit(key: jax.Array, belief: Belief) -> Belief:
        rows = filled(belief.buffer)
        state = SVIState(engine.optim.init(belief.params), first.mutable_state, key)
        state, losses = jax.lax.scan(
            lambda state, _: engine.stable_update(state, rows), state, length=num_steps
        )
        # steps whose loss is not finite were not taken
        last = jnp.nanmean(losses[-max(num_steps // 10, 1) :])
        return Belief(belief.buffer, engine.optim.get_params(state.optim_state), last)

    @jax.jit
    def append_and_fit(key: jax.Array, belief: Belief, rows: Rows) -> Belief:
        return refit(key, belief._replace(buffer=append(belief.buffer, rows)))

    def eager(key: jax.Array, belief: Belief, rows: Rows) -> Belief:
        belief = append_and_fit(key, belief, rows)
        if not np.isfinite(belief.loss):
            raise ValueError(
                "the evidence lower bound is not finite: the rows are impossible under the "
                "model at what the guide draws, or its likelihood is NaN. Check the supports."
            )
        return belief

    @partial(jax.jit, static_argnums=2)
    def drawn(key: jax.Array, belief: Belief, num_worlds: int) -> dict[str, jax.Array]:
        def from_prior() -> dict[str, jax.Array]:
            keys = jax.random.split(key, num_worlds)
            return jax.vmap(lambda k: latents.constrain(latents.draw(k)))(keys)

        def from_guide() -> dict[str, jax.Array]:
            return _draw(fitted, constrain(belief.params), key, num_worlds, latents)

        worlds = jax.lax.cond(belief.buffer.count == 0, from_prior, from_guide)
        return poisoned(belief.buffer, worlds)

    def sample(key: Any, belief: Belief, num_worlds: int) -> dict[str, jax.Array]:
        check_room(belief.buffer)
        return drawn(as_key(key), belief, check_count("num_worlds", num_worlds))

    return Inference(lambda key: prior(as_key(key)), updater(refit, capacity, eager), sample)


def _joint(latents: Latents) -> Callable:
    """The priors of the one-round model, with the likelihood of all rows as one factor."""
    likelihood = log_likelihood(latents.model)

    def joint(rows: Rows | None) -> None:
        # the sites of a round hold example values here: no prior depends on them
        one_round = handlers.condition(latents.model, data={**latents.sites})
        priors = handlers.block(
            one_round, hide_fn=lambda s: s["type"] == "policy" or role_of(s) is not None
        )
        trace = handlers.trace(priors).get_trace(*latents.args)
        if rows is not None:
            world = {n: trace[n]["value"] for n in latents.prototype}
            with handlers.block():  # the rows' own sites are none of the inference's
                total = likelihood(world, rows)
            numpyro.factor("rows", total)

    return joint


def _draw(
    guide: Callable, params: dict[str, Any], key: jax.Array, num: int, latents: Latents
) -> dict[str, jax.Array]:
    draws = Predictive(guide, params=params, num_samples=num, parallel=True)(key, None)
    return {n: draws[n] for n in latents.prototype}


def _check_guide(guide: Callable, params: dict[str, Any], latents: Latents) -> None:
    with handlers.seed(rng_seed=0), handlers.substitute(data=params):
        trace = handlers.trace(guide).get_trace(None)
    missing = sorted(set(latents.prototype) - set(trace))
    if missing:
        raise ValueError(
            f"the guide does not sample latent site {missing[0]!r}; it samples "
            f"{[n for n, s in trace.items() if s['type'] == 'sample']}."
        )
