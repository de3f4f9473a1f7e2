"""What rows observe of unknown functions, and what actions are worth, read off a model.

A model calls the value of a Gaussian-process site. Run with a probe in its place, which records
where it is called and answers with given numbers, the model says of each row where the functions
were evaluated, and how the location of what was logged depends on their values.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.primitives import Messenger

from decisionppl._gaussian_process import GaussianProcess, Inputs, as_batch, as_inputs, at_mean
from decisionppl._inference import Rows
from decisionppl._play import Trace, play
from decisionppl._roles import role_of
from decisionppl._structure import dependent_outputs, is_affine
from decisionppl._utility import split_utility
from decisionppl.inference._likelihood import logged_sites

Values = Mapping[str, Any]


class Call(NamedTuple):
    """Where a function was evaluated.

    Attributes:
        site: name of the function's site.
        inputs: one array [points, size] per argument.
    """

    site: str
    inputs: Inputs

    @property
    def count(self) -> int:
        """Number of points."""
        return self.inputs[0].shape[0]


class Probe:
    """Stands in for an unknown function: records its inputs, answers with given values."""

    def __init__(self, site: str, record: "Recorder") -> None:
        self.site, self.record = site, record

    def __call__(self, *args: Any) -> jax.Array:
        """The next given value."""
        return self.at(as_inputs(args))[0]

    def batch(self, *args: Any) -> jax.Array:
        """The next given values, one per point."""
        return self.at(as_batch(args))

    def at(self, x: Inputs) -> jax.Array:
        """The next given values, one per point."""
        return self.record.answer(Call(self.site, x))


class Recorder:
    """The calls of one run of the model, over all its functions.

    Args:
        values: answers, [all points] in the order of the calls, or one array per call; None
            answers with zeros.
    """

    def __init__(self, values: Any = None) -> None:
        self.values = values
        self.calls: list[Call] = []

    def answer(self, call: Call) -> jax.Array:
        """Values of the points of a call."""
        first = sum(c.count for c in self.calls)
        self.calls.append(call)
        if self.values is None:
            return jnp.zeros(call.count)
        if isinstance(self.values, tuple):
            return self.values[len(self.calls) - 1]
        return self.values[first : first + call.count]


class probed(Messenger):
    """Put probes in place of Gaussian processes; their sites are no latents any more."""

    def __init__(self, fn: Callable, record: Recorder) -> None:
        self.record = record
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        """Set the value; the role `held` says that the site is given."""
        if msg["type"] == "sample" and isinstance(msg["fn"], GaussianProcess):
            msg["value"] = Probe(msg["name"], self.record)
            msg["infer"] = {**msg["infer"], "role": "held"}


class Seen(NamedTuple):
    """What one row observes, given hyperparameters: y = offset + coefficients f(points) + noise.

    Attributes:
        values: [outcomes], what was logged.
        offset: [outcomes].
        coefficients: [outcomes, points].
        noise: [outcomes], standard deviations.
        inputs: per call, the points.
    """

    values: jax.Array
    offset: jax.Array
    coefficients: jax.Array
    noise: jax.Array
    inputs: tuple[Inputs, ...]


class Worth(NamedTuple):
    """The utility of one action, given hyperparameters: offset + coefficients f(points).

    Attributes:
        offset: scalar.
        coefficients: [points].
        inputs: per call, the points.
    """

    offset: jax.Array
    coefficients: jax.Array
    inputs: tuple[Inputs, ...]


class Layout(NamedTuple):
    """Which calls of the model matter for a quantity; static.

    Attributes:
        sites: per call that matters, the site of the function.
        keep: indices of the calls that matter.
        counts: points of each call of the model, whether it matters or not.
    """

    sites: tuple[str, ...]
    keep: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def points(self) -> list[int]:
        """Indices of the points that matter among all points."""
        starts = [sum(self.counts[:i]) for i in range(len(self.counts))]
        return [starts[i] + j for i in self.keep for j in range(self.counts[i])]


def function_sites(model: Callable, args: tuple) -> list[str]:
    """Names of the Gaussian-process sites of a model.

    Raises:
        TypeError: there is none.
    """
    sites: dict[str, bool] = {}

    def run() -> None:
        trace = play(at_mean(model), jax.random.key(0))(*args)
        sites.update({n: isinstance(s.get("fn"), GaussianProcess) for n, s in trace.items()})

    jax.eval_shape(run)  # nothing is computed
    if not any(sites.values()):
        raise TypeError(
            f"the model has no Gaussian-process site (its sites: {list(sites)}). Write the unknown "
            'function as f = numpyro.sample("f", dp.GaussianProcess(kernel)) and call it.'
        )
    return [n for n, is_process in sites.items() if is_process]


def held(model: Callable) -> Callable:
    """The model with its functions held at zero: what is left are the hyperparameters."""

    def run(*args: Any) -> Any:
        return probed(model, Recorder())(*args)

    return run


def processes(model: Callable, world: Values, args: tuple) -> dict[str, GaussianProcess]:
    """The laws of the functions at given hyperparameters."""
    trace = play(probed(model, Recorder()), jax.random.key(0), world=world)(*args)
    return {n: s["fn"] for n, s in trace.items() if isinstance(s.get("fn"), GaussianProcess)}


def _run(model: Callable, values: Any, **given: Any) -> Callable:
    """`args -> (trace, calls)` of one run with probes."""

    def run(*args: Any) -> tuple[Trace, list[Call]]:
        record = Recorder(values)
        trace = play(probed(model, record), jax.random.key(0), **given)(*args)
        return trace, record.calls

    return run


def _noise_of(name: str, site: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Location and standard deviation of a Gaussian site, flat."""
    fn: Any = site["fn"]
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    shape = jnp.shape(site["value"])
    if isinstance(fn, dist.Normal):
        loc, scale = fn.loc, fn.scale
    elif isinstance(fn, dist.Delta):
        loc, scale = fn.v, jnp.zeros(())
    else:
        raise TypeError(
            f"{role_of(site)} site {name!r} is {type(fn).__name__}: exact conditioning needs a "
            "Normal outcome. Transform the data (log, logit) and model them as Normal, or use "
            "inference.nuts with a finite-dimensional model."
        )
    flat = lambda x: jnp.ravel(jnp.broadcast_to(x, shape)).astype(float)  # noqa: E731
    return flat(loc), flat(scale)


def _logged(trace: Trace, sites: Values) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Values, locations and noise of what was logged in one row; each [outcomes]."""
    found = logged_sites(trace, sites)
    parts = [(jnp.ravel(s["value"]), *_noise_of(n, s)) for n, s in found.items()]
    values, loc, noise = (jnp.concatenate(p) for p in zip(*parts, strict=True))
    return values.astype(float), loc, noise


def layout_of(quantity: Callable, example: tuple, what: str) -> Layout:
    """Which calls a quantity depends on.

    Args:
        quantity: `(values of all points, *example) -> (array, calls, others)`: the quantity must
            be affine in the values, and the calls and others must not depend on them.
        example: its other arguments.
        what: for messages.

    Raises:
        ValueError: a quantity that is not affine in the functions, or functions evaluated at, or
            noise that depends on, the value of a function.
    """
    calls = quantity(None, *example)[1]
    counts = tuple(c.count for c in calls)
    if not calls:
        return Layout((), (), ())
    zeros = jnp.zeros(sum(counts))

    def fixed(values: jax.Array, *example: Any) -> Any:
        _, calls, others = quantity(values, *example)
        return [c.inputs for c in calls], others

    if any(dependent_outputs(fixed, 0, zeros, *example)):
        raise ValueError(
            f"{what}: a function is evaluated at, or a scale depends on, the value of a function: "
            "that is not Gaussian. Let inputs and scales depend on actions, contexts and "
            "hyperparameters."
        )
    if not is_affine(lambda v, *rest: quantity(v, *rest)[0], zeros, *example):
        raise ValueError(
            f"{what} is not linear in the functions' values, so it has no Gaussian law. Give the "
            "function another scale (log, logit), so that outcomes are linear in it."
        )
    parts = tuple(jnp.zeros(n) for n in counts)
    keep = []
    for i in range(len(counts)):

        def alone(part: jax.Array, rest: tuple, *example: Any, i: int = i) -> jax.Array:
            # apart, since of one array all that is cut out would seem to depend on all of it
            return quantity((*rest[:i], part, *rest[i + 1 :]), *example)[0]

        if any(dependent_outputs(alone, 0, parts[i], parts, *example)):
            keep.append(i)
    return Layout(tuple(calls[i].site for i in keep), tuple(keep), counts)


def _affine(quantity: Callable, layout: Layout, *rest: Any) -> tuple:
    """Offset, coefficients [..., points that matter], the calls that matter, and others."""
    total = sum(layout.counts)
    zeros = jnp.zeros(total)
    if not layout.keep:
        value, _, others = quantity(zeros if total else None, *rest)
        return value, jnp.zeros((*value.shape, 0)), (), others
    points = jnp.asarray(layout.points)

    def of(part: jax.Array) -> Any:
        value, calls, others = quantity(zeros.at[points].set(part), *rest)
        return value, (value, tuple(calls[i].inputs for i in layout.keep), others)

    slope, (value, inputs, others) = jax.jacfwd(of, has_aux=True)(jnp.zeros(len(layout.points)))
    return value, slope, inputs, others


def observation(model: Callable, example: tuple[Values, tuple, Values]) -> tuple[Layout, Callable]:
    """The layout of a row, and `(world, args, sites) -> Seen`.

    Args:
        model: a one-round model.
        example: a world of hyperparameters, arguments and logged sites of one row.
    """

    def quantity(values: Any, world: Values, args: tuple, sites: Values) -> tuple:
        trace, calls = _run(model, values, world=world, data=sites)(*args)
        seen, loc, noise = _logged(trace, sites)
        return loc, calls, (seen, noise)

    layout = layout_of(quantity, example, f"the location of logged sites {sorted(example[2])}")

    def seen(world: Values, args: tuple, sites: Values) -> Seen:
        offset, slope, inputs, (values, noise) = _affine(quantity, layout, world, args, sites)
        return Seen(values, offset, slope, noise, inputs)

    return layout, seen


def worth(
    model: Callable, example: tuple[Values, tuple, Values, Values], *, net: bool
) -> tuple[Layout, Callable]:
    """The layout of utilities, and `(world, args, action, data) -> Worth`.

    Args:
        model: a one-round model.
        example: a world of hyperparameters, arguments, an action and values of context sites.
        net: rewards less costs, or rewards alone.
    """

    def quantity(values: Any, world: Values, args: tuple, action: Values, data: Values) -> tuple:
        trace, calls = _run(model, values, world=world, policy=action, data=data)(*args)
        reward, cost = split_utility(trace)
        return jnp.asarray(reward - cost if net else reward, float), calls, ()

    layout = layout_of(quantity, example, "the utility")

    def of(world: Values, args: tuple, action: Values, data: Values) -> Worth:
        offset, slope, inputs, _ = _affine(quantity, layout, world, args, action, data)
        return Worth(offset, slope, inputs)

    return layout, of


def means_at(laws: Values, sites: Sequence[str], inputs: Sequence[Inputs]) -> jax.Array:
    """Prior means [rows, points]; inputs are per call, arrays [rows, points of the call, size]."""
    parts = []
    for site, x in zip(sites, inputs, strict=True):
        rows, points = x[0].shape[:2]
        flat = tuple(a.reshape(rows * points, -1) for a in x)
        parts.append(laws[site].mean_function(flat).reshape(rows, points))
    return jnp.concatenate(parts, axis=1)


def covariance(
    laws: Values,
    left: tuple[Sequence[str], Sequence[Inputs], jax.Array],
    right: tuple[Sequence[str], Sequence[Inputs], jax.Array],
) -> jax.Array:
    """Prior covariance of two families of linear quantities, [left, outcomes, right, outcomes].

    Args:
        laws: dict from site to `GaussianProcess`.
        left: sites per call, inputs per call [rows, points of the call, size], and coefficients
            [rows, outcomes, points].
        right: the same.
    """
    (sites_a, inputs_a, weights_a), (sites_b, inputs_b, weights_b) = left, right
    total = jnp.zeros((*weights_a.shape[:2], *weights_b.shape[:2]))
    start_a = 0
    for site_a, x in zip(sites_a, inputs_a, strict=True):
        n, p = x[0].shape[:2]
        first = weights_a[..., start_a : start_a + p]
        start_a += p
        start_b = 0
        for site_b, z in zip(sites_b, inputs_b, strict=True):
            m, q = z[0].shape[:2]
            second = weights_b[..., start_b : start_b + q]
            start_b += q
            if site_a != site_b:
                continue  # functions are independent
            gram = laws[site_a].kernel(
                tuple(a.reshape(n * p, -1) for a in x), tuple(b.reshape(m * q, -1) for b in z)
            )
            if p == q == 1:
                product = gram[:, None, :, None] * first[:, :, None, None, 0]
                total += product * second[None, None, :, :, 0]
            else:
                gram = gram.reshape(n, p, m, q)
                total += jnp.einsum("nop,npmq,mrq->nomr", first, gram, second)
    return total


def variances(
    laws: Values, sites: Sequence[str], inputs: Sequence[Inputs], weights: jax.Array
) -> jax.Array:
    """Prior variances [rows] of one linear quantity per row; weights [rows, points]."""
    if all(x[0].shape[1] == 1 for x in inputs) and len(inputs) == 1:
        flat = tuple(a.reshape(a.shape[0], -1) for a in inputs[0])
        return laws[sites[0]].kernel.diagonal(flat) * weights[:, 0] ** 2

    def one(x: Any, w: jax.Array) -> jax.Array:
        mine = (sites, jax.tree.map(lambda a: a[None], x), w[None, None])
        return covariance(laws, mine, mine)[0, 0, 0, 0]

    return jax.vmap(one)(tuple(inputs), weights)


def rows_seen(seen: Callable, world: Values, rows: Rows) -> Seen:
    """`Seen` of all rows; padding has coefficients, offsets and residuals of zero, noise one."""
    parts: Seen = jax.vmap(seen, (None, 0, 0))(world, rows.args, rows.sites)
    keep = rows.mask[:, None]
    return Seen(
        jnp.where(keep, parts.values, 0.0),
        jnp.where(keep, parts.offset, 0.0),
        jnp.where(keep[..., None], parts.coefficients, 0.0),
        jnp.where(keep, parts.noise, 1.0),
        parts.inputs,
    )
