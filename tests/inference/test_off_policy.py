"""Off-policy values: expectations by enumeration, then closed forms, properties, and coverage.

`ROWS` are all contexts, actions and outcomes of a tiny problem with their chances, so that the
expectation of an estimate over data sets of two rows is a finite sum.
"""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given
from hypothesis import strategies as st

import decisionppl as dp
from decisionppl import inference, testing
from decisionppl.inference import off_policy
from decisionppl.models import ad_load
from decisionppl.testing import strategies

SHARE = np.array([0.2, 0.5, 0.3])  # of contexts
LAW = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.25, 0.25, 0.5]])
SUCCESS = np.array([[0.1, 0.5, 0.7], [0.3, 0.2, 0.9], [0.6, 0.4, 0.5]])
TARGET = np.array([[0.0, 0.6, 0.4], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
PRICE = np.array([0.0, 0.1, 0.4])
WORTH = SUCCESS - PRICE
VALUE, OTHER = (float(SHARE @ (p * WORTH).sum(1)) for p in (TARGET, LAW[::-1]))


def tiny(x):
    mean = numpyro.sample("mean", dist.Normal(0, 1).expand([3, 3]).to_event(2))
    arm = dp.action("arm", dist.Categorical(jnp.asarray(LAW)[x]), given=x)
    dp.reward("click", dist.Normal(mean[x, arm], 0.7))
    dp.cost("price", jnp.asarray(PRICE)[arm])


def follow(given, space):
    return dist.Categorical(jnp.asarray(TARGET)[given])


def reverse(given, space):
    return dist.Categorical(jnp.asarray(LAW[::-1])[given])


def log(x, arm, click, mask=None):
    x, arm, click = jnp.asarray(x), jnp.asarray(arm), jnp.asarray(click, float)
    mask = jnp.ones(len(x), bool) if mask is None else jnp.asarray(mask)
    return dp.Rows((x,), {"arm": arm, "click": click}, mask)


def some_rows(num=60, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.choice(3, num, p=SHARE)
    arm = (rng.random((num, 1)) > LAW[x].cumsum(1)).sum(1)
    return log(x, arm, rng.random(num) < SUCCESS[x, arm])


def expectation(estimate):
    """Of the estimate over all data sets of two rows."""
    cells = np.array(list(itertools.product(range(3), range(3), range(2))))
    x, arm, click = cells.T
    success = np.where(click == 1, SUCCESS[x, arm], 1 - SUCCESS[x, arm])
    chance = SHARE[x] * LAW[x, arm] * success
    first, second = (i.ravel() for i in np.indices((18, 18)))
    rows = [np.stack([v[first], v[second]], 1) for v in (x, arm, click)]
    found = jax.jit(jax.vmap(lambda *v: estimate(log(*v)).estimate))(*map(jnp.asarray, rows))
    return float(chance[first] * chance[second] @ np.asarray(found))


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def engine():
    return inference.laplace(tiny, 0)


# --- expectations by enumeration --------------------------------------------------------------


@pytest.mark.usefixtures("double")
def test_ips_is_unbiased():
    found = expectation(lambda rows: off_policy.ips(tiny, rows, follow))
    assert abs(found - VALUE) < 1e-12
    effect = expectation(lambda rows: off_policy.ips(tiny, rows, follow, baseline=reverse))
    assert abs(effect - (VALUE - OTHER)) < 1e-12


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("propensity_right", "regression_right"),
    [(True, False), (False, True), (False, False)],
)
def test_doubly_robust_is_unbiased_if_either_part_is_right(propensity_right, regression_right):
    table = WORTH if regression_right else np.arange(9.0).reshape(3, 3)

    def q(args, action):
        return jnp.asarray(table)[args[0], action["arm"]]

    def estimate(rows):
        propensity = None if propensity_right else jnp.where(rows.sites["arm"] == 1, 0.2, 0.4)
        return off_policy.doubly_robust(
            tiny, rows, follow, key=0, outcome_model=q, propensity=propensity
        )

    bias = abs(expectation(estimate) - VALUE)
    assert bias < 1e-12 if propensity_right or regression_right else bias > 0.1


@pytest.mark.usefixtures("double")
def test_cross_fitting_keeps_it_unbiased_whatever_the_belief():
    # two rows in two folds: each is predicted by what the other taught, under a wrong likelihood
    engine = inference.conjugate(tiny, 0)

    def estimate(rows):
        return off_policy.doubly_robust(tiny, rows, follow, baseline=reverse, key=0, engine=engine)

    assert abs(expectation(estimate) - (VALUE - OTHER)) < 1e-12


def two_sites(x):
    arm = dp.action("arm", dist.Categorical(jnp.asarray(LAW)[x]), given=x)
    loud = dp.action("loud", dist.Bernoulli(0.2 + 0.2 * arm), given=arm)
    dp.reward("click", dist.Normal(arm + loud * x, 1.0))


@pytest.mark.usefixtures("double")
def test_several_sites_are_weighed_by_their_product():
    x, arm, loud = (v.ravel() for v in np.indices((3, 3, 2)))
    p = 0.2 + 0.2 * arm
    chance = SHARE[x] * LAW[x, arm] * np.where(loud == 1, p, 1 - p)
    sites = {"arm": arm, "loud": loud, "click": (arm + loud * x).astype(float)}
    rows = dp.Rows((jnp.asarray(x),), jax.tree.map(jnp.asarray, sites), jnp.ones(18, bool))
    policy = {"loud": lambda given, space: dist.Bernoulli(0.9 - 0.4 * given)}

    def one(row):
        return off_policy.ips(two_sites, jax.tree.map(lambda v: v[None], row), policy).estimate

    found = chance @ np.asarray(jax.vmap(one)(rows))
    q = 0.9 - 0.4 * arm
    played = SHARE[x] * LAW[x, arm] * np.where(loud == 1, q, 1 - q)
    assert abs(found - played @ sites["click"]) < 1e-12  # the arm keeps its logging law


# --- closed forms -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [{}, lambda given, space: space], ids=["empty", "law"])
def test_the_logging_law_has_weights_of_one(policy):
    rows = some_rows()
    mean = float(jnp.mean(rows.sites["click"] - jnp.asarray(PRICE)[rows.sites["arm"]]))
    for found in (
        off_policy.ips(tiny, rows, policy),
        off_policy.self_normalised(tiny, rows, policy),
    ):
        assert float(found.estimate) == pytest.approx(mean, abs=1e-7)
        for name in ("largest_weight", "mean_weight"):
            assert float(found.diagnostics[name]) == 1.0
        assert float(found.diagnostics["effective_sample_size"]) == 60
        assert float(found.diagnostics["share_unused"]) == 0


def test_standard_errors_and_diagnostics():
    rows = some_rows()
    x, arm = np.asarray(rows.args[0]), np.asarray(rows.sites["arm"])
    w = TARGET[x, arm] / LAW[x, arm]
    r = np.asarray(rows.sites["click"]) - PRICE[arm]
    ips = off_policy.ips(tiny, rows, follow, level=0.9)
    assert np.allclose(ips.estimate, (w * r).mean(), atol=1e-5)
    assert np.allclose(ips.stderr, (w * r).std(ddof=1) / 60**0.5, atol=1e-5)
    assert np.allclose(ips.interval, ips.estimate + ips.stderr * np.array([-1, 1]) * 1.644854)
    sn = off_policy.self_normalised(tiny, rows, follow)
    value = (w * r).sum() / w.sum()
    assert np.allclose(sn.estimate, value, atol=1e-5)
    score = w * (r - value) / w.mean()
    assert np.allclose(sn.stderr, (score**2).sum() ** 0.5 / (60 * 59) ** 0.5, atol=1e-5)
    assert np.allclose(np.mean(sn.interval), value, atol=1e-5)
    for found in (ips, sn):
        expected = [w.sum() ** 2 / (w**2).sum(), w.max(), w.mean(), (w == 0).mean()]
        assert np.allclose(list(found.diagnostics.values()), expected, rtol=1e-5)
        assert list(found.diagnostics) == [
            "effective_sample_size", "largest_weight", "mean_weight", "share_unused",
        ]  # fmt: skip


def test_doubly_robust_without_a_regression_is_ips():
    rows = some_rows()
    ips = off_policy.ips(tiny, rows, follow, baseline=0)
    found = off_policy.doubly_robust(
        tiny, rows, follow, baseline=0, key=0, outcome_model=lambda args, action: 0.0
    )
    assert np.allclose(found.estimate, ips.estimate, atol=1e-6)
    assert np.allclose(found.stderr, ips.stderr, atol=1e-6)
    assert np.allclose(found.diagnostics["residual_share"], 1, atol=1e-5)


def test_doubly_robust_with_a_perfect_regression_of_sure_rewards_is_exact():
    rows = some_rows()
    x, arm = rows.args[0], rows.sites["arm"]
    rows = rows._replace(sites={"arm": arm, "click": jnp.asarray(SUCCESS)[x, arm]})
    found = off_policy.doubly_robust(
        tiny, rows, follow, key=0,
        outcome_model=lambda args, action: jnp.asarray(WORTH)[args[0], action["arm"]],
    )  # fmt: skip
    value = (TARGET * WORTH).sum(1)[np.asarray(x)]
    assert np.allclose(found.estimate, value.mean(), atol=1e-6)
    assert np.allclose(found.stderr, value.std(ddof=1) / 60**0.5, atol=1e-6)


def posterior(rows):
    """Mean and variance [3, 3] of the means, each a normal one of its own."""
    x, arm, y, mask = (np.asarray(v) for v in (rows.args[0], *rows.sites.values(), rows.mask))
    count, total = np.zeros((3, 3)), np.zeros((3, 3))
    np.add.at(count, (x[mask], arm[mask]), 1)
    np.add.at(total, (x[mask], arm[mask]), y[mask])
    precision = 1 + count / 0.49
    return total / 0.49 / precision, 1 / precision


def test_model_based_is_the_posterior_in_closed_form(engine):
    rows = some_rows()
    mean, variance = posterior(rows)
    share = np.bincount(rows.args[0], minlength=3) / 60
    found = off_policy.model_based(
        tiny, rows, follow, baseline=0, key=1, engine=engine, num_worlds=4000
    )
    weight = share[:, None] * (TARGET - np.eye(3)[0])
    assert np.allclose(found.estimate, (weight * (mean - PRICE)).sum(), atol=1e-5)
    sd = (weight**2 * variance).sum() ** 0.5
    assert np.allclose(found.stderr, sd, rtol=5 / 8000**0.5)
    assert np.allclose(
        found.interval, found.estimate + 1.96 * sd * np.array([-1, 1]), atol=0.1 * sd
    )
    draws = found.diagnostics["draws"]
    assert draws.shape == (4000,)
    assert np.allclose(draws.mean(), found.estimate, atol=5 * sd / 4000**0.5)


def test_each_row_is_predicted_without_its_fold(engine):
    rows = some_rows(10)
    found = off_policy.doubly_robust(tiny, rows, follow, key=0, engine=engine, folds=3)
    scores = np.zeros(10)
    for f in range(3):
        mean, _ = posterior(rows._replace(mask=jnp.arange(10) % 3 != f))
        for i in range(f, 10, 3):
            x, arm = int(rows.args[0][i]), int(rows.sites["arm"][i])
            missed = float(rows.sites["click"][i]) - mean[x, arm]
            scores[i] = TARGET[x] @ (mean[x] - PRICE) + TARGET[x, arm] / LAW[x, arm] * missed
    assert np.allclose(found.estimate, scores.mean(), atol=1e-5)
    assert np.allclose(found.stderr, scores.std(ddof=1) / 10**0.5, atol=1e-5)


def test_an_engine_that_only_draws_gives_its_mean_over_worlds(engine):
    rows = some_rows()
    drawing = engine._replace(predict=None)
    exact, drawn = (
        off_policy.doubly_robust(tiny, rows, follow, key=0, engine=e, num_worlds=2000)
        for e in (engine, drawing)
    )
    assert exact.estimate != drawn.estimate
    assert np.allclose(exact.estimate, drawn.estimate, atol=0.02)
    based = off_policy.model_based(tiny, rows, follow, key=0, engine=drawing, num_worlds=20)
    assert np.allclose(based.estimate, based.diagnostics["draws"].mean())


def dose(x):
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    a = dp.action("dose", dist.Normal(x, 1.0), given=x)
    dp.reward("y", dist.Normal(slope * a, 0.5))


def test_continuous_actions_are_weighed_by_densities():
    x = np.linspace(-1, 1, 7).astype(np.float32)
    a = x + np.linspace(1.6, -1.3, 7).astype(np.float32)
    rows = dp.observe(dose, (x,), {"dose": a, "y": 2 * a})
    found = off_policy.ips(dose, rows, lambda given, space: dist.Normal(given / 2, 0.5))
    w = 2 * np.exp(-((a - x / 2) ** 2) * 2 + (a - x) ** 2 / 2)
    assert np.allclose(found.estimate, (w * 2 * a).mean(), atol=1e-5)
    # NumPyro's density of a uniform law is not zero outside
    found = off_policy.ips(dose, rows, dist.Uniform(0.0, 0.5))
    inside = (a >= 0) & (a <= 0.5)
    assert 0 < inside.sum() < 7
    w = 2 * inside * np.sqrt(2 * np.pi) * np.exp((a - x) ** 2 / 2)
    assert np.allclose(found.estimate, (w * 2 * a).mean(), atol=1e-4)
    assert np.allclose(found.diagnostics["share_unused"], 1 - inside.mean())


def test_continuous_actions_are_drawn_for_the_regression():
    x = jnp.zeros(400)
    a = jax.random.normal(jax.random.key(0), (400,))
    rows = dp.observe(dose, (x,), {"dose": a, "y": 2 * a})
    found = off_policy.doubly_robust(
        dose, rows, dist.Normal(0.5, 0.5), key=1, num_actions=8,
        outcome_model=lambda args, action: 2 * action["dose"],
    )  # fmt: skip
    # y is what the regression says: what is left is the mean of 3200 draws of N(1, 1)
    assert abs(found.estimate - 1) < 5 / 3200**0.5
    assert np.allclose(found.stderr, 1 / 3200**0.5, rtol=0.3)
    based = off_policy.model_based(dose, rows, 0.5, baseline=-0.5, key=0)  # a value will do here
    assert np.allclose(based.estimate, 2, atol=0.01)


def plated(x):
    with numpyro.plate("unit", 3):
        a = dp.action("treat", dist.Bernoulli(x), given=x)
    dp.reward("y", dist.Normal(jnp.sum(a), 1.0))


def vector(x):
    a = dp.action("treat", dist.Bernoulli(x).expand([3]).to_event(1), given=x)
    dp.reward("y", dist.Normal(jnp.sum(a), 1.0))


@pytest.mark.parametrize("model", [plated, vector])
def test_decisions_made_together_are_weighed_by_their_product(model):
    treat = np.array(list(itertools.product([0, 1], repeat=3)))
    x = np.linspace(0.2, 0.6, 8).astype(np.float32)
    rows = dp.observe(model, (x,), {"treat": treat, "y": treat.sum(1).astype(float)})
    law = dist.Bernoulli(0.5)
    policy = law if model is plated else law.expand([3]).to_event(1)
    found = off_policy.ips(model, rows, policy)
    logged = (x[:, None] ** treat * (1 - x[:, None]) ** (1 - treat)).prod(1)
    assert np.allclose(found.estimate, (0.125 / logged * treat.sum(1)).mean(), rtol=1e-5)
    found = off_policy.ips(model, rows, jnp.ones(3, int))
    assert np.allclose(found.estimate, 3 / x[-1] ** 3 / 8, rtol=1e-5)


def test_given_propensities_replace_the_law():
    rows = some_rows()
    x, arm = np.asarray(rows.args[0]), np.asarray(rows.sites["arm"])
    own = off_policy.ips(tiny, rows, follow)
    same = off_policy.ips(tiny, rows, follow, propensity=LAW[x, arm])
    half = off_policy.ips(tiny, rows, follow, propensity=LAW[x, arm] / 2)
    assert np.allclose(same.estimate, own.estimate, rtol=1e-5)
    assert np.allclose(half.estimate, 2 * own.estimate, rtol=1e-5)


@pytest.mark.parametrize("estimator", ["ips", "self_normalised", "doubly_robust", "model_based"])
def test_padding_changes_nothing(engine, estimator):
    rows, results = some_rows(20), []
    settings = {} if estimator in ("ips", "self_normalised") else {"key": 0, "engine": engine}
    # padding between the rows, so that folds would move, and at their end
    for mask in (np.arange(27) % 4 != 1, np.arange(27) < 20):
        at = np.cumsum(mask) - 1
        x = jnp.where(mask, rows.args[0][at], 2)
        arm = jnp.where(mask, rows.sites["arm"][at], mask[1])
        click = jnp.where(mask, rows.sites["click"][at], 100.0 if settings else jnp.nan)
        assert mask.sum() == 20
        logged = log(x, arm, click, mask)
        results.append(getattr(off_policy, estimator)(tiny, logged, follow, **settings))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        assert np.allclose(a, b, atol=1e-4)
    if not settings:
        whole = getattr(off_policy, estimator)(tiny, rows, follow)
        assert np.allclose(whole.estimate, results[0].estimate, atol=1e-5)
        assert np.allclose(whole.stderr, results[0].stderr, atol=1e-5)


def test_estimates_compile_once_for_policies_of_one_form(compilations):
    rows = some_rows()
    off_policy.ips(tiny, rows, 0, baseline=1)
    before = compilations()
    off_policy.ips(tiny, rows, 2, baseline=0)
    assert compilations() == before


def test_effects_pass_through_jit_and_vmap():
    rows = some_rows()
    law = jnp.asarray(TARGET[[0, 2]])
    many = jax.jit(jax.vmap(lambda p: off_policy.ips(tiny, rows, dist.Categorical(p))))(law)
    assert isinstance(many, off_policy.Effect)
    for i in range(2):
        one = off_policy.ips(tiny, rows, dist.Categorical(law[i]))
        for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
            assert np.allclose(a[i], b, rtol=1e-5)


# --- errors -----------------------------------------------------------------------------------


def never(x):
    arm = dp.action("arm", dist.Categorical(jnp.where(x > 0, 0.5, jnp.array([1.0, 0.0]))))
    dp.reward("y", dist.Normal(1.0 * arm, 1.0))


def coin(x):
    arm = dp.action("arm", dist.Bernoulli(jnp.where(x > 0, 0.5, 1.0)))
    dp.reward("y", dist.Normal(1.0 * arm, 1.0))


def hidden():
    m = numpyro.sample("m", dist.Normal(0, 1))
    arm = dp.action("arm", 2)
    dp.outcome("y", dist.Normal(m * arm, 1.0))
    dp.reward("value", m * arm)


def unrewarded():
    dp.outcome("y", dist.Normal(1.0 * dp.action("arm", 2), 1.0))


def broken(x):
    dp.reward("y", dist.Normal(1.0 * dp.action("arm", dist.Bernoulli(jnp.sqrt(x))), 1.0))


def undecided():
    dp.reward("y", dist.Normal(0.0, 1.0))


def rows_of(model, *args, arm=(0, 0, 1), **sites):
    args = tuple(jnp.asarray(a, float) for a in args)
    sites = {"arm": jnp.asarray(arm), "y": jnp.arange(3.0), **sites}
    return model, dp.Rows(args, sites, jnp.ones(3, bool))


ONES = np.ones(3)
OFF = [1.0, -1.0, 1.0]
WRONG = [
    (rows_of(never, OFF), dict(policy=1), "'arm': the policy plays actions that the logging law "
     "never takes, first in row 1 (1 rows in all)"),
    (rows_of(coin, OFF, arm=(0, 1, 1)), dict(policy=1, baseline=0), "first in row 1 (1 rows in"),
    (rows_of(never, OFF, arm=(0, 1, 1)), dict(policy=0), "taken in row 1 the "
     "probability 0.0 (1 rows in all)"),
    (rows_of(coin, OFF), dict(policy={}), "taken in row 1 the probability 0.0"),
    (rows_of(broken, [-1.0, 1.0, 1.0]), dict(policy={}), "taken in row 0 the probability nan"),
    (rows_of(hidden), dict(policy=1), "one of ['m']. Log it in dp.observe"),
    (rows_of(unrewarded), dict(policy=1), "no reward site (its sites: ['arm', 'y'])"),
    (rows_of(undecided), dict(policy=1), "no action site (its sites: ['y'])"),
    (rows_of(coin, ONES), dict(policy=2), "outside the support"),
    (rows_of(coin, ONES), dict(policy=1, propensity=ONES[:2]), "expected shape [3], the prob"),
    (rows_of(coin, ONES), dict(policy=1, propensity=ONES - [0, 0, 1]), "got 0.0 in row 2 (1 rows"),
    (rows_of(coin, ONES), dict(policy=1, propensity=ONES * np.nan), "got nan in row 0 (3 rows"),
    (rows_of(coin, ONES), dict(policy=1, level=95), "level: expected a number between 0 and 1"),
]  # fmt: skip


@pytest.mark.parametrize(("logged", "settings", "message"), WRONG)
def test_what_cannot_be_estimated_is_refused(logged, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        off_policy.ips(*logged, **settings)


@pytest.mark.parametrize("estimator", [off_policy.self_normalised, off_policy.doubly_robust])
def test_other_estimators_divide_by_propensities_too(estimator):
    logged, settings, message = WRONG[0]
    settings = settings if estimator is off_policy.self_normalised else {**settings, "key": 0}
    with pytest.raises(ValueError, match=re.escape(message)):
        estimator(*logged, **settings)


def test_padding_is_not_refused():
    model, rows = rows_of(never, OFF)
    masked = rows._replace(mask=jnp.array([True, False, True]))
    assert float(off_policy.ips(model, masked, 1).estimate) == 2.0  # y = 2, half the rows, w = 2


def test_other_settings_that_are_refused(engine):
    rows = some_rows(4)
    ips = off_policy.ips

    def robust(rows=rows, **settings):
        return off_policy.doubly_robust(tiny, rows, 0, key=0, **settings)

    def q(args, action):
        return 0.0

    undecided = rows._replace(sites={"click": rows.sites["click"]})
    x = jnp.zeros(2)
    doses = dp.observe(dose, (x,), {"dose": x, "y": x})
    for error, message, call in [
        (ValueError, "both given", lambda: robust(engine=engine, outcome_model=q)),
        (ValueError, "folds: expected a whole number from 2", lambda: robust(folds=1)),
        (ValueError, "that of the rows, 4, got 5", lambda: robust(folds=5)),
        (ValueError, "give engine=", lambda: jax.jit(lambda r: robust(r))(rows)),
        (ValueError, "'dose': the policy has no density", lambda: ips(dose, doses, 0.5)),
        (ValueError, "it is Bernoulli", lambda: ips(dose, doses, dist.Bernoulli(0.5))),
        (TypeError, "expected dp.observe", lambda: ips(tiny, {"arm": [0]}, 0)),
        (TypeError, "policy is None", lambda: ips(tiny, rows, None)),
        (ValueError, "not action sites", lambda: ips(tiny, rows, {"leg": 0})),
        (ValueError, "'arm' is not in the rows", lambda: robust(undecided)),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            call()


# --- properties -------------------------------------------------------------------------------


def offered(law):
    arm = dp.action("arm", dist.Categorical(law))
    dp.reward("y", dist.Normal(1.0 * arm, 1.0))


@jax.jit
def draw_rows(key):
    law_key, arm_key, y_key = jax.random.split(key, 3)
    law = 0.1 + 0.7 * jax.random.dirichlet(law_key, jnp.ones(3), (12,))
    arm = jax.random.categorical(arm_key, jnp.log(law))
    return law, arm, jax.random.normal(y_key, (12,))


@jax.jit
def weighed(law, arm, y, target):
    """Value by `self_normalised`, its effect against the logging law, and value by `ips`."""
    rows = dp.Rows((law,), {"arm": arm, "y": y}, jnp.ones(12, bool))
    policy = dist.Categorical(target)
    return (
        off_policy.self_normalised(offered, rows, policy),
        off_policy.self_normalised(offered, rows, policy, baseline={}),
        off_policy.ips(offered, rows, policy),
    )


@given(strategies.keys(), strategies.simplex(dims=(3,)), st.floats(-5, 5, width=32))
def test_self_normalised_values_follow_a_shift_of_rewards(key, target, shift):
    law, arm, y = (np.asarray(v) for v in draw_rows(key))
    target = (0.05 + 0.85 * target).astype(np.float32)
    found, effect, _ = weighed(law, arm, y, target)
    moved, moved_effect, _ = weighed(law, arm, y + np.float32(shift), target)
    assert np.allclose(moved.estimate, found.estimate + shift, atol=1e-4)
    assert np.allclose(moved.stderr, found.stderr, atol=1e-4)
    assert np.allclose(moved_effect.estimate, effect.estimate, atol=1e-4)
    assert y.min() - 1e-5 <= found.estimate <= y.max() + 1e-5
    assert 1 - 1e-5 <= found.diagnostics["effective_sample_size"] <= 12 + 1e-4
    again = weighed(law[::-1], arm[::-1], y[::-1], target)[0]
    assert np.allclose(again.estimate, found.estimate, atol=1e-5)


@given(strategies.keys(), strategies.simplex(dims=(3,)), st.floats(0, 1, width=32))
def test_ips_is_linear_in_the_policy(key, target, mix):
    law, arm, y = draw_rows(key)
    p, q = target.astype(np.float32), np.full(3, 1 / 3, np.float32)
    at_p, at_q, mixed = (
        float(weighed(law, arm, y, x)[2].estimate) for x in (p, q, mix * p + (1 - mix) * q)
    )
    assert np.allclose(mixed, mix * at_p + (1 - mix) * at_q, atol=1e-4)


# --- coverage ---------------------------------------------------------------------------------


def test_intervals_cover_where_the_model_is_wrong():
    problem = ad_load.ad_load(1, smallest=0.15, curved=True, curvature=0.5)
    engine = inference.conjugate(problem.model, jnp.zeros(1))  # the model is, the truth is not
    truth = float(problem.truth(2) - problem.truth(0))

    def estimate(key):
        rows = problem.simulate(key, 300)
        among, versus = (problem.model, rows, 2), {"baseline": 0}
        found = [
            off_policy.ips(*among, **versus),
            off_policy.self_normalised(*among, **versus),
            off_policy.doubly_robust(*among, **versus, key=0, engine=engine),
            off_policy.model_based(*among, **versus, key=0, engine=engine, num_worlds=100),
        ]
        return jax.tree.map(lambda *x: jnp.stack(x), *[e._replace(diagnostics={}) for e in found])

    # 99.9999 % intervals of a share of 500 repetitions are five standard deviations wide
    found = testing.coverage(estimate, truth, key=0, num_repetitions=500, level=1e-7)
    assert (np.abs(found.coverage[:3] - 0.95) < 0.05).all()
    assert (np.abs(found.bias[:3]) < 5 * found.width[:3] / 3.92 / 500**0.5).all()
    assert np.allclose(found.ratio[:3], 1, atol=0.16)
    # the fourth believes the model
    assert not found.passed
    assert found.coverage[3] < 0.75
    assert found.width[3] < 0.6 * found.width[:3].min()
