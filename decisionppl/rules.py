r"""Rules: from what each action is worth under the posterior to a choice.

Every rule is a pure function ``rule(key, utility, *, mask=None, cost=None, ...) -> Choice`` that
works under `jax.jit`, `jax.vmap` and `jax.lax.scan`, in float32 and float64.

- ``key``: a JAX random key, typed or raw. It breaks ties, and draws where the rule is random.
- ``utility``: a matrix [draws, actions], whose row is the expected utility of every action under
  one draw from the posterior; or a Gaussian distribution over actions, either
  ``dist.Normal(loc, scale)`` with batch_shape (actions,), whose arms are independent, or a jointly
  Gaussian one with event_shape (actions,), such as ``dist.MultivariateNormal``.
- ``mask`` [actions]: True where the action is feasible. Others get probability 0, score -inf.
- ``cost`` [actions]: positive prices. The rule then maximises per unit cost. `thompson`,
  `top_two`, `probability_of_best`, `greedy`, `ucb` and `epsilon_greedy` divide utilities by cost
  before they compare, which is meaningful for non-negative utilities only: a loss divided by a
  high price looks small. `expected_improvement` and `log_ei` divide the improvement,
  `information_directed` the information; `uniform` ignores it.
- ``num_draws``: joint draws taken where a distribution has no closed form. It is a shape, so
  static under jit.

`knowledge_gradient`, `noisy_expected_improvement` and `max_value_entropy` value what an action
would teach about the utilities of others, such as those at the target fidelity. In place of
utilities they take a `Preposterior`, which engines with a `surrogate` provide; experiments see to
it.

Ties are broken uniformly at random and show in ``probabilities``. Wrong shapes raise ValueError
and wrong types TypeError. So do, where values are known (not traced), a mask without a feasible
action, a NaN utility of a feasible action, a cost that is not positive, and a parameter out of
range; under tracing such values give a meaningless choice.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from decisionppl import _acquisition as acq
from decisionppl import _posterior as post
from decisionppl._choice import Choice, largest, masked, pick
from decisionppl._preposterior import (
    Preposterior,
    knowledge_gradient,
    max_value_entropy,
    noisy_expected_improvement,
)

__all__ = [
    "Choice",
    "Preposterior",
    "epsilon_greedy",
    "expected_improvement",
    "feasible",
    "greedy",
    "information_directed",
    "knowledge_gradient",
    "log_ei",
    "max_value_entropy",
    "noisy_expected_improvement",
    "per_cost",
    "probability_of_best",
    "thompson",
    "top_two",
    "ucb",
    "uniform",
]

Array = jax.Array
Utility = Array | dist.Distribution
Vector = Array | None  # [actions]
Number = Array | float


def thompson(
    key: Array, utility: Utility, *, mask: Vector = None, cost: Vector = None, num_draws: int = 1024
) -> Choice:
    r"""Thompson sampling: the best action of one draw from the posterior.

    Action a has probability :math:`\pi_a = P(U_a = \max_b U_b)`, the scores. That law is exact for
    draws, by quadrature (error below 1e-5) for independent Gaussian arms, and an average over
    ``num_draws`` draws for a joint Gaussian; the action itself always comes from one joint draw.

    Args:
      key: random key.
      utility: draws [draws, actions] or a Gaussian over actions.
      mask: [actions], True where feasible.
      cost: [actions], positive; divides the utilities.
      num_draws: draws behind ``probabilities`` for a joint Gaussian.

    Returns:
      Choice: ``scores`` are the probabilities.

    Raises:
      ValueError, TypeError: on malformed arguments; see `decisionppl.rules`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> draws = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
      >>> thompson(jax.random.key(0), draws).probabilities.tolist()
      [0.625, 0.375]

    References:
      Thompson, 1933; Russo et al., A Tutorial on Thompson Sampling, arXiv 1707.02038.
    """
    post.check_draws(num_draws)
    known = post.posterior(utility, mask, cost)
    draw_key, tie_key, law_key = jax.random.split(key, 3)
    action = pick(tie_key, acq.shares(known.one_draw(draw_key), known.mask))
    law = known.probability_of_best(law_key, num_draws)
    return Choice(action, law, masked(law, known.mask))


def probability_of_best(
    key: Array, utility: Utility, *, mask: Vector = None, cost: Vector = None, num_draws: int = 1024
) -> Choice:
    r"""The action most likely to be the best: the mode of Thompson's law.

    Args:
      key: random key.
      utility: draws [draws, actions] or a Gaussian over actions.
      mask: [actions], True where feasible.
      cost: [actions], positive; divides the utilities.
      num_draws: draws behind the scores of a joint Gaussian; ``probabilities`` is given them.

    Returns:
      Choice: ``scores`` are :math:`P(U_a = \max_b U_b)`.

    Raises:
      ValueError, TypeError: on malformed arguments; see `decisionppl.rules`.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
      >>> arms = dist.Normal(jnp.array([0.0, 1.0]), jnp.array([3.0, 4.0]))
      >>> choice = probability_of_best(jax.random.key(0), arms)
      >>> int(choice.action), [round(p, 3) for p in choice.scores.tolist()]
      (1, [0.421, 0.579])
    """
    post.check_draws(num_draws)
    known = post.posterior(utility, mask, cost)
    tie_key, law_key = jax.random.split(key)
    return largest(tie_key, known.probability_of_best(law_key, num_draws), known.mask)


def top_two(
    key: Array,
    utility: Utility,
    *,
    mask: Vector = None,
    cost: Vector = None,
    beta: Number = 0.5,
    num_draws: int = 1024,
) -> Choice:
    r"""Top-two Thompson sampling: the leader, or else a challenger from another draw.

    A Thompson leader is played with probability ``beta``. Otherwise the posterior is redrawn until
    another action comes out best. With :math:`\pi` the probability of being best the law is
    :math:`\psi_a = \pi_a (\beta + (1 - \beta) \sum_{j \ne a} \pi_j / (1 - \pi_j))`. Where one
    action is best in every draw, the challenger is the best remaining mean.

    Args:
      key: random key.
      utility: draws [draws, actions] or a Gaussian over actions.
      mask: [actions], True where feasible; a single feasible action is played.
      cost: [actions], positive; divides the utilities.
      beta: probability of playing the leader, in [0, 1].
      num_draws: draws behind :math:`\pi` for a joint Gaussian; ``probabilities`` is given them.

    Returns:
      Choice: ``scores`` are the probabilities :math:`\psi`.

    Raises:
      ValueError, TypeError: on malformed arguments; see `decisionppl.rules`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> draws = jnp.array([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
      >>> choice = top_two(jax.random.key(0), draws)
      >>> [round(p, 3) for p in choice.probabilities.tolist()]
      [0.417, 0.292, 0.292]

    References:
      Russo, Simple Bayesian Algorithms for Best-Arm Identification, arXiv 1602.08448, section 4.
    """
    post.check_inside("beta", beta, closed=True)
    post.check_draws(num_draws)
    known = post.posterior(utility, mask, cost)
    choice_key, law_key = jax.random.split(key)
    best = known.probability_of_best(law_key, num_draws)
    law = acq.top_two_law(best, known.moments()[0], known.mask, beta)
    return Choice(pick(choice_key, law), law, masked(law, known.mask))


def greedy(key: Array, utility: Utility, *, mask: Vector = None, cost: Vector = None) -> Choice:
    """The action with the largest posterior mean.

    Args:
      key: random key, for ties.
      utility: draws [draws, actions] or a Gaussian over actions.
      mask: [actions], True where feasible.
      cost: [actions], positive; divides the utilities.

    Returns:
      Choice: ``scores`` are the posterior means.

    Raises:
      ValueError, TypeError: on malformed arguments; see `decisionppl.rules`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> greedy(jax.random.key(0), jnp.array([[0.0, 2.0], [1.0, 1.0]])).scores.tolist()
      [0.5, 1.5]
    """
    known = post.posterior(utility, mask, cost)
    return largest(key, known.moments()[0], known.mask)


def ucb(
    key: Array,
    utility: Utility,
    *,
    mask: Vector = None,
    cost: Vector = None,
    quantile: Number = 0.95,
) -> Choice:
    """Bayesian upper confidence bound: the largest posterior quantile.

    Args:
      key: random key, for ties.
      utility: draws [draws, actions] or a Gaussian over actions.
      mask: [actions], True where feasible.
      cost: [actions], positive; divides the utilities.
      quantile: level in (0, 1). Bayes-UCB raises it with the round t, as 1 - 1 / t.

    Returns:
      Choice: ``scores`` are the quantiles of each action on its own: of the draws, interpolated
      linearly between order statistics as `jax.numpy.quantile` does, or of the Gaussian.

    Raises:
      ValueError, TypeError: on malformed arguments; see `decisionppl.rules`.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
      >>> arms = dist.Normal(jnp.array([0.0, 1.0]), jnp.array([2.0, 1.0]))
      >>> [round(s, 2) for s in ucb(jax.random.key(0), arms, quantile=0.975).scores.tolist()]
      [3.92, 2.96]

    References:
      Kaufmann, Cappe and Garivier, On Bayesian Upper Confidence Bounds, AISTATS 2012.
    """
    post.check_inside("quantile", quantile, closed=False)
    known = post.posterior(utility, mask, cost)
    if isinstance(utility, dist.Distribution):
        mean, sd = known.moments()
        bound = mean + sd * jax.scipy.special.ndtri(jnp.asarray(quantile, mean.dtype))
    else:
        bound = jnp.quantile(known.draws(key, None), quantile, axis=0)
    return largest(key, bound, known.mask)


def epsilon_greedy(
    key: Array, utility: Utility, *, mask: Vector = None, cost: Vector = None, epsilon: Number = 0.1
) -> Choice:
    """Greedy, except for a uniform choice with probability ``epsilon``.

    Args:
      key: random key.
      utility: draws [draws, actions] or a Gaussian over actions.
      mask: [actions], True where feasible.
      cost: [actions], positive; divides the utilities.
      epsilon: probability of exploring, in [0, 1]; the greedy action can come out of it too.

    Returns:
      Choice: ``scores`` are the posterior means.

    Raises:
      ValueError, TypeError: on malformed arguments; see `decisionppl.rules`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> choice = epsilon_greedy(jax.random.key(0), jnp.array([[0.0, 2.0]]), epsilon=0.5)
      >>> choice.probabilities.tolist()
      [0.25, 0.75]
    """
    post.check_inside("epsilon", epsilon, closed=True)
    known = post.posterior(utility, mask, cost)
    mean = known.moments()[0]
    even = acq.shares(jnp.zeros_like(mean), known.mask)
    law = (1 - epsilon) * acq.shares(mean, known.mask) + epsilon * even
    return Choice(pick(key, law), law, masked(mean, known.mask))


def uniform(key: Array, utility: Utility, *, mask: Vector = None, cost: Vector = None) -> Choice:
    """Any feasible action with equal probability, whatever the utilities: the baseline.

    Args:
      key: random key.
      utility: draws [draws, actions] or a Gaussian over actions.
      mask: [actions], True where feasible.
      cost: checked and ignored.

    Returns:
      Choice: ``scores`` are zeros.

    Raises:
      ValueError, TypeError: on malformed arguments; see `decisionppl.rules`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> mask = jnp.array([True, False, True])
      >>> uniform(jax.random.key(0), jnp.ones((1, 3)), mask=mask).probabilities.tolist()
      [0.5, 0.0, 0.5]
    """
    known = post.posterior(utility, mask, cost)
    return largest(key, jnp.zeros_like(known.moments()[0]), known.mask)


def information_directed(
    key: Array, utility: Utility, *, mask: Vector = None, cost: Vector = None, num_draws: int = 1024
) -> Choice:
    r"""Variance-based information-directed sampling: little regret per unit of information.

    With :math:`\Delta_a = E[\max_b U_b - U_a]` and :math:`g_a = Var(E[U_a | A^*])`, over the
    identity of the best action, the law minimises :math:`(\pi^T \Delta)^2 / \pi^T g`. An optimum
    has at most two actions, and is found in closed form over all pairs. Where nothing is left to
    learn it is greedy.

    Args:
      key: random key.
      utility: draws [draws, actions] or a Gaussian over actions.
      mask: [actions], True where feasible.
      cost: [actions], positive; divides the information g.
      num_draws: draws from a Gaussian; ``probabilities`` is given them.

    Returns:
      Choice: ``probabilities`` are the optimal law, ``scores`` the ratios
      :math:`-\Delta_a^2 / g_a` of single actions, -inf where an action teaches nothing.

    Raises:
      ValueError, TypeError: on malformed arguments; see `decisionppl.rules`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> draws = jnp.array([[0.0, 1.0, 0.0], [0.0, -2.0, 0.0]])
      >>> information_directed(jax.random.key(0), draws).probabilities.tolist()
      [0.0, 1.0, 0.0]

    References:
      Russo and Van Roy, Learning to Optimize via Information-Directed Sampling, arXiv 1403.5556,
      Proposition 6 (two actions) and section 6.3 (variance).
    """
    post.check_draws(num_draws)
    known = post.posterior(utility, mask)
    draw_key, choice_key = jax.random.split(key)
    regret, gain = acq.regret_and_gain(known.draws(draw_key, num_draws), known.mask)
    gain = gain / post.check_cost(cost, gain.shape[0])
    law = acq.two_point_law(regret, gain, known.mask)
    scores = masked(-acq.information_ratio(regret, gain), known.mask)
    return Choice(pick(choice_key, law), law, scores)


def expected_improvement(
    key: Array,
    utility: Utility,
    *,
    mask: Vector = None,
    cost: Vector = None,
    best: Number | None = None,
) -> Choice:
    r"""Expected improvement :math:`E \max(U_a - b, 0)` over the incumbent b.

    Args:
      key: random key, for ties.
      utility: draws [draws, actions] or a Gaussian over actions.
      mask: [actions], True where feasible.
      cost: [actions], positive; divides the improvement.
      best: the incumbent, a utility. By default the largest posterior mean of a feasible action:
        a value at the target, never a noisy or cheap observation, which noise would flatter.

    Returns:
      Choice: ``scores`` are the expected improvements: the average over draws, or the Gaussian's
      closed form.

    Raises:
      ValueError, TypeError: on malformed arguments; see `decisionppl.rules`.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
      >>> arms = dist.Normal(jnp.array([0.0, 1.0]), jnp.array([2.0, 1.0]))
      >>> [round(s, 4) for s in expected_improvement(jax.random.key(0), arms).scores.tolist()]
      [0.3956, 0.3989]

    References:
      Mockus, 1975; Jones, Schonlau and Welch, 1998, equation 15.
    """
    known = post.posterior(utility, mask)
    mean, sd = known.moments()
    best = _incumbent(best, mean, known.mask)
    if isinstance(utility, dist.Distribution):
        improvement = jnp.exp(acq.log_gaussian_ei(mean, sd, best))
    else:
        improvement = jnp.maximum(known.draws(key, None) - best, 0.0).mean(0)
    return largest(key, improvement / post.check_cost(cost, mean.shape[0]), known.mask)


def log_ei(
    key: Array,
    utility: Utility,
    *,
    mask: Vector = None,
    cost: Vector = None,
    best: Number | None = None,
) -> Choice:
    r"""Logarithm of Gaussian expected improvement, where the improvement itself underflows.

    Finite, with finite gradients, at any distance below the incumbent. A matrix of draws is
    summarised by the mean and standard deviation of each action, because the improvement averaged
    over draws is exactly zero once none of them improves.

    Args:
      key: random key, for ties.
      utility: draws [draws, actions] or a Gaussian over actions.
      mask: [actions], True where feasible.
      cost: [actions], positive; its logarithm is subtracted.
      best: the incumbent, a utility; by default the largest posterior mean of a feasible action.

    Returns:
      Choice: ``scores`` are log EI. An action of standard deviation 0 has EI max(mean - best, 0);
      where that is zero the score is -1e30, below any action that can improve.

    Raises:
      ValueError, TypeError: on malformed arguments; see `decisionppl.rules`.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
      >>> arms = dist.Normal(jnp.array([-40.0, 0.0]), jnp.array([1.0, 1.0]))
      >>> [round(s, 2) for s in log_ei(jax.random.key(0), arms).scores.tolist()]
      [-808.3, -0.92]

    References:
      Ament et al., Unexpected Improvements to Expected Improvement, arXiv 2310.20708, equation 9.
    """
    known = post.posterior(utility, mask)
    mean, sd = known.moments()
    score = acq.log_gaussian_ei(mean, sd, _incumbent(best, mean, known.mask))
    return largest(key, score - jnp.log(post.check_cost(cost, mean.shape[0])), known.mask)


@dataclasses.dataclass(frozen=True)
class _PerCost:
    rule: Callable[..., Choice]
    per_cost: bool = dataclasses.field(default=True, init=False, repr=False)

    def __call__(self, key, utility, *, cost=None, **parameters):
        if cost is None:
            raise ValueError(
                f"{self!r} needs cost, one positive price per action; got None. "
                "Pass cost=..., or declare the model's cost sites."
            )
        return self.rule(key, utility, cost=cost, **parameters)

    def __repr__(self):
        return f"per_cost({getattr(self.rule, '__name__', self.rule)})"


def per_cost(rule: Callable[..., Choice]) -> Callable[..., Choice]:
    """The same rule per unit cost: ``cost`` becomes required.

    An experiment hands such a rule, known by its attribute ``per_cost = True``, the model's cost
    as a price. For any other rule it subtracts cost from reward.

    Args:
      rule: a rule, also one with parameters set by `functools.partial`.

    Returns:
      A hashable callable with the signature of ``rule``; equal rules give equal callables.

    Raises:
      TypeError: if ``rule`` is not callable.
      ValueError: when the result is called without ``cost``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> rule = per_cost(greedy)
      >>> rule(jax.random.key(0), jnp.array([[3.0, 4.0]]), cost=jnp.array([1.0, 2.0])).scores
      Array([3., 2.], dtype=float32)
    """
    if not callable(rule):
        raise TypeError(f"rule must be callable, such as rules.log_ei; got {rule!r}.")
    return rule if isinstance(rule, _PerCost) else _PerCost(rule)


def feasible(
    values: Array,
    *,
    lower: Number | None = None,
    upper: Number | None = None,
    probability: Number = 0.95,
) -> Array:
    """Mask of the actions whose constrained outcome stays within limits, in enough draws.

    Args:
      values: [draws, actions], the constrained outcome of each action under each draw.
      lower: smallest allowed value, scalar or [actions].
      upper: largest allowed value, scalar or [actions].
      probability: smallest share of draws within the limits, in [0, 1]. NaN is not within.

    Returns:
      bool [actions]: True where P(lower <= value <= upper) >= probability; a rule's ``mask``.

    Raises:
      ValueError: on a wrong shape, no limit, or a probability out of range.
      TypeError: if ``values`` is not an array.

    Example:
      >>> import jax.numpy as jnp
      >>> feasible(jnp.array([[1.0, 3.0], [2.0, 1.0]]), upper=2.0).tolist()
      [True, False]
    """
    post.check_inside("probability", probability, closed=True)
    values, actions = post.matrix(values, "values")
    if lower is None and upper is None:
        raise ValueError("feasible needs a limit; got neither lower nor upper.")
    inside = jnp.ones(values.shape, bool)
    for name, limit in (("lower", lower), ("upper", upper)):
        if limit is None:
            continue
        if jnp.shape(limit) not in ((), (1,), (actions,)):
            raise ValueError(f"{name} must be a scalar or [{actions}]; got {jnp.shape(limit)}.")
        inside &= values >= limit if name == "lower" else values <= limit
    # A share of exactly `probability` counts, whichever way its product rounds.
    needed = probability * len(values) * (1 - 4 * jnp.finfo(values.dtype).eps)
    return inside.sum(0) >= needed


def _incumbent(best, mean, mask):
    if best is None:
        return jnp.where(mask, mean, -jnp.inf).max()
    if jnp.ndim(best):
        raise ValueError(f"best must be a scalar utility; got shape {jnp.shape(best)}.")
    return best
