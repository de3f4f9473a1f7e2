"""Labelling problems: where the points are, what is true of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decisionppl as dp
from decisionppl.models import labelling


@pytest.fixture(scope="module")
def found():
    draw = jax.jit(jax.vmap(lambda k: labelling.cluster_biased(k, dim=2)))
    return draw(jax.random.split(jax.random.key(0), 40))


def test_points_lie_about_their_anchors(found):
    anchors = np.r_[np.zeros(250, int), np.repeat(np.arange(1, 51), 5)]
    pool = np.asarray(found.candidates["x"])
    assert pool.shape == (40, 500, 2)
    radius = np.linalg.norm(pool, axis=-1)
    # the largest of 20,000 distances of two normal coordinates: 6 deviations are never passed
    assert (np.abs(radius - np.sqrt(2) * anchors) < 6 * 0.25).all()
    known = np.asarray(found.labelled.args or found.labelled.sites["x"])
    assert known.shape == (40, 100, 2)
    # 8,000 numbers each: the standard error of a standard deviation is 0.8 % of it
    assert known.std() == pytest.approx(0.5, rel=0.045)
    assert pool[:, :250].std() == pytest.approx(0.25, rel=0.045)
    targets = np.asarray(found.functional.targets["x"])
    far = np.linalg.norm(targets[:, -25:], axis=-1) / np.sqrt(2)
    assert (np.abs(far - np.arange(26, 51)) < 6 * 0.25).all()
    assert targets.shape == (40, 285, 2)


def test_labels_have_the_moments_of_the_process(found):
    """Far anchors are independent: 40 draws at 50 anchors, five points each."""
    y = np.asarray(found.labels)[:, 250:].reshape(40, 50, 5)
    total = np.mean(y**2)
    # 2,000 groups: the standard error of a mean square is below .7 * sqrt(2 / 2000)
    assert total == pytest.approx(0.69 + 0.01, abs=5.7 * 0.7 * np.sqrt(2 / 2000))
    twice = jax.jit(labelling.cluster_biased)(jax.random.key(3))
    again = labelling.cluster_biased(3)
    np.testing.assert_allclose(
        twice.labels, again.labels, atol=5e-3
    )  # rounding, in single precision


def test_the_predictor_is_what_is_evaluated():
    zero = labelling.cluster_biased(1)
    seen = {}

    def predictor(x):
        seen["x"] = x
        return 2.0 + x[:, 0]

    other = labelling.cluster_biased(1, predictor)
    np.testing.assert_array_equal(seen["x"], other.functional.targets["x"])
    np.testing.assert_array_equal(other.functional.centre, 2.0 + seen["x"][:, 0])
    np.testing.assert_array_equal(zero.labels, other.labels)
    # g is quadratic in f: two predictors and their mean tell its slope
    assert float(other.truth) > float(zero.truth)


def test_the_model_is_the_law_of_the_data():
    model = labelling.regression(2, noise=0.3)
    trace = dp.play(model, 0, policy=jnp.zeros(2))()
    assert float(trace["label"]["fn"].scale) == pytest.approx(0.3)
    assert dp.role_of(trace["x"]) == "action"
    kernel = trace["f"]["fn"].kernel
    at = lambda *v: (jnp.array([v]),)  # noqa: E731
    assert float(kernel(at(0.0, 0.0), at(0.6, 0.8))[0, 0]) == pytest.approx(0.69 * np.exp(-0.5))


def test_digits_are_divided_without_overlap_and_labels_are_hits():
    calls = []

    def predictor(images):
        calls.append(images)
        return np.eye(10)[np.zeros(len(images), int)]  # always a zero

    found = labelling.digits(3, predictor)
    assert calls[0].shape == (1797, 64)
    assert calls[0].max() == 1
    # 100 train, 50 are known, 500 in the pool
    assert found.functional.slope.shape == (1797 - 650,)
    every = np.concatenate([found.labelled.sites["x"], found.candidates["x"],
                            found.functional.targets["x"]])  # fmt: skip
    assert len(np.unique(every.round(5), axis=0)) == len(every)
    shares = [float(np.mean(v)) for v in (found.labelled.sites["label"], found.labels, found.truth)]
    total = 50 * shares[0] + 500 * shares[1] + (1797 - 650) * shares[2]
    zeros = 178  # in the data; the training images are not counted
    assert zeros - 100 <= round(total) <= zeros
    assert set(np.unique(found.labels)) == {0.0, 1.0}


def test_the_digits_show_the_shift_that_they_are_about():
    found = [labelling.digits(s) for s in range(100, 104)]
    assert np.mean([float(f.labelled.sites["label"].mean() - f.truth) for f in found]) > 0.1


def test_a_network_is_a_sum_of_two():
    net = labelling.network(2, hidden=(3,), prior_scale=2.0)
    trace = dp.play(net.model, 0, policy=jnp.array([0.5, -1.0]))()
    w = {n: np.asarray(trace[n]["value"]) for n in ("fit_0", "fit_1", "prior_0", "prior_1")}
    assert net.frozen == ("prior_0", "prior_1")

    def value(first, last):
        hidden = np.maximum(np.array([1.0, 0.5, -1.0]) @ first, 0)
        return (np.append(1.0, hidden) @ last)[0]

    exact = value(w["fit_0"], w["fit_1"]) + 2 * value(w["prior_0"], w["prior_1"])
    assert float(trace["label"]["fn"].loc) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: labelling.regression(noise=0.0), "noise: expected a positive"),
        (lambda: labelling.cluster_biased(0, num_anchors=1), "num_anchors=1"),
        (lambda: labelling.network(hidden=()), "at least one width"),
        (lambda: labelling.network(prior_scale=0.0), "prior_scale"),
        (lambda: labelling.digits(0, num_seen=20), "num_seen"),
        (lambda: labelling.digits(0, num_candidates=1700), "fewer"),
        (lambda: labelling.digits(0, lambda x: x), "predictor: expected probabilities"),
    ],
)
def test_misuse_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
