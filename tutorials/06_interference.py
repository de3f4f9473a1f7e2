# %% [markdown]
# # What happens if everyone is treated
#
# A platform rents out 60 flats in a city. It tries a discount of 35 % on half of the customers,
# chosen by a coin: those with a discount book far more often. What would the platform earn if
# everyone got it?
#
# The experiment compares customers who live in one market. A flat that a treated customer books
# is missing for the next customers, most of all for those without a discount. If all are treated,
# all compete for the same flats. The comparison inside the experiment answers another question.
#
# We write down one step of the market. From the step follow simulated experiments, exact truths,
# estimators that count what a booking does to later customers, and a posterior of the effect.
#
# Notation: state $s$, arm $a$ (0 control, 1 treated), $J_a$ the average revenue per customer if
# everyone gets arm $a$, $\rho$ the long-run law of the state under the experiment, $V$ what a
# state is worth for later customers, $Q_a$ the worth of an arm now and later. The effect is
# $J_1 - J_0$.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import decisionppl as dp
from decisionppl.inference import effects, markov

SMOKE = bool(os.environ.get("TUTORIAL_SMOKE"))
CUSTOMERS, CITIES, KEY = 10_000, 4, 0  # customers logged in each of four equal cities
FIT, DRAWS = (4_000, 50) if SMOKE else (40_000, 500)  # rows for NUTS; draws of each chain

# %% [markdown]
# ## The market
#
# One step is one customer. The state is the number of free flats. The customer books with a
# probability that grows with the number of free flats and the utility of a flat, $u_a$. Before the
# next customer arrives a flat may come back, with probability 0.005 for each that is rented. The
# utilities are unknown: an ordinary sample site with a prior. The coin of the experiment is the
# law of the action site.

# %%
FLATS, BACK = 60, 0.005
STATES = np.arange(FLATS + 1)
PRICE = np.array([1.0, 0.65])


def customer(free):
    utility = numpyro.sample("utility", dist.LogNormal(-3.0, 1.0).expand([2]).to_event(1))
    treat = dp.action("treat", dist.Bernoulli(0.5), given=free)
    choice = utility[treat] * free
    booked = dp.outcome("booked", dist.Bernoulli(choice / (1 + choice)))
    dp.reward("revenue", jnp.asarray(PRICE)[treat] * booked)
    back = dp.outcome("back", dist.Bernoulli(BACK * (FLATS - free)))
    return dp.state("free", free - booked + back)


# %% [markdown]
# ## The experiment
#
# The true utilities are given to `rollout` as a world, and to nothing else. What the analyst has
# is a table: one row per customer, as a warehouse would hold it.

# %%
TRUE = {"utility": jnp.array([0.02, 0.16])}
simulated = markov.rollout(customer, 30, CUSTOMERS, key=KEY, num_runs=CITIES, world=TRUE)
table = {
    "city": np.repeat(np.arange(CITIES), CUSTOMERS),
    "customer": np.tile(np.arange(CUSTOMERS), CITIES),
    "free": np.asarray(simulated.state[:, :-1]).ravel(),
    "treat": np.asarray(simulated.arm).ravel(),
    "revenue": np.asarray(simulated.reward).ravel(),
}
logged = markov.from_table(
    table, unit="city", time="customer", action="treat", reward="revenue", state="free", design=0.5
)
print(f"{len(table['free'])} customers, on average {table['free'].mean():.1f} flats free")

# %% [markdown]
# ## The naive answer
#
# Revenue per treated customer less revenue per control customer.

# %%


def told(name, found):
    lower, upper = (float(x) for x in found.interval)
    print(f"{name}: {float(found.estimate):+.3f}, 95 % from {lower:+.3f} to {upper:+.3f}")


naive = effects.naive(logged)
told("naive", naive)

# %% [markdown]
# A large gain with a narrow interval: roll out, it seems. The interval is right about the noise,
# and says nothing about the bias. More data would make the wrong number sharper.
#
# ## What a booking leaves to later customers
#
# Differences-in-Q replaces the revenue of a customer by $Q$: revenue, plus the value $V$ of the
# flats that are left, less that of those before. $V$ is fitted to the same log, here with one
# number per state. The estimate is $\rho (Q_1 - Q_0)$.

# %%
dq = effects.dq(logged, FLATS + 1)
told("Differences-in-Q", dq)

# %% [markdown]
# The sign has changed. A treated customer pays less and takes a flat that someone would have
# booked at full price.
#
# ## What the experiment could not tell
#
# Why not estimate $J_1$ and $J_0$ themselves? Off-policy evaluation does so without bias, by
# following the treated steps alone. But if all were treated few flats would be free, and if none
# were treated many: states that the experiment seldom visits.

# %%
off_policy = effects.off_policy_lstd(logged, FLATS + 1)
told("off-policy", off_policy)

# %% [markdown]
# It does not tell the sign, and even its interval is too narrow: a log that was hardly ever where
# the market would be does not know how little it says about it. The exact standard error, below,
# is many times larger, and no unbiased estimator that knows only that the market is Markov does
# better. Differences-in-Q pays for its precision with a bias. How large?
#
# ## The truth, and a series that leads to it
#
# In this tutorial we know the utilities: `condition` puts them in the place of their sites.
# `markov.kernel` enumerates the step into the exact transition probabilities of both arms.
# `taylor` expands the effect in the step from the experiment to all or none treated, powers of
# $(P_a - P) Z$ with the deviation matrix $Z$. Order 1 is what Differences-in-Q tends to.

# %%
kernel = markov.kernel(numpyro.handlers.condition(customer, TRUE), STATES)
series = effects.taylor(kernel, 9)
truth = series.effect
print(f"true effect {truth:+.3f}; by order {series.by_order[:6].round(3).tolist()}")
print(f"each term shrinks by {series.ratio.max():.2f}: converges {series.converges}")
limits = effects.asymptotics(kernel)
for name, found in limits.items():
    stderr = found.sd / np.sqrt(CITIES * CUSTOMERS)
    print(f"  {name}: bias {found.bias:+.3f}, standard error {stderr:.3f}")

# %% [markdown]
# The coin is fair, so even orders add nothing: the bias of Differences-in-Q is of third order in
# the size of the intervention. It is small beside that of the naive answer. The last line is the
# price of no bias: the best that an unbiased estimator without a model of the market can do.
#
# With a ratio above one the series diverges, and higher orders do harm. `taylor` says so.
#
# ## With a model: a posterior
#
# A platform does not know the utilities, but it knows the step. NUTS runs on rows of logged
# transitions: the state is the argument of the row, what was decided and booked its sites.
# Returns say nothing about utilities and are left out. Each posterior draw of the utilities is a
# world, each world a kernel, and each kernel has an effect, without another simulation.

# %%
rows = slice(0, len(table["free"]), len(table["free"]) // FIT)
seen = {"treat": table["treat"][rows], "booked": (table["revenue"][rows] > 0).astype(int)}
engine = dp.inference.nuts(
    customer, STATES[0], sites=["treat", "booked"],
    num_warmup=200, num_samples=DRAWS, num_chains=2,
)  # fmt: skip
belief = engine.update(KEY, engine.init(KEY), dp.observe(customer, (table["free"][rows],), seen))
if not SMOKE:
    print({n: x["utility"].round(3).tolist() for n, x in dp.inference.diagnostics(belief).items()
           if n in ("r_hat", "ess")})  # fmt: skip
chains = dp.inference.posterior(belief)
worlds = {n: x.reshape(-1, *x.shape[2:]) for n, x in chains.items()}
posterior = effects.posterior(markov.kernel(customer, STATES, world=worlds), order=9)
draws = posterior.to_arviz(num_chains=2)["posterior"]  # as ArviZ reads it
interval = np.quantile(draws["effect"], [0.025, 0.975])
bias = np.quantile(draws["dq_bias"], [0.025, 0.975])
print(f"posterior of the effect: mean {posterior.effect.mean():+.3f}, 95 % from "
      f"{interval[0]:+.3f} to {interval[1]:+.3f}")  # fmt: skip
print(f"posterior of the bias of Differences-in-Q: 95 % from {bias[0]:+.3f} to {bias[1]:+.3f}")

# %% [markdown]
# The structure of the market carries what was seen at 10 free flats to 2 and to 40, so the
# interval is far narrower than that of off-policy evaluation. That is worth as much as the
# structure is true. Differences-in-Q assumes none, and agrees up to the bias that the posterior
# says it has: a check that the analyst can make.
#
# ## The decision
#
# Roll the discount out or not, by expected loss: what is lost per customer, on average over the
# posterior, if the choice is wrong.

# %%
loss = {
    "roll out": float(np.maximum(-posterior.effect, 0).mean()),
    "do not": float(np.maximum(posterior.effect, 0).mean()),
}
choice = min(loss, key=lambda name: loss[name])
print("expected loss per customer:", {n: round(x, 4) for n, x in loss.items()}, "->", choice)
print(f"rolling out, as the naive answer says, would cost {-truth:.3f} per customer, "
      f"{-truth / posterior.control.mean():.0%} of the revenue without a discount")  # fmt: skip

# %%
import matplotlib.pyplot as plt  # noqa: E402

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
shown = {"naive": naive, "off-policy": off_policy, "Differences-in-Q": dq}
shown["posterior"] = effects.Effect(posterior.effect.mean(), posterior.effect.std(), interval, {})
dp.plots.effects(shown, truth, title="estimates, 95 %", units="revenue per customer", ax=left)
dp.plots.effects(
    {"posterior, 95 %": posterior, "true market": series}, title="series about the experiment",
    units="revenue per customer", ax=right,
)  # fmt: skip
right.plot(0, limits["naive"].estimand, "x", color="black", label="limit of the naive estimate")
right.legend(frameon=False, fontsize="small", handlelength=3.2)
figure.savefig("interference.png", dpi=120)

# %% [markdown]
# ## What to try next
#
# - `markov.dirichlet_kernel` in place of the utilities: a posterior that assumes no structure. Its
#   interval is wide where off-policy evaluation's is, for the same reason.
# - A design: `p` in `taylor` and `asymptotics` says what a coin of 0.2 would have given. Away from
#   1/2 the bias is of second order.
# - A switchback: let one step be a week with one decision for all its customers.
# - `effects.dq(..., value_trace=...)` with a function of the state as features, where states are
#   too many to list; `effects.forked` where there is a simulator.
#
# The number to hold: the naive answer has the wrong sign and misses the truth by several times
# the effect, while Differences-in-Q is within its error of order 1 and the posterior of all rows
# covers the truth.

# %%
assert naive.interval[0] > 0 > truth
assert abs(naive.estimate - truth) > 4 * abs(truth), naive.estimate
assert abs(dq.estimate - series.estimate) < 4 * dq.stderr, dq.estimate
assert dq.interval[1] < 0
assert abs(series.bias) < 0.1 * abs(limits["naive"].bias)
assert limits["off-policy"].sd > 10 * limits["dq"].sd
assert abs(posterior.effect.mean() - truth) < 4 * posterior.effect.std()
assert SMOKE or interval[0] < truth < interval[1] < 0
assert choice == "do not"
plt.close("all")
