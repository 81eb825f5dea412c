"""Per-example outputs as files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gistcli.errors import DataError
from gistcli.evaluate.language.records import (
    read_json_lines,
    write_alpaca_eval,
    write_json_lines,
)

ODD = "two\nlines, \u2028 another separator, \x85 and ü\U0001f600"


def test_rows_come_back_as_they_were_whatever_they_hold(tmp_path: Path) -> None:
    rows = [{"output": ODD, "right": True, "nll": [0.5, 1e-9]}, {"output": "", "answer": None}]
    path = tmp_path / "new" / "rows.jsonl"
    write_json_lines(path, rows)
    assert read_json_lines(path) == rows
    assert path.read_bytes().count(b"\n") == 2
    write_json_lines(path, [])
    assert read_json_lines(path) == []


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n', "utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:3"):
        read_json_lines(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_json_lines(tmp_path / "missing.jsonl")


def test_a_figure_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json_lines(tmp_path / "rows.jsonl", [{"nll": float("nan")}])
    assert not list(tmp_path.iterdir())


def test_alpaca_eval_gets_its_four_keys(tmp_path: Path) -> None:
    path = tmp_path / "outputs.json"
    write_alpaca_eval(
        path, ["Say hi", "Why?"], ["hi", ODD], datasets=["helpful", "koala"], generator="gift"
    )
    assert json.loads(path.read_text("utf-8")) == [
        {"instruction": "Say hi", "output": "hi", "dataset": "helpful", "generator": "gift"},
        {"instruction": "Why?", "output": ODD, "dataset": "koala", "generator": "gift"},
    ]
    with pytest.raises(ValueError, match="argument 2"):
        write_alpaca_eval(path, ["a"], [], datasets=["helpful"], generator="gift")
