"""The contract between beliefs and decisions."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from decisionppl._gaussian_process import at_mean
from decisionppl._play import Same, _cast, example_run, play
from decisionppl._roles import role_of

_ROUNDING = 0.01  # by which weights may miss one in total


class Rows(NamedTuple):
    """Logged rounds, one per row; every leaf has a leading axis [rows, ...].

    Attributes:
        args: the model's arguments per row (the contexts).
        sites: dict from site to logged actions, outcomes and contexts.
        mask: bool [rows]; rows that are False are padding and change nothing.
    """

    args: tuple
    sites: dict[str, Any]
    mask: Any


class Inference(NamedTuple):
    """A belief engine: pure functions that work under `jit`, `vmap` and `scan`.

    A belief is a pytree of fixed shape; a world is one draw from it, a dict from latent
    site to value.

    Attributes:
        init: `(key) -> belief`, the prior.
        update: `(key, belief, rows) -> belief`.
        sample: `(key, belief, num_worlds) -> worlds`, dict site -> [num_worlds, ...].
        predict: `(belief, actions, args, data) -> Distribution` of the utility, joint over
            actions, where it is Gaussian in closed form; else None. `data` holds the
            values of context sites.
        surrogate: what rules that plan one step ahead ask, see `Surrogate`; else None.
    """

    init: Callable
    update: Callable
    sample: Callable
    predict: Callable | None = None
    surrogate: "Surrogate | None" = None


class Surrogate(NamedTuple):
    """What a Gaussian belief about functions can say in closed form.

    A view is the belief made ready to be asked; every answer has a leading axis [draws] of
    hyperparameter values (one, if they were maximised). Actions are dicts from action site to
    arrays [actions, ...]; `args` are the model's arguments, `data` values of context sites.

    Attributes:
        view: `(belief) -> view`.
        utility: `(view, actions, args, data, net) -> Normal` [draws, actions], each action
            alone: rewards less costs, or rewards alone if `net` is False.
        preposterior: `(view, actions, targets, args, data, net) -> Preposterior`: what the
            outcome of each action would tell about the utilities of the targets.
        fantasise: `(belief, action, args, data) -> belief` as if the outcome of an action had
            come out at its expected value; hyperparameters stay.
        visited: `(belief) -> (actions, mask)`: actions of the history [rows, ...].
        hyperparameters: `(belief) -> dict` site -> [draws, ...].
        leave_one_out: `(belief) -> Normal` [draws, rows, outcomes], each logged value given all
            others; padding of the history is NaN.
        relevant: names of the action sites that utilities depend on, of rewards less costs
            (True) and of rewards alone (False).
        outcomes: `(view, actions, args, data) -> (mean, covariance, noise)`: joint law of what
            actions would be followed by, means [draws, actions], the covariance of their
            locations [draws, actions, actions] and standard deviations of the independent noise
            [draws, actions]; for outcomes of one number. None if the engine cannot say.
    """

    view: Callable
    utility: Callable
    preposterior: Callable
    fantasise: Callable
    visited: Callable
    hyperparameters: Callable
    leave_one_out: Callable
    relevant: dict[bool, tuple[str, ...]]
    outcomes: Callable | None = None


def observe(
    model: Callable,
    args: tuple = (),
    sites: Mapping[str, Any] | None = None,
    mask: Any = None,
) -> Rows:
    """Check logged rounds against a model and make `Rows` of them.

    Args:
        model: a one-round model.
        args: the model's arguments, each leaf with a leading axis [rows, ...].
        sites: dict from site to logged values [rows, ...]; every action site, and what was
            seen of outcomes, rewards, costs and contexts.
        mask: bool [rows], True where the row counts; default all.

    Returns:
        Rows, with values in the dtypes that the sites draw; weights on the simplex, whose sum may
        miss one by 1 %, are divided by it.

    Raises:
        ValueError: an unknown or computed site, an action site left out, row counts that
            disagree, NaN, infinity, or a value outside the support of its site.
        TypeError: `args` that is not a tuple.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model():
        ...     p = numpyro.sample("p", dist.Beta(1, 1).expand([2]).to_event(1))
        ...     dp.reward("click", dist.Bernoulli(p[dp.action("arm", 2)]))
        >>> dp.observe(model, sites={"arm": [0, 1], "click": [1, 0]}).mask.tolist()
        [True, True]
    """
    if not isinstance(args, tuple):
        raise TypeError(f"args: expected a tuple of the model's arguments, got {type(args)}.")
    if not sites:
        raise ValueError("sites is empty: give at least the action and one outcome per row.")
    arrays = {n: np.asarray(v) for n, v in sites.items()}
    args = jax.tree.map(jnp.asarray, args)
    num_rows = _row_count(arrays, args, mask)
    mask = np.ones(num_rows, bool) if mask is None else np.asarray(mask, bool)
    if num_rows == 0:
        raise ValueError("no rows: every array has a leading axis of length 0.")
    # what the checks look at does not depend on unknown functions
    trace = example_run(model, jax.tree.map(lambda x: x[0], args), at_mean=True, values=False)
    _check_sites(arrays, trace)
    values = {n: jnp.asarray(_checked(n, v, trace[n], mask)) for n, v in arrays.items()}
    _check_support(model, args, values, jnp.asarray(mask))
    return Rows(args, values, jnp.asarray(mask))


def _row_count(sites: Mapping[str, Any], args: tuple, mask: Any) -> int:
    counts: dict[str, int] = {}
    named = list(sites.items())
    named += [(f"args[{i}]", leaf) for i, leaf in enumerate(jax.tree.leaves(args))]
    named += [] if mask is None else [("mask", np.asarray(mask))]
    for name, value in named:
        if np.ndim(value) == 0:
            raise ValueError(
                f"{name} is a scalar; logged rounds need a leading axis [rows, ...]. For one "
                "round give arrays of length 1."
            )
        counts[name] = np.shape(value)[0]
    if len(set(counts.values())) > 1:
        raise ValueError(f"row counts disagree: {counts}. Every array needs one entry per row.")
    return next(iter(counts.values()))


def _check_sites(values: Mapping[str, Any], trace: Mapping[str, Any]) -> None:
    sampled = [n for n, s in trace.items() if s["type"] == "sample"]
    unknown = sorted(set(values) - set(trace))
    if unknown:
        raise ValueError(f"data name {unknown}, which the model does not have; it has {sampled}.")
    computed = sorted(n for n in values if trace[n]["type"] != "sample")
    if computed:
        raise ValueError(
            f"data give values for {computed}, which the model computes (deterministic): data "
            "enter at sites with a distribution."
        )
    missing = [n for n, s in trace.items() if role_of(s) == "action" and n not in values]
    if missing:
        raise ValueError(
            f"action site {missing[0]!r} is not in the data: what was decided must be known to "
            f"learn from what followed. Add sites[{missing[0]!r}], one value per row."
        )


def _checked(name: str, value: np.ndarray, site: Mapping[str, Any], mask: np.ndarray) -> Any:
    fn: dist.Distribution = site["fn"]
    role = role_of(site) or "latent"
    try:
        value = value.astype(float) if value.dtype == object else value
    except (TypeError, ValueError) as error:
        raise TypeError(f"{role} site {name!r}: values are not numeric.") from error
    if value.shape[1:] != fn.shape():
        raise ValueError(
            f"{role} site {name!r}: expected shape [rows, *{list(fn.shape())}], got "
            f"{list(value.shape)}."
        )
    if np.issubdtype(value.dtype, np.floating):
        bad = ~np.isfinite(value.reshape(len(value), -1)).all(1) & mask
        if bad.any():
            row = int(np.argmax(bad))
            what = "NaN" if np.isnan(value[row]).any() else "an infinite value"
            raise ValueError(
                f"{role} site {name!r}: {what} in row {row} ({int(bad.sum())} rows in all), "
                "expected finite numbers. Drop those rows, or set their mask to False."
            )
        if fn.support.is_discrete and (np.mod(value[mask], 1) != 0).any():
            raise ValueError(f"{role} site {name!r} is discrete; got values that are not integers.")
    return _cast(jnp.asarray(_weights(name, role, np.nan_to_num(value), site, mask)), fn)


def _weights(
    name: str, role: str, value: np.ndarray, site: Mapping[str, Any], mask: np.ndarray
) -> np.ndarray:
    """Weights on the simplex divided by their sum, which may miss one by rounding."""
    if not isinstance(site["fn"].support, type(dist.constraints.simplex)):
        return value
    total = value.sum(-1, keepdims=True)
    bad = (np.abs(total - 1) > _ROUNDING + 1e-9).reshape(len(value), -1).any(1) & mask
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"{role} site {name!r}: the weights of row {row} sum to {total[row].max():.6g} "
            f"({int(bad.sum())} rows in all), expected 1 within {_ROUNDING:.0%}. Give proportions "
            "of all parts."
        )
    return value / np.where(mask.reshape(-1, *(1,) * (value.ndim - 1)), total, 1.0)


@functools.partial(jax.jit, static_argnums=0)
def _inside(model: Same, args: tuple, values: dict) -> dict[str, jax.Array]:
    """Whether each row's value lies in the support of its site, by site [rows]."""

    def row(args: tuple, row: Mapping[str, Any]) -> dict[str, jax.Array]:
        trace = play(at_mean(model.value), jax.random.key(0), data=row)(*args)
        return {n: jnp.all(trace[n]["fn"].support(row[n])) for n in row}

    return jax.vmap(row)(args, values)


def _check_support(model: Callable, args: tuple, values: dict, mask: jax.Array) -> None:
    for name, ok in _inside(Same(model), args, values).items():
        bad = ~np.asarray(ok) & np.asarray(mask)
        if bad.any():
            i = int(np.argmax(bad))
            raise ValueError(
                f"site {name!r}: value {np.asarray(values[name][i])} in row {i} is outside its "
                f"support ({int(bad.sum())} rows in all)."
            )
