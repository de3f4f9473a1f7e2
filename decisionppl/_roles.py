"""Roles: what a site of a NumPyro model means for the decision."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.primitives import _PYRO_STACK, apply_stack

ROLES = ("action", "outcome", "reward", "cost", "state", "context")


def role_of(site: Mapping[str, Any]) -> str | None:
    """The role of a traced site, or None for an ordinary latent (part of the world)."""
    return (site.get("infer") or {}).get("role")


def _site(role: str, name: str, value: Any) -> Any:
    if not isinstance(name, str):
        raise TypeError(
            f"{role} site: expected a name (str) as first argument, got {type(name).__name__}. "
            f'Write dp.{role}("name", ...).'
        )
    if isinstance(value, dist.Distribution):
        return numpyro.sample(name, value, infer={"role": role})
    if isinstance(value, type) and issubclass(value, dist.Distribution):
        raise TypeError(
            f"{role} site {name!r}: got the class {value.__name__}, expected an instance. "
            f"Give it parameters: {value.__name__}(...)."
        )
    if value is None or isinstance(value, str):
        raise TypeError(
            f"{role} site {name!r}: expected a numpyro Distribution or a numeric value, "
            f"got {value!r}."
        )
    if not _PYRO_STACK:
        return value
    # numpyro.deterministic takes no `infer`, so the message is sent from here
    message = {
        "type": "deterministic",
        "name": name,
        "value": value,
        "cond_indep_stack": [],
        "infer": {"role": role},
    }
    return apply_stack(message)["value"]


def _as_space(name: str, space: Any) -> dist.Distribution:
    if isinstance(space, bool) or not isinstance(space, int | dist.Distribution):
        raise TypeError(
            f"action site {name!r}: expected a numpyro Distribution or an int K (uniform over "
            f"K arms), got {type(space).__name__}. The support of the distribution is the set "
            "of actions, its law is the logging policy."
        )
    if isinstance(space, int):
        if space < 1:
            raise ValueError(f"action site {name!r}: expected at least one arm, got {space}.")
        return dist.CategoricalLogits(jnp.zeros(space))
    return space


def action(name: str, space: dist.Distribution | int, given: Any = None) -> jax.Array:
    """Declare a decision.

    Args:
        name: name of the site.
        space: a NumPyro distribution. Its support is the action space and its law is the
            logging (behaviour) policy. An int K stands for the uniform law over K arms.
        given: what a policy may see when it decides (any pytree). Feedback policies
            receive it as their first argument.

    Returns:
        The action taken: a draw from the logging policy, or from the policy that
        `decisionppl.act` put in its place.

    Raises:
        TypeError: if `space` is neither a distribution nor an int.

    Example:
        >>> import jax, numpyro
        >>> import decisionppl as dp
        >>> def model():
        ...     return dp.action("arm", 3)
        >>> int(numpyro.handlers.seed(dp.act(model, 2), 0)())
        2
    """
    law = _as_space(name, space)
    if _PYRO_STACK:
        # A helper message without a name: `trace` never records it, `act` answers it with
        # the law to use, and the site itself stays an ordinary sample site. So data can
        # still be conditioned on it, and it consumes its key under every policy.
        message = {
            "type": "policy",
            "site": name,
            "fn": lambda *_: law,
            "args": (),
            "kwargs": {},
            "space": law,
            "given": given,
            "value": None,
        }
        law = apply_stack(message)["value"]
    return numpyro.sample(name, law, infer={"role": "action"})  # pyright: ignore


def outcome(name: str, value: dist.Distribution | ArrayLike) -> Any:
    """Declare what is seen after the decision.

    Args:
        name: name of the site.
        value: a distribution (a random outcome: data are conditioned on it) or a value.

    Returns:
        The outcome.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model():
        ...     a = dp.action("arm", 2)
        ...     return dp.outcome("y", dist.Normal(a, 1.0))
        >>> dp.play(model, 0)()["y"]["infer"]["role"]
        'outcome'
    """
    return _site("outcome", name, value)


def reward(name: str, value: dist.Distribution | ArrayLike) -> Any:
    """Declare what is wanted; the utility is the sum of rewards minus the sum of costs.

    Args:
        name: name of the site.
        value: a distribution (seen, and wanted: its mean is used where it has one) or a
            value (wanted only: a function of other sites, such as the objective at the
            target fidelity).

    Returns:
        The reward.

    Example:
        >>> import numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model():
        ...     a = dp.action("arm", 2)
        ...     dp.reward("click", dist.Bernoulli(0.1 + 0.3 * a))
        >>> dp.utility(model, {}, dp.action_space(model), key=0).shape
        (1, 2)
    """
    return _site("reward", name, value)


def cost(name: str, value: dist.Distribution | ArrayLike) -> Any:
    """Declare what a decision costs (a distribution or a value); see `reward`."""
    return _site("cost", name, value)


def state(name: str, value: dist.Distribution | ArrayLike) -> Any:
    """Declare the next state of a Markov model (a distribution or a value); see `reward`."""
    return _site("state", name, value)


def context(name: str, value: dist.Distribution | ArrayLike) -> Any:
    """Declare what is known before the decision (a distribution or a value); see `reward`."""
    return _site("context", name, value)
