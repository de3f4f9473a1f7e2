r"""A queue in which an experiment changes the speed of service, or how many customers come.

An M/M/1 queue with a buffer, watched at the ticks of a Poisson clock of rate
:math:`\Lambda = \max_a \lambda_a + \max_a \mu_a`. At each tick a coin decides the arm a; then a
customer comes with probability :math:`\lambda_a / \Lambda`, one leaves with probability
:math:`\mu_a / \Lambda` if there is one, or nothing happens. The cost is the number of customers x.
As each tick is decided alone, a queue in which a share :math:`\theta` is treated is M/M/1 with the
mean rates, so that

.. math:: J(\theta) = -\sum_k k \pi_k, \qquad \pi_k \propto (\lambda_\theta / \mu_\theta)^k.

A comparison of treated with control ticks sees no effect at all: x at the time of a tick does not
depend on its coin. What a coin does is felt later.

References:
    Li, Johari, Kuang and Wager, arXiv 2302.12093, for experiments in queues; Farias, Li, Peng and
    Zheng, arXiv 2206.02371, for Differences-in-Q.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import decisionppl as dp
from decisionppl.models._arguments import (
    check_count,
    check_number,
    check_pair,
    check_probability,
    check_treatment,
)
from decisionppl.models._markov import MarkovModel


def queue_experiment(
    *,
    arrival: tuple[float, float] = (0.8, 0.8),
    service: tuple[float, float] = (1.0, 1.1),
    buffer: int = 150,
    p: float = 0.5,
) -> MarkovModel:
    r"""The queue, one tick a step.

    Args:
        arrival, service: rates :math:`\lambda_a, \mu_a`, (control, treated).
        buffer: most customers; who finds it full is lost.
        p: probability of treatment under the logging policy.

    Returns:
        `MarkovModel` on the number of customers; sites `treat`, `event` (0 arrival, 1 departure, 2
        neither), `customers`, and the reward `holding`, -x.

    Raises:
        ValueError: a parameter out of range.

    Example:
        >>> from decisionppl.inference import effects, markov
        >>> from decisionppl.models import queue_experiment
        >>> model = queue_experiment.queue_experiment()
        >>> series = effects.taylor(markov.kernel(model.step, model.states))
        >>> round(series.effect, 4), round(series.estimate, 4)   # fewer by 1.33; DQ says 1.28
        (1.3333, 1.28)
    """
    lam, mu = _rates(arrival, service)
    most = check_count("buffer", buffer)
    check_treatment(p)
    clock = lam.max() + mu.max()

    def step(customers: Any) -> Any:
        treat = dp.action("treat", dist.Bernoulli(p), given=customers)
        comes = jnp.asarray(lam / clock)[treat]
        leaves = jnp.where(customers > 0, jnp.asarray(mu / clock)[treat], 0.0)
        law: Any = dist.Categorical(probs=jnp.stack([comes, leaves, 1 - comes - leaves]))
        event = dp.outcome("event", law)
        dp.reward("holding", -1.0 * customers)
        after = customers + (event == 0) - (event == 1)
        return dp.state("customers", jnp.minimum(after, most))

    def features(customers: Any) -> Any:
        x = customers / 10.0
        return jnp.stack([x, x**2, jnp.ones_like(x)])

    return MarkovModel(step, np.asarray(0), np.arange(most + 1), features)


def value(
    theta: float,
    *,
    arrival: tuple[float, float] = (0.8, 0.8),
    service: tuple[float, float] = (1.0, 1.1),
    buffer: int = 150,
) -> float:
    r"""The average reward :math:`J(\theta)`, minus the mean number of customers.

    Example:
        >>> from decisionppl.models import queue_experiment
        >>> round(queue_experiment.value(1.0) - queue_experiment.value(0.0), 6)
        1.333333
    """
    lam, mu = _rates(arrival, service)
    check_probability("theta", theta)
    mix = np.array([1 - theta, theta])
    law = np.log(mix @ lam / (mix @ mu)) * np.arange(check_count("buffer", buffer) + 1)
    law = np.exp(law - law.max())
    return float(-law @ np.arange(buffer + 1) / law.sum())


def _rates(arrival: Any, service: Any) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for name, pair in (("arrival", arrival), ("service", service)):
        for arm, x in enumerate(check_pair(name, pair)):
            check_number(f"{name}[{arm}]", x, above=0)
        found.append(np.asarray(pair, float))
    return found[0], found[1]
