"""Policies of queueing networks by name, trained ones among them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from decisionppl._play import as_key
from decisionppl.inference import pathwise
from decisionppl.inference.training import Trained
from decisionppl.models import _queue_policies as policies
from decisionppl.models._queue_chain import chain_model
from decisionppl.models._queue_events import event_model
from decisionppl.models._queue_fluid import fluid
from decisionppl.models._queue_network import Network

POLICIES = ("cmu", "max_weight", "max_pressure", "max_pressure_idle", "fluid", "pathwise")


def _value_features(network: Network, state: Any) -> jax.Array:
    """Of the lengths of queues, for their value: it grows with products of them.

    Servers run dry where queues are short, which costs the more, the more jobs there are.
    """
    x = getattr(state, "length", state) * 1.0
    near = jnp.exp(-x / 3)
    products = [x[i] * x[i:] for i in range(network.num_classes)]
    return jnp.concatenate([x, *products, 1.0 * (x > 0), near, *(x[:, None] * near)])


def train_neural(
    network: Network,
    num_updates: int = 1000,
    *,
    key: Any,
    mode: pathwise.Mode | None = None,
    hidden: Sequence[int] = (32, 32),
    num_events: int = 100,
    num_runs: int = 100,
    learning_rate: float = 3e-3,
    **settings: Any,
) -> Trained:
    """Train `neural` on the cost per unit of time of an exponential or other network.

    The defaults are one recipe for networks of three to twelve classes; see
    `benchmarks/results/queues.json` for what it arrives at. Exponential networks are trained as
    `chain_model`, whose next event can be summed over, others as `event_model`.

    Args:
        network: from `network`, with single servers.
        num_updates: gradient steps.
        key: PRNG key or int seed.
        mode: of the gradient of `event_model`, see `inference.pathwise`; default `advantage`, on
            the lengths of queues, their products, and functions that tell short queues from none.
        hidden: widths of the hidden layers.
        num_events: events, or ticks of the chain, of each run in an update. Runs go on from one
            update to the next; in other modes than `advantage` they begin anew, and this many
            events before.
        num_runs: runs of each gradient step.
        learning_rate: of Adam; falls to a twentieth.
        **settings: of `inference.pathwise.train`: entropy (with the default mode 0.01, which
            falls to a tenth), average, progress, checkpoint.

    Returns:
        `inference.Trained`; `hardened(neural(network, fit.params["policy"]))` is the policy.

    Example:
        >>> from decisionppl.models import queueing
        >>> net = queueing.criss_cross()
        >>> fit = queueing.train_neural(net, 2, key=0, hidden=(4,), num_events=50, num_runs=2)
        >>> fit.complete
        True
    """
    key = as_key(key)
    model, per = event_model(network), "elapsed"
    schedule = optax.cosine_decay_schedule(learning_rate, num_updates, 0.05)
    adam = optax.adam(schedule, b1=0.9, b2=0.99)
    if mode is None:
        expect = None
        if network.exponential:
            model, per, expect = chain_model(network), None, "event"
        mode = pathwise.advantage(partial(_value_features, network), expect=expect)
        entropy = optax.cosine_decay_schedule(0.01, num_updates, 0.1)
        settings = {"entropy": entropy, **settings}
    return pathwise.train(
        model.step, model.init, num_events, lambda w: policies.neural(network, w),
        policies.init_neural(key, network, hidden), num_updates, key=key, mode=mode,
        num_runs=num_runs, burn_in=0 if mode.name == "advantage" else num_events, per=per,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), adam), **settings,
    )  # fmt: skip


def make_policy(network: Network, name: str, *, key: Any = 0) -> Partial:
    """A policy by name.

    Args:
        network: from `network`.
        name: "cmu", "max_weight", "max_pressure", "max_pressure_idle" (as published), "fluid" (by
            linear programs, solved here), "threshold:a" (of the criss-cross network, at level a),
            or "pathwise" (a network, trained here).
        key: PRNG key or int seed, of training, and of the states at which programs are solved.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.models import queueing
        >>> net = queueing.criss_cross()
        >>> queueing.make_policy(net, "threshold:3")(jnp.array([1.0, 4.0, 1.0]), None).tolist()
        [2, 1]
    """
    kind, _, level = name.partition(":")
    if kind == "threshold":
        try:
            return policies.threshold(network, float(level))
        except ValueError:
            raise ValueError(
                f"policy {name!r}: expected threshold:NUMBER for a network whose first server "
                "works on classes 0 and 2, such as criss_cross_bh."
            ) from None
    if name == "pathwise":
        fit = train_neural(network, key=key)
        return policies.hardened(policies.neural(network, jax.device_get(fit.params["policy"])))
    if name not in POLICIES:
        raise ValueError(f"no policy named {name!r}; there are {', '.join(POLICIES)}, threshold:a.")
    if name == "fluid":
        return fluid(network, key=key)
    if name == "max_pressure_idle":
        return policies.max_pressure(network, idle=True)
    return getattr(policies, name)(network)
