r"""Effects of treating every step of a Markov model rather than none.

Notation: state s, arm a (0 control, 1 treated), law of the experiment :math:`\pi(a | s)` with
kernel P and reward r, stationary law :math:`\rho`, deviation matrix Z, value V, average reward J.
The effect is :math:`J_1 - J_0`. A comparison of treated with control steps ("naive") misses what a
decision leaves to later steps; Differences-in-Q, :math:`\rho (Q_1 - Q_0)`, counts it to first
order, and is the derivative of J in the probability of treatment.

Exact, from `markov.kernel`:

- `taylor`: the effect and its Taylor polynomials, for average, discounted and total reward, with
  their radius of convergence; `policy_value`: J as a function that JAX differentiates;
- `asymptotics`: what estimators tend to, and their asymptotic standard deviations;
- `posterior`: all of it for draws of the parameters, or of the kernel itself.

From trajectories (`markov.rollout`, `markov.from_table`), each with an interval:

- `naive`, `difference_in_means`; `dq` (tabular, LSTD, traces), `dq_monte_carlo`; `dq_little` for
  queues, by lengths and response times together; `off_policy_lstd`
  (LSTD per arm, doubly robust); `score_series` for runs of finite length;
- `forked`, with the model at hand: paired and forked Differences-in-Q; `simulated`: the effect
  itself, by runs under both arms with the same random numbers.

The probability of what was done comes with the trajectories, from the law of the action site:
designs differ in the model, not in the estimator. A switchback is a model whose step is one
period, a clustered design one whose action site is in a plate over clusters.

Standard errors: an estimate is a function of weights of the steps, all one; its derivative in the
weight of a step is the step's influence (the infinitesimal jackknife), one reverse pass for every
estimator. `martingale`, `batch_means` and `regeneration` combine influences, `bootstrap` fits anew.

References:
    Farias, Li, Peng and Zheng, Markovian Interference in Experiments, arXiv 2206.02371; the same
    and others, Correcting for Interference in Experiments, arXiv 2305.02542.
"""

from decisionppl.inference._effect import Effect
from decisionppl.inference._effects_exact import (
    Asymptotics,
    Taylor,
    asymptotics,
    policy_value,
    taylor,
)
from decisionppl.inference._effects_little import dq_little
from decisionppl.inference._effects_logged import (
    difference_in_means,
    dq,
    dq_monte_carlo,
    naive,
    off_policy_lstd,
)
from decisionppl.inference._effects_posterior import EffectPosterior, posterior
from decisionppl.inference._effects_series import score_series
from decisionppl.inference._effects_simulated import forked, simulated
from decisionppl.inference._intervals import batch_means, bootstrap, martingale, regeneration

__all__ = [
    "Asymptotics",
    "Effect",
    "EffectPosterior",
    "Taylor",
    "asymptotics",
    "batch_means",
    "bootstrap",
    "difference_in_means",
    "dq",
    "dq_little",
    "dq_monte_carlo",
    "forked",
    "martingale",
    "naive",
    "off_policy_lstd",
    "policy_value",
    "posterior",
    "regeneration",
    "score_series",
    "simulated",
    "taylor",
]
