"""How probable logged actions are, under the law that logged them and under other policies."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer

from decisionppl._gaussian_process import at_mean
from decisionppl._inference import Rows
from decisionppl._play import Same, example_run, play
from decisionppl._roles import role_of
from decisionppl._structure import depends
from decisionppl.inference._trajectories import net_reward

LARGEST_SUPPORT = 1000  # values of one site that are looked at for each row


class Played(NamedTuple):
    """Rows as policies see them.

    Attributes:
        reward: rewards less costs, [rows].
        weight: probability of the actions taken under each policy, relative to that under the
            law that logged them, [policies, rows].
        propensity: of the actions taken, per action site, [rows, sites].
        lacking: whether a policy plays actions that the logging law does not, [policies, rows,
            sites].
    """

    reward: jax.Array
    weight: jax.Array
    propensity: jax.Array
    lacking: jax.Array


class Split(NamedTuple):
    """A policy in two parts: functions are programs, the rest are arrays that may change."""

    program: Any
    arrays: Any

    def join(self) -> Any:
        """The policy."""
        if isinstance(self.program, Same):
            return self.program.value
        if self.program is None:
            return self.arrays
        return {**self.arrays, **{n: rule.value for n, rule in self.program}}


def split(policy: Any) -> Split:
    """The parts of a policy, see `decisionppl.act`."""
    if policy is None:
        raise TypeError(
            "policy is None. Give a value, a Distribution, f(given, space), or a dict of those by "
            "action site; an empty dict is the logging law itself."
        )
    if isinstance(policy, Mapping):
        rules = tuple((n, Same(p)) for n, p in policy.items() if _is_rule(p))
        return Split(rules, {n: p for n, p in policy.items() if not _is_rule(p)})
    return Split(Same(policy), None) if _is_rule(policy) else Split(None, policy)


def _is_rule(policy: Any) -> bool:
    return callable(policy) and not isinstance(policy, dist.Distribution)


def known(*values: Any) -> bool:
    """Whether there are numbers to check, not only shapes."""
    return not any(isinstance(x, Tracer) for x in jax.tree.leaves(values))


def check_rows(model: Callable, rows: Any, policies: tuple) -> list[str]:
    """Refuse rows and policies from which no value follows; the names of the action sites."""
    if not isinstance(rows, Rows):
        raise TypeError(
            f"rows: expected dp.observe(model, args, sites), got {type(rows).__name__}."
        )
    args, sites = jax.tree.map(lambda x: x[0], (rows.args, rows.sites))
    trace = example_run(model, args, at_mean=True, values=False)
    roles = {n: role_of(s) for n, s in trace.items()}
    actions = [n for n, role in roles.items() if role == "action"]
    for role in ("action", "reward"):
        if role not in roles.values():
            raise ValueError(
                f"the model has no {role} site (its sites: {list(trace)}), so no policy has a "
                f'value. Declare one with dp.{role}("name", ...).'
            )
    missing = [n for n in actions if n not in sites]
    if missing:
        raise ValueError(
            f"action site {missing[0]!r} is not in the rows: expected what was decided in each "
            f"row. Add sites[{missing[0]!r}] to dp.observe."
        )
    for policy in policies:  # values are checked while they are known: compiled code gets shapes
        jax.eval_shape(lambda *row, policy=policy: _laws(model, policy, *row), args, sites)
    return actions


def check_rewards(model: Callable, rows: Rows) -> None:
    """Refuse rows whose rewards are not all logged."""
    row = jax.tree.map(lambda x: x[0], (rows.args, rows.sites))
    if depends(lambda key, row: _reward(model, key, *row), 0, jax.random.key(0), row):
        trace = example_run(model, row[0], at_mean=True, values=False)
        random = [n for n, s in trace.items() if s["type"] == "sample" and n not in rows.sites]
        raise ValueError(
            f"the rewards of a row are not known: they depend on a random site that was not "
            f"logged, one of {random}. Log it in dp.observe; rewards that no row shows are "
            "worth what the model says, see off_policy.model_based."
        )


def _reward(model: Callable, key: Any, args: tuple, sites: Mapping[str, Any]) -> jax.Array:
    return net_reward(play(model, key, data=sites)(*args))


def _laws(model: Callable, policy: Any, args: tuple, sites: Mapping[str, Any]) -> list[Any]:
    """Laws of the action sites under a policy, all else as given; None is the logging law."""
    trace = play(at_mean(model), jax.random.key(0), policy=policy, data=sites)(*args)
    return [s["fn"] for s in trace.values() if role_of(s) == "action"]


def _bare(law: Any) -> Any:
    """The law of single elements: what masks it, or repeats it over many, left out."""
    while isinstance(law, dist.MaskedDistribution | dist.Independent | dist.ExpandedDistribution):
        law = law.base_dist
    return law


def _elementwise(law: Any, space: Any, name: str, value: Any) -> jax.Array:
    """Log probability or density of each element; minus infinity for those that never come."""
    discrete = space.support.is_discrete
    point = isinstance(law, dist.Delta)
    if not discrete and (point or law.support.is_discrete):
        raise ValueError(
            f"action site {name!r}: the policy has no density on the continuous space "
            f"{type(space).__name__} (it is {'a value' if point else type(law).__name__}), so no "
            "logged action can be weighed. Give a Distribution with a density, such as "
            "dist.Normal(value, width), or use off_policy.model_based."
        )
    found = law.log_prob(value)
    if not point and not isinstance(law.support, type(dist.constraints.simplex)):
        # not every density is zero where it should be
        found = jnp.where(law.support(value), found, -jnp.inf)
    if not discrete:
        return found
    # NumPyro moves probabilities of zero and one inwards by the precision of their dtype
    info = jnp.finfo(found.dtype)
    single = not law.event_shape and space.has_enumerate_support
    return jnp.where(found <= math.log(4 * info.eps if single else 4 * info.tiny), -jnp.inf, found)


def log_probability(
    model: Callable, policy: Any, names: list[str], args: tuple, sites: Mapping[str, Any]
) -> jax.Array:
    """Log probability or density of the actions in `sites` under a policy, [sites]."""
    spaces = [_bare(law) for law in _laws(model, None, args, sites)]
    laws = [_bare(law) for law in _laws(model, policy, args, sites)]
    each = zip(laws, spaces, names, strict=True)
    return jnp.stack([jnp.sum(_elementwise(w, s, n, jnp.asarray(sites[n]))) for w, s, n in each])


def _lacking(law: Any, space: Any, name: str) -> jax.Array:
    """Whether the law plays values that the space's own law does not."""
    law, space = _bare(law), _bare(space)
    if not space.has_enumerate_support or law.event_shape != space.event_shape:
        return jnp.zeros((), bool)
    values = space.enumerate_support(expand=False)
    if len(values) > LARGEST_SUPPORT:
        return jnp.zeros((), bool)
    batch = jnp.broadcast_shapes(law.batch_shape, space.batch_shape)
    values = values.reshape(len(values), *(1 for _ in batch), *space.event_shape)
    played = _elementwise(law, space, name, values) > -jnp.inf
    return jnp.any(played & (_elementwise(space, space, name, values) == -jnp.inf))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _played(
    model: Same, names: tuple, programs: tuple, arrays: tuple, rows: Rows, propensity: Any
) -> Played:
    policies = [Split(p, a).join() for p, a in zip(programs, arrays, strict=True)]

    def row(args: tuple, sites: Mapping[str, Any]) -> tuple:
        logging = log_probability(model.value, None, list(names), args, sites)
        spaces = _laws(model.value, None, args, sites)
        target, lacking = [], []
        for policy in policies:
            target.append(log_probability(model.value, policy, list(names), args, sites))
            laws = zip(_laws(model.value, policy, args, sites), spaces, names, strict=True)
            lacking.append(jnp.stack([_lacking(*law) for law in laws]))
        reward = _reward(model.value, jax.random.key(0), args, sites)
        return reward, logging, jnp.stack(target), jnp.stack(lacking)

    mapped = jax.vmap(row, out_axes=(0, 0, 1, 1))
    reward, logging, target, lacking = mapped(rows.args, rows.sites)
    logged = jnp.sum(logging, 1) if propensity is None else jnp.log(propensity)
    weight = jnp.where(rows.mask, jnp.exp(jnp.sum(target, 2) - logged), 0.0)
    return Played(jnp.where(rows.mask, reward, 0.0), weight, jnp.exp(logging), lacking)


def played(model: Callable, rows: Rows, policies: tuple, propensity: Any) -> Played:
    """Weights and rewards of logged rows; what cannot be divided by is refused.

    Args:
        model: a one-round model.
        rows: logged rounds.
        policies: what `decisionppl.act` takes, one or several.
        propensity: probability of the actions taken [rows], or None for the model's law.

    Returns:
        `Played`; rows that are masked out have weight 0.
    """
    parts = [split(p) for p in policies]
    names = check_rows(model, rows, policies)
    check_rewards(model, rows)
    programs, arrays = tuple(p.program for p in parts), tuple(p.arrays for p in parts)
    given = None if propensity is None else _checked(propensity, rows)
    found = _played(Same(model), tuple(names), programs, arrays, rows, given)
    if propensity is None:
        _check_law(names, found.propensity, found.lacking, rows.mask)
    return found


def _checked(propensity: Any, rows: Rows) -> jax.Array:
    propensity = jnp.asarray(propensity)
    if propensity.shape != rows.mask.shape:
        raise ValueError(
            f"propensity: expected shape {list(rows.mask.shape)}, the probability of the action "
            f"taken in each row, got {list(propensity.shape)}."
        )
    if known(propensity, rows.mask):
        values, mask = np.asarray(propensity), np.asarray(rows.mask)
        bad = ~((values > 0) & np.isfinite(values)) & mask
        if bad.any():
            i = int(np.argmax(bad))
            raise ValueError(
                f"propensity: got {values[i]} in row {i} ({int(bad.sum())} rows in all), expected "
                "the positive probability of the action that was taken. Drop those rows, or mask "
                "them."
            )
    return jnp.where(rows.mask, propensity, 1.0)


def _check_law(names: list[str], shares: Any, lacking: Any, mask: Any) -> None:
    if not known(shares, lacking, mask):
        return
    shares, lacking, mask = np.asarray(shares), np.asarray(lacking), np.asarray(mask)
    for j, name in enumerate(names):
        bad = (np.isnan(shares[:, j]) | (shares[:, j] == 0)) & mask
        if bad.any():
            i = int(np.argmax(bad))
            raise ValueError(
                f"action site {name!r}: the logging law gives the action taken in row {i} the "
                f"probability {shares[i, j]} ({int(bad.sum())} rows in all), expected a positive "
                "one. Write the law that logged the data as the site's law, or give propensity=."
            )
        bad = lacking[:, :, j].any(0) & mask
        if bad.any():
            i = int(np.argmax(bad))
            raise ValueError(
                f"action site {name!r}: the policy plays actions that the logging law never "
                f"takes, first in row {i} ({int(bad.sum())} rows in all); expected a positive "
                "probability of all that the policy plays. Restrict the policy or the rows to "
                "what was tried, or use off_policy.model_based, which extrapolates."
            )
