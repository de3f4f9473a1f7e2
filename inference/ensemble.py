"""Posterior draws by optimisation: an ensemble of fits, each from a prior draw of its own."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

from decisionppl._inference import Inference, Rows
from decisionppl._play import as_key, example_run, play
from decisionppl._roles import role_of
from decisionppl.inference._buffer import (
    Buffer,
    append,
    check_capacity,
    check_count,
    check_room,
    declared_sites,
    empty,
    filled,
    poisoned,
    updater,
)
from decisionppl.inference._likelihood import Latents, latents_of, row_log_likelihood

_PERTURBATIONS = ("noise", "bootstrap", None)


class Belief(NamedTuple):
    """A history, and a fit of each member to it.

    Attributes:
        buffer: the history.
        anchor: dict from latent site to unconstrained prior draws [members, ...].
        position: the same after fitting.
        key: of the perturbations, one for each member.
    """

    buffer: Buffer
    anchor: dict[str, jax.Array]
    position: dict[str, jax.Array]
    key: Any


def ensemble(
    model: Callable,
    *args: Any,
    num_members: int = 10,
    frozen: Iterable[str] = (),
    perturb: str | None = "bootstrap",
    num_steps: int = 200,
    optimizer: optax.GradientTransformation | None = None,
    capacity: int | None = None,
    sites: Iterable[str] | None = None,
) -> Inference:
    r"""Randomised-prior ensembles: each member is fitted to the data from a prior draw of its own.

    Member b draws :math:`z_b^0` from the prior, in unconstrained coordinates, and minimises

    .. math:: -\log p(\text{rows} | z) - \log p(z) + z^T \nabla \log p(z_b^0)

    from there. The last two terms are least at :math:`z_b^0`: where data say nothing a member stays
    at its draw, and where they do all agree. Latents named in `frozen` keep their draw altogether;
    a network plus a frozen network, `net(w, x) + scale * net(v, x)`, is the randomised prior
    function of Ensemble+.

    Perturbed data make the spread of members a posterior's: with `perturb="noise"`, every Normal
    outcome gets noise of its own scale, which is exact for linear models with Gaussian noise and
    prior if fits converge; with "bootstrap", each row counts with an exponential weight of mean
    one. A row keeps its perturbation for good, so members move only as far as new rows move them.

    Every update fits anew, from the prior draws, to the whole history.

    Args:
        model: a one-round model with continuous latents, such as weights of a network.
        *args: example arguments of the model: the context of one row.
        num_members: fits; as many different worlds can be drawn.
        frozen: latent sites that keep their prior draw.
        perturb: "noise", "bootstrap" or None.
        num_steps: optimisation steps per update.
        optimizer: an optax optimizer; default Adam at 0.05 with a cosine schedule down to 0.
        capacity: the largest number of rows. None lets the history grow, one compilation
            per power of two; inside `jit`, `vmap` or `scan` a number is needed. Rows that
            do not fit inside `jit` turn the worlds into NaN.
        sites: the sites that will be logged; default all that can be.

    Returns:
        Inference. Worlds go through the members in random order; more worlds than members repeat
        them.

    Raises:
        TypeError: no latent, a discrete one, or `obs=` in the model; `perturb="noise"` for an
            outcome that is not Normal.
        ValueError: a frozen site that is no latent, or a bad setting; from `update`, rows that do
            not fit, or fits that are not finite.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model():
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     dp.reward("y", dist.Normal(mu, 1.0))
        >>> engine = dp.inference.ensemble(model, num_members=500, perturb="noise")
        >>> belief = engine.update(1, engine.init(0), dp.observe(model, sites={"y": [2.0, 4.0]}))
        >>> draws = engine.sample(2, belief, 500)["mu"]      # exactly, mean 2 and variance 1/3
        >>> bool(abs(draws.mean() - 2) < 0.15), bool(abs(draws.var() - 1 / 3) < 0.1)
        (True, True)

    References:
        Osband, Aslanides and Cassirer, arXiv 1806.03335 (randomised prior functions); Pearce,
        Leibfried and Brintrup, arXiv 1810.05546 (anchors); Dwaracherla et al., arXiv 2206.03633
        (Ensemble+); Newton and Raftery (1994) for the weighted likelihood bootstrap.
    """
    check_count("num_members", num_members)
    check_count("num_steps", num_steps)
    if perturb not in _PERTURBATIONS:
        raise ValueError(f"perturb: expected one of {_PERTURBATIONS}, got {perturb!r}.")
    start_capacity = check_capacity(capacity)
    latents = latents_of(model, args)
    logged = declared_sites(latents, sites)
    frozen = _check_frozen(frozen, latents)
    if perturb == "noise":
        _check_normal(latents, logged)
    if optimizer is None:
        optimizer = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
    fit = _fitter(latents, frozen, perturb, num_steps, optimizer)

    @jax.jit
    def prior(key: jax.Array) -> Belief:
        draw_key, key = jax.random.split(key)
        anchor = jax.vmap(latents.draw)(jax.random.split(draw_key, num_members))
        buffer = empty(latents.args, logged, start_capacity)
        return Belief(buffer, anchor, anchor, jax.random.split(key, num_members))

    def refit(key: jax.Array, belief: Belief) -> Belief:
        rows = filled(belief.buffer)
        position = jax.vmap(fit, (0, 0, None))(belief.key, belief.anchor, rows)
        return belief._replace(position=position)

    @jax.jit
    def append_and_fit(key: jax.Array, belief: Belief, rows: Rows) -> Belief:
        return refit(key, belief._replace(buffer=append(belief.buffer, rows)))

    def eager(key: jax.Array, belief: Belief, rows: Rows) -> Belief:
        belief = append_and_fit(key, belief, rows)
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(belief.position)):
            raise ValueError(
                "fits are not finite: the rows are impossible under the model, or the steps are "
                "too long. Check the supports, or give an optimizer with a lower rate."
            )
        return belief

    @partial(jax.jit, static_argnums=2)
    def drawn(key: jax.Array, belief: Belief, num_worlds: int) -> dict[str, jax.Array]:
        order = jax.random.permutation(key, num_members)
        chosen = jnp.resize(order, (num_worlds,))
        picked = jax.tree.map(lambda x: x[chosen], belief.position)
        return poisoned(belief.buffer, jax.vmap(latents.constrain)(picked))

    def sample(key: Any, belief: Belief, num_worlds: int) -> dict[str, jax.Array]:
        check_room(belief.buffer)
        return drawn(as_key(key), belief, check_count("num_worlds", num_worlds))

    return Inference(lambda key: prior(as_key(key)), updater(refit, capacity, eager), sample)


def _fitter(
    latents: Latents, frozen: frozenset[str], perturb: str | None, num_steps: int,
    optimizer: optax.GradientTransformation,
) -> Callable:  # fmt: skip
    """`(key, anchor, rows) -> position` of one member."""
    row = row_log_likelihood(latents.model)

    def fit(key: jax.Array, anchor: dict[str, jax.Array], rows: Rows) -> dict[str, jax.Array]:
        held = {n: v for n, v in anchor.items() if n in frozen}
        free = {n: v for n, v in anchor.items() if n not in frozen}
        # by place in the history: the perturbation of a row does not change with what follows
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(rows.mask.shape[0]))
        weights = jnp.ones(rows.mask.shape[0])
        sites = rows.sites
        if perturb == "bootstrap":
            weights = jax.vmap(jax.random.exponential)(keys)
        elif perturb == "noise":
            world = latents.constrain(anchor)
            noisy = lambda k, args, sites: _noisy(latents.model, k, world, args, sites)  # noqa: E731
            sites = jax.vmap(noisy)(keys, rows.args, rows.sites)
        tilt = jax.grad(latents.log_prior)(anchor)

        def loss(free: dict[str, jax.Array]) -> jax.Array:
            z = {**held, **free}
            world = latents.constrain(z)
            each = jax.vmap(row, (None, 0, 0))(world, rows.args, sites)
            fitted = jnp.sum(jnp.where(rows.mask, weights * each, 0.0))
            pull = sum(jnp.vdot(tilt[n], free[n]) for n in free)
            return pull - latents.log_prior(z) - fitted

        def step(state: tuple, _: Any) -> tuple:
            free, memory = state
            change, memory = optimizer.update(jax.grad(loss)(free), memory, free)
            return (optax.apply_updates(free, change), memory), None

        start = (free, optimizer.init(free))
        (free, _), _ = jax.lax.scan(step, start, None, length=num_steps)
        return {n: free.get(n, anchor[n]) for n in anchor}

    return fit


def _noisy(
    model: Callable, key: jax.Array, world: Mapping[str, Any], args: tuple, sites: Mapping[str, Any]
) -> dict[str, Any]:
    """A row with its outcomes perturbed by noise of the scale that the model gives them."""
    trace = play(model, jax.random.key(0), world=world, data=sites)(*args)
    found = dict(sites)
    for i, name in enumerate(sorted(sites)):
        if role_of(trace[name]) not in ("action", "context"):
            law = trace[name]["fn"]
            noise = law.sample(jax.random.fold_in(key, i)) - law.mean
            found[name] = sites[name] + noise
    return found


def _check_frozen(frozen: Iterable[str], latents: Latents) -> frozenset[str]:
    names = frozenset([frozen] if isinstance(frozen, str) else frozen)
    unknown = sorted(names - set(latents.prototype))
    if unknown:
        raise ValueError(
            f"frozen names {unknown}, which are no latent sites; the model has "
            f"{sorted(latents.prototype)}."
        )
    if names == set(latents.prototype):
        raise ValueError("frozen names every latent site, so that nothing is left to be fitted.")
    return names


def _check_normal(latents: Latents, logged: Mapping[str, Any]) -> None:
    trace = example_run(latents.model, latents.args)
    for name in logged:
        law: Any = trace[name]["fn"]
        while isinstance(law, dist.Independent | dist.ExpandedDistribution):
            law = law.base_dist
        if role_of(trace[name]) not in ("action", "context") and not isinstance(law, dist.Normal):
            raise TypeError(
                f'site {name!r} is {type(law).__name__}: perturb="noise" needs Normal outcomes. '
                'Use perturb="bootstrap".'
            )
