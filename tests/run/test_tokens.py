"""`gist visualize --tokens` on real runs, with and without a gist token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import gistcli
from gistcli import run
from gistcli.cli import invoke
from gistcli.data import load_images
from gistcli.errors import Refused
from gistcli.methods.interaction import bkld
from gistcli.recipe import Recipe
from gistcli.reporting import Reporter
from tests.explain.pages import Page

Make = Callable[..., Recipe]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"digit-{i}.png" for i in range(3)]
    for path, image in zip(paths, load_digits().images, strict=False):
        Image.fromarray((image * 15.9).astype(np.uint8)).resize((64, 64)).save(path)
    return paths


@pytest.fixture(scope="module")
def with_gist(recipe: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of GIFT with a gist token of two vectors, and a temperature of its own."""
    path = tmp_path_factory.mktemp("runs") / "gist"
    gist = {"length": 2, "temperature": 2.0}
    run.finetune(recipe(train__max_steps=30, gist=gist), output=path)
    return path


def test_a_run_with_gist_shows_both_tokens_and_how_far_they_agree(
    with_gist: Path, pictures: list[Path], tmp_path: Path
) -> None:
    found = run.visualize_tokens(with_gist, pictures, tmp_path, layers=[1, 3], device="cpu")
    assert found["tokens"] == ["cls", "gist"]
    assert found["layers"] == [1, 3]
    assert found["temperature"] == 2
    assert found["notes"] == []
    model = gistcli.load(with_gist)
    with torch.no_grad():
        features = model.tuner({"pixels": load_images(pictures, model.preprocess)[0]})
        g_BK = model.backbone.read_out(features, "gist")
    z_BK = features.logits
    assert features.layout.lengths["gist"] == 2
    for i, entry in enumerate(found["images"]):
        assert entry["image"] == str(pictures[i])
        assert entry["class"] == model.classes[int(z_BK[i].argmax())]
        assert entry["gist_class"] == model.classes[int(g_BK[i].argmax())]
        expected = float(bkld(z_BK[i : i + 1], g_BK[i : i + 1], 2.0))
        assert entry["jeffreys"] == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert Path(entry["sheet"]).is_file()
        assert all(0 < value < 1 for value in entry["overlap"])
    assert found["jeffreys"] == pytest.approx(np.mean([e["jeffreys"] for e in found["images"]]))
    with np.load(found["maps"], allow_pickle=False) as raw:
        assert raw["maps"].shape == (3, 2, 2, found["heads"], 8, 8)
        assert found["overlap"] == pytest.approx(raw["overlap"].mean(axis=0).tolist())
        share = raw["maps"].mean(axis=3).sum(axis=(-2, -1)).mean(axis=0)
    assert all(0 < value < 1 for value in found["overlap_chance"])
    assert found["patch_share"]["gist"] == pytest.approx(share[1].tolist(), rel=1e-5)
    assert [Path(p).name for p in found["overview"]] == ["overview-tokens.png"]


class Heard(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_run_without_gist_shows_cls_alone_and_says_so(
    finished: Path, pictures: list[Path], tmp_path: Path
) -> None:
    heard = Heard()
    found = run.visualize_tokens(finished, pictures[:1], tmp_path, device="cpu", reporter=heard)
    assert found["tokens"] == ["cls"]
    assert found["notes"] == heard.lines
    assert "no gist token: CLS alone" in heard.lines[0]
    assert found["overlap"] is found["jeffreys"] is found["same_class"] is None
    assert found["overlap_chance"] is None
    assert "gist_class" not in found["images"][0]
    assert len(found["patch_share"]["cls"]) == len(found["layers"]) == 4


def test_cluster_maps_and_tokens_of_the_same_pictures_lie_in_one_folder(
    finished: Path, pictures: list[Path], tmp_path: Path
) -> None:
    clusters = run.visualize(finished, pictures, tmp_path, device="cpu")
    tokens = run.visualize_tokens(finished, pictures, tmp_path, device="cpu")
    files = [f for v in (clusters, tokens) for f in (*v["sheets"], *v["overview"], v["maps"])]
    assert len(set(files)) == len(files) == 2 * (3 + 1 + 1)
    assert all(Path(f).is_file() for f in files)
    assert clusters["gallery"] == tokens["gallery"] == str(tmp_path / "index.html")
    shown = {str(p) for p in Page(tmp_path / "index.html").pictures}
    assert shown == {f for f in files if f.endswith(".png")}


def test_the_page_of_pictures_with_odd_names_tells_what_the_json_tells(
    with_gist: Path, pictures: list[Path], tmp_path: Path
) -> None:
    names = ["a #1 100%.png", "ü 猫.png", "<script>x&y.png"]
    odd = [Path(shutil.copy(p, tmp_path / n)) for p, n in zip(pictures, names, strict=True)]
    found = run.visualize_tokens(with_gist, odd, tmp_path / "maps", device="cpu")
    page = Page(Path(found["gallery"]))
    assert "script" not in page.tags
    for entry in found["images"]:
        assert entry["image"] in page.text
        assert f"{entry['class']} ({entry['probability']:.1%})" in page.text
        assert f"{entry['jeffreys']:.3g}" in page.text
    assert "gist_vit_nano tuned with gift + gist on 10 classes: 0, 1" in page.text
    apart = {entry["sheet"]: entry["jeffreys"] for entry in found["images"]}
    order = [apart[str(p)] for p in page.pictures[1:]]
    assert order == sorted(order, reverse=True)
    before = Path(found["gallery"]).read_bytes()
    run.visualize_tokens(with_gist, odd, tmp_path / "maps", device="cpu")
    assert Path(found["gallery"]).read_bytes() == before


def test_a_picture_that_a_sheet_would_replace_is_left_alone(
    with_gist: Path, pictures: list[Path], tmp_path: Path
) -> None:
    copies = [Path(shutil.copy(p, tmp_path)) for p in pictures]
    before = copies[0].read_bytes()
    with pytest.raises(Refused, match=r"replace .*digit-0\.png"):
        run.visualize(with_gist, copies, tmp_path, device="cpu")
    assert copies[0].read_bytes() == before
    found = run.visualize_tokens(with_gist, copies[:1], tmp_path, device="cpu")
    assert copies[0].read_bytes() == before
    (sheet,) = found["sheets"]
    with pytest.raises(Refused, match="replace"):
        run.visualize_tokens(with_gist, [copies[0], Path(sheet)], tmp_path, device="cpu")
    overview = Path(shutil.copy(pictures[0], tmp_path / "overview.png"))
    with pytest.raises(Refused, match=r"replace .*overview\.png"):
        run.visualize(with_gist, [overview, pictures[1]], tmp_path, device="cpu")


def test_a_page_of_somebody_else_is_kept_and_nothing_is_drawn(
    with_gist: Path, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "index.html").write_text("<p>my site</p>")
    for draw in (run.visualize, run.visualize_tokens):
        with pytest.raises(Refused, match=r"index\.html"):
            draw(with_gist, pictures, tmp_path, device="cpu")
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]
    assert (tmp_path / "index.html").read_text() == "<p>my site</p>"


def call(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> tuple[str, str]:
    capsys.readouterr()
    assert invoke([str(a) for a in ("visualize", *arguments)]) == code
    out, err = capsys.readouterr()
    return out, err


def test_people_see_figures_by_layer_and_by_image_and_the_files(
    with_gist: Path, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (with_gist, *pictures, "-o", tmp_path, "--tokens", "--heads", "--layers", "2-3")
    out, _ = call(capsys, 0, *arguments)
    for word in ("layer", "cls on patches", "gist on patches", "with another image", "Jeffreys"):
        assert word in out, word
    assert out.startswith(f"open {tmp_path / 'index.html'}\n")
    assert str(tmp_path / "digit-0-tokens.png") in out.replace("\n", "")
    value: Any = json.loads(call(capsys, 0, *arguments, "--json")[0])
    assert value["layers"] == [2, 3]
    assert f"{value['overlap'][0]:.2f}" in out


def test_people_see_the_page_of_cluster_maps_first_and_what_stands_out(
    finished: Path, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (finished, *pictures, "-o", tmp_path)
    out, _ = call(capsys, 0, *arguments)
    assert out.startswith(f"open {tmp_path / 'index.html'}\n")
    value: Any = json.loads(call(capsys, 0, *arguments, "--json")[0])
    assert value["gallery"] == str(tmp_path / "index.html")
    assert [entry["sheet"] for entry in value["images"]] == value["sheets"]
    for entry in value["images"]:
        row = next(line for line in out.splitlines() if Path(entry["image"]).name in line)
        assert row.split()[1] == entry["class"]
        for pick in entry["picks"]:
            assert f"L{pick['layer']} C{pick['cluster']}" in row


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--heads",), "--heads goes with --tokens"),
        (("--tokens", "--clusters", "1"), "leave --clusters and --all out"),
        (("--tokens", "--all"), "leave --clusters and --all out"),
        (("--tokens", "--layers", "9"), "layers"),
    ],
)
def test_options_of_the_other_kind_of_picture_are_refused(
    options: tuple[str, ...],
    words: str,
    finished: Path,
    pictures: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, err = call(capsys, 2, finished, pictures[0], "-o", tmp_path / "maps", *options)
    assert words in " ".join(err.split())
