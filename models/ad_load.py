r"""Ad load: how many ads a page shows, logged by a rule that looks at the user; truth known.

A user has features x in R^d, with mean 0 and variance 1 each, and :math:`\phi(x) = (1, x)`. The
load, :math:`\ell_a` ads per page, earns money and shortens the session:

.. math::

    \text{revenue} &\sim N(\log_2(1 + \ell_a)\, r^T \phi(x),\ \sigma^2) \\
    \text{engagement} &\sim N(s^T \phi(x) - \ell_a\, c^T \phi(x) - \kappa\, \ell_a (x_1^2 - 1),
    \ \sigma^2)

Both are rewards in units of money: more ads earn less and less each, while what they cost in
engagement grows in proportion, so the best load is about
:math:`r^T \phi / (c^T \phi \log 2) - 1`, other for every user. Latents are r, s and c, with normal
priors: the model is linear and Gaussian, and `inference.conjugate` exact. The curvature
:math:`\kappa` is in the data alone, never in the model: with `curved=True` the model is wrong, and
where the logging rule looks at :math:`x_1` its answers are biased.

Loads were logged with probability
:math:`b(a | x) = \epsilon + (1 - K \epsilon)\, \mathrm{softmax}_a(t\, a\, x_1)`, more ads for
larger :math:`x_1` if the tilt t is positive, never below :math:`\epsilon`.

Features have four levels, :math:`(2k - 3) / \sqrt{3}` with k binomial (3, 1/2), so that the value
of any policy is a finite sum over :math:`4^d` users.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import decisionppl as dp
from decisionppl._play import as_key, play
from decisionppl.inference._trajectories import probabilities

_LEVELS = (2 * np.arange(4) - 3) / math.sqrt(3)
_CHANCES = np.array([1, 3, 3, 1]) / 8
_LARGEST = 8  # features: 4 ** 8 users are listed


class AdLoad(NamedTuple):
    """The problem, its data and its truth.

    Attributes:
        model: one round, a model of the features x [d]; latents `revenue_weight`,
            `session_weight` and `loss_weight` [d + 1], action `load` (a number from 0 to K - 1),
            rewards `revenue` and `engagement`.
        loads: ads per page of each action, [K].
        parameters: dict of the latents, the truth unless others are given.
        users: features of all users [users, d], and how frequent each is [users].
        simulate: `(key, num_rows, parameters=None) -> Rows`, logged rounds.
        truth: `(policy, parameters=None) -> value`, the exact mean of rewards under a policy (what
            `decisionppl.act` takes), over all users.
    """

    model: Callable
    loads: np.ndarray
    parameters: dict[str, jax.Array]
    users: tuple[np.ndarray, np.ndarray]
    simulate: Callable
    truth: Callable


def ad_load(
    num_features: int = 3,
    *,
    loads: Sequence[float] = (1, 2, 4),
    noise: float = 1.0,
    prior_scale: float = 0.5,
    tilt: float = 1.0,
    smallest: float = 0.05,
    curved: bool = False,
    curvature: float = 0.2,
) -> AdLoad:
    r"""A logged ad-load problem.

    Args:
        num_features: d, from 1 to 8.
        loads: ads per page of each action, increasing.
        noise: :math:`\sigma`.
        prior_scale: standard deviation of each latent; means are 1 for the constants of revenue,
            2 and 0.4 for those of session and loss, else 0.
        tilt: t, how much the logging rule depends on :math:`x_1`.
        smallest: :math:`\epsilon`, positive and below 1 / K.
        curved: whether data have the curvature that the model lacks.
        curvature: :math:`\kappa`.

    Returns:
        `AdLoad`.

    Raises:
        ValueError: a number of features outside 1 to 8, loads that do not increase, a noise,
            scale or smallest probability out of range.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.models import ad_load
        >>> problem = ad_load.ad_load()
        >>> rows = problem.simulate(0, 2000)
        >>> found = dp.inference.off_policy.ips(problem.model, rows, 2, baseline=0)
        >>> truth = problem.truth(2) - problem.truth(0)
        >>> bool(abs(found.estimate - truth) < 4 * found.stderr)
        True
    """
    _check(num_features, loads, noise, prior_scale, smallest)
    ads = np.asarray(loads, float)
    gain = np.log2(1 + ads)

    def build(kappa: float) -> Callable:
        def model(x: Any) -> None:
            revenue_weight, session_weight, loss_weight = (
                numpyro.sample(f"{name}_weight", _prior(num_features, mean, prior_scale))
                for name, mean in (("revenue", 1.0), ("session", 2.0), ("loss", 0.4))
            )
            phi = jnp.append(1.0, x)
            shares = jax.nn.softmax(tilt * x[0] * jnp.arange(len(ads)))
            law = dist.CategoricalProbs(smallest + (1 - len(ads) * smallest) * shares)
            a = dp.action("load", law, given=x)
            ell = jnp.asarray(ads)[a]
            dp.reward("revenue", dist.Normal(jnp.asarray(gain)[a] * revenue_weight @ phi, noise))
            lost = ell * (loss_weight @ phi + kappa * (x[0] ** 2 - 1))
            dp.reward("engagement", dist.Normal(session_weight @ phi - lost, noise))

        return model

    model, nature = build(0.0), build(curvature if curved else 0.0)
    default = _parameters(num_features)
    users = _users(num_features)

    @partial(jax.jit, static_argnums=1)
    def draw(key: Any, num_rows: int, world: Mapping[str, Any]) -> tuple[jax.Array, dict]:
        user_key, key = jax.random.split(key)
        k = jax.random.choice(user_key, 4, (num_rows, num_features), p=jnp.asarray(_CHANCES))
        x = jnp.asarray(_LEVELS)[k]

        def row(key: Any, x: jax.Array) -> dict[str, jax.Array]:
            trace = play(nature, key, world=world)(x)
            return {n: trace[n]["value"] for n in ("load", "revenue", "engagement")}

        return x, jax.vmap(row)(jax.random.split(key, num_rows), x)

    def simulate(key: Any, num_rows: int, parameters: Mapping[str, Any] | None = None) -> dp.Rows:
        x, sites = draw(as_key(key), num_rows, default if parameters is None else dict(parameters))
        return dp.Rows((x,), sites, jnp.ones(num_rows, bool))

    def truth(policy: Any, parameters: Mapping[str, Any] | None = None) -> jax.Array:
        world = default if parameters is None else dict(parameters)

        def value(world: Any, x: jax.Array) -> jax.Array:
            law = play(nature, 0, policy=policy, world=world)(x)["load"]["fn"]
            worlds = jax.tree.map(lambda v: v[None], world)
            candidates = {"load": jnp.arange(len(ads))}
            worth = dp.utility(nature, worlds, candidates, key=0, args=(x,))[0]
            return probabilities(law, candidates["load"]) @ worth

        x, chance = (jnp.asarray(part) for part in users)
        # as one program: operation by operation each would be compiled
        return chance @ jax.jit(jax.vmap(value, (None, 0)))(world, x)

    return AdLoad(model, ads, default, users, simulate, truth)


def _check(
    num_features: int, loads: Sequence[float], noise: float, prior_scale: float, smallest: float
) -> None:
    whole = isinstance(num_features, int) and not isinstance(num_features, bool)
    if not whole or not 1 <= num_features <= _LARGEST:
        raise ValueError(f"num_features: expected 1 to {_LARGEST}, got {num_features!r}.")
    if len(loads) < 2 or loads[0] < 0 or (np.diff(loads) <= 0).any():
        raise ValueError(f"loads: expected at least two increasing numbers of ads, got {loads!r}.")
    for name, value in (("noise", noise), ("prior_scale", prior_scale)):
        if not value > 0:
            raise ValueError(f"{name}: expected a positive number, got {value!r}.")
    if not 0 < smallest < 1 / len(loads):
        raise ValueError(
            f"smallest: expected a positive probability below 1 / {len(loads)}, got {smallest!r}."
        )


def _prior(num_features: int, constant: float, scale: float) -> dist.Distribution:
    return dist.Normal(jnp.append(constant, jnp.zeros(num_features)), scale).to_event(1)


def _parameters(num_features: int) -> dict[str, jax.Array]:
    """Users high in the first feature mind ads, those high in the last pay for them."""
    zeros = jnp.zeros(num_features + 1)
    first, last = zeros.at[1].set(1.0), zeros.at[-1].set(1.0)
    one = zeros.at[0].set(1.0)
    return {
        "revenue_weight": 1.0 * one + 0.4 * last,
        "session_weight": 2.0 * one + 0.5 * first,
        "loss_weight": 0.4 * one + 0.2 * first,
    }


def _users(num_features: int) -> tuple[np.ndarray, np.ndarray]:
    """All users, and how frequent each is."""
    k = np.array(list(itertools.product(range(4), repeat=num_features)))
    return _LEVELS[k], _CHANCES[k].prod(1)
