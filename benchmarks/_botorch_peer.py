"""BoTorch's side of the comparisons: `python _botorch_peer.py PART TASK RESULT`, files in JSON.

Run by BoTorch's own Python, on one thread, in float64. Times are pairs of seconds: of the
processor, and by the clock.
"""

import json
import sys
import time
import warnings
from pathlib import Path

import mpmath
import numpy as np
import torch
from botorch.acquisition import LogExpectedImprovement, PosteriorMean
from botorch.acquisition.analytic import _log_ei_helper
from botorch.acquisition.cost_aware import CostAwareUtility, InverseCostWeightedUtility
from botorch.acquisition.fixed_feature import FixedFeatureAcquisitionFunction
from botorch.acquisition.knowledge_gradient import qMultiFidelityKnowledgeGradient
from botorch.acquisition.utils import project_to_target_fidelity
from botorch.fit import fit_fully_bayesian_model_nuts, fit_gpytorch_mll
from botorch.models import AffineFidelityCostModel, SingleTaskGP, SingleTaskMultiFidelityGP
from botorch.models.fully_bayesian import SaasFullyBayesianSingleTaskGP
from botorch.models.kernels.downsampling import DownsamplingKernel
from botorch.models.kernels.exponential_decay import ExponentialDecayKernel
from botorch.models.kernels.linear_truncated_fidelity import LinearTruncatedFidelityKernel
from botorch.optim import optimize_acqf
from botorch.optim.initializers import gen_one_shot_kg_initial_conditions
from gpytorch.kernels import MaternKernel, ProductKernel, RBFKernel, ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood

DTYPE = torch.float64


def tensor(values):
    return torch.tensor(values, dtype=DTYPE)


def timed(call):
    """What a call returns, with its processor and wall seconds."""
    processor, wall = time.process_time(), time.perf_counter()
    result = call()
    return result, [time.process_time() - processor, time.perf_counter() - wall]


def plain(value):
    return value.detach().squeeze().tolist()


# Kernels and log EI: values to compare with.


def kernel(spec):
    """A GPyTorch kernel from its description; `dims` are the columns that it sees."""
    kind, dims = spec["kind"], spec.get("dims")
    if kind == "product":
        return ProductKernel(*[kernel(part) for part in spec["parts"]])
    if kind == "scale":
        made = ScaleKernel(kernel(spec["kernel"]))
        made.outputscale = spec["variance"]
    elif kind == "linear truncated":
        levels, width = spec["fidelities"], spec["width"]
        made = LinearTruncatedFidelityKernel(levels, dimension=width, nu=spec["nu"])
        made.power = spec["power"]
        made.covar_module_unbiased.lengthscale = tensor(spec["unbiased"])
        made.covar_module_biased.lengthscale = tensor(spec["biased"])
    elif kind == "downsampling":
        made = DownsamplingKernel(active_dims=dims)
        made.power, made.offset = spec["power"], spec["offset"]
    elif kind == "exponential decay":
        made = ExponentialDecayKernel(active_dims=dims)
        made.lengthscale, made.power = spec["beta"], spec["alpha"]
        made.offset = spec["offset"]
    else:
        width = len(spec["lengthscale"])
        made = RBFKernel(ard_num_dims=width, active_dims=dims)
        if kind == "matern":
            made = MaternKernel(nu=spec["nu"], ard_num_dims=width, active_dims=dims)
        made.lengthscale = tensor(spec["lengthscale"])
    return made.to(DTYPE)


def grams(task):
    """Gram matrices of kernels between two sets of points."""
    found = []
    for case in task["cases"]:
        made = kernel(case["kernel"])
        found.append(made(tensor(case["x"]), tensor(case["z"])).to_dense().tolist())
    return {"grams": found}


def log_ei_values(task):
    """Log EI of a standard normal law of mean z over zero: BoTorch's, and to 50 digits."""
    mpmath.mp.dps = 50

    def exact(z):
        z = mpmath.mpf(z)
        # far out the two terms agree in more digits than are carried
        mpmath.mp.dps = 50 + 3 * max(0, int(mpmath.log10(abs(z) + 1)))
        return float(mpmath.log(mpmath.npdf(z) + z * mpmath.ncdf(z)))

    return {
        "botorch": _log_ei_helper(tensor(task["z"])).tolist(),
        "exact": [exact(z) for z in task["z"]],
    }


# Fits and decisions: timed.


def fit(task):
    """Maximum a posteriori fits of the default single-task model."""

    def one(case):
        model = SingleTaskGP(tensor(case["x"]), tensor(case["y"])[:, None], outcome_transform=None)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        return model

    _, first = timed(lambda: one(task["cases"][0]))
    fits = [timed(lambda case=case: one(case)) for case in task["cases"]]
    return {"first": first, "fits": [{"times": t, **settings_of(m)} for m, t in fits]}


def settings_of(model):
    return {
        "lengthscale": plain(model.covar_module.lengthscale),
        "noise": plain(model.likelihood.noise),
        "mean": plain(model.mean_module.constant),
    }


def log_ei(task):
    """Maximisation of log EI at the same hyperparameters for all data sets."""
    known = task["hyperparameters"]

    def one(case, seed):
        torch.manual_seed(seed)
        acquisition = LogExpectedImprovement(model, best_f=max(case["y"]))
        bounds = tensor([[0.0] * model.train_inputs[0].shape[-1]] * 2)
        bounds[1] = 1.0
        return optimize_acqf(
            acquisition, bounds=bounds, q=1, num_restarts=task["restarts"],
            raw_samples=task["candidates"],
        )[0]  # fmt: skip

    found = []
    for seed, case in enumerate(task["cases"]):
        model = SingleTaskGP(tensor(case["x"]), tensor(case["y"])[:, None], outcome_transform=None)
        model.covar_module.lengthscale = tensor(known["lengthscale"])
        model.likelihood.noise = known["noise"]
        model.mean_module.constant = known["mean"]
        model.eval()
        if not found:
            _, first = timed(lambda: one(task["cases"][0], 0))
        chosen, times = timed(lambda case=case, seed=seed: one(case, seed))
        found.append({"times": times, "x": plain(chosen)})
    return {"first": first, "steps": found}


def knowledge_gradient(task):
    """One step of multi-fidelity knowledge gradient per data set, as BoTorch's tutorial does it.

    The power of the kernel is fixed at one: fitted powers need not give a kernel.

    Twice: with the utility that BoTorch ships, which multiplies what a single fantasy loses by
    the cost where it divides what another gains, so that the average is not the knowledge
    gradient per cost; and with one that divides both.
    """
    return {"steps": [_kg_step(task, case, seed) for seed, case in enumerate(task["cases"])]}


class _PerCost(CostAwareUtility):
    """Change of utility over cost, whatever its sign."""

    def __init__(self, cost_model):
        super().__init__()
        self.cost_model = cost_model

    def forward(self, X, deltas, **_):
        return deltas / self.cost_model(X).sum(dim=(-2, -1))


def _kg_model(case):
    x, y = tensor(case["x"]), tensor(case["y"])[:, None]
    model = SingleTaskMultiFidelityGP(
        x, y, data_fidelities=[x.shape[-1] - 1], outcome_transform=None
    )
    truncated = model.covar_module.base_kernel.kernels[0]
    truncated.power = 1.0
    truncated.raw_power.requires_grad_(False)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def _kg_step(task, case, seed):
    torch.manual_seed(seed)
    model = _kg_model(case)
    chosen, times = timed(lambda: _kg_choice(task, model, InverseCostWeightedUtility))
    torch.manual_seed(seed)
    divided, divided_times = timed(lambda: _kg_choice(task, model, _PerCost))
    truncated = model.covar_module.base_kernel.kernels[0]
    return {
        "times": times, "x": plain(chosen),
        "divided_times": divided_times, "divided_x": plain(divided),
        "unbiased": plain(truncated.covar_module_unbiased.lengthscale),
        "biased": plain(truncated.covar_module_biased.lengthscale),
        "variance": plain(model.covar_module.outputscale),
        "noise": plain(model.likelihood.noise),
        "mean": plain(model.mean_module.constant),
    }  # fmt: skip


def _kg_choice(task, model, utility):
    width = model.train_inputs[0].shape[-1]
    last = width - 1
    bounds = torch.stack([torch.zeros(width, dtype=DTYPE), torch.ones(width, dtype=DTYPE)])
    price = AffineFidelityCostModel(fidelity_weights={last: 1.0}, fixed_cost=task["fixed_cost"])
    mean = FixedFeatureAcquisitionFunction(PosteriorMean(model), width, [last], [1.0])
    restarts, candidates = task["restarts"], task["candidates"]
    current = optimize_acqf(
        mean, bounds=bounds[:, :-1], q=1, num_restarts=restarts, raw_samples=2 * candidates,
        options={"batch_limit": 10, "maxiter": 200},
    )[1]  # fmt: skip
    acquisition = qMultiFidelityKnowledgeGradient(
        model, num_fantasies=task["fantasies"], current_value=current,
        cost_aware_utility=utility(price),
        project=lambda X: project_to_target_fidelity(X, target_fidelities={last: 1.0}, d=width),
    )  # fmt: skip
    starts = gen_one_shot_kg_initial_conditions(
        acquisition, bounds=bounds, q=1, num_restarts=restarts, raw_samples=candidates
    )
    return optimize_acqf(
        acquisition, bounds=bounds, q=1, num_restarts=restarts, raw_samples=candidates,
        batch_initial_conditions=starts, options={"batch_limit": 5, "maxiter": 200},
    )[0]  # fmt: skip


def saas(task):
    """SAAS by NUTS: a first fit, a second of the same shape, then fits of one row more each."""
    x, y = tensor(task["x"]), tensor(task["y"])[:, None]

    def one(rows, thinning, seed):
        model = SaasFullyBayesianSingleTaskGP(x[:rows], y[:rows], outcome_transform=None)
        fit_fully_bayesian_model_nuts(
            model, warmup_steps=task["warmup"], num_samples=task["samples"], thinning=thinning,
            disable_progbar=True, seed=seed,
        )  # fmt: skip
        return model

    start, thinning = task["rows"], task["thinning"]
    _, first = timed(lambda: one(start, thinning, 0))
    _, again = timed(lambda: one(start, thinning, 1))
    more = range(start + 1, start + 1 + task["refits"])
    refits = [timed(lambda n=n: one(n, thinning, n))[1] for n in more]
    chains = [_log_draws(one(start + 1, 1, seed)) for seed in range(task["chains"])]
    return {"first": first, "same_shape": again, "refits": refits, "chains": chains}


def _log_draws(model):
    """Logarithms of a chain's hyperparameters, [draws, number]."""
    draws = (model.covar_module.base_kernel.lengthscale, model.covar_module.outputscale,
             model.likelihood.noise)  # fmt: skip
    flat = [d.detach().reshape(len(d), -1) for d in draws]
    return np.log(torch.cat(flat, dim=1).numpy()).tolist()


PARTS = {
    "grams": grams,
    "log_ei_values": log_ei_values,
    "fit": fit,
    "log_ei": log_ei,
    "knowledge_gradient": knowledge_gradient,
    "saas": saas,
}


def main():
    torch.set_num_threads(1)
    torch.set_default_dtype(DTYPE)
    warnings.simplefilter("ignore")
    part, task, result = sys.argv[1:]
    found = PARTS[part](json.loads(Path(task).read_text()))
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
