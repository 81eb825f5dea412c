"""A split whose rows are made where they are used, by their number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from gistcli.data.augment import batch_indices
from gistcli.data.episodes.drawing import Draws
from gistcli.data.episodes.layout import Batch, Episode, Query, lay_out
from gistcli.data.episodes.options import EpisodeOptions
from gistcli.reporting import SILENT, Reporter

FIXED_SEED = 1234
"""Of what is drawn where no seed is given, in evaluation."""


class Rows(ABC):
    """Episodes in batches that are a function of (seed, epoch, number) alone.

    Attributes:
        names: of each row of an epoch.
        labels: (N,) int64 checksums, so that a fingerprint over labels notices other data.
        options: budgets, and what stands in front of the queries.
        pad_id: put at padding and gists.
        device: of the batches.
    """

    def __init__(
        self,
        names: Sequence[str],
        labels: Tensor,
        options: EpisodeOptions,
        *,
        pad_id: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.names, self.labels = list(names), labels
        self.options, self.pad_id = options, pad_id
        self.device = torch.device(device)

    @abstractmethod
    def make(self, index: int, draws: Draws) -> Episode:
        """The row of that number, which depends on its draws alone."""

    @abstractmethod
    def tell(self, name: str, reporter: Reporter = SILENT) -> None:
        """What there is, and what was left out."""

    def episode(self, index: int, *, seed: int | None, epoch: int = 0) -> Episode:
        """One row of an epoch, whatever the batch it is in."""
        return self.make(index, Draws(FIXED_SEED if seed is None else seed,
                                      0 if seed is None else epoch, index))  # fmt: skip

    def __len__(self) -> int:
        return len(self.names)

    def batches_per_epoch(self, batch_size: int) -> int:
        """Global batches in one pass."""
        return -(-len(self) // batch_size)

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
        """Batches of one pass (see `lay_out`), on the device.

        Args:
            batch_size: rows in a global batch; process `rank` of `world` gets every world-th of
                them, so that the last batch of a process may be shorter, even empty.
            seed: of order and content; None gives the same rows in every epoch, in order.
            epoch: number of the pass.
            start_batch: global batches to leave out at the beginning.
            rank: this process.
            world: the number of processes.
        """
        for index in batch_indices(
            len(self), batch_size, seed=seed, epoch=epoch, start_batch=start_batch, rank=rank,
            world=world,
        ):  # fmt: skip
            episodes = [self.episode(int(i), seed=seed, epoch=epoch) for i in index]
            batch = lay_out(episodes, self.options, self.pad_id, index)
            yield {key: value.to(self.device) for key, value in batch.items()}

    def longest(self, rows: int) -> Batch:
        """A batch of so many rows, on the CPU: none takes more."""
        return longest_rows(self.options, rows, self.pad_id)


def longest_rows(options: EpisodeOptions, rows: int, pad_id: int = 0) -> Batch:
    """A batch of so many rows, on the CPU, as long as the budgets allow."""
    half = options.query_tokens // 2
    query = Query(np.full(half, pad_id), np.full(options.query_tokens - half, pad_id))
    context = np.full(options.example_tokens - options.gists, pad_id)
    return lay_out([Episode(context, (query,) * options.queries)] * rows, options, pad_id)
