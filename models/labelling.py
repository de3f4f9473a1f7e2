r"""Which labels to buy: populations in clusters, of which the labelled ones show few.

A predictor :math:`\psi` is to be evaluated over a target population, while the labels that there
are come from a corner of it. Points lie about anchors. In `cluster_biased`, anchor 0 is at the
origin and anchor i at distance :math:`\sqrt d\, i` in a random direction; all labelled points are
about anchor 0, half of the pool too, and the rest of the pool, like most of the population, is
spread over the others. The truth is a draw from a Gaussian process,

.. math::

    f \sim GP(0, s^2 \exp(-|x - x'|^2 / 2 \ell^2)), \qquad y = f(x) + \epsilon,
    \quad \epsilon \sim N(0, \sigma^2),

and what is to be known is :math:`g(f) = \sum_t w_t (f(x_t) - \psi(x_t))^2` over the population.

Numbers of the published generator [1]_ are the defaults: d = 1, 51 anchors, 100 labelled points
(standard deviation .5 about their anchor), a pool of 250 and 5 at each other anchor (.25), a
population of 10 at anchors 0 to 25 and 1 at those beyond, :math:`\ell = 1`, :math:`s^2 = .69`,
:math:`\sigma = .1`, and a predictor that says 0 everywhere.

In `digits` the predictor is a classifier of scikit-learn's handwritten digits, trained where the
labelled set lies: in some of the clusters that images form. A label says whether the classifier is
right, 1 or 0, and what is to be known is its accuracy over the other images. `correctness` is a
Gaussian-process model of such labels: its noise stands for what is random about a label given the
place of the image, so intervals are as good as that approximation.

`network` is a regression of the first kind for `inference.ensemble`: a network to be fitted plus a
frozen one.

References:
    .. [1] arXiv 2502.06076.
"""

from decisionppl.models._labelling_clusters import Labelling, cluster_biased, regression
from decisionppl.models._labelling_digits import correctness, digits
from decisionppl.models._labelling_network import Network, network

__all__ = [
    "Labelling",
    "Network",
    "cluster_biased",
    "correctness",
    "digits",
    "network",
    "regression",
]
