"""ONNX: judged by onnxruntime, at batch sizes that were not traced."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from gistcli.artifacts.onnx_export import PixelsToLogits, export_onnx
from gistcli.artifacts.targets import kind_of
from gistcli.errors import NotSupported, Refused, VerificationFailed

CLASSES = ["ant", "bee", "çe"]


def test_onnxruntime_gives_the_tuned_logits_for_any_batch(tuned: Any, tmp_path: Path) -> None:
    network = PixelsToLogits(tuned.tuner)
    preprocessing = tuned.form.config["pretrained_cfg"]
    receipt = export_onnx(network, tuned.pixels, CLASSES, preprocessing, tmp_path / "out")
    path = tmp_path / "out" / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        wanted = network(pixels).numpy()
    np.testing.assert_allclose(session.run(None, {"pixels": pixels.numpy()})[0], wanted, atol=1e-5)
    assert receipt.verified
    assert receipt.max_abs_logit_difference < 1e-5

    facts = json.loads((tmp_path / "out" / "onnx.json").read_text())
    assert facts["classes"] == CLASSES
    assert facts["preprocessing"]["input_size"] == [3, 32, 32]
    metadata = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert json.loads(metadata["classes"]) == CLASSES
    with pytest.raises(NotSupported, match="ONNX export"):
        kind_of(tmp_path / "out")


class Unstable(nn.Module):
    """Computes something else when it is traced."""

    def forward(self, pixels: Tensor) -> Tensor:
        shift = 1.0 if torch.compiler.is_exporting() else 0.0
        return pixels.mean(dim=(2, 3)) + shift


def test_a_graph_that_computes_something_else_is_not_kept(tmp_path: Path) -> None:
    pixels = torch.randn(2, 3, 8, 8)
    with pytest.raises(VerificationFailed, match="differs"):
        export_onnx(Unstable(), pixels, CLASSES, {}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class Stubborn(nn.Module):
    """Has no graph: what it does depends on the values."""

    def forward(self, pixels: Tensor) -> Tensor:
        mean = pixels.mean(dim=(2, 3))
        return mean if float(mean.sum()) > 0 else -mean


def test_a_network_without_a_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="no ONNX form") as caught:
        export_onnx(Stubborn(), torch.randn(2, 3, 8, 8), CLASSES, {}, tmp_path / "out")
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_the_missing_extra_is_named_with_its_install_line(
    tuned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "onnxscript" else find(n)
    )
    with pytest.raises(Refused, match="needs onnxscript") as caught:
        export_onnx(PixelsToLogits(tuned.tuner), tuned.pixels, CLASSES, {}, tmp_path / "out")
    assert "pip install 'gistcli[onnx]'" in caught.value.hint
