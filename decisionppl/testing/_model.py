"""Is a model written so that decisions can be derived from it?"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from decisionppl._play import Trace, as_key, is_latent, play
from decisionppl._roles import ROLES, role_of
from decisionppl._space import action_space
from decisionppl._structure import dependent_outputs
from decisionppl._utility import expected_value, utility
from decisionppl.testing import _model_numerics as numerics
from decisionppl.testing import _model_programs as programs
from decisionppl.testing._check import Statistic
from decisionppl.testing._model_case import Case, of_error


class Finding(NamedTuple):
    """One property of a model.

    Attributes:
        name: the property.
        passed: whether the model has it.
        message: what is wrong, where, and how to mend it; or what was found.
    """

    name: str
    passed: bool
    message: str


class ModelCheck(NamedTuple):
    """What `check_model` found.

    Attributes:
        passed: whether all findings passed.
        message: the findings that did not.
        statistics: 1 per finding that failed, 0 per one that passed.
        findings: all of them.
    """

    passed: bool
    message: str
    statistics: tuple[Statistic, ...]
    findings: tuple[Finding, ...]


def check_model(model: Callable, *args: Any, key: Any = 0, num_draws: int = 32) -> ModelCheck:
    """Check that a model is written so that decisions can be derived from it.

    The model runs, and its sites carry valid roles; action spaces are finite or bounded; the
    action can change a reward, or a state; utilities are finite; at draws from the model its
    log density and the gradient are finite, and `jit` and `vmap` agree with plain execution; it
    is traced once for all keys; it leaks no tracer, uses no key twice, draws the same under the
    same key; and it works in float32 and in float64.

    Args:
        model: a one-round model or a Markov step.
        *args: its arguments (an example context or state).
        key: PRNG key or int seed.
        num_draws: draws at which densities are looked at.

    Returns:
        `ModelCheck`; the message says what is wrong, where, and how to mend it.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl import testing
        >>> def model():
        ...     dose = dp.action("dose", dist.Normal(0, 1))
        ...     dp.reward("effect", dist.Normal(dose, 1.0))
        >>> print(testing.check_model(model).message)
        action space: site 'dose': Normal has unbounded support, so no best action exists. Give \
a finite or bounded space, such as dist.Uniform(low, high).
    """
    key = as_key(key)
    try:
        trace = play(model, key)(*args)
    except Exception as error:
        return _collect([Finding("runs", False, of_error(error, "the model does not run"))])
    case = Case(model, args, key, trace, num_draws)
    findings = [Finding("runs", True, f"{len(trace)} sites")]
    for name, check in _CHECKS.items():
        try:
            problems = list(check(case))
        except Exception as error:
            problems = [of_error(error, "this could not be checked")]
        findings.append(Finding(name, not problems, " ".join(problems) or "ok"))
        if problems and name == "compiles":
            break  # the rest would say the same in other words
    return _collect(findings)


def _collect(findings: list[Finding]) -> ModelCheck:
    failed = [f for f in findings if not f.passed]
    message = " ".join(f"{f.name}: {f.message}" for f in failed)
    message = message or f"all {len(findings)} properties hold."
    statistics = tuple(Statistic(f.name, float(not f.passed), 0.5) for f in findings)
    return ModelCheck(not failed, message, statistics, tuple(findings))


def _roles(case: Case) -> Iterator[str]:
    """Roles are known ones, on the right kind of site."""
    for name, site in case.trace.items():
        role = role_of(site)
        if role is not None and role not in ROLES:
            yield f"site {name!r}: unknown role {role!r}; roles are {', '.join(ROLES)}."
        if role == "action" and site["type"] != "sample":
            yield f"site {name!r}: an action needs a distribution. Write dp.action(name, space)."
        if site["type"] == "sample" and site["is_observed"]:
            yield (
                f"site {name!r}: has obs= in the model. Data enter through rows or "
                f'handlers.condition: write dp.outcome("{name}", distribution).'
            )
    roles = [role_of(s) for s in case.trace.values()]
    if "action" in roles and not {"reward", "state"} & set(roles):
        yield 'no reward site, so no action is better than another. Add dp.reward("name", value).'
    if "reward" in roles and "action" not in roles and "state" not in roles:
        yield 'no action site, so there is nothing to decide. Add dp.action("name", space).'


def _bounded(support: Any) -> bool:
    """Whether a support is known to be bounded."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    low, high = (getattr(support, n, None) for n in ("lower_bound", "upper_bound"))
    if low is not None and high is not None:
        return bool(np.all(np.isfinite(low)) and np.all(np.isfinite(high)))
    known = (
        constraints.boolean, constraints.simplex, constraints.circular, constraints.sphere,
        constraints.corr_cholesky, constraints.corr_matrix, constraints.l1_ball,
    )  # fmt: skip
    return any(type(support) is type(k) for k in known)


def _space(case: Case) -> Iterator[str]:
    """Action spaces are finite or bounded."""
    for name, site in case.trace.items():
        fn = site.get("fn")
        if role_of(site) != "action" or not isinstance(fn, dist.Distribution):
            continue
        if not fn.has_enumerate_support and not _bounded(fn.support):
            yield (
                f"site {name!r}: {type(fn).__name__} has unbounded support, so no best action "
                "exists. Give a finite or bounded space, such as dist.Uniform(low, high)."
            )


def _reachable(case: Case) -> Iterator[str]:
    """What is decided can change what is wanted."""
    actions = {n: s["value"] for n, s in case.trace.items() if role_of(s) == "action"}
    names = [n for n, s in case.trace.items() if role_of(s) in ("reward", "cost", "state")]
    if not actions or not names:
        return

    def values(actions: Mapping[str, Any]) -> dict[str, jax.Array]:
        trace = play(case.model, case.key, policy=_constant(case.trace, actions))(*case.args)
        return {n: expected_value(trace[n]) for n in sorted(names)}

    moved = dependent_outputs(values, 0, {n: _first(case.trace[n]) for n in actions})
    if not any(moved):
        yield (
            f"nothing that is wanted ({', '.join(map(repr, sorted(names)))}) depends on the action "
            f"({', '.join(map(repr, actions))}), so every decision is as good as another. Use the "
            "value that dp.action returns."
        )


def _first(site: Mapping[str, Any]) -> jax.Array:
    """One action out of a site that may be repeated by a plate or a scan."""
    value, event = jnp.asarray(site["value"]), site["fn"].event_dim
    return value.reshape(-1, *value.shape[value.ndim - event :])[0]


def _constant(trace: Trace, actions: Mapping[str, Any]) -> dict[str, Callable]:
    # through a function, since a policy's value may be traced here
    return {n: (lambda given, space, a=a: a) for n, a in actions.items()}


def _utilities(case: Case) -> Iterator[str]:
    """Utilities are finite in prior worlds, for all actions or as many as can be listed."""
    roles = {role_of(s) for s in case.trace.values()}
    if not {"action", "reward"} <= roles:
        return
    names = [n for n, s in case.trace.items() if is_latent(s)]

    def world(key: jax.Array) -> dict[str, Any]:
        trace = play(case.model, key)(*case.args)
        return {n: trace[n]["value"] for n in names}

    try:
        actions = action_space(case.model, *case.args)
    except ValueError:  # continuous or repeated: the actions that were drawn
        sites = {n: s for n, s in case.trace.items() if role_of(s) == "action"}
        actions = {n: _first(s)[None] for n, s in sites.items()}
    worlds = jax.jit(jax.vmap(world))(jax.random.split(case.key, case.num_draws))
    table = np.asarray(
        jax.jit(lambda w: utility(case.model, w, actions, key=case.key, args=case.args))(worlds)
    )
    if not np.isfinite(table).all():
        draw, action = (int(i) for i in np.argwhere(~np.isfinite(table))[0])
        yield (
            f"{int((~np.isfinite(table)).sum())} of {table.size} utilities are not finite; the "
            f"first is {table[draw, action]} at action {_show(actions, action)}, world {draw}. "
            "Look for divisions, logarithms and overflow in rewards and costs."
        )


def _show(actions: Mapping[str, Any], i: int) -> str:
    return ", ".join(f"{n}={np.asarray(a[i]).tolist()}" for n, a in actions.items())


_CHECKS: dict[str, Callable[[Case], Iterator[str]]] = {
    "roles": _roles,
    "compiles": programs.compiles,
    "action space": _space,
    "reward reachable": _reachable,
    "finite utility": _utilities,
    "finite density": numerics.density,
    "traced once": programs.traced_once,
    "no leaked tracer": programs.leaks,
    "no key reused": programs.keys,
    "same key, same trace": programs.repeatable,
    "float32 and float64": numerics.precision,
}
