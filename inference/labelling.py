r"""Active labelling by generation: which row of a population is worth a label.

The view: a population of T rows with covariates (the arguments of a sequence model), some of them
labelled, the others candidates. A sequence model gives the law of the next label at any row's
covariate x, given the labelled rows. Its variance mixes two things: what more labels would
settle (epistemic), and what no label ever will (aleatoric). One law cannot tell them apart, but
its own future can: labels generated one after the other at the same x, each joining the history
of the next, move the law at x as far as what is unknown there allows, and what is left of its
spread is noise.

- `uncertainty`: both parts, and the information in a label, at each row.
- `label`: rows chosen by such a score, their labels revealed one by one or all at once.
- `predictive_loss`: how well the labelled rows predict all others.

All work under `jit` and `vmap`, so a study over many tables is one program:
`jax.vmap(lambda key, x, y: label(model, (x,), y, num_labels=19, key=key))(keys, xs, ys)`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._play import as_key
from decisionppl.inference._generate import absorb
from decisionppl.inference._labels import (
    as_labels,
    check_candidates,
    check_labels,
    count,
    indices,
    is_nan,
    mask,
    table,
)
from decisionppl.inference._program import Program
from decisionppl.inference._steps import Steps, at, where
from decisionppl.inference._uncertainty import (
    SCORES,
    Sizes,
    Uncertainty,
    parts_of,
    scores_of,
    sizes_of,
)

__all__ = ["Labelled", "Uncertainty", "label", "predictive_loss", "uncertainty"]


class Labelled(NamedTuple):
    """Rows in the order in which they were labelled.

    Attributes:
        order: int [num_labels]; -1 where no candidate was left.
        scores: the score of each when it was chosen, [num_labels]; -inf where none was left.
        observed: bool [T], which rows are labelled in the end.
    """

    order: jax.Array
    scores: jax.Array
    observed: jax.Array


def uncertainty(
    model: Callable,
    args: tuple,
    values: Any,
    *,
    key: Any,
    observed: Any = None,
    rows: Any = None,
    num_paths: int = 32,
    num_steps: int = 20,
) -> Uncertainty:
    r"""Uncertainty about the next label at each row, taken apart by generation.

    With D the labelled rows and :math:`y_{1:N}` labels generated one after the other at x,

    - total :math:`\mathrm{Var}[y \mid D]`,
    - epistemic :math:`\mathrm{Var}_{y_{1:N}} E[y \mid D, y_{1:N}]`,
    - aleatoric :math:`E_{y_{1:N}} \mathrm{Var}[y \mid D, y_{1:N}]`,
    - information :math:`H[y \mid D] - E_{y_{1:N}} H[y \mid D, y_{1:N}]`.

    For an exact model total = epistemic + aleatoric for every N, up to Monte Carlo error, and
    information is the mutual information of the next label and the N after it. As N grows, the
    epistemic part rises to the variance of the mean at x, the aleatoric part falls to that of the
    noise, and information rises to the expected information gain: what a label at x says about
    everything that is unknown there. For a learned model the two sides of the sum may differ,
    and by how much is a diagnostic of the model: its imagined future then does not bear out its
    present. An exact one that is cut short at N steps still calls noise what it would have learned
    from more: with signal variance v and noise variance w, the part :math:`w/(Nv + w)` of v.

    All rows share their random numbers, which makes the differences between rows, and so their
    ranking, far less noisy than the values. Labels of several numbers count with the sum of their
    variances, categories with that of their indicators. Where NumPyro has no formula for a
    moment or an entropy of the law, it is a mean over 128 draws, with one key for all laws.

    One compilation serves any number of labels, for one model object and one table size.

    Args:
        model: a sequence model with one data site, as for `autoregressive`.
        args: its arguments for the whole table, a tuple.
        values: the labels, [T, ...], or a dict from the data site to them; what rows without a
            label hold does not matter.
        key: PRNG key (typed or raw) or an int seed.
        observed: bool [T], which rows are labelled; default where `values` are not NaN.
        rows: int [rows], where to look; default all T, the labelled ones included.
        num_paths: paths of generated labels at each row, at least 2. The standard error of the
            epistemic part is about sqrt(2 / num_paths) of it.
        num_steps: N, labels in each path.

    Returns:
        `Uncertainty`, each part [rows].

    Raises:
        ValueError: shapes that do not fit, sizes too small, rows that the table does not have, or
            a model that is not a sequence model of one data site.
        TypeError: `observed` or `rows` of another type.

    Example:
        >>> import numpy as np
        >>> from decisionppl.inference.labelling import uncertainty
        >>> from decisionppl.models import sequences
        >>> model = sequences.regions([1.0, 0.1], [0.1, 2.0]).sequence    # signal, noise
        >>> found = uncertainty(model, (np.array([-3.0, 3.0]),), np.full(2, np.nan), key=0)
        >>> int(found.total.argmax()), int(found.epistemic.argmax())
        (1, 0)

    References:
        Fong, Holmes and Walker, Martingale posterior distributions, arXiv 2103.15671; arXiv
        2503.01215 (one-step against multi-step uncertainty); Lindley, Annals of Mathematical
        Statistics 27, 1956, and Houlsby et al., arXiv 1112.5745 (information).
    """
    sizes = sizes_of(num_paths, num_steps)
    site, labels = as_labels(values)
    length = labels.shape[0]
    if observed is not None:
        observed = mask("observed", observed, length)
        check_labels("observed", observed, labels)
    rows = jnp.arange(length) if rows is None else indices("rows", rows, length)
    program = Program(model, args, site)
    return _uncertainty(program, sizes, program.arrays(args), labels, observed, rows, as_key(key))


def label(
    model: Callable,
    args: tuple,
    values: Any,
    *,
    num_labels: int,
    key: Any,
    observed: Any = None,
    score: str | Callable[[Uncertainty], Any] = "information",
    sequential: bool = True,
    candidates: Any = None,
    num_paths: int = 32,
    num_steps: int = 20,
) -> Labelled:
    """Choose rows to label by a score, and reveal their labels: a simulated study.

    Sequentially, the row with the highest score is revealed, its label joins the history, and
    all candidates are scored again; otherwise they are scored once and the best `num_labels` are
    revealed together, which tends to ask for the same thing many times over. A row is labelled at
    most once, and ties are broken at random.

    Args:
        model: a sequence model with one data site, as for `autoregressive`.
        args: its arguments for the whole table, a tuple.
        values: the true labels, [T, ...], or a dict from the data site to them. Those that are
            neither labelled nor candidates are not used, and may be NaN.
        num_labels: rows to label.
        key: PRNG key (typed or raw) or an int seed.
        observed: bool [T], rows labelled from the start; default none.
        score: a part of `Uncertainty`: "information", "epistemic" or "total"; or "random"; or a
            function `Uncertainty -> [candidates]`. "total" and "random" generate nothing.
        sequential: reveal one by one.
        candidates: bool [T], rows that may be chosen, default all; or their indices, int
            [candidates], all different: then only these are scored, which saves the time.
        num_paths, num_steps: as for `uncertainty`.

    Returns:
        `Labelled`.

    Raises:
        ValueError: shapes that do not fit, sizes too small, an unknown score, rows that the
            table does not have, fewer candidates than labels, or a label that is NaN. What is
            traced (under `jit` or `vmap`) is not looked at: see `Labelled` for candidates that
            run out.
        TypeError: `observed` or `candidates` of another type.

    Example:
        >>> import numpy as np
        >>> from decisionppl.inference.labelling import label
        >>> from decisionppl.models import sequences
        >>> model = sequences.regions([1.0, 0.5], [0.5, 0.5]).sequence
        >>> x = np.array([-4.0, -3.0, -2.0, 2.0, 3.0])
        >>> found = label(model, (x,), np.zeros(5), num_labels=2, key=0)
        >>> (x[found.order] < 0).tolist()                # one from either region
        [True, False]

    References:
        arXiv 2503.01215 (labels chosen once, by the spread of the predictive mean); MacKay,
        Information-based objective functions for active data selection (1992).
    """
    sizes = sizes_of(num_paths, num_steps)
    num_labels = count("num_labels", num_labels, 1)
    if not callable(score) and score not in SCORES:
        raise ValueError(
            f"score: expected one of {', '.join(map(repr, SCORES))} or a function of an "
            f"Uncertainty, got {score!r}."
        )
    site, labels = as_labels(values)
    length = labels.shape[0]
    observed = mask("observed", np.zeros(length, bool) if observed is None else observed, length)
    candidates = jnp.ones(length, bool) if candidates is None else jnp.asarray(candidates)
    check = mask if candidates.dtype == bool else indices
    check("candidates", candidates, length)
    check_labels("observed", observed, labels)
    check_candidates(observed, candidates, labels, num_labels)
    program = Program(model, args, site)
    return _label(
        program, sizes, num_labels, score, bool(sequential), program.arrays(args), labels,
        observed, candidates, as_key(key),
    )  # fmt: skip


def predictive_loss(
    model: Callable, args: tuple, values: Any, observed: Any, *, rows: Any = None
) -> jax.Array:
    """Negative log probability of each row's value given the labelled rows, nats.

    Each row is predicted alone, from the labelled rows and from no other. A row that is itself
    labelled is given its own label too, so its loss is that of a second label at its covariate
    that came out equal: average over test rows only.

    Args:
        model: a sequence model with one data site, as for `autoregressive`.
        args: its arguments for the whole table, a tuple.
        values: the labels, [T, ...], or a dict from the data site to them; NaN gives NaN.
        observed: bool [T], which rows are labelled.
        rows: int [rows], which to predict; default all T.

    Returns:
        Losses [rows].

    Raises:
        ValueError: shapes that do not fit, rows that the table does not have, or a model that is
            not a sequence model of one data site.
        TypeError: `observed` or `rows` of another type.

    Example:
        >>> import numpy as np
        >>> from decisionppl.inference.labelling import predictive_loss
        >>> from decisionppl.models import sequences
        >>> model = sequences.polya_urn().sequence
        >>> loss = predictive_loss(model, (3,), np.array([1, 1, 0]), np.array([True, True, False]))
        >>> [round(float(p), 3) for p in np.exp(-loss)]
        [0.75, 0.75, 0.25]
    """
    site, labels = as_labels(values)
    length = labels.shape[0]
    observed = mask("observed", observed, length)
    check_labels("observed", observed, labels)
    rows = jnp.arange(length) if rows is None else indices("rows", rows, length)
    program = Program(model, args, site)
    return _losses(program, program.arrays(args), labels, observed, rows)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _uncertainty(
    program: Program, sizes: Sizes, arrays: list, values: Any, observed: Any, rows: Any, key: Any
) -> Uncertainty:
    steps = program.steps(arrays)
    values, observed = table(steps, program, values, observed)
    return parts_of(steps, _learn(steps, values, observed), rows, key, sizes)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _label(
    program: Program, sizes: Sizes, num_labels: int, score: Any, sequential: bool,
    arrays: list, values: Any, observed: Any, candidates: Any, key: Any,
) -> Labelled:  # fmt: skip
    steps = program.steps(arrays)
    values, observed = table(steps, program, values, observed)
    masked = candidates.dtype == bool
    rows = jnp.arange(steps.length) if masked else candidates
    allowed = candidates if masked else jnp.ones(rows.shape, bool)

    def ranked(carry: Any, observed: jax.Array, key: Any) -> tuple[jax.Array, jax.Array]:
        """Rows from the highest score down, -1 for those that cannot be had; and the scores."""
        score_key, tie_key = jax.random.split(key)
        free = allowed & ~observed[rows]
        scores = jnp.asarray(scores_of(score, steps, carry, rows, score_key, sizes), float)
        scores = jnp.where(free, scores, -jnp.inf)
        # a score that is NaN comes first, so that it shows
        falling = jnp.where(jnp.isnan(scores), -jnp.inf, -scores)
        places = jnp.lexsort((jax.random.uniform(tie_key, rows.shape), falling, ~free))
        return jnp.where(free, rows, -1)[places], scores[places]

    def marked(observed: jax.Array, chosen: jax.Array) -> jax.Array:
        # as an index, -1 is the last row; one beyond the end is dropped
        place = jnp.where(chosen < 0, steps.length, chosen)
        return observed.at[place].set(True, mode="drop")

    carry = _learn(steps, values, observed)
    if not sequential:
        order, scores = ranked(carry, observed, key)
        short = (0, max(num_labels - rows.shape[0], 0))
        order = jnp.pad(order[:num_labels], short, constant_values=-1)
        scores = jnp.pad(scores[:num_labels], short, constant_values=-jnp.inf)
        return Labelled(order, scores, marked(observed, order))

    def reveal(state: tuple, key: Any) -> tuple:
        carry, observed = state
        order, scores = ranked(carry, observed, key)
        row = order[0]
        after, _ = steps.absorb(carry, at(steps.xs, row), {steps.site: values[row]})
        carry = where(row >= 0, after, carry)
        return (carry, marked(observed, row)), (row, scores[0])

    keys = jax.random.split(key, num_labels)
    (_, observed), (order, scores) = jax.lax.scan(reveal, (carry, observed), keys)
    return Labelled(order, scores, observed)


@functools.partial(jax.jit, static_argnums=0)
def _losses(
    program: Program, arrays: list, values: jax.Array, observed: Any, rows: Any
) -> jax.Array:
    steps = program.steps(arrays)
    labels, observed = table(steps, program, values, observed)
    carry = _learn(steps, labels, observed)
    missing = is_nan(values)

    def loss(row: jax.Array) -> jax.Array:
        log_prob = jnp.sum(steps.law(carry, at(steps.xs, row)).log_prob(labels[row]))
        return jnp.where(missing[row], jnp.nan, -log_prob)

    return jax.vmap(loss)(rows)


def _learn(steps: Steps, values: jax.Array, observed: jax.Array) -> Any:
    return absorb(steps, steps.init, {steps.site: values}, observed)[0]
