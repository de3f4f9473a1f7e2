"""Neural sequence models: the two forms agree, masks see what they may, heads are laws."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density

nnx = pytest.importorskip("flax.nnx")

import decisionppl as dp  # noqa: E402
from decisionppl import inference, testing  # noqa: E402
from decisionppl.inference._steps import steps_of  # noqa: E402
from decisionppl.models import neural  # noqa: E402

SIZE = {"width": 4, "num_heads": 2, "num_frequencies": 1}
EDGES = jnp.linspace(-4.0, 4.0, 9)


def columns(x):
    return jnp.concatenate([jnp.ones(1), x])


def networks(head, depth=1):
    rngs = nnx.Rngs(0)
    size = {**SIZE, "depth": depth}
    return {
        "causal": neural.Transformer(1, head, **size, rngs=rngs),
        "invariant": neural.InvariantTransformer(1, head, **size, rngs=rngs),
        "statistics": neural.StatisticsNetwork(
            1, neural.least_squares(columns, 2), head, hidden=(8,), rngs=rngs
        ),
    }


def stirred(net):
    """Larger weights than at the start, so that what should matter does."""
    state = nnx.state(net, nnx.Param)
    leaves, structure = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    nnx.update(net, jax.tree.unflatten(structure, moved))
    return net


X = jax.random.normal(jax.random.key(1), (7, 1))
Y = {
    "gaussian": jax.random.normal(jax.random.key(2), (7,)),
    "bernoulli": jnp.asarray([0, 1, 1, 0, 1, 0, 0]),
    "beta": jax.random.uniform(jax.random.key(3), (7,), minval=0.1, maxval=0.9),
    "binned": jax.random.normal(jax.random.key(2), (7,)),
}
HEADS = {
    "gaussian": neural.gaussian(), "bernoulli": neural.bernoulli(), "beta": neural.beta(),
    "binned": neural.binned(EDGES),
}  # fmt: skip


def parallel_losses(net, x, y):
    if isinstance(net, neural.InvariantTransformer):
        laws = [net.laws(x, y, jnp.asarray(t)).log_prob(y)[t] for t in range(len(y))]
        return -jnp.stack(laws)
    return -net.laws(x, y).log_prob(y)


@pytest.mark.parametrize(
    ("kind", "head"),
    [("causal", h) for h in HEADS] + [("invariant", "gaussian"), ("statistics", "bernoulli")],
)
def test_scan_and_parallel_forms_agree(kind, head):
    net = stirred(networks(HEADS[head], depth=2 if head == "gaussian" else 1)[kind])
    scanned = inference.sequence_loss(neural.sequence(net), (X[None],), Y[head][None])[0]
    np.testing.assert_allclose(scanned, parallel_losses(net, X, Y[head]), rtol=1e-5, atol=1e-5)


def test_the_loss_of_training_is_the_mean_over_observations():
    net = stirred(networks(neural.gaussian(), depth=1)["causal"])
    y = jnp.stack([Y["gaussian"], -Y["gaussian"]])
    model = neural.parallel(net)
    seeded = handlers.seed(model, jax.random.key(0))
    density = float(log_density(seeded, (X[None], y), {}, {})[0])
    each = [parallel_losses(net, X, one).mean() for one in y]
    assert density == pytest.approx(-float(sum(each)) / 2, rel=1e-4)


def test_a_query_is_not_taken_for_a_pair_whose_outcome_is_zero():
    net = stirred(networks(neural.gaussian(), depth=1)["causal"])
    query, pair = net.embedding(X, None), net.embedding(X, jnp.zeros(len(X)))
    assert float(jnp.abs(query - pair).max(axis=-1).min()) > 1e-4


def test_forms_agree_beyond_a_fork():
    net = stirred(networks(neural.gaussian())["causal"])
    steps = steps_of(neural.sequence(net), X)
    y = Y["gaussian"]
    expected = -parallel_losses(net, X, y)
    carry = steps.init
    for t in range(7):
        if t in (2, 5):
            carry = jax.tree.map(
                lambda n: n.fork(7), carry, is_leaf=lambda n: isinstance(n, neural.Cache)
            )
        carry, log_prob = steps.absorb(carry, X[t], {"y": y[t]})
        np.testing.assert_allclose(log_prob, expected[t], rtol=1e-5, atol=1e-5)


def test_forking_twice_keeps_the_past_in_both_kinds():
    for kind in ("causal", "invariant"):
        net = stirred(networks(neural.gaussian())[kind])
        engine = inference.autoregressive(neural.sequence(net), X)
        key = jax.random.key(0)
        seen = dp.Rows((X[:4],), {"y": Y["gaussian"][:4]}, jnp.ones(4, bool))
        belief = engine.update(key, engine.init(key), seen)
        worlds = engine.sample(key, belief, 3)["y"]
        # each drawn cell follows the law that the parallel form has for its own past
        assert jnp.array_equal(worlds[:, :4], jnp.broadcast_to(Y["gaussian"][:4], (3, 4)))
        assert bool(jnp.isfinite(worlds).all())


def test_causal_law_sees_the_past_only():
    net = stirred(networks(neural.gaussian(), depth=2)["causal"])
    y = Y["gaussian"]
    slope = jax.jacobian(lambda y: net.laws(X, y).loc)(y)
    assert float(jnp.abs(jnp.triu(slope)).max()) == 0.0
    assert float(jnp.abs(jnp.tril(slope, -1)).max()) > 1e-3
    testing.assert_consistency(neural.sequence(net), X[:4], shorter=(X[:2],), num_sequences=1)


def test_invariant_law_ignores_the_order_of_its_context_and_the_causal_one_does_not():
    order = jnp.asarray([3, 0, 2, 1, 4, 5, 6])
    y = Y["gaussian"]
    # with one layer, what a pair is attended by does not depend on the others: depth two
    nets = networks(neural.gaussian(), depth=2)
    invariant, causal = stirred(nets["invariant"]), stirred(nets["causal"])
    four = jnp.asarray(4)
    gap = invariant.laws(X, y, four).loc[4:] - invariant.laws(X[order], y[order], four).loc[4:]
    assert float(jnp.abs(gap).max()) < 1e-5
    gap = causal.laws(X, y).loc[4] - causal.laws(X[order], y[order]).loc[4]
    assert float(jnp.abs(gap)) > 1e-4
    swapped = testing.check_exchangeable(
        neural.sequence(causal), X[:4], num_sequences=1, num_permutations=4, tolerance=math.inf
    )
    assert swapped.spread > 1e-3


def test_invariant_model_trains_on_every_context_length():
    net = networks(neural.gaussian())["invariant"]
    model = neural.parallel(net)
    y = jnp.zeros((4, 3))
    x = jnp.zeros((4, 3, 1))
    weights = []
    for seed in range(12):
        trace = handlers.trace(handlers.seed(model, seed)).get_trace(x, y)
        weights.append(np.asarray(trace["y"]["scale"]) * np.asarray(trace["y"]["fn"]._mask))
    sizes = {round(1 / (4 * w.max())) for each in weights for w in each}
    assert sizes == {1, 2, 3}  # targets left after contexts of 2, 1 and 0 pairs
    np.testing.assert_allclose([w.sum() for w in weights], 1.0, rtol=1e-5)


def test_binned_head_is_a_density_with_its_moments():
    raw = jax.random.normal(jax.random.key(0), (8,))
    law = neural.binned(EDGES).law(raw)
    grid = jnp.linspace(-4, 4, 80_001)[:-1] + 5e-5
    density, step = jnp.exp(law.log_prob(grid)), 1e-4
    assert float(density.sum() * step) == pytest.approx(1.0, abs=1e-4)
    mean = float((grid * density).sum() * step)
    assert float(law.mean) == pytest.approx(mean, abs=1e-4)
    assert float(law.variance) == pytest.approx(
        float((jnp.square(grid - mean) * density).sum() * step), abs=1e-3
    )
    assert float(law.entropy()) == pytest.approx(
        float(-(density * law.log_prob(grid)).sum() * step), abs=1e-3
    )
    q = jnp.linspace(0.01, 0.99, 25)
    np.testing.assert_allclose(law.cdf(law.icdf(q)), q, atol=1e-5)
    drawn = law.sample(jax.random.key(1), (20_000,))
    error = (float(law.variance) / 20_000) ** 0.5
    assert abs(float(drawn.mean()) - mean) < 5 * error
    assert float(law.log_prob(5.0)) == -math.inf


def test_heads_are_laws():
    raw = jax.random.normal(jax.random.key(0), (1000, 8))
    for name, head in HEADS.items():
        law = head.law(1e3 * raw[:, : head.size])
        assert law.batch_shape == (1000,), name
        drawn = law.sample(jax.random.key(1))
        assert bool(jnp.all(law.support(drawn))), name
        assert not bool(jnp.isnan(law.log_prob(drawn)).any()), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: neural.binned([0.0, 0.0, 1.0]), "increasing"),
        (lambda: neural.Transformer(1, HEADS["beta"], width=9, rngs=nnx.Rngs(0)), "multiple"),
        (lambda: dp.play(neural.sequence(networks(HEADS["beta"])["causal"]), 0)(5), "covariates"),
        (lambda: dp.play(neural.sequence(networks(HEADS["beta"])["causal"]), 0)(jnp.ones((5, 2))),
         r"\[\.\.\., length, 1\]"),
        (lambda: neural.parallel(networks(HEADS["gaussian"])["invariant"])(
            jnp.zeros((2, 3, 1)), jnp.zeros((2, 3))), "handlers.seed"),
    ],
)  # fmt: skip
def test_misuse_says_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_statistics_are_those_of_the_past():
    x = jax.random.normal(jax.random.key(0), (9, 2))
    y = jax.random.normal(jax.random.key(1), (9,))
    kept = neural.least_squares(columns, 3, ridge=0.5)
    state = kept.init()
    for t in range(9):
        state = kept.update(state, x[t], y[t])
    design = np.column_stack([np.ones(9), x])
    gram = design.T @ design + 0.5 * np.eye(3)
    coefficients = np.linalg.solve(gram, design.T @ np.asarray(y))
    new = jnp.asarray([0.3, -1.0])
    shown = np.asarray(kept.features(state, new))
    phi = np.concatenate([[1.0], new])
    expected = [phi @ coefficients, phi @ np.linalg.solve(gram, phi), *coefficients]
    np.testing.assert_allclose(shown, expected, rtol=2e-4)
    counts = neural.successes()
    state = counts.init()
    assert counts.features(state, None).tolist() == [0.5, 0.0, 1.0, 1.0]
    for value in (1.0, 0.0, 0.0):
        state = counts.update(state, None, value)
    expected = [1.5 / 4, math.log(1.5 / 2.5), 1 / 4, 1 / 2]
    np.testing.assert_allclose(counts.features(state, None), expected, rtol=1e-6)
