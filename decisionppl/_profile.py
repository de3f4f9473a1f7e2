"""What a belief and a rule say of given actions: means, uncertainty, scores."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._ask import Experiment
from decisionppl._decide import decide, decider
from decisionppl._decision import NUM_KEYS, as_context, net_of, unwrapped
from decisionppl._play import as_key
from decisionppl._space import as_actions
from decisionppl._utility import expectations


class Profile(NamedTuple):
    """Actions as an experiment sees them now.

    Attributes:
        actions: dict from action site to values [actions, ...].
        mean, sd: posterior moments of each action's utility, [actions].
        score: what the rule gives each, [actions]; -inf where it would not be chosen at all.
        rule: name of the rule.
        told: the actions asked so far, dict from site to values [rows, ...].
    """

    actions: dict[str, np.ndarray]
    mean: np.ndarray
    sd: np.ndarray
    score: np.ndarray
    rule: str
    told: dict[str, np.ndarray]


def profile(
    trial: Experiment,
    actions: Any,
    context: Any = None,
    *,
    rule: Callable | None = None,
    key: Any = 0,
) -> Profile:
    """What an experiment's belief and rule say of given actions.

    Args:
        trial: an experiment that asks and is told.
        actions: candidates, as in `decisionppl.utility`: along a line, they give a slice.
        context: what is known now, in the form of the experiment's example.
        rule: default the experiment's own.
        key: PRNG key or int seed, for engines and rules without a closed form.

    Returns:
        `Profile`; `plots.acquisition` draws it.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model():
        ...     m = numpyro.sample("m", dist.Normal(0, 1).expand([3]).to_event(1))
        ...     dp.reward("y", dist.Normal(m[dp.action("arm", 3)], 0.5))
        >>> trial = dp.experiment.Experiment(
        ...     model, dp.inference.conjugate(model), dp.rules.expected_improvement, key=0)
        >>> trial.tell(trial.ask().token, 1.0)
        >>> found = dp.experiment.profile(trial, jnp.arange(3))
        >>> found.rule, [f"{m:.1f}" for m in sorted(found.mean)]
        ('expected_improvement', ['0.0', '0.0', '0.8'])
    """
    own = trial._parts
    example = trial._example
    given = example if context is None else trial._checked(as_context(context))
    candidates = as_actions(own.model, actions, *given.args)
    parts = decider(
        own.model, own.inference, rule or own.rule, example, actions=candidates, draws=own.draws,
        constraint=own.constraint,
    )  # fmt: skip

    @jax.jit
    def look(key: jax.Array, belief: Any) -> tuple:
        keys = jax.random.split(key, NUM_KEYS)
        args, data = given.args, dict(given.sites)
        surrogate, predict = own.inference.surrogate, own.inference.predict
        if surrogate is not None:
            law = surrogate.utility(surrogate.view(belief), candidates, args, data, True)
            mean = law.loc.mean(0)
            variance = (law.scale**2).mean(0) + law.loc.var(0)
        elif predict is not None:
            law = predict(belief, candidates, args, data or None)
            mean, variance = law.mean, law.variance
        else:
            worlds = own.inference.sample(keys[0], belief, max(parts.draws, 1000))
            values = expectations(own.model, worlds, candidates, key=keys[1], args=args, data=data)
            reward, cost = net_of(values, parts.roles)
            net = reward if cost is None else reward - cost
            mean, variance = net.mean(0), net.var(0)
        return mean, jnp.sqrt(variance), decide(parts, keys, belief, given).scores

    mean, sd, score = (np.asarray(x) for x in look(as_key(key), trial.belief))
    base, per_cost = unwrapped(parts.rule)
    name = getattr(base, "__name__", type(base).__name__)
    told = {n: np.asarray(trial.history.get(n, ())) for n in candidates}
    shown: Mapping[str, Any] = {n: np.asarray(a) for n, a in candidates.items()}
    return Profile(dict(shown), mean, sd, score, f"{name} per cost" if per_cost else name, told)
