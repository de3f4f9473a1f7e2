"""Restrictions of policy classes: budgets, and equal selection of groups."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl.inference._policy_class import (
    PolicyClass,
    as_policy_class,
    check_number,
    check_rounds,
    outcomes_of,
    whole_number,
)
from decisionppl.inference._prices import budget_prices, margins, parity_prices, resolution


def budget(policy: Any, arm: int | Sequence[int], share: float | Sequence[float]) -> PolicyClass:
    r"""The same policies, with an arm chosen in at most a share of the rounds.

    The restricted policy is :math:`\arg\max_a s_a(x) - c_a` with a price :math:`c_a \ge 0` for
    each arm that has a budget. On the completed table no such arm is chosen in more than
    floor(share * T) of the T rounds, however ties are settled, and the sum of the scores of what
    is chosen is the largest under that condition. Prices are zero where the policy keeps to its
    budget anyway.

    One arm is priced by sorting its margins (its score minus the best other one), at a cost of
    T log T. Several arms are a transport problem, solved exactly by moving rows one by one, each
    at a cost of T times the square of the number of these arms; it takes as many moves as there
    are choices beyond the budgets.

    Rounds with the same margin, such as those with equal contexts, cannot be told apart by a
    price. All of them stay with the arm or none. For one arm the policy is still the best of its
    form; for several, ties may cost more than they must, but never break a budget.

    Args:
        policy: a policy class in any form that `as_policy_class` takes, with finite scores.
        arm: index of the arm, or several.
        share: largest share of the rounds in [0, 1], or one for each arm.

    Returns:
        A policy class. Restrictions of `policy` hold for it only by chance: of a budget on
        `equal_selection`, the budget holds.

    Raises:
        ValueError: an arm that is negative, named twice or, in `fit`, not in the table; a share
            outside [0, 1], or not one for each arm; in `fit`, budgets on all arms.
        TypeError: an arm that is not a whole number, a share that is not a known number, or a
            policy in none of these forms.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from decisionppl.inference import policies
        >>> x = jnp.arange(5.0)
        >>> policy = policies.budget(policies.linear(), arm=1, share=0.4)
        >>> params = policy.fit(x, jnp.stack([jnp.zeros(5), 1 + x], axis=1))
        >>> jax.vmap(lambda x: jnp.argmax(policy.score(params, x)))(x).tolist()
        [0, 0, 0, 1, 1]

    References:
        Agrawal and Devanur, Linear Contextual Bandits with Knapsacks, arXiv 1507.06738 (prices).
    """
    inner = as_policy_class(policy)
    arms = [whole_number("arm", a) for a in (np.atleast_1d(arm) if np.size(arm) else [])]
    shares: list[Any] = list(np.atleast_1d(share))
    if not arms or len(set(arms)) < len(arms) or min(arms) < 0:
        raise ValueError(f"arm: expected different arms, counted from 0, got {arm!r}.")
    if len(shares) != len(arms):
        raise ValueError(
            f"share: expected one for each of the {len(arms)} arms {arms}, got {share!r}."
        )
    for s in shares:
        check_number("share", s, lambda v: 0 <= v <= 1, "a share of the rounds in [0, 1]")

    def fit(x: Any, y: Any) -> tuple:
        params, scores = scores_of(inner, x, y)
        _check_arms(arms, scores)
        if len(arms) == scores.shape[1]:
            raise ValueError(
                f"arm: all {len(arms)} arms have a budget, so that rounds may be left without an "
                "arm. Leave one arm out."
            )
        # products such as 0.29 * 100 fall short of the whole number that is meant
        limits = [math.floor(s * len(scores) + 1e-9) for s in shares]
        prices = budget_prices(scores, tuple(arms), jnp.array(limits))
        return params, jnp.zeros(scores.shape[1], scores.dtype).at[jnp.array(arms)].set(prices)

    return PolicyClass(fit, lambda params, x: inner.score(params[0], x) - params[1])


def equal_selection(
    policy: Any, arm: int, group: Callable, num_groups: int, tolerance: float = 0.0
) -> PolicyClass:
    r"""The same policies, with an arm chosen at the same rate in every group.

    The restricted policy is :math:`\arg\max_a s_a(x) - c_{g(x)} 1[a = \mathrm{arm}]` with a price
    for each group, which may be negative. On the completed table there is a common rate r such
    that the share of a group's rounds in which the arm is chosen differs from r by at most
    `tolerance`, or by half a round if that is more. So groups of equal size and zero tolerance
    have equal counts. Of all common rates that a group can have, and those `tolerance` away from
    one, r is the one with the largest sum of the scores of what is chosen. Prices are zero where
    the policy does this anyway. A group without rounds in the table has price zero.

    Rounds of a group with the same margin (score of the arm minus the best other one), such as
    those with equal contexts, cannot be told apart by a price. Rates that would split them are
    not used, so the parity holds but can be dear: with few distinct contexts hardly any rate but
    0 and 1 may be left, and a tolerance of the size of the tied blocks gives room.

    Args:
        policy: a policy class in any form that `as_policy_class` takes, with finite scores.
        arm: index of the arm.
        group: `(x) -> g`, the group of the context of one round, a whole number from 0 to
            num_groups - 1. Rounds with another number are in no group, and are left alone.
        num_groups: number of groups.
        tolerance: how far the rate of a group may be from the common one, in [0, 1].

    Returns:
        A policy class. It keeps a restriction of `policy` only by chance; put a `budget` on the
        arm of its result only where that may be preferred to parity.

    Raises:
        ValueError: an arm that is negative or, in `fit`, not in the table; a number of groups
            below one, a tolerance outside [0, 1]; in `fit`, no contexts, or fewer than two arms.
        TypeError: an arm or a group that is not a whole number, a group that is not callable, or
            a policy in none of these forms.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from decisionppl.inference import policies
        >>> x = jnp.array([[0, 0.1], [0, 0.2], [0, 0.9], [1, 0.8], [1, 0.7], [1, 0.3]])
        >>> y = jnp.stack([jnp.full(6, 0.55), x[:, 1]], axis=1)
        >>> policy = policies.equal_selection(
        ...     policies.linear(ridge=0.0), arm=1, group=lambda x: x[0].astype(int), num_groups=2)
        >>> params = policy.fit(x, y)
        >>> jax.vmap(lambda x: jnp.argmax(policy.score(params, x)))(x).tolist()
        [0, 0, 1, 1, 0, 0]

    References:
        Corbett-Davies et al., Algorithmic decision making and the cost of fairness, arXiv
        1701.08230, section 3 (thresholds by group are optimal).
    """
    inner = as_policy_class(policy)
    arm, num_groups = whole_number("arm", arm), whole_number("num_groups", num_groups)
    check_number("arm", arm, lambda v: v >= 0, "an arm, counted from 0")
    check_number("num_groups", num_groups, lambda v: v >= 1, "a number of groups, at least 1")
    check_number("tolerance", tolerance, lambda v: 0 <= v <= 1, "a difference in [0, 1]")
    if not callable(group):
        raise TypeError(f"group: expected a function of the context, got {group!r}.")

    def group_of(x: Any) -> jax.Array:
        g = jnp.asarray(group(x))
        if g.shape != () or g.dtype.kind not in "iub":
            raise TypeError(
                f"group: expected a whole number for the context of one round, got {g.dtype} of "
                f"shape {g.shape}. Return one integer, for instance x[0].astype(int)."
            )
        return g.astype(int)

    def fit(x: Any, y: Any) -> tuple:
        if not jax.tree.leaves(x):
            raise ValueError("x: equal_selection needs contexts to find groups in, got None.")
        params, scores = scores_of(inner, x, y)
        _check_arms([arm], scores)
        if scores.shape[1] < 2:
            raise ValueError("y: equal_selection needs another arm to choose, got one arm.")
        groups = jax.vmap(group_of)(x)
        tie = resolution(scores)
        prices = parity_prices(margins(scores)[:, arm], groups, num_groups, float(tolerance), tie)
        return params, prices

    def score(params: tuple, x: Any) -> jax.Array:
        g = group_of(x)
        price = jnp.sum(jnp.where(jnp.arange(num_groups) == g, params[1], 0.0))
        return jnp.asarray(inner.score(params[0], x), params[1].dtype).at[arm].add(-price)

    return PolicyClass(fit, score)


def scores_of(policy: PolicyClass, x: Any, y: Any) -> tuple[Any, jax.Array]:
    """Fitted parameters, and the scores [T, K] of the table."""
    y = outcomes_of(y)
    check_rounds(x, y)
    params = policy.fit(x, y)
    scores = jax.vmap(policy.score, (None, 0), axis_size=len(y))(params, x)
    scores = jnp.asarray(scores)
    if scores.shape != y.shape:
        raise ValueError(
            f"policy: expected scores [{y.shape[1]}], one for each arm, got shape "
            f"{scores.shape[1:]} at the context of one round."
        )
    return params, scores.astype(jnp.result_type(scores, jnp.float32))


def _check_arms(arms: Sequence[int], scores: jax.Array) -> None:
    if max(arms) >= scores.shape[1]:
        raise ValueError(
            f"arm: got {max(arms)}, but the table has arms 0 to {scores.shape[1] - 1}."
        )
