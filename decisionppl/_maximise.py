"""The action of highest score: candidates over the whole space, then gradients from the best."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from numpyro.distributions import constraints

from decisionppl._minimise import MAX_STEPS, minimise
from decisionppl._space import LARGEST_ENUMERATION

# a mixed space is searched with at most this many times `num_candidates` rows
_MOST_ROWS = 16
_MOST_LANDMARKS = 256
_MOST_CORNERS = 32
_SAME = 0.02  # share of the width within which climbs ended in one place
_SHARPENED = 4  # rows that a sharper score decides between
# searches begin at least this share of the way inside, where gradients see the bounds ahead
_INSIDE = 0.01
# coordinates this near to a bound (share of the width; weight on the simplex) are tried on it
_SNAPS = (0.03, 1e-3, 1e-5, 1e-8, 0.0)

_REAL, _SIMPLEX = type(constraints.real), type(constraints.simplex)
_HALF_LINES = constraints.greater_than, constraints.less_than
_CLOSED = constraints.greater_than_eq, constraints.less_than_eq, type(constraints.nonnegative)


class Maximum(NamedTuple):
    """What `maximise` found.

    Attributes:
        action: dict from site to value, without a leading axis.
        value: its score; NaN if every score was NaN.
    """

    action: dict[str, jax.Array]
    value: jax.Array


class _Smooth(NamedTuple):
    """A continuous site in coordinates without bounds.

    `place` leads from coordinates to a point of the space, `locate` from a point moved slightly
    inside to coordinates; `snap(x, near)` puts what is `near` the boundary onto it.
    """

    place: Callable
    locate: Callable
    snap: Callable
    landmarks: Any  # points of interest [points, ...], or None


def maximise(
    score: Callable[[dict[str, jax.Array]], jax.Array],
    space: Mapping[str, dist.Distribution],
    key: jax.Array,
    *,
    num_candidates: int = 512,
    num_restarts: int = 8,
    starts: Mapping[str, Any] | None = None,
    max_steps: int = MAX_STEPS,
    screen: Callable[[dict[str, jax.Array]], jax.Array] | None = None,
    sharpen: Callable[[dict[str, jax.Array]], Callable] | None = None,
) -> Maximum:
    """Find the action with the highest score in a finite, continuous or mixed space.

    Finite sites are enumerated. Continuous ones are searched from `num_candidates` points: draws
    of the site's law (quasi-random for Uniform), centre and corners of small boxes, vertices,
    edge midpoints and centroid of small simplices. With both kinds, every combination of the
    finite sites meets the same continuous points; where that would exceed 16 `num_candidates`
    rows, they meet fewer points (at least one). Then BFGS climbs from `num_restarts` of the
    rows: the best of each of the best combinations, counting `starts` as one, and others drawn
    with weight 1 / rank, which spreads them over modes whatever the scale of the scores. Finite
    sites stay as they are on the climb. Last, coordinates near a boundary are tried exactly on
    it: optimal vertices and faces of a simplex have weights that are exactly zero.

    Coordinates that are bounded on both sides are searched as a sine, weights as squares over
    their sum: unlike logits these reach the boundary, at a stationary point.

    The value is at least that of every candidate and start. A score of NaN is never chosen.
    Pure given `key`, and works under `jit` and `vmap` with `space` closed over. Each call traces
    `score` three times (once if the space is finite): compile what is called repeatedly.

    Args:
        score: `(action) -> scalar`, traceable, differentiable in the continuous sites.
        space: action site -> its space, a Distribution: the support is searched, the law
            proposes. Finite supports, intervals and boxes, the simplex, half-lines, the real
            line, and `Independent` products of each.
        key: random key: draws candidates, breaks ties.
        num_candidates: continuous candidates.
        num_restarts: how many of them are climbed from.
        starts: further candidates by site, [starts, ...], such as incumbents. Infeasible ones are
            an error, or where values are traced are ignored.
        max_steps: evaluations per climb.
        screen: `(action) -> scalar`, a lower bound of the score that costs less. It ranks all
            candidates; the score is then evaluated for `num_candidates` of them, and the value
            is at least that of these and of every start.
        sharpen: `(actions [few, ...]) -> score`, for scores that are approximated: given where the
            best climbs ended, a score that is more exact there. It is climbed from those ends, and
            decides between them; the value is that of the sharper score. Without effect where
            there is nothing to climb.

    Returns:
        Maximum: the best action and its score.

    Raises:
        ValueError: a support that is not searched, a site with a batch shape, more than 100,000
            combinations, malformed or infeasible starts, a score that is not a scalar.
        TypeError: a space that is not a mapping from names to Distributions.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> space = {"mixture": dist.Dirichlet(jnp.ones(3))}
        >>> score = lambda action: action["mixture"] @ jnp.array([1.0, 3.0, 2.0])
        >>> maximise(score, space, jax.random.key(0)).action["mixture"].tolist()
        [0.0, 1.0, 0.0]

    References:
        Owen, Monte Carlo Theory, Methods and Examples, chapter 15 (scrambled Halton sequences).
    """
    check_space(space)
    for setting, number in (("num_candidates", num_candidates), ("num_restarts", num_restarts)):
        if number < 1:
            raise ValueError(f"{setting}: expected at least 1, got {number}.")
    # in one order, so that the order of `space` changes nothing
    names = sorted(space)
    finite = {n: v for n in names if (v := elements(n, space[n])) is not None}
    smooth = {n: _smooth(n, space[n]) for n in names if n not in finite}
    combinations = product(finite)
    given, feasible = _check_starts(starts, space, finite)

    draw_key, choice_key, tie_key = jax.random.split(key, 3)
    shared = _shared(smooth, space, draw_key, num_candidates, combinations)
    rows, grid = _cross(finite, shared, combinations)
    rows = {n: _append(rows[n], given[n], feasible) for n in names}
    values = _screened(score, screen, rows, len(feasible), num_candidates)
    first = _best_first(tie_key, values)
    best = _take(rows, first[0]), values[first[0]]
    if smooth:
        chosen = _restarts(choice_key, values, first, grid, num_restarts)
        ends = _ends(score, smooth, _take(rows, chosen), max_steps)
        if sharpen is not None:
            few = _leaders(score, ends, best)
            score = sharpen(few)
            ends = _ends(score, smooth, few, max_steps)
            values = _evaluate(score, few)
            top = jnp.argmax(jnp.where(jnp.isnan(values), -jnp.inf, values))
            best = _take(few, top), values[top]
        best = _snapped(score, smooth, ends, best)
    return Maximum({n: best[0][n] for n in space}, best[1])


def check_space(space: Any) -> None:
    """Refuse what is not a mapping from sites to laws of one event each."""
    if not isinstance(space, Mapping) or not space:
        raise TypeError(
            "space: expected a mapping from action sites to Distributions, such as "
            f"{{'dose': dist.Uniform(0, 1)}}; got {space!r}."
        )
    for name, law in space.items():
        if not isinstance(law, dist.Distribution):
            raise TypeError(
                f"action site {name!r}: expected a NumPyro Distribution, got "
                f"{type(law).__name__}. Give a space such as dist.Uniform(0, 1)."
            )
        if law.batch_shape:
            raise ValueError(
                f"action site {name!r} has batch shape {law.batch_shape}; one action is one "
                f"event. Make it a vector: .to_event({len(law.batch_shape)})."
            )


def _core(space: Any) -> Any:
    """The law inside `to_event` and `mask`."""
    while isinstance(space, dist.Independent | dist.MaskedDistribution):
        space = space.base_dist
    return space


def elements(name: str, space: Any) -> jax.Array | None:
    """All values of a finite site, [elements, ...]; None for other sites."""
    core = _core(space)
    if isinstance(core, dist.Delta):
        return jnp.broadcast_to(core.v, space.event_shape)[None]
    if not core.has_enumerate_support:
        return None
    with jax.ensure_compile_time_eval():
        values = core.enumerate_support(expand=False)
    values = values.reshape(len(values), *core.event_shape)
    copies = math.prod(core.batch_shape)
    _check_count([name], len(values) ** copies)
    index = np.indices((len(values),) * copies).reshape(copies, -1).T
    return values[index].reshape(len(index), *space.event_shape)


def product(finite: Mapping[str, jax.Array]) -> int:
    """Number of combinations of values by site, refused if enormous."""
    count = math.prod(len(v) for v in finite.values())
    _check_count(list(finite), count)
    return count


def _check_count(names: list[str], count: int) -> None:
    if count > LARGEST_ENUMERATION:
        raise ValueError(
            f"the finite action sites {names} have {count} combinations, more than "
            f"{LARGEST_ENUMERATION}. Score candidate actions of your own instead."
        )


def _smooth(name: str, space: Any) -> _Smooth:
    support = space.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if isinstance(support, constraints.open_interval):
        return _transformed(support)
    if isinstance(support, constraints.interval):
        return _box(support, space.event_shape)
    if isinstance(support, _SIMPLEX):
        return _simplex(space.event_shape)
    if isinstance(support, (_REAL, *_HALF_LINES)):
        return _transformed(support)
    raise ValueError(
        f"action site {name!r}: {type(_core(space)).__name__} has support {support}, which is not "
        "searched. Expected a finite set, an interval, a simplex, a half-line or the real line, "
        "or products of one by .to_event(). For whole numbers use dist.DiscreteUniform(low, high)."
    )


def _box(support: Any, shape: tuple[int, ...]) -> _Smooth:
    lower = jnp.broadcast_to(jnp.asarray(support.lower_bound, float), shape)
    upper = jnp.broadcast_to(jnp.asarray(support.upper_bound, float), shape)
    width = upper - lower

    def place(z: jax.Array) -> jax.Array:
        return jnp.clip(lower + width * (0.5 + 0.5 * jnp.sin(z)), lower, upper)

    def locate(x: jax.Array) -> jax.Array:
        share = jnp.clip((x - lower) / width, _INSIDE, 1.0 - _INSIDE)
        return jnp.arcsin(2.0 * share - 1.0)

    def snap(x: jax.Array, near: float) -> jax.Array:
        x = jnp.where(x - lower <= near * width, lower, x)
        return jnp.where(upper - x <= near * width, upper, x)

    size = math.prod(shape)
    sides = np.full((1, *shape), 0.5)
    if 2**size <= _MOST_CORNERS:
        corners = np.indices((2,) * size).reshape(size, -1).T.reshape(-1, *shape)
        sides = np.concatenate([sides, corners])
    return _Smooth(place, locate, snap, lower + sides * width)


def _simplex(shape: tuple[int, ...]) -> _Smooth:
    size = shape[-1]

    def place(z: jax.Array) -> jax.Array:
        return z**2 / jnp.sum(z**2, axis=-1, keepdims=True)

    def locate(x: jax.Array) -> jax.Array:
        return jnp.sqrt((1.0 - _INSIDE) * x + _INSIDE / size)

    def snap(x: jax.Array, near: float) -> jax.Array:
        # the largest stays, however many there are
        kept = jnp.where((x > near) | (x == x.max(-1, keepdims=True)), x, 0.0)
        return kept / jnp.sum(kept, axis=-1, keepdims=True)

    eye = np.eye(size)
    points = [np.full((1, size), 1.0 / size), eye]
    if 1 + size * (size + 1) // 2 <= _MOST_LANDMARKS:
        one, other = np.triu_indices(size, 1)
        points.append(0.5 * (eye[one] + eye[other]))
    marks = np.concatenate(points) if 1 + size <= _MOST_LANDMARKS else points[0]
    marks = marks.reshape(-1, *(1,) * (len(shape) - 1), size)
    marks = np.broadcast_to(marks, (len(marks), *shape))
    return _Smooth(place, locate, snap, jnp.asarray(marks, float))


def _transformed(support: Any) -> _Smooth:
    """Through `biject_to`; only a bound that belongs to the support is snapped to."""
    place = dist.biject_to(support)
    closed = isinstance(support, _CLOSED)
    below = isinstance(support, constraints.less_than)

    def locate(x: jax.Array) -> jax.Array:
        z = place.inv(x)
        # starts on the bound itself
        return jnp.where(jnp.isfinite(z), z, math.log(_INSIDE))

    def snap(x: jax.Array, near: float) -> jax.Array:
        if not closed:
            return x
        bound = support.upper_bound if below else support.lower_bound
        return jnp.where(jnp.abs(x - bound) <= near, bound, x)

    return _Smooth(place, locate, snap, None)


def _shared(smooth: Mapping[str, _Smooth], space: Any, key: jax.Array, count: int, combos: int):
    """Continuous candidates by site, [candidates, ...]: landmarks first, then draws."""
    if not smooth:
        return {}
    count = max(1, min(count, _MOST_ROWS * count // combos))
    even_key, *keys = jax.random.split(key, 1 + len(smooth))
    shared = {n: _draw(n, space[n], k, count) for n, k in zip(smooth, keys, strict=True)}
    if uniform := {n: space[n] for n in smooth if _is_uniform(space[n])}:
        shared |= _even(even_key, uniform, count)
    marks = {n: s.landmarks for n, s in smooth.items() if s.landmarks is not None}
    index = _landmark_indices([len(m) for m in marks.values()])[:, : max(1, count // 2)]
    for (name, mark), i in zip(marks.items(), index, strict=True):
        draws = shared[name]
        shared[name] = jnp.concatenate([mark[i].astype(draws.dtype), draws[len(i) :]])
    return shared


def _draw(name: str, law: Any, key: jax.Array, count: int) -> jax.Array:
    try:
        return law.sample(key, (count,))
    except NotImplementedError as error:
        raise ValueError(
            f"action site {name!r}: {type(_core(law)).__name__} cannot be drawn from, so it "
            "proposes no candidates. Give a proper law with the same support."
        ) from error


def _is_uniform(law: Any) -> bool:
    core = _core(law)
    while isinstance(core, dist.ExpandedDistribution):
        core = core.base_dist
    return isinstance(core, dist.Uniform)


def _even(key: jax.Array, laws: Mapping[str, Any], count: int) -> dict[str, jax.Array]:
    """Quasi-random draws of Uniform sites, jointly."""
    sizes = [math.prod(law.event_shape) for law in laws.values()]
    shares = _halton(key, count, sum(sizes))
    points, end = {}, np.cumsum([0, *sizes])
    for (name, law), i, j in zip(laws.items(), end, end[1:], strict=False):
        interval = _core(law).support
        lower, upper = interval.lower_bound, interval.upper_bound
        share = shares[:, i:j].reshape(count, *law.event_shape)
        points[name] = lower + (upper - lower) * share
    return points


def _landmark_indices(sizes: list[int]) -> np.ndarray:
    """Which landmark of every site goes together, [sites, rows]: all pairs if they are few."""
    if math.prod(sizes) <= _MOST_LANDMARKS:
        return np.indices(sizes).reshape(len(sizes), math.prod(sizes))
    return np.stack([np.arange(max(sizes)) % size for size in sizes])


def _unexpanded(space: Any) -> Any:
    core = _core(space)
    while isinstance(core, dist.ExpandedDistribution):
        core = core.base_dist
    return core


def _halton(key: jax.Array, count: int, size: int) -> jax.Array:
    """Points [count, size] that fill the unit cube evenly: a scrambled Halton sequence.

    The digits are permuted once and for all: in high dimensions plain ones line up. The key only
    shifts the points, modulo 1.
    """
    rng = np.random.default_rng(0)
    points = [_radical_inverse(count, prime, rng) for prime in _primes(size)]
    shift = jax.random.uniform(key, (size,))
    return (jnp.asarray(np.stack(points, axis=1), float) + shift) % 1.0


def _radical_inverse(count: int, base: int, rng: np.random.Generator) -> np.ndarray:
    numbers, value, scale = np.arange(count), np.zeros(count), 1.0
    while numbers.any():
        scale /= base
        value += scale * rng.permutation(base)[numbers % base]
        numbers //= base
    return value


def _primes(count: int) -> list[int]:
    found: list[int] = []
    number = 2
    while len(found) < count:
        if all(number % prime for prime in found):
            found.append(number)
        number += 1
    return found


def _cross(finite: Mapping[str, jax.Array], shared: Mapping[str, jax.Array], combos: int):
    """Every combination with every shared candidate: rows by site, and (combos, shared)."""
    count = len(next(iter(shared.values()))) if shared else 1
    index = np.indices([len(v) for v in finite.values()]).reshape(len(finite), combos)
    rows = {n: v[np.repeat(i, count)] for (n, v), i in zip(finite.items(), index, strict=True)}
    for name, x in shared.items():
        rows[name] = jnp.tile(x, (combos, *(1,) * (x.ndim - 1)))
    return rows, (combos, count)


def _check_starts(starts: Any, space: Mapping[str, Any], finite: Mapping[str, jax.Array]):
    """Starts by site [starts, ...], and which of them lie in the space, [starts]."""
    if starts is None:
        shapes = {n: (0, *law.event_shape) for n, law in space.items()}
        return {n: jnp.zeros(shape) for n, shape in shapes.items()}, jnp.zeros(0, bool)
    if set(starts) != set(space):
        raise ValueError(f"starts names {sorted(starts)}, the action sites are {sorted(space)}.")
    arrays = {n: jnp.asarray(starts[n]) for n in space}
    count = {a.shape[:1] for a in arrays.values()}
    for name, law in space.items():
        if arrays[name].ndim < 1 or arrays[name].shape[1:] != law.event_shape or len(count) > 1:
            raise ValueError(
                f"starts of action site {name!r}: expected shape [starts, "
                f"*{law.event_shape}], with as many starts for every site; got "
                f"{ {n: a.shape for n, a in arrays.items()} }. One start is x[None]."
            )

    def feasible_at(name: str) -> jax.Array:
        if name not in finite:
            return jnp.asarray(space[name].support(arrays[name]))
        same = arrays[name][:, None] == finite[name]
        return jnp.any(jnp.all(same, axis=tuple(range(2, same.ndim))), axis=1)

    feasible = {n: feasible_at(n) for n in space}
    for name, inside in feasible.items():
        if not isinstance(inside, Tracer) and not inside.all():
            raise ValueError(
                f"starts of action site {name!r}: {arrays[name][jnp.argmin(inside)]} is not in "
                f"the space, {space[name]}. Give starts inside the action space."
            )
    return arrays, jnp.all(jnp.stack(list(feasible.values())), axis=0)


def _append(x: jax.Array, starts: jax.Array, feasible: jax.Array) -> jax.Array:
    """Candidates and feasible starts; others, known under tracing only, repeat a candidate."""
    feasible = feasible.reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.concatenate([x, jnp.where(feasible, starts, x[0]).astype(x.dtype)])


def _evaluate(score: Callable, rows: dict[str, jax.Array]) -> jax.Array:
    values = jnp.asarray(jax.vmap(score)(rows))
    if values.ndim != 1:
        raise ValueError(f"score: expected a scalar, got shape {values.shape[1:]}.")
    return values.astype(jnp.result_type(values, float(0)))


def _screened(
    score: Callable, screen: Callable | None, rows: dict[str, jax.Array], starts: int, count: int
) -> jax.Array:
    """Scores of rows [rows]; of those that a lower bound does not rank high, that bound."""
    total = len(next(iter(rows.values())))
    if screen is None or total <= starts + count:
        return _evaluate(score, rows)
    bounds = _evaluate(screen, rows)
    hopes = jnp.where(jnp.isnan(bounds), -jnp.inf, bounds)
    # starts are scored whatever their bound
    chosen = jax.lax.top_k(hopes.at[total - starts :].set(jnp.inf), starts + count)[1]
    return bounds.at[chosen].set(_evaluate(score, _take(rows, chosen)))


def _take(rows: dict[str, jax.Array], index: Any) -> dict[str, jax.Array]:
    return {n: x[index] for n, x in rows.items()}


def _best_first(key: jax.Array, values: jax.Array) -> jax.Array:
    """Order of the rows, [rows]: highest score first, NaN last, ties at random."""
    lots = jax.random.uniform(key, values.shape)
    return jnp.lexsort((lots, -values, jnp.isnan(values)))


def _restarts(key: jax.Array, values: jax.Array, first: jax.Array, grid: tuple, count: int):
    """Rows to climb from, [restarts]: leaders of combinations and starts, then lots."""
    combos, shared = grid
    total = len(values)
    count = min(count, total)
    rank = jnp.zeros(total, int).at[first].set(jnp.arange(total))
    leading = rank[: combos * shared].reshape(combos, shared).min(1)
    if total > combos * shared:
        leading = jnp.append(leading, rank[combos * shared :].min())
    leading = jnp.sort(leading)[: (count + 1) // 2]
    # a lottery without replacement: the largest of log weight plus Gumbel noise
    lots = jax.random.gumbel(key, (total,)) - jnp.log1p(jnp.arange(total))
    lots = jnp.where(jnp.isfinite(values[first]), lots, -jnp.inf)
    lots = lots.at[leading].set(-jnp.inf)
    others = jax.lax.top_k(lots, count - len(leading))[1]
    return first[jnp.concatenate([leading, others])]


def ascend(
    score: Callable,
    space: Mapping[str, dist.Distribution],
    rows: dict[str, jax.Array],
    *,
    max_steps: int,
) -> dict[str, jax.Array]:
    """Where climbs from given actions end, one from each.

    Args:
        score: `(row) -> scalar`, as for `maximise`; finite sites, and what rows hold besides the
            sites of the space, stay as they are.
        space: action site -> its space.
        rows: by name, [rows, ...]; actions inside the space.
        max_steps: evaluations per climb.

    Returns:
        rows.

    Example:
        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> rows = {"x": jnp.full(2, 0.5), "goal": jnp.array([0.2, 0.9])}
        >>> score = lambda row: -((row["x"] - row["goal"]) ** 2)
        >>> ends = ascend(score, {"x": dist.Uniform(0, 1)}, rows, max_steps=20)["x"]
        >>> jnp.allclose(ends, rows["goal"], atol=1e-3).tolist()
        True
    """
    smooth = {n: _smooth(n, law) for n, law in space.items() if elements(n, law) is None}
    return _ends(score, smooth, rows, max_steps) if smooth else rows


def _ends(score: Callable, smooth: Mapping[str, _Smooth], rows: dict, max_steps: int) -> dict:
    """Rows [restarts, ...], climbed in their continuous sites."""

    def place(z: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {n: s.place(z[n]) for n, s in smooth.items()}

    def climb(row: dict[str, jax.Array]) -> dict[str, jax.Array]:
        located = {n: s.locate(row[n]) for n, s in smooth.items()}
        start, unravel = ravel_pytree(located)
        loss = lambda z: -score({**row, **place(unravel(z))})  # noqa: E731
        return {**row, **place(unravel(minimise(loss, start[None], max_steps=max_steps).x[0]))}

    return jax.vmap(climb)(rows)


def _leaders(score: Callable, ends: dict, best: tuple) -> dict:
    """The best row so far and the best ends of climbs, [few, ...], apart from each other."""
    rows = {n: jnp.concatenate([best[0][n][None], x]) for n, x in ends.items()}
    values = jnp.append(jnp.inf, _evaluate(score, ends))
    values = jnp.where(jnp.isnan(values), -jnp.inf, values)
    order = jnp.argsort(-values)
    rows = _take(rows, order)
    flat = jnp.concatenate([x.reshape(len(x), -1).astype(values.dtype) for x in rows.values()], 1)
    width = jnp.max(flat, axis=0) - jnp.min(flat, axis=0)
    same = jnp.all(jnp.abs(flat[:, None] - flat) <= _SAME * width, axis=2)
    again = jnp.any(jnp.tril(same, -1), axis=1)  # where a better climb ended too
    first = jnp.argsort(again, stable=True)[:_SHARPENED]
    return _take(rows, first)


def _snapped(score: Callable, smooth: Mapping[str, _Smooth], found: dict, best: tuple):
    """The best of rows [restarts, ...], of those put on boundaries nearby, and of `best`."""
    keep = lambda x, near: x  # noqa: E731
    snaps = {n: smooth[n].snap if n in smooth else keep for n in found}
    tried = {n: jnp.concatenate([snaps[n](x, near) for near in _SNAPS]) for n, x in found.items()}
    values = jnp.append(_evaluate(score, tried), best[1])
    rows = {n: jnp.concatenate([x, best[0][n][None]]) for n, x in tried.items()}
    # of equal scores the first, which is nearest to the boundary
    top = jnp.argmax(jnp.where(jnp.isnan(values), -jnp.inf, values))
    top = jnp.where(jnp.isnan(values[top]), len(values) - 1, top)
    return _take(rows, top), values[top]
