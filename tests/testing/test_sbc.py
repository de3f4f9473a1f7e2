"""Simulation-based calibration: right engines pass, wrong ones do not, nothing is recompiled.

Right engines are tested at level 1e-7 each under fixed keys, so together they keep within the
false-alarm budget of the suite.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import decisionppl as dp
from decisionppl import inference, plots, testing
from decisionppl._decision import as_context
from decisionppl.models import build
from decisionppl.testing import reference
from decisionppl.testing._repeat import repeat

KEY = jax.random.key(7)
ROWS = 6
NORMAL = reference.normal_normal().model
LINEAR = reference.linear_gaussian(2).model
X = jax.random.normal(jax.random.key(1), (ROWS, 2))

ENGINES = {
    "conjugate": inference.conjugate,
    "laplace": inference.laplace,
    "nuts": lambda *a: inference.nuts(
        *a, num_warmup=150, num_samples=300, num_chains=1, capacity=ROWS
    ),
    "svi": lambda *a: inference.svi(*a, num_steps=400, capacity=ROWS),
}
MODELS = {"normal": (NORMAL, ()), "linear": (LINEAR, (X,))}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_is_calibrated_on_exact_models(engine, model):
    model, args = MODELS[model]
    example = jax.tree.map(lambda x: x[0], args)
    made = ENGINES[engine](model, *example)
    testing.assert_sbc(
        model, made, args, key=KEY, num_rows=ROWS, num_simulations=300, num_draws=40, level=1e-7
    )


@pytest.mark.parametrize("name", ["beta_bernoulli", "gaussian", "linear", "items", "slate"])
def test_the_gallery_is_calibrated(name):
    """Those with an exact engine: all but the logistic one."""
    small = {
        "beta_bernoulli": {"num_arms": 2}, "gaussian": {"num_arms": 2},
        "linear": {"num_arms": 2, "dim": 2}, "items": {"num_items": 3, "dim": 2},
        "slate": {"num_items": 3, "k": 2},
    }[name]  # fmt: skip
    problem = build(name, **small)
    model, args = problem.model, ()
    if problem.contexts is not None:
        one = lambda key: as_context(problem.contexts(key, 0)).args  # noqa: E731
        args = jax.vmap(one)(jax.random.split(KEY, ROWS))
    engine = inference.conjugate(model, *jax.tree.map(lambda x: x[0], args))
    found = testing.assert_sbc(
        model, engine, args, key=KEY, num_rows=ROWS, num_simulations=200, level=1e-7
    )
    assert "utility of the choice" in found.names


def test_one_compilation_and_one_result_whatever_runs_side_by_side():
    count = [0]

    def counted():
        count[0] += 1
        NORMAL()

    engine = inference.conjugate(NORMAL)
    run = lambda model, **kw: testing.sbc(  # noqa: E731
        model, engine, key=KEY, num_rows=3, num_simulations=150, num_draws=20, **kw
    )
    few = run(counted, batch_size=4)
    traces, count[0] = count[0], 0
    many = run(counted, batch_size=150)
    assert count[0] <= traces + 2  # as many for one chunk as for forty
    np.testing.assert_array_equal(few.ranks, many.ranks)
    assert few.ranks.shape == (150, 2)


def test_ties_are_broken_at_random():
    def model():
        k = numpyro.sample("k", dist.Categorical(jnp.ones(2) / 2))
        dp.outcome("y", dist.Normal(k, 100.0))  # says next to nothing

    prior = inference.Inference(
        lambda key: (), lambda key, belief, rows: belief,
        lambda key, belief, n: {"k": jax.random.bernoulli(key, 0.5, (n,)).astype(int)},
    )  # fmt: skip
    found = testing.sbc(model, prior, key=KEY, num_draws=50, num_simulations=400)
    assert found.p_values[found.names.index("k")] > 1e-4
    assert len(np.unique(found.ranks[:, 0])) > 30


def test_checkpoint_goes_on_where_it_stopped(tmp_path):
    calls = []

    def slow(key):
        jax.debug.callback(lambda: calls.append(1))
        return jax.random.normal(key)

    path = tmp_path / "some.npz"
    half = repeat(slow, KEY, 8, batch_size=2, checkpoint=path, identity="a")
    jax.effects_barrier()
    done = len(calls)
    whole = repeat(slow, KEY, 16, batch_size=2, checkpoint=path, identity="a")
    jax.effects_barrier()
    assert len(calls) == 2 * done  # nothing is done twice
    np.testing.assert_array_equal(whole[:8], half)
    np.testing.assert_array_equal(whole, repeat(slow, KEY, 16, batch_size=4, identity="a"))
    with pytest.raises(ValueError, match="of another model, setting or key"):
        repeat(slow, KEY, 16, checkpoint=path, identity="b")


def test_interruption_keeps_what_is_done():
    seen = []

    def model():
        dp.outcome("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 1)), 1.0))

    import tqdm

    class Stop(tqdm.tqdm):
        def update(self, n=1):
            seen.append(n)
            if len(seen) == 2:
                raise KeyboardInterrupt

    original, tqdm.tqdm = tqdm.tqdm, Stop
    try:
        with pytest.warns(UserWarning, match="interrupted"):
            found = testing.sbc(
                model, inference.conjugate(model), key=0, num_simulations=100, batch_size=10
            )
    finally:
        tqdm.tqdm = original
    assert 0 < len(found.ranks) < 100


def test_posterior_sbc_accepts_the_right_posterior_and_not_a_wrong_one():
    rows = dp.observe(NORMAL, sites={"y": [2.5, 3.0, 1.0]})
    right = inference.conjugate(NORMAL)
    testing.assert_posterior_sbc(NORMAL, right, rows, key=KEY, level=1e-7, num_simulations=300)
    wide = right._replace(
        sample=lambda key, belief, n: jax.tree.map(
            lambda x: x + 0.5 * jax.random.normal(jax.random.fold_in(key, 1), x.shape),
            right.sample(key, belief, n),
        )
    )
    found = testing.posterior_sbc(NORMAL, wide, rows, key=KEY, num_simulations=500)
    assert not found.passed
    assert found.ranks.shape == (500, 2)


def test_posterior_sbc_takes_each_truth_from_a_fit_of_its_own():
    """Draws of one chain share its error, so as truths they would look miscalibrated together."""

    def update(key, belief, rows):  # the first fit draws a number, later ones keep it
        return jnp.where(belief == 0, jax.random.uniform(key), belief)

    engine = inference.Inference(
        lambda key: jnp.zeros(()), update, lambda key, belief, n: {"mean": jnp.full(n, belief)}
    )
    rows = dp.observe(NORMAL, sites={"y": [2.5]})
    found = testing.posterior_sbc(NORMAL, engine, rows, key=KEY, num_simulations=40, num_draws=10)
    assert set(found.ranks[:, 0].tolist()) == {0, 10}


def test_plain_models_take_part_through_the_names_of_their_data():
    def plain():
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu, 1.0))

    def update(key, belief, rows):
        return belief[0] + jnp.sum(rows.sites["y"]), belief[1] + rows.mask.sum()

    def sample(key, belief, n):
        total, count = belief
        mean = total / (1 + count)
        return {"mu": mean + jax.random.normal(key, (n,)) / jnp.sqrt(1 + count)}

    by_hand = inference.Inference(lambda key: (0.0, 0.0), update, sample)
    testing.assert_sbc(plain, by_hand, key=KEY, num_rows=4, data="y", level=1e-7)
    with pytest.raises(ValueError, match="none of the random sites"):
        testing.sbc(plain, by_hand, key=KEY)


def test_actions_are_logged_whatever_data_are_named():
    model = build("gaussian", num_arms=2).model
    found = testing.assert_sbc(
        model, inference.conjugate(model), key=KEY, num_rows=4, data="reward",
        num_simulations=200, level=1e-7,
    )  # fmt: skip
    assert len(found.names) == 4


def test_further_quantities_are_ranked():
    found = testing.sbc(
        NORMAL, inference.conjugate(NORMAL), key=KEY, num_rows=2, num_simulations=50,
        quantities={"square": lambda world, rows: world["mean"] ** 2,
                    "pair": lambda world, rows: jnp.stack([world["mean"], rows.sites["y"].sum()])},
    )  # fmt: skip
    assert found.names == ("mean", "log-likelihood", "pair[0]", "pair[1]", "square")
    np.testing.assert_array_equal(found.ranks[:, 0], found.ranks[:, 2])


def test_nan_draws_fail_and_say_where():
    engine = inference.conjugate(NORMAL)
    broken = engine._replace(
        sample=lambda key, belief, n: {"mean": jnp.full(n, jnp.nan)},
    )
    found = testing.sbc(NORMAL, broken, key=KEY, num_simulations=20)
    assert not found.passed
    assert "NaN in 'mean', first in simulation 0" in found.message


def test_the_message_says_how_the_posterior_is_wrong():
    right = inference.conjugate(NORMAL)

    def changed(scale, shift=0.0):
        def sample(key, belief, n):
            x = right.sample(key, belief, n)["mean"]
            return {"mean": (x - x.mean()) * scale + x.mean() + shift}

        return right._replace(sample=sample)

    def says(engine):
        return testing.sbc(NORMAL, engine, key=KEY, num_rows=5, num_simulations=400).message

    assert "'mean' is too narrow" in says(changed(0.5))
    assert "'mean' is too wide" in says(changed(2.0))
    assert "'mean' lies below its posterior" in says(changed(1.0, 0.4))
    # the prior in the place of the posterior: no latent shows that by itself
    deaf = right._replace(update=lambda key, belief, rows: belief)
    assert "the posterior makes too little of the rows" in says(deaf)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"num_draws": 0}, ValueError, "num_draws: expected an int of at least 1"),
        ({"level": 2}, ValueError, "level: expected a number between 0 and 1"),
        ({"num_rows": -1}, ValueError, "num_rows: expected an int of at least 1"),
        ({"args": [1.0]}, TypeError, "args: expected a tuple"),
        ({"inference": NORMAL}, TypeError, "inference: expected an Inference"),
        ({"model": LINEAR, "args": (X,)}, ValueError, "latent site 'w' of shape"),
        ({"model": LINEAR, "args": (X[0, 0],)}, ValueError, "one leading axis"),
        ({"args": (X,), "num_rows": 3, "model": LINEAR}, ValueError, "one leading axis"),
        ({"data": "z"}, ValueError, "data names \\['z'\\]"),
        ({"quantities": {"mean": len}}, ValueError, "ranked already"),
    ],
)
def test_bad_settings_say_what_was_expected(change, error, match):
    given = {"model": NORMAL, "inference": inference.conjugate(NORMAL), "key": KEY, **change}
    with pytest.raises(error, match=match):
        testing.sbc(given.pop("model"), given.pop("inference"), given.pop("args", ()), **given)


def test_models_that_cannot_be_simulated_say_why():
    def conditioned():
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("z", dist.Normal(mu, 1), obs=0.3)
        dp.outcome("y", dist.Normal(mu, 1))

    def per_row(x):
        dp.outcome("y", dist.Normal(numpyro.sample("mu", dist.Normal(x, 1)), 1))

    engine = inference.conjugate(NORMAL)
    with pytest.raises(TypeError, match="site 'z' has obs= in the model"):
        testing.sbc(conditioned, engine, key=KEY)
    with pytest.raises(ValueError, match="'mu': its prior depends on the model's arguments"):
        testing.sbc(per_row, engine, (jnp.arange(3.0),), key=KEY)


def test_plot_colours_what_leaves_the_band():
    engine = inference.conjugate(NORMAL)
    prior = engine._replace(update=lambda key, belief, rows: belief)
    found = testing.sbc(NORMAL, prior, key=KEY, num_rows=5, num_simulations=100)
    axes = found.plot(title="prior")
    labels = [t.get_text() for t in axes.get_legend().get_texts()]
    assert labels == ["simultaneous band", "log-likelihood"]
    with pytest.raises(ValueError, match="no quantity 'tau'"):
        plots.ecdf_difference(found, ["tau"])
