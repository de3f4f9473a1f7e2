"""Which site depends on which, read from the program of a model.

Each site's value becomes an input of its own and the parameters of its law (or, of a computed
value, its formula) an output; which outputs an input can reach is read from the jaxpr. Bodies of
NumPyro's `scan` are run for two steps in the open: what the second step takes from the first is a
dependency on the step before. `numpyro.infer.inspect` does the first without functions as values
and without loops.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend.core as jec
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import Messenger

from decisionppl._play import _whole
from decisionppl._roles import role_of
from decisionppl._structure import _moved, flatten

Name = tuple[str, int]  # of a site: 0, or 1 at the second step of a loop


class Seen(NamedTuple):
    """A site as the recorder saw it.

    Attributes:
        role: of the site; "latent", "observed", "factor", "computed" or "param" without one.
        law: name of the distribution's class, empty for a computed value.
        shape, dtype: of the value; of one step, inside a loop.
        function: whether the value is a function.
        plates: names and sizes of plates, from the outside in.
        loops: names and lengths of the loops that it is in.
    """

    role: str
    law: str
    shape: tuple[int, ...]
    dtype: str
    function: bool
    plates: tuple[tuple[str, int], ...]
    loops: tuple[tuple[str, int], ...]


class Ref(NamedTuple):
    """What something depends on: a "site", an "argument", or a site at the step "before"."""

    name: str
    kind: str


class Relations(NamedTuple):
    """The structure of a model.

    Attributes:
        sites: what was seen, by name, in program order.
        arguments: shapes of the model's arguments by name; None where it is no array.
        parents: what each site's law or formula depends on, given all other sites.
        given: what a policy may see, for each action site.
        laws: of random sites at the example arguments, twice, with other values of the sites that
            they depend on; None where a law does not pass through a compiled function.
    """

    sites: dict[str, Seen]
    arguments: dict[str, tuple[int, ...] | None]
    parents: dict[str, tuple[Ref, ...]]
    given: dict[str, tuple[Ref, ...]]
    laws: dict[str, tuple[Any, Any]]


class _Recorder(Messenger):
    """Records sites; with values given, puts those in place of what is drawn or computed."""

    def __init__(self, fn: Callable, values: Mapping[Name, Any] | None = None) -> None:
        super().__init__(fn)
        self.values = values
        self.loops: list[tuple[str, int, int]] = []  # name, length, step
        self.conditions: list[Any] = []
        self.sites: dict[Name, Seen] = {}
        self.found: dict[Name, Any] = {}  # values
        self.rules: dict[Name, list] = {}  # what laws and formulas are made of
        self.given: dict[Name, list] = {}
        self.laws: dict[str, Any] = {}
        self._count = 0

    def _name(self, name: str) -> Name:
        return name, int(any(step for _, _, step in self.loops))

    def process_message(self, msg: Any) -> None:
        kind = msg["type"]
        if kind == "control_flow":
            open_body = {"scan_wrapper": self._scan, "cond_wrapper": self._cond}
            # what another version may bring stays closed: its sites come stacked
            body = open_body.get(getattr(msg["fn"], "__name__", ""))
            if body is not None and msg["value"] is None:
                msg["value"] = body(*msg["args"])
        elif kind == "policy":
            name = self._name(msg["site"])
            self.given[name] = [*self.given.get(name, []), *_arrays(msg["given"])]
        elif kind in ("sample", "deterministic", "param"):
            self._site(msg)

    def _site(self, msg: Any) -> None:
        name = self._name(msg["name"])
        again = name in self.sites and not name[1] and not self.conditions
        if again:
            raise ValueError(f"site {name[0]!r} is declared twice. Every site needs its own name.")
        rule = list(self.conditions)
        if msg["type"] == "sample":
            rule += _arrays(msg["fn"])
            self.laws.setdefault(name[0], msg["fn"])
            if self.loops and msg["is_observed"]:
                msg["value"] = self._now(msg)
        elif msg["type"] == "deterministic":
            rule += _arrays(msg["value"])
        self.rules[name] = [*self.rules.get(name, []), *rule]
        if self.values is not None and name in self.values:
            if msg["type"] == "sample":
                # parameters that a law hides from JAX show in its density
                self.rules[name] += _density(msg["fn"], self.values[name])
            msg["value"] = self.values[name]

    def _now(self, msg: Any) -> Any:
        """A conditioned series at this step, where the handler has put all of it."""
        value, law = msg["value"], msg["fn"]
        if np.ndim(value) == len(law.batch_shape) + law.event_dim + 1:
            return value[self.loops[-1][2]]
        return value

    def postprocess_message(self, msg: Any) -> None:
        if msg["type"] not in ("sample", "deterministic", "param"):
            return
        name, value = self._name(msg["name"]), msg["value"]
        self.found[name] = value
        function = any(callable(x) for x in jax.tree.leaves(value, is_leaf=callable))
        array = None if function else jax.eval_shape(jnp.asarray, value)
        frames = [(f.name, int(f.size)) for f in reversed(msg.get("cond_indep_stack") or [])]
        self.sites.setdefault(name, Seen(
            _role(msg), _class(msg["fn"]) if msg["type"] == "sample" else "",
            () if array is None else tuple(array.shape), "" if array is None else str(array.dtype),
            function, tuple(frames), tuple((n, size) for n, size, _ in self.loops),
        ))  # fmt: skip

    def _scan(self, body: Callable, init: Any, xs: Any, length: Any, reverse: bool) -> Any:
        steps = int(length) if length is not None else len(jax.tree.leaves(xs)[0])
        self._count += 1
        name = "scan" if self._count == 1 else f"scan {self._count}"
        carry, series = jax.tree.map(jnp.asarray, init), []
        for step in range(min(steps, 2)):
            self.loops.append((name, steps, step))
            now = jax.tree.map(lambda x: x[-1 - step if reverse else step], xs)  # noqa: B023
            carry, y = body(carry, now)
            series.append(y)
            self.loops.pop()
        # what leaves the loop comes from both steps
        repeated = series + series[-1:] * (steps - len(series))
        stacked = jax.tree.map(lambda *y: jnp.stack(y), *repeated) if repeated else None
        return (steps, None, carry), (PytreeTrace({}), stacked)

    def _cond(self, pred: Any, true_fun: Callable, false_fun: Callable, operand: Any) -> Any:
        self.conditions.append(pred)
        first, second = true_fun(operand), false_fun(operand)
        self.conditions.pop()
        chosen = jax.tree.map(lambda a, b: jnp.where(pred, a, b), first, second)
        return chosen, PytreeTrace({})


def _arrays(tree: Any) -> list:
    """Leaves of a pytree that are arrays or numbers."""
    kept = [x for x in jax.tree.leaves(tree) if hasattr(x, "dtype") or isinstance(x, int | float)]
    return [jax.random.key_data(x) if _is_key(x) else jnp.asarray(x) for x in kept]


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _density(law: Any, value: Any) -> list:
    try:
        return [jnp.asarray(law.log_prob(value))]
    except Exception:  # a law over functions has none, and some laws have none anywhere
        return []


def _class(law: Any) -> str:
    while isinstance(law, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        law = law.base_dist
    # one law in two parameterisations is one law to a reader
    return type(law).__name__.removesuffix("Logits").removesuffix("Probs")


def _role(msg: Any) -> str:
    role = role_of(msg)
    if role is not None:
        return role
    if msg["type"] != "sample":
        return "param" if msg["type"] == "param" else "computed"
    if isinstance(msg["fn"], dist.Unit):
        return "factor"
    return "observed" if msg["is_observed"] else "latent"


def relations(model: Callable, args: tuple = ()) -> Relations:
    """Sites of a model and what each depends on; False positives are possible, misses are not.

    Args:
        model: a model.
        args: its arguments.
    """
    names = _argument_names(model, len(args))
    error: Exception | None = None
    # numbers may be sizes, which cannot be inputs: then arrays alone are, then nothing is
    for kinds in ((int, float, np.ndarray, jax.Array), (np.ndarray, jax.Array), ()):
        moving = [i for i, a in enumerate(args) if _movable(a, kinds)]
        try:
            return _relations(model, args, names, moving)
        except Exception as failure:
            error = failure
    assert error is not None
    raise error


def _movable(argument: Any, kinds: tuple) -> bool:
    leaves = jax.tree.leaves(argument)
    return bool(leaves) and all(isinstance(x, kinds) and not isinstance(x, bool) for x in leaves)


def _argument_names(model: Callable, count: int) -> list[str]:
    try:
        parameters = [p for p in inspect.signature(model).parameters.values()
                      if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]  # fmt: skip
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters[:count]]
    return names + [f"argument {i + 1}" for i in range(len(names), count)]


def _relations(model: Callable, args: tuple, names: list[str], moving: list[int]) -> Relations:
    def run(values: Mapping[Name, Any] | None, given: list) -> _Recorder:
        full = list(args)
        for i, value in zip(moving, given, strict=True):
            full[i] = value
        recorder = _Recorder(handlers.seed(model, jax.random.key(0)), values)
        recorder(*full)
        return recorder

    kept: list[_Recorder] = []

    def shapes(given: list) -> list:
        kept.append(run(None, given))
        return [x for _, x in kept[0].found.items()]

    example = [jax.tree.map(jnp.asarray, args[i]) for i in moving]
    values = jax.eval_shape(shapes, example)
    seen = kept[0]
    order = list(seen.found)
    widths: list[int] = []

    def rules(*inputs: Any) -> list:
        recorder = run(dict(zip(order, inputs, strict=False)), list(inputs[len(order) :]))
        groups = [recorder.rules[n] for n in order]
        groups += [recorder.given.get(n, []) for n in order]
        widths[:] = [len(g) for g in groups]
        return [x for g in groups for x in g]

    program = flatten(rules, *values, *example)
    inputs = [*order, *((names[i], -1) for i in moving)]
    reached: dict[Name, set[tuple[Name, bool]]] = {n: set() for n in order}
    for source, variables in zip(inputs, program.arguments, strict=True):
        for target, given in _reached(program.jaxpr, variables, order, widths):
            reached[target].add((source, given))

    @jax.jit
    def laws(inputs: list, given: list) -> dict:
        recorder = run(dict(zip(order, inputs, strict=True)), given)
        arrays = {n: law for n, law in recorder.laws.items() if not seen.sites[n, 0].function}
        return {n: _whole_or_none(n, law) for n, law in arrays.items()}

    first, second = (
        laws(jax.tree.map(partial(_filled, value=v), values), example) for v in (0.25, 0.75)
    )
    pairs = {n: (first[n], second[n]) for n in first}
    return _named(seen, order, reached, args, names)._replace(laws=pairs)


def _whole_or_none(name: str, law: dist.Distribution) -> dist.Distribution | None:
    try:
        return _whole(name, law)
    except TypeError:
        return None


def _filled(shape: jax.ShapeDtypeStruct, value: float) -> jax.Array:
    if _is_key(shape):
        return jax.random.split(jax.random.key(0), shape.shape)
    whole = not jnp.issubdtype(shape.dtype, jnp.inexact)
    return jnp.full(shape.shape, round(value) if whole else value, shape.dtype)


def _reached(jaxpr: jec.Jaxpr, variables: list, order: list[Name], widths: list[int]) -> list:
    """Which laws or formulas (False) and givens (True) depend on one input."""
    own = set(variables)
    moved = iter(_moved(jaxpr, [v in own for v in jaxpr.invars]))
    hit = [any([next(moved) for _ in range(width)]) for width in widths]
    targets = [*((n, False) for n in order), *((n, True) for n in order)]
    return [t for t, h in zip(targets, hit, strict=True) if h]


def _named(
    seen: _Recorder, order: list[Name], reached: dict, args: tuple, names: list[str]
) -> Relations:
    """Both steps of loops under one name."""
    sites = {n: seen.sites[n, step] for n, step in order if not step}
    place = {n: i for i, n in enumerate([*names, *sites])}
    parents: dict[str, set[Ref]] = {n: set() for n in sites}
    given: dict[str, set[Ref]] = {n: set() for n in sites}
    for (name, step), sources in reached.items():
        for (source, when), of_given in sources:
            kind = "argument" if when == -1 else "site"
            if step == 1 and when == 0 and {*sites[source].loops} & {*sites[name].loops}:
                kind = "before"
            if kind != "site" or source != name:
                (given if of_given else parents)[name].add(Ref(source, kind))
    shapes = {
        n: tuple(jnp.shape(a)) if hasattr(a, "dtype") or isinstance(a, int | float) else None
        for n, a in zip(names, args, strict=False)
    }

    def ordered(refs: set[Ref]) -> tuple[Ref, ...]:
        return tuple(sorted(refs, key=lambda r: (r.kind, place[r.name])))

    return Relations(
        sites, shapes, {n: ordered(p) for n, p in parents.items()},
        {n: ordered(g) for n, g in given.items() if sites[n].role == "action"}, {},
    )  # fmt: skip
