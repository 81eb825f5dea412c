"""What an example of text is, whatever file or format it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant", "tool", "developer")


@dataclass(frozen=True)
class Message:
    """One turn of a chat.

    Attributes:
        role: who speaks, among `ROLES`.
        content: what is said.
        trained: whether an assistant's turn may be learnt from (OpenAI's `weight`).
        extra: other fields (`name`, `tool_calls`, ...), which the chat template sees.
    """

    role: str
    content: str
    trained: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The form that chat templates read."""
        return {"role": self.role, "content": self.content, **self.extra}


@dataclass(frozen=True)
class Gold:
    """What answers are compared with where that is not the text to be learnt.

    Attributes:
        answer: as the data have it; None where they have none.
        options: of which one is right; empty where none are given.
    """

    answer: str | None = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chat:
    """A conversation, with the tools that were on offer in it.

    `origin`, here and below, says where the example stands in the data: `FILE:LINE`, `FILE[ROW]`.
    """

    messages: tuple[Message, ...]
    tools: tuple[Any, ...] | None = None
    origin: str = ""
    gold: Gold | None = None


@dataclass(frozen=True)
class Completion:
    """A prompt, and the text that has to follow it."""

    prompt: str
    completion: str
    origin: str = ""
    gold: Gold | None = None


@dataclass(frozen=True)
class Labelled:
    """A text, or a pair of them, with a class (str), a value (float), or neither (None)."""

    text: str
    second_text: str | None
    label: str | float | None
    origin: str = ""


@dataclass(frozen=True)
class Plain:
    """A document."""

    text: str
    origin: str = ""


Example = Chat | Completion | Labelled | Plain


def as_bytes(example: Example) -> bytes:
    """The content of an example, without its origin: equal for equal examples only."""
    found = asdict(example)
    content = {k: v for k, v in found.items() if k != "origin" and (k, v) != ("gold", None)}
    kind = type(example).__name__
    return json.dumps([kind, content], ensure_ascii=False, default=str).encode(
        "utf-8", "surrogatepass"
    )
