"""Which items of a task are shown and asked: a pure function of (seed, epoch, number)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gistcli.data.augment import hashed
from gistcli.data.episodes.options import EpisodeOptions
from gistcli.data.episodes.tasks import Item, Task


class Draws:
    """Uniform numbers of an episode, one after another, without a generator."""

    def __init__(self, seed: int, epoch: int = 0, index: int = 0) -> None:
        self._key = (seed, epoch, np.array([index]))
        self._taken = 0

    def take(self, count: int) -> np.ndarray:
        """(count,) float64 in [0, 1)."""
        places = np.arange(self._taken, self._taken + count)
        self._taken += count
        return (hashed(*self._key, places) >> np.uint64(11)) * 2.0**-53

    def below(self, n: int, count: int) -> list[int]:
        """So many of the places 0 .. n - 1, with replacement."""
        return [int(u * n) for u in self.take(count)]

    def picked(self, n: int, count: int) -> list[int]:
        """So many different ones of them, in random order: Fisher and Yates, as far as needed."""
        moved: dict[int, int] = {}
        found = []
        for i, u in enumerate(self.take(count)):
            j = i + int(u * (n - i))
            found.append(moved.get(j, j))
            moved[j] = moved.get(i, i)
        return found


@dataclass(frozen=True)
class Drawn:
    """Items of one task.

    Attributes:
        shown: to be examples, in the order in which they are added.
        asked: the queries.
        copies: how many of `shown`, at its beginning, are queries.
    """

    shown: tuple[Item, ...]
    asked: tuple[Item, ...]
    copies: int = 0


def draw_items(task: Task, options: EpisodeOptions, draws: Draws) -> Drawn:
    """Queries and examples, without replacement: no query is shown, except in the mode `copy`.

    The inputs of a synthetic rule are drawn with replacement.
    """
    items, most = task.items, options.max_examples
    if task.rule:
        chosen = [items[i] for i in draws.below(len(items), options.queries + most)]
        asked, shown = chosen[: options.queries], chosen[options.queries :]
    else:
        count = min(options.queries, len(items) - 1)
        places = draws.picked(len(items), min(count + most, len(items)))
        chosen = [items[i] for i in places]
        asked = chosen[:count]
        shown = _others(chosen[count:], asked)
    if options.mode == "positive" and task.positive:
        exemplary = _others(task.positive, asked)
        shown = [exemplary[i] for i in draws.picked(len(exemplary), min(most, len(exemplary)))]
    copied: list[Item] = []
    if options.mode == "copy":
        lots = zip(asked, draws.take(len(asked)), strict=True)
        copied = [item for item, u in lots if u < options.copy_probability][:most]
    return Drawn((*copied, *shown[: most - len(copied)]), tuple(asked), len(copied))


def draw_held_out(task: Task, options: EpisodeOptions, draws: Draws, queries: int) -> Drawn:
    """Examples by lot, and the first other items in their order as queries.

    Half of a small task's items are shown at most.
    """
    items = task.items
    if task.rule:
        shown = [items[i] for i in draws.below(len(items), options.max_examples)]
        return Drawn(tuple(shown), items[:queries])
    if options.mode == "positive" and task.positive:
        shown = [*task.positive[: options.max_examples]]
        return Drawn(tuple(shown), tuple(_others(items, shown)[:queries]))
    count = min(options.max_examples, len(items) // 2)
    places = draws.picked(len(items), count)
    rest = [item for i, item in enumerate(items) if i not in {*places}]
    asked = rest[:queries]
    return Drawn(tuple(_others([items[i] for i in places], asked)), tuple(asked))


def _others(items: Sequence[Item], than: Sequence[Item]) -> list[Item]:
    """Items without those that have the prompt of one of `than`."""
    prompts = {item.prompt for item in than}
    return [item for item in items if item.prompt not in prompts]


def replace_options(drawn: Drawn, task: Task, words: Sequence[str], draws: Draws) -> Drawn:
    """With arbitrary words in the place of the task's options: the same everywhere in the episode.

    Args:
        drawn: of this task.
        task: without options it stays as it is.
        words: to choose from, at least twice as many as the task has options.
        draws: of the episode.
    """
    options = sorted({option for item in task.items for option in item.options})
    picked = [words[i] for i in draws.picked(len(words), 2 * len(options))]
    free = [word for word in picked if word not in options]
    symbols = dict(zip(options, free, strict=False))

    def put(item: Item) -> Item:
        return replace(
            item,
            completion=symbols.get(item.completion, item.completion),
            options=tuple(symbols[option] for option in item.options),
            others=tuple(symbols.get(other, other) for other in item.others),
        )

    return replace(drawn, shown=tuple(map(put, drawn.shown)), asked=tuple(map(put, drawn.asked)))
