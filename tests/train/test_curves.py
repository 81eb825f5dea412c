"""Learning curves as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from gistcli.train.curves import smooth, write_curves

HISTORY = [
    {"kind": "train", "step": s, "epoch": s / 5, "train/loss": 2 / s, "train/accuracy": s / 20,
     "lr": 0.1 / s, "head_lr": 0.2 / s}
    for s in range(1, 20)
] + [{"kind": "eval", "step": 10, "epoch": 2.0, "val/loss": 1.0, "val/accuracy": 0.4}]  # fmt: skip


def test_curves_of_a_run_are_drawn(tmp_path: Path) -> None:
    path = write_curves(tmp_path, HISTORY)
    assert path == tmp_path / "curves.png"
    with Image.open(path) as picture:
        assert picture.size == (1650, 510)
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    blue, orange = (47, 93, 138), (209, 119, 43)
    assert (pixels == blue).all(axis=1).sum() > 500
    assert (pixels == orange).all(axis=1).sum() > 20


def test_curves_of_one_step_without_validation_are_drawn(tmp_path: Path) -> None:
    assert write_curves(tmp_path, HISTORY[:1]).stat().st_size > 5000
    assert write_curves(tmp_path, []).exists()


def test_smoothing_keeps_a_constant_and_a_line() -> None:
    np.testing.assert_allclose(smooth([3.0] * 9, 5), 3.0)
    np.testing.assert_allclose(smooth(list(range(9)), 5), np.arange(9.0))
    np.testing.assert_allclose(smooth([0, 0, 3, 0, 0], 3), [0, 1, 1, 1, 0])
