"""Task files of all formats as tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from gistcli.data.episodes import Item, read_tasks
from gistcli.data.text import TextOptions
from gistcli.errors import DataError, RecipeError
from tests.data.episodes.made import lines, natural, template

PLAIN = TextOptions()
SKIP = TextOptions(skip=True)


def test_a_template_of_p3_loses_its_end_marks_and_offers_its_answers(tmp_path: Path) -> None:
    [task], warnings = read_tasks(template(tmp_path / "glue_qqp_same.jsonl"), PLAIN)
    assert (task.name, task.family, task.definition) == ("glue_qqp_same", "glue", "")
    assert len(task.items) == 12
    assert task.items[1] == Item(
        "w1 w2 glue_qqp_same ?", "No", ("No", "Yes"), "glue_qqp_same.jsonl:2"
    )
    assert warnings == []


def test_natural_instructions_give_definition_category_examples_and_all_answers(
    tmp_path: Path,
) -> None:
    [task], warnings = read_tasks(natural(tmp_path / "task012_say_after.json"), PLAIN)
    assert (task.name, task.family) == ("task012_say_after", "Question Generation")
    assert task.definition == "Say the word after it."
    assert [item.completion for item in task.positive] == ["better 0", "better 1", "better 2"]
    assert task.items[3] == Item("w2", "w3", (), "task012_say_after.json[3]", ("x",))
    assert warnings == []


def test_natural_instructions_that_classify_have_options_and_may_lack_a_category(
    tmp_path: Path,
) -> None:
    path = natural(tmp_path / "task7_mood_of.json", answers=["glad", "sad", "so"], Categories=[])
    [task], _ = read_tasks(path, PLAIN)
    assert {item.options for item in task.items} == {("glad", "sad", "so")}
    assert task.family == "mood"


def test_labelled_rows_offer_the_classes_of_their_task(tmp_path: Path) -> None:
    path = tmp_path / "nli.csv"
    path.write_text("premise,hypothesis,label\na,b,2\nc,d,10\ne,f,2\n")
    [task], _ = read_tasks(path, PLAIN)
    assert task.items[0] == Item("a\nb", "2", ("2", "10"), "nli.csv:2")


def test_a_column_of_tasks_divides_a_file(tmp_path: Path) -> None:
    rows = [
        {"task": name, "input": f"{name} {i}", "output": "ab"[i % 2]}
        for i in range(6)
        for name in ("first_x", "second_y")
    ]
    tasks, _ = read_tasks(lines(tmp_path / "all.jsonl", rows), PLAIN)
    assert [(t.name, t.family, len(t.items)) for t in tasks] == [
        ("first_x", "first", 6),
        ("second_y", "second", 6),
    ]
    assert tasks[1].items[0].origin == "all.jsonl:2"
    renamed = [{"set": row.pop("task"), **row} for row in rows]
    tasks, _ = read_tasks(
        lines(tmp_path / "all.jsonl", renamed), TextOptions(columns={"task": "set"})
    )
    assert [t.name for t in tasks] == ["first_x", "second_y"]
    with pytest.raises(RecipeError, match="no column 'sets' \\(task\\)"):
        read_tasks(tmp_path / "all.jsonl", TextOptions(columns={"task": "sets"}))


def test_rows_without_a_task_among_others_are_named(tmp_path: Path) -> None:
    rows = [{"task": "a", "input": "x", "output": "y"}, {"input": "x", "output": "y"}]
    with pytest.raises(DataError, match=r"1 row \(all.jsonl:2\) without a task"):
        read_tasks(lines(tmp_path / "all.jsonl", rows), PLAIN)


def test_options_of_a_row_are_kept_where_the_answer_is_among_them(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p{i}", "completion": f"c{i}", "choices": [f"c{i}", f"d{i}"]} for i in range(4)
    ]
    rows.append({"prompt": "p", "completion": "B", "choices": ["one", "two"]})
    options = TextOptions(columns={"prompt": "prompt", "completion": "completion",
                                   "options": "choices"})  # fmt: skip
    [task], _ = read_tasks(lines(tmp_path / "choose.jsonl", rows), options)
    assert [item.options for item in task.items][2:] == [("c2", "d2"), ("c3", "d3"), ()]


def test_answers_of_many_kinds_are_free_text(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": f"c{i % 16}"} for i in range(99)]
    [task], _ = read_tasks(lines(tmp_path / "many.jsonl", rows), PLAIN)
    assert {item.options for item in task.items} == {()}
    [task], _ = read_tasks(lines(tmp_path / "few.jsonl", rows[:4]), PLAIN)
    assert {item.options for item in task.items} == {()}


def test_rows_that_are_no_pairs_are_named_or_left_out(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "completion": "c"},
        {"prompt": "p", "completion": "<|endoftext|>"},
    ]
    path = lines(tmp_path / "t.jsonl", rows)
    with pytest.raises(DataError, match=r"1 row \(t.jsonl:2: no answer\)"):
        read_tasks(path, PLAIN)
    [task], warnings = read_tasks(path, SKIP)
    assert len(task.items) == 1
    assert "t.jsonl:2: no answer) left out" in warnings[0]
    chat = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    with pytest.raises(DataError, match=r"chat.jsonl:1: chat"):
        read_tasks(lines(tmp_path / "chat.jsonl", chat), PLAIN)


def test_damaged_natural_instructions_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no Instances"):
        read_tasks(natural(tmp_path / "t.json", Instances=[]), PLAIN)
    with pytest.raises(DataError, match="Instances is no list of objects"):
        read_tasks(natural(tmp_path / "t.json", Instances=["a"]), PLAIN)
    with pytest.raises(DataError, match=r"t.json\[0\]: the prompt is empty"):
        read_tasks(natural(tmp_path / "t.json", Instances=[{"output": ["a"]}]), PLAIN)


def test_real_commonsense_questions_have_their_answers_as_options(assets: Path) -> None:
    [task], warnings = read_tasks(assets / "text" / "openbookqa" / "train.json", PLAIN)
    assert len(task.items) == 4957
    assert task.items[0].options == tuple(f"the correct answer is answer{i}" for i in range(1, 5))
    assert warnings == []
