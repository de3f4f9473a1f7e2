r"""How good a learned sequence model is, measured offline on sequences it was not trained on.

- `sequence_loss`: negative log probability of each observation given its past.
- `loss_gap`: how much a model loses against a reference, and what that does to a regret bound.

Two further properties need no data, and are measured by `decisionppl.testing`, with any
tolerance: `check_exchangeable(model, ..., tolerance=math.inf)` says how much the probability of a
sequence depends on its order, and `check_martingale(model, ..., tolerance=math.inf)` how far the
predictive law drifts from the mean of those that follow it. Both are zero for an exact
exchangeable model. Generation relies on them: without the second, imagined futures do not average
to the present.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl.inference._program import Program

__all__ = ["LossGap", "loss_gap", "sequence_loss"]

# sequences at a time: a transformer keeps keys and values of each
_BATCH = 128


class LossGap(NamedTuple):
    """How much more a model loses than a reference, on the same sequences.

    Attributes:
        gap: mean difference of the loss of a whole table (a sequence for each arm), nats.
        stderr: its standard error over sequences.
        per_step: mean difference at each step, [T]; sums to `gap`.
        regret_term: :math:`\\sqrt{2 \\max(\\mathrm{gap}, 0)}`, see `loss_gap`.
    """

    gap: float
    stderr: float
    per_step: np.ndarray
    regret_term: float


def sequence_loss(model: Callable, args: tuple, values: Any) -> jax.Array:
    r"""Loss of each observation given its past, :math:`-\log p(y_t \mid x_t, (x_s, y_s)_{s<t})`.

    Args:
        model: a sequence model, as for `autoregressive`; its parameters are substituted.
        args: its arguments, a tuple. An array with a leading axis [sequences] has one entry per
            sequence; all others (a length, an array of another size) are common to all. Where T
            equals the number of sequences, give covariates common to all once per sequence.
        values: complete sequences [sequences, T, ...], or a dict from data site to them; a NaN
            makes the losses from there on NaN.

    Returns:
        Losses [sequences, T], nats; summed over the data sites if there are several.

    Raises:
        ValueError: sequences of another shape than the model's, or an unknown site.
        TypeError: arguments that are no tuple.

    Example:
        >>> import numpy as np
        >>> from decisionppl.inference.sequence_diagnostics import sequence_loss
        >>> from decisionppl.models import sequences
        >>> urn = sequences.polya_urn().sequence
        >>> loss = sequence_loss(urn, (3,), np.array([[1, 1, 0], [1, 1, 1]]))
        >>> np.exp(-loss).round(3).tolist()
        [[0.5, 0.6669999957084656, 0.25], [0.5, 0.6669999957084656, 0.75]]
    """
    if not isinstance(args, tuple):
        raise TypeError(
            f"args: expected the model's arguments as a tuple, got {type(args).__name__}; write "
            "(x,) for a single one."
        )
    named = isinstance(values, dict)
    arrays = jax.tree.map(jnp.asarray, values) if named else jnp.asarray(values)
    shapes = [x.shape for x in jax.tree.leaves(arrays)]
    if not shapes or any(len(s) < 2 or s[:2] != shapes[0][:2] for s in shapes):
        raise ValueError(f"values: expected shape [sequences, T, ...], got {shapes}.")
    program = Program(model, args)
    return _losses(program, named, program.arrays(args), arrays)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _losses(program: Program, named: bool, arguments: list, values: Any) -> jax.Array:
    count, length = jax.tree.leaves(values)[0].shape[:2]
    own = [x.shape[:1] == (count,) for x in arguments]

    def one(inputs: tuple) -> jax.Array:
        mine, given = inputs
        mine = iter(mine)
        arrays = [next(mine) if o else x for o, x in zip(own, arguments, strict=True)]
        steps = program.steps(arrays)
        given = given if named else {steps.site: given}
        if set(given) != set(steps.sites):
            raise ValueError(
                f"values: expected the data sites {list(steps.sites)}, got {list(given)}."
            )
        for name, site in steps.sites.items():
            if given[name].shape != (steps.length, *site.shape):
                expected = (count, steps.length, *site.shape)
                raise ValueError(
                    f"site {name!r}: expected shape {expected}, got "
                    f"{(count, *given[name].shape)}. Of the arguments, those with a leading axis "
                    f"of {count}, the number of sequences, were taken to have one entry for each."
                )

        def step(carry: Any, now: tuple) -> tuple:
            return steps.absorb(carry, *now)

        return -jax.lax.scan(step, steps.init, (steps.xs, given))[1]

    mapped = [jnp.asarray(x) for o, x in zip(own, arguments, strict=True) if o]
    losses = jax.lax.map(one, (mapped, values), batch_size=min(count, _BATCH))
    return losses.reshape(count, length)


def loss_gap(
    model: Callable,
    reference: Callable,
    args: tuple,
    values: Any,
    *,
    reference_args: tuple | None = None,
    num_arms: int = 1,
) -> LossGap:
    r"""Loss of a model beyond that of a reference, on the same sequences.

    If the reference is the law the sequences were drawn from, the expected gap is the
    Kullback-Leibler divergence of the model's joint law from it: not negative, and zero for the
    same law only. Differences are paired, so the standard error is that of the difference.

    Decisions by generation from a model bear its gap as a term of their regret: with rewards in
    [0, 1], the regret per period is at most that under the true law plus
    :math:`\sqrt{2\,\mathrm{gap}}`, where the gap is that of the whole table. This is
    `regret_term`. It is a diagnostic to compare models by, and no bound to rely on: the gap of a
    whole table grows with its length, the term is usually above 1, and then it promises nothing
    about rewards that lie in [0, 1].

    Args:
        model: a sequence model, as for `sequence_loss`.
        reference: another one, such as the exact law.
        args: arguments of both, as for `sequence_loss`.
        values: complete sequences [sequences, T, ...], or a dict from data site to them.
        reference_args: arguments of the reference, where it takes others.
        num_arms: how many independent sequences make up a table, such as one for each arm of a
            bandit, if `values` has them one by one. Their gaps add: all results are for a table.

    Returns:
        `LossGap`.

    Raises:
        ValueError: fewer than two sequences, which have no standard error, or what
            `sequence_loss` raises.

    Example:
        >>> import numpy as np
        >>> from decisionppl.inference.sequence_diagnostics import loss_gap
        >>> from decisionppl.models import sequences
        >>> flat, sure = sequences.polya_urn(1.0, 1.0), sequences.polya_urn(50.0, 50.0)
        >>> y = np.array([[1, 1, 1, 1], [1, 0, 0, 0]])
        >>> found = loss_gap(sure.sequence, flat.sequence, (4,), y)
        >>> round(found.gap, 2), round(found.stderr, 2)
        (0.44, 0.66)

    References:
        arXiv 2502.07064, Lemma 1 (the gap is a divergence) and Theorem 2 (regret).
    """
    if isinstance(num_arms, bool) or not isinstance(num_arms, int | np.integer) or num_arms < 1:
        raise ValueError(f"num_arms: expected a whole number of at least 1, got {num_arms!r}.")
    mine = sequence_loss(model, args, values)
    theirs = sequence_loss(reference, args if reference_args is None else reference_args, values)
    with np.errstate(invalid="ignore"):  # a loss that is NaN shows in the result
        difference = num_arms * (np.asarray(mine, float) - np.asarray(theirs, float))
    if len(difference) < 2:
        raise ValueError(f"values: expected at least 2 sequences, got {len(difference)}.")
    totals = difference.sum(axis=1)
    gap = float(totals.mean())
    stderr = float(totals.std(ddof=1)) / math.sqrt(len(totals))
    # written so that a gap that is NaN stays NaN
    regret_term = math.sqrt(2 * gap) if not gap <= 0 else 0.0
    return LossGap(gap, stderr, difference.mean(axis=0), regret_term)
