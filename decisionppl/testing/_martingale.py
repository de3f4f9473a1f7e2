"""Does imagining data move the predictive law on average?"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from decisionppl._play import is_latent, play
from decisionppl.testing._check import Statistic, check_count, check_probability, verdict
from decisionppl.testing._sequence import Sequence, rounding, sequence_of

_REPLICATES = 16


class Martingale(NamedTuple):
    """How far the predictive law drifts when one more observation is imagined.

    Attributes:
        passed: whether no gap exceeds its Monte Carlo error by more than `tolerance`.
        message: the verdict.
        statistics: largest excess per probe, beside the tolerance.
        gap: E[p(y_{n+2}) | y_{1:n}] - p(y_{n+1} | y_{1:n}) per probe of the law,
            [sequences, positions, probes].
        stderr: its standard error, 0 where the expectation is exact.
        positions: n, how many observations are given.
        probes: names of the probes.
        tolerance: what was allowed beyond Monte Carlo error.
    """

    passed: bool
    message: str
    statistics: tuple[Statistic, ...]
    gap: np.ndarray
    stderr: np.ndarray
    positions: np.ndarray
    probes: tuple[str, ...]
    tolerance: float


def check_martingale(
    model: Callable,
    *args: Any,
    key: Any = 0,
    site: str | None = None,
    num_sequences: int = 4,
    num_positions: int = 4,
    num_samples: int = 256,
    level: float = 0.01,
    tolerance: float | None = None,
) -> Martingale:
    r"""Check that imagined observations do not move the predictive law on average.

    If data are conditionally identically distributed,
    :math:`E[p(y_{n+2} \mid y_{1:n+1}) \mid y_{1:n}] = p(y_{n+1} \mid y_{1:n})`. Both sides are
    compared through probes of the law: its probabilities where the support is finite, its
    distribution function at five points and its mean otherwise. The expectation over
    :math:`y_{n+1}` is a sum where the support is finite, else a randomly shifted lattice of
    quantiles (or plain draws, where there is no quantile function), replicated 16 times.

    Args:
        model: a sequence model without latent sites, whose data site is [steps].
        *args: its arguments.
        key: PRNG key or int seed.
        site: the data site; default the only random site that carries a role.
        num_sequences: histories drawn from the model.
        num_positions: how many values of n, spread over the sequence.
        num_samples: imagined observations per replicate.
        level: probability that a martingale fails.
        tolerance: largest gap, beyond Monte Carlo error, that passes; default rounding.
            Give `math.inf` to only measure.

    Returns:
        `Martingale`, with the measured gaps.

    Raises:
        ValueError: latent sites, a sequence shorter than two steps, or no data site.

    Example:
        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl import testing
        >>> from numpyro.contrib.control_flow import scan
        >>> def sticky():                  # the last observation counts twice
        ...     def step(p, _):
        ...         y = dp.outcome("y", dist.Bernoulli(p))
        ...         return 0.2 + 0.5 * y, y
        ...     return scan(step, 0.5, jnp.arange(4))
        >>> testing.check_martingale(sticky).passed
        False

    References:
        Fong, Holmes and Walker, Martingale posterior distributions, arXiv 2103.15671.
    """
    for name, value in (
        ("num_sequences", num_sequences), ("num_positions", num_positions),
        ("num_samples", num_samples),
    ):  # fmt: skip
        check_count(name, value)
    check_probability("level", level)
    parts = sequence_of(model, args, site, key)
    name = _only_site(parts)
    if parts.length < 2:
        raise ValueError("the sequence has fewer than two steps; give arguments of a longer one.")
    positions = np.unique(np.linspace(0, parts.length - 2, num_positions).round().astype(int))
    prototype = _step_law(play(model, parts.key)(*args)[name]["fn"], 0, parts.length)
    finite = prototype.has_enumerate_support
    support = jnp.ravel(prototype.enumerate_support(expand=False)) if finite else None
    has_cdf, has_icdf = (_has(prototype, m) for m in ("cdf", "icdf"))

    def law(values: jax.Array, n: Any) -> Any:
        return _step_law(parts.trace({name: values})[name]["fn"], n, parts.length)

    def probe(fn: Any, points: jax.Array) -> jax.Array:
        if finite:
            return jnp.exp(jax.vmap(fn.log_prob)(points))
        mean = jnp.reshape(fn.mean, (1,))
        return jnp.concatenate([jax.vmap(fn.cdf)(points), mean]) if has_cdf else mean

    def gaps(key: jax.Array, values: jax.Array, n: Any) -> tuple[jax.Array, jax.Array]:
        now = law(values, n)
        point_key, *keys = jax.random.split(key, _REPLICATES + 1)
        points = now.sample(point_key, (5,)) if support is None else support
        here = probe(now, points)

        def after(y: jax.Array) -> jax.Array:
            return probe(law(values.at[n].set(y.astype(values.dtype)), n + 1), points)

        if support is not None:
            return here @ jax.vmap(after)(support) - here, jnp.zeros_like(here)

        def replicate(key: jax.Array) -> jax.Array:
            if has_icdf:
                shift = (jnp.arange(num_samples) + jax.random.uniform(key)) / num_samples
                y = jax.vmap(now.icdf)(jnp.clip(shift, 1e-6, 1 - 1e-6))
            else:
                y = now.sample(key, (num_samples,))
            return jnp.mean(jax.vmap(after)(y), axis=0)

        means = jax.lax.map(replicate, jnp.stack(keys))
        return jnp.mean(means, axis=0) - here, jnp.std(means, axis=0, ddof=1) / _REPLICATES**0.5

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        draw_key, key = jax.random.split(key)
        values = parts.draw(draw_key)[name]
        each = jax.random.split(key, len(positions))
        return jax.lax.map(lambda x: gaps(x[0], values, x[1]), (each, jnp.asarray(positions)))

    keys = jax.random.split(parts.key, num_sequences)
    gap, stderr = (np.asarray(x, float) for x in jax.jit(lambda k: jax.lax.map(one, k))(keys))
    if support is not None:
        probes = tuple(f"p({x})" for x in np.asarray(support).tolist())
    else:
        probes = (*(f"cdf[{i}]" for i in range(5 if has_cdf else 0)), "mean")
    if tolerance is None:
        tolerance = rounding(5.0)
    allowance = stats.t.isf(level / (2 * gap.size), _REPLICATES - 1) * stderr
    excess = (np.abs(gap) - allowance).max(axis=(0, 1))
    statistics = tuple(
        Statistic(f"drift of {p} beyond Monte Carlo error", max(float(e), 0.0) if e == e else e,
                  tolerance)
        for p, e in zip(probes, excess, strict=True)
    )  # fmt: skip
    passed, message = verdict(
        statistics,
        f"the predictive law drifts by at most {np.abs(gap).max():.2g} (standard error up to "
        f"{stderr.max():.2g}) at n = {', '.join(map(str, positions))}.",
        "the predictive law is no martingale:",
    )
    return Martingale(passed, message, statistics, gap, stderr, positions, probes, tolerance)


def _only_site(parts: Sequence) -> str:
    trace = play(parts.model, parts.key)(*parts.args)
    latents = [n for n, s in trace.items() if is_latent(s) and n not in parts.names]
    if latents:
        raise ValueError(
            f"the model has latent sites {latents}: its predictive law is that of one world. "
            "Check the model in its sequential form, with the latents integrated out."
        )
    name, *others = parts.names
    if others:
        raise ValueError(f"the model has data sites {list(parts.names)}; name one through site=.")
    if np.ndim(trace[name]["value"]) != 1:
        raise ValueError(
            f"site {name!r}: expected one number per step, [steps], got shape "
            f"{list(np.shape(trace[name]['value']))}."
        )
    return name


def _step_law(fn: Any, n: Any, length: int) -> Any:
    """The law of one step out of the law of all of them."""

    def take(x: Any) -> Any:
        if np.ndim(x) == 0:
            return x
        return x[n] if len(x) == length else x[0]

    law = jax.tree.map(take, fn)
    # `scan` stacks parameters and adjusts the outermost batch shape only
    law._batch_shape = fn.batch_shape[1:]
    return law


def _has(fn: Any, method: str) -> bool:
    try:
        jax.eval_shape(getattr(fn, method), jnp.asarray(0.5))
    except (NotImplementedError, ImportError):  # Student's t needs a library that may be missing
        return False
    return True
