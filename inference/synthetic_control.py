r"""Synthetic control as a belief: factors of the control series, regression of the treated one.

One period t of the factor model, with control series :math:`y^i_t` and a treated unit's
:math:`y^0_t`:

.. math:: y^i_t = \ell_i^T z_t + \epsilon, \qquad y^0_t = m(z_t, a_t; \theta) + \epsilon

Loadings :math:`\ell` are estimated from the control series alone, which no treatment reaches, by
their leading singular vectors; factors get their Gaussian posterior given these, and
:math:`\theta` (the treated unit's loadings, its level, the effect) its conjugate one given the
factors' means. What the factors' variance adds to the noise of :math:`y^0` is counted. Thompson
sampling on this belief is synthetically controlled Thompson sampling; no rule knows of it.

That the factors have a prior matters where they wander. A regression on noisy factors takes their
coefficients for too small, which shows as an effect as soon as the factors have moved between
control and treated periods; on posterior means it does not.

References:
    Farias, Moallemi, Peng and Zheng, Synthetically Controlled Bandits, arXiv 2202.07079.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer

from decisionppl._inference import Inference, Rows
from decisionppl._play import example_run, is_latent
from decisionppl._roles import role_of
from decisionppl.inference._buffer import Buffer, empty
from decisionppl.inference._factor_model import check_period, factor_model, reward_noise, weigh
from decisionppl.inference._factors import leading, posterior
from decisionppl.inference._likelihood import example_sites, fix
from decisionppl.inference.conjugate import conjugate


class SyntheticControlBelief(NamedTuple):
    """What is known after some periods.

    Attributes:
        history: `Buffer` with one slot per period.
        factors: their posterior means, [rank, periods], of periods not seen too.
        spread: their posterior variance, [periods], the same for every factor.
        loadings: of the control series, [controls, rank].
        regression: the conjugate belief about all other latents, given the factors.
    """

    history: Buffer
    factors: jax.Array
    spread: jax.Array
    loadings: jax.Array
    regression: Any


def synthetic_control(
    model: Callable,
    *args: Any,
    factors: str = "factors",
    loadings: str = "loadings",
    controls: str = "controls",
    periods: int | None = None,
) -> Inference:
    r"""Beliefs about a factor model of a panel, period by period.

    After every update loadings are estimated anew from all control outcomes seen, which costs an
    eigendecomposition of [controls, controls], and all else follows from them. They are scaled to
    the mean square of their prior. The posterior of the effect does not change if factors are
    rotated, as long as the prior of the treated unit's loadings does not. Left out are the
    uncertainty of the loadings, and what the treated unit's own outcomes say about the factors.

    A row belongs to the period that it names: rows may come in any order, and a second row of a
    period takes the place of the first.

    Args:
        model: a one-round model whose first argument is the period, an int from 0. It has latents
            `factors` [rank, periods] (Gaussian with mean zero, independent and alike) and
            `loadings` [controls, rank], an outcome `controls` [controls] of mean `loadings @
            factors[:, period]` and known noise, and is conjugate given the factors, see
            `conjugate`. Without factors and loadings (rank zero) it is conjugate as it is.
        *args: its arguments for an example period.
        factors, loadings, controls: names of these sites.
        periods: number of periods, where the model has no factors that say it.

    Returns:
        `Inference`; a belief is a `SyntheticControlBelief` of fixed shape, so that a whole
        experiment compiles once. In a world, factors and loadings are the estimates, other latents
        are drawn. `predict` is that of `conjugate` at the factors' means: of a period not seen yet
        they are a forecast, which no comparison of actions depends on unless the effect does.

    Raises:
        ValueError: sites that are missing or whose shapes do not fit, a period that is no int or
            out of range.
        TypeError: a model that is not conjugate given its factors, or factors with another law.

    Example:
        >>> import jax
        >>> import decisionppl as dp
        >>> from decisionppl.models import synthetic_control as panels
        >>> problem = panels.synthetic_control(num_controls=8, rank=2, pre_periods=10, periods=20)
        >>> engine = dp.inference.synthetic_control(problem.model, 0)
        >>> run = dp.experiment.run(
        ...     problem.model, engine, dp.rules.thompson, problem.environment(0.5),
        ...     horizon=30, key=0, replications=3)
        >>> int(run.data.treat.isel(round=slice(0, 10)).sum())     # before it may be treated
        0

    References:
        Farias, Moallemi, Peng and Zheng, arXiv 2202.07079.
    """
    check_period(args)
    trace = example_run(model, args)
    names = (factors, loadings, controls)
    shape = factor_model(model, trace, names, args, periods)
    held = {factors, loadings} & set(trace)
    if {n for n, s in trace.items() if is_latent(s)} <= held:
        raise ValueError("the model has no latents besides factors and loadings: nothing to learn.")
    cells = {n: v for n, v in example_sites(trace).items() if role_of(trace[n]) != "context"}
    contexts = [n for n, s in trace.items() if role_of(s) == "context"]
    if contexts:
        raise ValueError(f"context site {contexts[0]!r}: make it an argument of the model instead.")

    def given(factor: jax.Array, weight: Any, *args: Any) -> Any:
        """One period, its factor known: then the controls bear on nothing else."""
        if not held:
            return model(*args)
        values = {factors: factor[:, None], loadings: jnp.zeros(()), controls: jnp.zeros(())}
        return weigh(fix(model, values), weight)(*args)

    regression = conjugate(given, jnp.zeros(shape.rank), jnp.ones(()), *args)
    law = regression.predict
    noise = reward_noise(model, args) if held and law is not None else None
    first = {n: v for n, v in cells.items() if role_of(trace[n]) == "action"}

    def estimate(history: Buffer) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(factors [rank, periods], spread [periods], loadings [controls, rank])."""
        if shape.prior is None:
            nothing = jnp.zeros((0, shape.periods)), jnp.zeros(shape.periods)
            return *nothing, jnp.zeros((shape.num_controls, 0))
        mask = history.rows.mask
        series = jnp.where(mask[:, None], history.rows.sites[controls], 0.0)
        basis = leading(series, shape.rank)
        size = shape.scale * shape.num_controls**0.5
        mean, spread = posterior(shape.prior, series @ basis / size, shape.noise / size**2, mask)
        return mean.T, spread, basis * size

    def weights(belief: Any, history: Buffer, found: jax.Array, spread: jax.Array) -> jax.Array:
        """Noise over noise plus what the factor's variance adds to it, [periods]."""
        if noise is None or law is None:
            return jnp.ones(shape.periods)

        def mean(factor: jax.Array, args: tuple, action: Mapping[str, Any]) -> jax.Array:
            one = jax.tree.map(lambda x: x[None], action)
            return law(belief, one, (factor, jnp.ones(()), *args)).mean[0]

        rows = history.rows
        slope = jax.vmap(jax.grad(mean))(found.T, rows.args, {n: rows.sites[n] for n in first})
        return noise / (noise + jnp.sum(slope**2, 1) * spread)

    def regress(key: Any, history: Buffer, found: jax.Array, spread: jax.Array) -> Any:
        rows, prior = history.rows, regression.init(key)
        sites = {n: v for n, v in rows.sites.items() if n != controls or not held}
        learn = lambda w: regression.update(  # noqa: E731
            key, prior, Rows((found.T, w, *rows.args), sites, rows.mask)
        )
        belief = learn(jnp.ones(shape.periods))
        return belief if noise is None else learn(weights(belief, history, found, spread))

    @jax.jit
    def init(key: Any) -> SyntheticControlBelief:
        history = empty(args, cells, shape.periods)
        return SyntheticControlBelief(history, *estimate(history), regression.init(key))

    @jax.jit
    def learn(key: Any, belief: SyntheticControlBelief, rows: Rows) -> SyntheticControlBelief:
        # out of range, and so dropped, where a row does not count
        slot = jnp.where(rows.mask, rows.args[0], shape.periods)
        new = Rows(rows.args, {n: rows.sites[n] for n in cells}, rows.mask)
        put = lambda old, x: old.at[slot].set(jnp.asarray(x, old.dtype), mode="drop")  # noqa: E731
        kept = jax.tree.map(put, belief.history.rows, new)
        history = Buffer(kept, jnp.sum(kept.mask, dtype=jnp.int32))
        found, spread, basis = estimate(history)
        after = regress(key, history, found, spread)
        after = SyntheticControlBelief(history, found, spread, basis, after)
        # to the bit what it was where there was nothing to learn
        return jax.tree.map(lambda x, y: jnp.where(rows.mask.any(), x, y), after, belief)

    def update(key: Any, belief: SyntheticControlBelief, rows: Rows) -> SyntheticControlBelief:
        missing = [n for n in cells if n not in rows.sites]
        if missing:
            raise ValueError(f"rows have no {missing}: each period is logged by {list(cells)}.")
        _check_periods(rows, shape.periods)
        return learn(key, belief, rows)

    def sample(key: Any, belief: SyntheticControlBelief, num_worlds: int) -> dict[str, jax.Array]:
        worlds = dict(regression.sample(key, belief.regression, num_worlds))
        if held:
            for name, value in ((factors, belief.factors), (loadings, belief.loadings)):
                worlds[name] = jnp.broadcast_to(value, (num_worlds, *value.shape))
        return worlds

    if law is None:
        return Inference(init, update, sample)

    def predict(
        belief: SyntheticControlBelief, actions: Any, args: tuple = (),
        data: Mapping[str, Any] | None = None,
    ) -> dist.Distribution:  # fmt: skip
        factor = belief.factors[:, jnp.asarray(args[0])]
        return law(belief.regression, actions, (factor, jnp.ones(()), *args), data)

    return Inference(init, update, sample, predict)


def _check_periods(rows: Rows, periods: int) -> None:
    if not rows.args:
        raise ValueError("rows have no arguments; the first one is the period.")
    if isinstance(rows.args[0], Tracer) or isinstance(rows.mask, Tracer):
        return
    at, mask = np.asarray(rows.args[0]), np.asarray(rows.mask)
    bad = mask & ((at < 0) | (at >= periods))
    if bad.any():
        i = int(np.argmax(bad))
        raise ValueError(
            f"rows: period {at[i]} in row {i}, expected 0 to {periods - 1}. Write the model for "
            "more periods."
        )
