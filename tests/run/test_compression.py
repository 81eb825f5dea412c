"""Runs on documents: reading that stops where there is enough, and what a loss is compared with."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from gistcli import run
from gistcli.errors import DataError, Interrupted
from gistcli.run.episode_options import MEASURED_ROWS, enough_documents
from tests.listening import Listener
from tests.run.task_files import task_recipe
from tests.run.text_models import save_model, write_rows

POISON = b'{"text": \xff neither JSON nor UTF-8\n'
READ = 40
"""Documents: for 4 steps of 8 rows, and a fifth of all held out."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compression")
    save_model(folder / "llama", "Llama", "causal_lm")
    return folder


def write_documents(path: Path, count: int, behind: bytes = b"") -> Path:
    rows = [{"text": " ".join(f"w{(3 * i + k) % 50}" for k in range(60))} for i in range(count)]
    write_rows(path, rows)
    path.write_bytes(path.read_bytes() + behind)
    return path


def recipe(place: Path, documents: Path, **sections: Any) -> Any:
    return task_recipe(place / "llama", documents, task={"type": "compression"}, **sections)


def test_a_corpus_is_read_as_far_as_the_steps_go(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gistcli.run.episode_options.MEASURED_ROWS", 16)
    corpus = write_documents(tmp_path / "corpus.jsonl", READ, POISON)
    listener = Listener()
    whole = run.finetune(recipe(place, corpus), output=tmp_path / "whole", reporter=listener)
    assert whole["examples"] == {"train": 32, "val": 4, "test": 4}
    assert (
        "documents: the first 40 of corpus.jsonl are read, which 4 steps of 8 rows can use "
        "beside what is held out" in listener.lines
    )
    with (tmp_path / "whole" / "splits.csv").open(newline="") as file:
        names = {row["name"] for row in csv.DictReader(file)}
    assert names == {f"corpus.jsonl:{line}" for line in range(1, READ + 1)}
    with pytest.raises(Interrupted):
        run.finetune(recipe(place, corpus, train={"max_time": 1e-6}), output=tmp_path / "halves")
    corpus.write_bytes(corpus.read_bytes() + json.dumps({"text": "w1 w2"}).encode() + POISON)
    halves = run.finetune(recipe(place, corpus), output=tmp_path / "halves")
    assert halves["metrics"] == whole["metrics"]
    again = run.evaluate(tmp_path / "halves", device="cpu")
    same = {key: value for key, value in whole["metrics"].items() if key.startswith("test/")}
    assert again["metrics"] == pytest.approx(same, rel=1e-4)
    with pytest.raises(DataError, match="not UTF-8"):
        run.finetune(recipe(place, corpus, train={"max_steps": None}), output=tmp_path / "all")


def test_only_steps_say_what_is_enough(place: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    found = enough_documents(recipe(place, corpus, train={"max_steps": 3000, "batch_size": 32}))
    assert found is not None
    assert (found.train, found.why) == (96_000, "which 3,000 steps of 32 rows can use")
    few = enough_documents(recipe(place, corpus))
    assert few is not None
    assert (few.train, few.why) == (MEASURED_ROWS, "more than 4 steps of 8 rows can use")
    assert enough_documents(recipe(place, corpus, train={"max_steps": None})) is None
    assert enough_documents(recipe(place, corpus, data={"path": "x", "shots": 9})) is None


def test_a_run_says_between_what_its_loss_lies(place: Path, tmp_path: Path) -> None:
    corpus = write_documents(tmp_path / "corpus.jsonl", 40)
    listener = Listener()
    every = recipe(place, corpus, eval={"every": 2})
    result = run.finetune(every, output=tmp_path / "run", reporter=listener)
    for split in ("val", "test"):
        for name in ("loss", "loss_alone", "loss_in_context", "loss_wrong_document"):
            assert 3 < result["metrics"][f"{split}/{name}"] < 9, name
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert any("val/loss" in record for record in records)
    assert not any("val/loss_alone" in record for record in records)
    table = run.compare([tmp_path / "run"], metric="test/loss_alone")
    assert table["rows"]
