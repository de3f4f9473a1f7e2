"""Training of policies of queues by the default recipe, on chains and on events."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decisionppl.models import queueing
from decisionppl.models._queue_training import _value_features

SMALL = {"key": 0, "hidden": (8,), "num_runs": 20, "num_events": 50, "progress": False}


def test_features_of_the_value_are_those_of_lengths():
    net = queueing.criss_cross()
    x = np.array([3.0, 0.0, 2.0])
    near = np.exp(-x / 3)
    known = [*x, 9, 0, 6, 0, 0, 4, 1, 0, 1, *near, *np.outer(x, near).ravel()]
    np.testing.assert_allclose(_value_features(net, jnp.asarray(x, int)), known, rtol=1e-6)
    state = queueing.Queues(jnp.asarray(x), None, None, None, None)
    np.testing.assert_allclose(_value_features(net, state), known, rtol=1e-6)


def test_the_recipe_learns_which_class_costs_more():
    net = queueing.multiclass([0.35, 0.35], 1.0, [1, 4])
    fit = queueing.train_neural(net, 60, learning_rate=0.02, **SMALL)
    law = queueing.neural(net, fit.params["policy"])(jnp.array([5.0, 5.0]), None)
    assert float(law.probs[0, 1]) > 0.8


def test_other_clocks_are_trained_event_by_event():
    net = queueing.criss_cross(interarrival=queueing.hyperexponential())
    fit = queueing.train_neural(net, 12, **SMALL)
    for x in jax.tree.leaves(fit.params["policy"]):
        assert np.isfinite(np.asarray(x)).all()
    assert np.isfinite(fit.losses).all()
    assert np.asarray(fit.params["policy"][-1][0]).any()  # the last layer began at zero


def test_pools_of_servers_are_refused():
    with pytest.raises(ValueError, match="pools"):
        queueing.train_neural(queueing.mmc(0.5), 2, **SMALL)
