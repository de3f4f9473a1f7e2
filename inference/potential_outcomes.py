r"""Decisions by generating what was not seen: Thompson sampling on the completed table.

For each arm and each round there is an outcome, seen or not. A draw of the missing ones completes
the table; the policy that fits the completed table best, within a class that the user chose, is
one draw from the posterior of the best policy, and its action at the current context is Thompson
sampling's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

import decisionppl as dp
from decisionppl._environment import Environment
from decisionppl._inference import Inference
from decisionppl.inference._population import Population, complete, population, worlds_of
from decisionppl.inference.autoregressive import autoregressive
from decisionppl.inference.policies import PolicyClass, arm_means, as_policy_class, linear


class PotentialOutcomes(NamedTuple):
    """A decision problem derived from a sequence model of outcomes.

    Attributes:
        model: the one-round model of the context; latent site `policy` (what was fitted to the
            completed table), action site `arm`, outcome site (of the sequence model), reward
            site `score` (what the fitted policy gives the arm).
        inference: beliefs about the table; a world is a policy fitted to a completed table.
        environment: tables drawn from the sequence model itself; its regret is measured by the
            policy fitted to the whole true table, as in arXiv 2502.07064.
    """

    model: Callable
    inference: Inference
    environment: Environment


class _Fitted(dist.Distribution):
    """The site that holds a fitted policy: a pytree, given by a world."""

    support = dist.constraints.real  # pyright: ignore[reportAssignmentType]

    def __init__(self, prototype: Any) -> None:
        self.prototype = prototype
        super().__init__()

    def sample(self, key: Any = None, sample_shape: tuple = ()) -> Any:
        """Zeros in the shape of the policy's parameters: nothing was fitted yet."""
        return jax.tree.map(lambda s: jnp.zeros((*sample_shape, *s.shape), s.dtype), self.prototype)

    def log_prob(self, value: Any) -> jax.Array:
        """Zero: the site has no density of its own."""
        return jnp.zeros(())


def potential_outcomes(
    model: Callable,
    *args: Any,
    arms: Any,
    policy: Any = None,
    contexts: Callable | None = None,
    one_step: bool = False,
) -> PotentialOutcomes:
    r"""The decision problem of arms whose outcomes follow a sequence model.

    The parts go where every model and engine goes: `experiment.run(problem.model,
    problem.inference, rules.thompson, environment, ...)`. Each decision completes the table of
    potential outcomes (`inference.autoregressive`), fits the policy class to it, and scores the
    arms at the current context. The round at hand is one of those to come in that table: its
    context is drawn, or taken from `args`, like theirs, and becomes known with its outcome.

    Args:
        model: a sequence model of one arm's outcomes, as for `inference.autoregressive`.
        *args: its arguments for all rounds: their number, or contexts [T, ...].
        arms: the number of arms, or their features [arms, ...], the model's leading arguments.
        policy: the class of policies fitted to the completed table, see
            `inference.policies`: a `PolicyClass`, a pair (fit, score), or a function; restrict
            it by `policies.budget` and `policies.equal_selection`. Default: the arms' means
            without contexts, `policies.linear()` with.
        contexts: `(key, t) -> context of round t`, from which contexts to come are drawn;
            without it those in `args` are known ahead.
        one_step: as for `inference.autoregressive`.

    Returns:
        `PotentialOutcomes`.

    Raises:
        ValueError: a sequence model with several data sites, or one that observes vectors.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.models import sequences
        >>> urn = sequences.polya_urn(1.0, 1.0).sequence
        >>> problem = dp.inference.potential_outcomes(urn, 30, arms=3)
        >>> result = dp.experiment.run(
        ...     *problem[:2], dp.rules.thompson, problem.environment, horizon=30, key=0,
        ...     replications=20)
        >>> float(result.data.regret.isel(round=-1).mean()) < 0.25
        True

    References:
        Thompson sampling by generation: arXiv 2405.19466; with contexts and policies fitted to
        the imputed table: arXiv 2502.07064, Algorithm 1.
    """
    whole = population(model, args, arms)
    if whole.arms is None:
        raise ValueError("arms: give their number, or their features [arms, ...].")
    if len(whole.sites) != 1 or next(iter(whole.sites.values())).shape:
        raise ValueError(
            f"expected a sequence model that observes one number per step, got {whole.sites}."
        )
    (site,) = whole.sites
    if policy is None:
        policy = linear() if any(whole.per_round) else arm_means()
    policy = as_policy_class(policy)
    base = autoregressive(model, *args, arms=arms, contexts=contexts, one_step=one_step)

    def sample(key: Any, belief: Any, num_worlds: int) -> dict[str, Any]:
        tables, values = worlds_of(whole, key, belief, num_worlds, contexts, one_step)
        return {"policy": jax.vmap(lambda t, y: fitted(policy, t, y))(tables, values[site])}

    prototype = jax.eval_shape(
        lambda: jax.tree.map(
            lambda x: x[0], sample(jax.random.key(0), base.init(jax.random.key(0)), 1)["policy"]
        )
    )

    # compiled as one, since models are also run without compilation
    prior_law = jax.jit(lambda context, arm: _prior_law(whole, context, arm))

    def decision(*context: Any) -> None:
        params = numpyro.sample("policy", _Fitted(prototype))
        arm = dp.action("arm", whole.num_arms, given=_alone(context))
        dp.outcome(site, prior_law(context, arm))
        dp.reward("score", policy.score(params, _alone(context))[arm])

    environment = _environment(whole, policy, site, contexts)
    inference = Inference(base.init, base.update, jax.jit(sample, static_argnums=2))
    return PotentialOutcomes(decision, inference, environment)


def fitted(policy: PolicyClass, table: tuple, y: jax.Array) -> Any:
    """The policy fitted to one completed table: covariates leaves [T, ...], y [T, arms]."""
    return policy.fit(_alone(table), y.astype(float))


def _alone(table: tuple) -> Any:
    if not table:
        return None
    return table[0] if len(table) == 1 else table


def _prior_law(whole: Population, context: tuple, arm: Any) -> dist.Distribution:
    """Law of the arm's outcome before any data: it says what may be seen, not what will."""
    table = jax.tree.map(
        lambda t, x: jnp.asarray(t).at[0].set(jnp.asarray(x, jnp.result_type(t))),
        whole.round_args(), context,
    )  # fmt: skip
    mine = jax.tree.map(lambda x: x[arm], whole.arms)
    steps = whole.steps(table, mine)
    return steps.law(steps.init, jax.tree.map(lambda x: x[0], steps.xs))


def _environment(
    whole: Population, policy: PolicyClass, site: str, contexts: Callable | None
) -> Environment:
    def init(key: Any) -> Any:
        table, values = complete(whole, key, contexts)
        return table, values[site], fitted(policy, table, values[site])

    def context(key: Any, state: Any, t: Any) -> tuple:
        return jax.tree.map(lambda x: x[t], state[0])

    def step(key: Any, state: Any, t: Any, context: Any, action: Any) -> dict[str, Any]:
        return {site: state[1][t, action["arm"]]}

    def value(state: Any, t: Any, context: Any, actions: Any) -> jax.Array:
        return policy.score(state[2], _alone(context.args))[actions["arm"]]

    return Environment(init, context, step, value)
