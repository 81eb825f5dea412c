"""The keys of a recipe's `data` section that only text has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class TextOptions:
    """How rows become examples, and examples become batches.

    Attributes:
        format: messages, sharegpt, alpaca, completion, labelled or plain; auto goes by the columns.
        columns: role of the format -> column, or a text with `{column}` in it. Columns that are
            numbers count the fields of a CSV or TSV file without a header line, from 0.
        prompt: how an Alpaca row is put: `chat` (one exchange, through the chat template),
            `alpaca` (the preambles of Stanford's Alpaca) or `plain` (instruction, input and a line
            break); auto is chat where there is a chat template, else alpaca.
        replace: exact replacements in completions, such as `{"####": "The final answer is:"}`.
        chat_template: `tokenizer`, `chatml`, or a file with a Jinja template.
        train_on: which turns of a chat are learnt: all of the `assistant`, the `last` of them, or
            `all` tokens.
        max_length: tokens of a sequence; None is what model and tokenizer allow, at most
            `DEFAULT_LENGTH`.
        max_target_length: tokens of the target of an encoder-decoder; None is as for the source.
        truncate: what happens to longer ones: `drop` (whole trailing turns of a chat, then the
            example), `left` or `right` (tokens on that side). None is drop for chats and
            completions, right for classification, and cuts plain text into pieces without loss.
        packing: several sequences in a row of `max_length`.
        group_by_length: batches of similar lengths, where rows are not packed.
        skip: leave damaged lines and rows that cannot be used out, with a warning.
    """

    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    prompt: Literal["auto", "chat", "alpaca", "plain"] = "auto"
    replace: Mapping[str, str] = field(default_factory=dict)
    chat_template: str = "tokenizer"
    train_on: Literal["assistant", "last", "all"] = "assistant"
    max_length: int | None = None
    max_target_length: int | None = None
    truncate: Literal["drop", "left", "right"] | None = None
    packing: bool = False
    group_by_length: bool = False
    skip: bool = False


DEFAULT_LENGTH = 2048
"""The longest sequence that is made without being asked for, in tokens."""
