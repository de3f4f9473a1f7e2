"""Training on runs that go on from update to update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from numpyro import handlers
from numpyro.primitives import mutable

from decisionppl.inference._advantage import no_moments, renewed
from decisionppl.inference._gradient_runs import Design, begin, features_of, steps_of

_WAIT = 50  # updates to which the value is fitted before it says how to decide


def continuing(
    design: Design,
    init: Any,
    num_steps: int,
    policy: Callable,
    params: Any,
    *,
    key: jax.Array,
    num_runs: int,
    burn_in: int,
    segment: int,
    entropy: float | Callable,
    warm_up: int,
) -> tuple[Callable, Callable]:
    """The model of one update, and its arguments, as `inference.train` takes them.

    The states of the runs and what the value is fitted from are a mutable site of the model: part
    of the state of training, and so of its checkpoints.
    """
    wait = min(_WAIT, warm_up)

    @jax.jit
    def start(params: Any, keys: jax.Array) -> dict:
        now = design._replace(policy=policy(params), entropy=False)
        states = jax.vmap(lambda k: begin(now, init, burn_in, k)[0])(keys)
        features = jax.eval_shape(
            lambda s: features_of(design.mode, s), jax.tree.map(lambda x: x[0], states)
        )
        if features.ndim != 1:
            raise ValueError(
                f"features: expected a vector [features], got shape {features.shape}; make it one "
                "by jnp.ravel or jnp.stack."
            )
        return {"state": states, "moments": no_moments(features.size)}

    # of a key that no update uses
    first = start(params, jax.random.split(jax.random.fold_in(key, 1), num_runs))

    def model(key: jax.Array, number: jax.Array) -> None:
        now = design._replace(policy=policy(numpyro.param("policy", params)))
        begun: Any = dict(first)  # a site is changed in place
        kept: Any = mutable("runs", begun)

        def run(state: Any, key: jax.Array) -> tuple:
            return steps_of(now, state, key, 0, num_steps, segment)

        with handlers.block():
            keys = jax.random.split(key, num_runs)
            last, out = jax.vmap(run)(kept["state"], keys)
        ahead, moments = renewed(
            kept["moments"], out.features, out.then, out.reward, out.spent, design.mode.trace
        )  # fmt: skip
        kept["state"], kept["moments"] = last, moments
        ahead = (ahead - ahead.mean()) / (ahead.std() + jnp.finfo(ahead.dtype).tiny)
        better = (out.logs * jax.lax.stop_gradient(ahead)).mean()
        if design.entropy:
            weight = entropy(number) if callable(entropy) else entropy
            better = better + weight * out.entropy.mean()
        better = jnp.where(number < wait, 0.0, better)
        seen = out.reward.sum() / out.spent.sum()
        numpyro.factor("value", seen + better - jax.lax.stop_gradient(better))

    return model, lambda key, number: (key, number)
