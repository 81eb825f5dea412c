"""The LoRA folder, judged by PEFT itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import PeftModel
from safetensors.torch import load_file

from gistcli.artifacts.peft_export import export_peft
from gistcli.artifacts.verify import Reference
from gistcli.errors import NotMergeable, VerificationFailed
from gistcli.methods.full import Full
from gistcli.methods.gift import Gift
from gistcli.methods.linear import Linear
from gistcli.methods.merged import Merged

METHODS = {
    "attn.proj": Gift(rank=4),
    "slices of qkv, and fc2": Gift(rank=3, targets=["query", "value", "fc_out"]),
    "one layer, scaled": Gift(rank=2, layers=[1], scaling=0.5),
}


def plain_base(folder: Path, **options: Any) -> torch.nn.Module:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3, **options)


@pytest.mark.parametrize("name", METHODS)
def test_peft_gives_the_tuned_logits(
    name: str, base_folder: Path, make_tuned: Any, tmp_path: Path
) -> None:
    tuned = make_tuned(METHODS[name])
    receipt = export_peft(
        tuned.plan(), "owner/base", tuned.form, tmp_path / "out", reference=tuned.reference
    )
    model = PeftModel.from_pretrained(plain_base(base_folder), tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(tuned.pixels), tuned.logits, atol=1e-5, rtol=0)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(tuned.pixels), tuned.logits, atol=1e-5, rtol=0)
    assert receipt.verified
    assert receipt.max_abs_logit_difference < 1e-5


def test_peft_at_another_image_size(base_folder: Path, make_tuned: Any, tmp_path: Path) -> None:
    tuned = make_tuned(None, (24, 48))
    export_peft(tuned.plan(), "b", tuned.form, tmp_path / "out", reference=tuned.reference)
    base = plain_base(base_folder, img_size=(24, 48))
    model = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(tuned.pixels), tuned.logits, atol=1e-5, rtol=0)


def test_the_tensors_are_w_phi_and_psi(base_folder: Path, tuned: Any, tmp_path: Path) -> None:
    export_peft(tuned.plan(), "owner/base", tuned.form, tmp_path / "out")
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    stored = load_file(base_folder / "model.safetensors")
    phi, psi = tuned.tuner.phi["attn_out"], tuned.tuner.psi["attn_out"]
    name = "base_model.model.blocks.1.attn.proj"
    assert torch.equal(written[f"{name}.lora_A.weight"], psi)
    b = stored["blocks.1.attn.proj.weight"] @ phi
    torch.testing.assert_close(written[f"{name}.lora_B.weight"], b.detach())
    assert len(written) == 2 * 2 + 2
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["blocks.0.attn.proj", "blocks.1.attn.proj"]
    assert (config["r"], config["lora_alpha"]) == (4, 4)
    assert config["modules_to_save"] == ["head"]
    assert config["base_model_name_or_path"] == "owner/base"


def test_the_scale_halves_the_update_and_keeps_the_head(
    base_folder: Path, tuned: Any, tmp_path: Path
) -> None:
    receipt = export_peft(
        tuned.plan(scale=0.5), "b", tuned.form, tmp_path / "half", reference=tuned.reference
    )
    export_peft(tuned.plan(), "b", tuned.form, tmp_path / "whole")
    half = load_file(tmp_path / "half" / "adapter_model.safetensors")
    whole = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    for key, tensor in whole.items():
        assert torch.equal(half[key], tensor * (0.5 if "lora_B" in key else 1)), key
    assert receipt.max_abs_logit_difference < 1e-5


def test_bfloat16_reports_what_it_loses(tuned: Any, tmp_path: Path) -> None:
    receipt = export_peft(
        tuned.plan(dtype="bfloat16"), "b", tuned.form, tmp_path / "o", reference=tuned.reference
    )
    assert 1e-4 < receipt.as_dict()["worst_relative_rounding"] < 0.01
    assert receipt.max_abs_logit_difference > 1e-4


def test_wrong_logits_leave_nothing(tuned: Any, tmp_path: Path) -> None:
    wrong = Reference(tuned.pixels, tuned.logits.flip(0))
    with pytest.raises(VerificationFailed):
        export_peft(tuned.plan(), "b", tuned.form, tmp_path / "out", reference=wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", [Linear(), Full()], ids=["linear", "full"])
def test_what_is_no_lora_is_refused(method: Any, make_tuned: Any, tmp_path: Path) -> None:
    tuned = make_tuned(method)
    with pytest.raises(NotMergeable, match="no low-rank form") as caught:
        export_peft(tuned.plan(), "b", tuned.form, tmp_path / "out")
    assert caught.value.exit_code == 2
    assert "without --format" in caught.value.hint


def test_a_patch_beside_the_low_rank_ones_is_refused(tuned: Any, tmp_path: Path) -> None:
    plan = tuned.plan()
    merged = plan.merged
    more = Merged(
        {**merged.patches, "norm.bias": lambda b: b + 1}, merged.new, low_rank=merged.low_rank
    )
    object.__setattr__(plan, "merged", more)
    with pytest.raises(NotMergeable, match=r"norm\.bias"):
        export_peft(plan, "b", tuned.form, tmp_path / "out")
