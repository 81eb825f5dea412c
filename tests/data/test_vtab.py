"""The tasks of VTAB-1k: lists, mirrors, spellings, and what is said where they are not there."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from gistcli.data import Preprocess, expected_counts, load_split, open_catalog, vtab
from gistcli.data.vtab import TASKS, Vtab
from gistcli.errors import DataError, NotFound, RecipeError, UnknownName
from gistcli.recipe import DataSection
from tests.data.trees import (
    encoded,
    samples,
    vtab_lists,
    write_lists,
    write_pictures,
    write_tar,
)

Options = Callable[..., DataSection]
TRAIN, VAL, TEST = [0, 1, 2, 10, 0, 2], [1, 10, 1], [2, 0, 1, 10, 10]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_lists(tmp_path / "vtab-1k" / "dtd", vtab_lists(TRAIN, VAL, TEST))
    return tmp_path / "vtab-1k"


def test_the_table_has_the_published_sizes() -> None:
    groups = Counter(task.group for task in TASKS)
    assert groups == {"natural": 7, "specialized": 4, "structured": 8}
    assert sum(task.counts["test"] for task in TASKS) == 387_904
    natural = [task.classes for task in TASKS if task.group == "natural"]
    assert natural == [100, 102, 47, 102, 37, 10, 397]
    names = [n.replace("_", "") for t in TASKS for n in (t.name, *t.spellings)]
    assert len(names) == len({*names})


@pytest.mark.parametrize(
    ("spelling", "task"),
    [
        ("CIFAR-100", "cifar"),
        ("Cifar", "cifar"),
        ("oxford_pet", "oxford_iiit_pet"),
        ("flowers", "oxford_flowers102"),
        ("patchcamelyon", "patch_camelyon"),
        ("Camelyon", "patch_camelyon"),
        ("retinopathy", "diabetic_retinopathy"),
        ("dsprites-position", "dsprites_loc"),
        ("dSprites_Orientation", "dsprites_ori"),
        ("smallnorb_azimuth", "smallnorb_azi"),
        ("kitti_distance", "kitti"),
        ("clevr-distance", "clevr_dist"),
        ("wds_vtab-clevr_count_all", "clevr_count"),
    ],
)
def test_every_spelling_is_understood(spelling: str, task: str) -> None:
    assert Vtab.named(spelling).name == task


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("vtab-1k", {"source": "vtab", "subset": "DTD"}),
        ("vtab-1k/dtd", {"source": "vtab", "subset": "dtd"}),
        ("vtab-1k/dtd", {"source": "vtab"}),
        ("vtab-1k/dtd", {}),
        ("vtab-1k", {"subset": "dtd"}),
        ("vtab-1k", {}),
    ],
)
def test_a_task_is_found_by_subset_or_folder(
    path: str, keys: dict[str, Any], root: Path, options: Options
) -> None:
    catalog = open_catalog(options(path, **keys), base=root.parent)
    assert catalog.name == "VTAB-1k dtd"
    assert catalog.classes == ["0", "1", "2", "10"]
    assert {s: catalog.labels(s) for s in catalog.splits} == {
        "train": [0, 1, 2, 3, 0, 2],
        "val": [1, 3, 1],
        "test": [2, 0, 1, 3, 3],
    }
    assert catalog.splits["val"][2].name == "images/val200/000002.png"
    assert catalog.notes == []
    assert catalog.warnings == [
        "VTAB-1k dtd differs from the published set: 6 train pictures, not 800, 3 val pictures, "
        "not 200, 5 test pictures, not 1,880, 4 classes, not 47"
    ]


def test_one_of_several_tasks_has_to_be_named(root: Path, options: Options) -> None:
    write_lists(root / "svhn", vtab_lists([0, 1], [0], [1]))
    with pytest.raises(RecipeError, match=r"which set of VTAB-1k\? .* has dtd, svhn") as caught:
        open_catalog(options(root, source="vtab"), base=Path())
    assert "--set data.subset=dtd" in caught.value.hint
    assert open_catalog(options(root, subset="svhn"), base=Path()).name == "VTAB-1k svhn"
    with pytest.raises(NotFound, match="The set svhn of VTAB-1k was not found"):
        open_catalog(options(root / "dtd", source="vtab", subset="svhn"), base=Path())


def test_pictures_may_have_another_ending_than_the_list_says(
    tmp_path: Path, options: Options, small: Preprocess
) -> None:
    lists = vtab_lists([0, 1], [0], [1], ending=".jpg")
    write_lists(tmp_path / "svhn", lists, actual=lambda file: file.replace(".jpg", ".png"))
    catalog = open_catalog(options(tmp_path / "svhn"), base=Path())
    assert catalog.splits["test"][0].name == "images/test/000000.png"
    assert len(load_split(catalog, "train", small, train=True)) == 2


def test_a_class_that_only_val_has_shifts_no_ids(tmp_path: Path, options: Options) -> None:
    write_lists(tmp_path / "dtd", vtab_lists([0, 2, 5], [0, 1, 5], [0, 2, 5]))
    catalog = open_catalog(options(tmp_path / "dtd"), base=Path())
    assert catalog.classes == ["0", "1", "2", "5"]
    assert catalog.labels("train") == catalog.labels("test") == [0, 2, 3]
    assert catalog.labels("val") == [0, 1, 3]
    assert any("1 class (1) without training pictures" in w for w in catalog.warnings)


def test_include_val_trains_on_both_and_test_stays(root: Path, options: Options) -> None:
    both = open_catalog(options(root, subset="dtd", include_val=True), base=Path())
    assert both.counts() == {"train": 9, "test": 5}
    assert [both.classes[i] for i in both.labels("train")] == [str(c) for c in [*TRAIN, *VAL]]
    for name in ("train800.txt", "val200.txt"):
        (root / "dtd" / name).unlink()
    union = open_catalog(options(root, subset="dtd", include_val=True), base=Path())
    assert union.labels("train") == both.labels("train")
    with pytest.raises(NotFound, match=r"train800\.txt does not exist"):
        open_catalog(options(root, subset="dtd"), base=Path())


@pytest.mark.parametrize("copies", [True, False])
def test_a_union_that_is_none_is_named(copies: bool, tmp_path: Path, options: Options) -> None:
    lists = vtab_lists([0, 1, 1], [0], [1])
    rows = [*lists["train800.txt"], *lists["val200.txt"]]
    if copies:
        rows = list(lists["train800val200.txt"])
    home = write_lists(tmp_path / "dtd", {**lists, "train800val200.txt": rows})
    told = [w for w in open_catalog(options(home), base=Path()).warnings if "union" in w]
    assert told == []
    write_lists(home, {"train800val200.txt": [*rows[:2], rows[3]]})
    told = [w for w in open_catalog(options(home), base=Path()).warnings if "union" in w]
    what = "1 picture (images/train800/000002.png) missing"
    if copies:
        what = "other counts in 1 class (1: 1, not 2)"
    assert told == [f"train800val200.txt is not the union of train800.txt and val200.txt: {what}"]


@pytest.mark.parametrize(("form", "told"), [("JPEG", 1), ("PNG", 0)])
def test_cifar_as_jpeg_is_told(form: str, told: int, tmp_path: Path, options: Options) -> None:
    """By what the files hold, not by what they are called."""
    home = write_lists(tmp_path / "cifar", vtab_lists([0, 1], [0], [1]))
    for i, path in enumerate(home.rglob("*.png")):
        path.write_bytes(encoded(i, form))
    notes = open_catalog(options(home), base=Path()).notes
    assert len([n for n in notes if "about 70 %" in n and "about 80 %" in n]) == told
    other = tmp_path / "svhn"
    home.rename(other)
    assert open_catalog(options(other), base=Path()).notes == []


def test_all_that_is_wrong_with_the_lists_is_told_at_once(tmp_path: Path, options: Options) -> None:
    lists = vtab_lists([0, 1, 1], [0, 1], [1, 0])
    lists["val200.txt"] = [
        ("images/val200/000000.png", 0),
        ("images/val200/000000.png", 1),
        ("../../secret.png", 0),
        ("images/train800/000001.png", 0),
    ]
    home = write_lists(tmp_path / "a" / "b" / "dtd", lists)
    (home / "images/test/000001.png").unlink()
    with (home / "test.txt").open("a") as file:
        file.write("images/test/000002.png cat\n\nword\n")
    with pytest.raises(DataError) as caught:
        open_catalog(options(home), base=Path())
    message = str(caught.value)
    assert "1 row (test.txt 2: images/test/000001.png) whose file does not exist" in message
    assert "1 row (val200.txt 3: ../../secret.png) with a path that leaves the folder" in message
    assert "1 row (images/val200/000000.png: 0, 1) that contradict another" in message
    assert (
        "1 row (images/train800/000001.png: train 1, val 0) that contradict another split"
    ) in message
    assert (
        "2 rows (test.txt 3: images/test/000002.png cat, test.txt 5: word) that are not "
        "`PATH NUMBER`" in message
    )


def test_a_picture_of_two_splits_is_told(tmp_path: Path, options: Options) -> None:
    lists = vtab_lists([0, 1], [0, 1], [1, 0])
    lists["test.txt"] = [*lists["test.txt"], ("images/train800/000001.png", 1)]
    catalog = open_catalog(options(write_lists(tmp_path / "dtd", lists)), base=Path())
    assert catalog.counts() == {"train": 2, "val": 2, "test": 3}
    twin = "test: images/train800/000001.png = train: images/train800/000001.png"
    assert any(twin in w and "figures on them are too good" in w for w in catalog.warnings)


def test_paths_with_blanks_and_ids_with_zeros_are_read(tmp_path: Path, options: Options) -> None:
    lists = vtab_lists([0, 1], [0], [1])
    lists["test.txt"] = [("images/test/a b.png", "001"), ("./images/test/c.png", "0")]
    catalog = open_catalog(options(write_lists(tmp_path / "dtd", lists)), base=Path())
    assert [r.name for r in catalog.splits["test"]] == ["images/test/a b.png", "images/test/c.png"]
    assert catalog.labels("test") == [1, 0]


def test_an_empty_or_binary_list_is_refused(root: Path, options: Options) -> None:
    (root / "dtd/test.txt").write_text("\n")
    with pytest.raises(DataError, match=r"test\.txt is empty"):
        open_catalog(options(root), base=Path())
    (root / "dtd/test.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"test\.txt is not UTF-8 text \(byte 0\)"):
        open_catalog(options(root), base=Path())


def test_an_unknown_task_or_source_is_answered_with_the_nearest(
    root: Path, options: Options
) -> None:
    with pytest.raises(UnknownName, match="VTAB-1k has no set 'cifra'") as caught:
        open_catalog(options(root, source="vtab", subset="cifra"), base=Path())
    assert "Did you mean 'cifar'?" in caught.value.hint
    with pytest.raises(UnknownName, match="'vtaab' is not among the sources") as caught:
        open_catalog(options(root, source="vtaab"), base=Path())
    assert "Did you mean 'vtab'?" in caught.value.hint


@pytest.mark.parametrize("there", [True, False])
def test_missing_data_are_answered_with_layout_publication_and_flag(
    there: bool, tmp_path: Path, options: Options
) -> None:
    if there:
        (tmp_path / "vtab-1k").mkdir()
    data = options("vtab-1k", source="vtab", subset="kitti-distance")
    with pytest.raises(NotFound, match="set kitti of VTAB-1k was not found") as caught:
        open_catalog(data, base=tmp_path)
    assert ("has it not" if there else "does not exist") in caught.value.message
    hint = caught.value.hint
    assert "  vtab-1k/\n    kitti/\n      train800.txt  val200.txt  test.txt" in hint
    assert "KITTI, Geiger et al. 2013" in hint
    assert "ZhangYuanhan-AI/NOAH" in hint
    assert "--data DIR" in hint
    assert "http" not in hint


def test_a_mirror_on_the_hub_is_asked_for_as_such(
    tmp_path: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotFound, match="'someone/vtab' is no path here, and as a data set"):
        open_catalog(options("hf:someone/vtab", source="vtab", subset="dtd"), base=tmp_path)
    with pytest.raises(NotFound, match="set dtd of VTAB-1k was not found"):
        open_catalog(options("someone/vtab", source="vtab", subset="dtd"), base=tmp_path)


def test_options_that_cannot_apply_are_refused(root: Path, options: Options) -> None:
    with pytest.raises(RecipeError, match=r"no groups: data\.group_by cannot apply"):
        open_catalog(options(root, source="vtab", group_by="(x)"), base=Path())
    with pytest.raises(RecipeError, match=r"fixed splits and no columns: data\.splits cannot"):
        open_catalog(options(root, source="vtab", splits={"train": "test"}), base=Path())


def parquet(folder: Path, sizes: dict[str, int]) -> Path:
    folder.mkdir(parents=True)
    for start, (split, size) in enumerate(sizes.items()):
        rows = range(start * 1000, start * 1000 + size)
        table = datasets.Dataset.from_dict(
            {"image": [encoded(i) for i in rows], "label": [i % 3 for i in rows]}
        )
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def _small_thousand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vtab, "_SIZES", {"train": 8, "val": 2})
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.mark.usefixtures("_small_thousand")
@pytest.mark.parametrize("has_val", [True, False])
def test_a_mirror_of_full_splits_is_cut_in_its_order(
    has_val: bool, tmp_path: Path, options: Options
) -> None:
    sizes = {"train": 14, "validation": 5, "test": 4}
    if not has_val:
        del sizes["validation"]
    parquet(tmp_path / "vtab-1k" / "cifar100", sizes)
    data = options(tmp_path / "vtab-1k", source="vtab", subset="cifar")
    catalog = open_catalog(data, base=Path())
    assert catalog.counts() == {"train": 8, "val": 2, "test": 4}
    assert [r.name for r in catalog.splits["train"]] == [f"train/{i}" for i in range(8)]
    held = [f"validation/{i}" for i in (0, 1)] if has_val else ["train/8", "train/9"]
    assert [r.name for r in catalog.splits["val"]] == held
    (told,) = [w for w in catalog.warnings if "published thousand" in w]
    assert f"(14 train, {5 if has_val else 0} val): taken are the first 8 of train" in told
    assert ("2 of val." if has_val else "2 of those after them.") in told


@pytest.mark.usefixtures("_small_thousand")
def test_a_mirror_of_the_thousand_is_taken_as_it_is(tmp_path: Path, options: Options) -> None:
    home = parquet(tmp_path / "dtd", {"train": 8, "val": 2, "test": 4})
    catalog = open_catalog(options(home, source="vtab"), base=Path())
    assert catalog.counts() == {"train": 8, "val": 2, "test": 4}
    assert not any("thousand" in w for w in catalog.warnings)


@pytest.mark.usefixtures("_small_thousand")
def test_a_mirror_may_be_archives(tmp_path: Path, options: Options) -> None:
    home = tmp_path / "wds_vtab-cifar100"
    write_tar(home / "train" / "10.tar", samples([0] * 6, 4))
    write_tar(home / "train" / "2.tar", samples([1] * 6, 20))
    write_tar(home / "test" / "0.tar", samples([0, 1], 40))
    data = options(tmp_path, source="vtab", subset="cifar")
    catalog = open_catalog(data, base=Path())
    assert catalog.counts() == {"train": 8, "val": 2, "test": 2}
    assert catalog.splits["train"][0].name == "train/2.tar/s0020"  # 2 before 10
    assert catalog.labels("train") == [1] * 6 + [0] * 2


def test_raw_classes_of_a_mirror_are_not_those_of_the_task(
    tmp_path: Path, options: Options
) -> None:
    """A mirror of dSprites has 32 positions where VTAB-1k has 16 bins."""
    write_lists(tmp_path / "dsprites_loc", vtab_lists([*range(32)], [0], [1]))
    data = options(tmp_path, source="vtab", subset="dsprites_loc", classes=16)
    with pytest.raises(DataError, match=r"has 32 classes, but data\.classes is 16"):
        open_catalog(data, base=Path())


def test_every_file_is_looked_up_once(
    root: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: Counter[str] = Counter()
    stat = os.stat

    def counting(path: Any, *args: Any, **keys: Any) -> os.stat_result:
        looked[str(path)] += str(path).endswith(".png")
        return stat(path, *args, **keys)

    monkeypatch.setattr(os, "stat", counting)
    catalog = open_catalog(options(root, subset="dtd"), base=Path())
    catalog.fingerprint()
    assert sum(looked.values()) == sum(catalog.counts().values()) == 14


def test_a_run_on_vtab_is_evaluated_on_other_data(root: Path, options: Options) -> None:
    """The recipe's source holds where the layout is there, else the look of the data."""
    data = {"source": "vtab", "subset": "dtd", "classes": 47, "include_val": True}
    again = open_catalog(options(root, **data), base=Path(), whole=True)
    assert again.counts() == {"train": 6, "val": 3, "test": 5}
    write_pictures(root.parent / "own", ["0/a.png", "1/b.png"])
    other = open_catalog(options(root.parent / "own", **data), base=Path(), whole=True)
    assert other.counts() == {"test": 2}
    with pytest.raises(NotFound):
        open_catalog(options(root.parent / "own", **data), base=Path())


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"subset": "svhn"}, {"train": 800, "val": 200, "test": 26_032}),
        ({"subset": "svhn", "include_val": True}, {"train": 1000, "test": 26_032}),
        ({"subset": "kitti", "folds": 3, "fold": 0}, {"train": 666, "val": 334, "test": 711}),
        ({"subset": "kitti", "folds": 3, "fold": 2}, {"train": 667, "val": 333, "test": 711}),
        ({"subset": "svhn", "shots": 3}, None),
        ({}, None),
    ],
)
def test_sizes_are_known_without_the_data(
    keys: dict[str, Any], expected: dict[str, int] | None, options: Options
) -> None:
    assert expected_counts(options("nowhere", source="vtab", **keys)) == expected


def test_pictures_come_out_as_they_went_in(root: Path, options: Options) -> None:
    catalog = open_catalog(options(root), base=Path())
    record = catalog.splits["test"][3]
    path = root / "dtd" / record.name
    assert Image.open(io.BytesIO(record.read())).tobytes() == Image.open(path).tobytes()
    assert record.nbytes() == path.stat().st_size
