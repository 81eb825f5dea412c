"""Episodes as rows of tokens: context, gists, then queries that do not see each other.

`spans` tells what a token is part of; who may attend to whom, and the positions, follow from it
(`gistcli.hyper.gisting`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gistcli.data.episodes.options import EpisodeOptions
from gistcli.data.episodes.tasks import Item
from gistcli.data.text.collate import pad
from gistcli.data.text.encoding import IGNORED

Batch = dict[str, Tensor]
PADDING, CONTEXT, GIST, QUERY = 0, 1, 2, 3
"""Values of `spans`; the queries of a row are QUERY, QUERY + 1, ..."""


@dataclass(frozen=True)
class Query:
    """What is asked behind a context.

    Attributes:
        prompt: (P,) int32, BOS and what is read.
        answer: (A,) int32, what is learnt.
        item: with text and options as they are put here; None for segments of documents.
        options: (A',) int32 for each option of the item, as `answer` would be.
    """

    prompt: np.ndarray
    answer: np.ndarray
    item: Item | None = None
    options: tuple[np.ndarray, ...] = ()

    @property
    def gold(self) -> int | None:
        """Which option is right; None where there are none."""
        item = self.item
        return item.options.index(item.completion) if item and item.options else None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Episode:
    """A context, and what is asked behind it.

    Attributes:
        context: (S,) int32: BOS, definition and examples; BOS, A and D of a document.
        queries: in order.
        task: name of the task, or of the document.
        family: of the task.
        examples: those in the context, in their order.
        left: examples that were drawn and did not fit.
    """

    context: np.ndarray
    queries: tuple[Query, ...]
    task: str = ""
    family: str = ""
    examples: tuple[Item, ...] = field(default=(), kw_only=True)
    left: int = field(default=0, kw_only=True)

    @property
    def shown(self) -> int:
        """How many examples the context has."""
        return len(self.examples)


def lay_out(
    episodes: Sequence[Episode],
    options: EpisodeOptions,
    pad_id: int,
    index: Sequence[int] | np.ndarray | None = None,
) -> Batch:
    """A batch, padded on the right; an episode without queries gives what is compressed.

    Args:
        episodes: a row each.
        options: which say how many gists there are, and what stands in front of the queries.
        pad_id: at padding and gists.
        index: (B,) numbers of the episodes; from 0 unless given.

    Returns:
        input_ids, attention_mask (1 = real), spans and labels (`IGNORED` except on answers), each
        (B, T) int64, and index (B,) int64.
    """
    rows = [_row(episode, options, pad_id) for episode in episodes]
    spans = pad([spans for _, spans, _ in rows], PADDING)
    numbers = np.arange(len(rows)) if index is None else np.asarray(index, np.int64)
    return {
        "input_ids": pad([ids for ids, _, _ in rows], pad_id),
        "attention_mask": (spans != PADDING).long(),
        "spans": spans,
        "labels": pad([labels for _, _, labels in rows], IGNORED),
        "index": torch.from_numpy(numbers),
    }


def _row(
    episode: Episode, options: EpisodeOptions, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, spans and labels, each (T,)."""
    parts: list[tuple[np.ndarray, int, bool]] = []
    if options.context != "none":
        parts.append((episode.context, CONTEXT, False))
    parts.append((np.full(options.places, pad_id), GIST, False))
    for number, query in enumerate(episode.queries, QUERY):
        parts += [(query.prompt, number, False), (query.answer, number, True)]
    ids = np.concatenate([part for part, _, _ in parts])
    lengths = [len(part) for part, _, _ in parts]
    spans = np.repeat([span for _, span, _ in parts], lengths)
    learnt = np.repeat([learnt for _, _, learnt in parts], lengths)
    return ids, spans, np.where(learnt, ids, IGNORED)
