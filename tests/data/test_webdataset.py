"""Archives: splits by name, samples by key, nothing extracted, nothing damaged let through."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from gistcli.data import Preprocess, load_split, open_catalog
from gistcli.errors import DataError, RecipeError
from gistcli.recipe import DataSection
from tests.data.trees import encoded, samples, write_tar

Options = Callable[..., DataSection]


@pytest.mark.parametrize(
    "names",
    [
        ("train-000.tar", "train-001.tar", "test-000.tar"),
        ("train/0.tar", "train/1.tar", "test/0.tar"),
        ("pets-train-00000-of-00002.tar", "pets-train-00001-of-00002.tar", "pets-test-0.tar"),
    ],
)
def test_splits_are_the_names_of_folders_or_files(
    names: tuple[str, ...], tmp_path: Path, options: Options
) -> None:
    labels = [["b", "a"] * 10, ["a", "b"] * 10, ["a", "b"]]
    for i, (name, part) in enumerate(zip(names, labels, strict=True)):
        write_tar(tmp_path / name, samples(part, 100 * i))
    (tmp_path / "classnames.txt").write_text("a\nb\n")
    catalog = open_catalog(options(tmp_path), base=Path())
    assert catalog.counts() == {"train": 36, "val": 4, "test": 2}
    assert catalog.classes == ["a", "b"]
    record = catalog.splits["test"][0]
    assert record.name == f"{names[2]}/s0200"
    assert record.read() == encoded(200)
    assert record.nbytes() == len(encoded(200))
    assert [*tmp_path.rglob("*.png")] == []  # nothing was extracted


def test_pixels_are_those_that_went_in(tmp_path: Path, options: Options, small: Preprocess) -> None:
    shards, folders = tmp_path / "shards", tmp_path / "folders"
    for split, start in (("train", 0), ("val", 9)):
        members = samples([0, 1, 2], start)
        write_tar(shards / f"{split}-0.tar", members)
        for name in (n for n in members if n.endswith("png")):
            place = folders / split / members[name.replace("png", "cls")].decode()
            place.mkdir(parents=True)
            (place / name).write_bytes(members[name])
    catalogs = [open_catalog(options(p), base=Path()) for p in (shards, folders)]
    inside, outside = (
        next(load_split(c, "train", small, train=False).batches(3, seed=None)) for c in catalogs
    )
    assert torch.equal(inside["pixels"], outside["pixels"])
    assert torch.equal(inside["labels"], outside["labels"])


def test_classes_may_stand_in_json_and_pictures_be_webp(tmp_path: Path, options: Options) -> None:
    members: dict[str, bytes] = {}
    for i, value in enumerate([{"label": 3, "width": 12}, 4, {"cls": "5"}, {"class": 3}]):
        members[f"./in/x{i}.webp"] = encoded(i, "WEBP")
        members[f"./in/x{i}.json"] = json.dumps(value).encode()
    members["in/README"] = b"other members are passed over"
    write_tar(tmp_path / "train-0.tar", members)
    catalog = open_catalog(options(tmp_path), base=Path(), whole=True)
    assert [r.label for r in catalog.splits["test"]] == ["3", "4", "5", "3"]
    assert catalog.splits["test"][1].name == "train-0.tar/in/x1"
    with Image.open(io.BytesIO(catalog.splits["test"][0].read())) as image:
        assert (image.format, image.size) == ("WEBP", (12, 10))


def test_one_archive_is_divided_and_splits_may_be_told(tmp_path: Path, options: Options) -> None:
    for name, start in (("early-0", 0), ("late-0", 50)):
        write_tar(tmp_path / "two" / f"{name}.tar", samples([0, 1] * 10, start))
    one = open_catalog(options(tmp_path / "two/early-0.tar"), base=Path())
    assert one.counts() == {"train": 16, "val": 2, "test": 2}
    with pytest.raises(RecipeError, match=r"splits is which\? It has early, late"):
        open_catalog(options(tmp_path / "two"), base=Path())
    splits = {"train": "early", "val": "late"}
    catalog = open_catalog(options(tmp_path / "two", splits=splits), base=Path())
    assert catalog.counts() == {"train": 20, "val": 20}
    with pytest.raises(RecipeError, match="no split 'lat'"):
        open_catalog(options(tmp_path / "two", splits={"train": "lat"}), base=Path())


def test_folders_beside_archives_are_no_archives(
    tmp_path: Path, options: Options, class_folders: Callable[..., Path]
) -> None:
    class_folders(tmp_path, cat=3, dog=3)
    write_tar(tmp_path / "cat.tar", samples([0]))
    assert open_catalog(options(tmp_path), base=Path()).classes == ["cat", "dog"]


def test_a_test_set_without_classes_is_left_out(tmp_path: Path, options: Options) -> None:
    write_tar(tmp_path / "train-0.tar", samples([0, 1] * 10))
    bare = {n: c for n, c in samples([0, 1], 50).items() if n.endswith("png")}
    write_tar(tmp_path / "test-0.tar", bare)
    catalog = open_catalog(options(tmp_path), base=Path())
    assert catalog.counts() == {"train": 16, "val": 2, "test": 2}
    assert any("1 archive" in w and "without classes: left out" in w for w in catalog.warnings)


def test_incomplete_samples_are_all_named(tmp_path: Path, options: Options) -> None:
    members = samples([0, 1, 2])
    del members["s0001.cls"], members["s0002.png"]
    write_tar(tmp_path / "train-0.tar", members)
    with pytest.raises(DataError, match="2 incomplete samples") as caught:
        open_catalog(options(tmp_path), base=Path())
    assert "train-0.tar/s0002: no picture" in str(caught.value)
    assert "train-0.tar/s0001: no class" in str(caught.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path, options: Options) -> None:
    path = write_tar(tmp_path / "train-0.tar", samples([0, 1]))
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("s0009.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DataError, match=r"train-0\.tar: s0009\.png is a link or a device"):
        open_catalog(options(tmp_path), base=Path())


@pytest.mark.parametrize("keep", [0, 100, 700, 1024, 1536, 3000, 4096])
def test_half_an_archive_is_refused_wherever_it_breaks_off(
    keep: int, tmp_path: Path, options: Options
) -> None:
    path = write_tar(tmp_path / "train-0.tar", samples([0, 1, 0, 1]))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"train-0\.tar is damaged"):
        open_catalog(options(tmp_path), base=Path())


def test_other_damage_is_refused(tmp_path: Path, options: Options) -> None:
    path = write_tar(tmp_path / "train-0.tar", samples([0, 1]))
    content = path.read_bytes()
    path.write_bytes(content[:1024] + b"\xff" * 512 + content[1536:])
    with pytest.raises(DataError, match="damaged: it breaks off at byte 1,024"):
        open_catalog(options(tmp_path), base=Path())
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("x.png"))
    with pytest.raises(DataError, match="damaged or no plain tar archive"):
        open_catalog(options(tmp_path), base=Path())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s0000.json", b"{", r"s0000\.json is no class"),
        ("s0000.cls", b"\xff", r"s0000\.cls is no class"),
        ("s0000.json", b"0.5", r"0\.5 is no class"),
        ("s0000.jpg", b"x", r"s0000\.jpg is a second picture of its sample"),
    ],
)
def test_odd_members_are_named(
    name: str, content: bytes, message: str, tmp_path: Path, options: Options
) -> None:
    write_tar(tmp_path / "train-0.tar", samples([0, 1]) | {name: content})
    with pytest.raises(DataError, match=message):
        open_catalog(options(tmp_path), base=Path())


def test_folders_inside_an_archive_are_no_members(tmp_path: Path, options: Options) -> None:
    path = write_tar(tmp_path / "train-0.tar", samples([0, 1]))
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("empty")
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
    assert open_catalog(options(tmp_path), base=Path(), whole=True).counts() == {"test": 2}


def test_options_that_cannot_apply_are_refused(tmp_path: Path, options: Options) -> None:
    write_tar(tmp_path / "train-0.tar", samples([0, 1]))
    with pytest.raises(RecipeError, match=r"neither columns nor groups: data\.group_by cannot"):
        open_catalog(options(tmp_path, group_by="(x)"), base=Path())
    with pytest.raises(RecipeError, match=r"source webdataset has no sets .*: data\.subset cannot"):
        open_catalog(options(tmp_path, subset="x"), base=Path())
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no archives"):
        open_catalog(options(tmp_path / "none", source="webdataset"), base=Path())
