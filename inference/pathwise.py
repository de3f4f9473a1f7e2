r"""Gradients of the long-run value of a simulated model, and policies trained by them.

A Markov model is its step (`markov.chain`). Its value is the average reward, less costs, per step
or per unit of what a site measures, such as elapsed time. Models whose next state is decided by
which of several clocks ends first say so by `race`; then one model has several derivatives:

- `ipa`: times are differentiated, the order of events is constant;
- `ste`: the order of events is differentiated as a softmin of times, straight through;
- `score`: log-probabilities of the sites times what follows;
- `advantage`: the same, where what follows is measured against a fitted value of the states.

`value` is what JAX differentiates, `gradient_check` compares a mode with finite differences under
common random numbers, and `train` fits the parameters of a policy.

References:
    Glasserman, Gradient Estimation via Perturbation Analysis (1991), for `ipa`; Che, Dong and
    Namkoong, arXiv 2409.03740, for `ste`; Williams (1992), for `score`; Schulman and others,
    arXiv 1506.02438, for `advantage`.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpyro
from numpyro import handlers

from decisionppl._play import as_key
from decisionppl.inference._continuing import continuing
from decisionppl.inference._gradient_check import GradientCheck, gradient_check
from decisionppl.inference._gradient_modes import Mode, advantage, ipa, score, ste
from decisionppl.inference._gradient_runs import (
    Design,
    begin,
    checked,
    follows,
    steps_of,
)
from decisionppl.inference._race import First, race
from decisionppl.inference.training import Trained
from decisionppl.inference.training import train as _train

__all__ = [
    "First",
    "GradientCheck",
    "Mode",
    "advantage",
    "gradient_check",
    "ipa",
    "race",
    "score",
    "ste",
    "train",
    "value",
]

_SEGMENT = 250  # steps whose intermediate results are kept for the derivative at one time


def value(
    step: Callable,
    init: Any,
    num_steps: int,
    *,
    key: Any,
    mode: Mode,
    policy: Any = None,
    num_runs: int = 1,
    burn_in: int = 0,
    per: str | None = None,
    args: tuple = (),
    segment: int = _SEGMENT,
) -> jax.Array:
    """The average reward of each of several runs, which JAX differentiates as a mode says.

    The derivative is taken in whatever the policy and the step depend on: arrays in a
    `jax.tree_util.Partial`, or variables of an enclosing function.

    Args:
        step: `(state, *args) -> next state`, a model with at least one reward or cost.
        init: the first state, or a model `(*args) -> state` that draws it.
        num_steps: steps of each run.
        key: PRNG key or int seed. Calls that differ in parameters share all random numbers.
        mode: `ipa`, `ste`, `score` or `advantage`.
        policy: what decides, see `decisionppl.act`. None keeps the logging law.
        num_runs: runs, independent of each other.
        burn_in: steps before those that count, which are not differentiated.
        per: a site that says how much of what is averaged over a step takes, such as elapsed time;
            None counts steps.
        args: further arguments of the step.
        segment: derivatives keep the intermediate results of so many steps at a time, and compute
            others again.

    Returns:
        [runs].

    Raises:
        ValueError: sizes below one, no reward or cost, or a `per` that is no site.

    Example:
        >>> import jax
        >>> from decisionppl.inference import pathwise
        >>> from decisionppl.models import queueing
        >>> def length(rate):  # of a queue, by the rate of its server
        ...     net = queueing.mm1(0.5).replace(service=jax.numpy.array([[rate]]))
        ...     model = queueing.event_model(net)
        ...     return -pathwise.value(
        ...         model.step, model.init, 2000, key=0, mode=pathwise.ipa(), num_runs=50,
        ...         per="elapsed", policy=queueing.cmu(net)).mean()
        >>> slope = jax.jit(jax.grad(length))(1.0)
        >>> bool(abs(slope + 2.0) < 0.4)    # -lambda / (mu - lambda)^2
        True
    """
    checked(mode, num_steps=num_steps, num_runs=num_runs, burn_in=burn_in, segment=segment)
    design = Design(step, mode, policy, per, args)

    def run(key: jax.Array) -> tuple:
        state, key = begin(design, init, burn_in, key)
        return steps_of(design, state, key, burn_in, num_steps, segment)[1]

    with handlers.block():  # an enclosing model must not see the sites of these runs
        out: Any = jax.vmap(run)(jax.random.split(as_key(key), num_runs))
    each = out.reward.sum(1) / out.spent.sum(1)
    if mode.name not in ("score", "advantage"):
        return each
    level = out.reward.sum() / out.spent.sum()
    ahead = follows(mode, out.reward - level * out.spent, out)
    found = (out.logs * jax.lax.stop_gradient(ahead)).sum(1) / out.spent.mean(0).sum()
    return each + found - jax.lax.stop_gradient(found)


def train(
    step: Callable,
    init: Any,
    num_steps: int,
    policy: Callable,
    params: Any,
    num_updates: int,
    *,
    key: Any,
    mode: Mode,
    num_runs: int = 20,
    burn_in: int = 0,
    per: str | None = None,
    args: tuple = (),
    segment: int = _SEGMENT,
    average: float = 0.5,
    entropy: float | Callable = 0.0,
    **settings: Any,
) -> Trained:
    """Fit the parameters of a policy to the value of a model, by gradient steps.

    What is returned is the average of the parameters over the last updates, which is less noisy
    than the last ones, and needs no choice among them by evaluation.

    By most modes each update has fresh runs, from `init`. By `advantage` it has the next
    `num_steps` steps of the same runs (`burn_in` comes once, before the first update), and the
    value is fitted to these and to those of earlier updates, the later the more; it waits for some
    fifty updates, or a tenth of all, before it moves the policy. Advantages are brought to mean
    zero and standard deviation one, so that learning rates and entropies suit rewards of any scale.

    Args:
        step, init, num_steps, mode, num_runs, burn_in, per, args, segment: see `value`.
        policy: `(params) -> policy`, see `decisionppl.act`.
        params: where to begin, a pytree.
        num_updates: gradient steps.
        key: PRNG key or int seed.
        average: share of the updates over whose parameters the mean is taken; 0 takes the last.
        entropy: of `advantage`: weight of the entropy of the laws of decisions in a step, beside
            advantages of standard deviation one; or `(update) -> weight`. It keeps a policy from
            settling on the first decision that seems better.
        **settings: of `inference.train`: learning_rate, optimizer, progress, checkpoint.

    Returns:
        `inference.Trained`; its `params` has one entry, "policy".

    Raises:
        ValueError: see `value` and `inference.train`; an entropy in another mode, or of laws that
            have none in closed form.
        FloatingPointError: the value became NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.inference import pathwise
        >>> from decisionppl.models import queueing
        >>> net = queueing.multiclass([0.3, 0.3], 1.0, [1, 4])
        >>> model = queueing.event_model(net)
        >>> fit = pathwise.train(
        ...     model.step, model.init, 200, lambda w: queueing.soft_priority(net, w), jnp.zeros(2),
        ...     30, key=0, mode=pathwise.ste(5.0), per="elapsed", learning_rate=0.1)
        >>> bool(fit.params["policy"][1] > fit.params["policy"][0])
        True
    """

    checked(mode, num_steps=num_steps, num_runs=num_runs, burn_in=burn_in, segment=segment)
    if mode.name == "advantage":
        design = Design(step, mode, None, per, args, callable(entropy) or entropy != 0)
        model, batches = continuing(
            design, init, num_steps, policy, params, key=as_key(key), num_runs=num_runs,
            burn_in=burn_in, segment=segment, entropy=entropy, warm_up=num_updates // 10,
        )  # fmt: skip
        return _train(model, batches, num_updates, key=key, average=average, **settings)
    if callable(entropy) or entropy:
        raise ValueError(f"entropy: of advantage() alone, not of {mode.name}(); leave it out.")

    def model(key: jax.Array) -> None:
        chosen = policy(numpyro.param("policy", params))
        found = value(
            step, init, num_steps, key=key, mode=mode, policy=chosen, num_runs=num_runs,
            burn_in=burn_in, per=per, args=args, segment=segment,
        )  # fmt: skip
        numpyro.factor("value", found.mean())

    return _train(
        model, lambda key, step: (key,), num_updates, key=key, average=average, **settings
    )
