"""The sequential loop for humans: ask for a decision, tell what followed, in any order."""

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._decide import decide, decider
from decisionppl._decision import NUM_KEYS, Context, as_context
from decisionppl._environment import logged_names
from decisionppl._inference import Inference, Rows, observe
from decisionppl._play import as_key
from decisionppl._recommend import Recommendation, recommend
from decisionppl._storage import from_arrays, function_hash, read_group, to_arrays, write_groups


class Ask(NamedTuple):
    """A decision to carry out.

    Attributes:
        action: the value, or a dict by site if the model has several action sites.
        propensity: probability with which the rule chose it.
        token: hand it back with the outcome.
    """

    action: Any
    propensity: float
    token: int


class Experiment:
    """Decide and learn one round at a time.

    Args:
        model: a one-round model.
        inference: the belief engine, built from the model.
        rule: a rule from `decisionppl.rules`.
        key: PRNG key (typed or raw) or an int seed. Decision number n uses
            `fold_in(key, n)`, so a run can be repeated.
        context: an example context: the model's argument, a tuple of several, or a dict of
            context sites; None if it has none.
        actions, constraint: as in `experiment.run`.
        draws: worlds drawn per decision where there is no closed form.

    Raises:
        ValueError, TypeError: parts that do not fit together.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model():
        ...     p = numpyro.sample("p", dist.Beta(1, 1).expand([2]).to_event(1))
        ...     dp.reward("click", dist.Bernoulli(p[dp.action("arm", 2)]))
        >>> trial = dp.experiment.Experiment(
        ...     model, dp.inference.conjugate(model), dp.rules.thompson, key=0)
        >>> first, second = trial.ask(), trial.ask()
        >>> trial.tell(second.token, 1)  # outcomes may arrive in any order
        >>> trial.tell(first.token, {"click": 0})
        >>> trial.history["click"]
        [1, 0]
    """

    def __init__(
        self,
        model: Callable,
        inference: Inference,
        rule: Callable,
        *,
        key: Any,
        context: Any = None,
        actions: Any = None,
        draws: int = 500,
        constraint: Callable | None = None,
    ) -> None:
        example = as_context(context)
        self._parts = decider(
            model, inference, rule, example, actions=actions, draws=draws, constraint=constraint
        )
        self._logged = logged_names(model, example)
        self._example = jax.tree.map(jnp.asarray, example)
        self._decide = jax.jit(lambda key, belief, context: decide(
            self._parts, jax.random.split(key, NUM_KEYS), belief, context))  # fmt: skip
        self._recommend = jax.jit(lambda key, belief, context: recommend(
            self._parts, jax.random.split(key, NUM_KEYS), belief, context))  # fmt: skip
        self._begin(key)

    def _begin(self, key: Any) -> None:
        self._key = as_key(key)
        self.belief = self._parts.inference.init(jax.random.fold_in(self._key, 0))
        self._asked = 0
        self._told = 0
        self._open: dict[int, tuple[Context, dict[str, Any]]] = {}
        self.history: dict[str, list] = {}

    def restart(self, key: Any) -> "Experiment":
        """The same experiment from the beginning, with nothing asked or told.

        What has been compiled is shared, so many short experiments cost one compilation.

        Args:
            key: PRNG key (typed or raw) or an int seed.

        Returns:
            A new experiment; this one stays as it is.
        """
        other = copy.copy(self)
        other._begin(key)
        return other

    def learn(self, rows: Rows) -> None:
        """Learn from rounds that were not asked for, such as runs made before.

        Args:
            rows: from `observe`. They do not enter `history`.
        """
        key = jax.random.fold_in(jax.random.fold_in(self._key, 2), self._told)
        self.belief = self._parts.inference.update(key, self.belief, rows)
        self._told += 1

    @property
    def pending(self) -> list[int]:
        """Tokens of decisions whose outcome has not been told."""
        return list(self._open)

    def ask(self, context: Any = None) -> Ask:
        """Decide, from everything told so far.

        With an engine that can (`Surrogate.fantasise`), decisions whose outcome has not been told
        count as if it had come out as expected: several asks in a row make a batch, in which an
        action is repeated only where noise makes a second look worth it.

        Args:
            context: what is known now, in the form of the example context.

        Returns:
            An `Ask`: action, propensity, token.

        Raises:
            ValueError: a context of another shape than the example, or with NaN.
        """
        given = self._checked(as_context(context))
        self._asked += 1
        key = jax.random.fold_in(jax.random.fold_in(self._key, 1), self._asked)
        decision = self._decide(key, self._with_open(), given)
        action = {n: np.asarray(a) for n, a in decision.action.items()}
        self._open[self._asked] = (given, action)
        plain = {n: a.item() if a.ndim == 0 else a for n, a in action.items()}
        value = plain if len(plain) > 1 else next(iter(plain.values()))
        return Ask(value, float(decision.propensity), self._asked)

    def _with_open(self) -> Any:
        """The belief, with open decisions at their expected outcomes where the engine can."""
        surrogate, belief = self._parts.inference.surrogate, self.belief
        if surrogate is None:
            return belief
        for context, action in self._open.values():
            belief = surrogate.fantasise(belief, action, context.args, dict(context.sites))
        return belief

    def recommend(self, context: Any = None) -> Recommendation:
        """The action to settle for by what was told so far, and what there is left to gain.

        Only actions that the model offers in this context and that meet the experiment's
        constraint are recommended, count for the regret, and count as next observations. If no
        action meets the constraint it is dropped, as where asking among candidates.

        Args:
            context: what is known now, in the form of the example context.

        Returns:
            A `Recommendation`: action, mean and standard deviation of its utility, expected
            regret, and the value of the best next observation.

        Raises:
            ValueError: a context of another shape than the example, or with NaN.
        """
        given = self._checked(as_context(context))
        found = self._recommend(jax.random.fold_in(self._key, 3), self.belief, given)
        action = {n: np.asarray(a) for n, a in found.action.items()}
        numbers = (None if x is None else float(x) for x in found[1:])
        return Recommendation(action, *numbers)  # pyright: ignore[reportArgumentType]

    def _checked(self, context: Context) -> Context:
        context = jax.tree.map(jnp.asarray, context)
        shapes = [jax.tree.map(jnp.shape, c) for c in (context, self._example)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"ask: expected a context of shapes {shapes[1]}, got {shapes[0]}. Contexts keep "
                "the form of the example given at the start."
            )
        for leaf in jax.tree.leaves(context):
            if jnp.issubdtype(leaf.dtype, jnp.floating) and bool(jnp.isnan(leaf).any()):
                raise ValueError("ask: the context holds NaN; fill in or drop missing values.")
        return jax.tree.map(lambda x, e: x.astype(e.dtype), context, self._example)

    def tell(self, token: int, outcome: Any) -> None:
        """Learn what followed a decision.

        Args:
            token: from `ask`.
            outcome: dict from site to value, or the value if the model logs one site.

        Raises:
            KeyError: a token that is not open (unknown, or told before).
            ValueError: a missing or unknown site, NaN, infinity, or a value outside its support.
            TypeError: a value that is not numeric.
        """
        self._check_open(token)
        if not isinstance(outcome, Mapping):
            if len(self._logged) != 1:
                raise ValueError(f"tell: the model logs {self._logged}; give a dict by site.")
            outcome = {self._logged[0]: outcome}
        self._check_outcome(outcome)
        context, action = self._open[token]
        sites = {**context.sites, **action, **outcome}
        rows = observe(
            self._parts.model,
            jax.tree.map(lambda x: x[None], context.args),
            {n: np.asarray(v)[None] for n, v in sites.items()},
        )
        self.learn(rows)
        del self._open[token]
        for name, value in {"token": token, **action, **outcome}.items():
            self.history.setdefault(name, []).append(np.asarray(value).tolist())

    def drop(self, token: int) -> None:
        """Give up a decision whose outcome will never be known, such as a run that crashed.

        Args:
            token: from `ask`.

        Raises:
            KeyError: a token that is not open.
        """
        self._check_open(token)
        del self._open[token]

    def _check_outcome(self, outcome: Mapping[str, Any]) -> None:
        unknown = sorted(set(outcome) - set(self._logged))
        if unknown:
            raise ValueError(f"tell: unknown sites {unknown}; the model logs {self._logged}.")
        missing = sorted(set(self._logged) - set(outcome))
        if missing:
            raise ValueError(f"tell: no value for {missing}; the model logs {self._logged}.")
        for name, value in outcome.items():
            array = np.asarray(value)
            if array.dtype.kind not in "biuf":
                raise TypeError(f"tell: site {name!r}: expected numbers, got {value!r}.")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(
                    f"tell: site {name!r} is {array.tolist()} (NaN or infinite), expected a finite "
                    "value. What failed has no outcome: drop its decision with drop(token), or "
                    "tell a finite value such as the worst that was seen."
                )

    def _check_open(self, token: Any) -> None:
        if token not in self._open:
            raise KeyError(
                f"token {token!r} is not open: it was never handed out, or its outcome has been "
                f"told. Open tokens: {self.pending}."
            )

    def save(self, path: Any) -> None:
        """Write belief, open decisions and history to a netCDF file, atomically."""
        import xarray as xr

        state = [self.belief, [self._open[t] for t in self._open]]
        leaves = {f"leaf_{i}": ([f"leaf_{i}_axis_{j}" for j in range(a.ndim)], a)
                  for i, a in enumerate(to_arrays(state))}  # fmt: skip
        attrs = {
            "model_hash": function_hash(self._parts.model),
            "asked": self._asked,
            "told": self._told,
            "open": json.dumps(self.pending),
            "history": json.dumps(self.history),
        }
        write_groups(path, {"ask_tell": xr.Dataset(leaves, attrs=attrs)})

    def load(self, path: Any) -> "Experiment":
        """Take up where `save` left off; the experiment must be built as it was then.

        Returns:
            The experiment itself.

        Raises:
            ValueError: a file of another model or engine.
        """
        data = read_group(path, "ask_tell")
        if data.attrs["model_hash"] != function_hash(self._parts.model):
            raise ValueError(f"{path}: saved with another model; build the experiment with that.")
        tokens = json.loads(data.attrs["open"])
        actions = {n: a[0] for n, a in self._parts.actions.items()}
        if self._parts.space is not None:
            actions = {n: s.sample(jax.random.key(0)) for n, s in self._parts.space.items()}
        like = [self.belief, [(self._example, actions) for _ in tokens]]
        leaves = [np.asarray(data[f"leaf_{i}"].values) for i in range(len(data.data_vars))]
        # a history may have grown past the room of a new experiment
        self.belief, opened = from_arrays(leaves, jax.tree.map(jnp.asarray, like), may_grow=True)
        self._open = dict(zip(tokens, opened, strict=True))
        self._asked, self._told = int(data.attrs["asked"]), int(data.attrs["told"])
        self.history = json.loads(data.attrs["history"])
        return self
