"""Runs of a model that record its sites: what they are, and what their laws are made of."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import Messenger

from decisionppl._roles import role_of

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


class Recorder(Messenger):
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
    return [jax.random.key_data(x) if is_key(x) else jnp.asarray(x) for x in kept]


def is_key(x: Any) -> bool:
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
