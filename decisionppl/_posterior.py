"""What a rule knows of each action: checked utilities, and what follows from them.

Private; see `decisionppl.rules` for the arguments.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from decisionppl import _acquisition as acq

Array = jax.Array


class Arms(NamedTuple):
    """Independent Gaussian utilities: `loc` and `scale`, both [actions]."""

    loc: Array
    scale: Array

    def sample(self, key, shape=()):
        noise = jax.random.normal(key, shape + self.loc.shape, self.loc.dtype)
        return self.loc + self.scale * noise


class Posterior(NamedTuple):
    """Checked utilities: a matrix [draws, actions], `Arms`, or a joint Gaussian distribution.

    Methods divide by `unit` [actions] where it is given, and put harmless numbers where `mask`
    is False, since an infeasible action may have no finite utility.
    """

    utility: Any  # Array | Arms | Distribution, told apart by the methods
    mask: Array
    unit: Array | None

    def moments(self):
        """Posterior mean and standard deviation of each action, both [actions]."""
        if isinstance(self.utility, Arms):
            mean, sd = self.utility
        elif isinstance(self.utility, dist.Distribution):
            mean, sd = self.utility.mean, acq.safe_sqrt(self.utility.variance)
        else:
            draws = self.draws(None, None)
            return draws.mean(0), acq.safe_sqrt(draws.var(0))
        return self._clean(mean), self._clean(sd, 1.0)

    def draws(self, key, num_draws):
        """The matrix itself, or `num_draws` joint draws: [draws, actions]."""
        if hasattr(self.utility, "sample"):
            return self._clean(self.utility.sample(key, (num_draws,)))
        return self._clean(self.utility)

    def one_draw(self, key):
        """One hypothesis drawn from the posterior, [actions]."""
        if hasattr(self.utility, "sample"):
            return self._clean(self.utility.sample(key))
        return self._clean(self.utility[jax.random.randint(key, (), 0, len(self.utility))])

    def probability_of_best(self, key, num_draws):
        """Probability that each action is the best feasible one, [actions]."""
        if isinstance(self.utility, Arms):
            return acq.best_of_normals(*self.moments(), self.mask)
        return acq.shares(self.draws(key, num_draws), self.mask).mean(0)

    def _clean(self, values, fill=0.0):
        values = jnp.where(self.mask, values, fill)
        return values if self.unit is None else values / self.unit


def posterior(utility, mask=None, unit=None):
    """Check the three arguments that every rule takes and bundle them as a `Posterior`."""
    if isinstance(utility, dist.Distribution):
        utility, actions, first = _gaussian(utility)
    else:
        first = utility
        utility, actions = matrix(utility, "utility")
    values, feasible = concrete(first), concrete(np.ones(actions, bool) if mask is None else mask)
    mask = check_mask(mask, actions)
    if values is not None and feasible is not None and np.isnan(values[..., feasible]).any():
        where = np.unique(np.nonzero(np.isnan(values) & feasible)[-1]).tolist()
        raise ValueError(
            f"utility must be a number for every feasible action; got NaN at actions {where}. "
            "Mask those actions, or mend the model that produced them."
        )
    return Posterior(utility, mask, None if unit is None else check_cost(unit, actions))


def check_cost(cost, actions) -> Any:
    """The cost vector [actions], or 1.0 where none is given."""
    if cost is None:
        return 1.0
    values, cost = concrete(cost), as_float(cost)
    if cost.shape != (actions,):
        raise ValueError(
            f"cost must have shape [actions] = ({actions},); got {cost.shape}. "
            "Give one positive price per action."
        )
    if values is not None and not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(
            f"cost must be positive and finite; got {values.tolist()}. "
            "Rules divide by it: give a free action a small positive price."
        )
    return cost


def check_inside(name, value, *, closed):
    """Raise unless the concrete `value` lies in the unit interval, closed or open."""
    number = concrete(value)
    if number is None:
        return
    if number.ndim:
        raise ValueError(f"{name} must be a scalar; got shape {number.shape}.")
    if not ((0 <= number <= 1) if closed else (0 < number < 1)):
        raise ValueError(f"{name} must lie in {'[0, 1]' if closed else '(0, 1)'}; got {number}.")


def check_draws(num_draws):
    """Raise unless `num_draws` is a positive int (it is a shape, hence static)."""
    if not isinstance(num_draws, (int, np.integer)) or num_draws < 1:
        raise ValueError(f"num_draws must be a positive int; got {num_draws!r}.")


def concrete(value):
    """`value` as a NumPy array, or None under tracing, where no value can be checked."""
    # NumPy, because inside a trace jnp stages even what is known.
    try:
        return np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return None


def as_float(value):
    value = jnp.asarray(value)
    inexact = jnp.issubdtype(value.dtype, jnp.inexact)
    return value if inexact else value.astype(jnp.result_type(float))


def matrix(values, name):
    if not (hasattr(values, "__array__") or isinstance(values, (jax.Array, list, tuple))):
        raise TypeError(
            f"{name} must be an array [draws, actions] or a Gaussian numpyro Distribution over "
            f"actions; got {type(values).__name__}."
        )
    values = as_float(values)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(
            f"{name} must have shape [draws, actions], neither of them empty; got {values.shape}. "
            "Stack one row per posterior draw; for a single hypothesis pass values[None, :]."
        )
    return values, values.shape[1]


def _gaussian(utility):
    """Independent `Arms` where the family says so, else the joint law; its size; its mean."""
    base: Any = utility
    while isinstance(base, (dist.Independent, dist.ExpandedDistribution)):
        base = base.base_dist
    if type(base) is dist.Normal:
        loc, scale = cast(Any, base.loc), cast(Any, base.scale)
        # A mapped distribution keeps its unmapped batch_shape, so shapes come from parameters.
        shape: Any = np.broadcast_shapes(jnp.shape(loc), jnp.shape(scale))
        if base is not utility:
            shape = np.broadcast_shapes(shape, utility.batch_shape + utility.event_shape)
        if len(shape) == 1 and shape[0]:
            loc, scale = (as_float(jnp.broadcast_to(v, shape)) for v in (loc, scale))
            return Arms(loc, scale), shape[0], loc
        raise ValueError(
            f"a Normal utility must hold one arm per action, batch_shape (actions,); got {shape}. "
            "Use jax.vmap for more than one decision."
        )
    if len(utility.event_shape) != 1 or base is not utility:
        raise TypeError(
            "a Distribution utility must be Normal with batch_shape (actions,) or jointly Gaussian "
            f"with event_shape (actions,); got {type(base).__name__} with batch_shape "
            f"{utility.batch_shape} and event_shape {utility.event_shape}. "
            "Pass draws of any other law: utility.sample(key, (1000,))."
        )
    if utility.batch_shape:
        raise ValueError(
            f"a joint utility must have batch_shape (); got {utility.batch_shape}. "
            "For more than one decision, build the distribution inside the mapped function."
        )
    return utility, utility.event_shape[0], utility.mean


def check_mask(mask, actions):
    if mask is None:
        return jnp.ones(actions, bool)
    values, mask = concrete(mask), jnp.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(f"mask must be bool, True where feasible; got {mask.dtype}.")
    if mask.shape != (actions,):
        raise ValueError(f"mask must have shape [actions] = ({actions},); got {mask.shape}.")
    if values is not None and not values.any():
        raise ValueError("mask must leave an action feasible; got all False. Drop a constraint.")
    return mask
