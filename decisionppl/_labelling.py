"""A labelling problem: candidates, what is to be known, and beliefs about both."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from decisionppl._functional import Functional
from decisionppl._inference import Inference, Rows
from decisionppl._joint import Joint, functional_mean, functional_variance
from decisionppl._play import as_key, example_run, play
from decisionppl._roles import role_of
from decisionppl._space import as_actions
from decisionppl._structure import depends
from decisionppl._utility import expected_value

Array = jax.Array

_TOGETHER = 16  # worlds evaluated at once: a drawn function has a thousand features per point


@jax.tree_util.register_pytree_node_class
class Problem(NamedTuple):
    """Which labels to buy. A pytree: compiled functions take problems of one shape as arguments.

    Attributes:
        model: a one-round model: an action is followed by one label.
        inference: a belief engine, built from the model.
        candidates: dict from action site to what can be labelled, [candidates, ...].
        functional: what is to be known.
        label: name of the site of the label.
        args: the model's arguments, shared by all candidates.
        is_gaussian: whether beliefs about labels and targets are Gaussian and the functional is
            quadratic, so that plans have a closed form.
    """

    model: Callable
    inference: Inference
    candidates: dict[str, Array]
    functional: Functional
    label: str
    args: tuple
    is_gaussian: bool

    @property
    def size(self) -> int:
        """Number of candidates."""
        return jax.tree.leaves(self.candidates)[0].shape[0]

    def tree_flatten(self) -> tuple:
        """Arrays, and what is none."""
        kept = _Kept(self.model, self.inference, self.label, self.is_gaussian)
        return (self.candidates, self.functional, self.args), kept

    @classmethod
    def tree_unflatten(cls, kept: "_Kept", leaves: Any) -> "Problem":
        """The same."""
        candidates, functional, args = leaves
        return cls(
            kept.model, kept.inference, candidates, functional, kept.label, args, kept.is_gaussian
        )


class _Kept:
    """What of a problem is no array; equal where model and engine are the same objects."""

    def __init__(self, model: Any, inference: Any, label: str, is_gaussian: bool) -> None:
        self.model, self.inference = model, inference
        self.label, self.is_gaussian = label, is_gaussian

    def __hash__(self) -> int:
        return hash((id(self.model), id(self.inference), self.label, self.is_gaussian))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Kept)
            and self.model is other.model
            and self.inference is other.inference
            and (self.label, self.is_gaussian) == (other.label, other.is_gaussian)
        )


def problem(
    model: Callable,
    inference: Inference,
    candidates: Any,
    functional: Functional,
    *,
    label: str | None = None,
    args: tuple = (),
    closed_form: bool = True,
) -> Problem:
    """Candidates for labels, and what they are bought for.

    Arrays may be traced: build the problem inside `jax.jit` or `jax.vmap`, and one compilation
    serves many pools of one size.

    Args:
        model: a one-round model whose actions are followed by one label, a number.
        inference: a belief engine, built from the model.
        candidates: actions [candidates, ...]: a dict by site, or an array if there is one.
        functional: what is to be known, such as `squared_loss`.
        label: the site that is observed; default the one outcome, reward or cost with a law.
        args: the model's arguments, shared by all candidates.
        closed_form: use the Gaussian closed form where there is one.

    Returns:
        Problem.

    Raises:
        ValueError: several sites that may be the label, a label that is no number, candidates or
            targets that do not fit the model's action sites.
        TypeError: a functional that is none.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl import lookahead
        >>> def model():
        ...     f = numpyro.sample("f", dp.GaussianProcess(dp.kernels.RBF(1.0)))
        ...     x = dp.action("x", dist.Normal(0, 1))
        ...     dp.outcome("y", dist.Normal(f(x), 0.1))
        >>> engine = dp.inference.gaussian_process(model)
        >>> goal = lookahead.squared_loss(jnp.array([2.0, 2.5]), jnp.zeros(2))
        >>> pool = lookahead.problem(model, engine, jnp.array([0.0, 1.0, 2.2]), goal)
        >>> plan = lookahead.greedy(0, pool, engine.init(0), k=1)
        >>> plan.chosen.tolist()
        [2]
    """
    if not isinstance(functional, Functional):
        raise TypeError(
            f"functional: expected one such as lookahead.squared_loss(...), got "
            f"{type(functional).__name__}. Wrap a function with lookahead.functional(targets, "
            "function)."
        )
    candidates = as_actions(model, candidates, *args)
    targets = as_actions(model, functional.targets, *args)
    label = _label_site(model, args, label)
    goal = functional._replace(targets=targets)
    found = Problem(model, inference, candidates, goal, label, args, False)
    return found._replace(is_gaussian=closed_form and goal.is_quadratic and _is_gaussian(found))


def _label_site(model: Callable, args: tuple, label: str | None) -> str:
    trace = example_run(model, args, at_mean=True)
    sites = [n for n, s in trace.items()
             if s["type"] == "sample" and role_of(s) in ("outcome", "reward", "cost")]  # fmt: skip
    if label is None and len(sites) == 1:
        label = sites[0]
    if label not in sites:
        raise ValueError(
            f"label: expected the one site that is observed, of {sites}, got {label!r}. Declare it "
            'with dp.outcome("name", law), or name it with label=.'
        )
    if jnp.shape(trace[label]["value"]):
        raise ValueError(
            f"label site {label!r}: expected a number, got shape {jnp.shape(trace[label]['value'])}"
            ". One action is followed by one label; a batch is several actions."
        )
    assert label is not None
    return label


def _is_gaussian(found: Problem) -> bool:
    """Whether the engine's belief about labels and targets is Gaussian, and can be asked."""
    surrogate = found.inference.surrogate
    if surrogate is not None:
        return surrogate.outcomes is not None
    return found.inference.predict is not None and _is_normal_reward(found)


def joint_of(found: Problem, belief: Any) -> Joint:
    """The belief about candidates' labels and the means at targets, where it is Gaussian."""
    count = found.size
    both = jax.tree.map(
        lambda c, t: jnp.concatenate([c, jnp.asarray(t, c.dtype)]),
        found.candidates,
        dict(found.functional.targets),
    )
    engine = found.inference
    if engine.surrogate is not None and engine.surrogate.outcomes is not None:
        view = engine.surrogate.view(belief)
        mean, covariance, noise = engine.surrogate.outcomes(view, both, found.args, None)
    else:
        assert engine.predict is not None
        law = engine.predict(belief, both, found.args)
        independent = isinstance(law, dist.Normal)
        covariance = jnp.diag(law.variance) if independent else law.covariance_matrix
        # any world will do: the scale does not depend on it
        world = jax.tree.map(lambda x: x[0], engine.sample(jax.random.key(0), belief, 1))
        noise = jax.vmap(lambda a: _noise(found, world, a))(both)
        mean, covariance, noise = law.mean[None], covariance[None], noise[None]
    return Joint(
        mean[:, count:], covariance[:, count:, count:], covariance[:, :count, count:],
        mean[:, :count], covariance[:, :count, :count], noise[:, :count],
    )  # fmt: skip


def law_of(found: Problem, world: Mapping[str, Any], action: Mapping[str, Any]) -> Any:
    """Law of the label that follows an action in a world."""
    run = play(found.model, jax.random.key(0), policy=dict(action), world=world)
    return run(*found.args)[found.label]


def _noise(found: Problem, world: Mapping[str, Any], action: Mapping[str, Any]) -> Array:
    return jnp.sqrt(law_of(found, world, action)["fn"].variance)


def _is_normal_reward(found: Problem) -> bool:
    """Whether utility is the mean of the label, and the label Normal with a known scale."""
    trace = example_run(found.model, found.args)
    roles = [role_of(s) for s in trace.values()]
    sole = roles.count("reward") == 1 and "cost" not in roles
    if not sole or role_of(trace[found.label]) != "reward":
        return False
    if not isinstance(trace[found.label]["fn"], dist.Normal):
        return False
    world = {n: s["value"] for n, s in trace.items() if s["type"] == "sample" and not role_of(s)}
    action = jax.tree.map(lambda c: jnp.zeros(c.shape[1:], c.dtype), found.candidates)
    return not depends(lambda w, a: _noise(found, w, a), 0, world, action)


def over_worlds(fn: Callable, *worlds: Any) -> Any:
    return jax.lax.map(lambda w: fn(*w), worlds, batch_size=_TOGETHER)


def means(found: Problem, worlds: Any, actions: Any = None) -> Array:
    """Expected labels at actions, default the targets, in each world; [draws, actions]."""
    actions = dict(found.functional.targets) if actions is None else actions

    def one(world: Any) -> Array:
        at = lambda a: jnp.asarray(expected_value(law_of(found, world, a)), float)  # noqa: E731
        return jax.vmap(at)(actions)

    return over_worlds(one, worlds)


def rows_of(found: Problem, chosen: Array, labels: Array) -> Rows:
    """Logged rows of labels [k] of candidates [k]; an index of -1 is padding."""
    actions = jax.tree.map(lambda c: c[chosen], found.candidates)
    args = jax.tree.map(lambda x: jnp.broadcast_to(x, (chosen.shape[0], *jnp.shape(x))), found.args)
    return Rows(args, {**actions, found.label: labels}, chosen >= 0)


class Estimate(NamedTuple):
    """What is known of the functional.

    Attributes:
        mean: expected value.
        variance: posterior variance.
    """

    mean: Array
    variance: Array


def estimate(key: Any, found: Problem, belief: Any, *, num_worlds: int = 256) -> Estimate:
    """Posterior mean and variance of the functional.

    Args:
        key: PRNG key (typed or raw) or an int seed, for draws.
        found: the problem.
        belief: of its engine.
        num_worlds: draws, where there is no closed form.

    Returns:
        Estimate, scalars.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl import lookahead
        >>> def model():
        ...     m = numpyro.sample("m", dist.Normal(0, 1).expand([2]).to_event(1))
        ...     dp.reward("y", dist.Normal(m[dp.action("arm", 2)], 1.0))
        >>> engine = dp.inference.conjugate(model)
        >>> arms = jnp.arange(2)
        >>> pool = lookahead.problem(model, engine, arms, lookahead.mean_outcome(arms))
        >>> float(lookahead.estimate(0, pool, engine.init(0)).variance)
        0.5
    """
    return _estimate(as_key(key), found, belief, num_worlds)


@partial(jax.jit, static_argnums=3)
def _estimate(key: Any, found: Problem, belief: Any, num_worlds: int) -> Estimate:
    if found.is_gaussian:
        joint = joint_of(found, belief)
        mean = functional_mean(joint, found.functional)
        return Estimate(mean, functional_variance(joint, found.functional))
    worlds = found.inference.sample(key, belief, num_worlds)
    values = found.functional(means(found, worlds))
    return Estimate(jnp.mean(values), jnp.var(values, ddof=1))
