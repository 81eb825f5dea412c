"""From a path or a name to a catalog, and every way in which that fails."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gistcli.data import open_catalog
from gistcli.errors import DataError, NotFound, RecipeError
from gistcli.recipe import DataSection

Options = Callable[..., DataSection]
Folders = Callable[..., Path]
FIRST_TEST_DIGITS = ["digit-0001", "digit-0004", "digit-0014"]


def test_split_folders_are_found_under_all_their_names(
    class_folders: Folders, options: Options, tmp_path: Path
) -> None:
    for split in ("Training", "valid", "testing"):
        class_folders(tmp_path / "pets" / split, cat=2, dog=1)
    (tmp_path / "pets" / "README.md").write_text("words")
    catalog = open_catalog(options("pets"), base=tmp_path)
    assert catalog.name == "pets"
    assert catalog.counts() == {"train": 3, "val": 3, "test": 3}
    assert catalog.splits["train"][0].name == "Training/cat/cat0.png"
    assert catalog.table() == (
        ["class", "train", "val", "test"],
        [["cat", 2, 2, 2], ["dog", 1, 1, 1]],
    )
    assert catalog.warnings == []


def test_class_ids_come_from_the_union_of_the_splits(
    class_folders: Folders, options: Options, tmp_path: Path
) -> None:
    class_folders(tmp_path / "train", a=2, b=2, d=2)
    class_folders(tmp_path / "val", b=1, d=1)
    class_folders(tmp_path / "test", c=1, d=1)
    catalog = open_catalog(options(tmp_path), base=Path())
    assert catalog.classes == ["a", "b", "c", "d"]
    assert catalog.labels("val") == [1, 3]
    assert catalog.labels("test") == [2, 3]
    assert any("1 class (c) without training pictures" in w for w in catalog.warnings)


def test_one_folder_is_divided_and_for_evaluation_is_all_test(
    class_folders: Folders, options: Options, tmp_path: Path
) -> None:
    class_folders(tmp_path, cat=10, dog=20)
    assert open_catalog(options(tmp_path), base=Path()).counts() == {
        "train": 24,
        "val": 3,
        "test": 3,
    }
    assert open_catalog(options(tmp_path), base=Path(), whole=True).counts() == {"test": 30}


def test_classes_named_like_splits_are_classes_where_there_is_no_train(
    class_folders: Folders, options: Options, tmp_path: Path
) -> None:
    class_folders(tmp_path, test=5, control=5)
    assert open_catalog(options(tmp_path), base=Path()).classes == ["control", "test"]


def test_pictures_may_lie_deep_and_other_files_are_noted(
    class_folders: Folders, options: Options, tmp_path: Path
) -> None:
    class_folders(tmp_path, cat=3, dog=3)
    class_folders(tmp_path / "cat", indoors=2)
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "loose.png").write_bytes(b"x")
    catalog = open_catalog(options(tmp_path), base=Path(), whole=True)
    assert catalog.counts() == {"test": 8}
    assert {r.label for r in catalog.splits["test"]} == {"cat", "dog"}
    assert any("1 file (loose.png)" in n for n in catalog.notes)
    assert any("cat/.DS_Store" in n for n in catalog.notes)


def test_empty_class_folders_are_all_named(
    class_folders: Folders, options: Options, tmp_path: Path
) -> None:
    class_folders(tmp_path / "train", cat=3, dog=3, cow=0)
    class_folders(tmp_path / "test", cat=0, dog=3)
    with pytest.raises(DataError, match=r"2 class folders \(train/cow, test/cat\) without"):
        open_catalog(options(tmp_path), base=Path())


def test_a_folder_without_class_folders_and_a_single_class_are_refused(
    class_folders: Folders, options: Options, tmp_path: Path
) -> None:
    class_folders(tmp_path, cat=5)
    with pytest.raises(DataError, match=r"one class only \(cat\)"):
        open_catalog(options(tmp_path), base=Path())
    with pytest.raises(DataError, match=r"no class folders in .*cat \(5 files\)"):
        open_catalog(options(tmp_path / "cat"), base=Path())


def test_one_photo_in_a_class_is_refused_with_its_name(
    class_folders: Folders, options: Options, tmp_path: Path
) -> None:
    class_folders(tmp_path, cat=5, dog=1)
    with pytest.raises(DataError, match=r"dog: 1.*at least 3"):
        open_catalog(options(tmp_path), base=Path())


def test_two_folders_for_one_split_are_refused(
    class_folders: Folders, options: Options, tmp_path: Path
) -> None:
    for split in ("train", "val", "valid"):
        class_folders(tmp_path / split, cat=1, dog=1)
    with pytest.raises(DataError, match="val and valid are the same split"):
        open_catalog(options(tmp_path), base=Path())


def test_splits_may_be_named(class_folders: Folders, options: Options, tmp_path: Path) -> None:
    class_folders(tmp_path / "data" / "a", cat=2, dog=2)
    class_folders(tmp_path / "elsewhere", cat=1, dog=1)
    splits = {"train": "a", "validation": str(tmp_path / "elsewhere")}
    catalog = open_catalog(options("data", splits=splits), base=tmp_path)
    assert catalog.counts() == {"train": 4, "val": 2}
    with pytest.raises(NotFound, match=r"1 folder .*data/b") as caught:
        open_catalog(options("data", splits={"train": "b"}), base=tmp_path)
    assert "'a'" in caught.value.hint or "a." in caught.value.hint
    with pytest.raises(RecipeError, match="'trian' is no split"):
        open_catalog(options("data", splits={"trian": "a"}), base=tmp_path)


def test_groups_come_from_file_names(noise: Callable, options: Options, tmp_path: Path) -> None:
    for patient in range(10):
        for label in ("ill", "well"):
            (tmp_path / label).mkdir(exist_ok=True)
            for i in range(3):
                noise(patient * 9 + i + 99 * (label == "ill")).save(
                    tmp_path / label / f"p{patient:02d}_{i}.png"
                )
    catalog = open_catalog(options(tmp_path, group_by="^(p[0-9]+)_"), base=Path())
    assert catalog.counts() == {"train": 48, "val": 6, "test": 6}
    groups = [{r.group for r in records} for records in catalog.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 10
    with pytest.raises(DataError, match=r"60 file names .* without a group by \(q\)"):
        open_catalog(options(tmp_path, group_by="(q)"), base=Path())
    with pytest.raises(RecipeError, match="has no group"):
        open_catalog(options(tmp_path, group_by="p"), base=Path())
    with pytest.raises(RecipeError, match="no regular expression"):
        open_catalog(options(tmp_path, group_by="(p"), base=Path())


def test_the_same_picture_in_two_splits_is_named_in_a_warning(
    class_folders: Folders, options: Options, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        class_folders(tmp_path / split, cat=4, dog=4)
    shutil.copy(tmp_path / "train/cat/cat1.png", tmp_path / "test/cat/again.png")
    warnings = open_catalog(options(tmp_path), base=Path()).warnings
    assert len(warnings) == 1
    assert "test: test/cat/again.png = " in warnings[0]
    assert "train/cat/cat1.png" in warnings[0]


def test_shots_touch_train_alone_and_too_few_are_named(
    class_folders: Folders, options: Options, tmp_path: Path
) -> None:
    class_folders(tmp_path, cat=10, dog=20)
    full, few = (open_catalog(options(tmp_path, shots=n), base=Path()) for n in (None, 12))
    assert few.counts() == {"train": 8 + 12, "val": 3, "test": 3}
    assert few.splits["test"] == full.splits["test"]
    assert "1 class (cat: 8) with fewer than 12" in few.warnings[0]


def test_pinned_splits_survive_a_changed_rule_and_added_pictures(
    class_folders: Folders, options: Options, tmp_path: Path
) -> None:
    root = class_folders(tmp_path / "pets", cat=10, dog=20)
    first = open_catalog(options(root, shots=4), base=Path())
    first.write_splits(tmp_path / "splits.csv")
    class_folders(root, zebra=5)
    changed = options(root, split_seed=7, shots=2)
    again = open_catalog(changed, base=Path(), pinned=tmp_path / "splits.csv")
    assert again.splits == first.splits
    assert again.classes == first.classes
    assert again.fingerprint() == first.fingerprint()
    (root / first.splits["train"][0].name).unlink()
    with pytest.raises(DataError, match=r"1 example .*no longer there"):
        open_catalog(changed, base=Path(), pinned=tmp_path / "splits.csv")


def test_the_digits_are_the_same_everywhere(options: Options, tmp_path: Path) -> None:
    catalog = open_catalog(options("digits", split_seed=5), base=tmp_path)
    assert catalog.counts() == {"train": 1097, "val": 200, "test": 500}
    assert catalog.classes == [str(d) for d in range(10)]
    per_class = [row[1:] for row in catalog.table()[1]]
    for train, val, test in per_class:
        share = (train + val + test) / 1797
        assert abs(test - 500 * share) < 1
        assert abs(val - 200 * share) < 1.2  # of what test left over
    names = {r.name for records in catalog.splits.values() for r in records}
    assert len(names) == 1797
    assert [r.name for r in catalog.splits["test"][:3]] == FIRST_TEST_DIGITS
    assert open_catalog(options("digits", shots=30), base=tmp_path).counts()["train"] == 300
    (tmp_path / "digits").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        open_catalog(options("digits"), base=tmp_path)  # an existing path wins


def test_a_path_that_is_not_there_is_answered_with_what_is(
    options: Options, tmp_path: Path
) -> None:
    (tmp_path / "caltech20").mkdir()
    with pytest.raises(NotFound, match="caltech21 does not exist") as caught:
        open_catalog(options("caltech21"), base=tmp_path)
    assert "Did you mean 'caltech20'?" in caught.value.hint
    with pytest.raises(NotFound) as caught:
        open_catalog(options("digit"), base=tmp_path)
    assert "Did you mean 'digits'?" in caught.value.hint
    with pytest.raises(NotFound) as caught:
        open_catalog(options("./no/such/folder"), base=tmp_path)
    assert "There is no folder" in caught.value.hint


def test_options_that_cannot_apply_are_refused(
    options: Options, class_folders: Folders, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"digits have .*: data\.group_by cannot apply"):
        open_catalog(options("digits", group_by="x"), base=tmp_path)
    class_folders(tmp_path / "pets", cat=3, dog=3)
    with pytest.raises(RecipeError, match=r"no columns: data\.columns cannot apply"):
        open_catalog(options("pets", columns={"image": "x"}), base=tmp_path)


@pytest.mark.parametrize("name", ["a--b", "pets/cta", "~nobody/x", "../x"])
def test_a_name_that_no_hub_has_is_not_looked_up(
    name: str, options: Options, class_folders: Folders, tmp_path: Path
) -> None:
    class_folders(tmp_path / "pets", cat=1)
    with pytest.raises(NotFound):
        open_catalog(options(name), base=tmp_path)


def test_a_hub_name_while_offline_is_answered_at_once(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets  # noqa: F401 - what is timed is the answer, not the import
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    started = time.monotonic()
    with pytest.raises(NotFound, match="'someone/flowers' is no path here") as caught:
        open_catalog(options("someone/flowers"), base=tmp_path)
    assert time.monotonic() - started < 2
    assert "hf download someone/flowers --repo-type dataset" in caught.value.hint


def test_files_that_are_no_data_set_are_refused(options: Options, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK")
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"'\.zip' is not known") as caught:
        open_catalog(options("a.zip"), base=tmp_path)
    assert "unpacked" in caught.value.hint
    with pytest.raises(DataError, match="single picture"):
        open_catalog(options("a.jpg"), base=tmp_path)


def test_a_folder_that_may_not_be_read_is_an_error_of_the_data(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scandir(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "pets").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"pets cannot be read: Permission denied"):
        open_catalog(options("pets"), base=tmp_path)


def test_the_real_folder_opens_as_it_is(assets: Path, options: Options) -> None:
    catalog = open_catalog(options("caltech20"), base=assets)
    assert catalog.counts() == {"train": 500, "val": 100, "test": 400}
    assert len(catalog.classes) == 20
    assert catalog.warnings == catalog.notes == []
