"""Folds, training on val as well, and the number of classes, for every source."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gistcli.data import open_catalog
from gistcli.data.base import Found, Record
from gistcli.data.splits import divide, divide_folds
from gistcli.data.twins import leaking_groups
from gistcli.errors import DataError, RecipeError
from gistcli.recipe import DataSection

Options = Callable[..., DataSection]
Folders = Callable[..., Path]


def section(**keys: Any) -> DataSection:
    return DataSection(path="x", **keys)


def records(prefix: str = "", **classes: int) -> list[Record]:
    return [
        Record(f"{prefix}{label}{i}", label, b"") for label, n in classes.items() for i in range(n)
    ]


def names(part: list[Record]) -> list[str]:
    return sorted(r.name for r in part)


def count(part: list[Record]) -> dict[str, int]:
    return dict(Counter(r.label for r in part))


def folds(pool: list[Record], k: int, seed: int = 0) -> list[dict[str, list[Record]]]:
    return [divide_folds(pool, k, fold, seed) for fold in range(k)]


@pytest.mark.parametrize("k", [2, 3, 5])
def test_folds_divide_the_pool_and_differ_by_one_at_most(k: int) -> None:
    pool = records(a=23, b=17, c=10, d=k)
    parts = folds(pool, k)
    assert sorted(n for part in parts for n in names(part["val"])) == names(pool)
    for part in parts:
        assert names(part["train"] + part["val"]) == names(pool)
    sizes = [len(part["val"]) for part in parts]
    assert sizes == [(len(pool) - i + k - 1) // k for i in range(k)]
    for label in "abcd":
        of_class = [count(part["val"])[label] for part in parts]
        assert max(of_class) - min(of_class) <= 1


def test_folds_depend_on_their_seed_and_not_on_the_order() -> None:
    pool = records(a=30, b=31)
    mixed = random.Random(1).sample(pool, len(pool))
    for first, again in zip(folds(pool, 3), folds(mixed, 3), strict=True):
        assert names(first["val"]) == names(again["val"])
    assert names(folds(pool, 3, seed=1)[0]["val"]) != names(folds(pool, 3)[0]["val"])


def test_a_new_picture_moves_few_others() -> None:
    before, after = folds(records(a=99), 3), folds(records(a=100), 3)
    moved = [
        {*names(b["val"])} ^ {*names(a["val"])} - {"a99"}
        for b, a in zip(before, after, strict=True)
    ]
    assert all(len(m) <= 3 for m in moved)
    assert len(set.union(*moved)) <= 3


def test_groups_are_never_divided_by_folds() -> None:
    pool = [
        Record(f"p{p}-{i}", label, b"", f"p{p}")
        for p in range(20)
        for i, label in enumerate("aabbc")
    ]
    for part in folds(pool, 4):
        assert leaking_groups(part) == []
        assert len(part["val"]) == 25
    with pytest.raises(DataError, match=r"too few groups .* at least 25 groups a class are needed"):
        divide_folds(pool, 25, 0, 0)


def test_classes_too_small_for_the_folds_are_all_named() -> None:
    with pytest.raises(DataError, match=r"2 classes \(b: 2, c: 4\) .* at least 5 examples") as c:
        divide_folds(records(a=9, b=2, c=4), 5, 0, 0)
    assert "one for each fold" in c.value.message
    assert "fewer data.folds" in c.value.hint


@pytest.mark.parametrize("pooled", [{"include_val": True}, {"folds": 3}])
def test_val_joins_train_in_each_of_the_rules(pooled: dict[str, Any]) -> None:
    three = {s: records(s, a=4, b=4) for s in ("train", "val", "test")}
    found = divide(Found(three), section(**pooled))
    assert list(found) == ["train", "test"]
    assert found["train"] == three["train"] + three["val"]
    assert found["test"] == three["test"]
    two = {"train": records(a=20, b=1), "test": records("t", a=3)}
    assert divide(Found(two), section(**pooled)) == two  # nothing is carved, nothing too small
    no_test = {"train": records(a=5), "val": records("v", a=5)}
    assert divide(Found(no_test), section(**pooled)) == {"train": no_test["train"] + no_test["val"]}


@pytest.mark.parametrize("pooled", [{"include_val": True}, {"folds": 3}])
def test_the_test_set_of_one_folder_is_the_same_with_and_without_val(
    pooled: dict[str, Any],
) -> None:
    """Or the last run would be tested on what its choice was made on."""
    pool = records(a=40, b=20)
    plain = divide(Found({"train": pool}), section())
    found = divide(Found({"train": pool}), section(**pooled))
    assert found["test"] == plain["test"]
    assert names(found["train"]) == names(plain["train"] + plain["val"])
    assert found["train"] == [r for r in pool if r in found["train"]]  # in the old order


def test_a_picture_of_both_splits_is_in_the_pool_once() -> None:
    same = records(a=3)
    found = divide(Found({"train": same, "val": same[1:]}), section(include_val=True))
    assert found == {"train": same}


def test_a_catalog_of_folds_has_the_shots_of_the_pool(
    class_folders: Folders, options: Options, tmp_path: Path
) -> None:
    for split, n in (("train", 6), ("val", 4), ("test", 2)):
        class_folders(tmp_path / split, cat=n, dog=n)
    keys = {"shots": 6, "folds": 3}
    drawn = open_catalog(options(tmp_path, shots=6, include_val=True), base=Path())
    assert drawn.counts() == {"train": 12, "test": 4}
    held = []
    for fold in range(3):
        catalog = open_catalog(options(tmp_path, fold=fold, **keys), base=Path())
        assert catalog.counts() == {"train": 8, "val": 4, "test": 4}
        assert count(catalog.splits["val"]) == {"cat": 2, "dog": 2}
        assert catalog.splits["test"] == drawn.splits["test"]
        held += names(catalog.splits["val"])
    assert sorted(held) == names(drawn.splits["train"])


def test_pinned_splits_win_over_folds(
    class_folders: Folders, options: Options, tmp_path: Path
) -> None:
    root = class_folders(tmp_path / "pets", cat=10, dog=10)
    first = open_catalog(options(root, folds=4, fold=1), base=Path())
    first.write_splits(tmp_path / "splits.csv")
    for keys in ({"folds": 2}, {"include_val": True}, {}):
        again = open_catalog(options(root, **keys), base=Path(), pinned=tmp_path / "splits.csv")
        assert again.splits == first.splits


def test_the_number_of_classes_is_checked(
    class_folders: Folders, options: Options, tmp_path: Path
) -> None:
    root = class_folders(tmp_path / "pets", cat=5, dog=5)
    assert open_catalog(options(root, classes=2), base=Path()).classes == ["cat", "dog"]
    with pytest.raises(DataError, match=r"pets has 2 classes, but data\.classes is 37"):
        open_catalog(options(root, classes=37), base=Path())
    # other data may show fewer of a model's classes
    assert open_catalog(options(root, classes=37), base=Path(), whole=True).counts() == {"test": 10}


def test_a_source_says_how_to_read_a_path(
    class_folders: Folders, options: Options, tmp_path: Path
) -> None:
    class_folders(tmp_path / "pets", cat=5, dog=5)
    (tmp_path / "pets" / "train.csv").write_text("image,label\ncat/cat0.png,c\ndog/dog0.png,d\n")
    by_look = open_catalog(options("pets", val_fraction=0, test_fraction=0), base=tmp_path)
    assert by_look.classes == ["c", "d"]
    asked = open_catalog(options("pets", source="folder"), base=tmp_path)
    assert asked.classes == ["cat", "dog"]
    assert open_catalog(options("digits", source="digits"), base=tmp_path).name == "digits"
    with pytest.raises(RecipeError, match="source digits reads nothing from"):
        open_catalog(options("pets", source="digits"), base=tmp_path)
    with pytest.raises(RecipeError, match=r"source folder has no sets .*: data\.subset cannot"):
        open_catalog(options("pets", source="folder", subset="x"), base=tmp_path)
