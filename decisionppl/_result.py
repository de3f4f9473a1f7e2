"""What an experiment leaves: labelled arrays, the final belief, and how it was made."""

import dataclasses
import functools
import json
from typing import Any

import numpy as np

from decisionppl._storage import read_group, write_groups


class Source:
    """A model and its example arguments, described once, however often a run is saved."""

    def __init__(self, model: Any, args: tuple = ()) -> None:
        self.model, self.args = model, args

    @classmethod
    def described(cls, description: dict[str, Any]) -> "Source":
        """The source of a result that is read from a file: its description alone."""
        source = cls(None)
        source.__dict__["description"] = description
        return source

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """Sites, roles and dependencies as plain data; or what went wrong."""
        from decisionppl._show import FORMAT, show

        try:
            return show(self.model, *self.args).to_dict()
        except Exception as error:  # a description is not worth losing a run for
            return {"format": FORMAT, "error": f"{type(error).__name__}: {error}"}


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of `experiment.run`.

    Attributes:
        data: xarray Dataset over (replication, round[, unit]): each action and outcome site
            by its name, `propensity`, `action_index`, and `regret` where the environment
            knows expected utilities. Sites of several entries have further axes.
        attrs: how it was made: versions, seed, hash of the model, device, dtype, seconds to
            compile and to run, rounds done, whether complete.
        state: arrays of the loop's state after the last round, in order; with them
            `run(..., resume=result)` continues bit for bit.
        belief: the final belief, leaves [replications, ...]; None when read from a file
            (`run(..., resume=path)` restores it).
        source: the model, described in files that `save` writes; of a file its description.
    """

    data: Any
    attrs: dict[str, Any]
    state: list[np.ndarray] = dataclasses.field(repr=False)
    belief: Any = dataclasses.field(default=None, repr=False)
    inference: Any = dataclasses.field(default=None, repr=False)
    source: Source | None = dataclasses.field(default=None, repr=False)

    @property
    def rounds(self) -> int:
        """Rounds done."""
        return int(self.data.sizes["round"])

    @property
    def complete(self) -> bool:
        """Whether the horizon was reached (False after an interruption)."""
        return bool(self.attrs["complete"])

    def save(self, path: Any) -> None:
        """Write everything to a netCDF file, atomically.

        Args:
            path: where to; folders are made as needed.
        """
        import xarray as xr

        state = xr.Dataset(
            {f"leaf_{i}": ([f"leaf_{i}_axis_{j}" for j in range(a.ndim)], a)
             for i, a in enumerate(self.state)}
        )  # fmt: skip
        data = self.data.assign_attrs(self.file_attributes())
        write_groups(path, {"experiment": data, "state": state})

    def file_attributes(self) -> dict[str, Any]:
        """Attributes as files hold them, with the model's sites and roles under `model_sites`."""
        attrs = dict(self.attrs)
        if "model_sites" not in attrs and self.source is not None:
            attrs["model_sites"] = self.source.description
        return {k: _plain(v) for k, v in attrs.items()}

    @classmethod
    def load(cls, path: Any) -> "Result":
        """Read a result that `save` or a checkpoint wrote.

        Raises:
            FileNotFoundError: no such file.
        """
        data, state = read_group(path, "experiment"), read_group(path, "state")
        attrs = {k: _unplain(v) for k, v in data.attrs.items()}
        described = attrs.pop("model_sites", None)
        source = None if described is None else Source.described(described)
        leaves = [np.asarray(state[f"leaf_{i}"].values) for i in range(len(state.data_vars))]
        return cls(data.drop_attrs(), attrs, leaves, None, None, source)

    def to_arviz(self, num_worlds: int = 500, key: Any = 0) -> Any:
        """As ArviZ reads it: InferenceData (ArviZ 0.x) or DataTree (1.x).

        Groups: `posterior` (draws from the final belief, one chain per replication),
        `observed_data` (actions and outcomes), `sample_stats` (propensity, regret).

        Args:
            num_worlds: draws per replication.
            key: PRNG key (typed or raw) or an int seed.
        """
        from decisionppl._arviz import container

        groups: dict[str, Any] = {}
        if self.belief is not None:
            groups["posterior"] = self._posterior(num_worlds, key)
        stats = [n for n in ("propensity", "regret", "action_index") if n in self.data]
        groups["observed_data"] = self.data.drop_vars(stats)
        groups["sample_stats"] = self.data[stats]
        return container(groups, self.attrs)

    def _posterior(self, num_worlds: int, key: Any) -> Any:
        import jax
        import xarray as xr

        from decisionppl._play import as_key

        replications = self.data.sizes["replication"]
        keys = jax.random.split(as_key(key), replications)
        worlds = jax.vmap(lambda k, b: self.inference.sample(k, b, num_worlds))(keys, self.belief)
        variables = {}
        for name, value in worlds.items():
            axes = [f"{name}_dim_{i}" for i in range(value.ndim - 2)]
            variables[name] = (["chain", "draw", *axes], np.asarray(value))
        coords = {"chain": np.arange(replications), "draw": np.arange(num_worlds)}
        return xr.Dataset(variables, coords)


def _plain(value: Any) -> Any:
    """Attributes that netCDF can hold."""
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else (
        "json:" + json.dumps(value)
    )  # fmt: skip


def _unplain(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("json:"):
        return json.loads(value[5:])
    return value.item() if isinstance(value, np.generic) else value
