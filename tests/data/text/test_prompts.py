"""Prompts without answers, and prompts as tokens for generation."""

from __future__ import annotations

from typing import Any

import pytest

from gistcli.data.text import (
    Chat,
    Completion,
    Encoder,
    Example,
    Labelled,
    Message,
    Plain,
    TextOptions,
    answer,
    encode_prompts,
    open_template,
)
from gistcli.data.text.encoding import IGNORED
from gistcli.data.text.formats import find_schema
from gistcli.data.text.reading import Reader
from gistcli.data.text.records import Row
from gistcli.errors import DataError, RecipeError
from tests.data.text.tokens import letters, words

ASKED = (Message("user", "hello there."), Message("assistant", "hello to you"))


def test_a_prompt_has_the_tokens_that_come_before_what_is_learnt_in_training() -> None:
    tokenizer = letters()
    template = open_template(tokenizer, "tokenizer")
    examples: list[Example] = [
        Chat((Message("system", "be kind"), *ASKED)),
        Completion("hello there. hel", "lo"),
        Completion("hello", " there"),
    ]
    encoded = Encoder(tokenizer, TextOptions(), 512, template).encode(examples)
    prompts = encode_prompts(examples, tokenizer, template, 512)
    for example, whole, prompt in zip(examples, encoded, prompts, strict=True):
        assert whole.input_ids[: len(prompt)].tolist() == prompt
        learnt = whole.input_ids[len(prompt) :]
        assert (whole.labels[: len(prompt)] == IGNORED).all()
        kept = learnt[whole.labels[len(prompt) :] != IGNORED]
        assert tokenizer.base.decode(kept, skip_special_tokens=True) == answer(example)


def test_a_chat_is_asked_for_its_last_answer_or_for_the_next() -> None:
    tokenizer = letters()
    template = open_template(tokenizer, "tokenizer")
    open_chat, answered = Chat(ASKED[:1]), Chat(ASKED)
    first, second = encode_prompts([open_chat, answered], tokenizer, template, 99)
    assert first == second
    assert tokenizer.base.decode(first).endswith("<|im_start|>assistant\n")
    assert answer(open_chat) == ""
    longer = Chat((*ASKED, Message("user", "true?")))
    [third] = encode_prompts([longer], tokenizer, template, 99)
    assert "hello to you<|im_end|>" in tokenizer.base.decode(third)
    assert encode_prompts([Plain("w1 w2")], words(), None, 3) == [[1, 4, 5]]


def test_prompts_that_cannot_be_asked_are_refused() -> None:
    with pytest.raises(DataError, match=r"1 prompt \(f:1: 3\) of more than 2 tokens"):
        encode_prompts([Plain("w1 w2", "f:1"), Plain("w1")], words(), None, 2)
    with pytest.raises(DataError, match="to be classified"):
        encode_prompts([Labelled("w1", None, "x", "f:1")], words(), None, 9)
    with pytest.raises(RecipeError, match="no chat template"):
        encode_prompts([Chat(ASKED)], words(), None, 9)


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ({"prompt": "a"}, Completion("a", "")),
        ({"prompt": "a", "completion": ""}, Completion("a", "")),
        ({"prompt": "a", "completion": "b"}, Completion("a", "b")),
        ({"instruction": "a", "input": "b"}, Completion("a\nb\n", "")),
        ({"messages": [{"role": "user", "content": "a"}]}, Chat((Message("user", "a"),))),
        ({"premise": "a", "hypothesis": "b"}, Labelled("a", "b", None)),
        ({"text": "a"}, Plain("a")),
    ],
)
def test_rows_without_answers_are_read_where_none_are_needed(
    row: dict[str, Any], example: Example
) -> None:
    rows = [Row(row, "")]
    schema = find_schema(rows, "f", answered=False)
    assert Reader(schema, "plain", answered=False).read(rows, "f")[0] == [example]
    if "text" not in row and row.get("completion") != "b":
        with pytest.raises((DataError, RecipeError)):
            Reader(find_schema(rows, "f"), "plain").read(rows, "f")


def test_a_mapping_to_an_answer_that_is_not_there_is_passed_over_for_prompts() -> None:
    columns = {"prompt": "Q: {q}", "completion": "a"}
    rows = [Row({"q": "1?"}, "f:1")]
    schema = find_schema(rows, "f", columns=columns, answered=False)
    made, _ = Reader(schema, answered=False).read(rows, "f")
    assert made == [Completion("Q: 1?", "", "f:1")]
    with pytest.raises(RecipeError, match="no column 'a'"):
        find_schema(rows, "f", columns=columns)
