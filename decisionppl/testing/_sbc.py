"""Simulation-based calibration: does an inference find what the model put in?"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._inference import Inference, Rows
from decisionppl._play import as_key
from decisionppl._storage import function_hash
from decisionppl.testing._check import (
    Statistic,
    check_count,
    check_probability,
    evidence,
    verdict,
)
from decisionppl.testing._quantities import LOG_LIKELIHOOD, Quantities, check_worlds, quantities_of
from decisionppl.testing._repeat import repeat
from decisionppl.testing._simulation import Simulator, simulator
from decisionppl.testing._uniformity import p_value


class SBC(NamedTuple):
    """Simulation-based calibration.

    Attributes:
        passed: whether no quantity is miscalibrated at `level`.
        message: the verdict, with the worst quantities.
        statistics: -log10(p) per quantity, beside its Bonferroni limit.
        names: the quantities.
        ranks: int [simulations, quantities], rank of the truth among the draws.
        p_values: of uniform ranks, [quantities].
        num_draws: how many draws the truth was ranked among.
        level: probability that a correct inference fails.
    """

    passed: bool
    message: str
    statistics: tuple[Statistic, ...]
    names: tuple[str, ...]
    ranks: np.ndarray
    p_values: np.ndarray
    num_draws: int
    level: float

    def plot(self, names: Iterable[str] | None = None, **options: Any) -> Any:
        """See `decisionppl.plots.ecdf_difference`."""
        from decisionppl import plots

        return plots.ecdf_difference(self, names, **options)


def sbc(
    model: Callable,
    inference: Inference,
    args: tuple = (),
    *,
    key: Any,
    num_rows: int | None = None,
    num_simulations: int = 500,
    num_draws: int = 100,
    level: float = 0.01,
    data: Iterable[str] | None = None,
    actions: Any = None,
    quantities: Mapping[str, Callable] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    checkpoint: Any = None,
) -> SBC:
    r"""Check an inference by simulation: the truth must be a typical posterior draw.

    Each simulation draws a world from the prior, rows from the world (actions from the logging
    policy), and ranks the world among draws from the posterior of those rows. If the inference
    is right, every rank is uniform. Ranked are all scalar latents, the log-likelihood of all
    rows, which alone sees a posterior that ignores the data, and, where the model has actions
    and a reward, the utility of the action that Thompson sampling chooses (by a draw that is not
    ranked). Uniformity is tested by the simultaneous test of the empirical distribution
    function, with a Bonferroni correction over the quantities.

    All simulations run in one compiled program, spread over the local devices.

    Args:
        model: a one-round model; without roles, name its data sites in `data`.
        inference: any `Inference` for it. An engine that keeps its history needs
            `capacity=` (at least the number of rows).
        args: the model's arguments, every leaf [rows, ...].
        key: PRNG key or int seed.
        num_rows: rows of each simulated data set; default as in `args`, or 1.
        num_simulations: how many data sets.
        num_draws: posterior draws that the truth is ranked among. Draws of a Markov chain are
            correlated: ask for no more than its effective sample size.
        level: probability that a correct inference fails.
        data: names of the sites that are logged; default all random sites with a role.
        actions: candidates for the choice, as in `utility`; default the finite action space,
            and no utility where there is none.
        quantities: more to rank: dict from name to `f(world, rows) -> number`.
        batch_size: simulations side by side on each device; default 64 on a CPU.
        progress: whether to show a bar.
        checkpoint: path of a file that keeps finished simulations; called again with the
            same arguments, `sbc` goes on from there.

    Returns:
        `SBC`.

    Raises:
        ValueError: no data sites, shapes that disagree, worlds without one of the latents, or
            a bad setting.
        TypeError: `inference` is no `Inference`.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl import inference, testing
        >>> def model():
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     dp.outcome("y", dist.Normal(mu, 1.0))
        >>> result = testing.sbc(model, inference.conjugate(model), key=0, num_rows=5)
        >>> result.passed, result.names, result.ranks.shape
        (True, ('mu', 'log-likelihood'), (500, 2))

    References:
        Talts et al., arXiv 1804.06788; Modrák et al., arXiv 2211.02383 (the log-likelihood
        as a quantity); Säilynoja, Bürkner and Vehtari, arXiv 2103.10522 (the test).
    """
    parts = simulator(model, args, num_rows, data)
    prepared = _prepare(parts, inference, num_draws, num_simulations, level, actions, quantities)

    def one(key: jax.Array) -> jax.Array:
        world_key, init_key, rank_key = jax.random.split(key, 3)
        world = parts.world(world_key)
        return prepared.rank(rank_key, world, inference.init(init_key), None)

    ranks = repeat(
        one, as_key(key), num_simulations, batch_size=batch_size, progress=progress,
        checkpoint=checkpoint, identity=prepared.identity("sbc"),
    )  # fmt: skip
    return verdict_of(prepared.quantities.names, ranks, num_draws, level)


def posterior_sbc(
    model: Callable,
    inference: Inference,
    rows: Rows,
    args: tuple | None = None,
    *,
    key: Any,
    num_rows: int | None = None,
    num_simulations: int = 500,
    num_draws: int = 100,
    level: float = 0.01,
    actions: Any = None,
    quantities: Mapping[str, Callable] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    checkpoint: Any = None,
) -> SBC:
    """Calibration where it matters: given the data at hand, instead of over the whole prior.

    Each simulation takes a world from the posterior of the real rows, simulates further rows
    from it, updates on them too, and ranks the world among draws of that second posterior. The
    worlds come from a fit of their own each, since draws of one Markov chain would share its
    error, and look miscalibrated together.

    Args:
        model, inference: as in `sbc`. An engine that keeps its history needs `capacity=` for
            the real and the simulated rows together.
        rows: the real rows, see `decisionppl.observe`; the sites they hold are simulated.
        args: arguments of the simulated rows, every leaf [rows, ...]; default those of `rows`.
        key: PRNG key or int seed.
        num_rows: number of simulated rows; default as many as real ones.
        num_simulations, num_draws, level, actions, quantities: as in `sbc`.
        batch_size, progress, checkpoint: as in `sbc`.

    Returns:
        `SBC`.

    Raises:
        ValueError, TypeError: as in `sbc`.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl import inference, testing
        >>> def model():
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     dp.outcome("y", dist.Normal(mu, 1.0))
        >>> seen = dp.observe(model, sites={"y": [3.0, 2.0]})
        >>> testing.posterior_sbc(model, inference.conjugate(model), seen, key=0).passed
        True

    References:
        Säilynoja, Schmitt, Bürkner and Vehtari, arXiv 2502.03279.
    """
    if not isinstance(rows, Rows):
        raise TypeError(
            f"rows: expected Rows, got {type(rows).__name__}. Make them with "
            "dp.observe(model, args, sites)."
        )
    key = as_key(key)
    if args is None:
        args = rows.args
        if not jax.tree.leaves(args) and num_rows is None:
            num_rows = int(np.shape(rows.mask)[0])
    parts = simulator(model, args, num_rows, rows.sites)
    prepared = _prepare(parts, inference, num_draws, num_simulations, level, actions, quantities)
    fit_key, key = jax.random.split(key)

    def fit(key: jax.Array) -> Any:
        init_key, update_key = jax.random.split(key)
        return inference.update(update_key, inference.init(init_key), rows)

    seen = fit(fit_key)

    def one(key: jax.Array, belief: Any) -> jax.Array:
        own_key, world_key, rank_key = jax.random.split(key, 3)
        drawn = inference.sample(world_key, fit(own_key), 1)
        world = {n: drawn[n][0] for n in parts.latents}
        return prepared.rank(rank_key, world, belief, rows)

    ranks = repeat(
        one, key, num_simulations, (seen,), batch_size=batch_size, progress=progress,
        checkpoint=checkpoint, identity=prepared.identity("posterior sbc", rows),
    )  # fmt: skip
    return verdict_of(prepared.quantities.names, ranks, num_draws, level)


class _Prepared(NamedTuple):
    simulator: Simulator
    inference: Inference
    quantities: Quantities
    num_draws: int

    def rank(self, key: jax.Array, world: Any, belief: Any, seen: Rows | None) -> jax.Array:
        """Rank of a world among the posterior of rows simulated from it; -1 at a NaN."""
        keys = jax.random.split(key, 5)
        rows = self.simulator.rows(keys[0], world)
        belief = self.inference.update(keys[1], belief, rows)
        # the last draw makes the choice, so it is not ranked
        drawn = self.inference.sample(keys[2], belief, self.num_draws + 1)
        worlds = {n: jnp.concatenate([world[n][None], drawn[n]]) for n in self.simulator.latents}
        everything = rows if seen is None else jax.tree.map(_join, seen, rows)
        values = self.quantities.values(worlds, everything, keys[3])
        truth, draws = values[0], values[1:-1]
        below = jnp.sum(draws < truth, axis=0)
        ties = jnp.sum(draws == truth, axis=0)
        lost = jnp.isnan(truth) | jnp.any(jnp.isnan(draws), axis=0)
        among = jax.random.randint(keys[4], ties.shape, 0, ties + 1)
        return jnp.where(lost, -1, below + among)

    def identity(self, kind: str, rows: Rows | None = None) -> str:
        """What the ranks depend on, for checkpoints."""
        parts = self.simulator
        arrays = [np.asarray(x).tobytes() for x in jax.tree.leaves((parts.args, rows))]
        given = hashlib.sha256(b"".join(arrays)).hexdigest()[:16]
        engine = [function_hash(f) for f in self.inference if callable(f)]
        names = self.quantities.names
        model = function_hash(parts.model)
        return repr((kind, model, engine, parts.num_rows, given, parts.data, self.num_draws, names))


def _join(a: Any, b: Any) -> jax.Array:
    return jnp.concatenate([jnp.asarray(a), jnp.asarray(b)])


def _prepare(
    parts: Simulator,
    inference: Inference,
    num_draws: int,
    num_simulations: int,
    level: float,
    actions: Any,
    quantities: Mapping[str, Callable] | None,
) -> _Prepared:
    check_probability("level", level)
    check_count("num_draws", num_draws)
    check_count("num_simulations", num_simulations, 2)
    check_worlds(parts, inference, num_draws)
    return _Prepared(parts, inference, quantities_of(parts, actions, quantities or {}), num_draws)


def verdict_of(names: tuple[str, ...], ranks: np.ndarray, num_draws: int, level: float) -> SBC:
    """What ranks [simulations, quantities] say."""
    limit = level / len(names)
    lost = np.asarray((ranks < 0).any(axis=0))
    p_values = np.array(
        [0.0 if bad else p_value(column, num_draws + 1)
         for bad, column in zip(lost, ranks.T, strict=True)]
    )  # fmt: skip
    statistics = tuple(evidence(n, p, limit) for n, p in zip(names, p_values, strict=True))
    good = (
        f"ranks of {len(names)} quantities in {len(ranks)} simulations look uniform "
        f"(smallest p {p_values.min():.2g}, limit {limit:.2g})."
    )
    bad = f"the posterior is miscalibrated in {len(ranks)} simulations:"
    passed, message = verdict(statistics, good, bad)
    if lost.any():
        where = [n for n, b in zip(names, lost, strict=True) if b]
        first = int(np.argmax((ranks < 0).any(axis=1)))
        message += f" NaN in {where[0]!r}, first in simulation {first}."
    elif not passed:
        message += " " + _diagnosis(names, ranks, p_values, num_draws, limit)
    return SBC(passed, message, statistics, names, ranks, p_values, num_draws, level)


def _diagnosis(
    names: tuple[str, ...], ranks: np.ndarray, p_values: np.ndarray, num_draws: int, limit: float
) -> str:
    """What the shape of the worst ranks says."""
    # the latents say it more plainly than the log-likelihood, if they are wrong at all
    plain = np.where([n == LOG_LIKELIHOOD for n in names], np.inf, p_values)
    worst = int(np.argmin(plain if plain.min() <= limit else p_values))
    share = (ranks[:, worst] + 0.5) / (num_draws + 1)
    count = len(share)
    # both are standard normal for uniform ranks
    location = (share.mean() - 0.5) * math.sqrt(12 * count)
    spread = (np.mean((share - 0.5) ** 2) - 1 / 12) * math.sqrt(180 * count)
    if names[worst] == LOG_LIKELIHOOD:
        how, much = ("more", "little") if location > 0 else ("less", "much")
        return (
            f"No latent looks wrong by itself, but the rows are {how} likely under the truth than "
            f"under the draws: the posterior makes too {much} of the rows."
        )
    if abs(location) > abs(spread):
        where = "above" if location > 0 else "below"
        return f"The truth of {names[worst]!r} lies {where} its posterior too often."
    how = "too narrow" if spread > 0 else "too wide"
    return f"The posterior of {names[worst]!r} is {how}."
