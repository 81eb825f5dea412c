"""The fine-grained sets: ids with gaps, three roots, and splits that contradict one another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gistcli.data import expected_counts, open_catalog
from gistcli.data.fgvc import TASKS
from gistcli.errors import DataError, NotFound, RecipeError
from gistcli.recipe import DataSection
from tests.data.trees import write_json_splits, write_pictures

Options = Callable[..., DataSection]


def splits(*ids: int | str) -> dict[str, dict[str, int | str]]:
    """Two pictures of each class in train, one in val and in test."""
    return {
        split: {f"{split}/{i}{c}.jpg": c for c in ids for i in range(n)}
        for split, n in (("train", 2), ("val", 1), ("test", 1))
    }


def test_the_table_has_the_published_sizes() -> None:
    assert {t.name: (t.classes, *t.counts.values()) for t in TASKS} == {
        "cub": (200, 5_394, 600, 5_794),
        "nabirds": (555, 21_536, 2_393, 24_633),
        "flowers": (102, 1_020, 1_020, 6_149),
        "dogs": (120, 10_800, 1_200, 8_580),
        "cars": (196, 7_329, 815, 8_041),
    }


@pytest.mark.parametrize(
    ("folder", "subset", "pictures"),
    [
        ("CUB_200_2011", "cub", "images"),
        ("nabirds", "NABirds", "images"),
        ("OxfordFlower", "flowers", ""),
        ("Stanford-dogs", "dogs", "Images"),
        ("stanford_cars", "Cars", ""),
        ("stanford-cars", "Cars", "images"),
    ],
)
def test_each_set_has_its_folder_of_pictures(
    folder: str, subset: str, pictures: str, tmp_path: Path, options: Options
) -> None:
    write_json_splits(tmp_path / folder, pictures, **splits("b", "a"))
    data = options(tmp_path, source="fgvc", subset=subset)
    catalog = open_catalog(data, base=Path())
    assert catalog.counts() == {"train": 4, "val": 2, "test": 2}
    assert catalog.classes == ["a", "b"]
    assert catalog.labels("train") == [1, 1, 0, 0]
    inside = f"{pictures}/" if pictures else ""
    assert catalog.splits["val"][0].name == f"{inside}val/0b.jpg"
    assert any("differs from the published set" in w for w in catalog.warnings)
    assert open_catalog(options(tmp_path / folder, source="fgvc"), base=Path()) == catalog


def test_a_val_that_lacks_classes_shifts_no_labels(tmp_path: Path, options: Options) -> None:
    """NABirds' val has no picture of two classes; numbering each split by itself shifts 60 %."""
    ids = [295, 627, 975, 1010]
    tables = splits(*ids)
    tables["val"] = {f"val/{c}.jpg": c for c in (295, 1010)}
    home = write_json_splits(tmp_path / "nabirds", "images", **tables)
    catalog = open_catalog(options(home), base=Path())
    assert catalog.classes == ["295", "627", "975", "1010"]
    assert catalog.labels("val") == [0, 3]
    assert catalog.labels("test") == [0, 1, 2, 3]
    by_itself = [sorted({*tables["val"].values()}).index(c) for c in tables["val"].values()]
    assert by_itself == [0, 1]  # what the published loaders do


def test_auto_knows_the_layout_where_pictures_lie_below(tmp_path: Path, options: Options) -> None:
    below = write_json_splits(tmp_path / "a", "images", **splits(1, 2))
    beside = write_json_splits(tmp_path / "b", "", **splits(1, 2))
    assert open_catalog(options(below), base=Path()).name == "FGVC a"
    catalog = open_catalog(options(beside), base=Path())
    assert catalog.name == "b"  # a list, as anybody writes one
    assert catalog.counts() == {"train": 4, "val": 2, "test": 2}


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path, options: Options) -> None:
    tables = splits(1, 2)
    home = write_json_splits(tmp_path / "fgvc" / "cub", "images", **tables)
    tables["test"] |= {"train/01.jpg": 1, "../../../secret.jpg": 2, "gone.jpg": 2, "odd.jpg": 0.5}  # type: ignore[dict-item]
    text = json.dumps(tables["test"])
    (home / "test.json").write_text(text[:-1] + ', "test/01.jpg": 2}')
    with pytest.raises(DataError) as caught:
        open_catalog(options(home, source="fgvc"), base=Path())
    message = str(caught.value)
    assert "1 row (images/train/01.jpg: train, test) in two splits" in message
    assert "1 row (test.json: ../../../secret.jpg) with a path that leaves" in message
    assert "1 row (test.json: gone.jpg) whose file does not exist" in message
    assert "1 row (test.json: odd.jpg) without a class id" in message
    assert "1 row (images/test/01.jpg: 1, 2) that contradict another" in message


def test_a_repeated_entry_counts_once_with_a_warning(tmp_path: Path, options: Options) -> None:
    home = write_json_splits(tmp_path / "cub", "images", **splits(1, 2))
    text = (home / "test.json").read_text()
    (home / "test.json").write_text(text[:-1] + ', "test/01.jpg": 1}')
    catalog = open_catalog(options(home), base=Path())
    assert catalog.counts()["test"] == 2
    assert any("1 row (images/test/01.jpg) of test repeated" in w for w in catalog.warnings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"val\.json is not JSON: .* \(line 1, column 2\)"),
        ("[1]", r"val\.json is no object \{path: class id\}"),
        ("{}", r"val\.json is no object"),
        ("\xff", r"val\.json is not UTF-8"),
    ],
)
def test_damaged_splits_are_refused(
    content: str, message: str, tmp_path: Path, options: Options
) -> None:
    home = write_json_splits(tmp_path / "cub", "images", **splits(1, 2))
    (home / "val.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        open_catalog(options(home), base=Path())


def test_a_set_that_is_not_there_is_answered_with_its_layout(
    tmp_path: Path, options: Options
) -> None:
    write_pictures(tmp_path / "fgvc" / "dogs", ["Images/a.jpg"])
    with pytest.raises(NotFound, match=r"set dogs of FGVC was not found: .* has it not") as caught:
        open_catalog(options("fgvc", source="fgvc", subset="dogs"), base=tmp_path)
    hint = caught.value.hint
    assert '    dogs/\n      train.json  val.json  test.json   each {"PATH": ID, ...}' in hint
    assert "      Images/PATH ..." in hint
    assert "Khosla" in hint
    assert "KMnP/vpt" in hint
    assert "--data DIR" in hint
    with pytest.raises(NotFound, match="FGVC was not found") as caught:
        open_catalog(options("elsewhere", source="fgvc"), base=tmp_path)
    assert "nabirds, flowers, dogs, cars" in caught.value.hint


def test_options_that_cannot_apply_are_refused(tmp_path: Path, options: Options) -> None:
    home = write_json_splits(tmp_path / "cub", "images", **splits(1, 2))
    with pytest.raises(RecipeError, match=r"fixed splits .*: data\.columns cannot apply"):
        open_catalog(options(home, columns={"image": "x"}), base=Path())


def test_sizes_are_known_without_the_data(options: Options) -> None:
    data = options("nowhere", source="fgvc", subset="cub", include_val=True)
    assert expected_counts(data) == {"train": 5_994, "test": 5_794}
