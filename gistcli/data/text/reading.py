"""Rows to examples: what each format's columns must hold; all bad rows are named at once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gistcli.data.base import some
from gistcli.data.tables import as_label
from gistcli.data.text.examples import (
    ROLES,
    Chat,
    Completion,
    Example,
    Gold,
    Labelled,
    Message,
    Plain,
)
from gistcli.data.text.formats import Schema, fields_of
from gistcli.data.text.records import SHOWN, Row
from gistcli.errors import DataError

Prompt = Literal["chat", "alpaca", "plain"]

_SPEAKERS = {
    **{role: role for role in ROLES},
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
}
_BELOW = "Write a response that appropriately completes the request."
_ALPACA = f"Below is an instruction that describes a task. {_BELOW}\n\n### Instruction:\n"
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    f"context. {_BELOW}\n\n### Instruction:\n"
)


class _Bad(ValueError):
    """What is wrong with a row."""


@dataclass(frozen=True)
class Reader:
    """Makes examples of one schema.

    Attributes:
        schema: the format and its columns.
        prompt: how Alpaca rows are put, see `TextOptions.prompt`; None leaves prompt/completion
            rows as they are and takes `plain` for Alpaca's.
        replace: exact replacements in completions.
        numeric: whether labels are values and not classes.
        answered: whether every row must hold an answer to learn; without, a missing one is empty.
        skip: leave rows that cannot be used out, with a warning that counts them.
    """

    schema: Schema
    prompt: Prompt | None = None
    replace: Mapping[str, str] | None = None
    numeric: bool = False
    answered: bool = True
    skip: bool = False

    def read(self, rows: Sequence[Row], where: str) -> tuple[list[Example], list[str]]:
        """Examples in the order of the rows, and notes on rows that were passed over.

        Raises:
            DataError: rows that cannot be used; the first few are named with what is wrong.
        """
        make: Callable[[Row], Example] = getattr(self, f"_{self.schema.format}")
        examples: list[Example] = []
        problems: list[str] = []
        empty = 0
        for row in rows:
            try:
                examples.append(make(row))
            except _Bad as error:
                if self.schema.format == "plain" and str(error) == _EMPTY_TEXT:
                    empty += 1
                else:
                    problems.append(f"{row.origin}: {error}")
        named = some(problems, "row", shown=SHOWN)
        if problems and not (self.skip and examples):
            raise DataError(
                f"{where} ({self.schema.format}): {named} cannot be used.",
                "Repair or remove them, or leave them out: data.on_error=skip. data.format and "
                "data.columns say how rows are read.",
            )
        if not examples:
            raise DataError(f"{where} holds no text.", "Give a file with at least one example.")
        notes = [f"{where}: {named} left out"] if problems else []
        return examples, [*notes, *([f"{where}: {empty:,} empty rows left out"] if empty else [])]

    # --- one format each --------------------------------------------------------------------

    def _messages(self, row: Row) -> Chat:
        return self._chat(_turns(self._value(row, "messages")), self._tools(row), row)

    def _sharegpt(self, row: Row) -> Chat:
        turns = _turns(self._value(row, "conversations"))
        return self._chat([*self._system(row), *turns], self._tools(row), row)

    def _alpaca(self, row: Row) -> Chat | Completion:
        instruction = self._text(row, "instruction")
        given = self._text(row, "input", empty=True)
        output = self._answer(row, "output")
        if self.prompt == "chat":
            user = Message("user", f"{instruction}\n{given}" if given else instruction)
            turns = [*self._system(row), user, *_said(output)]
            return self._chat(turns, None, row)
        before = "".join(f"{message.content}\n\n" for message in self._system(row))
        if self.prompt == "alpaca":
            body = f"{_ALPACA_INPUT if given else _ALPACA}{instruction}\n\n"
            body += f"### Input:\n{given}\n\n" if given else ""
            return Completion(f"{before}{body}### Response:\n", output, row.origin, self._gold(row))
        body = f"{instruction}\n{given}\n" if given else f"{instruction}\n"
        return Completion(before + body, output, row.origin, self._gold(row))

    def _completion(self, row: Row) -> Chat | Completion:
        prompt, completion = self._value(row, "prompt"), self._cell(row, "completion")
        if isinstance(completion, list) or isinstance(prompt, list):
            completion = completion or []
            asked = _turns(prompt if isinstance(prompt, list) else [_user(prompt)])
            untrained = [Message(m.role, m.content, False, m.extra) for m in asked]
            return self._chat([*untrained, *_turns(completion, none=True)], None, row)
        text, answer = self._text(row, "prompt"), self._answer(row, "completion")
        if self.prompt == "chat":
            return self._chat([Message("user", text), *_said(answer)], None, row)
        return Completion(text, answer, row.origin, self._gold(row))

    def _labelled(self, row: Row) -> Labelled:
        second = self._text(row, "second_text") if "second_text" in self.schema.columns else None
        label = self._cell(row, "label")
        return Labelled(self._text(row, "text"), second, self._label(label), row.origin)

    def _plain(self, row: Row) -> Plain:
        return Plain(self._text(row, "text"), row.origin)

    # --- cells ------------------------------------------------------------------------------

    def _value(self, row: Row, role: str) -> Any:
        """What a role's column holds; a text with braces is filled in."""
        column = self.schema.columns[role]
        if "{" in column or "}" in column:
            try:
                return column.format_map({k: _as_text(v) for k, v in row.values.items()})
            except KeyError as error:
                raise _Bad(f"no column {error.args[0]!r}{_has(row)}") from None
        if column not in row.values:
            raise _Bad(f"no column {column!r}{_has(row)}")
        return row.values[column]

    def _cell(self, row: Row, role: str) -> Any:
        """As `_value`; None where the row has no answer and needs none."""
        column = self.schema.columns.get(role)
        if not self.answered and (column is None or not {*fields_of(column)} <= {*row.values}):
            return None
        return self._value(row, role)

    def _chat(self, turns: Sequence[Message], tools: tuple[Any, ...] | None, row: Row) -> Chat:
        if self.answered and not any(m.role == "assistant" and m.trained for m in turns):
            raise _Bad("no turn of the assistant to learn from")
        return Chat(tuple(turns), tools, row.origin, self._gold(row))

    def _gold(self, row: Row) -> Gold | None:
        """What answers are compared with; None where no column is for that."""
        columns = self.schema.columns
        if not columns.keys() & {"answer", "options"}:
            return None
        options = self._cell(row, "options") if "options" in columns else None
        texts = tuple(map(_as_text, _parsed(options, "options"))) if options else ()
        try:
            answer = _as_text(self._cell(row, "answer")) if "answer" in columns else ""
        except _Bad:  # a column that is merely called so
            answer = ""
        return Gold(answer or None, texts)

    def _text(self, row: Row, role: str, *, empty: bool = False) -> str:
        if empty and self.schema.columns.get(role) not in row.values:
            return ""
        text = _as_text(self._value(row, role))
        if not text.strip() and not empty:
            raise _Bad(_EMPTY_TEXT if role == "text" else f"the {role} is empty")
        return text if text.strip() else ""

    def _answer(self, row: Row, role: str) -> str:
        if not self.answered and not self._cell(row, role):
            return ""
        text = self._text(row, role)
        for old, new in (self.replace or {}).items():
            text = text.replace(old, new)
        return text

    def _system(self, row: Row) -> list[Message]:
        text = self._text(row, "system", empty=True)
        return [Message("system", text)] if text else []

    def _tools(self, row: Row) -> tuple[Any, ...] | None:
        tools = row.values.get(self.schema.columns.get("tools", ""))
        tools = _parsed(tools, "tools") if tools else None
        return tuple(tools) if tools else None

    def _label(self, value: Any) -> str | float | None:
        if self.numeric:
            try:
                number = None if value in (None, "") else float(value)
            except (TypeError, ValueError):
                raise _Bad(f"the label {value!r} is no number") from None
            if number is not None and not math.isfinite(number):
                raise _Bad(f"the label {value!r} is no finite number")
            return number
        try:
            return as_label(value)
        except ValueError as error:
            raise _Bad(f"the label {error}") from None


_EMPTY_TEXT = "the text is empty"


def _has(row: Row) -> str:
    return f" (it has {', '.join(row.values)})"


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _Bad(f"{str(value)[:40]!r} is no text")
    return str(value)


def _parsed(value: Any, what: str) -> list[Any]:
    """A list, also where a table holds it as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise _Bad(f"{what} is neither a list nor JSON") from None
    if not isinstance(value, list):
        raise _Bad(f"{what} is no list")
    return value


def _user(prompt: Any) -> dict[str, Any]:
    return {"role": "user", "content": prompt}


def _said(answer: str) -> list[Message]:
    return [Message("assistant", answer)] if answer else []


def _turns(value: Any, *, none: bool = False) -> list[Message]:
    """Messages with role and content, or from and value; `none` allows for there being none."""
    turns = []
    for number, turn in enumerate(_parsed(value, "the chat"), 1):
        if not isinstance(turn, dict):
            raise _Bad(f"turn {number} is no object")
        given = {key: v for key, v in turn.items() if v is not None}
        speaker = given.pop("role", None) or given.pop("from", None)
        role = _SPEAKERS.get(str(speaker).lower())
        if role is None:
            known = ", ".join(dict.fromkeys(_SPEAKERS))
            raise _Bad(f"turn {number} is of the unknown role {speaker!r} (known: {known})")
        content = _content(given.pop("content", given.pop("value", "")), number)
        trained = bool(given.pop("weight", 1))
        if role == "assistant" and not content.strip() and not given.get("tool_calls"):
            raise _Bad(f"turn {number}, the assistant's, is empty")
        turns.append(Message(role, content, trained, given))
    if not turns and not none:
        raise _Bad("the chat is empty")
    return turns


def _content(content: Any, number: int) -> str:
    """Text, also where it comes as a list of parts."""
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, dict) else p for p in content]
        if not all(isinstance(part, str) for part in parts):
            raise _Bad(f"turn {number} has parts that are no text")
        return "".join(str(part) for part in parts)
    if not isinstance(content, str):
        raise _Bad(f"turn {number} has a content that is no text")
    return content
