# %% [markdown]
# # From a notebook to the accelerator
#
# One run of your experiment takes a second in a notebook. You want ten thousand, with other seeds,
# to see what a rule does on average; or one that lasts all night. On which machine, and what has to
# change in the code?
#
# Nothing, if a few things are known: what is compiled, and when again; what runs side by side;
# where random numbers come from; what survives an interruption. This page shows each as a fact that
# is checked at the end, and no number of seconds is promised. It runs as it is on a laptop without
# an accelerator, and uses one if JAX finds it (JAX's installation page has the wheel for yours).

# %% [markdown]
# ## Before JAX is imported
#
# Three settings are read once, when JAX starts. Threads of OpenBLAS wait for each other in a loop
# when matrices are small, which can cost more than all else: one thread is right. On a CPU,
# JAX sees a single device however many cores there are; a flag makes it two (or as many as you have
# cores). The flag concerns CPUs only.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
)

import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist

import decisionppl as dp

SMOKE = bool(os.environ.get("TUTORIAL_SMOKE"))
ROUNDS, MANY = (200, 64) if SMOKE else (1000, 1024)
print(f"{jax.device_count()} devices: {jax.devices()}")

# %% [markdown]
# ## What is compiled, and when again
#
# JAX tells when it compiles. We count.

# %%
events = {"compiled": 0, "found on disk": 0}


def on_duration(name, seconds, **rest):
    events["compiled"] += name == "/jax/core/compile/backend_compile_duration"


def on_event(name, **rest):
    events["found on disk"] += name == "/jax/compilation_cache/cache_hits"


jax.monitoring.register_event_duration_secs_listener(on_duration)
jax.monitoring.register_event_listener(on_event)


def bandit():
    mean = numpyro.sample("mean", dist.Normal(0, 1).expand([5]).to_event(1))
    arm = dp.action("arm", 5)
    dp.reward("reward", dist.Normal(mean[arm], 1.0))


engine = dp.inference.conjugate(bandit)


def run(replications, rounds=ROUNDS, key=0, **options):
    """Results, and how many programs were compiled for them."""
    before = events["compiled"]
    result = dp.experiment.run(
        bandit, engine, dp.rules.thompson, horizon=rounds, key=key, replications=replications,
        propensities=False, progress=False, **options,
    )  # fmt: skip
    return result, events["compiled"] - before


many, first = run(MANY)
again, second = run(MANY, rounds=2 * ROUNDS)
other, third = run(MANY, key=1)
print(f"programs compiled: {first} the first time, {second} for twice as many rounds, "
      f"{third} for another seed")  # fmt: skip

# %% [markdown]
# An experiment is one program. The number of rounds and the key are its inputs, so longer runs and
# other seeds cost nothing. Shapes are not: another number of replications, of arms, or of contexts
# is another program. So is another function: a rule written as `lambda` inside of a loop is a new
# one each time around. Build model, engine and rule once.
#
# The growing history of an experiment does not count as another shape. Engines keep sums, or a
# buffer of fixed `capacity`.
#
# ## Side by side
#
# `replications` run as one array program on each device, and are shared out over the devices evenly
# if their number can be divided. Nothing else is needed: no loop, no mesh, no `pmap`.
#
# Replication $i$ uses the key `fold_in(key, i)`, and round $t$ of it `fold_in(., t)`. So what
# happens in a replication does not depend on how many others there are, nor on which device it
# sits.

# %%
alone, _ = run(1)
same = [name for name in ("arm", "reward")
        if np.array_equal(alone.data[name][0], many.data[name][0])]  # fmt: skip
print(f"run alone, and as the first of {MANY} on {jax.device_count()} devices: equal {same}")

# %% [markdown]
# ## How much that is worth
#
# Seconds per run, once compiled, of a Python loop over runs, and of the same runs side by side.
# (In a loop over rounds, with `ask` and `tell`, it is the interpreter that takes the time: fine for
# real experiments, in which an hour passes between rounds.)
#
# JAX returns before it has finished. A clock that is read without `jax.block_until_ready` has timed
# the sending of the work. `run` waits, and says what it took: `attrs["compile_seconds"]` and
# `attrs["run_seconds"]`.


# %%
def seconds_of(replications):
    """Per replication, the better of two runs that need no compilation."""
    run(replications)
    times = []
    for key in (1, 2):
        started = time.perf_counter()
        run(replications, key=key)
        times.append((time.perf_counter() - started) / replications)
    return min(times)


SIZES = (1, MANY) if SMOKE else (1, 32, MANY)
batched = {size: seconds_of(size) for size in SIZES}

before = events["compiled"]
started = time.perf_counter()
for seed in range(5):
    run(1, key=seed)
loop = (time.perf_counter() - started) / 5
compiled_in_loop = events["compiled"] - before
print(f"Python loop: {1e3 * loop:.1f} ms per run; " + ", ".join(
    f"{n} side by side: {1e3 * s:.2f} ms" for n, s in batched.items()))  # fmt: skip

# %%
import matplotlib.pyplot as plt  # noqa: E402

figure, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
ax.plot(SIZES, list(batched.values()), "o-", color="#0072B2", label="side by side, one program")
ax.axhline(loop, color="#D55E00", linestyle="--", label="Python loop over runs")
ax.set(
    xscale="log", yscale="log", xlabel="runs", ylabel=f"seconds per run of {ROUNDS} rounds",
    title=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
)  # fmt: skip
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
figure.savefig("to_the_accelerator.png", dpi=120)

# %% [markdown]
# A single run does not fill a core, let alone an accelerator: what it takes is mostly the cost of
# one round after the other. Many together fill it, until memory or arithmetic is the limit.
#
# ## Through the night
#
# The loop runs in chunks of rounds. Between two of them there is time for a progress bar, for
# Ctrl-C (which returns what was done), and every half minute for a `checkpoint`. A run that was cut
# off goes on from its file, and ends where it would have ended, to the bit.

# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "night.nc"
    run(MANY, rounds=ROUNDS, checkpoint=file)  # the evening; say that the machine went down here
    resumed, _ = run(MANY, rounds=2 * ROUNDS, checkpoint=file)
equal_bits = all(
    np.array_equal(resumed.data[name], again.data[name]) for name in again.data.data_vars
) and all(np.array_equal(x, y) for x, y in zip(resumed.state, again.state, strict=True))
print(f"resumed and uninterrupted are equal to the bit: {equal_bits}")

# %% [markdown]
# The file is netCDF, with versions, seed, device and dtype in its attributes; a file of another
# model, rule or key is refused.
#
# ## A second process
#
# Compiled programs live as long as the process. `enable_compilation_cache` keeps them on disk. It
# is off unless called, since what is found there is executed: the folder must be yours alone. Here
# we forget everything, as a new process would have, and build the engine again.

# %%
found = 0
if not SMOKE:
    folder = tempfile.TemporaryDirectory()
    dp.enable_compilation_cache(folder.name)
    for _ in range(2):
        jax.clear_caches()
        engine = dp.inference.conjugate(bandit)
        found = -events["found on disk"]
        fresh, _ = run(32)
        found += events["found on disk"]
        print(f"{fresh.attrs['compile_seconds']:.1f} s to trace and compile, {found} programs "
              "found on disk")  # fmt: skip
    jax.config.update("jax_compilation_cache_dir", None)

# %% [markdown]
# What is left is tracing, which is Python and is not kept.
#
# ## Digits
#
# JAX computes in float32 unless told otherwise, on a CPU as well, and accelerators are made for it.
# Beliefs are kept in a form that stands it (square roots of covariances, deviations from means).
# Gaussian processes with little noise, long-run averages and derivatives of high order may want
# more: `jax.enable_x64(True)` as a context around building and running. It is another program.

# %%
if not SMOKE:
    with jax.enable_x64(True):
        engine = dp.inference.conjugate(bandit)
        double, _ = run(32)
    print("dtype:", many.attrs["dtype"], "and", double.attrs["dtype"])
    gap = float(many.data.regret.mean() - double.data.regret.mean())
    print(f"mean regret per round differs by {gap:+.4f}: other draws, the same law")

# %% [markdown]
# ## Sharp bits
#
# - `propensities=False` unless you need them: with a closed form, the probability of each choice is
#   an integral that costs more than all else in a round.
# - `draws=`: rules without a closed form take 128 worlds per decision, Thompson sampling one. More
#   than you need is the most frequent reason for a slow run.
# - Python's `if` and `for` on values of the model fail under tracing, or are unrolled: write
#   `jnp.where`, `jax.lax.cond`, and NumPyro's `scan`. `testing.check_model` says where.
# - Numbers that a model reads from outside are compiled in. Change them by building a new model, or
#   make them arguments.
# - NUTS side by side waits for the longest trajectory. On a CPU, as many devices as chains are
#   faster; on an accelerator, one array program is.
# - Other devices add numbers in another order. Results are equal to the bit on the same kind of
#   device, and equal in law across kinds.
#
# ## What to try next
#
# - The same on your accelerator: only the first line of output changes.
# - `propensities=True`, and see what it costs. To compare two programs, run them in turns, report
#   the ratio and its spread, and keep compilation apart.
# - Twin runs with the same `key` under two rules: shared randomness makes their difference sharp.
#
# The numbers to hold: one experiment is compiled once (no program for more rounds, another seed, or
# a resumed run), and what a replication does depends neither on the others nor on the devices.

# %%
assert first > 0 == second == third, (first, second, third)
assert compiled_in_loop == resumed.attrs["compile_seconds"] == 0, compiled_in_loop
assert same == ["arm", "reward"]
assert equal_bits
assert jax.device_count() > 1 or jax.default_backend() != "cpu"
assert SMOKE or found > 0
plt.close("all")
