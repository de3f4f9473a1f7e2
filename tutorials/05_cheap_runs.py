# %% [markdown]
# # Which small runs tell most about the large one
#
# A language model is to be trained on a mixture of five sources of text. There is the compute of
# a few full training runs. Which mixture should the full run get, and which small runs say so?
#
# The usual answer is to try many mixtures with the smallest model and take the best. It fails
# when what a small model gains most from is not what a large one gains most from. Here we write
# down what we believe about losses across sizes, and derive from it which run to buy next: its
# mixture and its size, by what it teaches about the full run per unit of cost.
#
# The runs are simulated, so that the best mixture is known and regret can be measured.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import decisionppl as dp
from decisionppl import kernels, means, rules
from decisionppl.models import data_mixture

SMOKE = bool(os.environ.get("TUTORIAL_SMOKE"))
BUDGET, ROOM = (0.8, 32) if SMOKE else (2.0, 64)  # in full runs; most runs that fit the history
SOURCES, KEY = 5, 0

# %% [markdown]
# ## The runs on offer
#
# Three sizes, in millions of parameters. Prices are in units of a full run: the smallest costs a
# hundredth of it. `mixture_scaling` is the truth, which the search does not see; in its variant
# `sign_flipped` the sources that are best at full size look worst at the smallest.

# %%
SIZES = np.array([20.0, 150.0, 1000.0])
STEPS = data_mixture.NUM_STEPS
TARGET = len(SIZES) - 1
LOG_SIZES = np.log(SIZES / SIZES[TARGET])  # zero at the target
truth = data_mixture.mixture_scaling("sign_flipped", seed=0, num_sources=SOURCES)
PRICES = np.asarray(truth.cost(SIZES, STEPS) / truth.cost(SIZES[TARGET], STEPS))


def train(mixture, size, seed):
    """Loss of one run: in practice, days on a cluster."""
    return float(truth.simulate(seed, mixture, SIZES[size], STEPS)["loss"])


def regret_of(mixture):
    """Loss that is lost by this mixture in the full run; losses without noise."""
    return np.asarray(truth.truth(mixture)) - truth.optimum.value


# random mixtures: the baseline at full size, and what screening would pick at each size
random_mixtures = np.random.default_rng(KEY).dirichlet(np.ones(SOURCES), 4000)
random_regrets = regret_of(random_mixtures)
print("price in full runs", PRICES.round(3))
print(f"regret of equal weights {regret_of(np.full(SOURCES, 1 / SOURCES)):.3f}, of the best of "
      "200 random mixtures as seen by")  # fmt: skip
screened = {}
for m in SIZES:
    losses = truth.objective(random_mixtures[:200], m, STEPS)
    screened[m] = random_regrets[np.argmin(losses)]
    print(f"  the {m:4.0f}M model {screened[m]:.3f}")

# %% [markdown]
# Screening 200 mixtures with the smallest model, even without noise, ends far behind equal
# weights. It costs more than two full runs, and its result gives no warning.
#
# ## The model
#
# One run: a mixture $w$ and a size go in, a loss comes out. With $s$ the logarithm of size
# relative to the target, zero there, we say
#
# $$f(w, s) = \underbrace{E + A\,\phi(s)}_{\text{scaling law}} + u_0(w) + \psi(s)\, u_1(w),$$
#
# where $\phi(s) = e^{-a s} - 1$ is zero at the target and $\psi$ is $\phi$ scaled to one at the
# smallest size.
#
# - $u_0$ is what the mixture does at the target. $u_1$ is how the smallest model departs from
#   it. Both are smooth functions of $\sqrt w$, distances between which are Hellinger distances.
#   That treats a change from 0 to 1 % as larger than one from 50 to 51 %, as it is in training.
# - $u_0$ and $u_1$ have standard deviations `sd` and correlation `rho`, between -1 and 1. The
#   covariance between the smallest size and the target is $sd_0^2 + \rho\, sd_0\, sd_1$. If
#   `rho` is near -1 and $sd_1 > sd_0$, it is negative: what helps the small model hurts the
#   large one. A product of a kernel on mixtures and a positive kernel on sizes, as is common,
#   cannot say that. It would read every small run as good news about its mixture.
#
# Seven unknowns are ordinary sample sites; the eighth, `f`, is the function itself. Priors are in
# the units of the loss: we expect about 3, differences of about 0.1 between mixtures, and
# differences of about 0.005 between two runs of the same mixture.


# %%
def mixing():
    level = numpyro.sample("level", dist.Normal(3.0, 0.5))  # E
    rise = numpyro.sample("rise", dist.HalfNormal(1.0))  # loss added at the smallest size
    a = numpyro.sample("a", dist.LogNormal(jnp.log(0.3), 0.4))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.7))
    sd = numpyro.sample("sd", dist.LogNormal(jnp.log(0.1), 1.0).expand([2]).to_event(1))
    rho = numpyro.sample("rho", dist.Uniform(-1, 1))
    noise = numpyro.sample("noise", dist.LogNormal(jnp.log(0.005), 0.5))

    smallest = float(LOG_SIZES[0])
    root = jnp.array([[sd[0], 0.0], [rho * sd[1], jnp.sqrt(1 - rho**2) * sd[1]]])
    across = kernels.Coregionalised(root, kernels.ScalingFeatures(a, reach=(smallest,)))
    kernel = kernels.On(kernels.Hellinger(kernels.Matern52(scale)), 0) * kernels.On(across, 1)
    mean = means.ScalingLaw(level, rise / jnp.expm1(-a * smallest), a)
    f = numpyro.sample("f", dp.GaussianProcess(kernel, mean))

    w = dp.action("mixture", dist.Dirichlet(jnp.ones(SOURCES)))
    size = dp.action("size", len(SIZES))
    dp.cost("price", jnp.asarray(PRICES)[size])
    dp.outcome("loss", dist.Normal(f(w, jnp.asarray(LOG_SIZES)[size]), noise))
    dp.reward("value", -f(w, 0.0))  # wanted: a low loss at the target


# %% [markdown]
# `data_mixture.surface` is this model for daily use. It adds training steps as a second
# fidelity, a length scale per source, noise that depends on size, and an LKJ prior for the
# correlations of all fidelity features.
#
# ## What the prior says
#
# Before any data: draw the unknowns from the model, and look at what they say of runs. The losses
# that are usual at each size should be inside, and both signs of the correlation.


# %%
@jax.jit
@jax.vmap
def prior(key):
    sites = dp.play(mixing, key)()
    return {name: sites[name]["value"] for name in ("level", "rise", "rho", "sd")}


drawn = {n: np.asarray(v) for n, v in prior(jax.random.split(jax.random.key(KEY), 2000)).items()}
shared = drawn["sd"][:, 0] + drawn["rho"] * drawn["sd"][:, 1]
own = np.sqrt(1 - drawn["rho"] ** 2) * drawn["sd"][:, 1]
for name, value in {
    "loss at the target": drawn["level"],
    "loss of the smallest model": drawn["level"] + drawn["rise"],
    "effect of mixtures at the target": drawn["sd"][:, 0],
    "correlation of smallest and target": shared / np.hypot(shared, own),
}.items():
    lower, upper = np.quantile(value, [0.05, 0.95])
    print(f"prior, 90 %: {name} from {lower:.2f} to {upper:.2f}")

# %% [markdown]
# ## The search
#
# `knowledge_gradient` values a run by how much the best posterior mean *at the target* is
# expected to rise once its loss is known; `per_cost` divides by the price. No line says when to
# move from small to large models. Asking searches the whole simplex and all sizes. In smoke size
# a list of 64 mixtures takes the place of the simplex, which compiles in less time.
#
# The capacity is the number of runs that there will be at most. With it fixed, everything is
# compiled once.


# %%
def pool(sizes):
    """Candidate actions in smoke size: 64 mixtures at each size."""
    few = random_mixtures[-64:]
    return {"mixture": np.tile(few, (len(sizes), 1)), "size": np.repeat(sizes, len(few))}


def search(rule, budget, key, look, **options):
    """Buy runs until the budget is spent; spent and regret at every look, sizes bought."""
    trial = dp.experiment.Experiment(mixing, engine, rule, key=key, draws=1, **options)
    spent, curve, bought = 0.0, [], []
    while True:
        ask = trial.ask()
        size = int(ask.action["size"])
        if spent + PRICES[size] > budget or len(bought) == ROOM:
            break
        trial.tell(ask.token, train(ask.action["mixture"], size, 1000 * key + len(bought)))
        spent += PRICES[size]
        bought.append((spent, size))
        if len(bought) % look == 0:
            curve.append((spent, regret_of(trial.recommend().action["mixture"])))
    best = trial.recommend()
    curve.append((spent, regret_of(best.action["mixture"])))
    return trial, best, np.array(curve), np.array(bought)


engine = dp.inference.gaussian_process(mixing, capacity=ROOM, num_restarts=2)
cheap_first = rules.per_cost(rules.knowledge_gradient)
options = {"actions": pool(range(len(SIZES)))} if SMOKE else {}
trial, best, curve, bought = search(cheap_first, BUDGET, KEY, 4, **options)
spent, regret = curve[-1]
mixture = best.action["mixture"]
print("runs at each size:", np.bincount(bought[:, 1].astype(int), minlength=len(SIZES)).tolist())
print(f"spent {spent:.2f} full runs; recommended mixture {np.round(mixture, 2)}")
print(f"predicted loss at the target {-best.mean:.3f} +- {best.sd:.3f}, true regret {regret:.4f}")
print(f"more knowledge could lower the loss by {best.regret:.4f} on average")

# %% [markdown]
# `recommend` gives the mixture of lowest expected loss at the target, not the best run so far:
# most runs were made at other sizes. Its `regret` is what perfect knowledge could still bring,
# by the model's own account.
#
# ## Is the model to be trusted?
#
# Every loss can be predicted from all others. Residuals in units of the predicted deviation
# should be of order one, at each size: if large ones gather at the target, the model is wrong
# about how sizes relate, and its recommendation with it.

# %%
left_out = engine.surrogate.leave_one_out(trial.belief)
seen, at = np.asarray(trial.history["loss"]), np.asarray(trial.history["size"])
predicted, deviation = (np.asarray(x)[0, : len(seen), 0] for x in (left_out.loc, left_out.scale))
residual = (seen - predicted) / deviation
for i in np.unique(at):
    own = residual[at == i]
    print(f"{SIZES[i]:4.0f}M: {len(own):2d} runs, root mean square of residuals "
          f"{np.sqrt(np.mean(own**2)):.2f}, largest {np.abs(own).max():.1f}")  # fmt: skip

# %% [markdown]
# What was learned about sizes: draw whole functions from the posterior, and correlate losses at
# the smallest size and at the target over random mixtures. The simulator knows the answer.


# %%
@jax.jit
@jax.vmap
def posterior_correlation(f):
    some = jnp.asarray(random_mixtures[:200])
    small, full = (f.batch(some, jnp.full(len(some), s)) for s in (LOG_SIZES[0], 0.0))
    return jnp.corrcoef(small, full)[0, 1]


actual = np.corrcoef(truth.objective(random_mixtures, SIZES[0], STEPS), random_regrets)[0, 1]
print(f"correlation of {SIZES[0]:.0f}M with the target over mixtures: true {actual:.2f}", end="")
if not SMOKE:
    worlds = engine.sample(jax.random.key(KEY), trial.belief, 100)
    found = np.quantile(posterior_correlation(worlds["f"]), [0.05, 0.95])
    print(f", posterior 90 % from {found[0]:.2f} to {found[1]:.2f}", end="")
print()

# %% [markdown]
# ## Full runs only
#
# The same money spent at the target alone. Random search keeps the best of its runs; its median
# over many repetitions is exact enough to draw as a line. Expected improvement uses the same
# model and the same engine; a constraint on the price leaves it full runs. Both get four times
# the budget in full size, to see where they would catch up.

# %%
most = 8
groups = random_mixtures[: len(random_mixtures) // most * most].reshape(-1, most, SOURCES)
noise = float(truth.noise_scale(SIZES[TARGET], STEPS))
regrets = regret_of(groups)
noisy = regrets + noise * np.random.default_rng(KEY).normal(size=regrets.shape)
kept = [regrets[np.arange(len(groups)), noisy[:, :n].argmin(1)] for n in range(1, most + 1)]
random_curve = np.median(kept, axis=1)
print(f"random full runs: median regret {random_curve[1]:.3f} after 2, {random_curve[-1]:.3f} "
      f"after {most}")  # fmt: skip
if not SMOKE:
    _, _, improvement, _ = search(
        rules.log_ei, most, KEY, 1, constraint=lambda found: found["price"][0] > 0.99
    )
    print(f"expected improvement: regret {improvement[1, 1]:.3f} after 2 full runs, "
          f"{improvement[-1, 1]:.3f} after {len(improvement) - 1}")  # fmt: skip

# %%
import matplotlib.pyplot as plt  # noqa: E402

figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
axes.plot(curve[:, 0], curve[:, 1], "-", color="#0072B2", label="knowledge gradient per cost")
axes.plot(np.arange(1, most + 1), random_curve, "--", color="0.4", label="random full runs")
if not SMOKE:
    axes.plot(*improvement.T, "-.", color="#D55E00", label="expected improvement, full runs")
lowest = 0.5 * max(curve[:, 1].min(), 1e-5)
for i, mark in enumerate("|x*"):
    when = bought[bought[:, 1] == i, 0]
    if not len(when):
        continue
    axes.plot(when, np.full(len(when), lowest), mark, color="#0072B2", markersize=9, alpha=0.7,
              label=f"run at {SIZES[i]:.0f}M")  # fmt: skip
axes.axhline(screened[SIZES[0]], color="0.7", linewidth=1)
axes.annotate(f"screening 200 mixtures at {SIZES[0]:.0f}M", (1.1, screened[SIZES[0]]),
              xytext=(0, 3), textcoords="offset points", fontsize="small")  # fmt: skip
axes.set(xscale="log", yscale="log", xlabel="spent, in full runs", ylabel="regret at the target")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, fontsize="small")
figure.savefig("cheap_runs.png", dpi=120)

# %% [markdown]
# The search begins with the smallest runs, as the prior sees nothing against them, and for a
# while recommends what they like: regret rises. A few runs of the middle size contradict them.
# From then on small runs are read with the learned sign, and are still worth buying.
#
# ## What to try next
#
# - `fit="laplace"` in the engine averages over hyperparameters, `fit="nuts"` does so whatever
#   their posterior looks like. With few runs the correlation is uncertain, and one value of it is
#   over-confident.
# - Ask several times before telling: a batch of runs for a cluster.
# - `rules.max_value_entropy` in place of the knowledge gradient.
# - Stop when `recommend().regret` is below what matters to you, in place of a budget.
# - `data_mixture.search` and `decisionppl run data_mixture --runs FOLDER --budget B` for a table
#   of runs that were made already.
#
# The number to hold: the true regret of the recommended mixture after two full runs' worth of
# compute. It varies with the key; the bound leaves room.

# %%
if SMOKE:
    assert regret < 0.08, regret
else:
    assert regret < 0.01, regret
    assert regret < 0.5 * random_curve[-1]  # of four times the cost
assert regret < 0.5 * screened[SIZES[0]]
plt.close("all")
