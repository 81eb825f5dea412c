"""Which sequences share a row, and which rows share a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gistcli.data.augment import batch_indices, shuffled

WINDOW = 4096
"""Sequences that are looked at together: more pack closer, fewer stay nearer to a random order."""
_GROUP = 50
"""Batches whose sequences are sorted by length together."""


def pack(
    lengths: Sequence[int] | np.ndarray,
    capacity: int,
    *,
    seed: int | None,
    epoch: int = 0,
    window: int = WINDOW,
) -> list[list[int]]:
    """Rows of at most `capacity` tokens: first fit, longest first, in each window of the order.

    Args:
        lengths: (N,) tokens of each sequence, none above `capacity`.
        capacity: tokens of a row.
        seed: of the order, with `epoch`; None keeps that of the sequences.
        epoch: number of the pass.
        window: sequences that are packed together.

    Returns:
        positions of the sequences in each row, each once; depends on the arguments only.
    """
    counts = np.asarray(lengths, np.int64)
    if len(counts) and counts.max() > capacity:
        raise ValueError(f"a sequence of {counts.max()} tokens cannot be in a row of {capacity}")
    order = np.arange(len(counts)) if seed is None else shuffled(seed, epoch, len(counts))
    rows: list[list[int]] = []
    for start in range(0, len(order), window):
        chosen = order[start : start + window]
        rows += _first_fit(chosen[np.argsort(-counts[chosen], kind="stable")], counts, capacity)
    return rows


def _first_fit(order: np.ndarray, counts: np.ndarray, capacity: int) -> list[list[int]]:
    room = np.full(len(order), capacity, np.int64)
    rows: list[list[int]] = []
    for position in order:
        row = int(np.argmax(room >= counts[position]))  # the first True
        if row == len(rows):
            rows.append([])
        rows[row].append(int(position))
        room[row] -= counts[position]
    return rows


def grouped_batches(
    lengths: np.ndarray,
    batch_size: int,
    *,
    seed: int | None,
    epoch: int = 0,
    start_batch: int = 0,
    rank: int = 0,
    world: int = 1,
) -> list[np.ndarray]:
    """As `augment.batch_indices`, with sequences of similar length in each batch.

    The shuffled order is sorted by length within stretches of some batches, whose order is then
    shuffled; without a seed the order stays that of the split.
    """
    if seed is None:
        return batch_indices(
            len(lengths), batch_size, seed=None, start_batch=start_batch, rank=rank, world=world
        )
    order = shuffled(seed, epoch, len(lengths))
    full: list[np.ndarray] = []
    for start in range(0, len(order), _GROUP * batch_size):
        stretch = order[start : start + _GROUP * batch_size]
        stretch = stretch[np.argsort(-lengths[stretch], kind="stable")]
        full += [stretch[i : i + batch_size] for i in range(0, len(stretch), batch_size)]
    places = shuffled(seed + 1, epoch, len(full))
    return [full[place][rank::world] for place in places[start_batch:]]


def padded_share(
    lengths: np.ndarray, batches: Sequence[Sequence[int] | np.ndarray], multiple: int = 1
) -> float:
    """Share of real tokens where each batch is padded to its longest sequence."""
    chosen = [lengths[np.asarray(batch)] for batch in batches if len(batch)]
    places = sum(len(batch) * (-(-int(batch.max()) // multiple) * multiple) for batch in chosen)
    return float(sum(int(batch.sum()) for batch in chosen)) / places if places else 1.0
