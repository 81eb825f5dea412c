"""The gist token as a register of a stock network, beside what the method under it merges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import Tensor

from gistcli import registry
from gistcli.artifacts.merge import merge_weights, tuned_form
from gistcli.artifacts.peft_export import export_peft
from gistcli.artifacts.plan import plan_merge
from gistcli.artifacts.verify import Reference
from gistcli.backbones import Backbone, open_backbone
from gistcli.errors import NotMergeable, Refused
from gistcli.methods.base import Method, Tuner
from gistcli.methods.gist import Gist
from gistcli.methods.lora import Lora
from gistcli.methods.repadapter import RepAdapter
from gistcli.methods.vpt import Vpt
from gistcli.testing.acting import disturb
from gistcli.testing.kinds import CLASSES, KINDS, Kind
from tests.backbones.kinds import NEW, WITHOUT_REGISTERS, logits

PARTS = ("class token", "average pool", "DINOv2 registers", "SigLIP", "CLIP")
ALL = {**KINDS, **{kind.name: kind for kind in NEW}}
EXACT = {"bitfit", "full", "layernorm", "linear", "vpt"}
"""Methods whose merge copies tensors and computes nothing."""


def merging() -> list[Method]:
    """Every method of the table that becomes plain weights."""
    methods = [registry.resolve("methods", name)() for name in registry.names("methods")]
    return [m for m in methods if m.capabilities().merge is None] + [Vpt(deep=False, length=3)]


def attach(backbone: Backbone, method: Method, **options: Any) -> Tuner:
    torch.manual_seed(2)
    tuner = Gist(**options).wrap(method).attach(backbone).eval()
    disturb(tuner)
    return tuner


def stock_logits(kind: Kind, tuner: Tuner, path: Path, pixels: Tensor) -> Tensor:
    """Of the library's own network of the merged architecture, with the merged weights."""
    plan = plan_merge(tuner)
    plan.write(path)
    stock = kind.network(**plan.merged.model_args).eval()
    stock.reset_classifier(CLASSES)  # type: ignore[operator]
    stock.load_state_dict(load_file(path))
    with torch.no_grad():
        found: Tensor = stock(pixels)
    return found


@pytest.mark.parametrize("kind", [*PARTS, "registers with positions"])
@pytest.mark.parametrize("method", merging(), ids=lambda m: m.label())
def test_what_merges_alone_merges_with_the_token(kind: str, method: Method, tmp_path: Path) -> None:
    pixels = torch.randn(3, 3, 32, 32)
    tuner = attach(ALL[kind].backbone(), method, length=2)
    assert tuner.merge_refusal() is None
    tuned = logits(tuner, pixels)
    merged = stock_logits(ALL[kind], tuner, tmp_path / "model.safetensors", pixels)
    if method.name in EXACT:
        assert torch.equal(merged, tuned)
    scale = max(float(tuned.abs().max()), 1.0)
    assert torch.allclose(merged, tuned, atol=1e-5 * scale)
    with tuner.disabled():
        assert not torch.allclose(logits(tuner, pixels), tuned, atol=1e-2)
    assert torch.equal(logits(tuner, pixels), tuned)


@pytest.mark.parametrize("kind", ["class token", "DINOv2 registers", "registers with positions"])
def test_tuned_positions_and_registers_survive_it(kind: str) -> None:
    backbone = ALL[kind].backbone()
    tuner = attach(backbone, registry.resolve("methods", "full")(), length=2)
    merged, model = tuner.merge(), backbone.timm  # type: ignore[attr-defined]
    positions, token = merged.new.get("pos_embed", model.pos_embed), tuner.state()["gist.token"]
    if model.no_embed_class:
        assert "pos_embed" not in merged.new
    else:
        assert torch.equal(positions[:, :1], model.pos_embed[:, :1])
        assert torch.equal(positions[:, 3:], model.pos_embed[:, 1:])
        assert not positions[:, 1:3].any()
    expected = token if model.reg_token is None else torch.cat([token, model.reg_token[0]])
    assert torch.equal(merged.new["reg_token"][0], expected)
    assert not merged.patches.keys() & merged.new.keys()
    assert merged.model_args == {"reg_tokens": len(expected)}


def test_prompts_follow_the_token_as_they_do_in_the_sequence() -> None:
    tuner = attach(KINDS["class token"].backbone(), Vpt(deep=False, length=3), length=2)
    rows, state = tuner.register_rows(), tuner.state()
    assert rows is not None
    assert torch.equal(rows, torch.cat([state["gist.token"], state["prompts"][0]]))
    assert tuner.merge().model_args == {"reg_tokens": 5}
    prompts = attach(KINDS["class token"].backbone(), Vpt(deep=False, length=3), source="prompts")
    assert prompts.merge().model_args == {"reg_tokens": 3}


def test_a_method_without_tokens_of_its_own_has_no_rows() -> None:
    assert Lora().attach(KINDS["class token"].backbone()).register_rows() is None
    assert Vpt().attach(KINDS["class token"].backbone()).register_rows() is None


@pytest.mark.parametrize("kind", [*WITHOUT_REGISTERS, "Hugging Face ViT"])
def test_a_network_without_registers_is_said_from_the_start(kind: str) -> None:
    tuner = attach(ALL[kind].backbone(), Lora())
    reason = tuner.merge_refusal()
    assert reason is not None
    assert WITHOUT_REGISTERS.get(kind, "has no register tokens") in reason
    with pytest.raises(NotMergeable, match=r"lora \+ gist cannot become plain weights: ") as caught:
        tuner.merge()
    assert reason in caught.value.message
    assert "--format onnx" in caught.value.hint
    assert Lora().attach(ALL[kind].backbone()).merge_refusal() is None


def test_what_keeps_the_method_from_merging_keeps_it_still() -> None:
    assert "replaces its prompts" in str(
        attach(KINDS["class token"].backbone(), Vpt()).merge_refusal()
    )
    without = attach(KINDS["EVA02"].backbone(), RepAdapter())
    assert without.merge_refusal() == RepAdapter().attach(KINDS["EVA02"].backbone()).merge_refusal()


def test_reasons_are_known_without_weights() -> None:
    for kind, merges in (("class token", True), ("Hugging Face ViT", False)):
        tuner = Gist().wrap(Lora()).attach(KINDS[kind].backbone(meta=True))
        assert (tuner.merge_refusal() is None) == merges


def test_there_is_no_half_token_and_no_lora_folder_of_it(tmp_path: Path) -> None:
    tuner = attach(KINDS["class token"].backbone(), Lora())
    with pytest.raises(Refused, match=r"no meaning for lora \+ gist"):
        plan_merge(tuner, scale=0.5)
    backbone = tuner.backbone
    form = tuned_form(backbone, list("abcde"), backbone.data_config())
    with pytest.raises(NotMergeable, match="low-rank"):
        export_peft(plan_merge(tuner), "base", form, tmp_path / "lora")


@pytest.mark.parametrize("kind", PARTS)
def test_the_written_folder_is_loaded_by_timm_alone(kind: str, tmp_path: Path) -> None:
    base = KINDS[kind].network()
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    args = dict(KINDS[kind].args)
    save_for_hf(base, tmp_path / "base", model_args=args, safe_serialization=True)
    backbone = open_backbone(str(tmp_path / "base"))
    backbone.reset_head(3)
    tuner = attach(backbone.eval(), Vpt(deep=False, length=2))
    pixels, names = torch.randn(4, 3, 32, 32), ["a", "b", "c"]
    tuned, plan = logits(tuner, pixels), plan_merge(tuner)
    form = tuned_form(backbone, names, backbone.data_config(), plan.merged.model_args)
    reference = Reference(pixels, tuned)
    receipt = merge_weights(plan, form, tmp_path / "out", reference=reference)
    assert receipt.max_abs_logit_difference == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_args"]["reg_tokens"] == 3 + getattr(base, "num_reg_tokens", 0)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(model(pixels), tuned)


def test_dinov2_of_transformers_has_registers_for_it(tmp_path: Path) -> None:
    kind = KINDS["Hugging Face DINOv2"]
    base: Any = kind.network()
    base.save_pretrained(tmp_path / "base")
    backbone = open_backbone(str(tmp_path / "base"))
    backbone.reset_head(3)
    tuner = attach(backbone.eval(), Lora(), length=2)
    pixels = torch.randn(2, 3, 32, 32)
    tuned, plan = logits(tuner, pixels), plan_merge(tuner)
    form = tuned_form(backbone, ["a", "b", "c"], backbone.data_config(), plan.merged.model_args)
    merge_weights(plan, form, tmp_path / "out", reference=Reference(pixels, tuned))
    loaded: Any = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert loaded.config.num_register_tokens == 3 + 2
    with torch.no_grad():
        assert torch.allclose(loaded.eval()(pixels).logits, tuned, atol=1e-4)


def test_the_register_is_the_token_in_float32_on_a_bfloat16_network() -> None:
    tuner = attach(KINDS["class token"].backbone().to(torch.bfloat16), Lora())
    register = tuner.merge().new["reg_token"]
    assert register.dtype == torch.float32
    assert torch.equal(register[0], tuner.state()["gist.token"])
