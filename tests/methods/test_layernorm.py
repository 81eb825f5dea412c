"""LayerNorm tuning: norm layers are found by their class, wherever they are called something."""

from __future__ import annotations

import pytest
from timm.layers import LayerNorm2d, RmsNorm, SimpleNorm
from torch import nn

from gistcli.backbones import Backbone
from gistcli.methods.layernorm import LayerNorm, is_norm
from tests.methods.measuring import count_on_vit_b_16


def test_the_count_on_vit_b_16_is_that_of_the_paper() -> None:
    assert count_on_vit_b_16(LayerNorm()) == 38_400


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm, LayerNorm2d, RmsNorm, SimpleNorm])
def test_norms_are_recognised_by_class(kind: type[nn.Module]) -> None:
    assert is_norm(kind(8))
    assert is_norm(nn.GroupNorm(2, 8))


@pytest.mark.parametrize("module", [nn.Linear(8, 8), nn.Conv2d(3, 8, 1), nn.Identity()])
def test_other_layers_are_no_norms_whatever_their_name(module: nn.Module) -> None:
    holder = nn.ModuleDict({"norm": module, "ordinary": nn.LayerNorm(8)})
    assert not is_norm(module)
    assert [id(p) for p in LayerNorm().choose(holder)] == [
        id(p) for p in holder["ordinary"].parameters()
    ]


def test_a_merge_writes_these_tensors_alone(tiny: Backbone) -> None:
    tensors = tiny.model.state_dict()
    patches = LayerNorm().attach(tiny).merge().patches
    assert set(patches) == {n for n in tensors if "norm" in n}
