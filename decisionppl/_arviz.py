"""One shim over ArviZ 0.x (InferenceData) and 1.x (DataTree)."""

from collections.abc import Mapping
from typing import Any


def container(groups: Mapping[str, Any], attrs: Mapping[str, Any]) -> Any:
    """xarray Datasets by group, in the container that the installed ArviZ reads."""
    import arviz as az

    if hasattr(az, "InferenceData"):
        return az.InferenceData(attrs=dict(attrs), **groups)
    import xarray as xr

    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=dict(attrs)), **groups})
