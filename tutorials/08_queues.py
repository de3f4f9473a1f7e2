# %% [markdown]
# # Which job should each server work on
#
# A workshop has two machines. The first one makes parts (class 0), which the second one finishes
# (class 1); and the first one also does repairs (class 2), which leave at once. Parts and repairs
# come at rate 0.9 each; the first machine does either at rate 2, the second one finishes at rate 1.
# Both are busy 90 % of the time. A job in the house costs 1 per hour, wherever it is.
#
# The first machine has a choice. Serve the queue that is cheapest to shorten? The longest? Or keep
# the second machine supplied, and otherwise do repairs?
#
# We write the network once, as a NumPyro model of one event. From it follow simulated costs of
# rules with intervals, exact solutions to check them by, derivatives for a rule that is learned,
# and a belief about the rates when they are not known.
#
# Notation: queue lengths $x$, service rates $\mu_{ij}$ of machine $i$ on class $j$, arrival rates
# $\lambda_j$, holding costs $h$; the cost is the long-run average of $h \cdot x$.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np

import decisionppl as dp
from decisionppl.inference import markov, pathwise
from decisionppl.models import queueing

SMOKE = bool(os.environ.get("TUTORIAL_SMOKE"))
EVENTS, RUNS = (40_000, 100) if SMOKE else (200_000, 200)

net = queueing.network(
    arrival=[0.9, 0.0, 0.9],
    service=[[2.0, 0.0, 2.0], [0.0, 1.0, 0.0]],
    next_class=[1, -1, -1],
)
print("load of the machines:", net.load())

# %% [markdown]
# ## The model
#
# A step is one event: an arrival or a completion. What each machine works on until then is the
# action site `serve`; the elapsed time is an outcome, the cost a reward below zero. As in every
# model here, a policy replaces the law of the action, and `markov.rollout` runs it.

# %%
model = queueing.event_model(net)
runs = markov.rollout(model.step, model.init, 500, key=0, policy=queueing.cmu(net))
print("queues after 500 events:", runs.state.length[0, -1])

# %% [markdown]
# ## Known rules, and an exact check
#
# `simulate` runs the same events without sites, tens of millions a second. The $c\mu$ rule serves
# the largest $h_j \mu_{ij}$, MaxWeight the largest $h_j \mu_{ij} x_j$. Under $c\mu$ with parts
# first, the first machine is an M/M/1 queue in total, and by Burke's theorem so is the second one:
# the cost is known, 18 hours of job per hour.
#
# A threshold serves parts while at most three wait at the second machine, and repairs otherwise.

# %%
rules = {
    "cmu": queueing.cmu(net),
    "threshold 3": queueing.threshold(net, 3),
}
if not SMOKE:
    rules |= {"MaxWeight": queueing.max_weight(net), "MaxPressure": queueing.max_pressure(net)}
results, costs = {}, {}
for name, rule in rules.items():
    results[name] = queueing.simulate(net, rule, EVENTS, key=1, num_runs=RUNS)
    costs[name] = results[name].average(warm_up=0.1)
    low, high = costs[name].interval
    print(f"{name}: {costs[name].estimate:.2f}, 95 % from {low:.2f} to {high:.2f}")
print("exact for cmu:", queueing.criss_cross_priority(net))

# %% [markdown]
# The threshold is best by far: one number. Short runs of a busy network are noisy, and a single
# path would rank these rules at random. Always ask for the interval.
#
# ## A lighter workshop can be solved
#
# With a third of the arrivals, relative value iteration finds the best rule of all, on a grid.

# %%
light = queueing.criss_cross("BL")
best = queueing.relative_value_iteration(light, 20)
price = queueing.relative_value_iteration(light, 20, policy=queueing.cmu(light)).cost
print(f"light load: best {best.cost:.4f}, cmu {price:.4f}")

# %% [markdown]
# ## Derivatives
#
# How much does the cost of a queue fall if its machine is a little faster? For an M/M/1 queue with
# $\lambda = 0.5$, $\mu = 1$ it is $-\lambda / (\mu - \lambda)^2 = -2$. Infinitesimal perturbation
# analysis differentiates the times of events, and is right here. Where the order of events matters,
# as for rules, it sees nothing; `ste` differentiates the order as a softmin, with a bias that
# `gradient_check` measures; `score` has no bias and much noise.


# %%
def length(rate, key, mode):
    queue = queueing.mm1(0.5).replace(service=jnp.array([[rate]]))
    one = queueing.event_model(queue)
    return -pathwise.value(
        one.step, one.init, 2000, key=key, mode=mode, per="elapsed", policy=queueing.cmu(queue)
    )[0]


keys = jax.random.split(jax.random.key(2), 50)
slopes = {}
for mode in (pathwise.ipa(),) if SMOKE else (pathwise.ipa(), pathwise.ste(10.0)):
    one = jax.grad(lambda rate, key, mode=mode: length(rate, key, mode))
    slope = jax.jit(jax.vmap(one, in_axes=(None, 0)))(1.0, keys)
    slopes[mode.name] = float(slope.mean())
    print(f"{mode.name}: {slope.mean():+.2f} +- {2 * slope.std() / 50**0.5:.2f} (truth -2)")

# %% [markdown]
# ## A rule that is learned
#
# A small network of the queue lengths, trained by advantages: how much better a decision did than
# the value of its state, which is fitted along the way. What is kept is the average of its weights
# over the second half of the training, not the best of many evaluations.

# %%
if not SMOKE:
    fit = queueing.train_neural(
        net, 1000, key=3, hidden=(32, 32), num_events=100, num_runs=100, progress=False
    )
    learned = queueing.hardened(queueing.neural(net, fit.params["policy"]))
    results["learned"] = queueing.simulate(net, learned, EVENTS, key=1, num_runs=RUNS)
    found = results["learned"].average(warm_up=0.1)
    print(f"learned: {found.estimate:.2f} +- {1.96 * found.stderr:.2f}")

# %% [markdown]
# ## Rates that are not known
#
# Given a log, each rate has a Gamma posterior: events counted over exposure, whatever rule made the
# log. A draw of it is a network, so that a rule at a draw is Thompson sampling.

# %%
if not SMOKE:
    log = queueing.log_events(net, queueing.max_weight(net), 3000, key=4)
    belief = queueing.update_rates(queueing.rates_prior(net), net, *log)
    service = belief.law()["service"]
    draws = belief.completions / belief.effort
    spread = np.sqrt(np.asarray(belief.completions)) / np.asarray(belief.effort)
    for i, j in ((0, 0), (0, 2), (1, 1)):
        print(f"machine {i} on class {j}: {draws[i, j]:.2f} +- {spread[i, j]:.2f}")
    world = belief.sample(jax.random.key(5), net)
    print("rule at a draw:", queueing.cmu(world)(jnp.ones(3), None))

# %%
import matplotlib.pyplot as plt  # noqa: E402

ax = dp.plots.queue_lengths(results, title="two machines, three classes")
ax.figure.savefig("queues.png", dpi=120)

# %% [markdown]
# ## What to try next
#
# - `queueing.instance("reentrant1_6")` and its larger sisters; `decisionppl run queue --instance
#   reentrant1_6 --policy cmu,max_weight,max_pressure`.
# - `num_jobs=` in `simulate`: the same jobs under every rule, for paired comparisons.
# - `interarrival=queueing.hyperexponential()`: clocks of any law.
# - `inference.picard`, where a policy is expensive and units meet in a shared capacity only.
#
# The number to hold: the threshold costs about 15.2 where $c\mu$ costs exactly 18, a sixth less.

# %%
assert abs(costs["cmu"].estimate - 18) < 5 * costs["cmu"].stderr + 0.3
assert costs["threshold 3"].estimate < 0.92 * 18, costs["threshold 3"].estimate
assert best.cost < price
assert abs(best.cost - 0.8432) < 1e-3
assert abs(slopes["ipa"] + 2) < 0.3
assert SMOKE or abs(costs["threshold 3"].estimate - 15.2) < 0.3
plt.close("all")
