"""Chats as one text, and which of its characters the assistant wrote.

Nothing is searched for in tokens: a turn begins where the text of all turns before it, with the
opening of an answer, ends, and it ends where the text up to and with it ends. Templates that mark
the assistant's words themselves (`{% generation %}`) are believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gistcli.data.tables import readable
from gistcli.data.text.examples import Chat, Message
from gistcli.data.text.tokenizer import Tokenizer
from gistcli.errors import DataError, NotFound, RecipeError

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + END + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Span = tuple[int, int]


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template under a tokenizer, see `open_template`."""

    tokenizer: Tokenizer
    source: str

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None, origin: str = "chat"
    ) -> str:
        """The text after which the assistant's answer is generated.

        Raises:
            DataError: the template refuses the turns.
        """
        with self._refusing(origin):
            return self._render(messages, tools, opened=True)

    def spans(self, chat: Chat, train_on: str = "assistant") -> tuple[str, list[Span]]:
        """The text of a chat and the characters [start, end) that are learnt, in order.

        Turns after the last that is learnt are left out, except with `all`.

        Args:
            chat: with at least one turn of the assistant that may be learnt from.
            train_on: assistant, last or all.

        Raises:
            DataError: the template refuses the chat, or a turn cannot be told from what is around
                it; the turn is named.
        """
        with self._refusing(chat.origin):
            if train_on == "all":
                text = self._render(chat.messages, chat.tools)
                return text, [(0, len(text))]
            learnt = [i for i, m in enumerate(chat.messages) if m.role == "assistant" and m.trained]
            if not learnt:
                raise DataError(f"{chat.origin}: no turn of the assistant to learn from.")
            messages = chat.messages[: learnt[-1] + 1]
            learnt = learnt[-1:] if train_on == "last" else learnt
            if _MARKED.search(self.source):
                return self._marked(messages, chat, learnt)
            text = self._render(messages, chat.tools)
            return text, [self._span(text, messages, chat, i) for i in learnt]

    def _span(self, text: str, messages: Sequence[Message], chat: Chat, turn: int) -> Span:
        """The characters of one turn, by the texts of all turns before it and up to it."""
        before = self._render(messages[:turn], chat.tools, opened=True)
        is_last = turn == len(messages) - 1
        through = text if is_last else self._render(messages[: turn + 1], chat.tools)
        if not (text.startswith(through) and through.startswith(before)):
            raise DataError(
                f"{chat.origin}: the chat template writes turn {turn + 1} (assistant) otherwise "
                f"once other turns follow, so that it cannot be told from what is around it.",
                "Set data.train_on to last or all, or give a data.chat_template that marks the "
                "assistant's words with {% generation %} ... {% endgeneration %}.",
            )
        return len(before), len(through)

    def _marked(
        self, messages: Sequence[Message], chat: Chat, learnt: Sequence[int]
    ) -> tuple[str, list[Span]]:
        """By the template's own marks, one for each turn of the assistant."""
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered: Any = render_jinja_template(
            [[message.as_dict() for message in messages]],
            tools=list(chat.tools) if chat.tools else None,
            chat_template=self.source,
            return_assistant_tokens_mask=True,
            **self.tokenizer.base.special_tokens_map,
        )
        texts, marks = rendered
        turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
        if len(marks[0]) != len(turns):
            raise DataError(
                f"{chat.origin}: the chat template marks {len(marks[0])} passages of "
                f"{len(turns)} turns of the assistant.",
                "Put {% generation %} around each of them, or remove it.",
            )
        found = dict(zip(turns, marks[0], strict=True))
        return texts[0], [(int(found[i][0]), int(found[i][1])) for i in learnt]

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, *, opened: bool = False
    ) -> str:
        text: str = self.tokenizer.base.apply_chat_template(
            [message.as_dict() for message in messages],
            tools=list(tools) if tools else None,
            chat_template=self.source,
            add_generation_prompt=opened,
            tokenize=False,
        )
        return text

    @contextmanager
    def _refusing(self, origin: str) -> Iterator[None]:
        """What the template has against a chat becomes a DataError that names it."""
        from jinja2 import TemplateError

        try:
            yield
        except (TemplateError, TypeError, ValueError, IndexError, KeyError) as error:
            line = str(error).strip().partition("\n")[0]
            raise DataError(
                f"{origin}: the chat template refuses the chat: {line}",
                "Repair the chat, or choose another data.chat_template.",
            ) from error


def open_template(tokenizer: Tokenizer, chosen: str, base: Path = Path()) -> ChatTemplate | None:
    """The template of `data.chat_template`; None where the tokenizer should have one but has not.

    Args:
        tokenizer: whose template `tokenizer` means.
        chosen: `tokenizer`; `chatml`, whose turns end with <|im_end|> where the tokenizer knows
            that as one token, else with its end of sequence; or a file.
        base: what a relative path starts from.

    Raises:
        NotFound: there is no such file.
        DataError: the file is not UTF-8 text.
        RecipeError: chatml without anything that could end a turn.
    """
    if chosen == "tokenizer":
        source = tokenizer.base.get_chat_template() if tokenizer.base.chat_template else None
    elif chosen == "chatml":
        source = _chatml(tokenizer)
    else:
        path = base / Path(chosen).expanduser()
        if not path.is_file():
            raise NotFound(
                f"data.chat_template: there is no file {path}.",
                "Known: tokenizer, chatml, or a file with a Jinja template.",
            )
        with readable(path):
            source = path.read_text(encoding="utf-8")
    return None if source is None else ChatTemplate(tokenizer, source)


def require_template(template: ChatTemplate | None) -> ChatTemplate:
    """The template, where chats cannot do without.

    Raises:
        RecipeError: there is none.
    """
    if template is None:
        raise RecipeError(
            "The data are chats, but the tokenizer has no chat template.",
            "Set data.chat_template to chatml or to a file with a Jinja template.",
        )
    return template


def _chatml(tokenizer: Tokenizer) -> str:
    base = tokenizer.base
    known = "<|im_end|>" in base.get_vocab()
    if not known and base.eos_token is None:
        raise RecipeError(
            "data.chat_template: chatml needs <|im_end|> or an end of sequence in the vocabulary.",
            "Give a file with a template that fits the tokenizer.",
        )
    source = _CHATML.replace("END", "'<|im_end|>'" if known else "eos_token")
    begins = bool(tokenizer.prefix) and base.bos_token is not None
    return ("{{ bos_token }}" if begins else "") + source
