"""Posteriors of values and effects, from draws of a kernel."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._play import as_key
from decisionppl.inference._basis import make_basis
from decisionppl.inference._effects_exact import check_arms, terms
from decisionppl.inference._kernel import Kernel
from decisionppl.inference._markov_chain import initial_law, make_chain, policy_table
from decisionppl.inference._scores import check_data
from decisionppl.inference._trajectories import Trajectories


class EffectPosterior(NamedTuple):
    """Draws of values and effects, float64 [draws].

    Attributes:
        control, treated: J of the two arms.
        effect: their difference.
        naive: what a comparison of treated with control steps would tend to.
        dq: what Differences-in-Q would tend to.
        dq_bias: `dq - effect`: the posterior of an estimator's bias.
        by_order: the Taylor polynomials of the effect, [draws, order + 1].
    """

    control: np.ndarray
    treated: np.ndarray
    effect: np.ndarray
    naive: np.ndarray
    dq: np.ndarray
    dq_bias: np.ndarray
    by_order: np.ndarray

    def to_arviz(self, num_chains: int = 1) -> Any:
        """As ArviZ reads it: InferenceData (ArviZ 0.x) or DataTree (1.x), group `posterior`.

        Args:
            num_chains: of how many chains the draws are, one after the other.

        Raises:
            ValueError: draws that do not divide by the number of chains.
        """
        import xarray as xr

        from decisionppl._arviz import container

        if len(self.effect) % num_chains:
            raise ValueError(
                f"num_chains: {len(self.effect)} draws do not divide into {num_chains} chains."
            )
        axes = {"by_order": ("order",)}
        variables = {
            n: (("chain", "draw", *axes.get(n, ())), v.reshape(num_chains, -1, *v.shape[1:]))
            for n, v in self._asdict().items()
        }
        return container({"posterior": xr.Dataset(variables)}, {})


def posterior(
    kernel: Kernel,
    *,
    p: Any = None,
    order: int = 1,
    discount: float | None = None,
    initial: Any = None,
    arms: tuple[int, int] = (0, 1),
) -> EffectPosterior:
    """Values, the effect, its Taylor polynomials and the bias of estimators, draw by draw.

    Args:
        kernel: with several draws: from `markov.kernel(step, states, world=draws)`, the draws from
            any engine (NUTS, Laplace), or from `markov.dirichlet_kernel`. Dense: for some hundreds
            of states.
        p: the experiment about which is expanded, see `taylor`; None is the logging law.
        order: of the Taylor polynomials.
        discount, initial: see `taylor`.
        arms: (control, treated), by number.

    Returns:
        `EffectPosterior`; `.to_arviz()` for ArviZ.

    Raises:
        ValueError: a kernel of one world, a chain that is periodic or reducible, a bad setting.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.inference import effects, markov
        >>> from decisionppl.testing import reference
        >>> chain = reference.two_state_mdp()
        >>> runs = markov.rollout(chain.model, 0, 20_000, key=0)
        >>> draws = effects.posterior(markov.dirichlet_kernel(runs, 2, key=1, num_draws=500))
        >>> bool(abs(draws.effect.mean() - chain.effect()) < 4 * draws.effect.std())
        True
        >>> bool(draws.dq_bias.mean() < 0)  # Differences-in-Q falls short here
        True
    """
    if kernel.probability.ndim != 2:
        raise ValueError(
            "kernel: expected one with several draws (markov.kernel(..., world=draws) or "
            "markov.dirichlet_kernel). For one world use effects.taylor."
        )
    check_arms(arms, kernel.num_arms)
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise ValueError(f"order: expected a whole number from 1, got {order!r}.")
    first = Kernel(*(v[0] if n in _DRAWN else v for n, v in kernel._asdict().items()))
    for policy in (p, *(np.eye(kernel.num_arms)[a] for a in arms)):
        make_chain(first, policy_table(first, policy), discount, initial)
    table = kernel.propensity if p is None else policy_table(first, p)[None]
    tables = np.broadcast_to(table, (len(kernel.reward), *table.shape[1:]))
    law = None if discount is None else initial_law(first, initial)
    entries = kernel.reward.shape[-1] ** 2 * kernel.num_arms
    pieces = np.array_split(np.arange(len(tables)), -(-len(tables) * entries // _MOST_ENTRIES))
    draws = [
        _of_draws(
            kernel._replace(probability=kernel.probability[rows]).dense(), kernel.reward[rows],
            tables[rows], law, order, discount, arms,
        )
        for rows in pieces
    ]  # fmt: skip
    return EffectPosterior(*map(np.concatenate, zip(*draws, strict=True)))


_MOST_ENTRIES = 20_000_000  # of transition probabilities at a time
_DRAWN = ("probability", "gain", "gain_variance", "reward", "propensity")


def _of_draws(
    by_arm: np.ndarray, gain: np.ndarray, shares: np.ndarray, law: Any, order: int,
    discount: float | None, arms: tuple[int, int],
) -> tuple:  # fmt: skip
    """The fields of `EffectPosterior` for draws [draws, ...].

    In NumPy: nothing to compile, and solves of dense systems by XLA, mapped over draws, were seen
    to stop for good on two cores (jax 0.10).
    """
    size = gain.shape[-1]
    gamma = 1.0 if discount is None else discount
    # u (I - P + 1 u)^-1 is the stationary law, for any weights u
    start = np.full(size, 1 / size) if law is None else law
    level = start if law is None else 0.0

    def system(matrix: np.ndarray) -> np.ndarray:
        return np.eye(size) - gamma * matrix + level

    mixed = np.einsum("dsa,dast->dst", shares, by_arm)
    mean = np.einsum("dsa,das->ds", shares, gain)[..., None]
    resolvent = np.linalg.inv(system(mixed))
    weights = start @ resolvent
    resolvent = resolvent - (weights[:, None] @ resolvent) if law is None else gamma * resolvent
    parts, values = [], []
    for a in arms:
        earns, change = gain[:, a, :, None], by_arm[:, a] - mixed
        solve, apply = partial(np.matmul, resolvent), partial(np.matmul, change)
        found = terms(weights[:, None], solve, apply, mean, earns, order, "policy")
        parts.append(np.stack(found, -1)[:, 0, 0])
        end = np.linalg.solve(system(by_arm[:, a]).transpose(0, 2, 1), start[:, None])
        values.append((end * earns).sum((1, 2)))
    by_order = np.cumsum(parts[1] - parts[0], axis=1)
    effect = values[1] - values[0]
    naive = (weights * (gain[:, arms[1]] - gain[:, arms[0]])).sum(1)
    return *values, effect, naive, by_order[:, 1], by_order[:, 1] - effect, by_order


def dirichlet_kernel(
    data: Trajectories,
    num_states: int,
    *,
    key: Any,
    num_draws: int = 1000,
    concentration: Any = None,
) -> Kernel:
    r"""Draws of the kernel of a finite chain, given its transitions: conjugate, nothing assumed.

    :math:`P_a(s, \cdot) \sim \mathrm{Dirichlet}(c + \text{counts})` independently for every state
    and arm, and the rewards of a state and an arm are Normal, of unknown mean and variance
    (normal-inverse-gamma, with the prior weight of one step that earned the mean of all).

    Args:
        data: `Trajectories` whose states are numbers from 0 to `num_states - 1`.
        num_states: how many.
        key: PRNG key or int seed.
        num_draws: how many draws.
        concentration: c, a number or an array that broadcasts to [arms, states, next states];
            where it is zero and nothing was counted the probability is zero. Default
            `1 / num_states`, one transition in all for every state and arm.

    Returns:
        `Kernel` with draws, for `effects.posterior`; `propensity` is the mean of the logged
        probabilities in each state (in states never visited, the mean of all).

    Raises:
        ValueError: states that are no such numbers, a concentration below zero, a state and arm
            of which neither prior nor data say where they lead.

    Example:
        >>> from decisionppl.inference import markov
        >>> from decisionppl.testing import reference
        >>> runs = markov.rollout(reference.two_state_mdp().model, 0, 500, key=0)
        >>> markov.dirichlet_kernel(runs, 2, key=1, num_draws=10).dense().shape
        (10, 2, 2, 2)

    References:
        Gelman et al., Bayesian Data Analysis, 3rd edition, sections 3.3 and 3.4.
    """
    arms = jnp.shape(data.propensity)[-1]
    check_data(data, (0, 1), units=False)
    make_basis(data.state, num_states)
    state = np.asarray(jax.tree.leaves(data.state)[0])
    mask = np.broadcast_to(np.asarray(data.mask), np.shape(data.reward))
    arm, source, target = (x[mask] for x in (np.asarray(data.arm), state[:, :-1], state[:, 1:]))
    shape = (arms, num_states, num_states)
    prior = np.broadcast_to(
        np.asarray(1 / num_states if concentration is None else concentration, float), shape
    )
    if not (prior >= 0).all():
        raise ValueError("concentration: expected numbers from zero.")
    place = (arm * num_states + source) * num_states + target
    alpha = prior + np.bincount(place, minlength=prior.size).reshape(shape)
    lost = alpha.sum(-1) == 0
    if lost.any():
        a, s = np.argwhere(lost)[0].tolist()
        raise ValueError(
            f"concentration: neither prior nor data say where arm {a} leads from state {s}. Give "
            "a concentration above zero somewhere in that row."
        )
    reward = np.asarray(data.reward, float)[mask]
    chance = np.asarray(data.propensity, float)[mask]
    visits = np.bincount(source, minlength=num_states)
    law = np.stack([np.bincount(source, chance[:, a], num_states) for a in range(arms)], 1)
    law = np.where(visits[:, None] > 0, law / np.maximum(visits, 1)[:, None], chance.mean(0))
    moments = [
        np.bincount(arm * num_states + source, w, arms * num_states).reshape(shape[:2])
        for w in (np.ones_like(reward), reward, reward**2)
    ]
    arm_of, from_, to = np.nonzero(alpha)
    with jax.enable_x64(True):
        draw, mean = _draw_kernel(
            as_key(key), jnp.asarray(alpha), [jnp.asarray(m) for m in moments],
            reward.mean(), max(reward.var(), 1e-12), num_draws,
        )  # fmt: skip
    probability = np.asarray(draw)[:, arm_of, from_, to]
    gain = np.asarray(mean)
    every = lambda x: np.broadcast_to(x, (num_draws, *np.shape(x)))  # noqa: E731
    spread = moments[2].sum() / len(reward) - reward.mean() ** 2
    return Kernel(
        np.arange(num_states), {"arm": np.arange(arms)}, arm_of, from_, to, probability,
        gain[:, arm_of, from_], every(np.full(len(to), spread)), gain, every(law), 0.0,
    )  # fmt: skip


@partial(jax.jit, static_argnums=5)
def _draw_kernel(
    key: jax.Array, alpha: jax.Array, moments: list, centre: Any, spread: Any, num_draws: int
) -> tuple:
    first, second, third = jax.random.split(key, 3)
    weight = jax.random.gamma(first, alpha, (num_draws, *alpha.shape))
    weight = jnp.where(alpha > 0, weight, 0.0)
    count, total, square = moments
    mean = (total + centre) / (count + 1)
    # prior: one step that earned `centre`, and one degree of freedom of variance `spread`
    scatter = square - total**2 / jnp.maximum(count, 1)
    gap = count / (count + 1) * (total / jnp.maximum(count, 1) - centre) ** 2
    rate = (spread + jnp.maximum(scatter, 0.0) + gap) / 2
    shape = (1 + count) / 2
    variance = rate / jax.random.gamma(second, shape, (num_draws, *count.shape))
    noise = jax.random.normal(third, (num_draws, *count.shape))
    return weight / weight.sum(-1, keepdims=True), mean + noise * jnp.sqrt(variance / (count + 1))
