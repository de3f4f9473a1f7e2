"""Policies fitted to completed tables: against other solvers, and restrictions against enumeration.

Restrictions are tested on a policy class whose scores are the table itself, so that any scores,
tied ones included, can be given to them.
"""

import itertools
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.tree_util import Partial
from sklearn.linear_model import LogisticRegression

from decisionppl.inference import _irls, _prices, policies
from decisionppl.testing import strategies

CLASSES = {
    "arm_means": policies.arm_means(),
    "linear": policies.linear(),
    "logistic": policies.logistic(),
}
# contexts are (row of the table, group)
TABLE = policies.PolicyClass(lambda x, y: y, lambda scores, x: scores[x[0]])


def table(seed: int, rows: int = 60, dim: int = 3, arms: int = 3, slope: float = 1.0) -> tuple:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, dim))
    logit = slope * (x @ rng.normal(size=(dim, arms)) + 0.5 * rng.normal(size=arms))
    y = rng.random((rows, arms)) < 1 / (1 + np.exp(-np.clip(logit, -30, 30)))
    return x.astype(np.float32), y.astype(np.float32)


def scores_of(policy: policies.PolicyClass, x: Any, y: Any, at: Any) -> np.ndarray:
    params = policy.fit(x, y)
    return np.asarray(jax.vmap(lambda row: policy.score(params, row))(at))


# --- fits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.0, 2.0])
@pytest.mark.parametrize("intercept", [True, False])
def test_linear_is_ridge_regression(ridge, intercept):
    x, y = table(0)
    x = x + np.array([0, 50, -5], np.float32)  # a covariate far from zero keeps its digits
    at = x[:7] + 1
    design = np.column_stack([x, np.ones(len(x))]) if intercept else x
    penalty = np.sqrt(ridge) * np.eye(3, design.shape[1])
    stacked = np.concatenate([design, penalty]).astype(float)
    w = np.linalg.lstsq(stacked, np.concatenate([y, np.zeros((3, 3))]), rcond=None)[0]
    expected = at @ w[:3] + (w[3] if intercept else 0)
    got = scores_of(policies.linear(ridge, intercept), x, y, at)
    assert np.allclose(got, expected, atol=1e-4)


def test_linear_has_an_answer_for_collinear_and_constant_covariates():
    x, y = table(1)
    alone = scores_of(policies.linear(0.0), x, y, x)
    extra = np.column_stack([x, x[:, 0], np.full(len(x), 3.0)]).astype(np.float32)
    assert np.allclose(scores_of(policies.linear(0.0), extra, y, extra), alone, atol=1e-3)


CASES = {
    "balanced": dict(seed=0, rows=200),
    "nearly separable": dict(seed=1, rows=200, slope=30.0),
    "weak penalty": dict(seed=2, rows=200, slope=5.0, l2=0.05),
    "no intercept": dict(seed=3, rows=200, intercept=False),
    "many covariates": dict(seed=4, rows=100, dim=_irls._SMALL + 4),
    "scales": dict(seed=5, rows=200, scale=100.0, place=1000.0),
    "places": dict(seed=5, rows=200, place=3000.0),
    "rare": dict(seed=6, rows=500, rare=True),
}


@pytest.mark.parametrize("name", CASES)
def test_logistic_agrees_with_scikit_learn(name):
    case = dict(CASES[name])
    l2, intercept = case.pop("l2", 1.0), case.pop("intercept", True)
    scale, place = case.pop("scale", 1.0), case.pop("place", 0.0)
    rare = case.pop("rare", False)
    x, y = table(**case)
    x[:, 1] = x[:, 1] * scale + place
    if rare:
        y[:] = 0
        y[0, 0] = y[3, 1] = 1
        y[:, 2] = 1 - y[:, 0]
    params = policies.logistic(l2, intercept).fit(x, y)
    # scikit-learn centres nothing and stops early where one covariate is large
    shift = x.astype(float).mean(0) if intercept else np.zeros(x.shape[1])
    for arm in range(3):
        peer = LogisticRegression(
            C=1 / l2, fit_intercept=intercept, solver="newton-cholesky", tol=1e-10, max_iter=1000
        ).fit(x.astype(float) - shift, y[:, arm])
        offset = params.offset[arm] + params.weight[arm] @ (shift - params.centre)
        assert np.allclose(params.weight[arm], peer.coef_[0], atol=1e-3, rtol=1e-3)
        assert np.allclose(offset, peer.intercept_, atol=1e-3, rtol=1e-3)
        score = jax.vmap(lambda row: policies.logistic().score(params, row))(x)[:, arm]
        assert np.allclose(score, peer.predict_proba(x - shift)[:, 1], atol=1e-3)


def test_logistic_with_fractions_weighs_both_outcomes():
    x, _ = table(7)
    y = np.random.default_rng(0).random((60, 1)).astype(np.float32)
    twice, outcome = np.concatenate([x, x]), np.repeat([1, 0], 60)
    peer = LogisticRegression(tol=1e-10, max_iter=1000).fit(
        twice, outcome, np.concatenate([y, 1 - y])[:, 0]
    )
    got = scores_of(policies.logistic(), x, y, x)[:, 0]
    assert np.allclose(got, peer.predict_proba(x)[:, 1], atol=1e-3)


def test_logistic_with_one_outcome_alone_is_finite():
    x, y = table(8, rows=500)
    y[:, 0], y[:, 1] = 0, 1
    params = policies.logistic().fit(x, y)
    assert np.isfinite(np.concatenate(jax.tree.leaves(jax.tree.map(jnp.ravel, params)))).all()
    assert np.allclose(params.offset[:2], [-12.87, 12.87], atol=0.05)  # T e^-b = 1e-4 b
    assert np.allclose(params.weight[:2], 0, atol=1e-3)
    scores = scores_of(policies.logistic(), x, y, x)
    assert (scores[:, 0] < 1e-4).all()
    assert (scores[:, 1] > 1 - 1e-4).all()


def test_every_newton_step_lowers_the_loss():
    x, y = table(9, slope=100.0)
    x = x * np.array([1, 30, 0.1], np.float32)

    def loss(steps: int) -> np.ndarray:
        params = policies.logistic(1e-3, num_steps=steps).fit(x, y)
        logit = (x.astype(float) - params.centre) @ np.asarray(params.weight, float).T
        logit += np.asarray(params.offset, float)
        rise = np.logaddexp(0, logit) - y * logit
        return rise.sum(0) + 0.5e-3 * (np.asarray(params.weight, float) ** 2).sum(1)

    losses = np.array([loss(steps) for steps in (1, 3, 16)])
    assert (np.diff(losses, axis=0) < 1e-4).all()
    assert (losses[-1] < 0.5 * losses[0]).all()


def test_safe_step_lowers_the_loss_from_anywhere():
    share, logit = np.meshgrid(np.linspace(0.001, 0.999, 200), np.linspace(-8, 8, 200))
    probability = 1 / (1 + np.exp(-logit))
    newton = (share - probability) / (probability * (1 - probability))
    length = np.asarray(_irls._step_length(jnp.asarray(newton.reshape(-1, 1)))).reshape(200, 200)

    def loss(at: Any) -> Any:
        return np.logaddexp(0, at) - share * at

    fall = loss(logit) - loss(logit + length * newton)
    assert (length < 1).mean() > 0.3
    least = 0.05 * np.minimum(np.abs(newton), 1) ** 2 * probability * (1 - probability)
    assert (fall >= least - 1e-12).all()


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_elimination_solves(dim):
    rng = np.random.default_rng(dim)
    root, b = rng.normal(size=(4, dim, dim)), rng.normal(size=(4, dim))
    a = root @ root.swapaxes(1, 2) + np.eye(dim)
    expected = np.linalg.solve(a, b[..., None])[..., 0]
    assert np.allclose(_irls._solve(jnp.asarray(a), jnp.asarray(b)), expected, atol=1e-4)


@pytest.mark.parametrize("name", CLASSES)
def test_relabelling_arms_permutes_scores(name):
    x, y = table(10)
    order = np.array([2, 0, 1])
    policy = CLASSES[name]
    assert np.allclose(
        scores_of(policy, x, y[:, order], x), scores_of(policy, x, y, x)[:, order], atol=1e-6
    )


@pytest.mark.parametrize("name", CLASSES)
def test_order_of_rounds_does_not_matter(name):
    x, y = table(11)
    order = np.random.default_rng(0).permutation(len(x))
    policy = CLASSES[name]
    again = scores_of(policy, x[order], y[order], x)
    assert np.allclose(again, scores_of(policy, x, y, x), atol=1e-4)


def test_without_contexts_the_regressions_are_means():
    y = np.array([[1, 0], [1, 0], [0, 0], [1, 1]], np.float32)
    for policy in CLASSES.values():
        score = policy.score(policy.fit(None, y), None)
        assert np.allclose(score, [0.75, 0.25], atol=1e-4)


def test_contexts_are_joined_leaf_by_leaf():
    x, y = table(12)
    tree = {"a": x[:, 0], "b": x[:, 1:]}
    for policy in CLASSES.values():
        assert np.allclose(scores_of(policy, tree, y, tree), scores_of(policy, x, y, x), atol=1e-6)


def test_fits_map_over_tables():
    x, _ = table(13)
    ys = jnp.stack([table(s)[1] for s in range(2)])
    restricted = policies.budget(policies.logistic(), 0, 0.2)
    parity = policies.equal_selection(policies.linear(), 1, lambda x: (x[0] > 0).astype(int), 2)
    for policy in (*CLASSES.values(), restricted, parity):
        fit = jax.jit(jax.vmap(policy.fit, (None, 0)))
        many = jax.vmap(policy.score, (0, None))(fit(x, ys), x[0])
        single = jnp.stack([policy.score(policy.fit(x, y), x[0]) for y in ys])
        assert np.allclose(many, single, atol=1e-4)


# --- forms of a policy class ------------------------------------------------------------------


def nearest(known: tuple, x: jax.Array) -> jax.Array:
    contexts, outcomes = known
    return outcomes[jnp.argmin(jnp.sum((contexts - x) ** 2, axis=1))]


def test_three_forms_of_a_policy_class():
    x, y = table(14)
    whole = policies.PolicyClass(lambda x, y: (x, y), nearest)
    pair = policies.as_policy_class((lambda x, y: (x, y), nearest))
    function = policies.as_policy_class(lambda x, y: Partial(nearest, (x, y)))
    assert policies.as_policy_class(whole) is whole
    for policy in (pair, function):
        assert isinstance(policy, policies.PolicyClass)
        params = jax.jit(jax.vmap(policy.fit))(x[None], y[None])
        assert np.allclose(jax.vmap(policy.score, (0, None))(params, x[3])[0], y[3])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (policies.linear, "Call it: policies.linear()"),
        ("linear", "'linear', which is no policy class"),
        ((len,), "pair of functions"),
        ((len, 3), "pair of functions"),
        (policies.PolicyClass(None, len), "pair of functions"),
    ],
)
def test_other_forms_are_refused(value, message):
    with pytest.raises(TypeError) as error:
        policies.as_policy_class(value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "fit",
    [
        lambda x, y: y,
        lambda x, y: lambda row: y[0],
        lambda x, y: Partial(lambda row: y[0]),
        lambda x, y: Partial(nearest, (x, lambda row: y[0])),
    ],
)
def test_fitted_policies_that_cannot_cross_vmap_are_refused(fit):
    x, y = table(15)
    with pytest.raises(TypeError, match="jax.tree_util.Partial"):
        jax.vmap(policies.as_policy_class(fit).fit)(x[None], y[None])


# --- restrictions -----------------------------------------------------------------------------


def contexts(group: Any) -> tuple:
    return jnp.arange(len(group)), jnp.asarray(group)


def best(scores: np.ndarray, prices: Any = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """What is chosen in each round whatever the rule for ties, and what might be; bool [T, K]."""
    charged = scores - np.asarray(prices)
    may = charged >= charged.max(1, keepdims=True)
    return may & (may.sum(1, keepdims=True) == 1), may


def value_of(scores: np.ndarray, chosen: np.ndarray) -> float:
    return float(np.where(chosen, scores, 0).sum())


def by_enumeration(scores: np.ndarray, arms: tuple, limits: tuple) -> float:
    """Largest sum of scores over all assignments of rounds to arms within the limits."""
    every = np.array(list(itertools.product(range(scores.shape[1]), repeat=len(scores))))
    kept = np.all([(every == a).sum(1) <= n for a, n in zip(arms, limits, strict=True)], axis=0)
    return float(scores[np.arange(len(scores)), every[kept]].sum(1).max())


BUDGETS = {  # arm, share, limits in 6 rounds
    "one": (1, 0.35, (2,)),
    "one, none": (0, 0.1, (0,)),
    "two": ((0, 2), (0.17, 0.34), (1, 2)),
    "three": ((0, 1, 2), (0.5, 0.2, 0.0), (3, 1, 0)),
}


@pytest.fixture(scope="module", params=BUDGETS)
def budgeted(request):
    arm, share, limits = BUDGETS[request.param]
    policy = policies.budget(TABLE, arm, share)
    x = contexts(np.zeros(6, int))
    fit = jax.jit(lambda scores: policy.fit(x, scores)[1])
    return (arm if isinstance(arm, tuple) else (arm,)), limits, fit


@given(strategies.keys(), st.floats(-2, 2, width=32))
def test_budget_is_optimal(budgeted, key, lead):
    arms, limits, fit = budgeted
    scores = np.asarray(jax.random.normal(key, (6, 4)) + lead * jnp.array([1.0, 0.5, 1.0, 0.0]))
    prices = np.asarray(fit(scores))
    sure, may = best(scores, prices)
    assert (prices >= 0).all()
    assert (may.sum(0)[list(arms)] <= limits).all()
    assert np.isclose(value_of(scores, sure), by_enumeration(scores, arms, limits), atol=1e-4)


@given(hnp.arrays(np.int8, (6, 4), elements=st.integers(-2, 2)))
def test_budget_holds_whatever_the_ties(budgeted, scores):
    arms, limits, fit = budgeted
    scores = scores.astype(np.float32)
    prices = np.asarray(fit(scores))
    _, may = best(scores, prices)
    assert (may.sum(0)[list(arms)] <= limits).all()
    free = best(scores)[1]
    if (free.sum(0)[list(arms)] <= limits).all():
        assert (prices == 0).all()
    if len(arms) == 1:  # still the best threshold
        margin = scores[:, arms[0]] - np.delete(scores, arms[0], 1).max(1)
        gains = [margin[margin >= at].sum() for at in margin if (margin >= at).sum() <= limits[0]]
        gain = value_of(margin[:, None], may[:, arms])
        assert np.isclose(gain, max([0.0, *gains]), atol=1e-4)


def test_budget_at_prices_that_depend_on_each_other():
    # the last arm is free, the others full in turn: a row must pass through all of them
    scores = np.array([[5, 4, 0], [5, 1, 0], [0, 5, 4.5], [0, 5, 1]], np.float32)
    policy = policies.budget(TABLE, (0, 1), (0.25, 0.5))
    params = policy.fit(contexts(np.zeros(4, int)), scores)
    sure, _ = best(scores, params[1])
    assert sure.argmax(1).tolist() == [1, 0, 2, 1]


def test_split_of_a_table_leaves_room_between_arms():
    # prices halfway between the least and the largest would make the first round indifferent
    scores = np.array([[10, 9, 0], [0, 6, 0], [5, -5, 0]], np.float32)
    prices = _prices._split_prices(jnp.asarray(scores), jnp.array([1, 1]))
    charged = scores - np.append(prices, 0)
    assert charged.argmax(1).tolist() == [0, 1, 2]
    ordered = np.sort(charged, axis=1)
    assert (ordered[:, -1] - ordered[:, -2] > 0.3).all()


def test_split_of_a_table_needs_no_subsidy():
    # without a floor the first arm would be paid to take the first round from the second
    scores = np.array([[1, 3.5, 0], [-9, 6, 0], [-8, -20, 0]], np.float32)
    prices = np.asarray(_prices._split_prices(jnp.asarray(scores), jnp.array([1, 1])))
    assert (prices >= 0).all()
    assert (scores - np.append(prices, 0)).argmax(1).tolist() == [0, 1, 2]


def test_budget_on_a_larger_table_and_at_new_contexts():
    x, y = table(16, rows=200)
    y = y + np.array([1.0, 1.0, 0.0], np.float32)
    for arm, share in ((0, 0.1), ([0, 1], [0.1, 0.25])):
        policy = policies.budget(policies.linear(), arm, share)
        params = policy.fit(x, y)
        score = jax.jit(policy.score)
        chosen = [int(jnp.argmax(score(params, row))) for row in x]  # one by one
        counts = np.bincount(chosen, minlength=3)
        assert counts[0] == 20
        assert isinstance(arm, int) or counts[1] == 50
        plain = policies.linear()
        difference = plain.score(params[0], x[0] + 5) - policy.score(params, x[0] + 5)
        assert np.allclose(difference, params[1], atol=1e-5)


def test_relabelling_arms_relabels_budgets():
    x, y = table(17)
    one = scores_of(policies.budget(policies.linear(), [0, 1], [0.1, 0.2]), x, y, x)
    order = [2, 0, 1]
    other = scores_of(policies.budget(policies.linear(), [2, 1], [0.2, 0.1]), x, y[:, order], x)
    assert np.allclose(one[:, order], other, atol=1e-5)


def test_a_share_is_rounded_as_a_product_of_decimals():
    scores = np.column_stack([np.arange(1.0, 101), np.zeros(100)])
    policy = policies.budget(TABLE, 0, 0.29)  # 0.29 * 100 is 28.999999999999996
    params = policy.fit(contexts(np.zeros(100, int)), scores)
    assert best(scores, params[1])[0][:, 0].sum() == 29


def parity_by_enumeration(
    scores: np.ndarray, group: np.ndarray, arm: int, tolerance: float
) -> float:
    """Largest sum of scores over clean thresholds by group, within reach of a common rate."""
    margin = scores[:, arm] - np.delete(scores, arm, 1).max(1)
    gains, sizes = [], []
    for g in range(3):
        ordered = np.sort(margin[group == g])[::-1]
        if n := len(ordered):
            clean = [k for k in range(n + 1) if k in (0, n) or ordered[k - 1] > ordered[k]]
            gains.append({k: ordered[:k].sum() for k in clean})
            sizes.append(n)
    tolerance = Fraction(tolerance)
    steps = {Fraction(k, n) for n in sizes for k in range(n + 1)}
    moved = {min(max(r + s * tolerance, Fraction(0)), Fraction(1)) for r in steps for s in (-1, 1)}
    found = []
    for rate in steps | moved:
        allowed = [
            [v for k, v in gain.items() if abs(k - rate * n) <= max(tolerance * n, Fraction(1, 2))]
            for gain, n in zip(gains, sizes, strict=True)
        ]
        if all(allowed):
            found.append(sum(map(max, allowed)))
    return float(max(found)) if found else 0.0


@pytest.fixture(scope="module", params=[0.0, 0.125])
def parity(request):
    tolerance = request.param
    policy = policies.equal_selection(TABLE, 1, lambda x: x[1], 3, tolerance)

    def fit(scores: jax.Array, group: jax.Array) -> jax.Array:
        return policy.fit((jnp.arange(8), group), scores)[1]

    return tolerance, jax.jit(fit)


def check_parity(tolerance: float, fit: Any, scores: np.ndarray, group: np.ndarray) -> None:
    prices = np.append(np.asarray(fit(scores, group)), 0)  # 3: in no group
    charge = prices[group][:, None] * (np.arange(3) == 1)
    sure, may = best(scores, charge)
    inside = group < 3
    assert (sure[inside, 1] == may[inside, 1]).all()
    sizes = np.bincount(group, minlength=4)[:3]
    assert (prices[:3][sizes == 0] == 0).all()
    counts = np.bincount(group, may[:, 1], 4)[:3]
    reach = np.maximum(tolerance, 0.5 / np.maximum(sizes, 1))
    lowest, highest = (counts / np.maximum(sizes, 1) + s * reach for s in (-1, 1))
    if inside.any():
        assert lowest[sizes > 0].max() <= highest[sizes > 0].min() + 1e-6
    margin = scores[:, 1] - np.delete(scores, 1, 1).max(1)
    gain = margin[inside & may[:, 1]].sum()
    assert np.isclose(gain, parity_by_enumeration(scores, group, 1, tolerance), atol=1e-4)


GROUPS = hnp.arrays(np.int32, (8,), elements=st.integers(0, 3))


@given(strategies.keys(), GROUPS)
def test_equal_selection_is_optimal(parity, key, group):
    check_parity(*parity, np.asarray(jax.random.normal(key, (8, 3))), group)


@given(hnp.arrays(np.int8, (8, 3), elements=st.integers(-2, 2)), GROUPS)
def test_equal_selection_holds_whatever_the_ties(parity, scores, group):
    check_parity(*parity, scores.astype(np.float32), group)


def test_groups_of_equal_size_have_equal_counts():
    x, y = table(18, rows=200)
    x[:, 0] = np.repeat([0, 1], 100) + 1e-3 * x[:, 0]
    y[:100, 1] *= np.arange(100) % 3 == 0  # the arm is worse in the first group
    policy = policies.equal_selection(policies.linear(), 1, lambda x: (x[0] > 0.5).astype(int), 2)
    params = policy.fit(x, y)
    score = jax.jit(policy.score)
    chosen = np.array([jnp.argmax(score(params, row)) for row in x]) == 1
    free = scores_of(policies.linear(), x, y, x).argmax(1) == 1
    assert 0 < chosen[:100].sum() == chosen[100:].sum() < 100
    assert free[:100].sum() < chosen[:100].sum()
    assert free[100:].sum() > chosen[100:].sum()


def test_nothing_is_charged_where_selection_is_equal_already():
    scores = np.array([[0, 1], [1, 0], [0, 1], [1, 0.5]], np.float32)
    policy = policies.equal_selection(TABLE, 1, lambda x: x[1], 2)
    params = policy.fit(contexts([0, 0, 1, 1]), scores)
    assert np.asarray(params[1]).tolist() == [0, 0]


def test_a_context_outside_all_groups_is_left_alone():
    scores = np.array([[0, 1], [0, 1], [1, 0], [1, 0]], np.float32)
    policy = policies.equal_selection(TABLE, 1, lambda x: x[1], 2)
    params = policy.fit(contexts([0, 0, 1, 1]), scores)
    assert (np.asarray(params[1]) != 0).any()
    for g in (-1, 2):
        assert policy.score(params, (0, jnp.int32(g))).tolist() == [0, 1]


def test_the_outer_restriction_holds():
    x, y = table(19, rows=100)
    fair = policies.equal_selection(policies.linear(), 1, lambda x: (x[0] > 0).astype(int), 2)
    policy = policies.budget(fair, 1, 0.05)
    params = jax.jit(policy.fit)(x, y)
    chosen = jax.vmap(lambda row: jnp.argmax(policy.score(params, row)))(x)
    assert (np.asarray(chosen) == 1).sum() == 5


def zero_group(x: Any) -> Any:
    return 0


LINEAR = policies.linear()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: policies.linear(-1.0), ValueError, "ridge: expected"),
        (lambda: policies.logistic(0.0), ValueError, "l2: expected a positive number, got 0.0"),
        (lambda: policies.logistic(num_steps=0), ValueError, "num_steps: expected"),
        (lambda: policies.logistic(num_steps=2.5), TypeError, "num_steps: expected a whole"),
        (lambda: policies.budget(LINEAR, -1, 0.5), ValueError, "arm: expected"),
        (lambda: policies.budget(LINEAR, [0, 0], [0.5, 0.5]), ValueError, "arm: expected diff"),
        (lambda: policies.budget(LINEAR, [], []), ValueError, "arm: expected different"),
        (lambda: policies.budget(LINEAR, 0.5, 0.5), TypeError, "arm: expected a whole number"),
        (lambda: policies.budget(LINEAR, [0, 1], 0.5), ValueError, "one for each of the 2 arms"),
        (lambda: policies.budget(LINEAR, 0, 1.5), ValueError, "share: expected a share"),
        (lambda: policies.budget(LINEAR, 0, "much"), TypeError, "share: expected a share"),
        (lambda: policies.budget(3, 0, 0.5), TypeError, "policy: got 3"),
        (lambda: policies.equal_selection(LINEAR, -1, zero_group, 2), ValueError, "arm: exp"),
        (lambda: policies.equal_selection(LINEAR, 0, zero_group, 0), ValueError, "num_groups"),
        (lambda: policies.equal_selection(LINEAR, 0, 3, 2), TypeError, "group: expected a func"),
        (lambda: policies.equal_selection(LINEAR, 0, zero_group, 2, 2), ValueError, "tolerance"),
    ],
)
def test_wrong_settings_are_refused(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)


X, Y = table(20, rows=4)


@pytest.mark.parametrize(
    ("policy", "x", "y", "error", "message"),
    [
        (policies.arm_means(), None, Y[0], ValueError, "y: expected outcomes [rounds, arms]"),
        (policies.arm_means(), None, Y[:0], ValueError, "y: expected outcomes [rounds, arms]"),
        (LINEAR, X[:3], Y, ValueError, "leading axis of the 4 rounds"),
        (LINEAR, 1.0, Y, ValueError, "leading axis of the 4 rounds"),
        (policies.linear(intercept=False), None, Y, ValueError, "needs contexts"),
        (policies.logistic(), X, 3 * Y - 1, ValueError, "outcomes in [0, 1]"),
        (policies.budget(LINEAR, 3, 0.5), X, Y, ValueError, "arms 0 to 2"),
        (policies.budget(LINEAR, [0, 1, 2], [1, 1, 1]), X, Y, ValueError, "all 3 arms"),
        (policies.budget(LINEAR, 0, 0.5), X[:3], Y, ValueError, "leading axis of the 4 rounds"),
        (
            policies.budget((lambda x, y: y, lambda y, x: y), 0, 0.5),
            X,
            Y,
            ValueError,
            "expected scores [3]",
        ),
        (policies.equal_selection(LINEAR, 3, zero_group, 1), X, Y, ValueError, "arms 0 to 2"),
        (policies.equal_selection(LINEAR, 0, zero_group, 1), None, Y, ValueError, "needs contexts"),
        (policies.equal_selection(LINEAR, 0, zero_group, 1), X, Y[:, :1], ValueError, "one arm"),
        (policies.equal_selection(LINEAR, 0, lambda x: x[0], 1), X, Y, TypeError, "float32"),
        (policies.equal_selection(LINEAR, 0, lambda x: x > 0, 1), X, Y, TypeError, "shape (3,)"),
    ],
)
def test_wrong_tables_are_refused(policy, x, y, error, message):
    with pytest.raises(error) as caught:
        policy.fit(x, y)
    assert message in str(caught.value)


def test_a_context_of_another_size_is_refused():
    with pytest.raises(ValueError, match="2 covariates, but the policy was fitted to 3"):
        LINEAR.score(LINEAR.fit(X, Y), X[0, :2])
