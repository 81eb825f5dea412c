"""VPT: counts, starts, blocks written out, and shallow prompts as registers of a stock network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from timm.models import save_for_hf

from gistcli.artifacts.merge import merge_weights, tuned_form
from gistcli.artifacts.plan import plan_merge
from gistcli.artifacts.verify import Reference
from gistcli.backbones import Backbone, open_backbone
from gistcli.backbones.base import Origin
from gistcli.backbones.sites import Switch
from gistcli.backbones.vit import ViT
from gistcli.errors import NotMergeable, NotSupported, Refused
from gistcli.methods.vpt import Vpt, VptTuner, patch_pixels
from gistcli.testing.kinds import CLASSES, KINDS, VIT
from tests.backbones.kinds import logits
from tests.methods.measuring import on_vit_b_16

REGISTERED = ["class token", "average pool", "DINOv2 registers", "SigLIP", "CLIP"]


def attach(backbone: Backbone, **options: Any) -> VptTuner:
    torch.manual_seed(2)
    tuner = Vpt(**options).attach(backbone).eval()
    assert isinstance(tuner, VptTuner)
    tuner.load_state({n: t + torch.randn_like(t) for n, t in tuner.state().items()})
    return tuner


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 92_160),
        ({"deep": False, "length": 100}, 76_800),
        ({"deep": True, "length": 50}, 460_800),
    ],
)
def test_counts_on_vit_b_16_are_those_of_the_paper(options: dict, parameters: int) -> None:
    trained = on_vit_b_16(Vpt(**options))
    assert sum(t.parameter.numel() for t in trained) == parameters
    assert all(t.decay for t in trained)


def test_prompts_start_uniform_within_the_bound_of_the_paper() -> None:
    model = timm.create_model("vit_base_patch16_224", depth=1, img_size=32)
    tuner = Vpt(length=50).attach(ViT(model, Origin("vit", "vit_base_patch16_224")))
    bound = (6 / (3 * 16 * 16 + 768)) ** 0.5
    prompts = tuner.state()["prompts"]
    assert bound == 0.0625
    assert 0.99 * bound < prompts.abs().max() <= bound
    assert prompts.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_a_patch_is_counted_by_height_and_width() -> None:
    model = timm.create_model("vit_tiny_patch16_224", **{**VIT, "img_size": (32, 48)})
    backbone = ViT(model, Origin("tiny", "vit_tiny_patch16_224"))
    assert backbone.data_config()["input_size"] == (3, 32, 48)
    assert patch_pixels(backbone) == 64
    assert patch_pixels(open_backbone("vit_base_patch32_224", meta=True)) == 1024


@pytest.mark.parametrize("kind", ["class token", "DINOv2 registers", "SigLIP"])
@pytest.mark.parametrize("gist", [False, True], ids=["alone", "beside a gist token"])
def test_deep_prompts_are_replaced_before_every_block(kind: str, gist: bool) -> None:
    backbone, pixels = KINDS[kind].backbone(), torch.randn(2, 3, 32, 32)
    tuner, model = attach(backbone, length=3), backbone.timm  # type: ignore[attr-defined]
    token, switch = torch.randn(1, 2, 24), Switch()
    if gist:
        backbone.insert_tokens("gist", 2, lambda n: token.expand(n, -1, -1), switch)
    tuned = logits(tuner, pixels)
    switch.enabled = False
    own = model.num_prefix_tokens - model.num_reg_tokens
    with tuner.disabled(), torch.no_grad():
        base = logits(backbone, pixels)
        x = model._pos_embed(model.patch_embed(pixels))
        front, rest = x[:, :own], x[:, own:]
        if gist:
            front = torch.cat([front, token.expand(2, -1, -1)], dim=1)
        kept = front.shape[1]
        for layer, block in enumerate(model.blocks):
            x = block(torch.cat([front, tuner.prompts[layer].expand(2, -1, -1), rest], dim=1))
            front, rest = x[:, :kept], x[:, kept + 3 :]
        x = model.norm(torch.cat([front[:, :own], rest], dim=1))
    with torch.no_grad():
        by_hand = backbone.classify(model.forward_head(x, pre_logits=True))
    assert torch.allclose(tuned, by_hand, atol=1e-5)
    assert not torch.allclose(tuned, base, atol=1e-2)


def test_the_prompts_of_every_block_act() -> None:
    backbone, pixels = KINDS["class token"].backbone(), torch.randn(2, 3, 32, 32)
    tuner = attach(backbone, length=3)
    tuned = logits(tuner, pixels)
    for layer in range(2):
        before = tuner.prompts.detach().clone()
        with torch.no_grad():
            tuner.prompts[layer].add_(torch.randn(3, 24))
        assert not torch.allclose(logits(tuner, pixels), tuned, atol=1e-3)
        tuner.load_state({**tuner.state(), "prompts": before})


@pytest.mark.parametrize("kind", REGISTERED)
def test_shallow_prompts_are_registers_of_a_stock_network(kind: str) -> None:
    backbone, pixels = KINDS[kind].backbone(), torch.randn(3, 3, 32, 32)
    tuner = attach(backbone, deep=False, length=3)
    tuned, merged = logits(tuner, pixels), tuner.merge()
    tuner.detach()
    assert not torch.allclose(logits(backbone, pixels), tuned, atol=1e-2)
    stock = KINDS[kind].network(**merged.model_args, num_classes=CLASSES).eval()
    stock.load_state_dict({**backbone.model.state_dict(), **merged.new})
    with torch.no_grad():
        assert torch.equal(stock(pixels), tuned)
    assert not merged.patches
    assert not merged.scalable


def test_a_distilled_network_has_no_registers_and_deep_prompts_are_none() -> None:
    tuner = attach(KINDS["DeiT distilled"].backbone(), deep=False)
    with pytest.raises(NotMergeable, match="no register tokens"):
        tuner.merge()
    with pytest.raises(NotMergeable, match="each block replaces its prompts"):
        attach(KINDS["class token"].backbone()).merge()


@pytest.mark.parametrize("kind", REGISTERED)
@pytest.mark.parametrize("size", [None, (32, 48)], ids=["own size", "not square"])
def test_the_written_folder_is_loaded_by_timm_alone(kind: str, size: Any, tmp_path: Path) -> None:
    args = dict(KINDS[kind].args)
    base = KINDS[kind].network()
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_for_hf(base, tmp_path / "base", model_args=args, safe_serialization=True)
    backbone = open_backbone(str(tmp_path / "base"), img_size=size)
    backbone.reset_head(3)
    tuner = attach(backbone.eval(), deep=False, length=2)
    _, height, width = backbone.data_config()["input_size"]
    pixels = torch.randn(2, 3, height, width)
    tuned, plan = logits(tuner, pixels), plan_merge(tuner)
    names, data = ["a", "b", "c"], backbone.data_config()
    form = tuned_form(backbone, names, data, plan.merged.model_args)
    reference = Reference(pixels, tuned)
    receipt = merge_weights(plan, form, tmp_path / "out", reference=reference)
    assert receipt.max_abs_logit_difference == 0
    registers = 2 + getattr(base, "num_reg_tokens", 0)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_args"]["reg_tokens"] == registers
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(model(pixels), tuned)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written["reg_token"].shape == (1, registers, 24)
    assert receipt.tensors["new"] == len(plan.merged.new)
    with pytest.raises(Refused, match="no meaning"):
        plan_merge(tuner, scale=0.5)


@pytest.mark.parametrize("deep", [False, True])
def test_dropout_acts_in_training_alone_and_by_image(tiny: Backbone, deep: bool) -> None:
    tuner = attach(tiny, deep=deep, dropout=0.5)
    pixels = torch.randn(1, 3, 32, 32).expand(2, -1, -1, -1)
    assert torch.equal(logits(tuner, pixels), logits(tuner, pixels))
    assert torch.allclose(*logits(tuner, pixels), atol=1e-5)
    tuner.train()
    assert not torch.allclose(*logits(tuner, pixels), atol=1e-3)


def test_a_network_without_place_for_tokens_is_refused_and_left_as_it_was(tiny: Backbone) -> None:
    carried, base = tiny.inserted, tiny.timm.head.weight  # type: ignore[attr-defined]
    tiny.inserted = None
    with pytest.raises(NotSupported, match="takes no further tokens"):
        Vpt().attach(tiny)
    assert tiny.timm.head.weight is base  # type: ignore[attr-defined]
    tiny.inserted = carried
    Vpt().attach(tiny)


@pytest.mark.parametrize("options", [{"length": 0}, {"dropout": 1}, {"deep": "both"}])
def test_options_without_meaning_are_refused(options: dict) -> None:
    with pytest.raises(ValidationError):
        Vpt(**options)
