"""Conjugate families whose update adds counts: Beta, Gamma, Dirichlet."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import continuous, discrete
from numpyro.distributions import distribution as core

from decisionppl._inference import Inference, Rows
from decisionppl._play import example_run, play
from decisionppl._structure import is_selection
from decisionppl.inference._likelihood import check_logged, latents_of

Values = Mapping[str, Any]

_WRAPPERS = (core.Independent, core.ExpandedDistribution, core.MaskedDistribution)


def base(fn: Any) -> Any:
    """The distribution inside `to_event`, `expand` and `mask`."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    return fn


def _one_hot(fn: Any, y: jax.Array) -> tuple:
    return (jax.nn.one_hot(y.astype(int), fn.probs.shape[-1], dtype=fn.probs.dtype),)


# prior -> (names of its parameters, {outcome: (parameter, (law, y) -> what is added to each)})
FAMILIES: dict[type, tuple[tuple[str, ...], dict[type, tuple[str, Callable]]]] = {
    continuous.Beta: (
        ("concentration1", "concentration0"),
        {
            discrete.BernoulliProbs: ("probs", lambda fn, y: (y, 1 - y)),
            discrete.BinomialProbs: ("probs", lambda fn, y: (y, fn.total_count - y)),
        },
    ),
    continuous.Gamma: (
        ("concentration", "rate"),
        {discrete.Poisson: ("rate", lambda fn, y: (y, jnp.ones_like(y)))},
    ),
    continuous.Dirichlet: (
        ("concentration",),
        {
            discrete.CategoricalProbs: ("probs", _one_hot),
            discrete.MultinomialProbs: ("probs", lambda fn, y: (y,)),
        },
    ),
}


def count_engine(model: Callable, args: tuple, name: str, logged: list[str]) -> Inference:
    """Engine for one count-conjugate latent; belief: its parameters, stacked [params, ...]."""
    latents = latents_of(model, args)
    trace = example_run(model, args)
    prior = base(trace[name]["fn"])
    value = jnp.asarray(trace[name]["value"])
    names, outcomes = FAMILIES[type(prior)]
    given = [jnp.asarray(getattr(prior, n), value.dtype) for n in names]
    first = jnp.stack([jnp.broadcast_to(g, value.shape) for g in given])
    _check_prior(latents, trace, name)
    world = {n: jnp.asarray(trace[n]["value"]) for n in latents.prototype}

    def law_of(site: str, latent: jax.Array, args: tuple, sites: Values) -> Any:
        run = play(model, jax.random.key(0), world={**world, name: latent}, data=sites)(*args)
        return base(run[site]["fn"]), run[site]["value"]

    def parameter(latent: jax.Array, args: tuple, sites: Values, site: str) -> jax.Array:
        fn, _ = law_of(site, latent, args, sites)
        return getattr(fn, outcomes[type(fn)][0])

    for site in logged:
        kind = type(base(trace[site]["fn"]))
        expected = " or ".join(k.__name__ for k in outcomes)
        if kind not in outcomes:
            raise TypeError(
                f"logged site {site!r} is {kind.__name__}; a {type(prior).__name__} latent "
                f"{name!r} is conjugate to {expected}. Use inference.laplace or inference.nuts."
            )
        if not is_selection(
            lambda z, a, s, site=site: parameter(z, a, s, site), value, args, latents.sites
        ):
            raise TypeError(
                f"logged site {site!r}: its parameter does more than pick entries of {name!r}, "
                "so the update is not conjugate. Use inference.laplace or inference.nuts."
            )

    def counts(args: tuple, sites: Values) -> jax.Array:
        total = jnp.zeros_like(first)
        for site in logged:
            if site not in sites:
                continue
            fn, y = law_of(site, value, args, sites)
            added = outcomes[type(fn)][1](fn, jnp.asarray(y, first.dtype))
            shape = jnp.broadcast_shapes(*(jnp.shape(a) for a in added))

            def picked(z: jax.Array, site: str = site, shape: tuple = shape) -> jax.Array:
                return jnp.broadcast_to(parameter(z, args, sites, site), shape)

            spread = jax.vjp(picked, value)[1]  # the transpose of picking puts counts back
            total += jnp.stack([spread(jnp.broadcast_to(a, shape))[0] for a in added])
        return total

    def init(key: Any) -> jax.Array:
        return first

    def update(key: Any, belief: jax.Array, rows: Rows) -> jax.Array:
        sites = {n: v for n, v in rows.sites.items() if n in latents.sites}
        row = {n: latents.sites[n] for n in sites}
        check_logged(model, args, row, world)
        added = jax.vmap(counts)(rows.args, sites)
        mask = rows.mask.reshape(-1, *(1,) * belief.ndim)
        return belief + jnp.sum(jnp.where(mask, added, 0.0), axis=0)

    def sample(key: Any, belief: jax.Array, num_worlds: int) -> dict[str, jax.Array]:
        law: dist.Distribution = type(prior)(*belief)
        return {name: jnp.asarray(law.sample(key, (num_worlds,)))}

    return Inference(init, update, sample)


def _check_prior(latents: Any, trace: Values, name: str) -> None:
    from decisionppl._structure import dependent_outputs

    others = [n for n in latents.prototype if n != name]

    def parameters(*values: Any) -> list[jax.Array]:
        world = dict(zip(others, values, strict=True))
        run = play(latents.model, jax.random.key(0), world=world)(*latents.args)
        return [jnp.asarray(x) for x in jax.tree.leaves(run[name]["fn"])]

    for i, other in enumerate(others):
        values = [jnp.asarray(trace[n]["value"]) for n in others]
        if any(dependent_outputs(parameters, i, *values)):
            raise TypeError(
                f"latent site {name!r}: its prior depends on latent {other!r}, so the model is "
                "not conjugate. Use inference.laplace or inference.nuts."
            )
