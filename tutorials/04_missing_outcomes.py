# %% [markdown]
# # Deciding by generating what was not seen
#
# A clinic can give each arriving patient one of two new therapies. For each patient we will see
# what the given therapy did, and never what the other one would have done. We have no prior that
# we trust, but records of many earlier therapies: sequences of patients, with severity, group and
# outcome. Two questions:
#
# 1. Who should get which therapy, while we learn?
# 2. The clinic's board asks that therapy 0 be given at the same rate in both groups of patients.
#    What does that cost?
#
# The method is Thompson sampling by generation (arXiv 2405.19466, arXiv 2502.07064). A sequence
# model, learned from the records, completes the table of outcomes: every patient, either therapy.
# A policy is fitted to the completed table, and gives the patient at hand what it chooses.

# %%
import functools
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpyro import handlers

import decisionppl as dp
from decisionppl import inference, plots
from decisionppl.inference import policies
from decisionppl.models import neural

SMOKE = bool(os.environ.get("TUTORIAL_SMOKE"))
HORIZON, RUNS, STEPS = (24, 32, 100) if SMOKE else (200, 100, 3000)

# %% [markdown]
# ## Records of earlier therapies
#
# A patient is (group, severity). How a therapy's success depends on the patient differs from
# therapy to therapy; the records show how.


# %%
def draw_therapy(key):
    """Log-odds of success: intercept, group, severity."""
    return jnp.asarray([0.0, 0.0, -0.5]) + jnp.asarray([0.5, 1.5, 1.0]) * jax.random.normal(
        key, (3,)
    )


def draw_patient(key, t=0):
    group_key, severity_key = jax.random.split(key)
    group = jax.random.bernoulli(group_key, 0.4).astype(float)
    return jnp.stack([group, jax.random.normal(severity_key)])


def success(therapy, patient):
    return jax.nn.sigmoid(therapy[0] + patient @ therapy[1:])


@functools.partial(jax.jit, static_argnums=2)
def records(key, step, size=64):
    """Patients [size, HORIZON, 2] and outcomes [size, HORIZON] of some earlier therapies."""

    def one(key):
        therapy_key, patient_key, outcome_key = jax.random.split(key, 3)
        patients = jax.vmap(draw_patient)(jax.random.split(patient_key, HORIZON))
        rate = success(draw_therapy(therapy_key), patients)
        return patients, jax.random.bernoulli(outcome_key, rate).astype(int)

    return jax.vmap(one)(jax.random.split(key, size))


# %% [markdown]
# ## A sequence model
#
# A small network gives the chance of success of the next patient from the patient and from
# statistics of those before. `parallel` trains it on whole sequences, `sequence` draws from it.

# %%
net = neural.StatisticsNetwork(
    2,
    neural.least_squares(lambda x: jnp.concatenate([jnp.ones(1), x]), 3),
    neural.bernoulli(),
    hidden=(32, 32),
    rngs=nnx.Rngs(0),
)
fit = inference.train(
    neural.parallel(net), records, STEPS, key=0, held_out=records(jax.random.key(1), 0, 256)
)
model = handlers.substitute(neural.sequence(net), data=fit.params)
print(f"loss on held-out therapies: {fit.held_out[0][1]:.4f} -> {fit.held_out[-1][1]:.4f} nats")

# %% [markdown]
# ## The decisions
#
# The patients to come are drawn; each decision draws the missing outcomes of both therapies,
# fits a logistic policy to the completed table, and follows it. The board's rule is a
# restriction of the class of policies: no other line changes.

# %%
free = policies.logistic()
fair = policies.equal_selection(free, 0, lambda x: x[0].astype(int), 2, tolerance=0.02)
patients = jax.vmap(draw_patient)(jax.random.split(jax.random.key(2), HORIZON))

clinic = dp.experiment.Environment(
    lambda key: jax.vmap(draw_therapy)(jax.random.split(key, 2)),
    lambda key, therapies, t: (patients[t],),
    lambda key, therapies, t, context, action: {
        "y": jax.random.bernoulli(key, success(therapies[action["arm"]], context.args[0]))
    },
    lambda therapies, t, context, actions: jax.vmap(success, (0, None))(therapies, context.args[0]),
)
runs = {}
for name, policy in {"equal rates": fair, **({} if SMOKE else {"free": free})}.items():
    problem = inference.potential_outcomes(
        model, patients, arms=2, policy=policy, contexts=draw_patient
    )
    runs[name] = dp.experiment.run(
        problem.model, problem.inference, dp.rules.thompson, clinic, HORIZON, key=3,
        replications=RUNS, propensities=False,
    )  # fmt: skip

# %% [markdown]
# ## What it costs
#
# Regret is counted against giving each patient the better therapy for that patient, a rule
# that the board does not allow; so the restricted policy goes on paying.


# %%
def rate_gap(run):
    """Difference between groups in how often therapy 0 was given, mean over runs."""
    given = run.data.arm.values == 0
    group = np.asarray(patients[:, 0]) == 1
    return float(np.abs(given[:, group].mean(1) - given[:, ~group].mean(1)).mean())


@jax.jit
def regret_of_a_coin(keys):
    """Total regret of a random choice, mean over pairs of therapies."""
    each = jax.vmap(success, (None, 0))  # over patients
    rates = jax.vmap(jax.vmap(each, (0, None)), (0, None))(jax.vmap(clinic.init)(keys), patients)
    return (rates.max(1) - rates.mean(1)).sum(-1).mean()


coin = float(regret_of_a_coin(jax.random.split(jax.random.key(4), 2000)))
regret = {n: float(r.data.regret.sum("round").mean()) for n, r in runs.items()}
gap = {n: rate_gap(r) for n, r in runs.items()}
print(f"regret per run of {HORIZON} patients: coin flips {coin:.1f}, " + ", ".join(
    f"{n} {v:.1f}" for n, v in regret.items()))  # fmt: skip
print("gap between groups: " + ", ".join(f"{n} {v:.2f}" for n, v in gap.items()))

# %%
import matplotlib.pyplot as plt  # noqa: E402

ax = plots.regret(runs, title="Regret, with and without equal selection rates", units="patients")
ax.figure.savefig("missing_outcomes.png", dpi=120)

# %% [markdown]
# Generation learns who gains from what, and the restriction takes away most of the difference
# between groups.

# %%
if SMOKE:
    assert regret["equal rates"] < coin
else:
    assert regret["free"] < 0.5 * coin
    assert gap["equal rates"] < 0.5 * gap["free"]
plt.close("all")
