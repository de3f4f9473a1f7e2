"""What simulation-based calibration ranks."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._inference import Inference, Rows
from decisionppl._play import play
from decisionppl._roles import role_of
from decisionppl._space import action_sites, as_actions, availability
from decisionppl._utility import utility
from decisionppl.inference._likelihood import log_likelihood
from decisionppl.testing._simulation import Simulator, flat, scalars

LOG_LIKELIHOOD = "log-likelihood"
UTILITY = "utility of the choice"


class Quantities(NamedTuple):
    """What is ranked: `(worlds, rows, key) -> [worlds, quantities]`, with names."""

    names: tuple[str, ...]
    values: Callable


def check_worlds(parts: Simulator, inference: Inference, num_worlds: int) -> None:
    """Refuse an inference whose worlds are not those of the model."""
    if not isinstance(inference, Inference):
        raise TypeError(
            f"inference: expected an Inference, got {type(inference).__name__}. It is a triple of "
            "functions: Inference(init, update, sample)."
        )

    def worlds(key: jax.Array) -> Any:
        return inference.sample(key, inference.init(key), num_worlds)

    shapes = jax.eval_shape(worlds, jax.random.key(0))
    for name, example in parts.latents.items():
        expected = (num_worlds, *example.shape)
        if name not in shapes or shapes[name].shape != expected:
            got = shapes[name].shape if name in shapes else f"no such site in {sorted(shapes)}"
            raise ValueError(
                f"inference.sample: expected worlds with latent site {name!r} of shape "
                f"{expected}, got {got}. Was the inference built for this model?"
            )


def quantities_of(parts: Simulator, actions: Any, more: Mapping[str, Callable]) -> Quantities:
    likelihood = log_likelihood(parts.model)
    names = [*scalars(parts.latents), LOG_LIKELIHOOD]
    candidates = _candidates(parts, actions)
    if candidates is not None:
        names.append(UTILITY)
    clash = sorted(set(names) & set(more))
    if clash:
        raise ValueError(f"quantities names {clash[0]!r}, which is ranked already.")
    key = jax.random.key(0)
    rows = jax.eval_shape(parts.rows, key, parts.latents)
    shapes = {n: jax.eval_shape(f, parts.latents, rows).shape for n, f in more.items()}
    names += scalars({n: np.empty(s) for n, s in shapes.items()})

    def values(worlds: Any, rows: Rows, key: jax.Array) -> jax.Array:
        columns = [
            jax.vmap(flat)(worlds),
            jax.vmap(likelihood, in_axes=(0, None))(worlds, rows)[:, None],
        ]
        if candidates is not None:
            columns.append(_choice_utility(parts, candidates, worlds, key)[:, None])
        if more:
            user = jax.vmap(lambda w: {n: f(w, rows) for n, f in more.items()})(worlds)
            columns.append(jax.vmap(flat)(user))
        return jnp.concatenate([c.astype(float) for c in columns], axis=1)

    return Quantities(tuple(names), values)


def _candidates(parts: Simulator, actions: Any) -> dict[str, jax.Array] | None:
    """The actions to choose among, or None where no choice can be made."""
    trace = play(parts.model, 0)(*parts.example)
    roles = {role_of(s) for s in trace.values()}
    if actions is None:
        if not {"action", "reward"} <= roles:
            return None
        spaces = action_sites(parts.model, *parts.example).values()
        if not all(s.has_enumerate_support and not s.batch_shape for s in spaces):
            return None
    return as_actions(parts.model, actions, *parts.example)


def _choice_utility(parts: Simulator, actions: Any, worlds: Any, key: jax.Array) -> jax.Array:
    """Utility, in every world, of the action that is best in the last world."""
    utility_key, tie_key = jax.random.split(key)
    table = utility(parts.model, worlds, actions, key=utility_key, args=parts.example)
    possible = availability(parts.model, actions, parts.example, {})
    last = jnp.where(possible, table[-1], -jnp.inf)
    best = (last == jnp.max(last)).astype(float)
    return table[:, jax.random.choice(tie_key, len(best), p=best / jnp.sum(best))]
