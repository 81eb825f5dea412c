"""Tasks as a training split: episodes drawn anew in every epoch, by number."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gistcli.data.episodes.drawing import Draws, draw_items, replace_options
from gistcli.data.episodes.encoding import EpisodeEncoder
from gistcli.data.episodes.layout import Episode
from gistcli.data.episodes.options import EpisodeOptions
from gistcli.data.episodes.rows import Rows
from gistcli.data.episodes.tasks import Task
from gistcli.data.text.encoding import number
from gistcli.errors import DataError, RecipeError
from gistcli.reporting import SILENT, Reporter

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


class EpisodeSplit(Rows):
    """Episodes of some tasks: examples, then queries, drawn anew in every epoch.

    An episode's task is drawn in proportion to its items, up to `options.cap` of them; its items
    are drawn without replacement (`draw_items`).

    Attributes:
        tasks: to draw from.
        encoder: of items.
        fit: how many examples fit.
    """

    def __init__(
        self, tasks: Sequence[Task], encoder: EpisodeEncoder, *, device: torch.device | str = "cpu"
    ) -> None:
        """A few episodes are made at once, to see how many examples fit.

        Raises:
            DataError: in none of them any does.
            RecipeError: the tokenizer has too few words to replace all options.
        """
        self.tasks, self.encoder = list(tasks), encoder
        options, pad_id = encoder.options, encoder.tokenizer.pad_id
        if options.symbols:
            require_symbols(self.tasks, encoder.words)
        sizes = np.array([min(len(task.items), options.cap) for task in self.tasks], np.int64)
        self._shares = np.cumsum(sizes / sizes.sum())
        count = options.episodes or max(1, int(sizes.sum()) // options.queries)
        names = [f"episode-{i}" for i in range(count)]
        checksum = int.from_bytes(bytes.fromhex(_digest(self.tasks, options))[:8]) >> 1
        labels = torch.full((count,), checksum, dtype=torch.int64)
        super().__init__(names, labels, options, pad_id=pad_id, device=device)
        self.fit = self._look()

    def fingerprint(self) -> str:
        """SHA-256 over options and tasks."""
        return _digest(self.tasks, self.options)

    def make(self, index: int, draws: Draws) -> Episode:
        """A task by lot, and an episode of it."""
        place = int(np.searchsorted(self._shares, draws.take(1)[0], side="right"))
        task = self.tasks[min(place, len(self.tasks) - 1)]
        drawn = draw_items(task, self.options, draws)
        if self.options.symbols:
            drawn = replace_options(drawn, task, self.encoder.words, draws)
        return self.encoder.episode(task, drawn, draws=draws)

    def tell(self, name: str, reporter: Reporter = SILENT) -> None:
        """What there is, and what did not fit."""
        families = len({task.family for task in self.tasks})
        items = sum(len(task.items) for task in self.tasks)
        among = f" of {families:,} families" if families > 1 else ""
        reporter.say(
            f"{name}: {number(len(self.tasks), 'task')}{among}, {number(items, 'item')}; "
            f"{self.fit.mean:.1f} of at most {self.options.max_examples} examples fit in "
            f"{self.options.example_tokens} tokens on average, {self.fit.least} at least "
            f"({number(self.fit.episodes, 'episode')} looked at)"
        )
        for note in self._notes():
            reporter.warn(f"{name}: {note}")

    def _notes(self) -> list[str]:
        fit, looked_at = self.fit, number(self.fit.episodes, "episode")
        bare = [task.name for task in self.tasks if not task.positive]
        told = (
            (fit.bare, f"{fit.bare} of {looked_at} have no example: each that was drawn is longer "
                       f"than hyper.example_tokens"),
            (self.encoder.cut_answers, f"{number(len(self.encoder.cut_answers), 'answer')} cut at "
                                       f"the end: longer than hyper.query_tokens allows"),
            (self.options.mode == "positive" and bare,
             f"{number(len(bare), 'task')} without exemplary pairs: examples are drawn from the "
             f"items there"),
        )  # fmt: skip
        return [note for says, note in told if says]

    def _look(self) -> Fit:
        count = min(len(self), _LOOKED_AT)
        fit = Fit.of([self.episode(i, seed=None) for i in range(count)])
        if fit.bare == fit.episodes and self.options.max_examples:
            raise DataError(
                f"No example fits in {self.options.example_tokens} tokens (of "
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


def _digest(tasks: Sequence[Task], options: EpisodeOptions) -> str:
    digest = hashlib.sha256(repr(options).encode())
    for task in tasks:
        digest.update(repr(task).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
