r"""Decisions that plan: which labels to buy, for what they would teach about a number.

A predictor is to be used where few labels were seen. Which of the candidates in a pool should be
labelled, in batches of k, so that its accuracy there, its loss, its recall, a treatment effect is
known best? The state is the belief, a batch is the action, and what is left of the posterior
variance of the number, a `Functional` of the world, is the cost:

.. math:: S^* = \arg\min_{|S| = k} E_{y_S}[\mathrm{Var}(g \mid \text{data}, y_S)].

Any one-round model and any `Inference` will do: the action is what is labelled, the outcome its
label. Labels are imagined under the belief and averaged over; the true ones are never looked at.

- `problem` puts model, engine, candidates and functional together;
- functionals: `squared_loss` `accuracy` `mean_outcome` `average_treatment_effect` `recall`, and
  `functional` for any other;
- planners `(key, problem, belief, available) -> Plan`: `greedy` (closed form where the belief is
  Gaussian, draws elsewhere), `rollout`, and to compare with `most_uncertain`,
  `least_average_variance`, `at_random`;
- `policy_gradient` plans by gradients in the logits of a Plackett-Luce batch; its parts are public:
  `plackett_luce` `plackett_luce_log_prob` `smooth_subset`, the estimators `score_function` and
  `smoothed`, and `descend`;
- `information_gain` of batches, nested, by Laplace, or exact;
- `estimate` says what is known now, `simulate` runs a campaign with labels revealed batch by batch.

Sequence models have `inference.label`, which asks the same of generated labels.

Notation: m the means at targets, g the functional, S a batch, y its labels; arrays say
[draws, candidates], [draws, targets].

References:
    Mittal et al., arXiv 2502.06076 (planning over beliefs for labels).
"""

from decisionppl._campaign import Campaign, rollout, simulate
from decisionppl._functional import (
    Functional,
    accuracy,
    average_treatment_effect,
    functional,
    mean_outcome,
    recall,
    squared_loss,
)
from decisionppl._gradient_plan import policy_gradient
from decisionppl._information import information_gain
from decisionppl._labelling import Estimate, Problem, estimate, problem
from decisionppl._plans import (
    Plan,
    at_random,
    greedy,
    least_average_variance,
    most_uncertain,
)
from decisionppl._policy_gradient import Descent, Gradient, descend, score_function, smoothed
from decisionppl._subsets import plackett_luce, plackett_luce_log_prob, smooth_subset

__all__ = [
    "Campaign",
    "Descent",
    "Estimate",
    "Functional",
    "Gradient",
    "Plan",
    "Problem",
    "accuracy",
    "at_random",
    "average_treatment_effect",
    "descend",
    "estimate",
    "functional",
    "greedy",
    "information_gain",
    "least_average_variance",
    "mean_outcome",
    "most_uncertain",
    "plackett_luce",
    "plackett_luce_log_prob",
    "policy_gradient",
    "problem",
    "recall",
    "rollout",
    "score_function",
    "simulate",
    "smooth_subset",
    "smoothed",
    "squared_loss",
]
