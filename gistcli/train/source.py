"""What the loop needs of a training split, and how a batch is cut."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from gistcli.objectives.base import Batch


class Source(Protocol):
    """A split whose batches are a function of (seed, epoch, start): no generator, no worker state.

    Attributes:
        names: unique name of each example, in order.
        labels: (N,) int64.
    """

    @property
    def names(self) -> Sequence[str]:
        """Unique name of each example, in order."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64 label of each example."""

    def __len__(self) -> int:
        """Number of examples."""

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None,
        epoch: int = 0,
        start_batch: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[Batch]:
        """The batches of an epoch from `start_batch` on; `batch_size` is global."""

    def batches_per_epoch(self, batch_size: int) -> int:
        """How many there are."""


def micro_batches(batch: Batch, size: int | None) -> list[Batch]:
    """A batch in pieces of at most `size` examples."""
    length = len(next(iter(batch.values())))
    if size is None or size >= length:
        return [batch]
    return [
        {key: value[start : start + size] for key, value in batch.items()}
        for start in range(0, length, size)
    ]


def data_fingerprint(split: Source) -> str:
    """SHA-256 over names and labels in order: with seed and batch size it fixes the data order."""
    digest = hashlib.sha256()
    for name, label in zip(split.names, split.labels.tolist(), strict=True):
        digest.update(f"{name}\0{label}\n".encode())
    return digest.hexdigest()
