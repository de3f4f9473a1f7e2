r"""A synthetic scaling law of data mixtures: cheap runs, dear runs, and an exact optimum.

A run trains a model of m million parameters for z hundred steps on n sources mixed in
proportions w. Its validation loss on domain j is

.. math::

    L_j(w, m, z) = E_j + A_j (m/m_*)^{-a_j}
        + B_j \bigl(1 + d_j \log(m_*/m)\bigr) \bigl(e_j(w, m, z)\, z/z_*\bigr)^{-b_j},

where :math:`e_j` is the share of the data that is of use to the domain,

.. math::

    e_j = \sum_i \bigl((1 - h) T_{ji} + h S_{ji}\bigr) w_i, \qquad
    h(m, z) = \bigl(1 - (m/m_*)^\alpha (z/z_*)^\beta\bigr)^\gamma.

At the target (:math:`m_*` = 1000, :math:`z_*` = 197) h is zero and the sources are worth T; small
and short runs see them as S does, so what is good there need not be good at the target. The
objective is one number, :math:`\sum_j c_j L_j`, to be minimised at the target.

It is convex in w: a decreasing power of a linear function, summed. So the optimum is known
exactly, by going backwards. Choose a mixture :math:`w_*`, give the columns of T sums
:math:`q_i` that are one on the sources in :math:`w_*` and less than one elsewhere, and set
:math:`c_j \propto e_j(w_*)^{b_j + 1} / (b_j B_j)`. The gradient of the objective at :math:`w_*` is
then proportional to :math:`-q`, which is the condition of Karush, Kuhn and Tucker on the simplex,
and for a convex function that suffices. Square matrices T here are of full rank, which makes the
optimum unique.

The sum of powers of size and data is that of Hoffmann et al.; mixing by a linear share, the drift
from S to T and all numbers but the prices of a step are ours.

References:
    Hoffmann et al., Training Compute-Optimal Large Language Models, arXiv 2203.15556 (the sum of
    powers); Data Mixture Optimization: A Multi-fidelity Multi-scale Bayesian Framework, arXiv
    2503.21023 (sizes, and the relative price of a step in its code).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from decisionppl._play import as_key

SIZES = (20, 60, 150, 300, 500, 700, 1000)
"""Sizes of a model, in millions of parameters; the last is the target."""

STEP_PRICES = (0.01296, 0.03232, 0.07484, 0.14773, 0.21662, 0.29830, 1.0)
"""Price of a hundred steps at each size, relative to the largest. Not proportional to the size,
because batches differ."""

NUM_STEPS = 197
"""Length of a full run, in hundreds of steps."""

VARIANTS = ("interior", "vertex", "sign_flipped", "noisy")

_TARGET = SIZES[-1]
_ACCURACIES = 3
_CHANCE = 0.25
_QUESTIONS = 2000  # of each accuracy; they set its noise
_ROUNDING = 1e-3  # by which a mixture may miss one in total


class Optimum(NamedTuple):
    """The best mixture at the target.

    Attributes:
        mixture: [sources].
        value: the objective there.
    """

    mixture: np.ndarray
    value: float


class MixtureScaling(NamedTuple):
    """One instance of the scaling law; `mixture_scaling` makes them.

    Mixtures w are arrays [..., sources], sizes m and steps z broadcast with them: m in millions
    of parameters (20 to 1000), z in hundreds of steps (1 to 197).

    Attributes:
        transfer, early_transfer: worth of source i to domain j, T and S, [domains, sources].
        floor: E, [domains]; so are all up to `weights`.
        size_scale, size_exponent: A and a.
        data_scale, data_exponent: B and b.
        interaction: d.
        weights: c, of the domains in the objective; they sum to one.
        best: the optimal mixture, [sources].
        drift: exponents of h, (alpha, beta, gamma).
        noise: standard deviation of the objective at the target, its exponents in m and z, and
            the share of the variance that all steps of a run have in common.
    """

    transfer: Any
    early_transfer: Any
    floor: Any
    size_scale: Any
    size_exponent: Any
    data_scale: Any
    data_exponent: Any
    interaction: Any
    weights: Any
    best: Any
    drift: tuple[float, float, float]
    noise: tuple[float, float, float, float]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics: `loss` (the objective), `loss_0`, ..., `accuracy_0`, ...."""
        domains = np.shape(self.floor)[0]
        accuracies = min(_ACCURACIES, domains)
        losses = [f"loss_{j}" for j in range(domains)]
        return ("loss", *losses, *[f"accuracy_{k}" for k in range(accuracies)])

    def domain_losses(self, w: ArrayLike, m: ArrayLike, z: ArrayLike) -> jax.Array:
        """Loss without noise on each domain.

        Args:
            w: mixture, [..., sources].
            m: size in millions of parameters.
            z: hundreds of steps.

        Returns:
            [..., domains].

        Raises:
            ValueError: a mixture, a size or a number of steps outside of its range.
        """
        return _losses(self, *self._checked(w, m, z))

    def objective(self, w: ArrayLike, m: ArrayLike, z: ArrayLike) -> jax.Array:
        """The objective without noise at any fidelity, [...]; arguments of `domain_losses`."""
        return self.domain_losses(w, m, z) @ jnp.asarray(self.weights)

    def truth(self, w: ArrayLike) -> jax.Array:
        """What is to be minimised: the objective without noise at the target.

        Args:
            w: mixture, [..., sources].

        Returns:
            [...].
        """
        return self.objective(w, _TARGET, NUM_STEPS)

    @property
    def optimum(self) -> Optimum:
        """The exact minimiser of `truth` and its value, in double precision."""
        use = self.transfer @ self.best
        losses = self.floor + self.size_scale + self.data_scale * use**-self.data_exponent
        return Optimum(self.best, float(self.weights @ losses))

    def noise_scale(self, m: ArrayLike, z: ArrayLike) -> jax.Array:
        """Standard deviation of the objective of one run, [...]."""
        scale, size_exponent, step_exponent, _ = self.noise
        m, z = jnp.asarray(m, float), jnp.asarray(z, float)
        return scale * (m / _TARGET) ** -size_exponent * (z / NUM_STEPS) ** -step_exponent

    def simulate(self, key: Any, w: ArrayLike, m: ArrayLike, z: ArrayLike) -> dict[str, jax.Array]:
        """Metrics at the end of one run: the last entry of `curve` with the same key.

        Args:
            key: PRNG key or int seed: the run.
            w: mixture, [sources].
            m: size in millions of parameters.
            z: hundreds of steps, a whole number.

        Returns:
            Every name of `metrics` to a number.

        Raises:
            ValueError: a mixture, a size or a number of steps outside of its range.

        Example:
            >>> import numpy as np
            >>> from decisionppl.models._mixture_scaling import mixture_scaling
            >>> problem = mixture_scaling("interior", seed=0)
            >>> w = np.full(5, 0.2)
            >>> cheap, dear = (problem.simulate(0, w, m, 60)["loss"] for m in (20, 1000))
            >>> bool(cheap > dear)
            True
        """
        if np.ndim(w) != 1:
            raise ValueError(f"w: a run has one mixture [sources], got shape {np.shape(w)}.")
        if _known(z) and np.any(np.mod(np.asarray(z), 1) != 0):
            raise ValueError(f"z: metrics are written every hundred steps, got {z!r}.")
        self._checked(w, m, z)
        w, m, steps = jnp.asarray(w, float), jnp.asarray(m, float), jnp.asarray(z)[None]
        values = _run(self, as_key(key), w, m, steps)
        return {name: values[name][0] for name in self.metrics}

    def curve(self, key: Any, w: ArrayLike, m: ArrayLike, z: int) -> dict[str, jax.Array]:
        """Metrics of one run at all of its steps so far.

        Noise is an effect of the run, common to all steps, and a part of each step. A longer
        curve with the same key continues the shorter one.

        Args:
            key: PRNG key or int seed: the run.
            w: mixture, [sources].
            m: size in millions of parameters.
            z: hundreds of steps, an int.

        Returns:
            `step`, 1 to z, and every name of `metrics`, each [z].

        Raises:
            ValueError: a mixture, a size or a number of steps outside of its range.

        Example:
            >>> import numpy as np
            >>> from decisionppl.models._mixture_scaling import mixture_scaling
            >>> mixture_scaling("noisy").curve(0, np.full(5, 0.2), 20, 60)["loss"].shape
            (60,)
        """
        if isinstance(z, bool) or not isinstance(z, int | np.integer):
            raise ValueError(f"z: a curve needs an int, got {z!r}.")
        self._checked(w, m, z)
        steps = jnp.arange(1, z + 1)
        values = _run(self, as_key(key), jnp.asarray(w, float), jnp.asarray(m, float), steps)
        return {"step": steps, **{name: values[name] for name in self.metrics}}

    def cost(self, m: ArrayLike, z: ArrayLike, done: ArrayLike = 0) -> jax.Array:
        """Price of a run, or of continuing one; a full run at the target costs 197.

        Prices between the listed sizes are interpolated, log against log.

        Args:
            m: size in millions of parameters.
            z: hundreds of steps at the end.
            done: hundreds of steps that the run has behind it, paid already.

        Returns:
            Units of a hundred steps of the largest model, [...].

        Raises:
            ValueError: a size or a number of steps outside of its range, or `done` beyond z.

        Example:
            >>> from decisionppl.models._mixture_scaling import mixture_scaling
            >>> problem = mixture_scaling()
            >>> float(problem.cost(1000, 197)), float(problem.cost(1000, 197, done=60))
            (197.0, 137.0)
        """
        _within("m", m, SIZES[0], SIZES[-1])
        _within("z", z, 0, NUM_STEPS)
        _within("done", done, 0, NUM_STEPS)
        if _known(z, done) and np.any(np.asarray(done) > np.asarray(z)):
            raise ValueError(f"done: {done!r} is beyond the end of the run, z = {z!r}.")
        knots, prices = np.log(SIZES), np.log(STEP_PRICES)
        price = jnp.exp(jnp.interp(jnp.log(jnp.asarray(m, float)), knots, prices))
        return price * (jnp.asarray(z, float) - jnp.asarray(done, float))

    def _checked(self, w: Any, m: Any, z: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        sources = np.shape(self.best)[0]
        if np.shape(w)[-1:] != (sources,):
            raise ValueError(f"w: expected shape [..., {sources}], got {np.shape(w)}.")
        if _known(w):
            rows = np.asarray(w)
            if not (np.all(rows >= 0) and np.all(np.abs(rows.sum(-1) - 1) <= _ROUNDING)):
                raise ValueError(f"w: expected proportions that sum to one, got {rows!r}.")
        _within("m", m, SIZES[0], SIZES[-1])
        _within("z", z, 1, NUM_STEPS)
        return jnp.asarray(w, float), jnp.asarray(m, float), jnp.asarray(z, float)


# An instance is an argument of these, not a constant: one compilation serves all seeds.


@jax.jit
def _losses(problem: MixtureScaling, w: jax.Array, m: jax.Array, z: jax.Array) -> jax.Array:
    """Losses without noise, [..., domains]."""
    size, steps = (m / _TARGET)[..., None], (z / NUM_STEPS)[..., None]
    alpha, beta, gamma = problem.drift
    gap = 1 - size**alpha * steps**beta
    h = jnp.where(gap >= 0, gap, 0.0) ** gamma  # next to the target rounding may leave it below
    use = (1 - h) * (w @ problem.transfer.T) + h * (w @ problem.early_transfer.T)
    data = problem.data_scale * (use * steps) ** -problem.data_exponent
    capacity = problem.size_scale * size**-problem.size_exponent
    return problem.floor + capacity + data * (1 - problem.interaction * jnp.log(size))


@jax.jit
def _run(
    problem: MixtureScaling, key: jax.Array, w: jax.Array, m: jax.Array, steps: jax.Array
) -> dict[str, jax.Array]:
    """Metrics of a run at some of its steps, each [steps]."""
    domains, count = problem.floor.shape[0], len(problem.metrics) - 1
    run_key, step_key = jax.random.split(key)
    run = jax.random.normal(run_key, (domains,))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, steps.astype(jnp.uint32))
    step = jax.vmap(lambda k: jax.random.normal(k, (count,)))(keys)
    share = problem.noise[-1]
    error = jnp.sqrt(share) * run + jnp.sqrt(1 - share) * step[:, :domains]
    # divided by the norm of the weights, so that the objective has the stated deviation
    scale = problem.noise_scale(m, steps) / jnp.linalg.norm(problem.weights)
    losses = _losses(problem, w, m, steps.astype(float)) + scale[:, None] * error
    skill = _accuracies(problem, losses, count - domains)
    accuracies = skill + jnp.sqrt(skill * (1 - skill) / _QUESTIONS) * step[:, domains:]
    values = [losses @ problem.weights, *losses.T, *accuracies.T]
    return dict(zip(problem.metrics, values, strict=True))


def _accuracies(problem: MixtureScaling, losses: jax.Array, count: int) -> jax.Array:
    """Share of right answers by the losses on the first domains: chance where they are high."""
    use = problem.transfer @ problem.best
    best = problem.floor + problem.size_scale + problem.data_scale * use**-problem.data_exponent
    lead = 0.3 - (losses - best)[:, :count]
    return _CHANCE + (1 - _CHANCE) * jax.nn.sigmoid(6 * lead)


def _known(*values: Any) -> bool:
    """Whether values can be looked at: not while they are traced."""
    return not any(isinstance(value, Tracer) for value in values)


def _within(name: str, value: Any, low: float, high: float) -> None:
    if _known(value):
        array = np.asarray(value)
        if not np.all((array >= low) & (array <= high)):
            raise ValueError(f"{name}: expected {low} to {high}, got {value!r}.")


class _Design(NamedTuple):
    """What sets a variant apart."""

    support: float  # share of the sources in the optimal mixture
    decay: float  # weight of the next source there, relative to the last
    worst: float  # column sum of T of the last source, if not in the optimal mixture
    own: float  # worth of a source to its own domain
    tilt: float  # log-spread of the sources' worth in S
    flat: float  # how far S forgets which domain a source is of
    drift: tuple[float, float, float]
    noise: float


# chosen by trial, so that rank correlations between cheap and target runs are like those of
# language models: see the tests for the bounds they keep
_DESIGNS = {
    "interior": _Design(1.0, 0.7, 1.0, 1.5, 0.3, 0.5, (0.08, 0.2, 1.0), 0.002),
    "vertex": _Design(0.0, 0.7, 0.6, 1.0, 0.6, 0.5, (0.08, 0.2, 1.0), 0.002),
    "sign_flipped": _Design(0.5, 0.6, 0.3, 1.0, 1.4, 0.8, (0.3, 0.4, 2.5), 0.002),
    "noisy": _Design(1.0, 0.7, 1.0, 1.5, 0.3, 0.5, (0.08, 0.2, 1.0), 0.012),
}


def mixture_scaling(
    variant: str = "interior", *, seed: int = 0, num_sources: int = 5
) -> MixtureScaling:
    """An instance of the scaling law with a known optimum.

    - `interior`: all sources are in the optimal mixture.
    - `vertex`: the optimal mixture is one source alone.
    - `sign_flipped`: the sources that are best at the target look worst at small scale; the
      optimal mixture has half of the sources.
    - `noisy`: `interior` with six times the noise, at every fidelity.

    Noise always grows towards small and short runs.

    Args:
        variant: one of the four.
        seed: int; another seed is another law of the same kind.
        num_sources: number of sources, and of validation domains.

    Returns:
        The instance.

    Raises:
        ValueError: an unknown variant, or fewer than two sources.

    Example:
        >>> from decisionppl.models._mixture_scaling import mixture_scaling
        >>> problem = mixture_scaling("vertex", seed=1)
        >>> sorted(problem.optimum.mixture.tolist())
        [0.0, 0.0, 0.0, 0.0, 1.0]
        >>> bool(abs(problem.truth(problem.optimum.mixture) - problem.optimum.value) < 1e-5)
        True
    """
    if variant not in _DESIGNS:
        raise ValueError(f"variant: expected one of {', '.join(VARIANTS)}, got {variant!r}.")
    integer = isinstance(num_sources, int | np.integer) and not isinstance(num_sources, bool)
    if not integer or num_sources < 2:
        raise ValueError(f"num_sources: expected an int of at least 2, got {num_sources!r}.")
    design, n = _DESIGNS[variant], int(num_sources)
    rng = np.random.default_rng(seed)
    rank = rng.permutation(n)  # of each source, the best is 0
    chosen = rank < max(1, int(np.ceil(design.support * n)))
    best = np.where(chosen, design.decay**rank, 0.0)
    best /= best.sum()

    transfer = rng.uniform(0.1, 0.3, (n, n)) + design.own * np.diag(rng.uniform(0.8, 1.2, n))
    transfer /= transfer.sum(0)
    tilt = (2 * rank / (n - 1) - 1) if variant == "sign_flipped" else _tilt(rng, best)
    early = ((1 - design.flat) * transfer + design.flat / n) * np.exp(design.tilt * tilt)
    transfer *= np.where(chosen, 1.0, np.linspace(1, design.worst, n)[rank])

    data_scale, data_exponent = rng.uniform(0.3, 0.6, n), rng.uniform(0.25, 0.45, n)
    weights = (transfer @ best) ** (data_exponent + 1) / (data_exponent * data_scale)
    return MixtureScaling(
        transfer=transfer,
        early_transfer=early,
        floor=rng.uniform(1.5, 2.2, n),
        size_scale=rng.uniform(0.2, 0.4, n),
        size_exponent=rng.uniform(0.2, 0.35, n),
        data_scale=data_scale,
        data_exponent=data_exponent,
        interaction=rng.uniform(0, 0.05, n),
        weights=weights / weights.sum(),
        best=best,
        drift=design.drift,
        noise=(design.noise, 0.25, 0.15, 0.7),
    )


def _tilt(rng: np.random.Generator, best: np.ndarray) -> np.ndarray:
    """A direction of unit size in which S favours sources, at right angles to the optimum.

    Along the optimal mixture it would help or harm cheap runs by the luck of the seed.
    """
    n = len(best)
    known = np.stack([np.ones(n), best], axis=1)[:, : min(2, n - 1)]
    basis = np.linalg.qr(known)[0]
    direction = rng.normal(size=n)
    direction -= basis @ (basis.T @ direction)
    return direction * np.sqrt(n) / np.linalg.norm(direction)
