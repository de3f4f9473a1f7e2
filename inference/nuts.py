"""The exact posterior, up to Monte Carlo error, by the No-U-Turn sampler."""

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

from decisionppl._inference import Inference, Rows
from decisionppl._play import as_key
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
from decisionppl.inference._chains import (
    METHODS,
    Chains,
    Stats,
    chain_of,
    default_method,
    mesh_of,
    spread,
    unit_mass,
)
from decisionppl.inference._likelihood import latents_of


class Belief(NamedTuple):
    """Posterior draws, the history they are drawn given, and where to go on.

    Attributes:
        buffer: the history.
        chains: what the next refit starts from.
        draws: dict site -> [chains, samples, ...]; prior draws before any row.
        stats: how the last refit went.
    """

    buffer: Buffer
    chains: Chains
    draws: dict[str, jax.Array]
    stats: Stats


def nuts(
    model: Callable,
    *args: Any,
    capacity: int | None = None,
    num_warmup: int = 500,
    num_samples: int = 500,
    num_chains: int = 4,
    chain_method: str | None = None,
    target_accept: float = 0.8,
    dense_mass: bool | list = False,
    max_tree_depth: int = 10,
    sites: Iterable[str] | None = None,
) -> Inference:
    """The posterior of any model with continuous latents, by NumPyro's No-U-Turn sampler.

    Every update refits on the whole history: a full warm-up, started from the positions,
    step sizes and masses of the last fit. One compilation serves all histories of up to the
    same power of two of rows.

    Args:
        model: a one-round model.
        *args: example arguments of the model: the context of one row.
        capacity: the largest number of rows. None lets the history grow, one compilation
            per power of two; inside `jit`, `vmap` or `scan` a number is needed. Rows that
            do not fit inside `jit` turn the draws into NaN.
        num_warmup: transitions per chain that adapt and are dropped.
        num_samples: transitions per chain that are kept.
        num_chains: number of chains.
        chain_method: "sequential" (one chain after the other), "vectorized" (all at once:
            every transition waits for the longest tree) or "parallel" (over local devices;
            inside `jit` as None). None: parallel where there are several devices, else
            sequential on CPU and vectorized on accelerators. The draws do not depend on it,
            up to rounding. `numpyro.set_host_device_count(n)`, called before JAX starts,
            makes n devices of one CPU.
        target_accept: acceptance probability that the step size is adapted to.
        dense_mass: True for a dense mass matrix, or a list of tuples of sites, one per
            dense block.
        max_tree_depth: at most 2 ** max_tree_depth leapfrog steps per transition.
        sites: the sites that will be logged; default all that can be.

    Returns:
        Inference. `sample` picks among the posterior draws, without replacement while there
        are enough of them. Its belief holds them as `draws`, see also `posterior` and
        `diagnostics`.

    Raises:
        TypeError: no latent, a discrete one, or `obs=` in the model.
        ValueError: a latent whose prior differs between rows, or a bad setting; from
            `update`, rows that do not fit, or that are impossible under the model.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl.inference.nuts import nuts
        >>> def model():
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     dp.reward("y", dist.Normal(mu, 1.0))
        >>> engine = nuts(model, num_warmup=200, num_samples=200, num_chains=2)
        >>> belief = engine.update(1, engine.init(0), dp.observe(model, sites={"y": [2.0, 4.0]}))
        >>> round(float(belief.draws["mu"].mean()))
        2

    References:
        Hoffman and Gelman (2014), arXiv:1111.4246; Phan, Pradhan and Jankowiak (2019),
        arXiv:1912.11554.
    """
    for name, value in (
        ("num_warmup", num_warmup), ("num_samples", num_samples), ("num_chains", num_chains),
        ("max_tree_depth", max_tree_depth),
    ):  # fmt: skip
        check_count(name, value)
    if not 0 < target_accept < 1:
        raise ValueError(f"target_accept: expected a probability, got {target_accept}.")
    if chain_method not in (None, *METHODS):
        raise ValueError(f"chain_method: expected one of {METHODS} or None, got {chain_method!r}.")
    start_capacity = check_capacity(capacity)
    latents = latents_of(model, args)
    logged = declared_sites(latents, sites)
    settings = {
        "num_warmup": num_warmup, "dense_mass": dense_mass, "target_accept_prob": target_accept,
        "max_tree_depth": max_tree_depth, "trajectory_length": None,
    }  # fmt: skip
    chain = chain_of(latents, settings, num_samples)

    @jax.jit
    def prior(key: jax.Array) -> Belief:
        keys = jax.random.split(key, num_chains * num_samples)
        z = jax.vmap(latents.draw)(keys)
        per_chain = lambda x: x.reshape(num_chains, num_samples, *x.shape[1:])  # noqa: E731
        position = jax.tree.map(lambda x: per_chain(x)[:, -1], z)
        mass = unit_mass(latents.prototype, settings)
        mass = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_chains, *x.shape)), mass)
        return Belief(
            empty(latents.args, logged, start_capacity),
            Chains(position, jnp.ones(num_chains), mass),
            jax.tree.map(per_chain, jax.vmap(latents.constrain)(z)),
            Stats(jnp.zeros(num_chains, int), jnp.ones(num_chains), jnp.zeros(num_chains)),
        )

    def fit(key: jax.Array, buffer: Buffer, chains: Chains, method: str) -> Belief:
        keys = jax.random.split(key, num_chains)
        run = partial(spread, chain, method)
        return Belief(buffer, *run(keys, chains, filled(buffer)))

    def refit(key: jax.Array, belief: Belief) -> Belief:
        method = None if chain_method == "parallel" else chain_method
        method = method or default_method(num_chains, traced=True)
        return fit(key, belief.buffer, belief.chains, method)

    @partial(jax.jit, static_argnames="method")
    def append_and_fit(key: jax.Array, buffer: Buffer, chains: Chains, rows: Rows, method: str):
        return fit(key, append(buffer, rows), chains, method)

    def eager(key: jax.Array, belief: Belief, rows: Rows) -> Belief:
        buffer, chains = belief.buffer, belief.chains
        method = chain_method or default_method(num_chains)
        if method == "parallel":
            # one device in, all devices inside, one device out: no caller sees a mesh
            everywhere = NamedSharding(mesh_of(num_chains), PartitionSpec())
            key, buffer, chains, rows = jax.device_put((key, buffer, chains, rows), everywhere)
        result = append_and_fit(key, buffer, chains, rows, method)
        if method == "parallel":
            result = jax.tree.map(jnp.asarray, jax.device_get(result))
        _report(result.stats)
        return result

    @partial(jax.jit, static_argnums=2)
    def drawn(key: jax.Array, belief: Belief, num_worlds: int) -> dict[str, jax.Array]:
        total = num_chains * num_samples
        if 1 < num_worlds <= total:
            index = jax.random.choice(key, total, (num_worlds,), replace=False)
        else:
            index = jax.random.randint(key, (num_worlds,), 0, total)
        pick = lambda x: x.reshape(total, *x.shape[2:])[index]  # noqa: E731
        return poisoned(belief.buffer, jax.tree.map(pick, belief.draws))

    def sample(key: Any, belief: Belief, num_worlds: int) -> dict[str, jax.Array]:
        check_room(belief.buffer)
        return drawn(as_key(key), belief, check_count("num_worlds", num_worlds))

    return Inference(lambda key: prior(as_key(key)), updater(refit, capacity, eager), sample)


def _report(stats: Stats) -> None:
    if np.isnan(stats.accept_prob).any():
        raise ValueError(
            "no latent values with a positive, finite density were found in 100 tries: the rows "
            "are impossible under the model, or its likelihood is NaN. Check the supports."
        )
    if np.any(stats.divergences):
        warnings.warn(
            "NUTS transitions diverged, so the draws may be biased: see "
            "inference.diagnostics(belief). Raise target_accept, or reparametrise the "
            "model (non-centred scales).",
            RuntimeWarning,
            stacklevel=4,
        )


def posterior(belief: Belief) -> dict[str, jax.Array]:
    """The draws per chain, dict site -> [chains, samples, ...], as ArviZ takes them.

    Raises:
        ValueError: rows were lost because the history was full.
    """
    check_room(belief.buffer)
    return dict(belief.draws)


def diagnostics(belief: Belief) -> dict[str, Any]:
    """Whether the chains of a belief have mixed.

    Args:
        belief: a belief of `nuts`, outside of `jit`.

    Returns:
        dict with "r_hat" (split, near 1 if the chains agree) and "ess" (effective sample
        size), each a dict site -> array of the site's shape; "divergences", how many kept
        transitions diverged; "accept_prob" and "num_steps" (leapfrog steps per transition)
        [chains].

    Raises:
        ValueError: rows were lost because the history was full.

    References:
        Gelman et al., Bayesian Data Analysis (2013), section 11.4.
    """
    draws = {n: np.asarray(x) for n, x in posterior(belief).items()}
    return {
        "r_hat": {n: split_gelman_rubin(x) for n, x in draws.items()},
        "ess": {n: effective_sample_size(x) for n, x in draws.items()},
        "divergences": int(np.sum(belief.stats.divergences)),
        "accept_prob": np.asarray(belief.stats.accept_prob),
        "num_steps": np.asarray(belief.stats.num_steps),
    }
