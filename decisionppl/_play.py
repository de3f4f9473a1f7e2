"""Run a model once, under a key, a policy, a world and data."""

import contextlib
import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.core import Tracer
from numpyro import handlers
from numpyro.primitives import Messenger
from numpyro.util import is_prng_key

from decisionppl._act import Policy, act
from decisionppl._roles import role_of

Trace = OrderedDict  # site name -> NumPyro site


def as_key(key: Any) -> jax.Array:
    """A PRNG key from a typed key, a raw key, or an int seed."""
    if isinstance(key, bool) or key is None:
        raise TypeError(f"expected a PRNG key (jax.random.key(seed)) or an int, got {key!r}.")
    if isinstance(key, int):
        return jax.random.key(key)
    if not is_prng_key(key):
        raise TypeError(
            f"expected a PRNG key (jax.random.key(seed)) or an int, got {type(key).__name__} "
            f"of shape {jnp.shape(key)}."
        )
    return key


def known_now() -> contextlib.AbstractContextManager:
    """Where what is known is computed at once, also while a function is traced.

    Outside of tracing that is so anyway. `ensure_compile_time_eval` would take compiled functions
    apart there, and compile each of their operations.
    """
    tracing = isinstance(jnp.zeros(()), Tracer)
    return jax.ensure_compile_time_eval() if tracing else contextlib.nullcontext()


class _trace(handlers.trace):
    """NumPyro's trace, with a duplicate site reported by name and roles."""

    def postprocess_message(self, msg: Any) -> None:
        name = msg.get("name")
        if name in getattr(self, "trace", ()) and msg["type"] in ("sample", "deterministic"):
            first, second = (role_of(s) or "latent" for s in (self.trace[name], msg))
            raise ValueError(
                f"site {name!r} is declared twice, as {first} and as {second}. Every site "
                "needs a name of its own."
            )
        super().postprocess_message(msg)


def sample_dtype(fn: dist.Distribution) -> Any:
    """The dtype of the distribution's draws, found without drawing."""
    return jax.eval_shape(lambda law: law.sample(jax.random.key(0)), fn).dtype


def _cast(value: Any, fn: dist.Distribution) -> Any:
    # a prefix of the wrong dtype fails deep inside lax.cond: Bernoulli draws are int32
    if callable(value) or (not hasattr(value, "dtype") and not jnp.isscalar(value)):
        return value
    value = jnp.asarray(value)
    dtype = sample_dtype(fn)
    if jnp.issubdtype(dtype, jnp.integer) or value.dtype == bool:
        return value.astype(dtype)
    return value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(dtype)


def _check_known(what: str, names: Any, trace: Trace, kinds: str) -> None:
    unknown = sorted(set(names) - set(trace))
    if unknown:
        raise ValueError(
            f"{what} names {unknown}, which the model does not have. Its {kinds} are "
            f"{[n for n, s in trace.items() if s['type'] == 'sample']}."
        )


def is_latent(site: Mapping[str, Any]) -> bool:
    """Whether the site belongs to a world: a sample site with no role and no fixed value."""
    return site["type"] == "sample" and role_of(site) is None


def play(
    model: Callable,
    key: Any,
    policy: Policy | None = None,
    world: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> Callable[..., Trace]:
    """Run a model under a key, a policy, a world and data.

    Args:
        model: a model (a callable with NumPyro primitives).
        key: PRNG key (typed or raw) or an int seed.
        policy: what decides the action sites, see `act`. None keeps the logging policy.
        world: dict from latent site to value: a complete hypothesis. Entries for sites that
            carry a role or are deterministic (as `MCMC.get_samples()` returns them) are not
            used: they are recomputed, since they depend on the action.
        data: dict from site to observed value. Inside `scan` a prefix may be given: the
            rest is sampled forward.

    Returns:
        A function of the model's arguments, returning the trace: an ordered dict from site
        name to site (`["value"]`, `["fn"]`, `["infer"]["role"]`).

    Raises:
        ValueError: a name in `world` or `data` that the model does not have, or data for a
            deterministic site.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model(x):
        ...     w = numpyro.sample("w", dist.Normal(0, 1))
        ...     a = dp.action("treat", dist.Bernoulli(0.5))
        ...     dp.reward("y", w * a * x)
        >>> float(dp.play(model, 0, policy=1, world={"w": 2.0, "y": 99.0})(3.0)["y"]["value"])
        6.0
    """
    key = as_key(key)

    def from_world(site: Any) -> Any:
        unused = not is_latent(site) or site["is_observed"]
        if unused or site["name"] not in (world or {}):
            return None
        return (world or {})[site["name"]]

    def from_data(site: Any) -> Any:
        if site["name"] not in (data or {}):
            return None
        return _cast((data or {})[site["name"]], site["fn"])

    def run(*args: Any, **kwargs: Any) -> Trace:
        # `seed` is innermost: a site consumes its key whether or not its value is given,
        # so that two runs that differ in policy, world or data share everything else.
        fn = handlers.seed(model, key)
        if world:
            fn = handlers.substitute(fn, substitute_fn=from_world)
        if data:
            fn = handlers.condition(fn, condition_fn=from_data)
        if policy is not None:
            fn = act(fn, policy)
        trace = _trace(fn).get_trace(*args, **kwargs)
        _check_known("world", world or (), trace, "sample sites")
        _check_known("data", data or (), trace, "sample sites")
        fixed = [n for n in data or () if trace[n]["type"] != "sample"]
        if fixed:
            raise ValueError(
                f"data gives values for {fixed}, which the model computes (deterministic): data "
                "enter at sites with a distribution."
            )
        if isinstance(policy, Mapping):
            _check_policy_sites(policy, trace)
        return trace

    return run


class Same:
    """A callable as a static argument of compiled functions.

    Equal to itself alone, and only while the names that it reads from outside, globals and
    enclosing variables, stand for the same objects: a model that reads a number which has been
    changed since is another model. Objects changed in place are not noticed, as in `jax.jit`.
    """

    def __init__(self, value: Callable) -> None:
        self.value, self.reads = value, _reads(value)

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same) or self.value is not other.value:
            return False
        same = (a is b for a, b in zip(self.reads, other.reads, strict=False))
        return len(self.reads) == len(other.reads) and all(same)


_LIBRARIES = ("jax", "jaxlib", "numpyro", "numpy", "flax", "decisionppl")


def _reads(value: Any) -> list[Any]:
    """What a callable, and the functions that it calls, read from outside, in a fixed order."""
    found: list[Any] = []
    waiting, seen = [value], set()
    while waiting:
        fn = waiting.pop()
        if id(fn) in seen:
            continue
        seen.add(id(fn))
        if isinstance(fn, functools.partial):
            outside = [fn.func, *fn.args, *fn.keywords.values()]
        elif isinstance(fn, types.MethodType):
            outside = [fn.__func__, fn.__self__]
        elif isinstance(fn, types.FunctionType):
            outside = _outside(fn)
        else:
            outside = [fn.fn] if isinstance(fn, Messenger) else []
        found += outside
        waiting += [x for x in outside if _is_own(x)]
    return found


def _is_own(value: Any) -> bool:
    """Whether a callable may read names of the user's, not only of a library."""
    module = (getattr(value, "__module__", None) or "").partition(".")[0]
    return callable(value) and not isinstance(value, type) and module not in _LIBRARIES


def _outside(fn: types.FunctionType) -> list[Any]:
    cells = [c.cell_contents for c in fn.__closure__ or () if c != types.CellType()]
    codes, names = [fn.__code__], []
    while codes:
        code = codes.pop()
        names += code.co_names
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return cells + [fn.__globals__[n] for n in names if n in fn.__globals__]


def example_run(
    model: Callable,
    args: tuple = (),
    data: Mapping[str, Any] | None = None,
    *,
    at_mean: bool = False,
    values: bool = True,
) -> Trace:
    """One run of a model to look at: its sites, their roles, laws and example values.

    The same as `play(model, 0, data=data)(*args)`, but run as one compiled program and not
    operation by operation, each of which JAX would compile. Models that do not compile, such as
    those whose arguments set shapes, are run as they are.

    Args:
        model: a one-round model.
        args: its arguments.
        data: dict from site to value.
        at_mean: put its mean in place of each unknown function.
        values: compute values and laws; else only the laws of action sites are computed, and
            values and the parameters of other laws are shapes (`jax.ShapeDtypeStruct`).
    """
    try:
        return _compiled_run(model, (at_mean, values), args, dict(data or {}))
    except Exception:  # what is wrong with the model shows again without a compiler
        return _plain_run(model, at_mean, args, dict(data or {}))


def _plain_run(model: Callable, at_mean: bool, args: tuple, data: Mapping[str, Any]) -> Trace:
    from decisionppl._gaussian_process import at_mean as without_draws

    return play(without_draws(model) if at_mean else model, 0, data=data)(*args)


def _compiled_run(model: Callable, how: tuple, args: tuple, data: dict[str, Any]) -> Trace:
    parts, kept = _program(Same(model), how, args, data)
    trace = Trace()
    for name, rest in kept.value.items():
        trace[name] = {**rest, **parts[name]}
    return trace


@functools.partial(jax.jit, static_argnums=(0, 1))
def _program(model: Same, how: tuple[bool, bool], args: tuple, data: dict[str, Any]) -> tuple:
    """What of each site is arrays, a law or a value, and what is not."""
    at_mean, values = how
    trace = _plain_run(model.value, at_mean, args, data)
    parts, kept = {}, Trace()
    for name, site in trace.items():
        site = dict(site)
        parts[name] = {}
        if isinstance(site.get("fn"), dist.Distribution):
            parts[name]["fn"] = _whole(name, site.pop("fn"))
        if not any(callable(x) for x in jax.tree.leaves(site["value"])):
            parts[name]["value"] = site.pop("value")
        if not values:
            needed = ("fn",) if role_of(site) == "action" else ()
            for part in [n for n in parts[name] if n not in needed]:
                site[part] = jax.tree.map(_shape_of, parts[name].pop(part))
        kept[name] = {n: v for n, v in site.items() if n not in ("args", "kwargs", "intermediates")}
    return parts, _Kept(kept)


def _shape_of(x: Any) -> jax.ShapeDtypeStruct:
    x = jnp.asarray(x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _whole(name: str, law: dist.Distribution) -> dist.Distribution:
    """The law, if it is whole after a passage through a compiled function."""
    leaves, structure = jax.tree.flatten(law)
    lost = set(vars(law)) - set(vars(jax.tree.unflatten(structure, leaves)))
    # what the class computes on demand may go
    if not all(hasattr(type(law), part) for part in lost):
        raise TypeError(f"site {name!r}: {type(law).__name__} is no pytree of all its parts")
    return law


@jax.tree_util.register_pytree_node_class
class _Kept:
    """What of a run is no array: it passes out of a compiled function as structure."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def tree_flatten(self) -> tuple[tuple, "_Kept"]:
        """No leaves."""
        return (), self

    @classmethod
    def tree_unflatten(cls, kept: "_Kept", leaves: tuple) -> "_Kept":
        """The same object."""
        return kept


def _check_policy_sites(policy: Mapping[str, Any], trace: Trace) -> None:
    actions = [n for n, s in trace.items() if role_of(s) == "action"]
    unknown = sorted(set(policy) - set(actions))
    if unknown:
        raise ValueError(
            f"policy names {unknown}, which are not action sites of the model. Its action "
            f"sites are {actions}."
        )
