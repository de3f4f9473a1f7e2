"""The learned sequence models of `sequences.py`: what each is trained on, and how.

Run alone to train them ahead: `python benchmarks/_learned.py --only gp_causal,al_causal`. Weights
are kept as checkpoints, so a benchmark that finds them does not train again.
"""

import argparse
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from decisionppl import inference
from decisionppl.models import neural

FOLDER = Path(tempfile.gettempdir()) / "dppl-learned"


class Task(NamedTuple):
    net: Callable  # seed -> module
    batches: Callable  # (key, step) -> (x, y)
    num_steps: int
    learning_rate: float = 2e-3


def bandit_sequences(key, step, size=64, length=100):
    """Rewards of one arm each; the covariate says which arm it is."""
    arm_key, mean_key, noise_key = jax.random.split(key, 3)
    arm = jax.random.bernoulli(arm_key, 0.5, (size, 1)).astype(float)
    scale, noise = BANDIT[0][arm.astype(int)], BANDIT[1][arm.astype(int)]
    y = scale * jax.random.normal(mean_key, (size, 1))
    y = y + noise * jax.random.normal(noise_key, (size, length))
    return jnp.broadcast_to(arm[..., None], (size, length, 1)), y


BANDIT = jnp.asarray([0.5, 0.9]), jnp.asarray([0.5, 0.1])  # prior scales, noises


def gp_sequences(key, step, size=32, length=100, noise_variance=0.1):
    x_key, y_key = jax.random.split(key)
    x = jax.random.uniform(x_key, (size, length, 1), minval=-2, maxval=2)
    cov = jnp.exp(-0.5 * jnp.square(x - jnp.swapaxes(x, 1, 2)))
    factor = jnp.linalg.cholesky(cov + noise_variance * jnp.eye(length))
    return x, jnp.einsum("bij,bj->bi", factor, jax.random.normal(y_key, (size, length)))


REGIONS = {  # scales and noises of 50 bins on [-5, 5]
    "al": (jnp.repeat(jnp.asarray([0.9, 0.5]), 25), jnp.repeat(jnp.asarray([0.1, 0.7]), 25)),
    "alh": (jnp.repeat(jnp.asarray([0.05, 0.95]), 25), jnp.repeat(jnp.asarray([1.55, 0.05]), 25)),
}


def region_sequences(name, key, step, size=32, length=64):
    scales, noises = REGIONS[name]
    x_key, theta_key, noise_key = jax.random.split(key, 3)
    x = jax.random.uniform(x_key, (size, length, 1), minval=-5, maxval=5)
    region = jnp.clip(jnp.floor((x[..., 0] + 5) * 5).astype(int), 0, 49)
    theta = scales * jax.random.normal(theta_key, (size, 50))
    noise = noises[region] * jax.random.normal(noise_key, (size, length))
    return x, jnp.take_along_axis(theta, region, axis=1) + noise


def articles(key, size):
    """Features and click rates of articles with two modes (arXiv 2405.19466)."""
    z_key, mode_key, rate_key = jax.random.split(key, 3)
    z = jax.random.uniform(z_key, (size, 2))
    mean = jnp.where(
        jax.random.bernoulli(mode_key, 0.5, (size,)), 0.25 * z[:, 0], 0.75 + 0.25 * z[:, 1]
    )
    return z, jax.random.beta(rate_key, 25 * mean + 1, 26 - 25 * mean)


def click_sequences(key, step, size=200, length=300, rows=2500):
    """Clicks on articles of a fixed training set, drawn anew for every batch."""
    row_key, click_key = jax.random.split(key)
    z, rate = articles(jax.random.key(382374298), rows)
    chosen = jax.random.randint(row_key, (size,), 0, rows)
    y = jax.random.bernoulli(click_key, rate[chosen][:, None], (size, length)).astype(jnp.int32)
    return jnp.broadcast_to(z[chosen][:, None], (size, length, 2)), y


def arm_sequences(key, step, size=64, length=500):
    """Outcomes of one arm each in the synthetic environment of arXiv 2502.07064."""
    from decisionppl.models.potential_outcomes import draw_tasks

    z, x, y = draw_tasks(key, size, length)
    z = jnp.broadcast_to(z[:, None], (size, length, z.shape[-1]))
    return jnp.concatenate([z, x], axis=-1), y


def _transformer(cls, seed, **settings):
    return cls(1, neural.gaussian(), rngs=nnx.Rngs(seed), **settings)


_CAUSAL = functools.partial(_transformer, neural.Transformer)
_INVARIANT = functools.partial(_transformer, neural.InvariantTransformer)
_REGIONS = {"depth": 2, "max_frequency": 30.0, "num_frequencies": 16}


def _arm_columns(x):
    """Intercept and contexts, out of the arm's features and the context."""
    return jnp.concatenate([jnp.ones(1), x[2:]])


TASKS = {
    "bandit": Task(
        functools.partial(_CAUSAL, depth=2, width=32, num_heads=2, num_frequencies=1),
        bandit_sequences, 3000,
    ),
    "gp_causal": Task(_CAUSAL, gp_sequences, 1200),
    "gp_invariant": Task(_INVARIANT, gp_sequences, 1200),
    "al_causal": Task(
        functools.partial(_CAUSAL, **_REGIONS), functools.partial(region_sequences, "al"),
        5000, 4e-3,
    ),
    "al_invariant": Task(
        functools.partial(_INVARIANT, **_REGIONS), functools.partial(region_sequences, "al"),
        5000, 1e-3,  # at 4e-3 it stays at the loss of no context,
    ),
    "alh_causal": Task(
        functools.partial(_CAUSAL, **_REGIONS), functools.partial(region_sequences, "alh"),
        3000, 4e-3,
    ),
    "clicks": Task(
        lambda seed: neural.StatisticsNetwork(
            2, neural.successes(), neural.bernoulli(), hidden=(32, 32), rngs=nnx.Rngs(seed)
        ),
        click_sequences, 12_000,
    ),
    "arms": Task(
        lambda seed: neural.StatisticsNetwork(
            7, neural.least_squares(_arm_columns, 6), neural.bernoulli(), hidden=(64, 64),
            rngs=nnx.Rngs(seed),
        ),
        arm_sequences, 5000,
    ),
}  # fmt: skip


def learned(name, folder=FOLDER, *, seed=0, smoke=False, progress=None):
    """(net, parameters, Trained) of a task, trained now or found in the folder."""
    task = TASKS[name]
    net = task.net(seed)
    steps = 60 if smoke else task.num_steps
    held_out = task.batches(jax.random.key(10_000 + seed), 0, size=64)
    trained = inference.train(
        neural.parallel(net), task.batches, steps, key=seed, learning_rate=task.learning_rate,
        held_out=held_out, progress=progress,
        checkpoint=Path(folder) / f"{name}-{seed}{'-smoke' if smoke else ''}.nc",
    )  # fmt: skip
    return net, trained.params, trained


def add_options(parser: argparse.ArgumentParser) -> Any:
    parser.add_argument("--learned", type=Path, default=FOLDER, help="folder of trained weights")
    return parser


if __name__ == "__main__":
    made = add_options(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    made.add_argument("--only", default=",".join(TASKS))
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--smoke", action="store_true")
    options = made.parse_args()
    for name in options.only.split(","):
        fit = learned(name, options.learned, seed=options.seed, smoke=options.smoke)[2]
        print(name, f"{fit.seconds:.0f} s", fit.held_out[-3:], flush=True)
