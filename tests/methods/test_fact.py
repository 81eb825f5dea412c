"""FacT: counts, and both variants against the update written out slice by slice."""

from __future__ import annotations

import pytest
import timm
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from gistcli.backbones import Backbone
from gistcli.backbones.base import Origin
from gistcli.backbones.vit import ViT
from gistcli.errors import NotSupported
from gistcli.methods.fact import Fact, FactTuner
from gistcli.testing.acting import disturb
from tests.methods.measuring import count_on_vit_b_16, require_movement


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"variant": "tt", "rank": 16}, 61_440),
        ({"variant": "tt", "rank": 8}, 21_504),
        ({"variant": "tk", "rank": 32}, 86_528),
        ({"variant": "tk", "rank": 16}, 30_976),
        ({"variant": "tt", "rank": 16, "targets": ["query", "value"]}, 2 * 768 * 16 + 24 * 256),
    ],
)
def test_counts_on_vit_b_16_are_those_of_the_paper(options: dict, parameters: int) -> None:
    assert count_on_vit_b_16(Fact(**options)) == parameters


def disturbed(method: Fact, backbone: Backbone) -> FactTuner:
    tuner = method.attach(backbone).eval()
    disturb(tuner, 0.2)
    return tuner


def written_out(tuner: FactTuner) -> dict[str, Tensor]:
    """Module -> dW (d_out, d_in), one square at a time, as the paper counts them."""
    method, state = tuner.method, tuner.state()
    u_DR, v_RD = state["u.24"], state["v.24"]
    found, number = {}, 0
    for layer in (0, 1):
        for path, inputs, outputs in (
            ("attn.qkv", 1, 3),
            ("attn.proj", 1, 1),
            ("mlp.fc1", 1, 4),
            ("mlp.fc2", 4, 1),
        ):
            name = f"blocks.{layer}.{path}"
            delta_OI = torch.zeros(outputs * 24, inputs * 24)
            for i in range(inputs):
                for o in range(outputs):
                    if method.variant == "tt":
                        core = state[f"core.{name.replace('.', '_')}"]
                        r = method.rank
                        s_RR = core[i * r : (i + 1) * r, o * r : (o + 1) * r]
                    else:
                        p_R = state["columns.24"][:, number]
                        s_RR = torch.einsum("abc,c->ab", state["core.24"], p_R)
                    number += 1
                    square = method.scale * u_DR @ s_RR @ v_RD
                    delta_OI[o * 24 : (o + 1) * 24, i * 24 : (i + 1) * 24] = square.t()
            found[name] = delta_OI
    return found


@pytest.mark.parametrize("variant", ["tt", "tk"])
def test_activation_form_merge_and_the_written_out_update_agree(
    tiny: Backbone, variant: str
) -> None:
    tuner = disturbed(Fact(variant=variant, rank=3, scale=0.7), tiny)
    merged = tuner.merge()
    for name, delta_OI in written_out(tuner).items():
        module = tiny.model.get_submodule(name)
        x, dense = torch.randn(2, 7, module.in_features), module.weight + delta_OI
        with torch.no_grad():
            assert delta_OI.abs().max() > 1e-2
            assert torch.allclose(module(x), F.linear(x, dense, module.bias), atol=1e-5)
            assert torch.allclose(merged.patches[f"{name}.weight"](module.weight), dense, atol=1e-5)


@pytest.mark.parametrize("variant", ["tt", "tk"])
def test_rows_that_were_not_chosen_stay(tiny: Backbone, variant: str) -> None:
    tuner = disturbed(Fact(variant=variant, rank=3, targets=["query", "value"]), tiny)
    module = tiny.model.blocks[0].attn.qkv
    x = torch.randn(2, 7, 24)
    with torch.no_grad():
        delta = module(x) - F.linear(x, module.weight, module.bias)
        patch = tuner.merge().patches["blocks.0.attn.qkv.weight"]
        dense = F.linear(x, patch(module.weight) - module.weight)
    assert torch.allclose(delta, dense, atol=1e-5)
    assert delta[..., 24:48].abs().max() < 1e-6
    assert min(delta[..., :24].abs().max(), delta[..., 48:].abs().max()) > 1e-2


def test_the_outer_factors_are_shared_and_every_update_has_rank_r(tiny: Backbone) -> None:
    tuner = disturbed(Fact(rank=3), tiny)
    assert {n for n in tuner.state() if n[0] in "uv"} == {"u.24", "v.24"}
    merged = tuner.merge()
    assert {update.a.shape[0] for update in merged.low_rank.values()} == {3}


@pytest.mark.parametrize("variant", ["tt", "tk"])
def test_v_starts_at_zero_and_everything_has_a_gradient_after_one_step(
    tiny: Backbone, batch: dict[str, Tensor], variant: str
) -> None:
    tuner = Fact(variant=variant, rank=3).attach(tiny)
    assert tuner.v["24"].abs().sum() == 0
    require_movement(tuner, batch)


def test_dropout_acts_in_training_alone(tiny: Backbone, batch: dict[str, Tensor]) -> None:
    tuner = disturbed(Fact(rank=3, dropout=0.5), tiny)
    with torch.no_grad():
        assert torch.equal(tuner(batch).logits, tuner(batch).logits)
        tuner.train()
        assert not torch.equal(tuner(batch).logits, tuner(batch).logits)


def test_a_hidden_width_that_is_no_multiple_is_refused_and_can_be_left_out() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=2, mlp_ratio=2.5
    )
    backbone = ViT(model, Origin("odd", "vit_tiny_patch16_224"))
    backbone.reset_head(5)
    with pytest.raises(NotSupported, match=r"blocks\.0\.mlp\.fc1 has 24 inputs and 60 outputs"):
        Fact().attach(backbone)
    assert Fact(targets=["attn_out"]).attach(backbone).sites


@pytest.mark.parametrize("options", [{"rank": 0}, {"scale": 0}, {"variant": "cp"}, {"dropout": 1}])
def test_options_without_meaning_are_refused(options: dict) -> None:
    with pytest.raises(ValidationError):
        Fact(**options)
