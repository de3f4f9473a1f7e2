"""Rank and noise of a table, by its singular values."""

from typing import Any

import numpy as np


def choose_rank(rank: Any, series: np.ndarray) -> int:
    """The rank asked for, or the number of singular values above the noise."""
    most = min(series.shape)
    if rank is None:
        values = np.linalg.svd(series, compute_uv=False)
        edge = median_ratio(series.shape) * np.median(values)
        return int(np.clip((values > edge).sum(), 1, most))
    if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or not 1 <= rank <= most:
        raise ValueError(
            f"rank: expected an int from 1 to {most}, as many as controls or periods, got {rank!r}."
        )
    return int(rank)


def edge(shape: tuple[int, ...]) -> float:
    """Threshold for singular values of a table in units of sqrt(longer side) * noise."""
    b = min(shape) / max(shape)
    return float(np.sqrt(2 * (b + 1) + 8 * b / ((b + 1) + np.sqrt(b**2 + 14 * b + 1))))


def median_ratio(shape: tuple[int, ...]) -> float:
    """The threshold in units of the median singular value (a cubic close to the exact ratio)."""
    b = min(shape) / max(shape)
    return 0.56 * b**3 - 0.95 * b**2 + 1.82 * b + 1.43


def noise_level(series: np.ndarray) -> float:
    """Standard deviation of the noise of a table that is of low rank but for it."""
    median = np.median(np.linalg.svd(series, compute_uv=False))
    return float(median * median_ratio(series.shape) / edge(series.shape)
                 / np.sqrt(max(series.shape)))  # fmt: skip


def check_positive(name: str, value: Any) -> float:
    """A positive number, or a ValueError that names the setting."""
    known = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not known or not np.isfinite(value) or value <= 0:
        raise ValueError(f"{name}: expected a positive number, got {value!r}.")
    return float(value)
