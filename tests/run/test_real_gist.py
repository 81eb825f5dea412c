"""A gist token on real weights and photos: what timm alone reads from the merged folder."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from gistcli import run
from gistcli.recipe import Recipe

ALONE = """
import sys
sys.modules["gistcli"] = None  # importing it would fail
import timm, torch
from PIL import Image
merged, root = sys.argv[1:]
model = timm.create_model(f"local-dir:{merged}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
names = model.pretrained_cfg["label_names"]
lines = sys.stdin.read().splitlines()
for some in (lines[i : i + 50] for i in range(0, len(lines), 50)):
    photos = [Image.open(f"{root}/{line}").convert("RGB") for line in some]
    with torch.inference_mode():
        best = model(torch.stack([transform(photo) for photo in photos])).argmax(dim=1)
    for line, index in zip(some, best.tolist()):
        print(line, names[index], sep="\\t")
"""


def test_timm_alone_predicts_for_every_test_photo_what_the_run_did(
    assets: Path, tmp_path: Path
) -> None:
    recipe = Recipe.model_validate(
        {
            "model": {"name": str(assets / "vit_tiny_patch16_224"), "img_size": 112},
            "data": {"path": str(assets / "caltech20"), "shots": 2},
            "method": {"name": "vpt", "deep": False},
            "gist": {},
            "train": {"max_steps": 10, "batch_size": 20},
            "eval": {"every": "none"},
        }
    )
    result = run.finetune(recipe, output=tmp_path / "run")
    assert result["metrics"]["test/accuracy"] > 0.3  # chance: 0.05
    run.merge(tmp_path / "run", tmp_path / "merged")
    with (tmp_path / "run" / "predictions" / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result["examples"]["test"] == 400
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "merged"), str(assets / "caltech20")],
        input="\n".join(row["name"] for row in rows),
        capture_output=True,
        text=True,
        check=True,
    )
    alone = dict(line.split("\t") for line in done.stdout.splitlines())
    assert alone == {row["name"]: row["predicted"] for row in rows}
    right = sum(alone[row["name"]] == row["label"] for row in rows)
    assert right / len(rows) == pytest.approx(result["metrics"]["test/accuracy"])
