"""Labels that were not seen, drawn from a belief, and what they would make of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decisionppl._labelling import Problem, law_of, means, over_worlds
from decisionppl._play import as_key, play

Array = jax.Array


def simulated(found: Problem, key: Any, worlds: Any) -> Array:
    """Labels of all candidates, drawn in each world; [draws, candidates]."""

    def one(key: Any, world: Any) -> Array:
        keys = jax.random.split(key, found.size)

        def label(key: Any, action: Any) -> Array:
            run = play(found.model, key, policy=action, world=world)(*found.args)
            return jnp.asarray(run[found.label]["value"])

        return jax.vmap(label)(keys, found.candidates)

    draws = jax.tree.leaves(worlds)[0].shape[0]
    return over_worlds(one, jax.random.split(as_key(key), draws), worlds)


class Table(NamedTuple):
    """Imagined labels, and how likely each hypothesis makes them.

    Attributes:
        values: the functional in each world, [worlds].
        log_likelihood: [outcomes, worlds, candidates]: of the label of each candidate, drawn in
            another world per outcome, under each world.
        own: the same under the world that it was drawn from, [outcomes, candidates].
    """

    values: Array
    log_likelihood: Array
    own: Array


def table(found: Problem, key: Any, belief: Any, num_outcomes: int, num_worlds: int) -> Table:
    """Labels drawn from the belief, one set of them per outcome, and their likelihoods."""
    draw_key, label_key = jax.random.split(as_key(key))
    worlds = found.inference.sample(draw_key, belief, num_outcomes + num_worlds)
    outer = jax.tree.map(lambda w: w[:num_outcomes], worlds)
    inner = jax.tree.map(lambda w: w[num_outcomes:], worlds)
    labels = simulated(found, label_key, outer)

    def likelihood(world: Any, labels: Array) -> Array:
        """Of labels [..., candidates] under a world."""

        def one(action: Any, label: Array) -> Array:
            return law_of(found, world, action)["fn"].log_prob(label)

        return jax.vmap(one, (0, -1), -1)(found.candidates, labels)

    each = over_worlds(lambda world: likelihood(world, labels), inner)
    own = over_worlds(likelihood, outer, labels)
    values = found.functional(means(found, inner))
    return Table(values, jnp.moveaxis(each, 0, 1), own)


def reweighted_variance(log_weights: Array, values: Array) -> Array:
    """Variance of values [worlds] under weights [..., worlds], unbiased if they are equal."""
    weights = jax.nn.softmax(log_weights, axis=-1)
    mean = jnp.sum(weights * values, axis=-1, keepdims=True)
    spread = jnp.sum(weights * (values - mean) ** 2, axis=-1)
    # one world holding all weight says nothing of the spread: the bound keeps it finite
    return spread / jnp.maximum(1 - jnp.sum(weights**2, axis=-1), 1 / values.shape[0])
