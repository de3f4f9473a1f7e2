"""What the gallery holds, by name, so that the command line and tests can go through it."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from decisionppl._inference import Inference
from decisionppl.inference import conjugate, laplace
from decisionppl.models import bandits


class Problem(NamedTuple):
    """A decision problem, ready to run.

    Attributes:
        model: the one-round model.
        args: example arguments.
        contexts: `(key, t) -> arguments`, or None.
    """

    model: Callable
    args: tuple = ()
    contexts: Callable | None = None

    def engine(self) -> Inference:
        """The exact engine where the model is conjugate, else streaming Laplace."""
        try:
            return conjugate(self.model, *self.args)
        except TypeError:
            return laplace(self.model, *self.args)


class Entry(NamedTuple):
    """One gallery model.

    Attributes:
        make: factory of the model; its keyword arguments are the problem's parameters.
        contexts: `parameters -> (example arguments, (key, t) -> arguments)`, or None.
        source: the paper or book.
        shows: what it reproduces, checked by the tests.
    """

    make: Callable
    contexts: Callable | None
    source: str
    shows: str

    @property
    def summary(self) -> str:
        """First line of the factory's docstring."""
        return (inspect.getdoc(self.make) or "").splitlines()[0]

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters and their defaults."""
        return {n: p.default for n, p in inspect.signature(self.make).parameters.items()}


GALLERY: dict[str, Entry] = {
    "beta_bernoulli": Entry(
        bandits.beta_bernoulli, None, "Thompson (1933); arXiv 1707.02038",
        "Thompson sampling's expected reward, two arms, by enumeration of all beliefs",
    ),
    "gaussian": Entry(
        bandits.gaussian, None, "arXiv 1707.02038",
        "normal-normal posteriors in closed form",
    ),
    "linear": Entry(
        bandits.linear, bandits.normal_contexts, "arXiv 1209.3352",
        "Bayesian linear regression per arm in closed form",
    ),
    "logistic": Entry(
        bandits.logistic, bandits.normal_contexts, "Chapelle and Li (2011)",
        "the Laplace posterior at the mode found by an independent optimiser",
    ),
    "items": Entry(
        bandits.items, bandits.item_contexts, "arXiv 1209.3352",
        "action sets that change every round: only offered items are chosen",
    ),
    "slate": Entry(
        bandits.slate, None, "arXiv 1410.0949",
        "top-k choice: greedy picks the k best posterior means",
    ),
}  # fmt: skip


def build(name: str, **parameters: Any) -> Problem:
    """A gallery problem by name.

    Args:
        name: a key of `GALLERY`.
        **parameters: of the model's factory.

    Returns:
        A `Problem`.

    Raises:
        ValueError: an unknown name or parameter, or a value of the wrong kind.

    Example:
        >>> from decisionppl import models
        >>> models.build("linear", num_arms=3, dim=2).args[0].shape
        (2,)
    """
    if name not in GALLERY:
        close = difflib.get_close_matches(name, GALLERY, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no model named {name!r}; the gallery has {sorted(GALLERY)}.{hint}")
    entry = GALLERY[name]
    known = entry.parameters
    for key, value in parameters.items():
        if key not in known:
            raise ValueError(f"{name} has no parameter {key!r}; it has {sorted(known)}.")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name}: {key} must be a number, got {value!r}.")
        if isinstance(known[key], int) and not float(value).is_integer():
            raise ValueError(f"{name}: {key} must be a whole number, got {value!r}.")
    given: Mapping[str, Any] = {
        k: int(v) if isinstance(known[k], int) else float(v) for k, v in parameters.items()
    }
    model = entry.make(**given)
    if entry.contexts is None:
        return Problem(model)
    accepted = inspect.signature(entry.contexts).parameters
    args, contexts = entry.contexts(**{k: v for k, v in {**known, **given}.items()
                                       if k in accepted})  # fmt: skip
    return Problem(model, args, contexts)
