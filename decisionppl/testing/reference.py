r"""Models with exact answers: what engines and estimators are checked against.

Every factory returns a model beside its truths. The truths are closed forms (or quadrature of
one), computed in float64 with NumPy and SciPy, and share no code with the belief engines.

- `beta_bernoulli`, `normal_normal`, `linear_gaussian`: posterior, marginal likelihood and
  predictive law of logged rows.
- `two_state_mdp`, `rental_marketplace`: Markov models whose policy value :math:`J(\theta)`, the
  average reward when each step is treated with probability :math:`\theta`, is known, and with it
  the effect :math:`J(1) - J(0)`, the naive estimand and Differences-in-Q, :math:`J'(p)`.

Example:
    >>> import decisionppl as dp
    >>> from decisionppl.testing import reference
    >>> truth = reference.beta_bernoulli(2)
    >>> rows = dp.observe(truth.model, sites={"arm": [0, 0, 1], "reward": [1, 1, 0]})
    >>> truth.predictive(rows).round(4).tolist()
    [0.75, 0.3333]

References:
    Gelman et al., Bayesian Data Analysis, 3rd edition, chapters 2, 3 and 14; Farias et al.,
    Markovian Interference in Experiments, arXiv 2206.02371.
"""

from decisionppl.testing._reference_beliefs import (
    BetaBernoulliReference,
    LinearGaussianReference,
    NormalReference,
    beta_bernoulli,
    linear_gaussian,
    normal_normal,
)
from decisionppl.testing._reference_markov import (
    MarkovReference,
    rental_marketplace,
    two_state_mdp,
)

__all__ = [
    "BetaBernoulliReference",
    "LinearGaussianReference",
    "MarkovReference",
    "NormalReference",
    "beta_bernoulli",
    "linear_gaussian",
    "normal_normal",
    "rental_marketplace",
    "two_state_mdp",
]
