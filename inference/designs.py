"""Designs of experiments on networks, markets and in time, as laws of action sites.

A design says which coins are thrown and which units each treats; a model takes it as its argument
and declares it with `design("treat")`. So one model serves every design:

- `unit`: a coin for each unit;
- `cluster`, `communities`: one for each cluster, given or found in the graph;
- `switchback`: one for each stretch of time, or for each zone and stretch;
- `two_sided`: one for each row and each column of a market.

`compare` simulates a model under several designs and ranks what estimators make of them.
"""

from decisionppl.inference._design import (
    Design,
    cluster,
    communities,
    switchback,
    two_sided,
    unit,
)
from decisionppl.inference._design_study import DesignStudy, compare

__all__ = [
    "Design",
    "DesignStudy",
    "cluster",
    "communities",
    "compare",
    "switchback",
    "two_sided",
    "unit",
]
