r"""Markov models: trajectories, and the exact law of one step.

A Markov model is its one-step function `step(state) -> next state`, with action, reward and other
sites as in any model. Notation: state s, arm a, transition probabilities :math:`P_a(s, s')`,
expected rewards :math:`r_a(s)`.

- `chain`: the model of a whole trajectory, by NumPyro's `scan`.
- `rollout`: many simulated trajectories, the same random numbers under every policy.
- `from_table`: logged trajectories, from a table with one row per unit and time.
- `kernel`: :math:`P_a`, :math:`r_a` and the logging law, read off the step by enumeration.
- `tabular`: the same from arrays.
- `dirichlet_kernel`: draws of them given logged transitions, without a model of the step.
"""

from decisionppl.inference._effects_posterior import dirichlet_kernel
from decisionppl.inference._kernel import Kernel, tabular
from decisionppl.inference._markov_kernel import kernel
from decisionppl.inference._tables import from_table
from decisionppl.inference._trajectories import Trajectories, chain, rollout

__all__ = [
    "Kernel",
    "Trajectories",
    "chain",
    "dirichlet_kernel",
    "from_table",
    "kernel",
    "rollout",
    "tabular",
]
