"""The likelihood of logged rounds and the prior of latents, derived from a one-round model."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.primitives import Messenger

from decisionppl._inference import Rows
from decisionppl._play import Trace, example_run, is_latent, play
from decisionppl._roles import ROLES, role_of
from decisionppl._structure import dependent_outputs, depends

Values = Mapping[str, Any]


def logged_sites(trace: Trace, sites: Values) -> dict[str, Any]:
    """Sites of a trace whose logged values are evidence (actions are not)."""
    return {n: s for n, s in trace.items() if n in sites and role_of(s) != "action"}


def row_log_likelihood(model: Callable) -> Callable:
    """`(world, args, sites) -> log p(logged sites of one row | world, action)`, a scalar."""

    def log_likelihood(world: Values, args: tuple, sites: Values) -> jax.Array:
        trace = play(model, jax.random.key(0), world=world, data=sites)(*args)
        return sum((_log_prob(s) for s in logged_sites(trace, sites).values()), jnp.zeros(()))

    return log_likelihood


def _log_prob(site: Mapping[str, Any]) -> jax.Array:
    total = jnp.sum(site["fn"].log_prob(site["value"]))
    return total if site["scale"] is None else total * site["scale"]


def log_likelihood(model: Callable) -> Callable:
    """`(world, rows) -> log p(rows | world)`; rows that are masked out contribute nothing."""
    row = row_log_likelihood(model)

    def total(world: Values, rows: Rows) -> jax.Array:
        values = jax.vmap(row, in_axes=(None, 0, 0))(world, rows.args, rows.sites)
        # `where` on the values alone would let NaN of padded rows into the gradient
        return jnp.sum(jnp.where(rows.mask, values, 0.0))

    return total


def example_sites(trace: Trace) -> dict[str, jax.Array]:
    """One simulated row of everything that can be logged."""
    kept = {n: s for n, s in trace.items() if s["type"] == "sample" and role_of(s) in ROLES}
    return {n: jnp.asarray(s["value"]) for n, s in kept.items()}


class fix(Messenger):
    """Give latents constant values and take them out of the world.

    Args:
        fn: a model.
        values: dict from latent site to a value, broadcast to the shape of the site.
    """

    def __init__(self, fn: Callable, values: Values) -> None:
        self.values = values
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        """Set the value; the role `held` tells that the site is no latent any more."""
        if msg["type"] == "sample" and msg["name"] in self.values:
            msg["value"] = jnp.broadcast_to(self.values[msg["name"]], msg["fn"].shape())
            msg["infer"] = {**msg["infer"], "role": "held"}


class Latents(NamedTuple):
    """The latents of a one-round model and its prior, in unconstrained coordinates.

    Attributes:
        model: the one-round model.
        args: example arguments.
        prototype: dict from latent site to an unconstrained value (zeros).
        constrain: unconstrained values -> world.
        log_prior: unconstrained values -> log density (with the Jacobian of `constrain`).
        unconstrain: world -> unconstrained values.
        draw: key -> unconstrained values of one prior draw.
        sites: one simulated row of everything that can be logged.
    """

    model: Callable
    args: tuple
    prototype: dict[str, jax.Array]
    constrain: Callable
    log_prior: Callable
    unconstrain: Callable
    draw: Callable
    sites: dict[str, jax.Array]


def _transform(site: Mapping[str, Any]) -> Any:
    return biject_to(site["fn"].support)


def _unconstrained_run(model: Callable, args: tuple, z: Values) -> Trace:
    def from_unconstrained(site: Any) -> Any:
        if not is_latent(site) or site["name"] not in z:
            return None
        return _transform(site)(z[site["name"]])

    seeded = handlers.seed(model, jax.random.key(0))
    return handlers.trace(handlers.substitute(seeded, substitute_fn=from_unconstrained)).get_trace(
        *args
    )


def latents_of(model: Callable, args: tuple, *, optional: bool = False) -> Latents:
    """Analyse a one-round model: its latents, their prior, and what can be logged.

    Args:
        model: a one-round model.
        args: example arguments.
        optional: whether a model without latents will do.

    Raises:
        ValueError: a latent whose prior depends on the row (its context or action).
        TypeError: no latent at all, a discrete one, or one given data through `obs=`.
    """
    trace = example_run(model, args)
    latents = {n: s for n, s in trace.items() if is_latent(s)}
    _check_latents(trace, latents, optional)
    _check_global(model, args, list(latents), trace)
    shapes = jax.eval_shape(
        lambda: {n: _transform(s).inv(jnp.asarray(s["value"])) for n, s in latents.items()}
    )
    prototype = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def constrain(z: Values) -> dict[str, jax.Array]:
        run = _unconstrained_run(model, args, z)
        return {n: run[n]["value"] for n in prototype}

    def log_prior(z: Values) -> jax.Array:
        run = _unconstrained_run(model, args, z)
        total = jnp.zeros(())
        for n in prototype:
            jacobian = _transform(run[n]).log_abs_det_jacobian(z[n], run[n]["value"])
            total += _log_prob(run[n]) + jnp.sum(jacobian)
        return total

    def inverse(run: Trace) -> dict[str, jax.Array]:
        return {n: _transform(run[n]).inv(jnp.asarray(run[n]["value"])) for n in prototype}

    def unconstrain(world: Values) -> dict[str, jax.Array]:
        return inverse(play(model, jax.random.key(0), world=world)(*args))

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        return inverse(play(model, key)(*args))

    sites = example_sites(trace)
    return Latents(model, args, prototype, constrain, log_prior, unconstrain, draw, sites)


def _check_latents(trace: Trace, latents: Values, optional: bool) -> None:
    for name, site in trace.items():
        if site["type"] == "sample" and site["is_observed"]:
            raise TypeError(
                f"site {name!r} has obs= in the model. Data enter through rows: write "
                f'dp.outcome("{name}", ...) and log its value.'
            )
    if not latents and not optional:
        raise TypeError(
            f"the model has no latent site (its sites: {list(trace)}), so there is nothing to "
            "learn. Unknowns are ordinary numpyro.sample sites."
        )
    for name, site in latents.items():
        if not isinstance(site["fn"], dist.Distribution) or callable(site["value"]):
            raise TypeError(
                f"latent site {name!r} holds a function: this engine needs array-valued latents."
            )
        if site["fn"].support.is_discrete:
            raise TypeError(
                f"latent site {name!r} is discrete ({type(site['fn']).__name__}): this engine "
                "needs continuous latents. Sum it out of the likelihood, or use a conjugate "
                "or enumerated model."
            )


def _check_global(model: Callable, args: tuple, names: list[str], trace: Trace) -> None:
    """A world is shared by all rows, so no prior may depend on one row."""
    values = {n: trace[n]["value"] for n in names}
    sites = example_sites(trace)

    def priors(sites: Values, args: tuple) -> list[jax.Array]:
        trace = play(model, jax.random.key(0), world=values, data=sites)(*args)
        return [_log_prob(trace[name]) for name in names]

    for i, what in enumerate(("an action or outcome", "the model's arguments")):
        for name, moves in zip(names, dependent_outputs(priors, i, sites, args), strict=True):
            if moves:
                raise ValueError(
                    f"latent site {name!r}: its prior depends on {what}, so it differs between "
                    "rounds. A latent is shared by all rounds; make a per-round unknown an "
                    "outcome, or move what it depends on into the likelihood."
                )


def check_logged(model: Callable, args: tuple, sites: Values, world: Values) -> None:
    """Refuse rows whose likelihood needs a random site that was not logged."""

    def likelihood(key: jax.Array) -> jax.Array:
        trace = play(model, key, world=world, data=sites)(*args)
        return sum((_log_prob(s) for s in logged_sites(trace, sites).values()), jnp.zeros(()))

    if depends(likelihood, 0, jax.random.key(0)):
        trace = example_run(model, args)
        missing = sorted(set(example_sites(trace)) - set(sites))
        raise ValueError(
            f"the likelihood of the logged sites {sorted(sites)} depends on a random site that "
            f"was not logged, one of {missing}. Log it too, or write the model so that what is "
            "logged does not depend on it."
        )
