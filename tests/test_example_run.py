"""What is looked at of a model is what a plain run shows, however it is obtained."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import decisionppl as dp
from decisionppl._play import example_run


def model(x):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
    f = numpyro.sample("f", dp.GaussianProcess(dp.kernels.RBF(0.5)))
    dose = dp.action("dose", dist.Uniform(0.0, 1.0 + x))
    arm = dp.action("arm", 3)
    dp.cost("price", 2.0 * dose)
    dp.reward("y", dist.Normal(w[0] + arm + f(dose), 0.1))


ARGS = (jnp.asarray(0.5),)


def test_a_compiled_run_is_a_plain_run():
    ours, plain = example_run(model, ARGS), dp.play(model, 0)(*ARGS)
    assert list(ours) == list(plain)
    for name, site in plain.items():
        mine = ours[name]
        assert mine["type"] == site["type"]
        assert mine["infer"] == site["infer"]
        assert type(mine.get("fn")) is type(site.get("fn"))
        if name != "f":
            np.testing.assert_allclose(mine["value"], site["value"], rtol=1e-5, atol=1e-6)
    assert ours["dose"]["fn"].high == 1.5
    assert ours["arm"]["fn"].has_enumerate_support
    np.testing.assert_allclose(ours["f"]["value"](0.3), plain["f"]["value"](0.3), rtol=1e-4)


def test_without_values_the_laws_of_actions_are_there_and_nothing_is_drawn(compilations):
    run = example_run(model, ARGS, at_mean=True, values=False)
    assert run["dose"]["fn"].high == 1.5
    assert run["w"]["value"] == jax.ShapeDtypeStruct((2,), jnp.float32)
    assert run["y"]["fn"].shape() == ()
    before = compilations()
    example_run(model, ARGS, at_mean=True, values=False)
    assert compilations() == before


def test_data_take_the_place_of_values():
    run = example_run(model, ARGS, {"dose": 0.25})
    assert run["dose"]["value"] == 0.25
    assert run["price"]["value"] == 0.5


def shaped(count):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([count]).to_event(1))
    if float(w[0]) > -1e9:  # looks at a value, which no compiled function can
        dp.reward("y", dist.Normal(w.sum() + dp.action("arm", 2), 1.0))


@pytest.mark.parametrize("values", [True, False])
def test_models_that_do_not_compile_are_run_as_they_are(values):
    run = example_run(shaped, (3,), values=values)
    assert np.shape(run["w"]["value"]) == (3,)
    assert list(run) == ["w", "arm", "y"]


class Opaque(dist.Normal):
    """A law whose parts a compiled function would lose."""

    pytree_data_fields = ()

    def __init__(self, secret):
        super().__init__(0.0, 1.0)
        self.secret = secret


def test_laws_that_a_compiled_function_would_lose_are_whole():
    def hiding():
        numpyro.sample("w", Opaque("kept"))
        dp.reward("y", dist.Normal(dp.action("arm", 2) * 1.0, 1.0))

    assert example_run(hiding)["w"]["fn"].secret == "kept"


def test_what_is_wrong_with_a_model_is_said_as_by_a_plain_run():
    def twice():
        dp.reward("y", dist.Normal(0.0, 1.0))
        dp.reward("y", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="site 'y' is declared twice"):
        example_run(twice)


def test_equal_models_are_not_taken_for_each_other():
    class Model:
        def __init__(self, scale):
            self.scale = scale

        def __eq__(self, other):
            return isinstance(other, Model)

        __hash__ = None

        def __call__(self):
            dp.action("dose", dist.Uniform(0.0, self.scale))

    laws = [example_run(Model(scale))["dose"]["fn"] for scale in (1.0, 2.0)]
    assert [float(law.high) for law in laws] == [1.0, 2.0]


LARGEST = 1.0


def largest():
    return LARGEST


def bounded():
    dp.action("dose", dist.Uniform(0.0, largest()))


def test_a_model_is_looked_at_again_when_what_it_reads_has_changed(monkeypatch):
    """In a notebook, a number is changed in one cell and the model is defined in another."""
    assert example_run(bounded, values=False)["dose"]["fn"].high == 1.0
    monkeypatch.setitem(globals(), "LARGEST", 2.0)
    assert example_run(bounded, values=False)["dose"]["fn"].high == 2.0


def test_enclosing_variables_count_too():
    limit = 1.0

    def dosing():
        dp.action("dose", dist.Uniform(0.0, limit))

    assert example_run(dosing, values=False)["dose"]["fn"].high == 1.0
    limit = 3.0
    assert example_run(dosing, values=False)["dose"]["fn"].high == 3.0


def test_building_an_engine_compiles_programs_and_not_single_operations(compilations):
    def hour():
        mean = numpyro.sample("mean", dist.Normal(50, 10).expand([13]).to_event(1))
        arm = dp.action("arm", 13)
        dp.reward("takings", dist.Normal(mean[arm], 25.0))
        dp.cost("fee", jnp.arange(13.0)[arm])

    engine = dp.inference.conjugate(hour)
    assert compilations() < 40, compilations()  # one by one, the operations were 120
    # actions that are known stay so while a function is traced
    law = jax.jit(lambda belief: engine.predict(belief, dp.action_space(hour)).mean)
    belief = engine.init(jax.random.key(0))
    np.testing.assert_allclose(law(belief), 50 - np.arange(13.0), rtol=1e-6)
