"""Documents as compression segments: A and D are compressed, and C is predicted behind B.

A stretch of a document is cut into A B C D; a row is `[BOS A D]`, gists, `[BOS B C]`, and C alone
is learnt: what precedes and follows has to pass through the gists. The idea is HyperTuning's
(arXiv 2211.12485), taken over by HyperLlama (arXiv 2402.16817); neither says how long segments are,
so the lengths here are our own choice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gistcli.data.augment import batch_indices
from gistcli.data.base import some
from gistcli.data.episodes.drawing import Draws
from gistcli.data.episodes.layout import Batch, Episode, Query, lay_out
from gistcli.data.episodes.options import EpisodeOptions
from gistcli.data.episodes.split import FIXED_SEED
from gistcli.data.text.encoding import number
from gistcli.data.text.examples import Example, Plain
from gistcli.data.text.records import SHOWN
from gistcli.data.text.tokenizer import Tokenizer
from gistcli.errors import DataError, RecipeError
from gistcli.reporting import SILENT, Reporter

SHORTEST = 16
"""Tokens of the shortest document that is used: four a segment on average."""
_SAMPLE = 64
"""Documents by which it is told how many characters a token has."""
_CHUNK = 1000
"""Documents that go through the tokenizer at once."""


@dataclass(frozen=True)
class Stretch:
    """Where in the documents a unit lies: characters `start` to `end` of one of them."""

    document: int
    start: int
    end: int


class SegmentSplit:
    """Stretches of documents, cut into segments where they are used.

    A long document is divided into stretches of about one row each; no tokens are held. Which part
    of a stretch is used, and where it is cut, depends on (seed, epoch, number) alone.

    Attributes:
        names: of each stretch.
        labels: (N,) int64 checksum of text and options, so that a fingerprint over labels notices
            other ones.
        documents: that are long enough.
        dropped: documents that are too short.
        options: budgets: BOS, A, D and gists take `example_tokens` at most, BOS, B and C
            `query_tokens`.
    """

    def __init__(
        self,
        documents: Sequence[Example],
        tokenizer: Tokenizer,
        options: EpisodeOptions,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.tokenizer, self.options = tokenizer, options
        self._device = torch.device(device)
        begin = len(tokenizer.prefix)
        self._room = (options.example_tokens - options.gists - begin, options.query_tokens - begin)
        if min(self._room) < 2:
            raise RecipeError(
                f"hyper.example_tokens ({options.example_tokens}) and hyper.query_tokens "
                f"({options.query_tokens}) leave no room for two segments each.",
                f"Set both to some hundreds, the first {options.gists} gist tokens higher.",
            )
        plain = _plain(documents)
        self.documents = self._long_enough(plain)
        self.dropped = len(plain) - len(self.documents)
        self._stretches = self._divided()
        self.names = [self._name(stretch) for stretch in self._stretches]
        self.labels: Tensor = torch.tensor([self._checksum(s) for s in self._stretches])

    def __len__(self) -> int:
        return len(self.names)

    def fingerprint(self) -> str:
        """SHA-256 over options, names and checksums of all stretches."""
        content = repr((self.options, self.names, self.labels.tolist()))
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

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
            batch_size: stretches in a global batch; process `rank` of `world` gets every world-th
                of them.
            seed: of order and cuts; None gives the same rows in every epoch, in order.
            epoch: number of the pass.
            start_batch: global batches to leave out at the beginning.
            rank: this process.
            world: the number of processes.
        """
        for index in batch_indices(
            len(self), batch_size, seed=seed, epoch=epoch, start_batch=start_batch, rank=rank,
            world=world,
        ):  # fmt: skip
            rows = [self.episode(int(i), seed=seed, epoch=epoch) for i in index]
            batch = lay_out(rows, self.options, self.tokenizer.pad_id, index)
            yield {key: value.to(self._device) for key, value in batch.items()}

    def episode(self, index: int, *, seed: int | None, epoch: int = 0) -> Episode:
        """One row of an epoch: A and D as context, B and C as its query."""
        draws = Draws(FIXED_SEED, 0, index) if seed is None else Draws(seed, epoch, index)
        stretch = self._stretches[index]
        text = self.documents[stretch.document].text[stretch.start : stretch.end]
        ids = np.array(self.tokenizer.ids([text])[0], np.int32)
        begin = np.array(self.tokenizer.prefix, np.int32)
        a, b, c, d = np.split(ids, self._cuts(len(ids), draws))[1:-1]
        return Episode(
            np.concatenate([begin, a, d]),
            (Query(np.concatenate([begin, b]), c),),
            self.names[index],
        )

    def longest(self, rows: int) -> Batch:
        """A batch of so many rows, on the CPU, as long as the budgets allow: none takes more."""
        pad_id = self.tokenizer.pad_id
        room = self.options.example_tokens - self.options.gists
        half = self.options.query_tokens // 2
        query = Query(np.full(half, pad_id), np.full(self.options.query_tokens - half, pad_id))
        return lay_out([Episode(np.full(room, pad_id), (query,))] * rows, self.options, pad_id)

    def tell(self, name: str, reporter: Reporter = SILENT) -> None:
        """What there is, and what was left out."""
        documents = number(len(self.documents), "document")
        reporter.say(f"{name}: {documents} in {number(len(self), 'part')} of about a row each")
        if self.dropped:
            reporter.warn(f"{name}: {number(self.dropped, 'document')} left out: shorter than "
                          f"{SHORTEST} tokens")  # fmt: skip

    def _cuts(self, count: int, draws: Draws) -> list[int]:
        """Where in so many tokens A, B, C, D begin, and where D ends.

        The parts have the ratio of their budgets, and a segment is at least a quarter of its pair.
        """
        ad, bc = self._room
        skip, first, second = draws.take(3)
        used = min(count, ad + bc)
        compressed = min(max(2, round(used * ad / (ad + bc))), used - 2, ad)
        predicted = min(used - compressed, bc)
        start = int(skip * (count - compressed - predicted + 1))
        a, b = _part(compressed, first), _part(predicted, second)
        return [start, start + a, start + a + b, start + a + predicted,
                start + compressed + predicted]  # fmt: skip

    def _long_enough(self, documents: Sequence[Plain]) -> list[Plain]:
        kept = []
        for start in range(0, len(documents), _CHUNK):
            part = documents[start : start + _CHUNK]
            # what has so many characters for each token has enough of these
            heads = [d.text[: SHORTEST * 32] for d in part]
            lengths = [len(ids) for ids in self.tokenizer.ids(heads)]
            kept += [d for d, n in zip(part, lengths, strict=True) if n >= SHORTEST]
        if not kept:
            raise DataError(
                f"All {number(len(documents), 'document')} are shorter than {SHORTEST} tokens.",
                "Give longer ones: a document is a row, or a line of a text file.",
            )
        return kept

    def _divided(self) -> list[Stretch]:
        """Every document in stretches of about a row."""
        sample = [document.text[:20_000] for document in self.documents[:_SAMPLE]]
        tokens = sum(len(ids) for ids in self.tokenizer.ids(sample))
        width = sum(self._room) * sum(map(len, sample)) / tokens
        stretches = []
        for place, document in enumerate(self.documents):
            length = len(document.text)
            parts = max(1, round(length / width))
            edges = [_edge(document.text, length * k // parts) for k in range(parts)] + [length]
            found = [Stretch(place, s, e) for s, e in zip(edges, edges[1:], strict=False)]
            stretches += found if parts == 1 else self._tokenised(found)
        return stretches

    def _tokenised(self, stretches: Sequence[Stretch]) -> list[Stretch]:
        """Those of a long document that have tokens enough, as all but odd ones have."""
        texts = [self.documents[s.document].text[s.start : s.end] for s in stretches]
        lengths = [len(ids) for ids in self.tokenizer.ids([t[: SHORTEST * 32] for t in texts])]
        return [s for s, n in zip(stretches, lengths, strict=True) if n >= SHORTEST]

    def _name(self, stretch: Stretch) -> str:
        origin = self.documents[stretch.document].origin
        return origin if stretch.start == 0 else f"{origin}+{stretch.start}"

    def _checksum(self, stretch: Stretch) -> int:
        text = self.documents[stretch.document].text[stretch.start : stretch.end]
        content = repr((text, self.options)).encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.sha256(content).digest()[:8]) >> 1


def _plain(documents: Sequence[Example]) -> list[Plain]:
    plain = [d for d in documents if isinstance(d, Plain)]
    others = [d.origin for d in documents if not isinstance(d, Plain)]
    if others:
        raise DataError(
            f"{some(others, 'row', shown=SHOWN)} no documents, which compression reads.",
            "Give rows {text}, or say data.columns.text=NAME and data.format=plain.",
        )
    return plain


def _part(count: int, u: float) -> int:
    """Tokens of the first of two segments: of `count`, a quarter to three quarters."""
    least = max(1, count // 4)
    return least + int(u * (count - 2 * least + 1))


def _edge(text: str, near: int) -> int:
    """The next place where a word begins, so that none is torn; `near` where there is none soon."""
    if near == 0:
        return 0
    found = text.find(" ", near, near + 200)
    return near if found < 0 else found + 1
