"""Functions as the values of sites: the Gaussian process as a NumPyro distribution."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.primitives import Messenger

Inputs = tuple[jax.Array, ...]  # one array [points, size] per argument of the function


def as_inputs(args: tuple) -> Inputs:
    """One point, given as the arguments of the function, as a batch of one."""
    return tuple(jnp.reshape(as_float(a), (1, -1)) for a in args)


def as_batch(args: tuple) -> Inputs:
    """Points given with one leading axis; arguments without one are shared by all points."""
    arrays = [as_float(a) for a in args]
    counts = {a.shape[0] for a in arrays if a.ndim}
    if len(counts) != 1:
        raise ValueError(
            "batch: expected arguments with one common leading axis [points, ...], got shapes "
            f"{[list(a.shape) for a in arrays]}. Broadcast what all points share, or give it "
            "as a scalar."
        )
    (count,) = counts
    spread = [jnp.broadcast_to(a, (count,)) if a.ndim == 0 else a for a in arrays]
    return tuple(a.reshape(count, -1) for a in spread)


def as_float(x: Any) -> jax.Array:
    """An array of floats: integers such as fidelity levels are inputs too."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)


class Correction(NamedTuple):
    """What conditioning adds to a function drawn from the prior.

    Attributes:
        kernel: the covariance function.
        inputs: the points it was conditioned at.
        weights: [points].
    """

    kernel: Any
    inputs: Inputs
    weights: jax.Array

    def __call__(self, x: Inputs) -> jax.Array:
        """Values [points] at x."""
        return self.kernel(x, self.inputs) @ self.weights


@jax.tree_util.register_pytree_node_class
class NoFeatures:
    """In place of the features of a kernel that has none: values are NaN.

    A drawn world holds every function, also where only costs are looked at; see `check_drawn`.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __call__(self, x: Inputs) -> jax.Array:
        """One feature, NaN, at all points."""
        return jnp.full((x[0].shape[0], 1), jnp.nan)

    def tree_flatten(self) -> tuple[tuple, str]:
        """No leaves."""
        return (), self.reason

    @classmethod
    def tree_unflatten(cls, reason: str, leaves: tuple) -> "NoFeatures":
        """The same."""
        return cls(reason)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplePath:
    """A function drawn from a Gaussian process: call it at a point, as the model does.

    It is a pytree, so it passes through `jax.jit` and `jax.vmap` like an array.

    Attributes:
        mean: the mean function.
        features: of the kernel, inputs -> [points, features]; None for the mean itself.
        key: of the weights of the features, standard normal.
        corrections: what conditioning on data adds, a tuple of functions of the inputs.
    """

    mean: Any
    features: Any
    key: jax.Array
    corrections: tuple[Correction, ...] = ()

    def __call__(self, *args: Any) -> jax.Array:
        """The value at one point, a scalar; arguments are scalars or vectors."""
        return self.at(as_inputs(args))[0]

    def batch(self, *args: Any) -> jax.Array:
        """Values [points] at many points: arguments [points, ...], or scalars that all share."""
        return self.at(as_batch(args))

    def at(self, x: Inputs) -> jax.Array:
        """Values [points] at inputs in the form that kernels take."""
        if self.features is None:
            return self.mean(x)
        phi = self.features(x)
        # drawn here since how many features there are depends on how many arguments x has
        weights = jax.random.normal(self.key, phi.shape[1:], phi.dtype)
        return sum((correction(x) for correction in self.corrections), self.mean(x) + phi @ weights)


def check_drawn(world: Any) -> Any:
    """The world, if its functions could be drawn.

    Raises:
        NotImplementedError: a function whose kernel has no features.
    """
    for value in world.values():
        if isinstance(value, SamplePath) and isinstance(value.features, NoFeatures):
            raise NotImplementedError(value.features.reason)
    return world


class GaussianProcess(dist.Distribution):
    r"""A law over functions: :math:`f \sim GP(m, k)`; a draw is a `SamplePath`.

    `f = numpyro.sample("f", dp.GaussianProcess(kernel))` makes `f` a function that the model
    calls, `f(x)` or `f(w, m)`, with as many arguments as it likes, each a scalar or a vector.
    Hyperparameters are ordinary sample sites, from which kernel and mean are built.
    `inference.gaussian_process` conditions such models exactly; `f.batch` evaluates many points.

    A draw is :math:`m(x) + \phi(x)^T w` with random features :math:`\phi` of the kernel and
    :math:`w \sim N(0, I)`: its covariance equals the kernel on average over draws of features,
    and approximately, to order :math:`1/\sqrt{\text{num\_features}}`, for each.

    Args:
        kernel: from `decisionppl.kernels`.
        mean: from `decisionppl.means`, or a number; default 0.
        num_features: random features of a drawn function.

    Raises:
        TypeError: a kernel or mean that is not a registered pytree that can be called.

    Example:
        >>> import jax, numpyro
        >>> import decisionppl as dp
        >>> def model(x):
        ...     f = numpyro.sample("f", dp.GaussianProcess(dp.kernels.RBF(0.5)))
        ...     return f(x)
        >>> trace = dp.play(model, 0)(0.3)
        >>> trace["f"]["value"](0.3).shape
        ()

    References:
        Rasmussen and Williams, Gaussian Processes for Machine Learning (2006); Rahimi and Recht
        (2007) for random features; Wilson et al., arXiv 2002.09309, for drawn functions.
    """

    support = dist.constraints.real  # pyright: ignore[reportAssignmentType]
    pytree_data_fields = ("kernel", "mean_function")
    pytree_aux_fields = ("num_features",)

    def __init__(
        self, kernel: Any, mean: Any = None, *, num_features: int = 1024,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        from decisionppl import means

        if not callable(kernel) or not hasattr(kernel, "features"):
            raise TypeError(
                f"GaussianProcess: kernel: expected one of decisionppl.kernels, got {kernel!r}."
            )
        if mean is None:
            mean = means.Zero()
        elif not callable(mean):
            mean = means.Constant(mean)
        _check_pytree(mean)
        self.kernel, self.mean_function = kernel, mean
        self.num_features = num_features
        super().__init__(batch_shape=(), event_shape=(), validate_args=validate_args)

    def sample(self, key: Any = None, sample_shape: tuple[int, ...] = ()) -> SamplePath:
        """A drawn function; with a sample shape, its leaves have that leading shape."""
        if sample_shape:
            keys = jax.random.split(key, sample_shape)
            draw = self.sample
            for _ in sample_shape:
                draw = jax.vmap(draw)
            return draw(keys)
        feature_key, weight_key = jax.random.split(key)
        features = self.kernel.features(feature_key, self.num_features)
        return SamplePath(self.mean_function, features, weight_key)

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """Zero: a function has no density; its values are scored by the engine."""
        return jnp.zeros(())


class at_mean(Messenger):
    """Put its mean in place of each function: a model's structure, without the cost of a draw."""

    def process_message(self, msg: Any) -> None:
        """Set the value of a Gaussian-process site."""
        is_process = msg["type"] == "sample" and isinstance(msg["fn"], GaussianProcess)
        if is_process and msg["value"] is None:
            msg["value"] = SamplePath(msg["fn"].mean_function, None, jax.random.key(0))


def _check_pytree(mean: Callable) -> None:
    leaves = jax.tree.leaves(mean)
    if any(not isinstance(x, jax.Array | float | int) and callable(x) for x in leaves):
        raise TypeError(
            f"GaussianProcess: mean: expected one of decisionppl.means or another registered "
            f"pytree, got {mean!r}, whose parameters JAX cannot see. Write "
            "jax.tree_util.Partial(function, parameters)."
        )
