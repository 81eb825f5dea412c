"""Merging what was trained on quantised weights, with a quantisation that needs no library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gistcli.artifacts.merge import merge_weights
from gistcli.artifacts.peft_export import export_peft
from gistcli.artifacts.plan import plan_merge
from gistcli.artifacts.text_export import text_form
from gistcli.artifacts.verify import Reference
from gistcli.backbones import open_backbone
from gistcli.backbones.streaming import compute, empty
from gistcli.backbones.text import TextBackbone
from gistcli.methods.base import Tuner
from gistcli.methods.gift import Gift
from gistcli.testing.acting import disturb
from tests.backbones.text_kinds import batch, network


def coarse(weight: Tensor) -> Tensor:
    """16 steps a row, and back."""
    step = weight.float().abs().amax(dim=1, keepdim=True) / 8
    return (weight.float() / step).round() * step


@pytest.fixture
def tuned(tmp_path: Path) -> Tuner:
    """GIFT on a Llama whose linear maps are coarse."""
    network("Llama", "causal_lm").save_pretrained(tmp_path / "base")
    backbone = open_backbone(str(tmp_path / "base"))
    names = [f"{site.module_name}.weight" for site in backbone.all_sites()]
    empty(backbone.model, dict.fromkeys(names, coarse))
    tuner = Gift(rank=3, targets=["query", "value"]).attach(backbone.eval()).eval()
    disturb(tuner)
    return tuner


def reference(tuner: Tuner) -> Reference:
    inputs = batch()
    logits = compute(tuner.backbone.model, lambda: tuner(inputs).logits)
    return Reference(inputs, logits[inputs["attention_mask"].bool()])


def test_the_merged_weights_are_those_that_the_run_computed_with(
    tuned: Tuner, tmp_path: Path
) -> None:
    assert isinstance(tuned.backbone, TextBackbone)
    plan, form = plan_merge(tuned), text_form(tuned.backbone, [], None)
    receipt = merge_weights(plan, form, tmp_path / "out", reference=reference(tuned))
    assert receipt.max_abs_logit_difference is not None
    assert receipt.max_abs_logit_difference < 1e-5
    written = load_file(tmp_path / "out" / "model.safetensors")
    stored = load_file(tmp_path / "base" / "model.safetensors")
    for key, tensor in written.items():
        wanted = coarse(stored[key]) if "_proj" in key else stored[key]
        if key in plan.merged.patches:
            wanted = plan.merged.patches[key](wanted)
        assert torch.equal(tensor, wanted), key


def test_the_receipt_sets_the_error_of_quantising_against_the_update(
    tuned: Tuner, tmp_path: Path
) -> None:
    assert isinstance(tuned.backbone, TextBackbone)
    plan, form = plan_merge(tuned), text_form(tuned.backbone, [], None)
    receipt = merge_weights(plan, form, tmp_path / "out")
    stored = load_file(tmp_path / "base" / "model.safetensors")
    for found in receipt.rounding:
        base = coarse(stored[found.key])
        delta = plan.merged.patches[found.key](base) - base
        wanted = float((base - stored[found.key]).norm() / delta.norm())
        assert found.quantisation == pytest.approx(wanted, rel=1e-4)
    assert receipt.as_dict()["worst_quantisation"] > 0
    assert "the dequantised base with the update" in receipt.notes[0]

    adapter = export_peft(plan, "base", form, tmp_path / "lora")
    assert [r.quantisation for r in adapter.rounding] == pytest.approx(
        [r.quantisation for r in receipt.rounding], rel=1e-4
    )
    assert any("quantised in the same way" in note for note in adapter.notes)
    b = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    phi = tuned.state()["phi.query"]
    assert torch.allclose(
        b[f"base_model.model.{name}.lora_B.weight"], coarse(stored[f"{name}.weight"]) @ phi
    )
