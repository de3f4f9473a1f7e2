r"""Random subsets of k candidates: Plackett-Luce, and its smooth relaxation.

Logits :math:`\omega` draw candidates one after another without replacement,

.. math:: P(i_1, \dots, i_k) = \prod_j
   \frac{e^{\omega_{i_j}}}{\sum_{l \notin \{i_1 .. i_{j-1}\}} e^{\omega_l}},

which is the order of the k largest :math:`\omega_i + \text{Gumbel noise}`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from decisionppl._play import as_key

Array = jax.Array


def plackett_luce(key: Any, logits: Any, k: int) -> Array:
    """Draw k candidates without replacement, in order.

    Args:
        key: PRNG key (typed or raw) or an int seed.
        logits: [candidates]; -inf where one may not be drawn.
        k: how many.

    Returns:
        int [k].

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import lookahead
        >>> sorted(lookahead.plackett_luce(0, jnp.array([0.0, -jnp.inf, 0.0]), 2).tolist())
        [0, 2]

    References:
        Yellott (1977); Kool, van Hoof and Welling, arXiv 1903.06059 (Gumbel top-k).
    """
    logits = jnp.asarray(logits, float)
    noise = jax.random.gumbel(as_key(key), logits.shape, logits.dtype)
    return jax.lax.top_k(logits + noise, k)[1].astype(jnp.int32)


def plackett_luce_log_prob(logits: Any, order: Any) -> Array:
    """Log probability of an ordered draw.

    Args:
        logits: [candidates].
        order: int [k], distinct candidates in the order in which they were drawn.

    Returns:
        Scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import lookahead
        >>> log_prob = lookahead.plackett_luce_log_prob(jnp.zeros(3), jnp.array([2, 0]))
        >>> round(float(jnp.exp(log_prob)), 4)
        0.1667

    References:
        Plackett, The analysis of permutations (1975).
    """
    logits, order = jnp.asarray(logits, float), jnp.asarray(order)

    def step(left: Array, i: Array) -> tuple:
        return left.at[i].set(-jnp.inf), left[i] - jax.nn.logsumexp(left)

    return jnp.sum(jax.lax.scan(step, logits, order)[1])


def smooth_subset(key: Any, logits: Any, k: int, temperature: Any) -> Array:
    r"""A differentiable draw of k candidates: shares that sum to k.

    Perturbed logits :math:`s = \omega + \text{Gumbel}`; k times, :math:`a = \text{softmax}(s/\tau)`
    is added to the shares and :math:`s \leftarrow s + \log(1 - a)`. As :math:`\tau \to 0` the
    shares become the indicator of `plackett_luce` with the same key.

    Args:
        key: PRNG key (typed or raw) or an int seed.
        logits: [candidates]; -inf where one may not be drawn.
        k: how many.
        temperature: :math:`\tau`, positive.

    Returns:
        Shares [candidates], none negative; one may exceed 1 a little at a high temperature.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import lookahead
        >>> round(float(lookahead.smooth_subset(0, jnp.zeros(5), 2, 0.5).sum()), 4)
        2.0

    References:
        Xie and Ermon, arXiv 1901.10517; arXiv 2502.06076, section 4 (there shares are clipped at 1,
        which takes the gradient away).
    """
    logits = jnp.asarray(logits, float)
    score = logits + jax.random.gumbel(as_key(key), logits.shape, logits.dtype)
    tiny = jnp.finfo(score.dtype).tiny

    def step(score: Array, _: Any) -> tuple:
        share = jax.nn.softmax(score / temperature)
        return score + jnp.log(jnp.maximum(1 - share, tiny)), share

    return jnp.sum(jax.lax.scan(step, score, None, length=k)[1], axis=0)
