"""LoRA: counts, row slices of a fused map, and PEFT's own LoRA as the oracle."""

from __future__ import annotations

import math

import peft
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from gistcli.backbones import Backbone
from gistcli.methods.lora import Lora, LoraTuner
from gistcli.methods.low_rank import fuse
from gistcli.testing.acting import disturb
from tests.methods.measuring import count_on_vit_b_16


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"targets": ["attn.qkv"]}, 294_912),
        ({"targets": ["attn_out"], "rank": 4}, 73_728),
        ({}, 294_912),
        ({"targets": ["query", "key", "value", "attn_out"]}, 589_824),
        ({"targets": ["attn_out"], "layers": [0, -1]}, 2 * 12_288),
    ],
)
def test_counts_on_vit_b_16_are_those_of_the_papers(options: dict, parameters: int) -> None:
    assert count_on_vit_b_16(Lora(**options)) == parameters


def disturbed(method: Lora, backbone: Backbone) -> LoraTuner:
    tuner = method.attach(backbone).eval()
    disturb(tuner, 0.1)
    return tuner


@pytest.mark.parametrize("use_rslora", [False, True])
def test_pefts_lora_with_the_same_weights_gives_the_same_outputs_and_gradients(
    tiny: Backbone, batch: dict[str, Tensor], use_rslora: bool
) -> None:
    targets = ["attn.qkv", "attn.proj", "mlp.fc1"]
    tuner = disturbed(Lora(rank=3, alpha=5, targets=targets, use_rslora=use_rslora), tiny)
    ours = tuner(batch).logits
    F.cross_entropy(ours, batch["labels"]).backward()
    state = {name: t.clone() for name, t in tuner.state().items()}
    grads = {n: t.parameter.grad for n, t in tuner.trainable().items()}
    sites = {site.module_name: tuner.pair(site) for site in tuner.sites}
    tuner.detach()

    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=targets, lora_dropout=0.0, use_rslora=use_rslora
    )
    model = peft.get_peft_model(tiny.model, config).eval()
    layers = {n: m for n, m in model.base_model.model.named_modules() if hasattr(m, "lora_A")}
    assert layers.keys() == sites.keys()
    with torch.no_grad():
        model.base_model.model.head.weight.copy_(state["head.weight"])
        model.base_model.model.head.bias.copy_(state["head.bias"])
        for name, layer in layers.items():
            layer.lora_A["default"].weight.copy_(sites[name][0])
            layer.lora_B["default"].weight.copy_(sites[name][1])
    theirs = model(batch["pixels"])
    F.cross_entropy(theirs, batch["labels"]).backward()
    assert torch.allclose(ours, theirs, atol=1e-5)
    for name, layer in layers.items():
        key = name.replace(".", "_")
        assert torch.allclose(grads[f"a.{key}"], layer.lora_A["default"].weight.grad, atol=1e-6)
        assert torch.allclose(grads[f"b.{key}"], layer.lora_B["default"].weight.grad, atol=1e-6)
    with torch.no_grad():
        merged = model.merge_and_unload()
        assert torch.allclose(merged(batch["pixels"]), ours, atol=1e-5)


def test_the_merged_weights_are_pefts_merged_weights(tiny: Backbone) -> None:
    tuner = disturbed(Lora(rank=3, alpha=5, targets=["attn.qkv"]), tiny)
    merged, pairs = tuner.merge(), {s.module_name: tuner.pair(s) for s in tuner.sites}
    tuner.detach()
    base = {n: t.clone() for n, t in tiny.model.state_dict().items()}
    model = peft.get_peft_model(
        tiny.model, peft.LoraConfig(r=3, lora_alpha=5, target_modules=["attn.qkv"])
    )
    with torch.no_grad():
        for name, (a_RI, b_OR) in pairs.items():
            layer = model.base_model.model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(a_RI)
            layer.lora_B["default"].weight.copy_(b_OR)
        plain = model.merge_and_unload().state_dict()
        for key, patch in merged.patches.items():
            assert not torch.allclose(plain[key], base[key], atol=1e-2)
            assert torch.allclose(patch(base[key]), plain[key], atol=1e-6)


@pytest.mark.parametrize("targets", [["query"], ["query", "value"], ["key", "value", "query"]])
def test_slices_of_a_fused_map_are_dense_updates_of_their_own_rows(
    tiny: Backbone, targets: list[str]
) -> None:
    tuner = disturbed(Lora(rank=3, alpha=2, targets=targets), tiny)
    fused = fuse(tuner.sites)[0]
    x, module = torch.randn(2, 7, 24), fused.whole.module
    dense = module.weight.clone()
    for site in fused.sites:
        a_RI, b_OR = tuner.pair(site)
        dense[site.rows] += 2 / 3 * b_OR @ a_RI
    with torch.no_grad():
        assert torch.allclose(module(x), F.linear(x, dense, module.bias), atol=1e-5)
        assert not torch.allclose(module(x), F.linear(x, module.weight, module.bias), atol=1e-2)
        assert torch.allclose(
            tuner.merge().patches[f"{module_name(tuner)}.weight"](module.weight), dense
        )


def module_name(tuner: LoraTuner) -> str:
    return tuner.sites[0].module_name


def test_a_fused_module_is_hooked_once_however_many_slices_it_has(tiny: Backbone) -> None:
    tuner = Lora(targets=["query", "key", "value"]).attach(tiny)
    assert len(tuner.sites) == 6
    assert len(tuner.switch.handles) == 2


def test_a_starts_kaiming_uniform_and_b_at_zero(tiny: Backbone) -> None:
    tuner = Lora(rank=64, targets=["fc_out"]).attach(tiny)
    a_RI, b_OR = tuner.pair(tuner.sites[0])
    reference = torch.nn.init.kaiming_uniform_(torch.empty(64, 96), a=math.sqrt(5))
    assert a_RI.abs().max() <= 96**-0.5
    assert a_RI.std().item() == pytest.approx(reference.std().item(), rel=0.05)
    assert b_OR.abs().sum() == 0


def test_the_scale_is_alpha_over_rank_or_over_its_root() -> None:
    assert Lora(rank=16, alpha=8).scale == 0.5
    assert Lora(rank=16, alpha=8, use_rslora=True).scale == 2


def test_dropout_acts_in_training_alone(tiny: Backbone, batch: dict[str, Tensor]) -> None:
    tuner = disturbed(Lora(dropout=0.5), tiny)
    with torch.no_grad():
        assert torch.equal(tuner(batch).logits, tuner(batch).logits)
        tuner.train()
        assert not torch.equal(tuner(batch).logits, tuner(batch).logits)


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0}, {"targets": []}, {"dropout": 1}])
def test_options_without_meaning_are_refused(options: dict) -> None:
    with pytest.raises(ValidationError):
        Lora(**options)
