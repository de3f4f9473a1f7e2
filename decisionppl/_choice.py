"""What a rule decides, and how a choice comes from scores."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from decisionppl import _acquisition as acq

Array = jax.Array


class Choice(NamedTuple):
    """What a rule decides.

    Attributes:
      action: index of the chosen action, int32, shape ().
      probabilities: law of ``action`` given the utilities, over the rule's key, [actions]. Exact,
        except where a joint Gaussian leaves only Monte Carlo.
      scores: what the rule maximises, [actions]; -inf where masked.
    """

    action: Array
    probabilities: Array
    scores: Array


def masked(scores, mask):
    return jnp.where(mask, scores, -jnp.inf)


def pick(key, law):
    return jax.random.categorical(key, jnp.log(law)).astype(jnp.int32)


def largest(key, scores, mask):
    law = acq.shares(scores, mask)
    return Choice(pick(key, law), law, masked(scores, mask))
