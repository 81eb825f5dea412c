"""Documents as compression segments: A and D are compressed, and C is predicted behind B.

A stretch of a document is cut into A B C D; a row is `[BOS A D]`, gists, `[BOS B C]`, and C alone
is learnt: what precedes and follows has to pass through the gists. The idea is HyperTuning's
(arXiv 2211.12485), taken over by HyperLlama (arXiv 2402.16817); neither says how long segments are,
so the lengths here are our own choice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from gistcli.data.episodes.drawing import Draws
from gistcli.data.episodes.layout import Episode, Query
from gistcli.data.episodes.options import EpisodeOptions
from gistcli.data.episodes.rows import Rows
from gistcli.data.episodes.stretches import SHORTEST, Stretch, find_stretches
from gistcli.data.text.encoding import number
from gistcli.data.text.examples import Example
from gistcli.data.text.tokenizer import Tokenizer
from gistcli.errors import RecipeError
from gistcli.reporting import SILENT, Reporter


class SegmentSplit(Rows):
    """Stretches of documents, tokenised and cut into segments where they are used.

    Which part of a stretch is used, and where it is cut, depends on (seed, epoch, number) alone.

    Attributes:
        stretches: a row each.
        dropped: documents that are too short.
        tokenizer: of the model.
    """

    def __init__(
        self,
        documents: Sequence[Example],
        tokenizer: Tokenizer,
        options: EpisodeOptions,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        """BOS, A, D and gists take `example_tokens` at most, BOS, B and C `query_tokens`.

        Raises:
            RecipeError: budgets without room.
            DataError: other examples than documents, or none that is long enough.
        """
        begin = len(tokenizer.prefix)
        self._room = (options.example_tokens - options.gists - begin, options.query_tokens - begin)
        if min(self._room) < 2:
            raise RecipeError(
                f"hyper.example_tokens ({options.example_tokens}) and hyper.query_tokens "
                f"({options.query_tokens}) leave no room for two segments each.",
                f"Set both to some hundreds, the first {options.gists} gist tokens higher.",
            )
        self.tokenizer = tokenizer
        self.stretches, self.dropped = find_stretches(documents, tokenizer, sum(self._room))
        names = [stretch.name for stretch in self.stretches]
        labels = torch.tensor([_checksum(s, options) for s in self.stretches])
        super().__init__(names, labels, options, pad_id=tokenizer.pad_id, device=device)

    def fingerprint(self) -> str:
        """SHA-256 over the names and checksums of all stretches."""
        content = repr((self.names, self.labels.tolist()))
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def make(self, index: int, draws: Draws) -> Episode:
        """A and D as context, B and C as its query."""
        ids = np.array(self.tokenizer.ids([self.stretches[index].text])[0], np.int32)
        begin = np.array(self.tokenizer.prefix, np.int32)
        a, b, c, d = np.split(ids, self._cuts(len(ids), draws))[1:-1]
        query = Query(np.concatenate([begin, b]), c)
        return Episode(np.concatenate([begin, a, d]), (query,), self.names[index])

    def tell(self, name: str, reporter: Reporter = SILENT) -> None:
        """What there is, and what was left out."""
        documents = len({id(stretch.document) for stretch in self.stretches})
        reporter.say(
            f"{name}: {number(documents, 'document')} in {number(len(self), 'row')} of A, B, C, D"
        )
        if self.dropped:
            reporter.warn(f"{name}: {number(self.dropped, 'document')} left out: shorter than "
                          f"{SHORTEST} tokens")  # fmt: skip

    def _cuts(self, count: int, draws: Draws) -> list[int]:
        """Where in so many tokens A, B, C, D begin, and where D ends.

        A and D have the share of their budget, and so have B and C; a segment is at least a quarter
        of its pair.
        """
        outer, inner = self._room
        skip, first, second = draws.take(3)
        used = min(count, outer + inner)
        ad = min(max(2, round(used * outer / (outer + inner))), used - 2, outer)
        bc = min(used - ad, inner)
        start = int(skip * (count - ad - bc + 1))
        a, b = _part(ad, first), _part(bc, second)
        return [start, start + a, start + a + b, start + a + bc, start + ad + bc]


def _part(count: int, u: float) -> int:
    """Tokens of the first of two segments: of `count`, a quarter to three quarters."""
    least = max(1, count // 4)
    return least + int(u * (count - 2 * least + 1))


def _checksum(stretch: Stretch, options: EpisodeOptions) -> int:
    content = repr((stretch.text, options)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(content).digest()[:8]) >> 1
