"""Prompts as tokens, for generation: what comes before the answer of an example."""

from __future__ import annotations

from collections.abc import Sequence

from gistcli.data.base import some
from gistcli.data.text.examples import Chat, Completion, Example, Labelled
from gistcli.data.text.records import SHOWN
from gistcli.data.text.templates import ChatTemplate, require_template
from gistcli.data.text.tokenizer import Tokenizer
from gistcli.errors import DataError


def encode_prompts(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    max_length: int,
) -> list[list[int]]:
    """The ids after which the answer of each example is generated: those of training.

    A chat is asked for the answer that comes last, or, if another speaks last, for the next one.

    Args:
        examples: of any kind but classification.
        tokenizer: of the model.
        template: for chats.
        max_length: the most tokens of a prompt, which leaves room for the answer.

    Raises:
        DataError: prompts that are longer, or chats that the template refuses.
        RecipeError: chats without a template.
    """
    texts = [prompt_text(example, template) for example in examples]
    encoded = [
        ids if isinstance(example, Chat) else [*tokenizer.prefix, *ids]
        for example, ids in zip(examples, tokenizer.ids(texts), strict=True)
    ]
    hint = "Shorten them, or leave fewer tokens for the answer."
    require_short(examples, encoded, max_length, hint)
    return encoded


def require_short(
    examples: Sequence[Example], encoded: Sequence[Sequence[int]], max_length: int, hint: str
) -> None:
    """No prompt has more than `max_length` tokens.

    Raises:
        DataError: those that have.
    """
    long = [
        f"{example.origin}: {len(ids)}"
        for example, ids in zip(examples, encoded, strict=True)
        if len(ids) > max_length
    ]
    if long:
        raise DataError(
            f"{some(long, 'prompt', shown=SHOWN)} of more than {max_length} tokens.", hint
        )


def prompt_text(example: Example, template: ChatTemplate | None) -> str:
    """What comes before the answer, with all that the chat template writes there.

    Raises:
        DataError: a text to be classified, or a chat that the template refuses.
        RecipeError: a chat without a template.
    """
    if isinstance(example, Chat):
        messages = example.messages
        if messages[-1].role == "assistant":
            messages = messages[:-1]
        return require_template(template).prompt(messages, example.tools, example.origin)
    if isinstance(example, Completion):
        return example.prompt
    if isinstance(example, Labelled):
        raise DataError(f"{example.origin} is a text to be classified, not a prompt.")
    return example.text


def answer(example: Example) -> str:
    """What should be generated: the completion, or the last turn of a chat if it is an answer."""
    if isinstance(example, Completion):
        return example.completion
    if isinstance(example, Chat) and example.messages[-1].role == "assistant":
        return example.messages[-1].content
    return ""
