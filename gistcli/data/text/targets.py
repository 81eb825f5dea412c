"""Examples of an encoder-decoder: a source that is read whole, and a target that is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gistcli.data.base import some
from gistcli.data.text.encoding import Encoded, Encoder, require_learnt
from gistcli.data.text.examples import Chat, Completion, Example, Labelled, Message, Plain
from gistcli.data.text.options import DEFAULT_LENGTH
from gistcli.data.text.prompts import require_short
from gistcli.data.text.records import SHOWN
from gistcli.data.text.templates import ChatTemplate, require_template
from gistcli.data.text.tokenizer import Tokenizer
from gistcli.errors import DataError


@dataclass(frozen=True)
class _Pair:
    source: str
    target: str
    origin: str


@dataclass
class TargetEncoder(Encoder):
    """Sources with the tokenizer's own special tokens, and targets that end with EOS.

    Sources are cut by `data.truncate` and `max_length`, targets on their right by
    `max_target_length`; a target that was cut does not end.

    Attributes:
        max_target_length: tokens of a target.
    """

    max_target_length: int = field(default=DEFAULT_LENGTH, kw_only=True)

    def _completions(self, examples: list[Completion]) -> list[Encoded]:
        return self._written([_Pair(e.prompt, e.completion, e.origin) for e in examples])

    def _chats(self, examples: list[Chat]) -> list[Encoded]:
        bare = [chat.origin for chat in examples if _last_answer(chat) is None]
        if bare:
            raise DataError(
                f"{some(bare, 'chat', shown=SHOWN)} without an answer to learn.", "Remove them."
            )
        pairs = []
        for chat in examples:
            last = _last_answer(chat) or 0
            source = _asked(chat, chat.messages[:last], self.template)
            pairs.append(_Pair(source, chat.messages[last].content, chat.origin))
        return self._written(pairs)

    def _plain(self, examples: list[Plain]) -> list[Encoded]:
        raise DataError(
            f"{examples[0].origin} is a document: an encoder-decoder learns targets of sources.",
            "Give prompts with completions, or choose a decoder.",
        )

    def _written(self, pairs: Sequence[_Pair]) -> list[Encoded]:
        sources = self.tokenizer.ids([pair.source for pair in pairs])
        targets = self.tokenizer.ids([pair.target for pair in pairs])
        found = []
        empty = [p.origin for p, ids in zip(pairs, targets, strict=True) if not ids]
        require_learnt(empty)
        for pair, body, target in zip(pairs, sources, targets, strict=True):
            fitted = self._fitted_pair(body, self._ended(target))
            if fitted is not None:
                source, labels = (np.array(ids, np.int32) for ids in fitted)
                found.append(Encoded(source, labels, name=pair.origin, apart=True))
        return found

    def _fitted_pair(
        self, body: list[int], target: list[int]
    ) -> tuple[list[int], list[int]] | None:
        """Source and target within their lengths, by `truncate`; None where they are left out."""
        tokenizer, counts = self.tokenizer, self.counts
        room = max(self.max_length - len(tokenizer.prefix) - len(tokenizer.suffix), 1)
        long, wordy = len(body) > room, len(target) > self.max_target_length
        counts.target_length = self.max_target_length
        if self.options.truncate in (None, "drop"):
            counts.too_long += long
            counts.long_targets += wordy and not long
            if long or wordy:
                return None
        counts.cut += long
        counts.cut_targets += wordy
        kept = body[-room:] if self.options.truncate == "left" else body[:room]
        return closed(tokenizer, kept), target[: self.max_target_length]


def closed(tokenizer: Tokenizer, body: Sequence[int]) -> list[int]:
    """A source between the tokenizer's special tokens."""
    return [*tokenizer.prefix, *body, *tokenizer.suffix]


def encode_sources(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    max_length: int,
) -> list[list[int]]:
    """The ids of the sources whose targets are generated: those of training.

    Args:
        examples: of any kind but classification; of a chat, what precedes the answer that comes
            last, or all of it if another speaks last.
        tokenizer: of the model.
        template: for chats of several turns.
        max_length: the most tokens of a source.

    Raises:
        DataError: sources that are longer, or chats that the template refuses.
        RecipeError: chats of several turns without a template.
    """
    bodies = tokenizer.ids([_source(example, template) for example in examples])
    encoded = [closed(tokenizer, body) for body in bodies]
    require_short(examples, encoded, max_length, "Shorten them, or raise data.max_length.")
    return encoded


def _source(example: Example, template: ChatTemplate | None) -> str:
    if isinstance(example, Chat):
        messages = example.messages
        if messages[-1].role == "assistant":
            messages = messages[:-1]
        return _asked(example, messages, template)
    if isinstance(example, Labelled):
        raise DataError(f"{example.origin} is a text to be classified, not a source.")
    return example.prompt if isinstance(example, Completion) else example.text


def _last_answer(chat: Chat) -> int | None:
    """Number of the last turn that may be learnt."""
    turns = [i for i, m in enumerate(chat.messages) if m.role == "assistant" and m.trained and i]
    return turns[-1] if turns else None


def _asked(chat: Chat, messages: Sequence[Message], template: ChatTemplate | None) -> str:
    """What precedes an answer; without a template, a single question is its own text."""
    if template is None and not any(m.role in ("assistant", "tool") for m in messages):
        return "\n\n".join(message.content for message in messages)
    return require_template(template).prompt(messages, chat.tools, chat.origin)
