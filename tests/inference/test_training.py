"""Training: it converges, resumes to the bit, evaluates, and says what went wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers

from decisionppl import inference
from decisionppl.inference import training
from decisionppl.models import neural

nnx = pytest.importorskip("flax.nnx")


def regression(x, y):
    slope = numpyro.param("slope", jnp.zeros(()))
    with handlers.scale(scale=1 / y.size), numpyro.plate("row", y.size):
        numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def fresh(key, step):
    x_key, y_key = jax.random.split(key)
    x = jax.random.normal(x_key, (32,))
    return x, 1.5 * x + 0.1 * jax.random.normal(y_key, (32,))


def test_it_finds_the_maximum_likelihood():
    x = jnp.asarray([-1.0, 0.5, 2.0, 1.0])
    y = jnp.asarray([-0.7, 1.1, 3.9, 1.0])
    fit = inference.train(
        regression, lambda key, step: (x, y), 300, key=0, learning_rate=0.1,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.1, 300)),
    )  # fmt: skip
    assert float(fit.params["slope"]) == pytest.approx(float(x @ y / (x @ x)), abs=1e-3)
    assert fit.complete
    assert fit.losses.shape == (300,)
    assert fit.losses[-1] < fit.losses[0]


def test_every_step_sees_a_batch_of_its_own():
    def model(x):
        numpyro.param("m", jnp.zeros(()))
        numpyro.factor("x", x)

    def batches(key, step):
        return (jax.random.normal(key, ()),)

    losses = inference.train(model, batches, 8, key=0, optimizer=optax.sgd(0.0)).losses
    assert len(set(losses.tolist())) == 8


def test_interrupted_training_continues_to_the_bit(tmp_path, monkeypatch):
    net = neural.StatisticsNetwork(
        0, neural.successes(), neural.bernoulli(), hidden=(4,), rngs=nnx.Rngs(0)
    )
    model = neural.parallel(net)

    def batches(key, step):
        rate_key, y_key = jax.random.split(key)
        rate = jax.random.uniform(rate_key, (4, 1))
        return 5, jax.random.bernoulli(y_key, rate, (4, 5)).astype(int)

    held_out = batches(jax.random.key(9), 0)
    settings = {"key": 3, "held_out": held_out, "evaluate_every": 4, "progress": False}
    whole = inference.train(model, batches, 12, **settings)
    # stop as Ctrl-C would, after the evaluation at step 8
    path = tmp_path / "run.nc"
    original, calls = training._save, []

    def interrupting(*args):
        original(*args)
        calls.append(1)

    class Bar:
        def __init__(self, *args, **kwargs):
            self.n = kwargs.get("initial", 0)

        def update(self, n):
            self.n += n

        def set_postfix(self, **kwargs):
            if self.n >= 8 and not calls:
                raise KeyboardInterrupt

        def close(self):
            pass

    monkeypatch.setattr(training, "_save", interrupting)
    monkeypatch.setattr("tqdm.tqdm", Bar)
    with pytest.warns(UserWarning, match="interrupted after step 8 of 12"):
        part = inference.train(model, batches, 12, checkpoint=path, **settings)
    assert not part.complete
    assert len(part.losses) == 8
    assert calls
    rest = inference.train(model, batches, 12, checkpoint=path, **settings)
    assert rest.complete
    assert np.array_equal(rest.losses, whole.losses)
    for a, b in zip(jax.tree.leaves(rest.params), jax.tree.leaves(whole.params), strict=True):
        assert np.array_equal(a, b)
    assert [t for t, _ in whole.held_out] == [4, 8, 12]
    assert rest.held_out[-1] == whole.held_out[-1]
    # a finished run is loaded, not repeated
    again = inference.train(model, batches, 12, checkpoint=path, **settings)
    assert np.array_equal(again.losses, whole.losses)
    with pytest.raises(ValueError, match="num_steps was 12"):
        inference.train(model, batches, 13, checkpoint=path, **settings)


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_step():
    def model(y):
        numpyro.sample("y", dist.Normal(numpyro.param("m", jnp.zeros(())), 1.0), obs=y)

    batches = lambda key, step: (jnp.where(step < 3, 0.0, jnp.nan),)  # noqa: E731
    with pytest.raises(FloatingPointError, match="step 3"):
        inference.train(model, batches, 6, key=0, progress=False)


def test_latents_with_a_guide():
    def model(y):
        m = numpyro.sample("m", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(m, 1.0), obs=y)

    def guide(y):
        numpyro.sample("m", dist.Normal(numpyro.param("loc", 0.0), 0.7071))

    fit = inference.train(
        model, lambda key, step: (2.0,), 1500, key=0, guide=guide, learning_rate=0.05,
        progress=False,
    )  # fmt: skip
    assert float(fit.params["loc"]) == pytest.approx(1.0, abs=0.1)


def test_minibatches_draw_rows_of_all_arrays_alike():
    batches = inference.minibatches((jnp.arange(6), {"a": jnp.arange(6) * 10}), 50)
    rows, other = batches(jax.random.key(0), 0)
    assert jnp.array_equal(other["a"], rows * 10)
    assert set(rows.tolist()) == set(range(6))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inference.train(regression, fresh, 0, key=0), "num_steps"),
        (lambda: inference.train(regression, fresh, 5, key=0, evaluate_every=0), "evaluate_every"),
        (lambda: inference.minibatches((jnp.ones(3), jnp.ones(4)), 2), "leading axis"),
        (lambda: inference.minibatches((jnp.ones(3),), 0), "size"),
    ],
)
def test_misuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()
