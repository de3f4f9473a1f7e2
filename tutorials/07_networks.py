# %% [markdown]
# # An experiment among friends
#
# An app has a feature for sharing. It gives it to half of its people, by a coin for each, and
# compares hours spent: those with the feature spend 0.65 hours more. A feature costs one hour's
# worth of revenue per person. Is it worth giving to all?
#
# People with the feature also draw in their friends, who have it or not. The comparison inside the
# experiment does not see that: friends of treated people are in both groups. If all have the
# feature, all have friends with it.
#
# We write the model of one experiment on the graph of friends, estimate what the experiment says
# about everyone being treated, and let the model rank designs for the next experiment.
#
# Notation: person i, treatment $z_i$ with probability $p$, score $\eta_i = z_i / p - (1 - z_i) /
# (1 - p)$, friends $N_i$, outcome $Y_i$. The global effect is the mean of $Y_i(1, \dots, 1) -
# Y_i(0, \dots, 0)$.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax.numpy as jnp
import networkx as nx
import numpy as np
import numpyro.distributions as dist

import decisionppl as dp
from decisionppl.inference import designs, network

SMOKE = bool(os.environ.get("TUTORIAL_SMOKE"))
PEOPLE, RUNS, KEY = 2000, 30 if SMOKE else 400, 1

# %% [markdown]
# ## The model
#
# A small world: most of a person's ten friends know each other. The model takes the design as its
# argument; `design("treat")` declares the coins as the action site, and says who is treated. What
# friends do saturates: the first friends with the feature matter most. Hours are the reward.

# %%
friends = network.graph(nx.watts_strogatz_graph(PEOPLE, 10, 0.05, seed=7))


def hours(design):
    treated = design("treat")
    share = friends.share(treated)
    drawn_in = 0.75 * (1 - jnp.exp(-share)) / (1 - jnp.exp(-1.0))
    return dp.reward("hours", dist.Normal(0.85 + 0.65 * treated + drawn_in, 0.9))


# %% [markdown]
# ## The experiment
#
# The truth is an intervention on the model: everyone treated, no one treated, with the same random
# numbers. The analyst does not have it, but a table of people and one of friendships.

# %%
coin_each = designs.unit(PEOPLE, 0.5)
truth = float(network.total_effect(hours, coin_each, key=KEY, num_runs=20).estimate)
ran = network.experiment(hours, coin_each, network.interference(coin_each, friends), key=KEY)
people = {
    "id": np.arange(PEOPLE), "feature": np.asarray(ran.drawn), "hours": np.asarray(ran.outcome),
}  # fmt: skip
ties = {"of": np.asarray(friends.receiver), "friend": np.asarray(friends.sender)}
logged = network.from_table(
    people, unit="id", outcome="hours", treated="feature", p=0.5, edges=(ties, "friend", "of")
)

# %% [markdown]
# ## What the comparison says, and what it misses
#
# Differences-in-Neighbors adds the scores of the friends to the own one: $\frac1n \sum_i Y_i
# (\eta_i + \sum_{j \in N_i} \eta_j)$ at $p = 1/2$. What does not depend on person j may be taken
# off the outcome that $\eta_j$ weighs. The mean of those whom j does not reach is such a number,
# and it takes most of the noise. Horvitz and Thompson compare people all of whose friends are
# treated with people none of whose are: one in two thousand.

# %%


def told(name, found):
    lower, upper = (float(x) for x in found.interval)
    print(f"{name}: {float(found.estimate):+.2f}, 95 % from {lower:+.2f} to {upper:+.2f}")


comparison, neighbours = network.difference_in_means(logged), network.dn(logged)
told("difference in means", comparison)
told("Differences-in-Neighbors", neighbours)
told("the same without baseline", network.dn(logged, baseline=False))
told("Horvitz-Thompson", network.horvitz_thompson(logged))
print(f"truth: {truth:+.2f}")

# %% [markdown]
# The comparison is precise about half of the effect. Differences-in-Neighbors is wider, and
# covers the truth.
#
# ## The decision
#
# The feature costs 1 per person. By the comparison one would not roll it out; by the estimate that
# counts friends one would.

# %%
COST = 1.0
for name, found in (("comparison", comparison), ("with neighbours", neighbours)):
    print(f"{name}: gain {float(found.estimate) - COST:+.2f} per person ->",
          "roll out" if found.estimate > COST else "do not")  # fmt: skip

# %% [markdown]
# ## The next experiment
#
# Which design would have told most? The model is the simulator: the same function runs under other
# designs. Clusters of friends can be given a coin together; Louvain's method finds them in the
# graph, and so does the ring on which this world is built. `compare` runs each design many times.

# %%
candidates = {
    "person": coin_each,
    "communities": designs.communities(friends),
    "circles of 10": designs.cluster(np.arange(PEOPLE) // 10),
    "circles of 40": designs.cluster(np.arange(PEOPLE) // 40),
}
if SMOKE:
    candidates = dict(list(candidates.items())[:2])
study = designs.compare(hours, candidates, graph=friends, key=KEY + 1, num_runs=RUNS)
print(study)
best = study.ranking()[0]
print(f"best: {best[0]}, {best[1]}, error {best[2] / truth:.0%} of the effect")

# %%
import matplotlib.pyplot as plt  # noqa: E402

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
dp.plots.frontier(study, title="designs and estimators", ax=left)
some = network.graph(nx.watts_strogatz_graph(60, 6, 0.05, seed=7))
circles = designs.cluster(np.arange(60) // 10)
drawn = circles.treatment(np.array([1, 0, 0, 1, 1, 0]))
dp.plots.exposure(some, drawn, title="sixty people, circles of ten", ax=right)
figure.savefig("networks.png", dpi=120)

# %% [markdown]
# With larger circles the comparison has less bias and more spread. Differences-in-Neighbors has
# little bias under any design, and gains from circles: coins that reach a person are fewer.
#
# ## What to try next
#
# - `network.snipe(logged, order=2)`, where pairs of friends matter together.
# - `features=` of `network.dn`: last month's hours take off what they explain, without bias.
# - `designs.switchback` and `network.recent`, where units are requests, and friends are the zones
#   near by and the minutes before.
# - A posterior instead: coefficients as latent sites (`models.network.spillovers(unknown=True)`)
#   and any engine.
#
# The number to hold: the comparison misses more than 40 % of the effect with an interval that
# excludes the truth; Differences-in-Neighbors covers it, and in circles its error is below a tenth
# of the effect.

# %%
assert comparison.estimate < 0.6 * truth
assert comparison.interval[1] < truth
assert neighbours.interval[0] < truth < neighbours.interval[1]
assert comparison.estimate < COST < neighbours.estimate
near = dict(zip(study.designs, study.rmse[:, study.estimators.index("differences-in-neighbors")],
                strict=True))  # fmt: skip
assert best[0] != "person"
assert near["communities"] < 0.1 * truth < near["person"]
plt.close("all")
