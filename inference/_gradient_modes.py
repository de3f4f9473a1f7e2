"""Gradient modes: what is differentiated when a model is run."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.primitives import Messenger

from decisionppl._roles import role_of


class Mode(NamedTuple):
    """How to differentiate the value of a model; made by `ipa`, `ste`, `score` and `advantage`.

    Attributes:
        name: "ipa", "ste", "score" or "advantage".
        beta: sharpness of the softmin of `ste`; None elsewhere.
        baseline: of `score`; features of the value, of `advantage`.
        relax: whether probabilities take the place of draws at the action site.
        trace, expect: of `advantage`.
    """

    name: str
    beta: float | None
    baseline: Any
    relax: bool
    trace: float = 1.0
    expect: str | None = None


def ipa(*, relax: bool = True) -> Mode:
    r"""Infinitesimal perturbation analysis: times are differentiated, the order of events is not.

    Right where a small change of the parameters changes when events happen and does not change
    what they lead to: rates of a single queue (first come, first served), of queues in tandem, of
    G/G/1. It is biased where the order of events decides: several classes of jobs, priorities,
    routing, and all parameters of policies over them, of which it sees nothing.

    Args:
        relax: see `ste`.

    Example:
        >>> from decisionppl.inference import pathwise
        >>> pathwise.ipa().name
        'ipa'
    """
    return Mode("ipa", None, None, bool(relax))


def ste(beta: float = 10.0, *, relax: bool = True) -> Mode:
    r"""Straight-through: the event is that of the model, its derivative that of a softmin.

    .. math:: e = \mathrm{onehot}(\arg\min_j \tau_j) + p - \mathrm{sg}(p),
        \quad p_j \propto e^{-\beta \tau_j}

    where sg is a constant to the derivative. What is left of the work in service is held constant
    as well (`race(held=...)`). With work differentiated too, each change of a time would be counted
    twice, once through the times that follow and once through the order of events, and the
    derivative would be several to some hundred times too large; so that combination is not offered.

    Biased, with little variance: right in direction for many policies of networks, and wrong in
    size by tens of percent (see `gradient_check`). Sharp softmins (large beta) have less bias at
    each event and more variance.

    Args:
        beta: sharpness, above zero; one over the temperature.
        relax: put the probabilities of a Categorical action law in the place of its draw, for
            steps that read shares from their action site; gradients pass through them.

    Raises:
        ValueError: a beta that is not above zero.

    Example:
        >>> from decisionppl.inference import pathwise
        >>> pathwise.ste(10.0).beta
        10.0

    References:
        Che, Dong and Namkoong, arXiv 2409.03740, section 4; the detached work is their code's.
    """
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 < beta < math.inf:
        raise ValueError(f"beta: expected a number above zero, got {beta!r}.")
    return Mode("ste", float(beta), None, bool(relax))


def score(baseline: Callable | str | None = "mean") -> Mode:
    r"""The score function (REINFORCE): log-probabilities of all sites times what follows.

    With rewards :math:`r_t`, durations :math:`d_t` and the ratio of their means J,

    .. math:: \nabla J = \frac{1}{\mathrm{E} \sum_t d_t} \mathrm{E} \sum_t
        \nabla \log p(\text{sites}_t) \Big[ \sum_{k \ge t} (r_k - J d_k) - b_t \Big].

    Unbiased, up to the ratio, for parameters that enter through the laws of sites: parameters of
    random policies in any model, and rates where events are sites, as in Markov chains. Its
    variance grows with the length of a run. Parameters that move times or rewards directly are
    not seen.

    Args:
        baseline: b. None; "mean", the mean of the other runs at the same step; or a function
            `(state) -> [features]`, on which what follows is regressed (on them and on their
            products with the share of the run that is left), each half of the runs by the other
            half, so that no bias enters.

    Raises:
        ValueError: another baseline.

    Example:
        >>> from decisionppl.inference import pathwise
        >>> pathwise.score().baseline
        'mean'
    """
    if baseline not in (None, "mean") and not callable(baseline):
        raise ValueError(
            f'baseline: expected None, "mean" or a function of the state, got {baseline!r}.'
        )
    return Mode("score", None, baseline, False)


def advantage(features: Callable, trace: float = 0.95, *, expect: str | None = None) -> Mode:
    r"""The score function, with advantages by a fitted value in the place of all that follows.

    With :math:`V(s) = \theta \cdot \phi(s)`, fitted by least-squares temporal differences,

    .. math:: \nabla J \approx \frac{1}{\mathrm{E} \sum_t d_t} \mathrm{E} \sum_t
        \nabla \log p(\text{sites}_t) \sum_{k \ge t} \lambda^{k - t} \delta_k, \quad
        \delta_k = r_k - J d_k + V(s_{k+1}) - V(s_k).

    It sees the parameters that `score` sees, and estimates the gradient of the long-run average,
    not of that of a run: what follows the last step is its value. Where V is the differential value
    (features of which it is a linear function, an indicator of each state for one) it is right with
    any trace. Else a step k after a decision counts :math:`\lambda^{k - t}` times as much as it
    should, in what V does not explain: the bias falls as the trace goes to one, and the variance
    grows with :math:`1 / (1 - \lambda)` in the place of the length of the run. Unlike `score` it
    does not need runs from the start of an episode, so that `pathwise.train` goes on with the same
    runs at each update.

    A site that is no decision and has few values, the next event of a chain for one, may be summed
    over: :math:`\delta_k` is then its expectation given all else in step k. The mean of each
    term stays, and its variance falls, much so where the noise of a step is that of this site; the
    fit of V gains as well. Parameters of the law of that site itself are not seen.

    In `pathwise.value`, V is fitted to each half of the runs on the other half; in `pathwise.train`
    on earlier updates. A fit to the very steps that are explained would be a bias of its own.

    Args:
        features: `(state) -> [features]`. A constant need not be among them.
        trace: :math:`\lambda`, from 0 to 1.
        expect: name of a site of finitely many values, one number, that is summed over. A step is
            then run once for each of them.

    Raises:
        ValueError: features that are no function, a trace out of range, or no name of a site.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.inference import pathwise
        >>> pathwise.advantage(lambda state: jnp.array([state, state**2])).trace
        0.95

    References:
        Schulman, Moritz, Levine, Jordan and Abbeel, arXiv 1506.02438, equation 16, without discount
        and for average rewards; Dai and Gluzman, arXiv 2008.01644, section 4.2, for the sum over
        events.
    """
    if not callable(features):
        raise ValueError(f"features: expected a function of the state, got {features!r}.")
    if isinstance(trace, bool) or not isinstance(trace, int | float) or not 0 <= trace <= 1:
        raise ValueError(f"trace: expected a number from 0 to 1, got {trace!r}.")
    if expect is not None and not isinstance(expect, str):
        raise ValueError(f"expect: expected the name of a site, got {expect!r}.")
    return Mode("advantage", None, features, False, float(trace), expect)


def plain(law: Any) -> Any:
    """A law without the masks and expansions that plates and interventions put around it."""
    while isinstance(law, dist.MaskedDistribution | dist.ExpandedDistribution):
        law = law.base_dist
    return law


class relaxed(Messenger):
    """Put the probabilities of Categorical action laws in the place of their draws."""

    def process_message(self, msg: Any) -> None:
        """Answer an action site by the probabilities of its law."""
        if msg["type"] != "sample" or role_of(msg) != "action" or msg["value"] is not None:
            return
        law: Any = plain(msg["fn"])
        if isinstance(law, dist.CategoricalProbs | dist.CategoricalLogits):
            chance: Any = law.probs
            shape = (*msg["fn"].batch_shape, chance.shape[-1])
            msg["value"] = jnp.broadcast_to(chance, shape)
