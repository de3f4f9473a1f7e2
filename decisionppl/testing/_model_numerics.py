"""Findings about a model's densities: finite, differentiable, the same in both precisions."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions.transforms import biject_to

from decisionppl._play import is_latent, play
from decisionppl._roles import role_of
from decisionppl._structure import dependent_outputs
from decisionppl.testing._model_case import Case, of_error, values_of


def _is_continuous(site: Mapping[str, Any]) -> bool:
    return (
        is_latent(site)
        and isinstance(site["fn"], dist.Distribution)
        and not site["fn"].support.is_discrete
        and not callable(site["value"])
    )


def _draw(case: Case, key: jax.Array) -> tuple[dict, dict]:
    """(unconstrained values of continuous latents, values of all other random sites)."""
    trace = play(case.model, key)(*case.args)
    random = {n: s for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}
    free = {n: s for n, s in random.items() if _is_continuous(s)}
    z = {n: biject_to(s["fn"].support).inv(s["value"]) for n, s in free.items()}
    return z, {n: s["value"] for n, s in random.items() if n not in free}


def _densities(case: Case, z: Mapping, values: Mapping) -> dict[str, jax.Array]:
    """Log density of every random site but the actions, at given values."""

    def substitute(site: Mapping[str, Any]) -> Any:
        if site["type"] == "sample" and site["name"] in z:
            return biject_to(site["fn"].support)(z[site["name"]])
        return values.get(site["name"]) if callable(values.get(site["name"])) else None

    data = {n: v for n, v in values.items() if not callable(v)}
    fn = handlers.condition(handlers.seed(case.model, case.key), data=data)
    fn = handlers.substitute(fn, substitute_fn=substitute)
    trace = handlers.trace(fn).get_trace(*case.args)
    return {
        n: jnp.sum(s["fn"].log_prob(s["value"]))
        for n, s in trace.items()
        if s["type"] == "sample" and role_of(s) != "action" and not callable(s["value"])
    }


def density(case: Case) -> Iterator[str]:
    """Log density and gradient are finite at the model's own draws; jit and vmap agree."""

    def total(z: Mapping, values: Mapping) -> tuple[jax.Array, dict]:
        each = _densities(case, z, values)
        return sum(each.values(), jnp.zeros(())), each

    def at(key: jax.Array) -> tuple:
        z, values = _draw(case, key)
        return z, values, *jax.value_and_grad(total, has_aux=True)(z, values)

    keys = jax.random.split(case.key, case.num_draws)
    z, values, (_, each), slopes = jax.jit(jax.vmap(at))(keys)
    for name, value in each.items():
        bad = np.asarray(~np.isfinite(np.asarray(value)))
        if bad.any():
            i = int(np.argmax(bad))
            yield (
                f"site {name!r}: log density {np.asarray(value)[i]} at a draw from the model "
                f"itself ({int(bad.sum())} of {len(bad)} draws). Check that its parameters stay "
                "in range (positive scales, probabilities away from 0 and 1; prefer logits)."
            )
    for name, slope in slopes.items():
        lost = ~np.isfinite(np.asarray(slope)).reshape(case.num_draws, -1)
        bad = np.asarray(lost.any(axis=1))
        if bad.any():
            yield (
                f"latent site {name!r}: the gradient of the log density is not finite "
                f"({int(bad.sum())} of {len(bad)} draws). Guard functions whose derivative is "
                "infinite (sqrt, log, norms at 0) on their input, not on their output."
            )
    plain = _densities(case, *jax.tree.map(lambda x: x[0], (z, values)))
    for name, value in each.items():
        a, b = float(plain[name]), float(np.asarray(value)[0])
        if abs(a - b) > 1e-3 * (1 + abs(b)):
            yield (
                f"site {name!r}: log density {a:.6g} as written, {b:.6g} under vmap and jit. The "
                "model behaves differently when it is compiled: look for Python state, NumPy "
                "randomness and values kept between calls."
            )


def precision(case: Case) -> Iterator[str]:
    """It runs in float32 and float64, and both give the same log density to the same values."""
    if any(callable(s["value"]) for s in case.trace.values() if "value" in s):
        return  # a site that holds a function has no value to carry over
    z, values = _draw(case, case.key)
    # what is drawn inside the model, not at a site, differs between the two
    drawn = dependent_outputs(
        lambda key: _densities(case._replace(key=key), z, values), 0, case.key
    )
    z, values = jax.device_get((z, values))
    results = []
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype is np.float64):
            wide = lambda x: _cast(x, dtype)  # noqa: E731, B023
            moved = case._replace(args=jax.tree.map(wide, case.args))

            def both(key: jax.Array, at: tuple, moved: Case = moved) -> tuple:
                return values_of(moved)(key), _densities(moved, *at)

            try:
                fresh, each = jax.device_get(
                    jax.jit(both)(case.key, jax.tree.map(wide, (z, values)))
                )
            except Exception as error:
                yield of_error(error, f"the model fails in {dtype.__name__}")
                return
        results.append(each)
        for site, value in fresh.items():
            if not np.isfinite(np.asarray(value, float)).all():
                yield f"site {site!r}: drew a value that is not finite in {dtype.__name__}."
    for site, differs in zip(sorted(results[0]), drawn, strict=True):
        a, b = (float(r[site]) for r in results)
        if not differs and np.isfinite(b) and not abs(a - b) <= 1e-2 * (1 + abs(b)):
            yield (
                f"site {site!r}: log density {a:.6g} in float32, {b:.6g} in float64 for the same "
                "values. Rescale, or work in log space (logits, log1p, logsumexp)."
            )


def _cast(x: Any, dtype: Any) -> Any:
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return jnp.asarray(x, dtype) if isinstance(x, jax.Array) else np.asarray(x, dtype)
