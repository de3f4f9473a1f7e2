r"""Beliefs by generation: the history is the belief, a completed sequence is a world.

A sequence model gives the law of the next observation from those before,
:math:`p(y_{n+1} \mid x_{n+1}, y_{1:n})`. Drawn one after the other, each draw joining the history
of the next, imagined observations follow their joint law: the uncertainty about any function of
the completed sequence is its variation over such draws. No latent variable, prior or sampler is
needed, and the model may be a closed form or a trained network.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._inference import Inference, Rows
from decisionppl._play import as_key
from decisionppl.inference._generate import absorb
from decisionppl.inference._population import (
    History,
    Population,
    nothing,
    population,
    with_round,
    worlds_of,
)
from decisionppl.inference._program import Program
from decisionppl.inference._steps import where


def autoregressive(
    model: Callable,
    *args: Any,
    arms: Any = None,
    contexts: Callable | None = None,
    one_step: bool = False,
    arm_site: str = "arm",
) -> Inference:
    r"""Beliefs of a sequence model about a finite population, by generation.

    The population has T units, T being the length of the sequence that `args` describe. Each
    row of data is the next of them, in the order of arrival, and brings its covariates along.
    A world is the population completed: cells that were seen keep their values, all others are
    drawn one after the other, each given the seen and the drawn before it. As everything is
    seen in the end, so is the truth: the variance of the population mean given n observations
    goes to zero as n goes to T.

    Args:
        model: a NumPyro model with one `scan`, which draws each observation from its law given
            the past, such as `models.sequences` has, or `neural.sequence(net)` under
            `handlers.substitute(..., data=params)`.
        *args: its arguments for the whole population: the length, or covariates [T, ...].
        arms: None for one sequence; the number of arms, or their features (a tuple of several),
            leaves [arms, ...], which are the model's leading arguments. Arms are sequences of
            the same model, independent of each other; each round reveals one arm's outcome.
        contexts: `(key, t) -> covariates of round t`, from which those of rounds to come are
            drawn in each world. Without it the covariates in `args` are those of the population.
        one_step: draw every missing cell from its law given the seen cells alone. For
            comparison: it confounds noise with ignorance, and its worlds do not hang together.
        arm_site: name of the action site whose logged value is the arm.

    Returns:
        `Inference`. A belief is a `History`; `update` takes Rows with args (the row's
        covariates), sites (the data sites, and `arm_site` with arms), so that the history grows
        without recompilation; a world is a dict from data site to [worlds, T, ...]
        ([worlds, T, arms, ...] with arms). `predict` is None.

    Raises:
        ValueError: a model that is not a sequence model, see the message.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import decisionppl as dp
        >>> from decisionppl.models import sequences
        >>> urn = sequences.polya_urn(1.0, 1.0).sequence
        >>> engine = dp.inference.autoregressive(urn, 20)      # a population of 20
        >>> key = jax.random.key(0)
        >>> seen = dp.Rows((), {"y": jnp.asarray([1, 1, 0])}, jnp.ones(3, bool))
        >>> belief = engine.update(key, engine.init(key), seen)
        >>> worlds = engine.sample(key, belief, 100)["y"]
        >>> worlds.shape, bool((worlds[:, :3] == seen.sites["y"]).all())
        ((100, 20), True)

    References:
        arXiv 2405.19466 (posterior sampling by autoregressive generation); arXiv 2503.01215
        (one-step against multi-step); arXiv 2502.07064, Algorithm 1 (missing outcomes).
    """
    whole = population(model, args, arms)
    if contexts is not None and not any(whole.per_round):
        raise ValueError("contexts: the model has no argument with one entry per round.")

    def init(key: Any) -> History:
        return nothing(whole)

    @jax.jit
    def update(key: Any, belief: History, rows: Rows) -> History:
        _check_rows(whole, rows, arm_site)

        def one(belief: History, row: tuple) -> tuple[History, None]:
            args, sites, counts = row
            after = with_round(whole, belief, args, sites, sites.get(arm_site))
            return where(counts, after, belief), None

        mask = jnp.asarray(rows.mask)
        if mask.shape[0] == 1:  # a loop of one costs more than it does
            first = jax.tree.map(lambda x: jnp.asarray(x)[0], (rows.args, rows.sites, mask))
            return one(belief, first)[0]
        sites = {n: jnp.asarray(v) for n, v in rows.sites.items()}
        return jax.lax.scan(one, belief, (rows.args, sites, mask))[0]

    @functools.partial(jax.jit, static_argnums=2)
    def sample(key: Any, belief: History, num_worlds: int) -> dict[str, jax.Array]:
        return worlds_of(whole, key, belief, num_worlds, contexts, one_step)[1]

    return Inference(init, update, sample)


def _check_rows(whole: Population, rows: Rows, arm_site: str) -> None:
    needed = [*whole.sites, *([] if whole.arms is None else [arm_site])]
    missing = [n for n in needed if n not in rows.sites]
    if missing:
        raise ValueError(
            f"rows have no {missing}: each round of this population is logged by {needed}."
        )
    if len(rows.args) != sum(whole.per_round):
        raise ValueError(
            f"rows have {len(rows.args)} arguments; the sequence model has "
            f"{sum(whole.per_round)} with one entry per round."
        )


def impute(
    model: Callable,
    args: tuple,
    values: Any,
    *,
    key: Any,
    num_worlds: int,
    observed: Any = None,
    arms: Any = None,
    one_step: bool = False,
) -> dict[str, jax.Array]:
    """Draws of a table with missing cells, completed.

    Args:
        model: a sequence model, as for `autoregressive`.
        args: its arguments for the whole table.
        values: dict from data site to [length, ...] ([length, arms, ...] with arms), or the
            array if there is one site; what missing cells hold does not matter.
        key: PRNG key (typed or raw) or an int seed.
        num_worlds: number of draws.
        observed: bool [length] or [length, arms]; default where `values` are not NaN.
        arms: as for `autoregressive`.
        one_step: as for `autoregressive`.

    Returns:
        dict from data site to [worlds, length, ...]; observed cells are as given, to the bit.

    Raises:
        ValueError: shapes that do not fit, or an unknown site.

    Example:
        >>> import numpy as np
        >>> from decisionppl import inference
        >>> from decisionppl.models import sequences
        >>> model = sequences.normal_normal(noise=0.5).sequence
        >>> table = np.array([0.3, np.nan, 0.1, np.nan, np.nan])
        >>> full = inference.impute(model, (5,), table, key=0, num_worlds=10)["y"]
        >>> full.shape, bool((full[:, 2] == np.float32(0.1)).all())
        ((10, 5), True)
    """
    whole = population(model, args, arms)
    given = values if isinstance(values, dict) else {next(iter(whole.sites)): values}
    if set(given) != set(whole.sites):
        raise ValueError(f"values: expected the data sites {list(whole.sites)}, got {list(given)}.")
    shape = (whole.length,) if whole.arms is None else (whole.length, whole.num_arms)
    arrays = {n: np.asarray(v) for n, v in given.items()}
    for name, array in arrays.items():
        expected = (*shape, *whole.sites[name].shape)
        if array.shape != expected:
            raise ValueError(f"site {name!r}: expected shape {expected}, got {array.shape}.")
    if observed is None:
        nan = [np.isnan(a.astype(float)).reshape(*shape, -1).any(-1) for a in arrays.values()]
        observed = ~np.any(nan, axis=0)
    observed = np.asarray(observed, bool)
    if observed.shape != shape:
        raise ValueError(f"observed: expected shape {shape}, got {observed.shape}.")
    cells = {n: jnp.asarray(np.nan_to_num(a), whole.sites[n].dtype) for n, a in arrays.items()}
    program = Program(model, (args, arms))
    return _impute(
        program, num_worlds, bool(one_step), program.arrays((args, arms)), as_key(key), cells,
        jnp.asarray(observed),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _impute(
    program: Program, num_worlds: int, one_step: bool, arrays: list, key: Any, cells: dict,
    observed: Any,
) -> dict[str, jax.Array]:  # fmt: skip
    whole = population(program.model, *program.args(arrays))
    start = nothing(whole)

    def learn(arm: tuple, carry: Any, values: Any, seen: Any) -> Any:
        return absorb(whole.steps(start.args, arm), carry, values, seen)[0]

    by_arm = (cells, observed)
    if whole.arms is not None:
        by_arm = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), by_arm)
    carry = whole.each(learn, start.carry, *by_arm)
    belief = History(start.args, cells, observed, carry, jnp.zeros((), jnp.int32))
    return worlds_of(whole, key, belief, num_worlds, None, one_step)[1]
