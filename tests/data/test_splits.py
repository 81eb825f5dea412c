"""Who is in which split: the rules, groups, shots, and `splits.csv`."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from gistcli.data.base import Catalog, Found, Record, class_order, some
from gistcli.data.splits import (
    carve,
    divide,
    read_pinned,
    take_shots,
)
from gistcli.data.twins import leaking_groups
from gistcli.errors import DataError, NotFound
from gistcli.recipe import DataSection

DATA = DataSection(path="x")


def records(prefix: str = "", **classes: int) -> list[Record]:
    return [
        Record(f"{prefix}{label}{i}", label, f"{prefix}{label}{i}".encode())
        for label, count in classes.items()
        for i in range(count)
    ]


def count(part: list[Record]) -> dict[str, int]:
    return dict(Counter(r.label for r in part))


def names(part: list[Record]) -> list[str]:
    return sorted(r.name for r in part)


def test_three_splits_stay_as_they_are() -> None:
    found = {s: records(s, a=2, b=2) for s in ("train", "val", "test")}
    assert divide(Found(found), DATA) == found


def test_without_val_a_share_of_train_becomes_val_and_test_stays() -> None:
    found = {"train": records("x", a=20, b=10), "test": records("y", a=3, b=3)}
    splits = divide(Found(found), DATA)
    assert list(splits) == ["train", "val", "test"]
    assert count(splits["val"]) == {"a": 2, "b": 1}
    assert count(splits["train"]) == {"a": 18, "b": 9}
    assert splits["test"] == found["test"]


def test_train_and_val_get_no_test() -> None:
    found = {"train": records("x", a=20), "val": records("y", a=2)}
    assert divide(Found(found), DATA) == found


def test_one_folder_is_divided_class_by_class_and_nothing_is_lost() -> None:
    everything = records(a=100, b=30, c=3)
    splits = divide(Found({"train": everything}), DATA)
    assert count(splits["test"]) == {"a": 10, "b": 3, "c": 1}
    assert count(splits["val"]) == {"a": 10, "b": 3, "c": 1}
    assert names([r for part in splits.values() for r in part]) == names(everything)


def test_a_division_depends_on_its_seed_and_not_on_the_order_of_the_files() -> None:
    everything = records(a=50, b=50)
    mixed = random.Random(1).sample(everything, len(everything))
    first, again, other = (
        divide(Found({"train": given}), DATA.model_copy(update={"split_seed": seed}))
        for given, seed in ((everything, 0), (mixed, 0), (everything, 1))
    )
    for split in first:
        assert names(first[split]) == names(again[split])
    assert names(first["test"]) != names(other["test"])


def test_a_new_picture_moves_no_more_than_one_other() -> None:
    before = divide(Found({"train": records(a=99)}), DATA)
    after = divide(Found({"train": records(a=100)}), DATA)
    assert len({*names(before["test"])} - {*names(after["test"])}) <= 1


def test_fractions_of_zero_make_no_split() -> None:
    data = DATA.model_copy(update={"test_fraction": 0.0})
    assert list(divide(Found({"train": records(a=10)}), data)) == ["train", "val"]


def test_classes_too_small_to_be_divided_are_all_named() -> None:
    with pytest.raises(DataError, match=r"2 classes \(b: 1, c: 2\).*at least 3 examples a class"):
        divide(Found({"train": records(a=9, b=1, c=2)}), DATA)
    found = {"train": records("x", a=9, b=1), "test": records("y", a=1)}
    with pytest.raises(DataError, match=r"1 class \(b: 1\).*at least 2 examples"):
        divide(Found(found), DATA)


def test_without_training_pictures_nothing_is_divided() -> None:
    with pytest.raises(DataError, match="No training examples: found test"):
        divide(Found({"test": records(a=3)}), DATA)


def grouped(sizes: list[tuple[str, int]]) -> list[Record]:
    return [
        Record(f"g{g}-{i}", label, b"", f"g{g}")
        for g, (label, size) in enumerate(sizes)
        for i in range(size)
    ]


def test_groups_are_never_divided_and_shares_come_near() -> None:
    generator = random.Random(0)
    sizes = [(generator.choice("abc"), generator.randint(1, 9)) for _ in range(150)]
    everything = grouped(sizes)
    parts = carve(everything, {"val": 0.1, "test": 0.2}, seed=0)
    assert leaking_groups(parts) == []
    total = Counter(r.label for r in everything)
    for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        for label, n in total.items():
            assert count(parts[split])[label] == pytest.approx(share * n, abs=4)


def test_three_large_groups_reach_all_three_splits() -> None:
    parts = carve(
        grouped([("a", 9), ("a", 9), ("a", 9), *[("b", 2)] * 5]), {"val": 0.1, "test": 0.1}, 0
    )
    assert [count(parts[s])["a"] for s in ("train", "val", "test")] == [9, 9, 9]


def test_groups_that_hold_several_classes_stay_whole() -> None:
    everything = [
        Record(f"p{p}-{i}", label, b"", f"p{p}")
        for p in range(20)
        for i, label in enumerate("aabbc")
    ]
    parts = carve(everything, {"val": 0.1, "test": 0.1}, seed=3)
    assert leaking_groups(parts) == []
    assert [len(parts[s]) for s in ("train", "val", "test")] == [80, 10, 10]


def test_a_class_of_too_few_groups_is_named() -> None:
    with pytest.raises(DataError, match=r"\(a: 2\) with too few groups"):
        carve(grouped([("a", 9), ("a", 9), *[("b", 2)] * 5]), {"val": 0.1, "test": 0.1}, 0)


def test_shots_are_taken_from_each_class_and_are_nested() -> None:
    train = records(a=30, b=30, c=3)
    five, short = take_shots(train, 5, seed=0)
    two, _ = take_shots(train, 2, seed=0)
    other, _ = take_shots(train, 5, seed=1)
    assert count(five) == {"a": 5, "b": 5, "c": 3}
    assert short == ["c: 3"]
    assert {*names(two)} < {*names(five)}
    assert names(other) != names(five)


def test_splits_csv_reproduces_the_splits(tmp_path: Path) -> None:
    everything = records(a=20, b=20)
    splits = divide(Found({"train": everything}), DATA)
    catalog = Catalog("x", ["a", "b"], splits)
    catalog.write_splits(tmp_path / "splits.csv")
    assert (tmp_path / "splits.csv").read_text().splitlines()[0] == "split,name,label"
    assert [p.name for p in tmp_path.iterdir()] == ["splits.csv"]
    pinned = read_pinned(tmp_path / "splits.csv", Found({"train": everything[::-1]}))
    assert pinned == splits


def test_splits_csv_keeps_odd_names_and_groups(tmp_path: Path) -> None:
    odd = [Record('a,"b"\n\udcff.png', "x", b"", "g 1"), Record("ü.png", "y", b"", None)]
    Catalog("x", ["x", "y"], {"train": odd}).write_splits(tmp_path / "splits.csv")
    assert read_pinned(tmp_path / "splits.csv", Found({"train": odd})) == {"train": odd}
    assert (tmp_path / "splits.csv").read_bytes().startswith(b"split,name,label,group\n")


def test_what_differs_from_splits_csv_is_named(tmp_path: Path) -> None:
    everything = records(a=5, b=5)
    Catalog("x", ["a", "b"], {"train": everything}).write_splits(tmp_path / "splits.csv")
    now = [*everything[2:-1], Record("b4", "a", b"")]
    with pytest.raises(DataError, match=r"2 examples \(a0, a1\) no longer.*\(b4: b, now a\)"):
        read_pinned(tmp_path / "splits.csv", Found({"train": now}))
    with pytest.raises(NotFound):
        read_pinned(tmp_path / "other.csv", Found({}))
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="lacks columns"):
        read_pinned(tmp_path / "bad.csv", Found({}))


def test_the_fingerprint_knows_names_labels_splits_and_sizes_only() -> None:
    def fingerprint(*given: tuple[str, str, bytes], split: str = "train") -> str:
        return Catalog("x", [], {split: [Record(*g) for g in given]}).fingerprint()

    first = fingerprint(("a", "x", b"1"), ("b", "y", b"2"))
    assert fingerprint(("b", "y", b"2"), ("a", "x", b"3")) == first
    others = [
        fingerprint(("a", "x", b"1"), ("b", "x", b"2")),
        fingerprint(("a", "x", b"1"), ("c", "y", b"2")),
        fingerprint(("a", "x", b"1"), ("b", "y", b"22")),
        fingerprint(("a", "x", b"1"), ("b", "y", b"2"), split="val"),
    ]
    assert len({first, *others}) == 5


def test_numbers_are_ordered_by_value_and_counts_name_the_first() -> None:
    assert class_order(["10", "9", "2"]) == ["2", "9", "10"]
    assert class_order(["10", "9", "x"]) == ["10", "9", "x"]
    assert some(["a", "b", "c"], "class", "classes", shown=2) == "3 classes (a, b and 1 more)"
    assert some(["a"], "file") == "1 file (a)"


def test_a_trained_models_class_order_is_taken_over() -> None:
    catalog = Catalog("x", ["a", "b"], {"test": records(a=1, b=1)})
    assert catalog.with_classes(["b", "c", "a"]).labels("test") == [2, 0]
    with pytest.raises(DataError, match=r"1 class \(b\) that the model was not trained on"):
        catalog.with_classes(["a", "bb"])
