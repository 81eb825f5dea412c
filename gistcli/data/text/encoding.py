"""Examples to token ids and labels: what is learnt, what is cut, and counts of all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from gistcli.data.base import some
from gistcli.data.text.examples import Chat, Completion, Example, Labelled, Plain
from gistcli.data.text.options import TextOptions
from gistcli.data.text.records import SHOWN
from gistcli.data.text.templates import ChatTemplate, Span, require_template
from gistcli.data.text.tokenizer import Tokenizer
from gistcli.errors import DataError

IGNORED = -100
"""The label of tokens that are not learnt."""
_CHUNK = 1000
"""Examples that go through the tokenizer at once."""


@dataclass(frozen=True)
class Encoded:
    """One example as tokens.

    Attributes:
        input_ids: (T,) int32.
        labels: (T,) int32, `IGNORED` where nothing is learnt: always at place 0, since nothing
            predicts the first token, and everywhere in classification. The target alone where
            source and target are `apart`.
        target: class or value of a labelled text.
        type_ids: (T,) int32, which of two texts a token is of, where the tokenizer says so.
        name: where the example stands in the data.
        apart: an encoder reads the ids, and a decoder writes the labels.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    target: str | float | None = None
    type_ids: np.ndarray | None = None
    name: str = ""
    apart: bool = False

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def supervised(self) -> int:
        """Tokens that are learnt."""
        return int((self.labels != IGNORED).sum())


@dataclass
class Counts:
    """What became of the examples.

    Attributes:
        examples: that were given.
        too_long: left out because no useful part fits.
        cut: that lost tokens.
        turns: of chats, left out at the end.
        pieces: sequences that documents were cut into, beyond the first of each.
        apart: prompts whose tokens would have merged with the completion's.
        long_targets: examples left out because their target is too long.
        cut_targets: targets that lost tokens.
        target_length: tokens of a target, at most.
    """

    examples: int = 0
    too_long: int = 0
    cut: int = 0
    turns: int = 0
    pieces: int = 0
    apart: int = 0
    long_targets: int = 0
    cut_targets: int = 0
    target_length: int = 0

    def notes(self, max_length: int) -> list[str]:
        """What a user should know, a sentence each."""
        told = (
            (self.too_long, "example", f"left out: longer than {max_length} tokens"),
            (self.turns, "turn", f"left out at the end of chats longer than {max_length} tokens"),
            (self.cut, "example", f"cut to {max_length} tokens"),
            (self.pieces, "further sequence", f"of documents longer than {max_length} tokens"),
            (
                self.long_targets,
                "example",
                f"left out: targets longer than {self.target_length} tokens",
            ),
            (self.cut_targets, "target", f"cut to {self.target_length} tokens"),
        )
        return [f"{number(n, what)} {why}" for n, what, why in told if n]


def number(count: int, what: str) -> str:
    """ "1 turn", "2,000 turns"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


@dataclass
class Encoder:
    """Turns examples of any kind into tokens.

    Attributes:
        tokenizer: of the model.
        options: the recipe's.
        max_length: tokens of a sequence, see `Tokenizer.max_length`.
        template: for chats.
        counts: of all that `encode` has seen.
    """

    tokenizer: Tokenizer
    options: TextOptions
    max_length: int
    template: ChatTemplate | None = None
    counts: Counts = field(default_factory=Counts)

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Sequences of at most `max_length` tokens, in the order of the examples.

        Raises:
            DataError: examples in which nothing is learnt, or chats that the template refuses.
            RecipeError: chats without a template.
        """
        kinds: dict[type, Callable[..., list[Encoded]]] = {
            Chat: self._chats,
            Completion: self._completions,
            Labelled: self._labelled,
            Plain: self._plain,
        }
        found: list[Encoded] = []
        for start in range(0, len(examples), _CHUNK):
            for kind, group in groupby(examples[start : start + _CHUNK], type):
                found += kinds[kind](list(group))
        self.counts.examples += len(examples)
        if not found:
            raise DataError(
                f"All {len(examples):,} examples are longer than {self.max_length} tokens.",
                "Raise data.max_length, or set data.truncate to right.",
            )
        return found

    # --- one kind each ----------------------------------------------------------------------

    def _completions(self, examples: list[Completion]) -> list[Encoded]:
        prompts = self.tokenizer.ids([e.prompt for e in examples])
        wholes = self.tokenizer.ids([e.prompt + e.completion for e in examples])
        for i, (prompt, whole) in enumerate(zip(prompts, wholes, strict=True)):
            # at inference the prompt is tokenised alone: training has to see the same tokens
            if whole[: len(prompt)] != prompt:
                wholes[i] = prompt + self.tokenizer.ids([examples[i].completion])[0]
                self.counts.apart += 1
        encoded = []
        for example, prompt, whole in zip(examples, prompts, wholes, strict=True):
            ids = self._ended([*self.tokenizer.prefix, *whole])
            start = len(self.tokenizer.prefix) + len(prompt)
            encoded.append(_sequence(ids, [(start, len(ids))], example.origin))
        require_learnt(bare(encoded))
        return [cut for e in encoded if (cut := self._fitted(e)) is not None]

    def _plain(self, examples: list[Plain]) -> list[Encoded]:
        prefix = self.tokenizer.prefix
        encoded: list[Encoded] = []
        for example, body in zip(
            examples, self.tokenizer.ids([e.text for e in examples]), strict=True
        ):
            ids = self._ended([*prefix, *body])
            whole = _sequence(ids, [(0, len(ids))], example.origin)
            require_learnt(bare([whole]))
            if self.options.truncate is None:
                encoded += self._pieces(whole)
            elif (cut := self._fitted(whole)) is not None:
                encoded.append(cut)
        return encoded

    def _pieces(self, whole: Encoded) -> list[Encoded]:
        """A document as sequences of at most `max_length` tokens, each begun anew."""
        if len(whole) <= self.max_length:
            return [whole]
        prefix = self.tokenizer.prefix
        body, room = whole.input_ids[len(prefix) :].tolist(), self.max_length - len(prefix)
        pieces = []
        for number, start in enumerate(range(0, len(body), room), 1):
            ids = [*prefix, *body[start : start + room]]
            pieces.append(_sequence(ids, [(0, len(ids))], f"{whole.name}#{number}"))
        pieces = [piece for piece in pieces if piece.supervised]
        self.counts.pieces += len(pieces) - 1
        return pieces

    def _labelled(self, examples: list[Labelled]) -> list[Encoded]:
        whole = self._pairs(examples, None)
        long = [i for i, encoded in enumerate(whole) if len(encoded) > self.max_length]
        if self.options.truncate == "drop":
            self.counts.too_long += len(long)
            return [e for e in whole if len(e) <= self.max_length]
        self.counts.cut += len(long)
        for i, cut in zip(long, self._pairs([examples[i] for i in long], self.max_length),
                          strict=True):  # fmt: skip
            whole[i] = cut
        return whole

    def _pairs(self, examples: list[Labelled], max_length: int | None) -> list[Encoded]:
        """With the tokenizer's own special tokens; a tokenizer without a separator gets a line."""
        if not examples:
            return []
        base = self.tokenizer.base
        texts, seconds = [e.text for e in examples], [e.second_text for e in examples]
        paired = seconds[0] is not None
        if paired and base.sep_token is None:
            texts = [f"{text}\n{second}" for text, second in zip(texts, seconds, strict=True)]
            paired = False
        batch = base(
            texts,
            seconds if paired else None,
            truncation="longest_first" if max_length else False,
            max_length=max_length,
            return_attention_mask=False,
            verbose=False,
        )
        types = batch.get("token_type_ids") or [None] * len(examples)
        return [
            Encoded(
                np.array(ids, np.int32),
                np.full(len(ids), IGNORED, np.int32),
                example.label,
                None if kinds is None else np.array(kinds, np.int32),
                example.origin,
            )
            for example, ids, kinds in zip(examples, batch["input_ids"], types, strict=True)
        ]

    def _chats(self, examples: list[Chat]) -> list[Encoded]:
        template = require_template(self.template)
        told = [template.spans(chat, self.options.train_on) for chat in examples]
        encoded = list(self._turns(told, [chat.origin for chat in examples]))
        require_learnt(bare(encoded))
        found = []
        for chat, whole in zip(examples, encoded, strict=True):
            by_turns = self.options.truncate in (None, "drop")
            fits = self._shortened(chat, whole) if by_turns else whole
            cut = None if fits is None else self._fitted(fits)
            found += [] if cut is None else [cut]
        return found

    def _turns(
        self, told: Sequence[tuple[str, list[Span]]], names: Sequence[str]
    ) -> Iterator[Encoded]:
        """Rendered chats as tokens; the labels follow from the characters each token covers."""
        batch = self.tokenizer.base(
            [text for text, _ in told],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for ids, offsets, (text, spans), name in zip(
            batch["input_ids"], batch["offset_mapping"], told, names, strict=True
        ):
            places = _covered(offsets)
            ranges = [self._range(ids, places, span) for span in spans]
            ended = any(i in self.tokenizer.stop_ids for i in ids[slice(*ranges[-1])])
            if not ended and spans[-1][1] == len(text):
                ids = self._ended(ids)
                ranges[-1] = (ranges[-1][0], len(ids))
            yield _sequence(ids, ranges, name)

    def _range(self, ids: list[int], places: np.ndarray, span: Span) -> tuple[int, int]:
        """The tokens [first, last) of a span: those that share characters with it.

        It ends with the token that ends the turn, where there is one in it or right behind it:
        what the template writes after that is never generated.
        """
        if self.options.train_on == "all":
            return 0, len(ids)
        inside = np.flatnonzero((places[:, 1] > span[0]) & (places[:, 0] < span[1]))
        if not len(inside):
            return 0, 0
        first, last = int(inside[0]), int(inside[-1]) + 1
        stops = [i for i in range(first, last) if ids[i] in self.tokenizer.stop_ids]
        if stops:
            return first, stops[-1] + 1
        follows = last < len(ids) and ids[last] in self.tokenizer.stop_ids
        return first, last + 1 if follows else last

    # --- length -----------------------------------------------------------------------------

    def _shortened(self, chat: Chat, whole: Encoded) -> Encoded | None:
        """A chat without as many trailing turns as needed; None where not even one answer fits."""
        if len(whole) <= self.max_length:
            return whole
        template = require_template(self.template)
        ends = [i + 1 for i, m in enumerate(chat.messages) if m.role == "assistant" and m.trained]
        best, low, high = None, 0, len(ends) - 1  # the last of them is too long as it is
        while low < high:
            middle = (low + high) // 2
            shorter = replace(chat, messages=chat.messages[: ends[middle]])
            told = template.spans(shorter, self.options.train_on)
            encoded = next(self._turns([told], [chat.origin]))
            if len(encoded) <= self.max_length:
                best, low = (middle, encoded), middle + 1
            else:
                high = middle
        if best is None:
            self.counts.too_long += 1
            return None
        self.counts.turns += len(chat.messages) - ends[best[0]]
        return best[1]

    def _fitted(self, encoded: Encoded) -> Encoded | None:
        """By `truncate`; None where it is left out."""
        over = len(encoded) - self.max_length
        if over <= 0:
            return encoded
        ids, labels = encoded.input_ids, encoded.labels
        if self.options.truncate == "right":
            kept = np.arange(self.max_length)
        elif self.options.truncate == "left":
            prefix = self.tokenizer.prefix
            keep = len(prefix) if ids[: len(prefix)].tolist() == prefix else 0
            kept = np.r_[:keep, keep + over : len(ids)]
        else:
            self.counts.too_long += 1
            return None
        labels = labels[kept].copy()
        labels[0] = IGNORED
        cut = replace(encoded, input_ids=ids[kept], labels=labels)
        if not cut.supervised:
            self.counts.too_long += 1
            return None
        self.counts.cut += 1
        return cut

    def _ended(self, ids: list[int]) -> list[int]:
        """With the end of the sequence, unless it is there already."""
        eos = self.tokenizer.eos_id
        if eos is None or (ids and ids[-1] in self.tokenizer.stop_ids):
            return list(ids)
        return [*ids, eos]


def _covered(offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Characters [start, end) of each token, int64 (T, 2).

    Byte-level tokenizers trim spaces off, so that a token of spaces alone would cover nothing.
    """
    places = np.array(offsets, np.int64).reshape(-1, 2)
    before = np.r_[0, places[:-1, 1]]
    empty = places[:, 0] == places[:, 1]
    places[empty, 0] = np.minimum(places[empty, 0], before[empty])
    return places


def _sequence(ids: Sequence[int], learnt: Sequence[tuple[int, int]], name: str) -> Encoded:
    """Ids with labels on the given ranges, never on the first token."""
    input_ids = np.array(ids, np.int32)
    labels = np.full(len(input_ids), IGNORED, np.int32)
    for first, last in learnt:
        labels[first:last] = input_ids[first:last]
    labels[:1] = IGNORED
    return Encoded(input_ids, labels, name=name)


def bare(encoded: Sequence[Encoded]) -> list[str]:
    """Names of the examples in which nothing is learnt."""
    return [e.name for e in encoded if not e.supervised]


def require_learnt(names: Sequence[str]) -> None:
    """There are none without a token to learn.

    Raises:
        DataError: these examples.
    """
    if names:
        raise DataError(
            f"{some(names, 'example', shown=SHOWN)} without a single token to learn.",
            "Remove them, or look at data.columns, data.chat_template and data.train_on.",
        )
