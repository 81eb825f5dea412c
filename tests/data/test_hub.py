"""Tables with an image column: parquet, arrow and saved data sets."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from gistcli.data import Preprocess, load_split, open_catalog
from gistcli.data.hub import Cell
from gistcli.errors import DataError, RecipeError
from gistcli.recipe import DataSection

Options = Callable[..., DataSection]
NAMES = ["cat", "dog"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def pngs(noise: Callable[[int], Image.Image]) -> list[bytes]:
    files = [io.BytesIO() for _ in range(30)]
    for i, file in enumerate(files):
        noise(i).save(file, "PNG")
    return [file.getvalue() for file in files]


def table(pngs: list[bytes], **columns: list) -> datasets.Dataset:
    labels = [i % 2 for i in range(len(pngs))]
    made = datasets.Dataset.from_dict({"image": pngs, "label": labels, **columns})
    made = made.cast_column("image", datasets.Image())
    return made.cast_column("label", datasets.ClassLabel(names=NAMES))


def test_a_parquet_file_is_divided_and_gives_the_pixels_that_went_in(
    pngs: list[bytes], options: Options, tmp_path: Path, small: Preprocess
) -> None:
    table(pngs).to_parquet(tmp_path / "pets.parquet")
    catalog = open_catalog(options("pets.parquet"), base=tmp_path)
    assert catalog.name == "pets"
    assert catalog.classes == NAMES
    assert catalog.counts() == {"train": 22, "val": 4, "test": 4}
    record = catalog.splits["test"][0]
    row = int(record.name.removeprefix("train/"))
    assert record.label == NAMES[row % 2]
    assert record.read() == pngs[row]
    assert record.nbytes() == len(pngs[row])
    resident, streamed = (
        load_split(catalog, "train", small, train=True, budget_bytes=b) for b in (None, 0)
    )
    both = [next(s.batches(22, seed=3)) for s in (resident, streamed)]
    assert torch.equal(both[0]["pixels"], both[1]["pixels"])


def test_a_folder_of_parquet_files_has_its_splits(
    pngs: list[bytes], options: Options, tmp_path: Path
) -> None:
    (tmp_path / "pets" / "data").mkdir(parents=True)
    table(pngs[:20]).to_parquet(tmp_path / "pets/data/train-00000-of-00001.parquet")
    table(pngs[19:]).to_parquet(tmp_path / "pets/data/test-00000-of-00001.parquet")
    catalog = open_catalog(options("pets"), base=tmp_path)
    assert catalog.counts() == {"train": 18, "val": 2, "test": 11}
    assert "test: test/0 = " in catalog.warnings[0]  # row 19 is in both


def test_a_saved_data_set_may_have_splits_of_any_name(
    pngs: list[bytes], options: Options, tmp_path: Path
) -> None:
    both = datasets.DatasetDict(early=table(pngs[:20]), late=table(pngs[20:]))
    both.save_to_disk(tmp_path / "saved")
    with pytest.raises(RecipeError, match=r"splits is which\? It has early, late"):
        open_catalog(options("saved"), base=tmp_path)
    splits = {"train": "early", "val": "late"}
    catalog = open_catalog(options("saved", splits=splits), base=tmp_path)
    assert catalog.counts() == {"train": 20, "val": 10}
    with pytest.raises(RecipeError, match="no split 'lat'") as caught:
        open_catalog(options("saved", splits={"train": "early", "val": "lat"}), base=tmp_path)
    assert "'late'" in caught.value.hint


def test_splits_may_be_files_and_plain_binary_columns_are_read(
    pngs: list[bytes], options: Options, tmp_path: Path
) -> None:
    for name, part in (("a", slice(0, 20)), ("b", slice(20, 30))):
        labels = ["x" if i % 2 else "y" for i in range(len(pngs[part]))]
        plain = datasets.Dataset.from_dict({"img": pngs[part], "kind": labels})
        plain.to_parquet(tmp_path / f"{name}.parquet")
    data = options(
        "a.parquet",
        splits={"train": "a.parquet", "test": "b.parquet"},
        columns={"label": "kind"},
    )
    catalog = open_catalog(data, base=tmp_path)
    assert catalog.classes == ["x", "y"]
    assert catalog.counts() == {"train": 18, "val": 2, "test": 10}
    assert catalog.splits["test"][3].read() == pngs[23]


def test_groups_are_a_column(pngs: list[bytes], options: Options, tmp_path: Path) -> None:
    table(pngs, scene=[i // 3 for i in range(30)]).to_parquet(tmp_path / "x.parquet")
    catalog = open_catalog(options("x.parquet", group_by="scene"), base=tmp_path)
    groups = [{r.group for r in part} for part in catalog.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 10


def test_a_column_may_name_the_split(pngs: list[bytes], options: Options, tmp_path: Path) -> None:
    splits = ["training" if i % 3 else "val" for i in range(30)]
    table(pngs, split=splits).to_parquet(tmp_path / "x.parquet")
    catalog = open_catalog(options("x.parquet"), base=tmp_path)
    assert catalog.counts() == {"train": 20, "val": 10}


def test_a_split_without_labels_is_left_out_and_a_gap_is_an_error(
    pngs: list[bytes], options: Options, tmp_path: Path
) -> None:
    train, bare, gap = (table(pngs[k : k + 10]).to_dict() for k in (0, 10, 20))
    bare["label"] = [-1] * 10
    gap["label"][3] = None
    features = table(pngs).features
    parts = {
        name: datasets.Dataset.from_dict(values, features=features)
        for name, values in (("train", train), ("test", bare), ("validation", gap))
    }
    datasets.DatasetDict(train=parts["train"], test=parts["test"]).save_to_disk(tmp_path / "ok")
    catalog = open_catalog(options("ok"), base=tmp_path)
    assert list(catalog.splits) == ["train", "val", "test"]
    assert sum(catalog.counts().values()) == 10
    assert any("split test of" in w and "left out" in w for w in catalog.warnings)
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "bad")
    with pytest.raises(DataError, match=r"1 row \(validation/3\) without a label"):
        open_catalog(options("bad"), base=tmp_path)


def test_damaged_and_foreign_tables_are_refused(
    pngs: list[bytes], options: Options, tmp_path: Path
) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"x\.parquet cannot be read"):
        open_catalog(options("x.parquet"), base=tmp_path)
    words = datasets.Dataset.from_dict({"image": ["a", "b"], "label": [0, 1]})
    words.to_parquet(tmp_path / "words.parquet")
    with pytest.raises(RecipeError, match="holds string, not pictures"):
        open_catalog(options("words.parquet"), base=tmp_path)
    table([*pngs[:9], None]).to_parquet(tmp_path / "hole.parquet")
    with pytest.raises(DataError, match=r"1 row \(train/9\) without a picture"):
        open_catalog(options("hole.parquet"), base=tmp_path)


def test_a_row_may_point_to_a_file(pngs: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(pngs[0])
    made = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")]})
    made = made.cast_column("image", datasets.Image(decode=False))
    assert Cell(made, 0, "image", 0).read() == pngs[0]
