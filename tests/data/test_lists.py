"""Pictures named in CSV, TSV, JSON and JSON-lines files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gistcli.data import open_catalog
from gistcli.errors import DataError, NotFound, RecipeError
from gistcli.recipe import DataSection

Options = Callable[..., DataSection]


@pytest.fixture
def root(class_folders: Callable[..., Path], tmp_path: Path) -> Path:
    return class_folders(tmp_path / "set", a=10, b=10)


def rows(root: Path, **extra: str) -> list[dict[str, str]]:
    files = sorted(p.relative_to(root).as_posix() for p in root.glob("*/*.png"))
    return [{"image": f, "label": f[0].upper(), **extra} for f in files]


def write(path: Path, table: list[dict[str, str]]) -> Path:
    ending = path.suffix
    if ending in (".csv", ".tsv"):
        comma = "," if ending == ".csv" else "\t"
        lines = [comma.join(table[0]), *(comma.join(r.values()) for r in table)]
    elif ending == ".jsonl":
        lines = [json.dumps(row) for row in table]
    else:
        lines = [json.dumps(table)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig" if ending == ".csv" else "utf-8")
    return path


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".json", ".jsonl"])
def test_every_form_of_list_gives_the_same(ending: str, root: Path, options: Options) -> None:
    path = write(root / f"all{ending}", rows(root))
    catalog = open_catalog(options(path), base=Path())
    assert catalog.name == "all"
    assert catalog.classes == ["A", "B"]
    assert catalog.counts() == {"train": 16, "val": 2, "test": 2}
    assert {r.source for rs in catalog.splits.values() for r in rs} == {*root.glob("*/*.png")}


def test_one_object_may_map_images_to_classes(root: Path, options: Options) -> None:
    for split, part in (("train", slice(0, 20, 2)), ("val", slice(1, 20, 2))):
        table = {row["image"]: ord(row["label"]) for row in rows(root)[part]}
        (root / f"{split}.json").write_text(json.dumps(table))
    catalog = open_catalog(options(root), base=Path())
    assert catalog.classes == ["65", "66"]
    assert catalog.counts() == {"train": 10, "val": 10}


def test_a_column_may_name_the_split_and_another_the_group(root: Path, options: Options) -> None:
    table = rows(root)
    for i, row in enumerate(table):
        row.update(subset="training" if i % 10 < 7 else "Test", bird=str(i // 2))
    write(root / "all.csv", table)
    catalog = open_catalog(options(root / "all.csv", group_by="bird"), base=Path())
    assert catalog.counts() == {"train": 12, "val": 2, "test": 6}
    assert {r.group for r in catalog.splits["val"]}.isdisjoint(
        {r.group for r in catalog.splits["train"]}
    )
    assert any("2 groups (3, 8) with members in two splits" in w for w in catalog.warnings)


def test_columns_may_be_told(root: Path, options: Options) -> None:
    table = [{"x": r["image"], "species": r["label"]} for r in rows(root)]
    path = write(root / "all.csv", table)
    with pytest.raises(RecipeError, match="the image and the label") as caught:
        open_catalog(options(path), base=Path())
    assert "data.columns.image=NAME" in caught.value.hint
    columns = {"image": "x", "label": "species"}
    assert open_catalog(options(path, columns=columns), base=Path()).classes == ["A", "B"]
    with pytest.raises(RecipeError, match="no column 'specie'") as caught:
        open_catalog(options(path, columns={**columns, "label": "specie"}), base=Path())
    assert "'species'" in caught.value.hint


def test_split_lists_may_be_named(root: Path, options: Options) -> None:
    write(root / "one.csv", rows(root)[::2])
    write(root / "two.jsonl", rows(root, split="train")[1::2])
    splits = {"train": "one.csv", "test": "two.jsonl"}
    catalog = open_catalog(options(root / "one.csv", splits=splits), base=Path())
    assert catalog.counts() == {"train": 8, "val": 2, "test": 10}
    with pytest.raises(NotFound, match=r"three\.csv"):
        open_catalog(options(root / "one.csv", splits={"train": "three.csv"}), base=Path())


def test_all_bad_rows_are_named_at_once(root: Path, options: Options) -> None:
    table = rows(root)
    table[1]["image"] = "a/gone.png"
    table[2]["image"] = "http://x/y.png"
    table[3]["label"] = ""
    table[4]["image"] = "../set/a/a4.png"
    table.append({"image": "b/b1.png", "label": "A"})
    with pytest.raises(DataError) as caught:
        open_catalog(options(write(root / "all.json", table)), base=Path())
    message = str(caught.value)
    assert "2 rows (all.json 2: a/gone.png, all.json 3: http://x/y.png) whose file does" in message
    assert "1 row (all.json 4) without an image or a label" in message
    assert "1 row (all.json 5: ../set/a/a4.png) with a path that leaves" in message
    assert "1 row (b/b1.png: B, A) that contradict" in message


def test_absolute_paths_are_taken_as_they_are(
    root: Path, options: Options, class_folders: Callable[..., Path], tmp_path: Path
) -> None:
    other = class_folders(tmp_path / "other", a=3, b=3)
    table = [{**r, "image": str(other / r["image"])} for r in rows(other)]
    catalog = open_catalog(options(write(root / "all.csv", table)), base=Path(), whole=True)
    assert catalog.splits["test"][0].name == str(other / "a/a0.png")


def test_odd_line_separators_inside_a_row_do_not_break_it(
    root: Path, options: Options, noise: Callable
) -> None:
    noise(1).save(root / "a" / "x\u2028y.png")
    table = [{**r, "label": r["label"] + "\u2028"} for r in rows(root)]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in table)
    (root / "all.jsonl").write_text(lines)
    assert len(open_catalog(options(root / "all.jsonl"), base=Path()).classes) == 2
    write(root / "all.csv", table)
    assert sum(open_catalog(options(root / "all.csv"), base=Path()).counts().values()) == 21


def test_repeated_rows_count_once_with_a_warning(root: Path, options: Options) -> None:
    table = [*rows(root), *rows(root)[:2]]
    catalog = open_catalog(options(write(root / "all.csv", table)), base=Path())
    assert sum(catalog.counts().values()) == 20
    assert "2 rows (a/a0.png, a/a1.png) of train repeated" in catalog.warnings[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[{]", r"not JSON: .*line 1, column 3"),
        ("a.json", "3", "wanted a list of objects"),
        ("a.json", "[]", "no rows"),
        ("a.jsonl", '{"image": 1}\n\n{"image"}\n', "line 3 is not JSON"),
        ("a.jsonl", '{"image": 1}\n3\n', "no rows of named columns"),
        ("a.csv", "image,label\na,b,c\n", "line 2 has another number of fields"),
        ("a.csv", "image,label\n", "no rows"),
        ("a.csv", 'image,label\n"a,b\n', "cannot be read"),
        ("a.tsv", b"image\tlabel\n\xff\xfe\t1\n", "not UTF-8"),
        ("a.json", '[{"image": "x", "label": 0.5}]', "0.5 is no class"),
        ("a.csv", "image,label,split\nx.png,a,holdout\n", "'holdout'"),
    ],
)
def test_damaged_lists_are_refused_with_the_place(
    name: str, content: str | bytes, message: str, options: Options, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match=message):
        open_catalog(options(path), base=Path())


def test_two_lists_for_one_split_are_refused(root: Path, options: Options) -> None:
    for name in ("train.csv", "train.json"):
        write(root / name, rows(root))
    with pytest.raises(RecipeError, match="same split"):
        open_catalog(options(root), base=Path())
