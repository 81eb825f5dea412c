"""RepAdapter: counts, grouped convolutions as reference, merging, one adapter for q, k and v."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones import Backbone
from gistcli.errors import NotMergeable, Refused
from gistcli.methods.repadapter import RepAdapter, RepAdapterTuner
from gistcli.testing.acting import disturb
from tests.methods.measuring import count_on_vit_b_16


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 239_808),
        ({"targets": ["attention"]}, 119_904),
        ({"groups": 1, "dim": 4, "layers": [0]}, 2 * (8 * 768 + 4 + 768)),
    ],
)
def test_counts_on_vit_b_16_are_those_of_the_paper(options: dict, parameters: int) -> None:
    assert count_on_vit_b_16(RepAdapter(**options)) == parameters


def disturbed(method: RepAdapter, backbone: Backbone) -> RepAdapterTuner:
    tuner = method.attach(backbone).eval()
    disturb(tuner, 0.2)
    return tuner


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_it_is_a_pair_of_pointwise_convolutions_with_groups_in_the_second(
    tiny: Backbone, groups: int
) -> None:
    tuner = disturbed(RepAdapter(dim=8, groups=groups, scale=0.7), tiny)
    down, up = nn.Conv1d(24, 8, 1), nn.Conv1d(8, 24, 1, groups=groups)
    x = torch.randn(2, 7, 24)
    for key, module in (
        ("0_attention", tiny.model.blocks[0].attn.qkv),
        ("1_mlp", tiny.model.blocks[1].mlp.fc1),
    ):
        with torch.no_grad():
            down.weight.copy_(tuner.down[key][..., None])
            down.bias.copy_(tuner.down_bias[key])
            up.weight.copy_(tuner.up[key][..., None])
            up.bias.copy_(tuner.up_bias[key])
            adapted = x + 0.7 * up(down(x.transpose(1, 2))).transpose(1, 2)
            assert not torch.allclose(adapted, x, atol=1e-1)
            expected = F.linear(adapted, module.weight, module.bias)
            assert torch.allclose(module(x), expected, atol=1e-5)


def test_a_merge_changes_weights_and_biases_and_exactly(
    tiny: Backbone,
) -> None:
    tuner = disturbed(RepAdapter(scale=0.7), tiny)
    patches = tuner.merge().patches
    maps = {f"blocks.{i}.{path}" for i in (0, 1) for path in ("attn.qkv", "mlp.fc1")}
    assert set(patches) == {f"{name}.{part}" for name in maps for part in ("weight", "bias")}
    for name in maps:
        module, x = tiny.model.get_submodule(name), torch.randn(2, 7, 24)
        with torch.no_grad():
            weight = patches[f"{name}.weight"](module.weight)
            bias = patches[f"{name}.bias"](module.bias)
            assert torch.allclose(F.linear(x, weight, bias), module(x), atol=1e-5)
            assert not torch.allclose(F.linear(x, weight, module.bias), module(x), atol=1e-2)


def test_a_map_without_a_bias_cannot_take_the_shift(tiny: Backbone) -> None:
    tiny.model.blocks[1].attn.qkv.bias = None
    tuner = RepAdapter().attach(tiny)
    with pytest.raises(NotMergeable, match=r"blocks\.1\.attn\.qkv has no bias"):
        tuner.merge()
    tuner.detach()
    assert RepAdapter(targets=["mlp"]).attach(tiny).merge().patches


class Separate(nn.Module):
    """Three maps of one input, as in families that do not fuse query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({role: nn.Linear(24, 24) for role in ("query", "key", "value")})

    def forward(self, x: Tensor) -> list[Tensor]:
        return [module(x) for module in self.maps.values()]


def test_separate_query_key_and_value_share_one_adapter_and_its_dropout(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, fused = Separate(), tiny.sites(["qkv"], [0])[0]
    sites = [
        replace(fused, name=role, module_name=role, role=role, module=module)
        for role, module in network.maps.items()
    ]
    monkeypatch.setattr(tiny, "all_sites", lambda: sites)
    tuner = disturbed(RepAdapter(targets=["attention"], dropout=0.5), tiny).train()
    assert list(tuner.down) == ["0_attention"]
    with torch.no_grad():
        x = torch.randn(2, 7, 24)
        outputs = network(x)
        inputs = [
            torch.linalg.solve(m.weight, (y - m.bias).flatten(0, 1).t()).t()
            for m, y in zip(network.maps.values(), outputs, strict=True)
        ]
        assert torch.allclose(inputs[0], inputs[1], atol=1e-3)
        assert torch.allclose(inputs[0], inputs[2], atol=1e-3)
        assert not torch.allclose(inputs[0], x.flatten(0, 1), atol=1e-2)
        # the next pass draws anew, also on the very same tensor
        assert not torch.allclose(network(x)[0], outputs[0], atol=1e-3)
    network(x)[2].sum().backward()
    assert tuner.up["0_attention"].grad.abs().max() > 0
    assert set(tuner.merge().patches) == {
        f"{r}.{p}" for r in network.maps for p in ("weight", "bias")
    }


def test_groups_that_do_not_divide_are_refused(tiny: Backbone) -> None:
    with pytest.raises(Refused, match=r"groups is 5, but blocks\.0\.attn\.qkv reads 24"):
        RepAdapter(dim=10, groups=5).attach(tiny)
    assert RepAdapter(dim=9, groups=3).attach(tiny).sites


@pytest.mark.parametrize(
    "options",
    [{"dim": 0}, {"dim": 9}, {"groups": 0}, {"scale": 0}, {"dropout": 1}, {"targets": ["qkv"]}],
)
def test_options_without_meaning_are_refused(options: dict) -> None:
    with pytest.raises(ValidationError):
        RepAdapter(**options)
