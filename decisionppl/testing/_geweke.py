"""Geweke's joint distribution test of a transition kernel or a sampler."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.diagnostics import effective_sample_size
from numpyro.infer.hmc import hmc
from numpyro.infer.util import ParamInfo
from scipy import special, stats

from decisionppl._inference import Inference, Rows
from decisionppl._play import as_key, play
from decisionppl._roles import role_of
from decisionppl.inference._likelihood import latents_of, log_likelihood
from decisionppl.testing._check import (
    Statistic,
    check_count,
    check_positive,
    check_probability,
    verdict,
)
from decisionppl.testing._quantities import LOG_LIKELIHOOD, check_worlds
from decisionppl.testing._simulation import Simulator, flat, scalars, simulator

_PILOT = 1000
_FEW = 200


class Geweke(NamedTuple):
    """Geweke's test.

    Attributes:
        passed: whether no test function differs between the two simulators at `level`.
        message: the verdict, with the worst test functions.
        statistics: abs(z) per test function, beside its Bonferroni limit.
        names: the test functions.
        z: difference of the two means in standard errors, [functions].
        ess: effective sample size of the successive-conditional means, [functions].
        level: probability that a correct kernel fails.
    """

    passed: bool
    message: str
    statistics: tuple[Statistic, ...]
    names: tuple[str, ...]
    z: np.ndarray
    ess: np.ndarray
    level: float


def hmc_transition(
    model: Callable, *args: Any, step_size: float, num_steps: int = 1
) -> Callable[[Any, Mapping[str, Any], Rows], dict[str, jax.Array]]:
    """One transition of Hamiltonian Monte Carlo that leaves p(world | rows) as it is.

    NumPyro's kernel with a fixed step size and unit mass, in unconstrained coordinates; one
    leapfrog step makes it the Metropolis-adjusted Langevin algorithm (MALA).

    Args:
        model: a one-round model with continuous latents.
        *args: its arguments for an example row.
        step_size: of the leapfrog integrator.
        num_steps: leapfrog steps per transition.

    Returns:
        `(key, world, rows) -> world`, as `geweke` takes it.

    Raises:
        TypeError, ValueError: a discrete latent, one whose prior differs between rows, or a
            step size that is not positive.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl import testing
        >>> def model():
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     dp.outcome("y", dist.Normal(mu, 1.0))
        >>> mala = testing.hmc_transition(model, step_size=0.5)
        >>> list(mala(0, {"mu": jnp.array(0.3)}, dp.observe(model, sites={"y": [1.0]})))
        ['mu']
    """
    check_positive(step_size=step_size)
    check_count("num_steps", num_steps)
    latents = latents_of(model, args)
    likelihood = log_likelihood(model)

    def potential(z: dict[str, jax.Array], rows: Rows) -> jax.Array:
        return -latents.log_prior(z) - likelihood(latents.constrain(z), rows)

    def transition(key: Any, world: Mapping[str, Any], rows: Rows) -> dict[str, jax.Array]:
        init, step = hmc(potential_fn_gen=lambda rows: partial(potential, rows=rows), algo="HMC")
        z = latents.unconstrain(world)
        energy, slope = jax.value_and_grad(potential)(z, rows)
        state = init(
            ParamInfo(z, energy, slope),
            num_warmup=0,
            step_size=step_size,
            adapt_step_size=False,
            adapt_mass_matrix=False,
            num_steps=num_steps,
            trajectory_length=None,  # pyright: ignore
            model_args=(rows,),
            rng_key=as_key(key),
        )
        return latents.constrain(step(state, (rows,)).z)

    return transition


def geweke(
    model: Callable,
    transition: Callable | Inference,
    args: tuple = (),
    *,
    key: Any,
    num_rows: int | None = None,
    num_chains: int = 32,
    num_samples: int = 4000,
    num_marginal: int = 100_000,
    level: float = 0.01,
    data: Iterable[str] | None = None,
    functions: Callable | None = None,
) -> Geweke:
    r"""Check a sampler: two ways of drawing worlds and data together must agree.

    The marginal-conditional simulator draws a world from the prior and rows from the world. The
    successive-conditional simulator draws, in turn, a world by the sampler under test given the
    rows and rows given the world. If the sampler leaves the posterior as it is, both have the
    same law. Each chain starts from the joint law, so nothing is discarded.

    Compared are the means of u, of u² and of the products of a latent's u with a datum's u,
    where u is the normal score (against 1000 pilot draws) of each scalar latent, of the
    log-likelihood, and of the mean and mean square over rows of everything that is seen. Scores
    are bounded, so the central limit theorem holds for heavy tails too. A difference is divided
    by its standard error, from the effective sample size of the chains; the limit on abs(z) is
    corrected for the number of functions.

    Args:
        model: a one-round model; without roles, name its data sites in `data`.
        transition: `(key, world, rows) -> world`, one step of the sampler, such as
            `hmc_transition`; or an `Inference`, whose posterior draw is the step.
        args: the model's arguments, every leaf [rows, ...].
        key: PRNG key or int seed.
        num_rows: rows of a data set; default as in `args`, or 1.
        num_chains, num_samples: successive-conditional chains, run side by side, and steps
            of each.
        num_marginal: marginal-conditional draws.
        level: probability that a correct sampler fails.
        data: names of the sites that are logged; default all random sites with a role.
        functions: `(world, rows) -> dict of numbers`, further test functions of finite
            variance, compared as they are.

    Returns:
        `Geweke`.

    Raises:
        ValueError, TypeError: as in `sbc`.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl import testing
        >>> def model(scale=1.0):
        ...     mu = numpyro.sample("mu", dist.Normal(0, scale))
        ...     dp.outcome("y", dist.Normal(mu, 1.0))
        >>> right = testing.hmc_transition(model, step_size=0.7)
        >>> wrong = testing.hmc_transition(lambda: model(0.8), step_size=0.7)
        >>> [testing.geweke(model, t, key=0, num_rows=3).passed for t in (right, wrong)]
        [True, False]

    References:
        Geweke (2004), Journal of the American Statistical Association 99:799-804.
    """
    parts = simulator(model, args, num_rows, data)
    check_probability("level", level)
    for name, value in (
        ("num_chains", num_chains), ("num_samples", num_samples), ("num_marginal", num_marginal),
    ):  # fmt: skip
        check_count(name, value, 2)
    step = _step(parts, transition)
    summaries = _summaries(parts)

    def joint(key: jax.Array) -> tuple:
        world_key, rows_key = jax.random.split(key)
        world = parts.world(world_key)
        return world, parts.rows(rows_key, world)

    def seen(world: Any, rows: Rows) -> tuple:
        more = () if functions is None else flat(dict(functions(world, rows)))
        return summaries.values(world, rows), more

    def chain(key: jax.Array) -> tuple:
        start_key, run_key = jax.random.split(key)

        def advance(state: tuple, i: jax.Array) -> tuple:
            step_key, rows_key = jax.random.split(jax.random.fold_in(run_key, i))
            world = step(step_key, *state)
            rows = parts.rows(rows_key, world)
            return (world, rows), seen(world, rows)

        return jax.lax.scan(advance, joint(start_key), jnp.arange(num_samples))[1]

    start = jax.eval_shape(joint, jax.random.key(0))
    blocks = -(-num_marginal // _PILOT)

    @jax.jit
    def everything(marginal_key: jax.Array, chain_key: jax.Array) -> tuple:
        # the first block is the pilot
        starts = jax.random.split(marginal_key, (blocks + 1, _PILOT))
        direct = jax.lax.map(jax.vmap(lambda k: seen(*joint(k))), starts)
        return direct, jax.vmap(chain)(jax.random.split(chain_key, num_chains))

    direct, chained = jax.device_get(everything(*jax.random.split(as_key(key))))
    pilot = np.sort(direct[0][0], axis=0)
    more = () if functions is None else scalars(dict(jax.eval_shape(functions, *start)))
    names = [*summaries.functions, *more]
    z, ess = np.zeros(len(names)), np.zeros(len(names))
    sides = [_columns(summaries, pilot, *x) for x in (_later(direct), chained)]
    for i, (a, b) in enumerate(zip(*sides, strict=True)):
        ess[i] = float(effective_sample_size(b)) if np.ptp(b) > 0 else b.size
        error = np.sqrt(a.var() / a.size + b.var() / ess[i])
        gap = b.mean() - a.mean()
        z[i] = 0.0 if gap == 0 else gap / error if error > 0 else np.inf
    return _result(tuple(names), z, ess, level)


class _Summaries(NamedTuple):
    """Scalars of a world and its rows; the first `num_latent` are of the world."""

    names: list[str]
    num_latent: int
    values: Callable

    @property
    def functions(self) -> list[str]:
        """Names of the test functions."""
        latent, data = self.names[: self.num_latent], self.names[self.num_latent :]
        squares = [f"({n})²" for n in self.names]
        return [*self.names, *squares, *(f"({n}) ({m})" for n in latent for m in data)]


def _step(parts: Simulator, transition: Any) -> Callable:
    if isinstance(transition, Inference):
        check_worlds(parts, transition, 1)

        def refresh(key: jax.Array, world: Any, rows: Rows) -> Any:
            keys = jax.random.split(key, 3)
            belief = transition.update(keys[1], transition.init(keys[0]), rows)
            drawn = transition.sample(keys[2], belief, 1)
            return {n: drawn[n][0] for n in world}

        step = refresh
    elif callable(transition):
        step = transition
    else:
        raise TypeError(
            "transition: expected a function (key, world, rows) -> world or an Inference, got "
            f"{type(transition).__name__}."
        )
    key = jax.random.key(0)
    world = jax.eval_shape(parts.world, key)
    after = jax.eval_shape(step, key, world, jax.eval_shape(parts.rows, key, world))
    before = {n: (x.shape, x.dtype) for n, x in world.items()}
    got = {n: (x.shape, x.dtype) for n, x in dict(after).items()}
    if before != got:
        raise ValueError(f"transition: expected a world of {before}, got {got}.")
    return step


def _summaries(parts: Simulator) -> _Summaries:
    likelihood = log_likelihood(parts.model)
    key = jax.random.key(0)
    rows = jax.eval_shape(parts.rows, key, parts.latents)
    trace = play(parts.model, 0)(*parts.example)
    seen = [n for n in parts.data if role_of(trace[n]) != "action"]

    def moments(rows: Rows) -> dict[str, jax.Array]:
        values = {n: rows.sites[n].astype(float) for n in seen}
        first = {f"mean {n}": jnp.mean(v, axis=0) for n, v in values.items()}
        return {**first, **{f"mean square {n}": jnp.mean(v**2, axis=0) for n, v in values.items()}}

    def values(world: Any, rows: Rows) -> jax.Array:
        of_world = [flat(world), jnp.ravel(likelihood(world, rows))]
        return jnp.concatenate([*of_world, flat(moments(rows))])

    latent = [*scalars(parts.latents), LOG_LIKELIHOOD]
    data = scalars(jax.eval_shape(moments, rows))
    return _Summaries([*latent, *data], len(latent), values)


def _later(blocks: Any) -> Any:
    return jax.tree.map(lambda x: x[1:].reshape(1, -1, *x.shape[2:]), blocks)


def _columns(parts: _Summaries, pilot: np.ndarray, values: np.ndarray, more: Any) -> Iterator:
    """Values of the test functions [chains, samples], one by one, in the order of their names."""
    u = [_scores(pilot[:, i], values[..., i]) for i in range(len(parts.names))]
    yield from u
    yield from (x**2 for x in u)
    yield from (x * y for x in u[: parts.num_latent] for y in u[parts.num_latent :])
    yield from np.moveaxis(np.asarray(more, float), -1, 0) if np.size(more) else ()


def _scores(pilot: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Normal scores among sorted pilot draws; ties take the middle of their ranks."""
    column = np.ascontiguousarray(column)
    twice = np.searchsorted(pilot, column, "left") + np.searchsorted(pilot, column, "right")
    return special.ndtri((np.arange(2 * len(pilot) + 1) + 1) / (2 * len(pilot) + 2))[twice]


def _result(names: tuple[str, ...], z: np.ndarray, ess: np.ndarray, level: float) -> Geweke:
    limit = float(stats.norm.isf(level / (2 * len(names))))
    statistics = tuple(
        Statistic(f"{n}: abs(z)", abs(float(x)), limit) for n, x in zip(names, z, strict=True)
    )
    good = (
        f"{len(names)} test functions agree (largest abs(z) {np.abs(z).max():.2f}, limit "
        f"{limit:.2f}; smallest effective sample size {ess.min():.0f})."
    )
    bad = "the sampler does not leave the posterior as it is:"
    passed, message = verdict(statistics, good, bad)
    if passed and ess.min() < _FEW:
        message += (
            f" The chains are worth only {ess.min():.0f} independent draws, so little would be "
            "noticed: take more samples, or larger steps."
        )
    return Geweke(passed, message, statistics, names, z, ess, level)
