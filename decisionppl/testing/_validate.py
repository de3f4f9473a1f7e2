"""The checks that apply to any model, run together."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from decisionppl import inference as engines
from decisionppl._inference import Inference
from decisionppl._play import as_key, is_latent, play
from decisionppl._roles import role_of
from decisionppl.testing._check import check_count
from decisionppl.testing._decision import probability_matching
from decisionppl.testing._intervention import check_intervention
from decisionppl.testing._model import check_model
from decisionppl.testing._report import Report, report
from decisionppl.testing._sbc import sbc

ENGINES = ("auto", "conjugate", "laplace", "nuts", "svi")


def validate(
    model: Callable,
    *args: Any,
    key: Any = 0,
    inference: Inference | str = "auto",
    contexts: Callable | None = None,
    num_rows: int = 20,
    num_simulations: int = 200,
    level: float = 0.01,
    progress: bool = False,
) -> Report:
    """Run every check that applies to a model and an inference.

    `check_model` always; `check_intervention` if the model has actions; `sbc` if it has latents
    and data; `probability_matching` of Thompson sampling if it has finite actions and rewards.

    Args:
        model: a one-round model.
        *args: its arguments (an example context).
        key: PRNG key or int seed.
        inference: an `Inference`, or the name of an engine: "auto" takes "conjugate" where it
            is exact, else "nuts".
        contexts: `(key, t) -> arguments`, for rows that differ; default `args` in every row.
        num_rows: rows of each simulated data set.
        num_simulations: simulations of `sbc`.
        level: probability that each check fails although nothing is wrong.
        progress: whether `sbc` shows a bar.

    Returns:
        `Report`.

    Raises:
        ValueError: an unknown engine.
        TypeError: an engine that cannot serve the model.

    Example:
        >>> from decisionppl import testing
        >>> from decisionppl.models import bandits
        >>> testing.validate(bandits.gaussian(2)).message
        '4 of 4 checks passed.'
    """
    check_count("num_rows", num_rows)
    if not isinstance(inference, Inference) and inference not in ENGINES:
        raise ValueError(
            f"inference: expected an Inference or one of {', '.join(ENGINES)}, got {inference!r}."
        )
    key = as_key(key)
    model_key, act_key, context_key, sbc_key, match_key = jax.random.split(key, 5)
    rows = _rows(args, contexts, context_key, num_rows)
    if contexts is not None:
        args = jax.tree.map(lambda x: x[0], rows)
    checks: dict[str, Any] = {"model": check_model(model, *args, key=model_key)}
    if not checks["model"].findings[0].passed:
        return report(checks)  # it does not run at all
    trace = play(model, model_key)(*args)
    roles = {role_of(s) for s in trace.values()}
    random = [s for s in trace.values() if s["type"] == "sample"]
    if "action" in roles:
        checks["intervention"] = check_intervention(model, *args, key=act_key, level=level)
    learns = any(map(is_latent, random)) and any(role_of(s) not in (None, "action") for s in random)
    if not learns:
        return report(checks)
    engine = _engine(inference, model, args, num_rows)
    checks["sbc"] = sbc(
        model, engine, rows, key=sbc_key, num_rows=num_rows, num_simulations=num_simulations,
        level=level, progress=progress,
    )  # fmt: skip
    actions = [s for s in random if role_of(s) == "action"]
    finite = all(s["fn"].has_enumerate_support and not s["fn"].batch_shape for s in actions)
    if actions and finite and "reward" in roles:
        checks["probability matching"] = probability_matching(
            model, engine, context=args, key=match_key, level=level
        )
    return report(checks)


def _rows(args: tuple, contexts: Callable | None, key: Any, num_rows: int) -> tuple:
    if contexts is None:
        repeat = lambda x: jnp.broadcast_to(jnp.asarray(x), (num_rows, *jnp.shape(x)))  # noqa: E731
        return jax.tree.map(repeat, args)

    def one(key: Any, t: Any) -> tuple:
        context = contexts(key, t)
        return context if isinstance(context, tuple) else (context,)

    return jax.vmap(one)(jax.random.split(key, num_rows), jnp.arange(num_rows))


def _engine(inference: Inference | str, model: Callable, args: tuple, num_rows: int) -> Inference:
    if isinstance(inference, Inference):
        return inference
    if inference == "auto":
        try:
            return engines.conjugate(model, *args)
        except TypeError:
            inference = "nuts"
    if inference in ("conjugate", "laplace"):
        return getattr(engines, inference)(model, *args)
    if inference == "svi":
        return engines.svi(model, *args, capacity=num_rows)
    return engines.nuts(
        model, *args, capacity=num_rows, num_warmup=200, num_samples=400, num_chains=1
    )
