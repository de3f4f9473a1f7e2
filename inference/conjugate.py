"""Exact conjugate beliefs, found in the model rather than declared beside it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from decisionppl._inference import Inference, Rows
from decisionppl._play import example_run, is_latent, play
from decisionppl._roles import role_of
from decisionppl._structure import dependent_outputs
from decisionppl.inference import laplace as _laplace
from decisionppl.inference._counts import FAMILIES, base, count_engine
from decisionppl.inference._likelihood import fix, latents_of, logged_sites
from decisionppl.inference._normal_inverse_gamma import normal_inverse_gamma

Values = Mapping[str, Any]


class _Part(NamedTuple):
    """Latents that are updated together, and the logged sites that inform them."""

    latents: list[str]
    logged: list[str]
    engine: Inference


def _informs(model: Callable, args: tuple) -> dict[str, list[str]]:
    """Per logged site, the latents its law depends on."""
    latents = latents_of(model, args)
    world = jax.jit(latents.constrain)(latents.prototype)
    trace = example_run(model, args)
    logged = list(logged_sites(trace, latents.sites))
    found: dict[str, list[str]] = {n: [] for n in logged}

    def laws(*values: Any) -> list[list[jax.Array]]:
        given = dict(zip(world, values, strict=True))
        run = play(model, jax.random.key(0), world=given, data=latents.sites)(*args)
        return [[jnp.asarray(x) for x in jax.tree.leaves(run[n]["fn"])] for n in logged]

    sizes = [len(x) for x in jax.eval_shape(laws, *world.values())]
    for i, name in enumerate(world):
        flags = iter(dependent_outputs(laws, i, *world.values()))
        for site, size in zip(logged, sizes, strict=True):
            if any([next(flags) for _ in range(size)]):
                found[site].append(name)
    return found


def _gaussian(model: Callable, args: tuple) -> Inference:
    """Linear-Gaussian latents: streaming Laplace, which is exact when proven so."""
    trace = example_run(model, args)
    scales = [n for n, s in trace.items() if is_latent(s) and _is(s, dist.InverseGamma)]
    if len(scales) > 1:
        raise TypeError(f"latent sites {scales}: conjugate needs one InverseGamma variance.")
    if scales:
        return normal_inverse_gamma(model, args, scales[0])
    parts = _laplace.analyse(model, args)
    logged = [n for n in parts.latents.sites if role_of(trace[n]) != "action"]
    terms = parts.terms(frozenset(parts.latents.sites))
    if not parts.prior_exact:
        raise TypeError(
            f"latent sites {list(parts.latents.prototype)}: their prior is not Gaussian, so this "
            "model is not conjugate. Use inference.laplace (approximate) or inference.nuts."
        )
    if not terms.quadratic:
        raise TypeError(
            f"logged sites {logged}: their log likelihood is not quadratic in the latents "
            f"{list(parts.latents.prototype)} (a Normal outcome with linear mean and known "
            "scale would be), so this model is not conjugate. Use inference.laplace or "
            "inference.nuts."
        )
    return _laplace.engine(parts)


def _is(site: Values, kind: type) -> bool:
    return isinstance(base(site["fn"]), kind)


def _parts(model: Callable, args: tuple) -> list[_Part]:
    informs = _informs(model, args)
    trace = example_run(model, args)
    latents = [n for n, s in trace.items() if is_latent(s)]
    counted = [n for n in latents if type(base(trace[n]["fn"])) in FAMILIES]
    parts = []
    for name in counted:
        logged = [site for site, names in informs.items() if name in names]
        mixed = [site for site in logged if informs[site] != [name]]
        if mixed:
            raise TypeError(
                f"logged site {mixed[0]!r} depends on latents {informs[mixed[0]]}: a conjugate "
                f"update of {name!r} needs outcomes that depend on it alone. Use "
                "inference.laplace or inference.nuts."
            )
        parts.append(_Part([name], logged, count_engine(model, args, name, logged)))
    rest = [n for n in latents if n not in counted]
    if rest:
        logged = [site for site, names in informs.items() if set(names) & set(rest)]
        held = {n: trace[n]["value"] for n in counted}
        engine = _gaussian(fix(model, held) if held else model, args)
        parts.append(_Part(rest, logged, engine))
    return parts


def conjugate(model: Callable, *args: Any) -> Inference:
    """Exact posteriors of models in the conjugate families, recognised from the program.

    - Beta latents with Bernoulli or Binomial outcomes, Gamma with Poisson, Dirichlet with
      Categorical or Multinomial: each outcome's parameter picks entries of one latent.
    - Normal latents (any affine Gaussian prior, hierarchical ones included) with Normal
      outcomes of affine mean and known scale: Bayesian linear regression, square-root form.
    - The same with an InverseGamma variance that scales the noise and the weights' prior.

    Several groups may stand side by side in one model, each informed by outcomes of its own.
    Latents whose leading axis is read at one row per round (disjoint arms) are kept as
    independent blocks.

    Args:
        model: a one-round model.
        *args: example arguments of one round (a context).

    Returns:
        An `Inference`; `predict` is there for linear-Gaussian models with affine utility.

    Raises:
        TypeError: the model is not conjugate; the message names the site and the way out.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model():
        ...     p = numpyro.sample("p", dist.Beta(1, 1).expand([2]).to_event(1))
        ...     dp.reward("click", dist.Bernoulli(p[dp.action("arm", 2)]))
        >>> engine = dp.inference.conjugate(model)
        >>> rows = dp.observe(model, sites={"arm": [0, 0, 1], "click": [1, 1, 0]})
        >>> key = jax.random.key(0)
        >>> engine.update(key, engine.init(key), rows)["p"].tolist()  # successes, failures
        [[3.0, 1.0], [1.0, 2.0]]

    References:
        Gelman et al., Bayesian Data Analysis, 3rd edition, chapters 2, 3 and 14.
    """
    parts = _parts(model, args)
    if len(parts) == 1 and not isinstance(parts[0].engine.init(None), jax.Array):
        return parts[0].engine
    names = ["+".join(p.latents) for p in parts]

    def init(key: Any) -> dict[str, Any]:
        return {n: p.engine.init(key) for n, p in zip(names, parts, strict=True)}

    def update(key: Any, belief: dict[str, Any], rows: Rows) -> dict[str, Any]:
        updated = {}
        for name, part in zip(names, parts, strict=True):
            seen = any(n in rows.sites for n in part.logged)
            current = belief[name]
            updated[name] = part.engine.update(key, current, rows) if seen else current
        return updated

    def sample(key: Any, belief: dict[str, Any], num_worlds: int) -> dict[str, jax.Array]:
        keys = jax.random.split(key, len(parts)) if len(parts) > 1 else [key]
        worlds: dict[str, jax.Array] = {}
        for name, part, k in zip(names, parts, keys, strict=True):
            worlds.update(part.engine.sample(k, belief[name], num_worlds))
        return worlds

    return Inference(init, jax.jit(update), jax.jit(sample, static_argnums=2))
