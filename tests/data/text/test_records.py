"""Rows of files, with the place each comes from."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from gistcli.data.text.records import find_rows, read_rows
from gistcli.errors import DataError, NotFound, RecipeError

ROWS = [{"text": "a\tb", "label": "1"}, {"text": 'say "no"\nor not', "label": "0"}]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(row) for row in ROWS)
    files = [
        write(tmp_path / "list.json", json.dumps(ROWS, indent=1)),
        write(tmp_path / "inside.json", json.dumps({"version": "1", "data": ROWS})),
        write(tmp_path / "lines.json", lines),
        write(tmp_path / "lines.jsonl", "\ufeff" + lines + "\n\n"),
        write(tmp_path / "t.csv", 'text,label\na\tb,1\n"say ""no""\nor not",0\n'),
        write(tmp_path / "t.tsv", 'text\tlabel\n"a\tb"\t1\n"say ""no""\nor not"\t0\n'),
    ]
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "t.parquet")
    for file in [*files, tmp_path / "t.parquet"]:
        assert [row.values for row in read_rows(file)] == ROWS, file.name


def test_a_row_says_in_which_line_it_begins(tmp_path: Path) -> None:
    lines = write(tmp_path / "a.jsonl", '{"text": "a"}\n\n{"text": "b"}\n')
    assert [row.origin for row in read_rows(lines)] == ["a.jsonl:1", "a.jsonl:3"]
    table = write(tmp_path / "a.csv", 'text,label\n"two\nlines",1\nb,0\n')
    assert [row.origin for row in read_rows(table)] == ["a.csv:2", "a.csv:4"]
    listed = write(tmp_path / "a.json", '[{"text": "a"}, {"text": "b"}]')
    assert [row.origin for row in read_rows(listed)] == ["a.json[0]", "a.json[1]"]
    plain = write(tmp_path / "a.txt", "one\n\n two \n")
    assert [(row.values["text"], row.origin) for row in read_rows(plain)] == [
        ("one", "a.txt:1"),
        (" two ", "a.txt:3"),
    ]


def test_quotes_of_a_tsv_file_in_the_manner_of_glue_are_part_of_the_text(tmp_path: Path) -> None:
    file = write(tmp_path / "dev.tsv", '1\t"no" is no\n0\tplain\n1\t" open\n')
    rows = read_rows(file, header=False)
    assert [row.values["1"] for row in rows] == ['"no" is no', "plain", '" open']
    assert rows[2].origin == "dev.tsv:3"


def test_all_bad_lines_are_counted_and_the_first_five_named(tmp_path: Path) -> None:
    text = "".join('{"text": }\n' if n % 2 else f'{{"text": "{n}"}}\n' for n in range(1, 16))
    with pytest.raises(DataError, match="9 lines") as caught:
        read_rows(write(tmp_path / "a.jsonl", text + "[1]\n"))
    message = str(caught.value)
    assert "line 1:" in message
    assert "line 9:" in message
    assert "line 11:" not in message


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '[{"a": 1},\n {"a": }]', r"line 2, column 8"),
        ("a.json", '"only words"', "no list of objects"),
        ("a.json", '[{"a": 1}, 3]', r"a.json\[1\]"),
        ("a.json", "[]", "is empty"),
        ("a.jsonl", "\n\n", "is empty"),
        ("a.txt", "\n  \n", "is empty"),
        ("a.csv", "text,label\na,1\nb\n", "line 3: 1"),
        ("a.csv", "text,text\na,1\n", "two columns of the same name: text"),
        ("a.doc", "words", "ending '.doc' is not known"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(write(tmp_path / name, text))


def test_a_file_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\xff"}')
    with pytest.raises(DataError, match="not UTF-8"):
        read_rows(tmp_path / "a.jsonl")


def test_a_missing_file_is_not_found_with_what_lies_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "chats.jsonl", "{}")
    with pytest.raises(NotFound, match="does not exist") as caught:
        find_rows(tmp_path / "chat.jsonl")
    assert "'chats.jsonl'" in caught.value.hint


def test_a_folder_has_a_file_for_each_split_and_names_what_it_leaves_out(tmp_path: Path) -> None:
    for name in ("train", "dev", "notes"):
        write(tmp_path / f"{name}.jsonl", json.dumps({"text": name}))
    found, warnings = find_rows(tmp_path)
    assert {split: rows[0].values["text"] for split, rows in found.items()} == {
        "train": "train",
        "val": "dev",
    }
    assert "notes.jsonl" in warnings[0]
    told, warnings = find_rows(tmp_path, {"train": "notes.jsonl", "test": "dev.jsonl"})
    assert {split: rows[0].values["text"] for split, rows in told.items()} == {
        "train": "notes",
        "test": "dev",
    }
    assert warnings == []


def test_a_folder_of_unclear_files_is_refused(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / name, '{"text": "x"}')
    with pytest.raises(RecipeError, match="which file is which split"):
        find_rows(tmp_path)
    with pytest.raises(NotFound, match="not found"):
        find_rows(tmp_path, {"train": "c.jsonl"})
    write(tmp_path / "val.jsonl", '{"text": "x"}')
    write(tmp_path / "dev.csv", "text\nx\n")
    with pytest.raises(RecipeError, match="files of the same split"):
        find_rows(tmp_path)


def test_a_saved_data_set_gives_names_of_classes_and_no_label_for_minus_one(
    tmp_path: Path,
) -> None:
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]})
    made = made.cast_column("label", datasets.ClassLabel(names=["bad", "good"]))
    datasets.DatasetDict({"train": made, "validation": made}).save_to_disk(tmp_path / "set")
    found, _ = find_rows(tmp_path / "set")
    assert list(found) == ["train", "val"]
    assert [row.values["label"] for row in found["val"]] == ["good", None]
    assert found["val"][1].origin == "validation[1]"


def test_a_name_of_the_hub_is_not_found_while_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotFound, match=r"neither fetched nor found|neither a path"):
        find_rows("nobody/nothing-of-that-name")
