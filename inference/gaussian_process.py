r"""Exact beliefs about unknown functions, and about the hyperparameters of their laws."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from decisionppl._gaussian_process import check_drawn
from decisionppl._inference import Inference, Rows, Surrogate
from decisionppl._play import as_key, example_run
from decisionppl._roles import role_of
from decisionppl._space import as_actions
from decisionppl._structure import depends
from decisionppl.inference import _surrogate as gp
from decisionppl.inference._buffer import (
    Buffer,
    append,
    check_capacity,
    check_count,
    check_room,
    declared_sites,
    empty,
    filled,
    grown,
    is_traced,
    poisoned,
    updater,
)
from decisionppl.inference._functions import (
    function_sites,
    held,
    observation,
    processes,
    worth,
)
from decisionppl.inference._hyperparameters import about_modes, chains, modes, nothing
from decisionppl.inference._likelihood import Latents, latents_of
from decisionppl.inference._marginal import append as append_rows
from decisionppl.inference._marginal import differentiable_cholesky


class Belief(NamedTuple):
    """A history, the hyperparameters given it, and the functions given both.

    Attributes:
        buffer: the history.
        position: dict from hyperparameter site to unconstrained values [draws, ...].
        root: [draws, n, n], Cholesky factor of the covariance of all logged values.
        weights: [draws, n], its inverse times what was not expected.
        state: `Fit` of the last search for the mode, `Weighing` of the last draws about it, or
            `(Chains, Stats)` of the last sampling.
    """

    buffer: Buffer
    position: dict[str, jax.Array]
    root: jax.Array
    weights: jax.Array
    state: Any


class _Model(NamedTuple):
    """A model analysed."""

    latents: Latents
    parts: gp.Parts
    logged: dict[str, Any]
    actions: dict[str, Any]
    contexts: dict[str, Any]
    relevant: dict[bool, tuple[str, ...]]


def gaussian_process(
    model: Callable,
    *args: Any,
    fit: str = "map",
    capacity: int | None = None,
    num_restarts: int = 4,
    max_steps: int = 100,
    num_warmup: int = 256,
    num_samples: int = 128,
    num_draws: int = 16,
    dense_mass: bool = True,
    max_tree_depth: int = 6,
    sites: Iterable[str] | None = None,
) -> Inference:
    r"""Exact beliefs about a model's Gaussian processes.

    The model calls the values of `GaussianProcess` sites. Each logged outcome must be Normal with
    a location that is linear in what those calls return: a value, a difference, an average over
    points. What was observed where is read off the model itself, run with a probe in place of
    each function. Given hyperparameters (all other latents), functions are conditioned exactly;
    their utilities at any actions are jointly Gaussian.

    One compilation serves all histories of up to the same power of two of rows.

    Args:
        model: a one-round model.
        *args: example arguments of the model: the context of one row.
        fit: "map": hyperparameters at the mode of their posterior, in unconstrained coordinates
            (`numpyro.distributions.biject_to`), by quasi-Newton from `num_restarts` starts, the
            first where the last fit ended; "laplace": draws from a Student's t with the place
            and the curvature of that mode, resampled by importance weights; "nuts": draws from
            their posterior by Hamiltonian Monte Carlo.
        capacity: the largest number of rows. None lets the history grow, one compilation
            per power of two; inside `jit`, `vmap` or `scan` a number is needed. Rows that
            do not fit inside `jit` turn worlds into NaN.
        num_restarts: starts of the search, with "map" and "laplace".
        max_steps: its largest number of steps.
        num_warmup, num_samples: transitions of the one chain with `fit="nuts"`.
        num_draws: draws that are kept with "laplace" and "nuts"; predictions average over them.
        dense_mass, max_tree_depth: as for `inference.nuts`.
        sites: the sites that will be logged; default all that can be.

    Returns:
        Inference. Worlds hold the hyperparameters and, for each Gaussian process, a `SamplePath`
        drawn from its posterior. `predict` is the joint law of utilities over actions with
        `fit="map"` (averaged over draws it is no Gaussian, and None); `surrogate` answers
        acquisition rules with any.

    Raises:
        TypeError: no Gaussian process in the model, an outcome that is not Normal, a discrete
            hyperparameter, or `obs=`.
        ValueError: an outcome that is not linear in the functions' values, a hyperparameter
            whose prior differs between rows, or a bad setting.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model():
        ...     scale = numpyro.sample("scale", dist.LogNormal(-1.0, 0.5))
        ...     f = numpyro.sample("f", dp.GaussianProcess(dp.kernels.Matern52(scale)))
        ...     x = dp.action("x", dist.Uniform(0, 1))
        ...     dp.reward("y", dist.Normal(f(x), 0.1))
        >>> engine = dp.inference.gaussian_process(model)
        >>> rows = dp.observe(model, sites={"x": [0.0, 0.5, 1.0], "y": [0.0, 1.0, 0.0]})
        >>> belief = engine.update(1, engine.init(0), rows)
        >>> law = engine.predict(belief, {"x": [0.5, 0.9]})
        >>> bool(law.mean[0] > 0.9), law.covariance_matrix.shape
        (True, (2, 2))

    References:
        Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), chapters 2 and 5;
        Wilson et al., arXiv 2002.09309 (functions drawn by conditioning a prior draw).
    """
    if fit not in ("map", "laplace", "nuts"):
        raise ValueError(f'fit: expected "map", "laplace" or "nuts", got {fit!r}.')
    for name, value in (
        ("num_restarts", num_restarts), ("max_steps", max_steps), ("num_warmup", num_warmup),
        ("num_samples", num_samples), ("num_draws", num_draws),
        ("max_tree_depth", max_tree_depth),
    ):  # fmt: skip
        check_count(name, value)
    if fit == "nuts" and num_draws > num_samples:
        raise ValueError(f"num_draws {num_draws} is more than num_samples {num_samples}.")
    start_capacity = check_capacity(capacity)
    known = _analyse(model, args, sites)
    marginal = partial(gp.log_marginal, known.parts)
    if not known.latents.prototype:
        search = nothing()
    elif fit == "map":
        search = modes(known.latents, marginal, num_restarts, max_steps)
    elif fit == "laplace":
        search = about_modes(known.latents, marginal, num_restarts, max_steps, num_draws)
    else:
        settings = {
            "num_warmup": num_warmup, "dense_mass": dense_mass, "target_accept_prob": 0.8,
            "max_tree_depth": max_tree_depth, "trajectory_length": None,
        }  # fmt: skip
        search = chains(known.latents, marginal, settings, num_samples, num_draws)

    @jax.jit
    def prior(key: jax.Array) -> Belief:
        buffer = empty(known.latents.args, known.logged, start_capacity)
        position, state = search.start(key)
        return _factorise(known, buffer, position, state)

    def refit(key: jax.Array, belief: Belief) -> Belief:
        position, state = search.fit(key, belief)
        return _factorise(known, belief.buffer, position, state)

    @jax.jit
    def append_and_fit(key: jax.Array, belief: Belief, rows: Rows) -> Belief:
        return refit(key, belief._replace(buffer=append(belief.buffer, rows)))

    def eager(key: jax.Array, belief: Belief, rows: Rows) -> Belief:
        # without the factor, whose size would lag behind that of a history that has grown
        bare = belief._replace(root=None, weights=None)
        fitted = append_and_fit(key, bare, rows)
        if np.isnan(np.asarray(fitted.weights)).any():
            _check_values(fitted.buffer)
            raise ValueError(
                "the covariance of the logged values has no Cholesky factor at any "
                "hyperparameters that were tried: give the outcome more noise, or the "
                "hyperparameters a prior that keeps kernels from being singular."
            )
        return fitted

    @partial(jax.jit, static_argnums=2)
    def drawn(key: jax.Array, belief: Belief, num_worlds: int) -> dict[str, Any]:
        def world(key: jax.Array) -> dict[str, Any]:
            pick_key, function_key = jax.random.split(key)
            count = belief.weights.shape[0]
            i = jax.random.randint(pick_key, (), 0, count)
            view = _view(known, belief, i)
            return {**view.world, **gp.drawn_functions(known.parts, view, function_key)}

        return poisoned(belief.buffer, jax.vmap(world)(jax.random.split(key, num_worlds)))

    def sample(key: Any, belief: Belief, num_worlds: int) -> dict[str, Any]:
        check_room(belief.buffer)
        worlds = drawn(as_key(key), belief, check_count("num_worlds", num_worlds))
        # in a compiled decision, worlds may be drawn for what they cost alone
        return worlds if is_traced(belief.buffer.count) else check_drawn(worlds)

    surrogate = _surrogate(known)
    predict = None
    if fit == "map" and known.parts.worth:
        predict = _predictor(known)
    return Inference(
        lambda key: prior(as_key(key)), updater(refit, capacity, eager), sample, predict, surrogate
    )


def _analyse(model: Callable, args: tuple, sites: Iterable[str] | None) -> _Model:
    function_sites(model, args)
    latents = latents_of(held(model), args, optional=True)
    logged = declared_sites(latents, sites)
    world = jax.jit(latents.constrain)(latents.prototype)
    trace = example_run(latents.model, args)
    roles = {n: role_of(s) for n, s in trace.items()}
    actions = {n: v for n, v in latents.sites.items() if roles[n] == "action"}
    contexts = {n: v for n, v in latents.sites.items() if roles[n] == "context"}
    if not any(roles[n] in ("outcome", "reward", "cost") for n in logged):
        raise ValueError(
            f"nothing is observed: the sites to be logged are {sorted(logged)}. Declare what is "
            "seen with dp.outcome or dp.reward and a Normal law."
        )
    example = jax.tree.map(jnp.asarray, args)
    seen_layout, seen = observation(model, (world, example, logged))
    found: dict[bool, Any] = {}
    if actions and "reward" in roles.values():
        with contextlib.suppress(ValueError):  # else decided by drawn functions
            given = (world, example, actions, contexts)
            found = {net: worth(model, given, net=net) for net in (True, False)}
    parts = gp.Parts(lambda world: processes(model, world, example), seen_layout, seen, found)
    return _Model(latents, parts, logged, actions, contexts, _relevant(found, world, example,
                  actions, contexts))  # fmt: skip


def _relevant(
    found: dict[bool, Any], world: Any, args: tuple, actions: Mapping[str, Any], data: Any
) -> dict[bool, tuple[str, ...]]:
    """Action sites that utilities depend on, of rewards less costs and of rewards alone."""

    relevant = {}
    for net, (_, value) in found.items():

        def parts(*values: Any, value: Callable = value) -> Any:
            return value(world, args, dict(zip(actions, values, strict=True)), data)

        relevant[net] = tuple(
            n for i, n in enumerate(actions) if depends(parts, i, *actions.values())
        )
    return relevant


def _world(known: _Model, position: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return known.latents.constrain(position) if position else {}


def _factorise(known: _Model, buffer: Buffer, position: Any, state: Any) -> Belief:
    rows = filled(buffer)
    root, weights = jax.vmap(lambda _, z: gp.factorised(known.parts, _world(known, z), rows))(
        jnp.arange(_count(position)), position
    )
    return Belief(buffer, position, root, weights, state)


def _count(position: Mapping[str, jax.Array]) -> int:
    """Number of hyperparameter draws; one where there are no hyperparameters."""
    leaves = jax.tree.leaves(position)
    return leaves[0].shape[0] if leaves else 1


def _view(known: _Model, belief: Belief, i: Any) -> gp.View:
    at = lambda x: x[i]  # noqa: E731
    world = _world(known, jax.tree.map(at, belief.position))
    return gp.view_of(known.parts, world, filled(belief.buffer), belief.root[i], belief.weights[i])


def _predictor(known: _Model) -> Callable:
    """Joint law of the utilities at the one value of the hyperparameters."""
    model, args = known.latents.model, known.latents.args

    def predict(
        belief: Belief, actions: Any, args: tuple = args, data: Any = None
    ) -> dist.Distribution:
        actions = as_actions(model, actions, *args)
        view = _view(known, belief, 0)
        placed = gp.worths(known.parts, view, args, actions, data or known.contexts)
        covariance = gp.cross_covariance(view, placed, placed)[:, 0, :, 0]
        eps = jnp.finfo(covariance.dtype).eps
        rounding = 4 * covariance.shape[0] * eps * jnp.mean(jnp.diagonal(covariance))
        tiny = jnp.finfo(covariance.dtype).tiny / eps
        covariance += jnp.maximum(rounding, tiny) * jnp.eye(covariance.shape[0])
        return dist.MultivariateNormal(placed.mean[:, 0], covariance)

    return predict


def _surrogate(known: _Model) -> Surrogate:
    parts = known.parts

    def view(belief: Belief) -> gp.View:
        return jax.vmap(lambda i: _view(known, belief, i))(jnp.arange(belief.weights.shape[0]))

    def data_of(data: Any) -> Any:
        return data or known.contexts

    def utility(
        view: gp.View, actions: Any, args: tuple, data: Any, net: bool = True
    ) -> dist.Normal:
        _check_worth(known)

        def one(view: gp.View) -> tuple:
            placed = gp.worths(parts, view, args, actions, data_of(data), net)
            return placed.mean[:, 0], jnp.sqrt(gp.variance(view, placed))

        return dist.Normal(*jax.vmap(one)(view))

    def preposterior(
        view: gp.View, actions: Any, targets: Any, args: tuple, data: Any, net: bool = True
    ) -> Any:
        _check_worth(known)
        return jax.vmap(
            lambda v: _preposterior(known, v, actions, targets, args, data_of(data), net)
        )(view)

    imagined = jax.jit(partial(_fantasise, known))

    def fantasise(belief: Belief, action: Any, args: tuple = (), data: Any = None) -> Belief:
        if not is_traced(belief.buffer.count) and int(belief.buffer.count) >= (
            belief.buffer.capacity
        ):
            belief = _grown(belief)
        return imagined(belief, action, args, data_of(data))

    def visited(belief: Belief) -> tuple:
        rows = filled(belief.buffer)
        return {n: rows.sites[n] for n in known.actions}, rows.mask

    def hyperparameters(belief: Belief) -> dict[str, jax.Array]:
        if not belief.position:
            return {}
        return jax.vmap(known.latents.constrain)(belief.position)

    @jax.jit
    def loo(belief: Belief) -> dist.Normal:
        mean, sd = jax.vmap(gp.leave_one_out)(view(belief))
        keep = belief.buffer.rows.mask[None, :, None]
        return dist.Normal(jnp.where(keep, mean, jnp.nan), jnp.where(keep, sd, jnp.nan))

    def outcomes(view: gp.View, actions: Any, args: tuple = (), data: Any = None) -> tuple:
        def one(view: gp.View) -> tuple:
            seen, noise = gp.outcomes(parts, view, args, actions, data_of(data), known.logged)
            if noise.shape[1] != 1:
                raise ValueError(
                    f"an action is followed by {noise.shape[1]} logged numbers, expected one: the "
                    "joint law of outcomes is for models with one scalar outcome."
                )
            covariance = gp.cross_covariance(view, seen, seen)[:, 0, :, 0]
            return seen.mean[:, 0], covariance, noise[:, 0]

        return jax.vmap(one)(view)

    return Surrogate(
        view, utility, preposterior, fantasise, visited, hyperparameters, loo, known.relevant,
        outcomes,
    )  # fmt: skip


def _check_values(buffer: Buffer) -> None:
    """Refuse logged values that are not numbers."""
    for name, values in buffer.rows.sites.items():
        rows = np.asarray(values)[np.asarray(buffer.rows.mask)]
        bad = ~np.isfinite(rows.reshape(len(rows), -1).astype(float)).all(1)
        if bad.any():
            raise ValueError(
                f"site {name!r}: {rows[bad][0]} in row {int(np.argmax(bad))} of the history, "
                f"expected finite values ({int(bad.sum())} rows in all). Leave those rows out, or "
                "set their mask to False."
            )


def _check_worth(known: _Model) -> None:
    if not known.parts.worth:
        raise ValueError(
            "the utility (rewards - costs) is not linear in the functions, so rules that need its "
            "Gaussian law do not apply. Use rules.thompson or another rule of drawn worlds, or "
            "write the reward as the function itself."
        )


def _preposterior(
    known: _Model, view: gp.View, actions: Any, targets: Any, args: tuple, data: Any, net: bool
) -> Any:
    from decisionppl.rules import Preposterior

    parts = known.parts
    seen, noise = gp.outcomes(parts, view, args, actions, data, known.logged)
    own = gp.worths(parts, view, args, actions, data, net)
    goal = gp.worths(parts, view, args, targets, data, net)
    width = noise.shape[1]
    blocks = gp.block_covariances(view, seen)
    blocks = blocks + jax.vmap(jnp.diag)(noise**2)
    cross = gp.cross_covariance(view, goal, seen)[:, 0]  # [targets, actions, outcomes]
    cross = jnp.moveaxis(cross, 0, -1)  # [actions, outcomes, targets]
    mine = _own_covariance(view, own, seen)[..., None]  # [actions, outcomes, 1]
    if width == 1:
        root = jnp.sqrt(blocks)
        change, own_change = cross / root, mine / root
    else:
        roots = jax.vmap(differentiable_cholesky)(blocks)
        solve = lambda r, c: jax.scipy.linalg.solve_triangular(r, c, lower=True)  # noqa: E731
        change, own_change = jax.vmap(solve)(roots, cross), jax.vmap(solve)(roots, mine)
    joint = gp.cross_covariance(view, goal, goal)[:, 0, :, 0]
    return Preposterior(
        goal.mean[:, 0], joint, change, own.mean[:, 0], jnp.sqrt(gp.variance(view, own)),
        own_change[..., 0],
    )  # fmt: skip


def _own_covariance(view: gp.View, own: gp.Family, seen: gp.Family) -> jax.Array:
    """Covariance of each action's utility with its own outcomes, [actions, outcomes]."""
    count, width = seen.mean.shape
    worth_half = own.half  # [n, actions]
    seen_half = seen.half.reshape(-1, count, width)

    def prior(mine: tuple, theirs: tuple) -> jax.Array:
        first = (own.family[0], jax.tree.map(lambda a: a[None], mine[0]), mine[1][None])
        second = (seen.family[0], jax.tree.map(lambda a: a[None], theirs[0]), theirs[1][None])
        return gp.covariance(view.laws, first, second)[0, 0, 0]

    before = jax.vmap(prior)(
        (tuple(own.family[1]), own.family[2]), (tuple(seen.family[1]), seen.family[2])
    )
    return before - jnp.einsum("na,nao->ao", worth_half, seen_half)


def _grown(belief: Belief) -> Belief:
    """The same belief with twice the room; padding has unit rows."""
    n = belief.weights.shape[-1]
    buffer = grown(belief.buffer, 2 * belief.buffer.capacity)
    root = np.broadcast_to(np.eye(2 * n), (*belief.root.shape[:-2], 2 * n, 2 * n)).copy()
    root[..., :n, :n] = belief.root
    weights = np.pad(np.asarray(belief.weights), [(0, 0), (0, n)])
    return belief._replace(
        buffer=buffer, root=jnp.asarray(root, belief.root.dtype), weights=jnp.asarray(weights)
    )


def _fantasise(known: _Model, belief: Belief, action: Any, args: tuple, data: Any) -> Belief:
    """The belief with one more row, at the expected outcome, by appending to the factor."""
    parts = known.parts
    actions = {n: jnp.asarray(a)[None] for n, a in action.items()}
    width = belief.weights.shape[-1] // belief.buffer.capacity
    count = belief.buffer.count
    where = count * width + jnp.arange(width)

    def one(i: jax.Array) -> tuple:
        view = _view(known, belief, i)
        seen, noise = gp.outcomes(parts, view, args, actions, data, known.logged)
        cross, _ = gp.half_of(parts, view, seen.family)
        prior = gp.covariance(view.laws, seen.family, seen.family)[0, :, 0, :]
        block = prior + jnp.diag(noise[0] ** 2)
        root = append_rows(view.root, cross.T, block, where)
        return root, seen.mean[0]

    roots, means = jax.vmap(one)(jnp.arange(belief.weights.shape[0]))
    # what was expected changes nothing that is expected: its weight is zero
    expected = _split(known, jnp.mean(means, axis=0))
    sites = {n: jnp.asarray(v) for n, v in {**known.logged, **data, **action}.items()}
    sites = {**{n: sites[n] for n in known.logged}, **expected}
    rows = jax.tree.map(lambda x: jnp.asarray(x)[None], Rows(args, sites, True))
    return belief._replace(buffer=append(belief.buffer, rows), root=roots)


def _split(known: _Model, flat: jax.Array) -> dict[str, jax.Array]:
    """Logged outcomes by site from the flat vector that `Seen` holds."""
    trace = example_run(known.latents.model, known.latents.args)
    out, start = {}, 0
    for name, site in trace.items():
        if name in known.logged and role_of(site) not in ("action", "context"):
            like = known.logged[name]
            size = int(np.size(like))
            out[name] = flat[start : start + size].reshape(np.shape(like))
            start += size
    return out
