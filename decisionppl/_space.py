"""The actions of a model: enumerated spaces, availability, sets of arms."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from decisionppl._gaussian_process import at_mean
from decisionppl._play import example_run, known_now, play
from decisionppl._roles import role_of

LARGEST_ENUMERATION = 100_000


class _SubsetConstraint(constraints.Constraint):
    is_discrete = True
    event_dim = 1

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, x: Any) -> Any:
        increasing = jnp.all(x[..., 1:] > x[..., :-1], axis=-1)
        return increasing & (x[..., 0] >= 0) & (x[..., -1] < self.size)

    def feasible_like(self, prototype: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.arange(prototype.shape[-1]), prototype.shape)

    def tree_flatten(self) -> tuple:
        return (), ((), {"size": self.size})


class Subsets(dist.Distribution):
    """Uniform law over the k-element subsets of `size` arms (slates, top-k choices).

    A value is the increasing array of the k chosen indices, shape [k].

    Args:
        size: number of arms.
        k: number of arms chosen together, at most `size`.

    Raises:
        ValueError: if not `1 <= k <= size`.

    Example:
        >>> import decisionppl as dp
        >>> dp.Subsets(3, 2).enumerate_support().tolist()
        [[0, 1], [0, 2], [1, 2]]
    """

    has_enumerate_support = True
    pytree_aux_fields = ("size", "k")

    def __init__(self, size: int, k: int, *, validate_args: bool | None = None) -> None:
        if not 1 <= k <= size:
            raise ValueError(f"Subsets: expected 1 <= k <= size, got k={k}, size={size}.")
        self.size, self.k = size, k
        super().__init__(batch_shape=(), event_shape=(k,), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Increasing index vectors."""
        return _SubsetConstraint(self.size)

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Uniform subsets, shape `sample_shape + [k]`."""
        scores = jax.random.uniform(key, (*sample_shape, self.size))  # pyright: ignore
        return jnp.sort(jax.lax.top_k(scores, self.k)[1], axis=-1)

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """Log of one over the number of subsets."""
        return jnp.full(jnp.shape(value)[:-1], -math.log(math.comb(self.size, self.k)))

    def enumerate_support(self, expand: bool = True) -> jax.Array:
        """All subsets in lexicographic order, shape [subsets, k]."""
        count = math.comb(self.size, self.k)
        if count > LARGEST_ENUMERATION:
            raise ValueError(
                f"Subsets({self.size}, {self.k}) has {count} elements, more than "
                f"{LARGEST_ENUMERATION}. Give candidate subsets through actions=."
            )
        return jnp.asarray(list(itertools.combinations(range(self.size), self.k)))


def action_sites(model: Callable, *args: Any) -> dict[str, dist.Distribution]:
    """The model's action sites and their spaces, in program order."""
    trace = example_run(model, args, at_mean=True, values=False)
    found = {n: s["fn"] for n, s in trace.items() if role_of(s) == "action"}
    if not found:
        raise ValueError(
            f"the model has no action site (its sites: {list(trace)}). Declare the decision "
            'with dp.action("name", space).'
        )
    return found


def is_finite(sites: Mapping[str, dist.Distribution]) -> bool:
    """Whether every action site can be enumerated, or must be refused when it is."""
    return all(s.has_enumerate_support or s.batch_shape for s in sites.values())


def _enumerate(name: str, space: dist.Distribution) -> np.ndarray:
    if space.batch_shape:
        raise ValueError(
            f"action site {name!r} has batch shape {space.batch_shape} (a plate or a scan): its "
            "joint action space is not enumerated. Give candidate actions through actions=, or "
            "a policy f(given, space)."
        )
    if not space.has_enumerate_support:
        raise ValueError(
            f"action site {name!r}: {type(space).__name__} is not finite, so it cannot be "
            f"enumerated. Give candidates: actions={{{name!r}: array of shape [actions, ...]}}."
        )
    return np.asarray(space.enumerate_support(expand=False))


def action_space(model: Callable, *args: Any) -> dict[str, jax.Array]:
    """All actions of a model with finite action sites (their product, if several).

    Args:
        model: a one-round model.
        *args: the model's arguments (an example context).

    Returns:
        dict from action site to array [actions, ...].

    Raises:
        ValueError: no action site, a continuous one, one inside a plate or scan, or more
            than 100,000 joint actions.

    Example:
        >>> import decisionppl as dp
        >>> def model():
        ...     dp.action("arm", 2), dp.action("dose", 3)
        >>> {name: a.tolist() for name, a in dp.action_space(model).items()}
        {'arm': [0, 0, 0, 1, 1, 1], 'dose': [0, 1, 2, 0, 1, 2]}
    """
    with known_now():
        supports = {n: _enumerate(n, s) for n, s in action_sites(model, *args).items()}
    count = math.prod(len(s) for s in supports.values())
    if count > LARGEST_ENUMERATION:
        raise ValueError(
            f"the action space has {count} joint actions over {list(supports)}, more than "
            f"{LARGEST_ENUMERATION}. Give candidate actions through actions=."
        )
    index = np.indices([len(s) for s in supports.values()]).reshape(len(supports), -1)
    return {n: jnp.asarray(s[i]) for (n, s), i in zip(supports.items(), index, strict=True)}


def as_actions(model: Callable, actions: Any, *args: Any) -> dict[str, jax.Array]:
    """Candidate actions as a dict of arrays [actions, ...], checked against the model."""
    if actions is None:
        return action_space(model, *args)
    sites = list(action_sites(model, *args))
    if not isinstance(actions, Mapping):
        if len(sites) != 1:
            raise TypeError(
                f"actions: the model has action sites {sites}; give a dict with one array "
                f"[actions, ...] for each, got {type(actions).__name__}."
            )
        actions = {sites[0]: actions}
    if set(actions) != set(sites):
        raise ValueError(f"actions names {sorted(actions)}, the model's action sites are {sites}.")
    arrays = {n: jnp.asarray(actions[n]) for n in sites}
    sizes = {n: a.shape[:1] for n, a in arrays.items()}
    if () in sizes.values() or len(set(sizes.values())) != 1:
        raise ValueError(f"actions: expected a common leading axis [actions, ...], got {sizes}.")
    return arrays


def availability(
    model: Callable, actions: Mapping[str, jax.Array], args: tuple, data: Mapping[str, Any]
) -> jax.Array:
    """Which actions the logging law can give: bool [actions].

    A model says that an arm is not available in a round by giving it probability zero
    (`Categorical(probs=available / available.sum())`), and that a dose is not by leaving it
    outside the support (`Uniform(0, largest)`).
    """

    def offered(action: Mapping[str, Any]) -> jax.Array:
        # conditioned, not intervened on: the site keeps the law that is asked about
        trace = play(at_mean(model), jax.random.key(0), data={**data, **action})(*args)
        return jnp.all(jnp.stack([_offers(trace[n]["fn"], trace[n]["value"]) for n in action]))

    return jax.vmap(offered)(dict(actions))


def _offers(law: Any, value: Any) -> jax.Array:
    support = law.support
    if isinstance(support, type(constraints.simplex)):
        # the same in every round, and weights sum to one only up to rounding
        return jnp.ones((), bool)
    if not support.is_discrete:  # a density is no probability: small ones mean nothing
        return jnp.all(support(value))
    log_probability = jnp.sum(law.log_prob(value))
    # NumPyro clips zero probabilities to the smallest positive number
    return log_probability > math.log(float(jnp.finfo(log_probability.dtype).tiny)) + 1.0
