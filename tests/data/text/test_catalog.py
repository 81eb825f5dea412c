"""Text in splits: carved, found, pinned; and the real files beside the repository."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gistcli.data.text import (
    Chat,
    Completion,
    Encoder,
    Labelled,
    Plain,
    TextOptions,
    examples_of,
    load_texts,
    open_template,
    open_texts,
    open_tokenizer,
)
from gistcli.errors import DataError, NotFound, RecipeError
from gistcli.recipe import DataSection

Options = Callable[..., DataSection]
PLAIN = TextOptions()


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_file_of_chats_is_divided_and_can_be_pinned(tmp_path: Path, options: Options) -> None:
    rows = [{"prompt": f"p{i}", "completion": "c"} for i in range(50)]
    lines(tmp_path / "all.jsonl", rows)
    catalog = open_texts(options("all.jsonl"), PLAIN, base=tmp_path)
    assert catalog.name == "all"
    assert catalog.counts() == {"train": 40, "val": 5, "test": 5}
    assert catalog.classes == []
    assert catalog.warnings == []
    first = catalog.splits["val"][0]
    [example] = [e for e in examples_of(catalog, "val") if e.origin == first.name]
    assert example == Completion(rows[int(first.name.split(":")[1]) - 1]["prompt"], "c", first.name)
    catalog.write_splits(tmp_path / "splits.csv")
    lines(tmp_path / "all.jsonl", [*rows, {"prompt": "new", "completion": "c"}])
    pinned = open_texts(options("all.jsonl"), PLAIN, base=tmp_path, pinned=tmp_path / "splits.csv")
    assert pinned.fingerprint() == catalog.fingerprint()
    whole = open_texts(options("all.jsonl"), PLAIN, base=tmp_path, whole=True)
    assert whole.counts() == {"test": 51}


def test_classes_are_the_union_of_the_splits_and_shots_are_taken_of_each(
    tmp_path: Path, options: Options
) -> None:
    for split, labels in (("train", "abab"), ("dev", "ca"), ("test", "bb")):
        rows = [{"sentence": f"{split} {i}", "label": c} for i, c in enumerate(labels)]
        lines(tmp_path / f"{split}.jsonl", rows)
    catalog = open_texts(options("."), PLAIN, base=tmp_path)
    assert catalog.counts() == {"train": 4, "val": 2, "test": 2}
    assert catalog.classes == ["a", "b", "c"]
    assert catalog.labels("val") == [2, 0]
    few = open_texts(options(".", shots=1), PLAIN, base=tmp_path)
    assert few.counts()["train"] == 2
    assert sorted(few.labels("train")) == [0, 1]


def test_a_test_set_without_labels_is_left_out_and_single_gaps_are_named(
    tmp_path: Path, options: Options
) -> None:
    good = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    lines(tmp_path / "train.jsonl", good)
    lines(tmp_path / "val.jsonl", good)
    lines(tmp_path / "test.jsonl", [{"text": "c", "label": None}] * 2)
    catalog = open_texts(options("."), PLAIN, base=tmp_path)
    assert list(catalog.splits) == ["train", "val"]
    assert "has no labels" in catalog.warnings[0]
    assert "2 examples (train.jsonl:1 = val.jsonl:1" in catalog.warnings[1]
    lines(tmp_path / "test.jsonl", [{"text": "c"}] * 2)
    bare = open_texts(options("."), PLAIN, base=tmp_path)
    assert list(bare.splits) == ["train", "val"]
    lines(tmp_path / "train.jsonl", [*good, {"text": "d", "label": ""}])
    with pytest.raises(DataError, match=r"1 row \(train.jsonl:3\) without a label"):
        open_texts(options("."), PLAIN, base=tmp_path)


def test_values_are_not_classes(tmp_path: Path, options: Options) -> None:
    rows = [{"sentence1": "a", "sentence2": f"b{i}", "label": i / 8} for i in range(20)]
    lines(tmp_path / "sts.jsonl", rows)
    catalog = open_texts(options("sts.jsonl"), PLAIN, base=tmp_path, task="regression")
    assert catalog.classes == []
    example = examples_of(catalog, "train")[0]
    assert isinstance(example, Labelled)
    assert isinstance(example.label, float)


def test_groups_are_a_column_and_no_split_divides_them(tmp_path: Path, options: Options) -> None:
    rows = [{"prompt": f"p{i}", "completion": "c", "user": i // 4} for i in range(80)]
    lines(tmp_path / "a.jsonl", rows)
    data = options("a.jsonl", group_by="user")
    catalog = open_texts(data, PLAIN, base=tmp_path)
    groups = [{record.group for record in part} for part in catalog.splits.values()]
    assert list(catalog.splits) == ["train", "val", "test"]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20
    catalog.write_splits(tmp_path / "splits.csv")
    pinned = open_texts(data, PLAIN, base=tmp_path, pinned=tmp_path / "splits.csv")
    assert pinned.fingerprint() == catalog.fingerprint()
    for split in ("train", "val"):
        lines(tmp_path / f"{split}.jsonl", rows[:40])
    told = open_texts(options(".", group_by="user", splits={"train": "train.jsonl", "val":
                      "val.jsonl"}), PLAIN, base=tmp_path).warnings  # fmt: skip
    assert any("10 groups" in warning for warning in told)
    with pytest.raises(RecipeError, match=r"no column 'usr' \(data.group_by\)") as caught:
        open_texts(options("a.jsonl", group_by="usr"), PLAIN, base=tmp_path)
    assert "'user'" in caught.value.hint
    lines(tmp_path / "a.jsonl", [*rows, {**rows[0], "user": None}])
    with pytest.raises(DataError, match=r"1 row \(a.jsonl:81\) without a group"):
        open_texts(data, PLAIN, base=tmp_path)


def test_folds_divide_the_training_texts(tmp_path: Path, options: Options) -> None:
    lines(tmp_path / "a.jsonl", [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(60)])
    parts = []
    for fold in range(3):
        data = options("a.jsonl", folds=3, fold=fold)
        catalog = open_texts(data, PLAIN, base=tmp_path)
        assert catalog.counts() == {"train": 36, "val": 18, "test": 6}
        parts.append({record.name for record in catalog.splits["val"]})
    assert len(set.union(*parts)) == 54


def test_a_path_that_is_not_there_is_not_found(tmp_path: Path, options: Options) -> None:
    lines(tmp_path / "chats.jsonl", [{"text": "a"}])
    with pytest.raises(NotFound, match="does not exist") as caught:
        open_texts(options("chat.jsonl"), PLAIN, base=tmp_path)
    assert "chats.jsonl" in caught.value.hint
    with pytest.raises(NotFound, match="does not exist"):
        open_texts(options("./nothing"), PLAIN, base=tmp_path)


REAL = [
    ("sst2", {"label": "0", "text": "1"}, Labelled, {"train": 6920, "val": 1821}),
    ("cola", {"text": "0", "label": "1"}, Labelled, {"train": 8551, "val": 516}),
    ("rte", {}, Labelled, {"train": 2490, "val": 277}),
    ("arc_easy", {}, Completion, None),
    ("gsm8k", {}, Completion, {"train": 2700, "val": 300, "test": 1319}),
    ("instruct/c4_demo.jsonl", {}, Plain, {"train": 240, "val": 30, "test": 30}),
]


@pytest.mark.parametrize(("path", "columns", "kind", "counts"), REAL)
def test_real_files_are_read_and_encoded(
    assets: Path,
    options: Options,
    path: str,
    columns: dict[str, str],
    kind: type,
    counts: dict[str, int] | None,
) -> None:
    asked = TextOptions(columns=columns)
    catalog = open_texts(options(path), asked, base=assets / "text")
    assert counts is None or catalog.counts() == counts
    examples = examples_of(catalog, "val")
    assert all(isinstance(e, kind) for e in examples)
    encoder = Encoder(open_tokenizer(assets / "stories260K"), asked, 512)
    split = load_texts(path, examples, encoder, train=True, classes=catalog.classes or None)
    assert len(split.sequences) + split.counts.too_long >= len(examples)


def test_real_instructions_are_packed_close_in_the_chat_template_of_choice(
    assets: Path, options: Options
) -> None:
    data = options("instruct/alpaca_en_demo.json")
    asked = TextOptions(packing=True, prompt="chat", chat_template="chatml", max_length=1024)
    catalog = open_texts(data, asked, base=assets / "text")
    assert all(isinstance(e, Chat) for e in examples_of(catalog, "train"))
    tokenizer = open_tokenizer(assets / "stories260K")
    encoder = Encoder(tokenizer, asked, 1024, open_template(tokenizer, "chatml"))
    split = load_texts("alpaca", examples_of(catalog, "val"), encoder, train=True)
    # the ratio that the lengths allow over padding is the inverse of the latter's share
    assert split.efficiency(4) >= 0.9


def test_values_have_no_classes_and_are_divided_like_everything_else(
    tmp_path: Path, options: Options
) -> None:
    lines(tmp_path / "all.jsonl", [{"text": f"t{i}", "label": i / 4} for i in range(40)])
    catalog = open_texts(options("all.jsonl"), PLAIN, base=tmp_path)
    assert catalog.classes == []
    assert catalog.counts() == {"train": 32, "val": 4, "test": 4}
    assert any("task.type regression" in note for note in catalog.notes)
    first = examples_of(catalog, "train")[0]
    assert isinstance(first, Labelled)
    assert isinstance(first.label, float)
