"""The page over the sheets: escaped, whole, the same again, and gentle with what is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gistcli.errors import Refused, StorageError
from gistcli.explain.captions import NAMED, Shown, clusters_part, tokens_part
from gistcli.explain.gallery import NAME, Part, require_own_page, write_gallery
from gistcli.explain.heatmap import sheet_paths
from tests.explain.pages import Page

HOSTILE = [
    "<script>alert(1)</script>.png",
    "a \"quoted\" & 'single' one.jpg",
    "holiday #1 50%.jpg",
    "größe 猫 --><!-- tokens -->.png",
    "plain.jpg",
]
SHOWN = Shown("runs/<b>&amp;", 'model "x"', "gift", ["<img src=x onerror=alert(1)>", "b & c"])


def draw(paths: list[Path]) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20)).save(path)


def clusters(output: Path, names: list[str], shown: Shown = SHOWN) -> Part:
    sheets = sheet_paths(names, output)
    draw([*sheets, output / "overview.png"])
    pick = {"site": 2, "layer": 1, "cluster": 3, "sign": -1, "score": 0.5}
    entries = [
        {
            "image": n,
            "sheet": str(s),
            "class": SHOWN.classes[0],
            "probability": 0.5,
            "picks": [pick],
        }
        for n, s in zip(names, sheets, strict=True)
    ]
    value = {"images": entries, "overview": [str(output / "overview.png")]}
    return clusters_part(value, shown)


def tokens(output: Path, names: list[str], apart: list[float] | None) -> Part:
    sheets = sheet_paths(names, output, "-tokens")
    draw(sheets)
    both = apart is not None
    share = {"cls": [0.5, 0.75], **({"gist": [0.25, 0.5]} if both else {})}
    overlap = [0.5, 0.7] if both else None
    entries: list[dict[str, Any]] = []
    for i, (name, sheet) in enumerate(zip(names, sheets, strict=True)):
        entry = {"image": name, "sheet": str(sheet), "class": "b & c", "probability": 0.5}
        if both:
            other = "b & c" if i else SHOWN.classes[0]
            entry |= {"gist_class": other, "gist_probability": 0.25}
        jeffreys = apart[i] if apart else None
        entries.append({**entry, "jeffreys": jeffreys, "overlap": overlap, "patch_share": share})
    value = {
        "tokens": list(share), "layers": [1, 3], "temperature": 2.0 if both else None,
        "jeffreys": sum(apart) / len(apart) if apart else None, "overlap": overlap,
        "overlap_chance": [0.125, 0.25] if both else None, "same_class": 0.75 if both else None,
        "patch_share": share, "images": entries, "overview": [], "notes": [] if both else ["alone"],
    }  # fmt: skip
    return tokens_part(value, SHOWN, heads=False)


def test_names_of_strangers_are_text_and_their_links_are_quoted(tmp_path: Path) -> None:
    page = Page(write_gallery(clusters(tmp_path, HOSTILE), tmp_path))
    assert page.tags.isdisjoint({"script", "iframe", "link"})
    assert page.source.count("<img") == 1 + len(HOSTILE)
    for words in (*HOSTILE, *SHOWN.classes, SHOWN.run, SHOWN.model):
        assert words in page.text
    assert [p.name for p in page.pictures[1:]] == [p.name for p in sheet_paths(HOSTILE, tmp_path)]
    assert "holiday%20_1%2050_.png" in page.source
    assert "gr%C3%B6%C3%9Fe" in page.source


def test_a_link_of_any_name_leads_to_the_file(tmp_path: Path) -> None:
    sheet = tmp_path / "a b #1 100% ü:?&'.png"
    draw([sheet])
    entry = {"image": "x", "sheet": str(sheet), "class": "c", "probability": 1.0, "picks": []}
    page = Page(write_gallery(clusters_part({"images": [entry], "overview": []}, SHOWN), tmp_path))
    assert page.pictures == [sheet]


def test_a_file_name_that_is_no_text_is_shown_all_the_same(tmp_path: Path) -> None:
    name = os.fsdecode(b"bad\xff.png")
    page = Page(write_gallery(clusters(tmp_path, [name]), tmp_path))
    assert "bad?.png" in page.text


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    write_gallery(clusters(tmp_path, HOSTILE), tmp_path)
    source = write_gallery(tokens(tmp_path, HOSTILE[:2], [1.0, 2.0]), tmp_path).read_text()
    for words in ("http:", "https:", "//", "url(", "@import", "<script"):
        assert words not in source.replace("&lt;script", "")
    assert "prefers-color-scheme: dark" in source
    assert "@COLOURS@" not in source
    assert source.startswith("<!doctype html>\n")


def test_both_kinds_of_maps_of_a_folder_are_on_one_page_whichever_came_first(
    tmp_path: Path,
) -> None:
    parts = [clusters(tmp_path, HOSTILE), tokens(tmp_path, HOSTILE, [1.0, 5.0, 2.0, 0.0, 3.0])]
    path = write_gallery(parts[0], tmp_path)
    alone = path.read_bytes()
    assert "<nav>" not in alone.decode()
    write_gallery(parts[1], tmp_path)
    both = path.read_bytes()
    page = Page(path)
    assert len(page.pictures) == 1 + 2 * len(HOSTILE)
    assert [p for p in page.places if "-" not in p] == ["clusters", "tokens"]
    write_gallery(parts[0], tmp_path)
    assert path.read_bytes() == both
    path.unlink()
    write_gallery(parts[1], tmp_path)
    write_gallery(parts[0], tmp_path)
    assert path.read_bytes() == both
    sheet_paths(HOSTILE, tmp_path, "-tokens")[3].unlink()
    write_gallery(parts[0], tmp_path)
    assert path.read_bytes() == alone


def test_images_on_which_the_tokens_differ_most_come_first_and_all_are_listed_as_given(
    tmp_path: Path,
) -> None:
    names = ["a.png", "b.png", "c.png", "d.png"]
    page = Page(write_gallery(tokens(tmp_path, names, [1.0, 5.0, 1.0, 2.0]), tmp_path))
    assert page.places == ["tokens", "tokens-2", "tokens-4", "tokens-1", "tokens-3"]
    assert [p.name[0] for p in page.pictures] == ["b", "d", "a", "c"]
    folded = page.text.partition("all images in the order given")[2].splitlines()
    assert [word for word in folded if word in names] == [
        *names,
        "b.png",
        "d.png",
        "a.png",
        "c.png",
    ]
    assert page.text.count("another class") == 2  # of a.png, in the list and on its card
    for words in ("75.0% of images", "at temperature 2)", "b & c (25.0%)", "largest divergence"):
        assert words in page.text
    # means over layers of an image, and the figures of all by layer
    lines = page.text.splitlines()
    assert lines[lines.index("mean overlap with another image") + 1] == "0.19"
    at = lines.index("by layer, mean of 4 images")
    assert lines[at + 1 : at + 11] == [
        "layer", "CLS on patches", "GIST on patches", "overlap", "with another image",
        "1", "0.50", "0.25", "0.50", "0.12",
    ]  # fmt: skip


def test_one_token_or_one_image_has_no_order_of_its_own(tmp_path: Path) -> None:
    alone = Page(write_gallery(tokens(tmp_path / "a", ["b.png", "a.png"], None), tmp_path / "a"))
    assert alone.places == ["tokens", "tokens-1", "tokens-2"]
    assert "Attention of CLS to the picture" in alone.text
    assert "alone" in alone.text.splitlines()
    for words in ("Jeffreys", "overlap", "Overlap", "order given"):
        assert words not in alone.text
    single = Page(write_gallery(tokens(tmp_path / "b", ["b.png"], [1.0]), tmp_path / "b"))
    assert "Jeffreys" in single.text
    assert "order given" not in single.text


def test_of_many_classes_the_first_are_named(tmp_path: Path) -> None:
    shown = Shown("r", "m", "gift", [f"class{i}" for i in range(NAMED + 3)])
    page = Page(write_gallery(clusters(tmp_path, ["a.png"], shown), tmp_path))
    assert f"1 image, seen by m tuned with gift on {NAMED + 3} classes" in page.text
    assert f"class{NAMED - 1} and 3 more. Run: r" in page.text
    assert f"class{NAMED}" not in page.text


def test_a_page_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    require_own_page(tmp_path / "new")
    require_own_page(tmp_path)
    write_gallery(clusters(tmp_path, ["a.png"]), tmp_path)
    require_own_page(tmp_path)
    (tmp_path / NAME).write_bytes(b"<html>my \xff site</html>")
    with pytest.raises(Refused, match="not written by `gist visualize`"):
        require_own_page(tmp_path)
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).mkdir()
    with pytest.raises(Refused, match=NAME):
        require_own_page(tmp_path)


def test_a_page_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gallery(clusters(tmp_path, ["a.png"]), tmp_path)
    before = path.read_bytes()
    part = clusters(tmp_path, ["a.png", "b.png"])

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        write_gallery(part, tmp_path)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*"))
