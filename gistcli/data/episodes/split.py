"""Tasks as a training split: episodes drawn anew in every epoch, by number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gistcli.data.augment import batch_indices
from gistcli.data.episodes.drawing import Draws, draw_items, replace_options
from gistcli.data.episodes.encoding import EpisodeEncoder
from gistcli.data.episodes.layout import Batch, Episode, Query, lay_out
from gistcli.data.episodes.tasks import Task
from gistcli.data.text.encoding import number
from gistcli.errors import DataError, RecipeError
from gistcli.reporting import SILENT, Reporter

FIXED_SEED = 1234
"""Of the episodes where no seed is given: those of evaluation."""
_LOOKED_AT = 200
"""Episodes by which it is told how many examples fit."""


@dataclass(frozen=True)
class Fit:
    """How many examples the budget takes, over some episodes.

    Attributes:
        episodes: that were looked at.
        mean: examples of an episode.
        least: of any of them.
        bare: episodes without any.
        cut: episodes that had to leave examples out.
    """

    episodes: int
    mean: float
    least: int
    bare: int
    cut: int

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> Fit:
        """Over these episodes, of which there is one at least."""
        shown = [episode.shown for episode in episodes]
        return cls(
            len(shown),
            sum(shown) / len(shown),
            min(shown),
            shown.count(0),
            sum(episode.left > 0 for episode in episodes),
        )


class EpisodeSplit:
    """Episodes of some tasks, in batches that are a function of (seed, epoch, number) alone.

    An episode's task is drawn in proportion to its items, up to `options.cap` of them; its items
    are drawn without replacement (`draw_items`).

    Attributes:
        names: of each episode of an epoch.
        labels: (N,) int64 checksum of tasks and options, so that a fingerprint over labels notices
            other ones.
        tasks: to draw from.
        fit: how many examples fit.
    """

    def __init__(
        self, tasks: Sequence[Task], encoder: EpisodeEncoder, *, device: torch.device | str = "cpu"
    ) -> None:
        self.tasks, self.encoder = list(tasks), encoder
        options = encoder.options
        sizes = np.array([min(len(task.items), options.cap) for task in self.tasks], np.int64)
        self._shares = np.cumsum(sizes / sizes.sum())
        count = options.episodes or max(1, int(sizes.sum()) // options.queries)
        if options.symbols:
            require_symbols(self.tasks, encoder.words)
        self._device = torch.device(device)
        self.names = [f"episode-{i}" for i in range(count)]
        checksum = int.from_bytes(bytes.fromhex(self.fingerprint())[:8]) >> 1
        self.labels: Tensor = torch.full((count,), checksum, dtype=torch.int64)
        self.fit = self._look()

    def __len__(self) -> int:
        return len(self.names)

    def fingerprint(self) -> str:
        """SHA-256 over options and tasks."""
        digest = hashlib.sha256(repr(self.encoder.options).encode())
        for task in self.tasks:
            digest.update(repr(task).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

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
            batch_size: episodes in a global batch; process `rank` of `world` gets every world-th of
                them.
            seed: of order and content; None gives the same episodes in every epoch, in order.
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
            batch = lay_out(episodes, self.encoder.options, self.encoder.tokenizer.pad_id, index)
            yield {key: value.to(self._device) for key, value in batch.items()}

    def episode(self, index: int, *, seed: int | None, epoch: int = 0) -> Episode:
        """One episode of an epoch, whatever the batch it is in."""
        draws = Draws(FIXED_SEED, 0, index) if seed is None else Draws(seed, epoch, index)
        place = int(np.searchsorted(self._shares, draws.take(1)[0], side="right"))
        task, options = self.tasks[min(place, len(self.tasks) - 1)], self.encoder.options
        drawn = draw_items(task, options, draws)
        if options.symbols:
            drawn = replace_options(drawn, task, self.encoder.words, draws)
        return self.encoder.episode(task, drawn, draws=draws)

    def longest(self, rows: int) -> Batch:
        """A batch of so many rows, on the CPU, as long as the budgets allow: none takes more."""
        options, pad_id = self.encoder.options, self.encoder.tokenizer.pad_id
        room = options.example_tokens - options.gists
        query = Query(np.full(options.query_tokens - 1, pad_id), np.full(1, pad_id))
        whole = Episode(np.full(room, pad_id), (query,) * options.queries)
        return lay_out([whole] * rows, options, pad_id)

    def tell(self, name: str, reporter: Reporter = SILENT) -> None:
        """What there is, and what did not fit."""
        fit, options = self.fit, self.encoder.options
        families = len({task.family for task in self.tasks})
        items = sum(len(task.items) for task in self.tasks)
        among = f" of {families:,} families" if families > 1 else ""
        reporter.say(
            f"{name}: {number(len(self.tasks), 'task')}{among}, {number(items, 'item')}; "
            f"{fit.mean:.1f} examples fit on average, at least {fit.least} "
            f"(of {number(fit.episodes, 'episode')} looked at)"
        )
        if fit.cut:
            reporter.warn(
                f"{name}: {fit.cut} of {number(fit.episodes, 'episode')} left examples out, of "
                f"{options.max_examples} at most: {options.example_tokens} tokens are full "
                f"(hyper.example_tokens)"
            )
        if fit.bare:
            reporter.warn(f"{name}: {fit.bare} of {number(fit.episodes, 'episode')} without any "
                          f"example: each is longer than hyper.example_tokens")  # fmt: skip
        bare = [task.name for task in self.tasks if not task.positive]
        if options.mode == "positive" and bare:
            reporter.warn(f"{name}: {number(len(bare), 'task')} without exemplary pairs: examples "
                          f"are drawn from the items there")  # fmt: skip

    def _look(self) -> Fit:
        count = min(len(self), _LOOKED_AT)
        fit = Fit.of([self.episode(i, seed=None) for i in range(count)])
        if fit.bare == fit.episodes and self.encoder.options.max_examples:
            raise DataError(
                f"No example fits in {self.encoder.options.example_tokens} tokens (of "
                f"{number(fit.episodes, 'episode')} looked at).",
                "Raise hyper.example_tokens.",
            )
        return fit


def require_symbols(tasks: Sequence[Task], words: Sequence[str]) -> None:
    """The tokenizer has words enough to replace the options of every task.

    Raises:
        RecipeError: it has not.
    """
    most = max(
        (len({option for item in task.items for option in item.options}), task.name)
        for task in tasks
    )
    if 2 * most[0] > len(words):
        raise RecipeError(
            f"hyper.symbols: the tokenizer has {len(words)} words, too few to replace the "
            f"{most[0]} options of {most[1]}.",
            "Leave hyper.symbols out for this data.",
        )
