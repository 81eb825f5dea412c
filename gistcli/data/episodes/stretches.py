"""Documents divided into stretches of about a row each, without holding their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from gistcli.data.base import some
from gistcli.data.text.examples import Example, Plain
from gistcli.data.text.records import SHOWN
from gistcli.data.text.tokenizer import Tokenizer
from gistcli.errors import DataError

SHORTEST = 16
"""Tokens of the shortest stretch that is used: four a segment on average."""
_HEAD = 32 * SHORTEST
"""Characters by which it is found whether there are so many tokens."""
_SAMPLE, _SAMPLED = 64, 20_000
"""Documents, and characters of each, by which it is told how many characters a token has."""
_CHUNK = 1000
"""Stretches that go through the tokenizer at once."""


@dataclass(frozen=True)
class Stretch:
    """A part of a document, from the character `start` to `end`."""

    document: Plain
    start: int
    end: int

    @property
    def text(self) -> str:
        """What stands there."""
        return self.document.text[self.start : self.end]

    @property
    def name(self) -> str:
        """The document's, and where in it the stretch begins unless at its beginning."""
        origin = self.document.origin
        return f"{origin}+{self.start}" if self.start else origin


def find_stretches(
    documents: Sequence[Example], tokenizer: Tokenizer, tokens: int
) -> tuple[list[Stretch], int]:
    """All stretches of about so many tokens, and how many documents are too short for one.

    A shorter document is one stretch; a longer one is cut where words begin.

    Raises:
        DataError: other examples than documents, or none that is long enough.
    """
    others = [d.origin for d in documents if not isinstance(d, Plain)]
    if others:
        raise DataError(
            f"Compression reads documents, and {some(others, 'row', shown=SHOWN)} are none.",
            "Give rows {text}: data.format=plain, and data.columns.text=NAME for another column.",
        )
    plain = [d for d in documents if isinstance(d, Plain)]
    sample = [document.text[:_SAMPLED] for document in plain[:_SAMPLE]]
    sampled = sum(map(len, tokenizer.ids(sample)))
    width = tokens * sum(map(len, sample)) / max(1, sampled)
    found = [s for document in plain for s in _divided(document, width)]
    kept = []
    for start in range(0, len(found), _CHUNK):
        part = found[start : start + _CHUNK]
        lengths = map(len, tokenizer.ids([stretch.text[:_HEAD] for stretch in part]))
        kept += [s for s, n in zip(part, lengths, strict=True) if n >= SHORTEST]
    if not kept:
        raise DataError(
            f"No document has {SHORTEST} tokens (of {len(plain):,}).",
            "Give longer ones: a document is a row, or a line of a text file.",
        )
    return kept, len(plain) - len({id(stretch.document) for stretch in kept})


def _divided(document: Plain, width: float) -> list[Stretch]:
    length = len(document.text)
    parts = max(1, round(length / max(1.0, width)))
    near = [length * k // parts for k in range(parts)]
    edges = [0, *(_edge(document.text, n, n + length // (2 * parts)) for n in near[1:]), length]
    return [Stretch(document, start, end) for start, end in pairwise(edges)]


def _edge(text: str, start: int, end: int) -> int:
    """The first place in a range where a word begins, so that none is torn; else its start."""
    return max(start, text.find(" ", start, end) + 1)
