# %% [markdown]
# # Your first decision
#
# A shop can show one of five banners to its visitors, a new choice every hour. Takings of an hour
# vary a good deal. The banners come from different designers, who ask a fee for each hour that
# their work is shown. Which banner goes up next?
#
# The banner that did best so far may have been lucky, and one that was hardly tried may be the
# best. So two things are wanted of every hour: good takings now, and knowledge for later. How to
# weigh one against the other is what is called a bandit problem.
#
# You write down one hour as a NumPyro model. This page goes from there to one decision, then to a
# thousand of them, and then to decisions in the real world. It takes NumPyro for granted, and
# nothing of bandits.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import decisionppl as dp

SMOKE = bool(os.environ.get("TUTORIAL_SMOKE"))
HOURS, SHOPS = 1000, 500 if SMOKE else 1000

# %% [markdown]
# ## The model: one hour
#
# What is unknown is an ordinary sample site. Three more words give the other sites a role:
# `action` is what we choose, `reward` what is wanted, `cost` what is paid for it. (`outcome` is for
# what is seen, but neither wanted nor paid.) The law of an action says how banners would be chosen
# if nobody decided; an integer is short for a fair draw. There are no data in the model and no
# `obs=`: they come later, from outside.

# %%
FEE = jnp.array([0.0, 2.0, 4.0, 6.0, 8.0])


def hour():
    appeal = numpyro.sample("appeal", dist.Normal(50, 10).expand([5]).to_event(1))
    banner = dp.action("banner", 5)
    dp.reward("takings", dist.Normal(appeal[banner], 25.0))
    dp.cost("fee", FEE[banner])


# %% [markdown]
# ## What is known
#
# An engine turns logged rows into a belief about the unknown sites. `conjugate` finds in the
# program itself that this one is Normal in, Normal out, and updates exactly; for other models there
# are `laplace`, `nuts`, `svi`, and more. `observe` checks the rows against the model.

# %%
engine = dp.inference.conjugate(hour)
log = dp.observe(hour, sites={"banner": [0, 0, 3, 3, 4], "takings": [48.0, 61.0, 80.0, 55.0, 40.0]})
key = jax.random.key(0)
belief = engine.update(key, engine.init(key), log)

# %% [markdown]
# ## One decision, by hand
#
# A draw from the belief is a world: a complete hypothesis of how good the banners are. In each
# world every banner has a value, what it takes in less its fee:
#
# $$U_{wa} = E[\text{reward} - \text{cost} \mid \text{do}(\text{action} = a), \text{world } w].$$
#
# The matrix $U$ [worlds, actions] is all that a rule needs. Its column means say what each banner
# is worth by what is known now. How often a column is the largest of its row says how likely that
# banner is the best. Those are different questions.

# %%
worlds = engine.sample(key, belief, 10_000)
U = dp.utility(hour, worlds, key=key)
value = np.asarray(U.mean(0))
best = np.bincount(np.asarray(U.argmax(1)), minlength=5) / len(U)
for banner in range(5):
    print(f"banner {banner}: worth {value[banner]:.1f}, best with probability {best[banner]:.2f}")

# %% [markdown]
# Banner 1 was never shown and still has a fair chance of being the best one.
#
# - **Greedy** shows the banner of the largest mean. It never finds out about the others.
# - **Thompson sampling** takes one world at random, and the banner that is best in it. A banner is
#   shown as often as it is likely to be the best: doubtful ones are tried, bad ones are dropped.
#
# (Thompson 1933; Russo et al., A Tutorial on Thompson Sampling, arXiv 1707.02038.)

# %%
greedy = dp.rules.greedy(key, U)
thompson = dp.rules.thompson(key, U)
by_hand = U[0].argmax()  # what Thompson sampling does, in one line
print("greedy shows banner", int(greedy.action), "- Thompson sampling, today, banner",
      int(thompson.action), "- by hand", int(by_hand))  # fmt: skip

# %% [markdown]
# ## A thousand decisions, in a thousand shops
#
# `run` repeats this: decide, observe, learn. Each shop draws its own truth from the model. All
# shops and hours run in one compiled program. Regret is what was lost against someone who knows the
# truth: the value of the best banner less that of the one shown.

# %%
rules = {"greedy": dp.rules.greedy, "Thompson": dp.rules.thompson}
if not SMOKE:
    rules["at random"] = dp.rules.uniform
runs = {
    name: dp.experiment.run(
        hour, engine, rule, horizon=HOURS, key=1, replications=SHOPS, propensities=False
    )
    for name, rule in rules.items()
}
print(runs["Thompson"].data.sizes)

# %%
import matplotlib.pyplot as plt  # noqa: E402

figure, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
dp.plots.regret(runs, title="Takings lost, mean of all shops", ax=ax)
ax.set(xlabel="hour", ylabel="cumulative regret", ylim=(0, 3500))
figure.savefig("first_decision.png", dpi=120)

# %% [markdown]
# Choosing at random loses the same in every hour. Greedy is quick to settle, and in many shops it
# settles on the wrong banner, for which it pays for ever. Thompson sampling pays more in the first
# hours, for knowledge, and then hardly anything.

# %%
total = {n: r.data.regret.sum("round").values for n, r in runs.items()}
late = {n: r.data.regret.isel(round=slice(-100, None)).values.mean(1) for n, r in runs.items()}
stuck = {n: (v > 1).mean() for n, v in late.items()}
for name in rules:
    se = total[name].std(ddof=1) / SHOPS**0.5
    print(f"{name:9}: loses {total[name].mean():6.0f} +- {2 * se:.0f} in {HOURS} hours; "
          f"in {stuck[name]:.0%} of the shops still more than 1 an hour at the end")  # fmt: skip

# %% [markdown]
# ## In the real world
#
# There is no model to draw takings from, and nobody waits for a loop. `Experiment` is the same
# engine and rule, one decision at a time: `ask` for what to do, `tell` what followed, in any order
# and whenever it is known. The belief can be written to a file and read by another process.

# %%
shop = dp.experiment.Experiment(hour, engine, dp.rules.thompson, key=2)
shop.learn(log)
first, second = shop.ask(), shop.ask()
shop.tell(second.token, 71.0)  # the second hour's takings were counted first
shop.tell(first.token, 38.5)
print(f"shown {first.action}, then {second.action}, each with its probability "
      f"({first.propensity:.2f}, {second.propensity:.2f}) for later analysis")  # fmt: skip
shop.save("shop.nc")
again = dp.experiment.Experiment(hour, engine, dp.rules.thompson, key=2).load("shop.nc")
print("open decisions:", again.pending, "- history:", again.history["banner"])

# %% [markdown]
# ## What to try next
#
# - Another prior, or fees that are so high that the best banner is not the one that takes in most.
# - Takings that depend on the weather: give `hour` an argument `x`, write `given=x` in the action,
#   make the mean `appeal[banner] @ x`, and call `ask(x)` (README, "One complete example").
# - `dp.rules.top_two`, `ucb`, `information_directed`; `rules.per_cost` where the budget, not the
#   number of hours, runs out.
# - `constraint=` in `run` and `Experiment`, for banners that must not lose more than so much.
# - Your own model, and how to find its mistakes: `02_your_own_model.py`.
#
# The numbers to hold: greedy loses nearly twice as much as Thompson sampling, chance nine times as
# much; greedy is stuck with a wrong banner in a third of the shops.

# %%
# Margins of 4 standard errors or more with 500 shops: those of the means are 180 (greedy) and 30
# (Thompson sampling, of 1270), that of the difference of shares is 0.025, of 0.24.
thompson_total = total["Thompson"].mean()
assert total["greedy"].mean() > 1.25 * thompson_total
assert stuck["greedy"] > stuck["Thompson"] + 0.1
assert SMOKE or total["at random"].mean() > 7 * thompson_total
np.testing.assert_allclose(best, thompson.probabilities, atol=1e-6)
plt.close("all")
