"""Real weights and photos: what the defaults reach, and that the merged weights keep it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gistcli import run
from gistcli.recipe import Recipe


@pytest.mark.slow
def test_the_defaults_reach_92_per_cent_on_photos_of_half_the_size(
    assets: Path, tmp_path: Path
) -> None:
    recipe = Recipe.model_validate(
        {
            "model": {"name": str(assets / "vit_tiny_patch16_224"), "img_size": 112},
            "data": {"path": str(assets / "caltech20")},
            "train": {"epochs": 3},
            "eval": {"every": "none"},
        }
    )
    result = run.finetune(recipe, output=tmp_path / "run")
    assert result["metrics"]["test/accuracy"] >= 0.92
    assert result["parameters"]["method"] == 2 * 16 * 192
    receipt = run.merge(tmp_path / "run", tmp_path / "merged")
    assert receipt["max_abs_logit_difference"] < 1e-4
    dolphins = sorted((assets / "caltech20" / "test" / "dolphin").iterdir())
    found = run.predict(tmp_path / "merged", dolphins, device="cpu")
    assert np.mean([p["class"] == "dolphin" for p in found["predictions"]]) >= 0.9
    maps = run.visualize(tmp_path / "run", dolphins[:3], tmp_path / "maps", device="cpu")
    assert all(Path(sheet).stat().st_size > 100_000 for sheet in maps["sheets"])
