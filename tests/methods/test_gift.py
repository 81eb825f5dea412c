"""GIFT: its three forms, sharing, counts, and the parameters that its authors published."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from gistcli.backbones import Backbone, open_backbone
from gistcli.errors import Refused, WeightsError
from gistcli.methods.gift import Gift
from gistcli.methods.gift_published import load_published, read_published


def count(method: Gift, backbone: Backbone) -> int:
    trained = method.attach(backbone).trainable().values()
    return sum(t.parameter.numel() for t in trained if t.group == "method")


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 24_576),
        ({"rank": 4}, 6_144),
        ({"targets": ["query", "value"]}, 49_152),
        ({"targets": ["query", "value"], "share": "all"}, 24_576),
        ({"targets": ["fc_in", "fc_out"], "share": "all"}, 2 * 16 * (768 + 3072)),
        ({"share": "none"}, 12 * 24_576),
        ({"layers": [0, 11], "share": "none"}, 2 * 24_576),
    ],
)
def test_counts_on_vit_b_16_are_those_of_the_paper(options: dict, parameters: int) -> None:
    backbone = open_backbone("vit_base_patch16_224", meta=True)
    backbone.reset_head(100)
    assert count(Gift(**options), backbone) == parameters


def naive(weight_OI: Tensor, phi_IR: Tensor, psi_RI: Tensor) -> Tensor:
    """W (I + phi psi), with the matrix written out."""
    return weight_OI @ (torch.eye(weight_OI.shape[1]) + phi_IR @ psi_RI)


@pytest.mark.parametrize("targets", [["attn_out"], ["query"], ["qkv", "fc_out"]])
def test_activation_weight_and_dense_forms_agree(tiny: Backbone, targets: list[str]) -> None:
    tuner = Gift(rank=3, targets=targets, scaling=0.7).attach(tiny)
    tuner.load_state({n: torch.randn_like(t) * 0.3 for n, t in tuner.state().items()})
    for site in tuner.sites:
        x = torch.randn(2, 7, site.d_in)
        key = tuner.key_of(site)
        dense = naive(site.weight(), tuner.phi[key], 0.7 * tuner.psi[key])
        bias = site.module.bias if site.rows is None else site.module.bias[site.rows]
        y = site.module(x) if site.rows is None else site.module(x)[..., site.rows]
        assert torch.allclose(y, x @ dense.t() + bias, atol=1e-5)


def test_a_slice_leaves_the_other_rows_alone(tiny: Backbone) -> None:
    tuner = Gift(rank=3, targets=["value"]).attach(tiny)
    tuner.load_state({n: torch.randn_like(t) for n, t in tuner.state().items()})
    merged = tuner.merge()
    old = tiny.model.state_dict()["blocks.0.attn.qkv.weight"]
    new = merged.patches["blocks.0.attn.qkv.weight"](old)
    assert torch.equal(new[:48], old[:48])
    assert not torch.allclose(new[48:], old[48:], atol=1e-3)


def test_phi_starts_uniform_and_psi_at_zero(tiny: Backbone) -> None:
    tuner = Gift(rank=24, targets=["fc_out"]).attach(tiny)
    bound = 96**-0.5
    assert tuner.phi["fc_out"].abs().max() <= bound
    assert tuner.phi["fc_out"].std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert tuner.psi["fc_out"].abs().sum() == 0


def test_widths_stand_in_the_name_only_where_a_group_has_several(tiny: Backbone) -> None:
    tuner = Gift(targets=["attn_out", "fc_out"], share="all").attach(tiny)
    assert sorted(tuner.phi) == ["all_24", "all_96"]
    tuner.detach()
    tuner = Gift(targets=["attn_out", "fc_in"], share="all").attach(tiny)
    assert sorted(tuner.phi) == ["all"]


def test_dropout_acts_in_training_alone(tiny: Backbone, batch: dict[str, Tensor]) -> None:
    tuner = Gift(dropout=0.5, rank=4).attach(tiny)
    tuner.load_state({n: torch.randn_like(t) for n, t in tuner.state().items()})
    tuner.eval()
    with torch.no_grad():
        assert torch.equal(tuner(batch).logits, tuner(batch).logits)
        tuner.train()
        assert not torch.equal(tuner(batch).logits, tuner(batch).logits)


def test_a_rank_above_the_width_is_refused(tiny: Backbone) -> None:
    with pytest.raises(Refused, match="reads only 24 features"):
        Gift(rank=25).attach(tiny)


@pytest.mark.parametrize("options", [{"rank": 0}, {"targets": []}, {"dropout": 1}, {"scaling": 0}])
def test_options_without_meaning_are_refused(options: dict) -> None:
    with pytest.raises(ValidationError):
        Gift(**options)


def test_gift_is_exactly_a_lora(tiny: Backbone, batch: dict[str, Tensor]) -> None:
    tuner = Gift(rank=4, targets=["attn_out", "query"]).attach(tiny).eval()
    tuner.load_state({n: torch.randn_like(t) * 0.2 for n, t in tuner.state().items()})
    with torch.no_grad():
        tuned = tuner(batch).logits
    merged, head = tuner.merge(), tuner.state()
    tuner.detach()
    weights = {n: m.weight for n, m in tiny.model.named_modules() if n in merged.low_rank}
    config = peft.LoraConfig(
        r=4, lora_alpha=4, target_modules=list(merged.low_rank), modules_to_save=["head"]
    )
    model = peft.get_peft_model(tiny.model, config).eval()
    state = {}
    for name, update in merged.low_rank.items():
        state[f"base_model.model.{name}.lora_A.weight"] = update.a
        state[f"base_model.model.{name}.lora_B.weight"] = update.b(weights[name])
    for part in ("weight", "bias"):
        state[f"base_model.model.head.{part}"] = head[f"head.{part}"]
    peft.set_peft_model_state_dict(model, state)
    with torch.no_grad():
        assert torch.allclose(model(batch["pixels"]), tuned, atol=1e-5)


@pytest.mark.parametrize(("name", "norm"), [("OxfordFlowers", 4.509), ("StanfordDogs", 5.680)])
def test_published_parameters_load_and_all_forms_agree_on_them(
    assets: Path, name: str, norm: float
) -> None:
    method, tensors = read_published(assets / "gift" / f"{name}.safetensors")
    assert (method.rank, method.targets) == (16, ("attn.proj",))
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_224", depth=1)
    from gistcli.backbones.base import Origin
    from gistcli.backbones.vit import ViT

    backbone = ViT(model, Origin("vit", "vit_base_patch16_224"))
    backbone.reset_head(tensors["backbone.head.bias"].shape[0])
    tuner = method.attach(backbone)
    load_published(tuner, tensors)
    site = tuner.sites[0]
    phi_IR, psi_RI = tuner.phi["attn_out"], tuner.psi["attn_out"]
    assert (phi_IR @ psi_RI).norm().item() == pytest.approx(norm, abs=1e-3)
    x = torch.randn(3, 50, 768)
    dense = x @ naive(site.weight(), phi_IR, psi_RI).t() + site.module.bias
    sliced = (
        torch.nn.functional.linear(x, site.weight(), site.module.bias)
        + (x @ psi_RI.t()) @ tuner.clusters(site).t()
    )
    assert torch.allclose(site.module(x), dense, atol=1e-5)
    assert torch.allclose(sliced, dense, atol=1e-5)
    assert torch.equal(tuner.state()["head.bias"], tensors["backbone.head.bias"])


def test_a_file_of_another_kind_is_no_published_gift(assets: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no GIFT parameters"):
        read_published(assets / "vit_tiny_patch16_224" / "model.safetensors")
    state = load_file(assets / "gift" / "OxfordFlowers.safetensors")
    plain = tmp_path / "last.pth.tar"
    torch.save({"state_dict": state, "epoch": 99}, plain)
    assert read_published(plain)[0].rank == 16
    torch.save({"state_dict": state, "args": pytest.Mark}, plain)
    with pytest.raises(WeightsError, match="cannot be read as plain tensors"):
        read_published(plain)
