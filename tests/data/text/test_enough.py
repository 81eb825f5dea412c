"""Reading stops where there is enough: what is behind is neither held nor looked at."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest

from gistcli.data.base import Found, Record
from gistcli.data.splits import divide_as_asked
from gistcli.data.text import Enough, TextOptions, examples_of, open_texts
from gistcli.data.text.parsing import parsed
from gistcli.data.text.records import find_rows, read_rows
from gistcli.errors import DataError, NotFound
from gistcli.recipe import DataSection

Options = Callable[..., DataSection]
ROWS = [{"text": f"some text {i}", "number": str(i)} for i in range(20)]
POISON = b'{"text": \xff "no JSON, nor UTF-8"\n'


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def lines(path: Path, count: int = 20, poison: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in ROWS[:count])
    path.write_bytes(text.encode() + poison)
    return path


def every_kind(folder: Path) -> list[Path]:
    """The same rows in all kinds of files, damaged behind them where a file can be."""
    table = "text\tnumber\n" + "".join(f"{r['text']}\t{r['number']}\n" for r in ROWS[:5])
    quoted = table.replace("\t", ",").replace("some text 1", '"some text 1"')
    (folder / "a.tsv").write_bytes(table.encode() + b"too\tmany\tfields\xff\n")
    (folder / "a.csv").write_bytes(quoted.encode() + b'"an open quote\xff')
    datasets.Dataset.from_list(ROWS).to_parquet(folder / "a.parquet")
    return [
        lines(folder / "a.jsonl", 5, POISON),
        lines(folder / "a.json", 5, POISON),
        folder / "a.tsv",
        folder / "a.csv",
        folder / "a.parquet",
    ]


def test_the_first_rows_of_every_kind_of_file_are_those_of_the_whole(tmp_path: Path) -> None:
    for file in every_kind(tmp_path):
        for most in (1, 3, 5):
            rows = read_rows(file, most=most)
            assert [row.values for row in rows] == ROWS[:most], file.name
        if file.suffix != ".parquet":
            assert rows[4].origin == f"{file.name}:{6 if file.suffix in ('.tsv', '.csv') else 5}"
            with pytest.raises(DataError):
                read_rows(file)
            with pytest.raises(DataError):
                read_rows(file, most=6)
    plain = tmp_path / "a.txt"
    plain.write_bytes(b"one\n\ntwo\n\xff\n")
    assert [(row.values["text"], row.origin) for row in read_rows(plain, most=2)] == [
        ("one", "a.txt:1"),
        ("two", "a.txt:3"),
    ]


def test_tables_are_read_no_further_than_asked(tmp_path: Path) -> None:
    made = datasets.Dataset.from_list(ROWS)
    saved, folder = tmp_path / "saved", tmp_path / "folder"
    datasets.DatasetDict(train=made, validation=made).save_to_disk(saved)
    folder.mkdir()
    for name in ("train", "validation"):
        made.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    arrow = next((saved / "train").glob("*.arrow"))
    for place in (saved, folder):
        found, _ = find_rows(place, limit=lambda present: dict.fromkeys(present, 3))
        assert {s: [r.values for r in rows] for s, rows in found.items()} == {
            "train": ROWS[:3],
            "val": ROWS[:3],
        }
        assert found["val"][2].origin == "validation[2]"
    assert read_rows(arrow, most=2)[1].origin == f"{arrow.name}[1]"
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"bad\.parquet cannot be read"):
        read_rows(tmp_path / "bad.parquet", most=2)


class Counting(io.BytesIO):
    """Counts the lines that are asked for."""

    asked = 0

    def __next__(self) -> bytes:
        self.asked += 1
        return super().__next__()


def test_no_line_is_asked_for_ahead() -> None:
    file = Counting(b"".join(json.dumps(row).encode() + b"\r\n" for row in ROWS))
    bad: list[str] = []
    found = list(islice(parsed(file, Path("a.jsonl"), bad, most=4), 4))
    assert found[3] == (":4", ROWS[3])
    assert (file.asked, bad) == (4, [])


def test_damaged_lines_in_front_are_named_or_left_out_and_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "a"}\n{"text"\n{"text": "b"}\n{"text": "c"}\n' + POISON)
    with pytest.raises(DataError, match=r"1 line \(line 2: .*column 8"):
        read_rows(file, most=2)
    skipped: list[str] = []
    rows = read_rows(file, most=2, skipped=skipped)
    assert [row.origin for row in rows] == ["a.jsonl:1", "a.jsonl:3"]
    assert len(skipped) == 1
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 59\)"):
        read_rows(file)


class Hub:
    """Stands for the hub: a data set whose rows are counted as they are fetched."""

    def __init__(self) -> None:
        self.fetched = 0
        self.asked: list[Any] = []

    def rows(self) -> Iterator[dict[str, str]]:
        for row in ROWS:
            self.fetched += 1
            yield row

    def load_dataset(self, *names: str | None, streaming: bool) -> Any:
        self.asked.append((*names, streaming))
        return datasets.IterableDatasetDict(
            {"train": datasets.IterableDataset.from_generator(self.rows)}
        )


def test_a_data_set_of_the_hub_is_fetched_as_far_as_it_is_used(
    tmp_path: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", hub.load_dataset)
    enough = Enough(4, 2, "which 4 steps of 1 row can use")
    data = options("owner/corpus", val_fraction=0, test_fraction=0)
    catalog = open_texts(data, TextOptions(format="plain"), base=tmp_path, enough=enough)
    assert hub.asked == [("owner/corpus", None, True)]
    assert [e.origin for e in examples_of(catalog, "train")] == [f"train[{i}]" for i in range(4)]
    assert hub.fetched == 4
    assert catalog.notes == [
        "documents: the first 4 of owner/corpus train are read, which 4 steps of 1 row can use"
    ]


def test_offline_it_says_at_once_how_to_get_it(
    tmp_path: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotFound, match="neither fetched nor found in the cache") as caught:
        open_texts(options("owner/corpus"), TextOptions(), base=tmp_path, enough=Enough(4, 2, ""))
    assert "hf download owner/corpus" in caught.value.hint


@pytest.mark.parametrize(
    ("keys", "present", "rows"),
    [
        ({}, ("train",), 120_000),
        ({"val_fraction": 0, "test_fraction": 0}, ("train",), 96_000),
        ({"val_fraction": 0}, ("train",), 106_667),
        ({"include_val": True}, ("train",), 106_667),
        ({}, ("train", "test"), 106_667),
        ({}, ("train", "val"), 96_000),
        ({"folds": 5, "test_fraction": 0}, ("train",), 120_000),
        ({"folds": 5}, ("train",), 133_333),
    ],
)
def test_as_many_are_read_as_leave_enough_to_train_on(
    options: Options, keys: dict[str, Any], present: tuple[str, ...], rows: int
) -> None:
    found = Enough(96_000, 512, "").rows(present, options("x", **keys))
    assert found == {split: rows if split == "train" else 512 for split in present}


@pytest.mark.parametrize("wanted", [1, 7, 64, 65, 200])
@pytest.mark.parametrize(
    "keys",
    [{}, {"val_fraction": 0.33, "test_fraction": 0.25}, {"folds": 3}, {"include_val": True},
     {"val_fraction": 0, "test_fraction": 0}],
)  # fmt: skip
def test_so_the_rule_of_splits_has_it(options: Options, keys: dict[str, Any], wanted: int) -> None:
    data = options("x", **keys)
    count = Enough(wanted, 1, "").rows(["train"], data)["train"]

    def trained(many: int) -> int:
        records = [Record(f"a:{i}", "", b"") for i in range(many)]
        return len(divide_as_asked(Found({"train": records}), data, [])["train"])

    if count > 4:  # as many as can be divided at all
        assert trained(count) == wanted
        assert trained(count - 1) < wanted


def test_a_line_says_where_reading_stopped(tmp_path: Path, options: Options) -> None:
    enough = Enough(4, 2, "which 2 steps of 2 rows can use")
    lines(tmp_path / "set" / "train.jsonl", 5, POISON)
    lines(tmp_path / "set" / "val.jsonl", 3, POISON)
    lines(tmp_path / "set" / "test.jsonl", 1)
    plain = TextOptions(format="plain")
    catalog = open_texts(options("set"), plain, base=tmp_path, enough=enough)
    assert catalog.counts() == {"train": 4, "val": 2, "test": 1}
    assert catalog.notes == [
        "documents: the first 4 of train.jsonl are read, which 2 steps of 2 rows can use; "
        "the first 2 of val.jsonl are read, by which the loss is measured"
    ]
    lines(tmp_path / "one.jsonl", 20, POISON)
    carved = open_texts(options("one.jsonl"), plain, base=tmp_path, enough=enough)
    assert carved.counts() == {"train": 4, "val": 1, "test": 1}
    assert carved.notes == [
        "documents: the first 6 of one.jsonl are read, which 2 steps of 2 rows can use beside "
        "what is held out"
    ]
    few = open_texts(options("one.jsonl"), plain, base=tmp_path, enough=Enough(16, 2, "enough"))
    assert few.counts() == {"train": 16, "val": 2, "test": 2}
    lines(tmp_path / "whole.jsonl")
    everything = open_texts(options("whole.jsonl"), plain, base=tmp_path, enough=Enough(99, 2, ""))
    assert everything.notes == []
    assert sum(everything.counts().values()) == 20
