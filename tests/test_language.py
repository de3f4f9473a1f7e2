"""The language: one test per fact that the implementation rests on (DESIGN section 3)."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan

import decisionppl as dp
from decisionppl._roles import role_of

KEY = jax.random.key(0)


def chain(length=5):
    """A Markov reward chain whose action is inside scan."""

    def step(state, _):
        a = dp.action("treat", dist.Bernoulli(0.5), given=state)
        noise = numpyro.sample("noise", dist.Normal(0, 1))
        state = dp.state("state", state + a + 0.1 * noise)
        dp.reward("reward", state)
        return state, None

    return scan(step, jnp.zeros(()), None, length=length)[0]


def nested():
    def outer(total, _):
        def inner(carry, _):
            a = dp.action("a", 3)
            return carry + a, a

        last, _ = scan(inner, jnp.zeros((), int), None, length=2)
        return total + last, last

    return scan(outer, jnp.zeros((), int), None, length=3)[0]


def branching(x):
    def left(_):
        return dp.action("a", dist.Normal(0, 1))

    def right(_):
        return dp.action("a", dist.Normal(10, 1))

    dp.reward("r", cond(x > 0, left, right, None))


def values(trace, name):
    return np.asarray(trace[name]["value"])


# 1. intervention reaches the bodies of control flow


@pytest.mark.parametrize("treat", [0, 1])
def test_act_inside_scan(treat):
    trace = dp.play(chain, KEY, policy=treat)()
    assert values(trace, "treat").tolist() == [treat] * 5
    # it acts on what follows, and is not only written into the trace
    noise = 0.1 * np.cumsum(values(trace, "noise"))
    np.testing.assert_allclose(
        values(trace, "state"), treat * np.arange(1, 6) + noise, rtol=1e-5, atol=1e-5
    )


def test_numpyro_do_does_not_reach_scan():
    # the reason for `act`: should this ever fail, NumPyro has learned to do it
    trace = handlers.trace(handlers.seed(handlers.do(chain, {"treat": 1}), 0)).get_trace()
    assert not np.all(values(trace, "treat") == 1)


def test_act_inside_nested_scan():
    assert int(handlers.seed(dp.act(nested, 2), KEY)()) == 2 * 2 * 3


@pytest.mark.parametrize("x", [-1.0, 1.0])
def test_act_inside_cond(x):
    assert values(dp.play(branching, KEY, policy=4.0)(x), "r") == 4.0


def test_act_inside_plate():
    def model():
        with numpyro.plate("units", 4):
            a = dp.action("a", dist.Bernoulli(0.5), given=jnp.arange(4))
            dp.reward("r", 2 * a)

    assert values(dp.play(model, KEY, policy=1)(), "r").tolist() == [2] * 4
    odd = dp.play(model, KEY, policy=lambda given, space: given % 2)()
    assert values(odd, "r").tolist() == [0, 2, 0, 2]
    each = dp.play(model, KEY, policy={"a": jnp.array([1, 0, 0, 1])})()
    assert values(each, "r").tolist() == [2, 0, 0, 2]


# 2. the law is replaced, the site stays a sample site


@pytest.mark.parametrize("order", ["act outside", "act inside"])
def test_logged_prefix_and_future_policy_in_either_order(order):
    prefix = {"treat": jnp.array([0, 1, 0])}
    if order == "act outside":
        model = dp.act(handlers.condition(chain, prefix), 1)
    else:
        model = handlers.condition(dp.act(chain, 1), prefix)
    trace = handlers.trace(handlers.seed(model, KEY)).get_trace()
    assert values(trace, "treat").tolist() == [0, 1, 0, 1, 1]


def test_inner_act_wins():
    for model in (chain, nested):
        site = "treat" if model is chain else "a"
        trace = handlers.trace(handlers.seed(dp.act(dp.act(model, 1), 0), KEY)).get_trace()
        assert np.all(values(trace, site) == 1)


def test_feedback_policy_sees_given_and_space():
    seen = {}

    def policy(given, space):
        seen["space"] = type(space).__name__
        return (given < 2).astype(int)

    with jax.checking_leaks():
        play = dp.play
        trace = jax.jit(lambda key: {n: s["value"] for n, s in play(chain, key, policy)().items()})(
            KEY
        )
    state = np.concatenate([[0.0], np.asarray(trace["state"])[:-1]])
    assert np.asarray(trace["treat"]).tolist() == (state < 2).astype(int).tolist()
    assert seen["space"].startswith("Bernoulli")


def test_policy_may_be_a_distribution():
    p = jax.vmap(lambda k: dp.play(chain, k, policy=dist.Bernoulli(0.9))()["treat"]["value"])
    draws = p(jax.random.split(KEY, 400))
    # 2000 Bernoulli(0.9): six standard errors, false alarm 2e-9
    assert abs(float(draws.mean()) - 0.9) < 6 * np.sqrt(0.09 / 2000)


def test_common_random_numbers_across_actions():
    zero, one = (dp.play(chain, KEY, policy=a)() for a in (0, 1))
    logged = dp.play(chain, KEY)()
    np.testing.assert_array_equal(values(zero, "noise"), values(one, "noise"))
    np.testing.assert_array_equal(values(zero, "noise"), values(logged, "noise"))


def test_common_random_numbers_with_world_and_data():
    def model():
        w = numpyro.sample("w", dist.Normal(0, 1))
        y = dp.outcome("y", dist.Normal(w, 1))
        dp.reward("r", dist.Normal(y, 1))

    free = dp.play(model, KEY)()
    given = dp.play(model, KEY, world={"w": 2.0}, data={"y": values(free, "y")})()
    assert values(free, "r") == pytest.approx(values(given, "r"))


def test_action_is_not_evidence():
    def model():
        bias = numpyro.sample("bias", dist.Normal(0, 1))
        dp.action("a", dist.Bernoulli(logits=bias))

    trace = dp.play(model, KEY, policy=1)()
    assert float(jnp.sum(trace["a"]["fn"].log_prob(trace["a"]["value"]))) == 0.0


def test_no_leaked_tracers():
    def total(key, treat):
        return jnp.sum(dp.play(chain, key, policy=treat)()["reward"]["value"])

    with jax.checking_leaks():
        gradient = jax.jit(jax.vmap(total, in_axes=(0, None)))(jax.random.split(KEY, 3), 1)
    assert np.isfinite(np.asarray(gradient)).all()


# 3. roles on both kinds of sites, inside scan too


def test_roles_survive_scan():
    trace = dp.play(chain, KEY)()
    roles = {n: role_of(s) for n, s in trace.items()}
    assert roles == {"treat": "action", "noise": None, "state": "state", "reward": "reward"}
    assert trace["reward"]["type"] == "deterministic"


# 4. stale deterministic sites are never substituted


def confounded():
    w = numpyro.sample("w", dist.Normal(0, 1))
    a = dp.action("a", 3)
    dp.outcome("seen", dist.Normal(w * a, 1.0))
    dp.reward("r", w * a)


def test_stale_sites_of_a_world_are_recomputed():
    worlds = {"w": jnp.array([2.0]), "r": jnp.array([77.0]), "a": jnp.array([1]),
              "seen": jnp.array([5.0])}  # fmt: skip
    assert dp.utility(confounded, worlds, key=0).tolist() == [[0.0, 2.0, 4.0]]


def test_worlds_from_mcmc_drive_the_utility():
    from numpyro.infer import MCMC, NUTS

    data = {"a": jnp.array(1), "seen": jnp.array(0.7)}
    mcmc = MCMC(NUTS(handlers.condition(confounded, data)), num_warmup=50, num_samples=20,
                progress_bar=False)  # fmt: skip
    mcmc.run(KEY)
    worlds = mcmc.get_samples()
    assert "r" in worlds
    expected = np.asarray(worlds["w"])[:, None] * np.arange(3)
    np.testing.assert_allclose(dp.utility(confounded, worlds, key=0), expected, rtol=1e-6)


# 5. data enter through condition, in the dtype of the site


def test_float_prefix_of_a_discrete_site():
    trace = dp.play(chain, KEY, policy=1, data={"treat": np.array([0.0, 0.0])})()
    assert values(trace, "treat").tolist() == [0, 0, 1, 1, 1]


# 7. a site may hold a function


@jax.tree_util.register_pytree_node_class
class Line:
    def __init__(self, slope):
        self.slope = slope

    def __call__(self, x):
        return self.slope * x

    def tree_flatten(self):
        return (self.slope,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


class Lines(dist.Distribution):
    support = dist.constraints.real

    def __init__(self):
        super().__init__((), ())

    def sample(self, key, sample_shape=()):
        return Line(jax.random.normal(key, sample_shape))

    def log_prob(self, value):
        return dist.Normal(0, 1).log_prob(value.slope)


def test_function_valued_sites():
    def model():
        f = numpyro.sample("f", Lines())
        x = dp.action("x", dist.Uniform(0, 1))
        dp.reward("value", f(x))

    worlds = {"f": Line(jnp.array([1.0, -2.0]))}
    candidates = jnp.array([0.0, 0.5, 1.0])
    u = jax.jit(lambda w: dp.utility(model, w, candidates, key=0))(worlds)
    assert u.tolist() == [[0.0, 0.5, 1.0], [0.0, -1.0, -2.0]]
    assert "f" in dp.play(model, KEY)()


# errors name the site and the fix


def test_value_outside_the_action_space():
    with pytest.raises(ValueError, match=r"'treat'.*outside the support"):
        dp.play(chain, KEY, policy=7)()


def test_unknown_sites():
    with pytest.raises(ValueError, match=r"world names \['v'\]"):
        dp.play(confounded, KEY, world={"v": 1.0})()
    with pytest.raises(ValueError, match=r"data names \['y'\]"):
        dp.play(confounded, KEY, data={"y": 1.0})()
    with pytest.raises(ValueError, match=r"policy names \['b'\]"):
        dp.play(confounded, KEY, policy={"b": 1})()


def test_data_for_a_computed_site():
    with pytest.raises(ValueError, match=r"'r'.*computes"):
        dp.play(confounded, KEY, data={"r": 1.0})()


def test_duplicate_role():
    def model():
        dp.outcome("y", dist.Normal(0, 1))
        dp.reward("y", 1.0)

    with pytest.raises(ValueError, match="'y' is declared twice, as outcome and as reward"):
        dp.play(model, KEY)()


def test_missing_roles():
    with pytest.raises(ValueError, match="no action site"):
        dp.utility(lambda: dp.reward("r", 1.0), {}, key=0)
    with pytest.raises(ValueError, match="no reward site"):
        dp.utility(lambda: dp.action("a", 2), {}, key=0)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: dp.action("a", "three"), TypeError, "'a'.*Distribution or an int"),
        (lambda: dp.action("a", 0), ValueError, "at least one arm"),
        (lambda: dp.action("a", True), TypeError, "got bool"),
        (lambda: dp.reward("r", dist.Normal), TypeError, "class Normal"),
        (lambda: dp.reward("r", None), TypeError, "got None"),
        (lambda: dp.reward(3, 1.0), TypeError, "expected a name"),
        (lambda: dp.act(chain), TypeError, "needs a policy"),
        (lambda: dp.play(chain, "seed"), TypeError, "PRNG key"),
        (lambda: dp.play(chain, KEY, policy=lambda given, space: None)(), TypeError, "None"),
        (
            lambda: dp.play(chain, KEY, policy=dist.Normal(0, 1).expand([2]).to_event(1))(),
            ValueError,
            "event shape",
        ),
        (lambda: dp.Subsets(2, 3), ValueError, "1 <= k <= size"),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_raw_and_typed_keys_and_seeds_agree():
    traces = [dp.play(chain, k)() for k in (0, jax.random.key(0), jax.random.PRNGKey(0))]
    for trace in traces[1:]:
        np.testing.assert_array_equal(values(trace, "state"), values(traces[0], "state"))
