"""The factor model of a panel, its simulation and its regret; see `synthetic_control`."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import decisionppl as dp
from decisionppl._play import as_key, play
from decisionppl.experiment import Environment
from decisionppl.models._arguments import check_count, check_number


class SyntheticControl(NamedTuple):
    """The problem, its data and its truth.

    Attributes:
        model: one period, a model of its number t; latents `factors` [rank, periods], `loadings`
            [controls, rank], `weights` [rank], `intercept`, `effect`; action `treat` (0 or 1),
            outcome `controls` [controls], reward `outcome`.
        given_factors: the same with the period's factors [rank] as a second argument, and without
            controls: what could be known if they were.
        num_periods: all periods, those without a choice too.
        pre_periods: how many at the start are without a choice.
        environment: `(effect=None) -> Environment` for `experiment.run`, a world drawn from the
            prior per replication; None draws the effect too.
        simulate: `(key, treat, effect=None) -> Rows`, all periods under a given treatment path
            [num_periods]; equal keys give equal worlds and noise.
        regret: `(treat, effect) -> regret` of a path, over the periods with a choice.
    """

    model: Callable
    given_factors: Callable
    num_periods: int
    pre_periods: int
    environment: Callable
    simulate: Callable
    regret: Callable


def synthetic_control(
    num_controls: int = 20,
    rank: int = 3,
    *,
    pre_periods: int = 50,
    periods: int = 200,
    drift: float = 0.3,
    noise: float = 0.5,
    loading_scale: float = 1.0,
    prior: tuple[float, float] = (0.0, 1.0),
    intercept: bool = True,
) -> SyntheticControl:
    r"""A panel in which one unit is treated or not, period by period.

    Args:
        num_controls: n. Zero together with rank zero: no controls and no factors, two arms whose
            means differ by an unknown :math:`\tau`.
        rank: r, at most the number of controls.
        pre_periods: :math:`T_0`, periods without a choice.
        periods: T, periods with one.
        drift: :math:`\delta`, standard deviation of a step of the factors.
        noise: :math:`\sigma`.
        loading_scale: :math:`s_\ell`, how much of the common movement a unit takes.
        prior: mean and standard deviation of the effect, (m, s).
        intercept: whether the unit of interest has a level c of its own; without, it is zero.

    Returns:
        `SyntheticControl`.

    Raises:
        ValueError: a size or scale out of range.

    Example:
        >>> from decisionppl.models import synthetic_control as panels
        >>> problem = panels.synthetic_control(num_controls=5, rank=1, pre_periods=4, periods=6)
        >>> rows = problem.simulate(0, [0] * 4 + [1] * 6, effect=0.3)
        >>> rows.sites["controls"].shape, problem.regret(rows.sites["treat"], -0.5)
        ((10, 5), 3.0)
    """
    n, r = check_count("num_controls", num_controls, 0), check_count("rank", rank, 0)
    if r > n or (n > 0) != (r > 0):
        raise ValueError(
            f"rank: expected 1 to num_controls={n} (0 if there are no controls), got {rank}."
        )
    before, after = check_count("pre_periods", pre_periods, 0), check_count("periods", periods)
    for name, value in (
        ("drift", drift),
        ("noise", noise),
        ("loading_scale", loading_scale),
        ("prior's scale", prior[1]),
    ):
        check_number(name, value, above=0)
    check_number("prior's mean", prior[0])
    total = before + after

    def treated_unit(t: Any, factor: Any) -> None:
        level = numpyro.sample("intercept", dist.Normal(0, 1)) if intercept else 0.0
        effect = numpyro.sample("effect", dist.Normal(*prior))
        if r:
            own = dist.Normal(0, loading_scale).expand([r]).to_event(1)
            weights = numpyro.sample("weights", own)
            level = level + weights @ factor
        share = jnp.where(t < before, 0.0, 0.5)
        treat = dp.action("treat", dist.CategoricalProbs(jnp.stack([1 - share, share])))
        dp.reward("outcome", dist.Normal(level + effect * treat, noise))

    def model(t: Any) -> None:
        factor = None
        if r:
            walk = dist.GaussianRandomWalk(drift, total).expand([r]).to_event(1)
            factor = jnp.asarray(numpyro.sample("factors", walk))[:, t]
            theirs = dist.Normal(0, loading_scale).expand([n, r]).to_event(2)
            loadings = jnp.asarray(numpyro.sample("loadings", theirs))
            dp.outcome("controls", dist.Normal(loadings @ factor, noise).to_event(1))
        treated_unit(t, factor)

    def given_factors(t: Any, factor: Any) -> None:
        treated_unit(t, factor)

    def environment(effect: float | None = None) -> Environment:
        world = None if effect is None else {"effect": jnp.asarray(effect, float)}
        return dp.experiment.from_model(model, world=world, contexts=_period)

    @partial(jax.jit, static_argnums=2)
    def draw(key: Any, treat: jax.Array, known: bool, effect: Any) -> dict[str, jax.Array]:
        world_key, key = jax.random.split(key)
        trace = play(model, world_key, world={"effect": effect} if known else None)(0)
        world = {n: s["value"] for n, s in trace.items() if dp.role_of(s) is None}
        logged = [n for n, s in trace.items() if dp.role_of(s) is not None]

        def period(key: Any, t: Any, a: Any) -> dict[str, jax.Array]:
            run = play(model, key, policy=a, world=world)(t)
            return {n: run[n]["value"] for n in logged}

        return jax.vmap(period)(jax.random.split(key, total), jnp.arange(total), treat)

    def simulate(key: Any, treat: Any, effect: float | None = None) -> dp.Rows:
        path = _path(treat, total)
        known = effect is not None
        sites = draw(as_key(key), path, known, jnp.asarray(effect if known else 0.0, float))
        return dp.Rows((jnp.arange(total),), sites, jnp.ones(total, bool))

    def regret(treat: Any, effect: float) -> float:
        chosen = np.asarray(_path(treat, total))[before:]
        return float(max(effect, 0.0) * after - effect * chosen.sum())

    return SyntheticControl(model, given_factors, total, before, environment, simulate, regret)


def _period(key: Any, t: Any) -> tuple:
    return (t,)


def _path(treat: Any, total: int) -> jax.Array:
    path = jnp.asarray(treat)
    if path.shape != (total,):
        raise ValueError(
            f"treat: expected 0 or 1 for each of {total} periods, got shape {list(path.shape)}."
        )
    return path.astype(int)
