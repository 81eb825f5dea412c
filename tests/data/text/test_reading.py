"""Formats found from columns, and rows as examples."""

from __future__ import annotations

from typing import Any

import pytest

from gistcli.data.text.examples import Chat, Completion, Gold, Labelled, Message, Plain
from gistcli.data.text.formats import find_schema, has_header, holds_values
from gistcli.data.text.reading import Reader
from gistcli.data.text.records import Row
from gistcli.errors import DataError, RecipeError


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(v, f"f.jsonl:{i}") for i, v in enumerate(values, 1)]


def read(*values: dict[str, Any], **asked: Any) -> list[Any]:
    reading = {k: asked.pop(k) for k in ("prompt", "replace", "numeric") if k in asked}
    found = rows(*values)
    return Reader(find_schema(found, "f.jsonl", **asked), **reading).read(found, "f.jsonl")[0]


TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SAID = (Message("user", "hi"), Message("assistant", "hello"))


def test_the_format_is_found_from_the_columns() -> None:
    origin = "f.jsonl:1"
    assert read({"messages": TURNS, "id": 3}) == [Chat(SAID, origin=origin)]
    shared = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    system = (Message("system", "be kind"), *SAID)
    assert read({"conversations": shared, "system": "be kind"}) == [Chat(system, origin=origin)]
    assert read({"prompt": "a ", "completion": "b"}) == [Completion("a ", "b", origin)]
    assert read({"question": "a", "answer": "b"}) == [Completion("a", "b", origin, Gold("b"))]
    assert read({"sentence": "a", "label": 1, "idx": 0}) == [Labelled("a", None, "1", origin)]
    pair = {"question": "a?", "passage": "b", "label": "yes"}
    assert read(pair) == [Labelled("a?", "b", "yes", origin)]
    assert read({"Text": "a"}) == [Plain("a", origin)]


def test_an_alpaca_row_is_put_as_a_chat_with_a_preamble_or_plainly() -> None:
    bare = {"instruction": "add", "input": "", "output": "3", "answer": "3"}
    full = {**bare, "input": "1 2"}
    assert read(full, prompt="plain") == [Completion("add\n1 2\n", "3", "f.jsonl:1", Gold("3"))]
    assert read(bare, prompt="plain") == [Completion("add\n", "3", "f.jsonl:1", Gold("3"))]
    said = (Message("user", "add\n1 2"), Message("assistant", "3"))
    assert read(full, prompt="chat") == [Chat(said, origin="f.jsonl:1", gold=Gold("3"))]
    [with_input] = read(full, prompt="alpaca")
    assert with_input.prompt.endswith(
        "\n\n### Instruction:\nadd\n\n### Input:\n1 2\n\n### Response:\n"
    )
    [without] = read(bare, prompt="alpaca")
    assert without.prompt.endswith("request.\n\n### Instruction:\nadd\n\n### Response:\n")


def test_a_mapping_wins_and_may_be_a_text_with_columns_in_it() -> None:
    row = {"question": "1+2?", "answer": "#### 3", "text": "no"}
    columns = {"prompt": "Q: {question}\nA:", "completion": "answer"}
    made = read(row, columns=columns, replace={"####": "it is"})
    assert made == [Completion("Q: 1+2?\nA:", "it is 3", "f.jsonl:1", Gold("#### 3"))]
    numbered = read({"0": "1", "1": "fine"}, columns={"label": 0, "text": 1})
    assert numbered == [Labelled("fine", None, "1", "f.jsonl:1")]
    assert not has_header({"label": "0", "text": "1"})
    assert has_header({"label": "y", "text": "1"})
    assert has_header({})


def test_the_task_chooses_where_columns_leave_a_choice() -> None:
    row = {"text": "a", "label": "x"}
    assert read(row) == [Labelled("a", None, "x", "f.jsonl:1")]
    assert read(row, task="causal_lm") == [Plain("a", "f.jsonl:1")]
    with pytest.raises(RecipeError, match="for the task classification"):
        read({"messages": TURNS}, task="classification")
    [scored] = read({"text": "a", "label": "3.25"}, task="regression", numeric=True)
    assert scored.label == 3.25


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": TURNS, "prompt": "a", "completion": "b"}, "could be messages or completion"),
        ({"question": "q", "context": "c", "answer": "a"}, "of no known format"),
        ({"chosen": "a", "rejected": "b"}, "columns chosen, rejected"),
    ],
)
def test_doubt_is_refused_with_what_was_found(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        read(row)
    assert "data.columns" in caught.value.hint


def test_what_the_recipe_names_has_to_be_there() -> None:
    row = {"text": "a", "label": "x"}
    with pytest.raises(RecipeError, match="no column 'lable'") as caught:
        read(row, columns={"text": "text", "label": "lable"})
    assert "'label'" in caught.value.hint
    with pytest.raises(RecipeError, match="no column 'txt'"):
        read(row, columns={"prompt": "say {txt}", "completion": "label"})
    with pytest.raises(RecipeError, match="is no role"):
        read(row, columns={"image": "text"})
    with pytest.raises(RecipeError, match=r"data.format: 'alpacca'") as caught:
        read(row, format="alpacca")
    assert "'alpaca'" in caught.value.hint
    with pytest.raises(RecipeError, match="names in its braces only"):
        read(row, columns={"prompt": "{text!r}", "completion": "label"})


def test_rows_of_two_formats_in_a_file_are_refused_with_their_numbers() -> None:
    alpaca = {"instruction": "a", "output": "b"}
    with pytest.raises(DataError, match=r"several formats.*messages \(1 of 3 rows\)"):
        read({"messages": TURNS}, alpaca, alpaca)


def test_bad_rows_are_counted_and_the_first_five_named_with_what_is_wrong() -> None:
    good = {"prompt": "a", "completion": "b"}
    bad = [{"prompt": "a", "completion": " "}, {"prompt": "a"}, {"prompt": 1, "completion": [2]}]
    with pytest.raises(DataError, match="7 rows") as caught:
        read(good, *bad, *[bad[0]] * 4)
    message = str(caught.value)
    assert "f.jsonl:2: the completion is empty" in message
    assert "f.jsonl:3: no column 'completion' (it has prompt)" in message
    assert "f.jsonl:6" in message
    assert "f.jsonl:7" not in message
    assert "2 more" in message


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([{"role": "user", "content": "hi"}], "no turn of the assistant"),
        ([*TURNS, {"role": "robot", "content": "x"}], "turn 3 is of the unknown role 'robot'"),
        ([TURNS[0], {"role": "assistant", "content": " "}], "turn 2, the assistant's, is empty"),
        ([TURNS[0], {"role": "assistant", "content": 3}], "turn 2 has a content that is no text"),
        ([{"role": "user", "content": [{"type": "image"}]}, TURNS[1]], "parts that are no text"),
        ("[not json", "neither a list nor JSON"),
        (["hi"], "turn 1 is no object"),
        ([], "the chat is empty"),
    ],
)
def test_chats_that_cannot_be_read_say_which_turn(turns: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read({"messages": turns})


def test_turns_keep_what_a_template_may_want_and_what_must_not_be_learnt() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}], "name": None}
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}
    quiet = {"role": "assistant", "content": "x", "weight": 0}
    [chat] = read({"messages": [parts, call, quiet], "tools": '[{"name": "f"}]'})
    assert chat.messages[0] == Message("user", "ab")
    assert chat.messages[1].as_dict() == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"name": "f"}],
    }
    assert [m.trained for m in chat.messages] == [True, True, False]
    assert chat.tools == ({"name": "f"},)
    conversational = read({"prompt": TURNS, "completion": [TURNS[0], TURNS[1]]})
    assert [m.trained for m in conversational[0].messages] == [False, False, True, True]


def test_empty_documents_are_passed_over_and_counted() -> None:
    found = rows({"text": "a"}, {"text": ""}, {"text": "  "})
    examples, notes = Reader(find_schema(found, "f")).read(found, "f")
    assert examples == [Plain("a", "f.jsonl:1")]
    assert notes == ["f: 2 empty rows left out"]
    with pytest.raises(DataError, match="holds no text"):
        read({"text": ""})


@pytest.mark.parametrize(("label", "numeric"), [("x", True), ("inf", True), (0.5, False)])
def test_labels_of_the_wrong_kind_are_refused(label: Any, numeric: bool) -> None:
    with pytest.raises(DataError, match="the label"):
        read({"text": "a", "label": label}, numeric=numeric)


def test_what_answers_are_compared_with_stands_beside_what_is_learnt() -> None:
    row = {"instruction": "i", "output": "the correct answer is b", "answer": "b"}
    [completion] = read(row, prompt="plain")
    assert completion.gold == Gold("b")
    [chat] = read(row, prompt="chat")
    assert chat.gold == Gold("b")
    columns = {"prompt": "q", "completion": "a", "options": "o"}
    [asked] = read({"q": "1?", "a": "x", "o": ["x", "y"]}, columns=columns)
    assert asked.gold == Gold(None, ("x", "y"))
    [asked] = read({"q": "1?", "a": "x", "o": '["x", "y"]'}, columns=columns)
    assert asked.gold == Gold(None, ("x", "y"))
    with pytest.raises(DataError, match="options is neither a list nor JSON"):
        read({"q": "1?", "a": "x", "o": "x or y"}, columns=columns)
    # a column that is merely called so is none
    [plain] = read({"prompt": "p", "completion": "c", "answer": ["p"], "options": "x"})
    assert plain.gold == Gold()


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (["1.5", "2", "3"], True),
        ([0.25, 3, None], True),
        (["1", "2", "3.0"], False),
        (["1.5", "2", "three"], False),
        (["1.5", "inf", "2"], False),
        (["a", "b"], False),
    ],
)
def test_labels_are_values_where_they_are_numbers_and_not_all_whole(
    labels: list[Any], values: bool
) -> None:
    found = rows(*({"text": "t", "label": label} for label in labels))
    assert holds_values(found, find_schema(found, "f.jsonl")) == values
