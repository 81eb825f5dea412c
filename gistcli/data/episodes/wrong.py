"""Segments of documents, each behind A and D of another document: what gists are compared with."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

from gistcli.data.episodes.drawing import Draws
from gistcli.data.episodes.layout import Episode
from gistcli.data.episodes.rows import Rows
from gistcli.data.episodes.segments import SegmentSplit
from gistcli.reporting import SILENT, Reporter


class WrongDocuments(Rows):
    """The rows of a split with the contexts of others, paired once for all.

    A row has the context of the one that stands half a split behind it, for neighbours are often
    of the same document; where that is of its own document, of the next one.

    Attributes:
        split: whose B and C these are, in its order.
        partners: of each row the one whose A and D it stands behind.
    """

    def __init__(self, split: SegmentSplit) -> None:
        """There are two documents at least (`has_others`)."""
        super().__init__(
            split.names, split.labels, split.options, pad_id=split.pad_id, device=split.device
        )
        self.split = split
        count, firsts = len(split), _firsts(split)
        self.partners = [(i + count // 2) % count for i in range(count)]
        for i, partner in enumerate(self.partners):
            if split.stretches[partner].document is split.stretches[i].document:
                self.partners[i] = firsts[bisect_right(firsts, partner) % len(firsts)]

    @staticmethod
    def has_others(split: SegmentSplit) -> bool:
        """Whether a split has more than one document."""
        return bool(_firsts(split))

    def make(self, index: int, draws: Draws) -> Episode:
        """B and C of the row itself, and a context that is the same in every epoch."""
        other = self.split.episode(self.partners[index], seed=None)
        return replace(self.split.make(index, draws), context=other.context)

    def tell(self, name: str, reporter: Reporter = SILENT) -> None:
        """Nothing that the split has not told."""


def _firsts(split: SegmentSplit) -> list[int]:
    """The first row of every document, of which there are several; their rows are neighbours."""
    documents = [stretch.document for stretch in split.stretches]
    return [i for i, document in enumerate(documents) if document is not documents[i - 1]]
