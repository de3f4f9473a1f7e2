"""Running NumPyro's No-U-Turn kernel: one chain, and how several are spread over devices."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from numpyro.infer.hmc import hmc
from numpyro.infer.util import ParamInfo

from decisionppl._inference import Rows
from decisionppl.inference._likelihood import Latents, log_likelihood

METHODS = ("sequential", "vectorized", "parallel")


class Chains(NamedTuple):
    """What the next refit starts from; every leaf [chains, ...].

    Attributes:
        position: dict site -> unconstrained value.
        step_size: adapted step size.
        inverse_mass: adapted inverse mass matrix.
    """

    position: dict[str, jax.Array]
    step_size: jax.Array
    inverse_mass: Any


class Stats(NamedTuple):
    """How the last refit went; every leaf [chains].

    Attributes:
        divergences: number of kept transitions that diverged.
        accept_prob: mean acceptance probability; NaN, and so the draws, if no place was found
            where the posterior density is positive.
        num_steps: mean number of leapfrog steps per transition.
    """

    divergences: jax.Array
    accept_prob: jax.Array
    num_steps: jax.Array


def default_method(num_chains: int, *, traced: bool = False) -> str:
    """How chains are best run here; devices are shared out only outside of a trace."""
    if not traced and mesh_of(num_chains).size > 1:
        return "parallel"
    # on CPU vectorized refits tiny models up to twice as fast, and larger ones slower, since
    # every transition waits for the longest tree; it compiles up to twice as long
    return "sequential" if jax.default_backend() == "cpu" else "vectorized"


def mesh_of(num_chains: int) -> Mesh:
    """As many local devices as share the chains evenly."""
    devices = jax.local_devices()
    size = max(d for d in range(1, len(devices) + 1) if num_chains % d == 0)
    return Mesh(np.asarray(devices[:size]), ("chain",))


def spread(chain: Callable, method: str, keys: jax.Array, chains: Chains, rows: Rows) -> tuple:
    """Run `chain` over the leading axis of keys and chains, by one of `METHODS`."""

    def one_by_one(keys: jax.Array, chains: Chains, rows: Rows) -> tuple:
        return jax.lax.map(lambda x: chain(*x, rows), (keys, chains))

    if method == "sequential":
        return one_by_one(keys, chains, rows)
    if method == "vectorized":
        return jax.vmap(chain, (0, 0, None))(keys, chains, rows)
    split, same = PartitionSpec("chain"), PartitionSpec()
    run = jax.shard_map(
        one_by_one,
        mesh=mesh_of(keys.shape[0]),
        in_specs=(split, split, same),
        out_specs=split,
        check_vma=False,
    )
    return run(keys, chains, rows)


def unit_mass(position: dict[str, jax.Array], settings: dict) -> Any:
    """NumPyro's initial inverse mass matrix, in the structure that `dense_mass` asks for."""

    def initial() -> Any:
        kernel, _ = hmc(potential_fn=lambda z: jnp.zeros(()))
        known = ParamInfo(position, jnp.zeros(()), position)
        return kernel(known, **settings).adapt_state.inverse_mass_matrix

    # the structure only: running the kernel would compile all of its setup
    return jax.tree.map(
        lambda x: jnp.ones(x.shape) if len(x.shape) == 1 else jnp.eye(*x.shape),
        jax.eval_shape(initial),
    )


def chain_of(
    latents: Latents, settings: dict, num_samples: int, likelihood: Callable | None = None
) -> Callable:
    """`(key, chain, rows) -> (chain, draws, stats)` of one chain.

    Args:
        latents: of the model.
        settings: of NumPyro's sampler.
        num_samples: transitions that are kept.
        likelihood: `(world, rows) -> log density`; default the product over rows.
    """
    likelihood = log_likelihood(latents.model) if likelihood is None else likelihood
    num_warmup = settings["num_warmup"]

    # compiled here only so that it is traced once, not at each of its uses in the sampler
    @jax.jit
    def potential(z: dict[str, jax.Array], rows: Rows) -> jax.Array:
        return -latents.log_prior(z) - likelihood(latents.constrain(z), rows)

    def run(key: jax.Array, chain: Chains, rows: Rows) -> tuple:
        # `hmc` keeps the settings of a fit in its closure, so each trace makes its own
        init, step = hmc(potential_fn_gen=lambda rows: partial(potential, rows=rows))
        key_start, key_chain = jax.random.split(key)
        start = _start(key_start, partial(potential, rows=rows), chain.position)
        possible = jnp.isfinite(start.potential_energy)
        state = init(
            start,
            step_size=chain.step_size,  # pyright: ignore
            inverse_mass_matrix=chain.inverse_mass,
            model_args=(rows,),
            rng_key=key_chain,
            **settings,
        )

        def kept(state: Any) -> tuple:
            return state.z, (state.diverging, state.accept_prob, state.num_steps)

        def advance(i: jax.Array, carry: tuple) -> tuple:
            state, saved = carry
            state = step(state, (rows,))
            # one loop for warm-up and draws compiles the sampler once: the warm-up writes
            # to the first place, which the first draw overwrites
            place = jnp.maximum(i - num_warmup, 0)
            return state, jax.tree.map(lambda a, x: a.at[place].set(x), saved, kept(state))

        room = jax.tree.map(lambda x: jnp.zeros((num_samples, *x.shape), x.dtype), kept(state))
        state, (z, (diverging, accept, steps)) = jax.lax.fori_loop(
            0, num_warmup + num_samples, advance, (state, room)
        )
        adapted = state.adapt_state
        draws = jax.vmap(latents.constrain)(z)
        draws = jax.tree.map(lambda x: jnp.where(possible, x, jnp.nan), draws)
        accept = jnp.where(possible, jnp.mean(accept), jnp.nan)
        return (
            Chains(state.z, adapted.step_size, adapted.inverse_mass_matrix),
            draws,
            Stats(jnp.sum(diverging, dtype=int), accept, jnp.mean(steps * 1.0)),
        )

    return run


def _start(key: jax.Array, potential: Callable, position: dict[str, jax.Array]) -> ParamInfo:
    """The given position or a fresh one near the origin, whichever is likelier.

    The first fit starts from prior draws, which a heavy-tailed prior puts far out. Fresh
    ones are drawn until one has a finite potential, as NumPyro and Stan do.
    """

    def evaluate(z: dict[str, jax.Array]) -> ParamInfo:
        energy, slope = jax.value_and_grad(potential)(z)
        finite = [jnp.isfinite(energy), *(jnp.all(jnp.isfinite(x)) for x in slope.values())]
        return ParamInfo(z, jnp.where(jnp.all(jnp.stack(finite)), energy, jnp.inf), slope)

    def fresh(key: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(key, len(position))
        return {
            n: jax.random.uniform(k, x.shape, x.dtype, -2.0, 2.0)
            for k, (n, x) in zip(keys, position.items(), strict=True)
        }

    def go_on(state: tuple) -> jax.Array:
        i, _, best = state
        return (i < 2) | (jnp.isinf(best.potential_energy) & (i < 100))

    def attempt(state: tuple) -> tuple:
        i, key, best = state
        key, now = jax.random.split(key)
        z = jax.tree.map(lambda a, b: jnp.where(i == 0, a, b), position, fresh(now))
        tried = evaluate(z)
        better = tried.potential_energy < best.potential_energy
        return i + 1, key, jax.tree.map(lambda a, b: jnp.where(better, a, b), tried, best)

    zeros = jax.tree.map(jnp.zeros_like, position)
    first = ParamInfo(position, jnp.full((), jnp.inf), zeros)
    return jax.lax.while_loop(go_on, attempt, (0, key, first))[2]
