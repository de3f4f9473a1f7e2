"""What was known of every action after each round, from the rounds that a result holds."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._inference import Inference, Rows
from decisionppl._play import Same, as_key
from decisionppl._space import as_actions
from decisionppl._utility import utility

_MOST_ROUNDS = 200  # as many as a plot can show


class BeliefPath(NamedTuple):
    """Beliefs about the utility of every action, through time.

    Attributes:
        rounds: rounds learned from, [times]; the first is 0, the prior.
        mean: posterior mean of each action's utility, [times, actions].
        lower, upper: its interval of equal tails, [times, actions].
        level: posterior probability of the interval.
        labels: of the actions.
    """

    rounds: np.ndarray
    mean: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    level: float
    labels: tuple[str, ...]


def belief_path(
    model: Callable,
    result: Any,
    *,
    inference: Inference | None = None,
    replication: int = 0,
    contexts: Any = None,
    args: tuple = (),
    actions: Any = None,
    draws: int = 1000,
    level: float = 0.9,
    key: Any = 0,
) -> BeliefPath:
    """The belief about every action after each round of a result, learned again from its data.

    Outcomes count in the round of their decision, also where they arrived later.

    Args:
        model: the one-round model of the experiment.
        result: of `experiment.run`, or read from a file.
        inference: the engine; default that of the result, which a file does not hold.
        replication: which one.
        contexts: what the model's arguments were: arrays [rounds * batch, ...], a tuple for
            several; None if it has none. Context sites are in the result.
        args: the model's arguments at which utilities are shown.
        actions: as in `decisionppl.utility`; default all of a finite space.
        draws: worlds drawn from each belief.
        level: of the intervals.
        key: PRNG key (typed or raw) or an int seed.

    Returns:
        `BeliefPath`, at up to 200 rounds spread evenly; `plots.beliefs` draws it.

    Raises:
        ValueError: no engine, no such replication, contexts that do not fit, a bad level.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.models import build
        >>> problem = build("gaussian", num_arms=2)
        >>> result = dp.experiment.run(
        ...     problem.model, problem.engine(), dp.rules.thompson, horizon=30, key=0)
        >>> path = dp.experiment.belief_path(problem.model, result)
        >>> path.mean.shape, path.labels
        ((31, 2), ('arm 0', 'arm 1'))
        >>> bool((path.upper - path.lower)[-1].sum() < (path.upper - path.lower)[0].sum())
        True
    """
    engine = result.inference if inference is None else inference
    if engine is None:
        raise ValueError(
            "inference: a result that was read from a file holds no engine. Give the one it was "
            "made with, inference=..."
        )
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level!r}.")
    count = result.data.sizes["replication"]
    if not 0 <= replication < count:
        raise ValueError(f"replication: expected 0 to {count - 1}, got {replication}.")
    candidates = as_actions(model, actions, *args)
    rows = _rows(result, replication, contexts)
    rounds = result.rounds
    # blocks of rounds between the times shown, each learned row by row as in the experiment
    times = np.unique(np.linspace(0, rounds, min(rounds, _MOST_ROUNDS) + 1).round().astype(int))
    found = _learn(
        as_key(key), rows, jnp.asarray(times, jnp.int32), candidates, args, Same(model), engine,
        draws, level,
    )  # fmt: skip
    mean, lower, upper = (np.asarray(x) for x in found)
    return BeliefPath(times, mean, lower, upper, float(level), _labels(candidates))


def _rows(result: Any, replication: int, contexts: Any) -> Rows:
    """All rows of one replication, [rounds, batch, ...]."""
    data = result.data.isel(replication=replication)
    batched = "unit" in data.dims
    skipped = ("propensity", "regret", "action_index")

    def shaped(x: np.ndarray) -> jax.Array:
        return jnp.asarray(x if batched else x[:, None])

    sites = {n: shaped(v.values) for n, v in data.data_vars.items() if n not in skipped}
    shape = next(iter(sites.values())).shape[:2]
    given = () if contexts is None else contexts
    given = given if isinstance(given, tuple) else (given,)
    need = shape[0] * shape[1]
    for leaf in jax.tree.leaves(given):
        if len(leaf) < need:
            raise ValueError(f"contexts: expected {need} rows, one per decision, got {len(leaf)}.")
    per_row = jax.tree.map(lambda x: jnp.asarray(x)[:need].reshape(*shape, *x.shape[1:]), given)
    return Rows(per_row, sites, jnp.ones(shape, bool))


@partial(jax.jit, static_argnums=(5, 6, 7, 8))
def _learn(
    key: jax.Array, rows: Rows, times: jax.Array, actions: Any, args: tuple, model: Same,
    engine: Inference, draws: int, level: float,
) -> Any:  # fmt: skip
    init_key, world_key, learn_key = jax.random.split(key, 3)

    def shown(belief: Any) -> tuple:
        # the same random numbers at all times: curves move with the belief alone
        worlds = engine.sample(world_key, belief, draws)
        values = utility(model.value, worlds, actions, key=world_key, args=args)
        low, high = jnp.quantile(values, jnp.array([(1 - level) / 2, (1 + level) / 2]), axis=0)
        return values.mean(0), low, high

    def advance(belief: Any, span: tuple) -> tuple:
        def one(t: jax.Array, belief: Any) -> Any:
            now = jax.tree.map(lambda x: x[t], rows)
            return engine.update(jax.random.fold_in(learn_key, t), belief, now)

        belief = jax.lax.fori_loop(span[0], span[1], one, belief)
        return belief, shown(belief)

    first = engine.init(init_key)
    _, later = jax.lax.scan(advance, first, (times[:-1], times[1:]))
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), shown(first), later)


def _labels(actions: dict[str, jax.Array]) -> tuple[str, ...]:
    values = {n: np.asarray(a) for n, a in actions.items()}
    count = len(next(iter(values.values())))
    return tuple(
        ", ".join(f"{n} {np.array2string(a[i], precision=3, separator=', ')}" for n, a in
                  values.items())
        for i in range(count)
    )  # fmt: skip
