r"""Queueing networks: which job should each server work on?

Jobs of n classes arrive, wait, are served by m servers, and leave or become jobs of another class.
With queue lengths x, service rates :math:`\mu_{ij}`, arrival rates :math:`\lambda_j`, holding costs
h and the share :math:`u_{ij}` of server i that works on class j, the long-run cost of a policy
:math:`u = \pi(x)` is the average over time of :math:`h \cdot x`.

- `network` makes a network, `instance` one of the literature by name;
- `event_model` is the NumPyro model of one event, for clocks of any law; `chain_model` the Markov
  chain of exponential clocks, with pools of servers, watched at the ticks of a Poisson clock;
- `simulate` runs the same events without sites, many times as fast;
- `cmu`, `max_weight`, `max_pressure`, `threshold`, `priority`, `soft_priority`, `soft_max_weight`,
  `soft_max_pressure`, `neural`, and `fluid`, by the linear program of `fluid_plan`, are policies;
- `littles_law` has averages over time and over jobs, and costs with known rates as controls;
- `relative_value_iteration` solves small networks, and closed forms are `mm1_length`, `erlang_c`,
  `mmc_length`, `mg1_length`, `priority_lengths`, `jackson_lengths`, `criss_cross_priority`,
  `admission_cost`.

- `rates_prior`, `update_rates` are beliefs about rates, from logs of events; worlds drawn from them
  are networks.

Gradients of the cost in the parameters of a policy, or of the network: `inference.pathwise`.

References:
    Che, Dong and Namkoong, Differentiable Discrete Event Simulation for Queuing Network Control,
    arXiv 2409.03740; Chen and others, QGym, arXiv 2410.06170, for the instances.
"""

from decisionppl.models._queue_chain import Assignments, chain_model
from decisionppl.models._queue_events import (
    Draws,
    Event,
    Jobs,
    Queues,
    draw_jobs,
    event_model,
    transition,
)
from decisionppl.models._queue_fluid import Fluid, emptying_time, fluid, fluid_plan
from decisionppl.models._queue_instances import (
    INSTANCES,
    criss_cross,
    five_by_five,
    hospital,
    input_switch,
    instance,
    mm1,
    mmc,
    multiclass,
    n_model,
    reentrant,
)
from decisionppl.models._queue_little import Little, littles_law
from decisionppl.models._queue_network import Network, hyperexponential, network
from decisionppl.models._queue_policies import (
    cmu,
    hardened,
    init_neural,
    max_pressure,
    max_weight,
    neural,
    priority,
    soft_max_pressure,
    soft_max_weight,
    soft_priority,
    threshold,
)
from decisionppl.models._queue_rates import Rates, log_events, rates_prior, update_rates
from decisionppl.models._queue_simulate import Simulated, simulate
from decisionppl.models._queue_solve import Solved, relative_value_iteration
from decisionppl.models._queue_training import make_policy, train_neural
from decisionppl.models._queue_truth import (
    admission_cost,
    best_priorities,
    criss_cross_priority,
    erlang_c,
    jackson_lengths,
    mg1_length,
    mm1_buffer,
    mm1_length,
    mmc_length,
    priority_lengths,
)

__all__ = [
    "INSTANCES",
    "Assignments",
    "Draws",
    "Event",
    "Fluid",
    "Jobs",
    "Little",
    "Network",
    "Queues",
    "Rates",
    "Simulated",
    "Solved",
    "admission_cost",
    "best_priorities",
    "chain_model",
    "cmu",
    "criss_cross",
    "criss_cross_priority",
    "draw_jobs",
    "emptying_time",
    "erlang_c",
    "event_model",
    "five_by_five",
    "fluid",
    "fluid_plan",
    "hardened",
    "hospital",
    "hyperexponential",
    "init_neural",
    "input_switch",
    "instance",
    "jackson_lengths",
    "littles_law",
    "log_events",
    "make_policy",
    "max_pressure",
    "max_weight",
    "mg1_length",
    "mm1",
    "mm1_buffer",
    "mm1_length",
    "mmc",
    "mmc_length",
    "multiclass",
    "n_model",
    "network",
    "neural",
    "priority",
    "priority_lengths",
    "rates_prior",
    "reentrant",
    "relative_value_iteration",
    "simulate",
    "soft_max_pressure",
    "soft_max_weight",
    "soft_priority",
    "threshold",
    "train_neural",
    "transition",
    "update_rates",
]
