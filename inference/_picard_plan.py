"""In what order Picard iteration evaluates the policy."""

from typing import Any, NamedTuple

import numpy as np


class Plan(NamedTuple):
    """In what order the policy is evaluated, for each chunk.

    Attributes:
        unit: whose each step is, [chunks, size].
        before: the step of the same unit before it in the chunk, -1 if none, [chunks, size].
        target: the unit whose state it leaves behind, the number of units if none, [chunks, size].
        rows: steps in batches of different units, in the order of each unit's steps, `size` where
            there is none, [chunks, batches, batch].
        highest: the last step of each batch, -1 if none, [chunks, batches].
        valid: number of steps, [chunks].
    """

    unit: Any
    before: Any
    target: Any
    rows: Any
    highest: Any
    valid: Any


def make_plan(unit: np.ndarray, count: int, size: int, batch: int) -> Plan:
    """Plan the steps of units `unit`, int [steps], in chunks of `size` steps.

    Args:
        unit: whose each step is, int [steps].
        count: number of units.
        size: steps of a chunk.
        batch: units of a batch at most.
    """
    steps = len(unit)
    chunks = -(-steps // size)
    chunk, step = np.divmod(np.arange(steps), size)
    # one number to sort by is much faster than several
    order = np.argsort((chunk * count + unit) * size + step)
    first = np.ones(steps, bool)
    first[1:] = (np.diff(unit[order]) != 0) | (np.diff(chunk[order]) != 0)
    begins = np.flatnonzero(first)
    wave = np.empty(steps, int)  # the how manieth step of its unit
    wave[order] = np.arange(steps) - begins[np.cumsum(first) - 1]
    last = np.append(first[1:], True)
    before, target = np.full(chunks * size, -1), np.full(chunks * size, count)
    before[order[1:]] = np.where(first[1:], -1, step[order[:-1]])
    target[order[last]] = unit[order[last]]
    followed = np.empty(steps, bool)
    followed[order] = ~last

    # One wave after the other, of each first what the next one follows: so most batches are full,
    # and a wave may begin in the batch in which the one before it ends.
    waves = int(wave.max()) + 1
    counts = np.bincount(chunk * waves + wave, minlength=chunks * waves).reshape(chunks, waves)
    start = np.zeros_like(counts)
    for w in range(1, waves):
        free = start[:, w - 1] + counts[:, w - 1]
        awaited = start[:, w - 1] + counts[:, w] - 1  # the last one that this wave follows
        shared = awaited // batch >= free // batch
        start[:, w] = np.where(shared, -(-free // batch) * batch, free)
    placed = np.argsort(((chunk * waves + wave) * 2 + ~followed) * size + step, kind="stable")
    begins = np.append(0, np.cumsum(counts.ravel()))[:-1].reshape(counts.shape)
    group = chunk[placed], wave[placed]
    slot = start[group] + np.arange(steps) - begins[group]
    longest = int(slot.max()) // batch + 1
    # few sizes, so that problems of about one size are one program
    coarse = 2 ** max(longest.bit_length() - 3, 0)
    longest = -(-longest // coarse) * coarse
    rows = np.full((chunks, longest * batch), size)
    rows[chunk[placed], slot] = step[placed]
    rows = rows.reshape(chunks, longest, batch)
    whose = np.zeros(chunks * size, int)
    whose[:steps] = unit
    return Plan(
        whose.reshape(chunks, size),
        before.reshape(chunks, size),
        target.reshape(chunks, size),
        rows,
        np.where(rows < size, rows, -1).max(2),
        np.minimum(size, steps - size * np.arange(chunks)),
    )
