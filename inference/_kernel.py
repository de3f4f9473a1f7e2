"""The law of one step of a finite Markov model, and how it is made of arrays."""

from typing import Any, NamedTuple

import numpy as np


class Kernel(NamedTuple):
    """The law of one step of a finite Markov model, in double precision.

    Transitions are listed, since most states lead to a few others only; no pair (arm, source,
    target) is listed twice. With several worlds all fields of floats have a leading axis [draws].

    Attributes:
        states: pytree with a leading axis [states].
        actions: dict from action site to values [arms, ...].
        arm, source, target: int [entries].
        probability: [entries]; sums to one over the entries of each arm and source.
        gain: reward less cost expected given the transition, [entries].
        gain_variance: its variance given the transition, [entries].
        reward: expected reward less cost, [arms, states].
        propensity: probability of each arm by the model's own law, [states, arms].
        truncated: the largest probability that was left out of any law with an unbounded or a
            long support, before its probabilities were scaled to sum to one.
    """

    states: Any
    actions: dict[str, np.ndarray]
    arm: np.ndarray
    source: np.ndarray
    target: np.ndarray
    probability: np.ndarray
    gain: np.ndarray
    gain_variance: np.ndarray
    reward: np.ndarray
    propensity: np.ndarray
    truncated: float

    @property
    def num_states(self) -> int:
        """Number of states."""
        return self.reward.shape[-1]

    @property
    def num_arms(self) -> int:
        """Number of arms."""
        return self.reward.shape[-2]

    def dense(self) -> np.ndarray:
        """Transition probabilities [arms, states, next states], with draws before if there are."""
        arms, states = self.reward.shape[-2:]
        table = np.zeros((*self.probability.shape[:-1], arms, states, states))
        table[..., self.arm, self.source, self.target] = self.probability
        return table


def tabular(transition: Any, reward: Any, propensity: Any = 0.5) -> Kernel:
    """A kernel from arrays.

    Args:
        transition: probabilities [arms, states, next states].
        reward: expected rewards [arms, states].
        propensity: the experiment: the probability of arm 1 of two, or probabilities [arms] or
            [states, arms].

    Returns:
        `Kernel` in which rewards do not vary; states are numbers from zero.

    Raises:
        ValueError: shapes that disagree, or rows that are no probabilities.

    Example:
        >>> from decisionppl.inference import effects, markov
        >>> move = [[[0.9, 0.1], [0.2, 0.8]], [[0.6, 0.4], [0.5, 0.5]]]
        >>> known = markov.tabular(move, [[0.0, 5.0], [1.0, 6.0]])
        >>> round(effects.taylor(known).estimate, 8)
        1.41666667
    """
    table, gain = np.asarray(transition, float), np.asarray(reward, float)
    if table.ndim != 3 or table.shape[1] != table.shape[2] or gain.shape != table.shape[:2]:
        raise ValueError(
            "expected transition [arms, states, states] and reward [arms, states], got "
            f"{list(table.shape)} and {list(gain.shape)}."
        )
    wrong = (table < 0).any(-1) | (np.abs(table.sum(-1) - 1) > 1e-6)
    if wrong.any():
        a, s = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"transition: expected probabilities that sum to one, got {table[a, s].tolist()} for "
            f"arm {a} in state {s}."
        )
    arms, states = gain.shape
    law = np.asarray(propensity, float)
    if law.ndim == 0 and arms == 2:
        law = np.stack([1 - law, law])
    if law.shape not in ((arms,), (states, arms)) or (law < 0).any():
        raise ValueError(
            f"propensity: expected a probability of arm 1 of two, [{arms}] or [{states}, {arms}], "
            f"got {propensity!r}."
        )
    arm, source, target = np.nonzero(table)
    return Kernel(
        np.arange(states), {"arm": np.arange(arms)}, arm, source, target,
        table[arm, source, target], gain[arm, source], np.zeros(len(arm)), gain,
        np.broadcast_to(law, (states, arms)), 0.0,
    )  # fmt: skip
