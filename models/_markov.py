"""What a Markov model of the gallery consists of."""

from collections.abc import Callable
from typing import Any, NamedTuple


class MarkovModel(NamedTuple):
    """A Markov decision problem.

    Attributes:
        step: `(state) -> next state`, a model.
        init: the first state, or a model `() -> state` that draws it.
        states: all states, a pytree with a leading axis [states]; None where there are too many
            to list.
        features: `(state) -> [features]`, what value functions may be fitted on; None where
            states are listed.
    """

    step: Callable
    init: Any
    states: Any = None
    features: Callable | None = None
