"""The exact law of one Markov step, by enumerating its finite sites."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from scipy import sparse

from decisionppl._constants import with_own_constants
from decisionppl._play import example_run, is_latent
from decisionppl._roles import role_of
from decisionppl._space import action_space
from decisionppl._structure import depends
from decisionppl.inference._kernel import Kernel
from decisionppl.inference._markov_states import Index, told

_MOST_ENTRIES = 50_000_000
_ROUNDING = 4 * np.finfo(float).eps
_WINDOWED = (dist.BinomialProbs, dist.BinomialLogits, dist.Poisson, dist.DiscreteUniform)


def kernel(
    step: Callable,
    states: Any,
    *args: Any,
    world: Mapping[str, Any] | None = None,
    tail: float = 1e-12,
) -> Kernel:
    r"""The exact law of one step, by enumerating its finite sites.

    Every random site that the next state or the reward depends on must have a finite support, or
    be Binomial or Poisson, of whose values those outside of an interval with probability at least
    1 - `tail` (Bernstein's inequality) are left out where that saves any. The expectation of a
    reward is used where nothing else depends on its value. Sites may depend on those before them.

    Args:
        step: `(state, *args) -> next state`, a model; all its random sites are drawn anew at each
            step.
        states: all states, a pytree of the structure of `state` with a leading axis [states].
        *args: further arguments of the step, such as parameters.
        world: values of latent sites that are parameters: a dict from site to [draws, ...], as
            engines sample them. All draws are evaluated in one program. For one value give
            `numpyro.handlers.condition(step, {site: value})` as the step.
        tail: probability that may be left out of each Binomial and Poisson law.

    Returns:
        `Kernel`.

    Raises:
        ValueError: a site that cannot be enumerated, a next state that is not listed, a duplicated
            state, or a model without reward or action.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl.inference import markov
        >>> def step(free):  # two units for rent; treated customers book more often
        ...     treat = dp.action("treat", dist.Bernoulli(0.5), given=free)
        ...     wants = numpyro.sample("wants", dist.Bernoulli(jnp.where(treat == 1, 0.6, 0.4)))
        ...     booked = dp.reward("booked", wants * (free > 0))
        ...     back = numpyro.sample("back", dist.Binomial(2 - free, 0.3))
        ...     return dp.state("free", free - booked + back)
        >>> known = markov.kernel(step, jnp.arange(3))
        >>> known.dense()[1, 1].round(3).tolist()  # treated, one unit free
        [0.42, 0.46, 0.12]
        >>> known.reward[:, 1].round(6).tolist()
        [0.4, 0.6]

    References:
        Puterman, Markov Decision Processes (1994), chapter 2, for the notation.
    """
    if not 0 < tail < 0.1:
        raise ValueError(f"tail: expected a probability between 0 and 0.1, got {tail!r}.")
    with jax.enable_x64(True):
        given = {n: _double(v) for n, v in (world or {}).items()}
        own = with_own_constants(step)
        found = _kernel(own, _double(states), tuple(_double(a) for a in args), given, tail)
    if world:
        return found
    drawn = ("probability", "gain", "gain_variance", "reward", "propensity")
    return found._replace(**{n: getattr(found, n)[0] for n in drawn})


def _double(tree: Any) -> Any:
    """Arrays of 64 bits."""

    def one(x: Any) -> Any:
        x = jnp.asarray(x)
        wide = jnp.int64 if jnp.issubdtype(x.dtype, jnp.integer) else jnp.float64
        return x if x.dtype == bool else x.astype(wide)

    return jax.tree.map(one, tree)


def _kernel(step: Callable, states: Any, args: tuple, world: dict[str, Any], tail: float) -> Kernel:
    index = Index(states)
    example = jax.tree.map(lambda x: x[0], states)
    worlds, draws = _checked_worlds(step, world, (example, *args))
    first = {n: v[0] for n, v in worlds.items()}
    # samplers of integers take seconds to compile, and no value is needed
    trace = example_run(step, (example, *args), data=first, values=False)
    roles = {n: role_of(s) for n, s in trace.items()}
    if "reward" not in roles.values():
        raise ValueError(
            f"the step has no reward site (its sites: {list(trace)}). Declare what is wanted with "
            'dp.reward("name", value).'
        )
    choices = action_space(step, example, *args)
    arms = len(next(iter(choices.values())))
    run = partial(_run, step, args)
    fixed = {n for n, s in trace.items() if s["type"] == "sample" and s["is_observed"]}
    free = {n: s for n, s in trace.items() if n not in worlds and n not in fixed}
    needed = _needed(partial(run, first), free, roles, example)

    # one row per state, arm and combination of what has been enumerated so far
    row = np.repeat(np.arange(index.count), arms)
    arm = np.tile(np.arange(arms), index.count)
    values: dict[str, Any] = {n: a[arm] for n, a in choices.items()}
    weight, truncated = np.ones((draws, len(row))), 0.0
    at = lambda rows: jax.tree.map(lambda x: x[rows], states)  # noqa: E731

    def mapped(look: Callable, *given: Any) -> Any:
        """A function of every row in every world, [draws, rows, ...]."""
        by_row = jax.vmap(look, in_axes=(None, *(0 for _ in given)))
        if not worlds:
            return jax.tree.map(lambda x: np.asarray(x)[None], jax.jit(by_row)({}, *given))
        both = jax.jit(jax.vmap(by_row, in_axes=(0, *(None for _ in given))))
        return jax.tree.map(np.asarray, both(worlds, *given))

    for name in needed:
        grid, mass, lost = _enumerated(run, mapped, name, trace[name]["fn"], at(row), values, tail)
        truncated = max(truncated, lost)
        keep = (mass > 0).any(0)
        if keep.sum() * draws > _MOST_ENTRIES:
            raise ValueError(
                f"site {name!r}: {keep.sum() * draws} combinations of states, actions and values "
                f"of sites, more than {_MOST_ENTRIES}. Enumerate a smaller model, or simulate it."
            )
        parent = np.nonzero(keep)[0]
        values = {n: v[parent] for n, v in values.items()}
        values[name] = grid[keep]
        weight, row, arm = weight[:, parent] * mass[:, keep], row[parent], arm[parent]

    def last(world: Any, state: Any, values: Any) -> tuple:
        return run(world, _consequences)(state, values)

    after, gain, variance = mapped(last, at(row), values)
    if any((np.asarray(x) != np.asarray(x)[:1]).any() for x in jax.tree.leaves(after)):
        raise ValueError(
            "the next state depends on the world other than through the laws of its sites: "
            "expected states that are the same for every value of the parameters."
        )
    after = jax.tree.map(lambda x: x[0], after)
    target = index.find(after, lambda i: told(states, row[i], values, i))
    flat = (arm * index.count + row) * index.count + target
    pairs, inverse = np.unique(flat, return_inverse=True)
    gather = sparse.csr_array(
        (np.ones(len(flat)), (inverse, np.arange(len(flat)))), (len(pairs), len(flat))
    )
    probability, total, square = (
        (gather @ (weight * x).T).T for x in (1.0, gain, gain**2 + variance)
    )
    divisor = np.where(probability > 0, probability, 1.0)
    mean = total / divisor
    source, arm = pairs // index.count % index.count, pairs // index.count**2
    reward = np.zeros((draws, arms, index.count))
    np.add.at(reward, (slice(None), arm, source), total)  # pyright: ignore[reportArgumentType]
    propensity = _propensity(run, mapped, states, choices, index.count, arms)
    return Kernel(
        jax.tree.map(np.asarray, states), {n: np.asarray(a) for n, a in choices.items()}, arm,
        source, pairs % index.count, probability, mean,
        np.maximum(square / divisor - mean**2, 0.0), reward, propensity, truncated,
    )  # fmt: skip


def _checked_worlds(step: Callable, world: dict[str, Any], args: tuple) -> tuple[dict, int]:
    """Values of the latent sites, and how many draws there are of them."""
    if not world:
        return {}, 1
    trace = example_run(step, args, values=False)
    latent = [n for n, s in trace.items() if is_latent(s)]
    worlds = {n: v for n, v in world.items() if n in latent}  # samplers return other sites too
    counts = {n: jnp.shape(v)[:1] for n, v in worlds.items()}
    if not worlds or () in counts.values() or len(set(counts.values())) != 1:
        raise ValueError(
            f"world: expected values [draws, ...] of some of the latent sites {latent}, got "
            f"{ {n: jnp.shape(v) for n, v in world.items()} }."
        )
    lost = [n for n, v in worlds.items() if not np.isfinite(np.asarray(v, float)).all()]
    if lost:
        raise ValueError(
            f"world: {lost[0]!r} has draws that are NaN or infinite: look at the engine's belief."
        )
    return worlds, next(iter(counts.values()))[0]


def _run(step: Callable, args: tuple, world: Mapping[str, Any], look: Callable) -> Callable:
    """`(state, values) -> look(trace, next state)`, sites in `world` and `values` as given."""

    def at(state: Any, values: Mapping[str, Any]) -> Any:
        given = {**world, **values}
        fixed = handlers.condition(handlers.seed(step, jax.random.key(0)), data=given)
        traced = handlers.trace(fixed)
        after = traced(state, *args)
        return look(traced.trace, after)

    return at


def _consequences(trace: Mapping[str, Any], after: Any) -> tuple:
    """The next state, and mean and variance of rewards less costs."""
    total: Any = 0.0
    variance: Any = 0.0
    for site in trace.values():
        role = role_of(site)
        if role in ("reward", "cost"):
            drawn = site["type"] == "sample" and not site["is_observed"]
            value = site["fn"].mean if drawn else site["value"]
            total = total + (1 if role == "reward" else -1) * jnp.sum(jnp.asarray(value, float))
            variance = variance + (jnp.sum(site["fn"].variance) if drawn else 0.0)
    return after, total, jnp.asarray(variance, float)


def _needed(run: Callable, trace: Mapping, roles: Mapping, example: Any) -> list[str]:
    """Random sites on which the next state or the expected reward depends, in program order."""
    random = [n for n, s in trace.items() if s["type"] == "sample" and roles[n] != "action"]
    some = {n: jnp.zeros(jnp.shape(s["value"]), s["value"].dtype) for n, s in trace.items()
            if n in random or roles[n] == "action"}  # fmt: skip
    actions = {n: some[n] for n, role in roles.items() if role == "action"}
    values = [some[n] for n in random]  # programs are looked at, not run
    needed: set[str] = set()

    def outputs(needed: frozenset[str], *given: Any) -> Any:
        def look(found: Mapping, after: Any) -> tuple:
            laws = [jax.tree.leaves(found[n]["fn"]) for n in random if n in needed]
            rewards = [
                site["fn"].mean if n in random and n not in needed else site["value"]
                for n, site in found.items() if roles[n] in ("reward", "cost")
            ]  # fmt: skip
            return after, rewards, laws

        return run(look)(example, {**actions, **dict(zip(random, given, strict=True))})

    while True:
        # a new function each time: what JAX has traced once it does not trace again
        now = partial(outputs, frozenset(needed))
        more = {n for i, n in enumerate(random) if n not in needed and depends(now, i, *values)}
        if not more:
            return [n for n in random if n in needed]
        needed |= more


def _enumerated(
    run: Callable, mapped: Callable, name: str, law: Any, state: Any, values: Mapping[str, Any],
    tail: float,
) -> tuple[np.ndarray, np.ndarray, float]:  # fmt: skip
    """Values [rows, width] of a site, their probabilities [draws, rows, width], what was left."""
    law = _core(law)
    if jax.eval_shape(lambda law: jnp.asarray(law.mean), law).shape != () or law.event_shape:
        raise ValueError(
            f"site {name!r} has shape {(*law.batch_shape, *law.event_shape)}: sites of several "
            "numbers (of a plate, or of a loop within the step) are not enumerated. Give each "
            "number a site of its own; if it is a parameter, give its value in world=, or by "
            "numpyro.handlers.condition(step, values); or simulate the step (markov.rollout)."
        )
    if isinstance(law, _WINDOWED):

        def ends(world: Any, state: Any, values: Any) -> tuple:
            return run(world, partial(_window, name, tail))(state, values)

        low, high = mapped(ends, state, values)
        low = low.min(0)
        width = int(np.max(high - low)) + 1
    elif law.has_enumerate_support:
        low, width = np.zeros(len(next(iter(values.values()))), int), 0
    else:
        raise ValueError(
            f"site {name!r}: {type(law).__name__} has no finite support, and the next state or the "
            "reward depends on its value. Expected finite sites, Binomial or Poisson; or estimate "
            "from simulated trajectories. If it is a parameter, give its value in world=, or by "
            "numpyro.handlers.condition(step, values)."
        )

    def look(low: Any, found: Mapping, after: Any) -> tuple:
        fn = found[name]["fn"]
        grid = low + jnp.arange(width) if width else fn.enumerate_support(expand=False)
        inside = fn.support(grid)
        first = jnp.argmax(inside)  # where there is no density, one that has is put in place
        mass = jnp.exp(fn.log_prob(jnp.where(inside, grid, grid[first])))
        return grid, jnp.where(inside, mass, 0.0)

    def of_row(world: Any, low: Any, state: Any, values: Any) -> tuple:
        return run(world, partial(look, low))(state, values)

    grid, mass = mapped(of_row, low, state, values)
    # probabilities that NumPyro keeps away from zero and one by rounding
    mass = np.where(mass <= _ROUNDING, 0.0, mass)
    total = mass.sum(-1)
    return grid[0], mass / total[..., None], float(np.max(np.abs(1 - total), initial=0.0))


def _core(law: Any) -> Any:
    while isinstance(law, dist.MaskedDistribution | dist.ExpandedDistribution):
        law = law.base_dist
    return law


def _window(name: str, tail: float, found: Mapping[str, Any], after: Any) -> tuple:
    """The least and the largest value outside of which a law has at most `tail`."""
    law = _core(found[name]["fn"])
    if isinstance(law, dist.DiscreteUniform):
        return jnp.asarray(law.low, int), jnp.asarray(law.high, int)
    # Bernstein: P(|X - mean| >= t) <= 2 exp(-t^2 / 2 (variance + t / 3))
    log = jnp.log(2 / tail)
    reach = log / 3 + jnp.sqrt(log**2 / 9 + 2 * law.variance * log)
    low = jnp.maximum(jnp.floor(law.mean - reach), 0).astype(int)
    high = jnp.ceil(law.mean + reach).astype(int)
    if isinstance(law, dist.BinomialProbs | dist.BinomialLogits):
        high = jnp.minimum(high, jnp.asarray(law.total_count, int))
    return low, jnp.maximum(high, low)


def _propensity(
    run: Callable, mapped: Callable, states: Any, choices: Mapping[str, Any], count: int, arms: int
) -> np.ndarray:
    """Probability of each arm by the laws of the action sites, [draws, states, arms]."""

    def look(found: Mapping, after: Any) -> Any:
        return sum((jnp.sum(found[n]["fn"].log_prob(found[n]["value"])) for n in choices), 0.0)

    def of_row(world: Any, state: Any, actions: Any) -> Any:
        return run(world, look)(state, actions)

    rows = np.repeat(np.arange(count), arms)
    actions = {n: a[np.tile(np.arange(arms), count)] for n, a in choices.items()}
    log = mapped(of_row, jax.tree.map(lambda x: x[rows], states), actions)
    chance = np.exp(log).reshape(-1, count, arms)
    return np.where(chance <= _ROUNDING, 0.0, chance)
