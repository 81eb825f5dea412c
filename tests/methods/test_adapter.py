"""Adapters: each variant against a block written out, counts, starts, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from gistcli.backbones import Backbone, open_backbone
from gistcli.backbones.sites import Point
from gistcli.errors import NotMergeable, NotSupported
from gistcli.methods.adapter import FORMS, Adapter, AdapterModule, AdapterTuner
from tests.methods.measuring import count_on_vit_b_16, require_movement

VARIANTS = list(FORMS)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 156_768),
        ({"variant": "pfeiffer", "dim": 96}, 1_779_840),
        ({"variant": "houlsby"}, 313_536),
        ({"variant": "parallel"}, 82_992),
        ({"variant": "adaptformer"}, 1_189_632),
        ({"variant": "adaptformer", "dim": 8}, 156_768),
        ({"variant": "adapter_plus"}, 156_768 + 12 * 768),
        ({"variant": "houlsby", "layers": [0, -1]}, 313_536 // 6),
    ],
)
def test_counts_on_vit_b_16_are_those_of_the_papers(options: dict, parameters: int) -> None:
    assert count_on_vit_b_16(Adapter(**options)) == parameters


def disturb(tuner: AdapterTuner) -> None:
    generator = torch.Generator().manual_seed(3)
    state = tuner.state()
    tuner.load_state(
        {n: t + 0.3 * torch.randn(t.shape, generator=generator) for n, t in state.items()}
    )


def run(module: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return module(batch).logits


def apply(m: AdapterModule, u: Tensor, act: Callable[[Tensor], Tensor], s: Any) -> Tensor:
    """The formula, from the stored numbers."""
    return s * (act(u @ m.down.t() + m.down_bias) @ m.up.t() + m.up_bias)


def sigmoid_gelu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def block_written_out(variant: str, tuner: AdapterTuner, layer: int, x: Tensor) -> Tensor:
    """One block of a timm ViT with the adapter of its paper, from the block's own modules."""
    block: Any = tuner.backbone.blocks[layer]
    modules: Any = tuner.adapters
    norm1, attn, norm2, mlp = block.norm1, block.attn, block.norm2, block.mlp
    if variant == "houlsby":
        y = attn(norm1(x))
        x = x + y + apply(modules[f"{layer}_attention"], y, F.gelu, 1)
        y = mlp(norm2(x))
        return x + y + apply(modules[f"{layer}_mlp"], y, F.gelu, 1)
    if variant == "parallel":
        shared = modules[f"{layer}"]
        x = x + attn(norm1(x)) + apply(shared, x, F.gelu, 0.1)
        return x + mlp(norm2(x)) + apply(shared, x, F.gelu, 0.1)
    module = modules[f"{layer}_mlp"]
    x = x + attn(norm1(x))
    y = mlp(norm2(x))
    if variant == "pfeiffer":
        return x + y + apply(module, y, sigmoid_gelu, 1)
    if variant == "adaptformer":
        return x + y + apply(module, x, F.relu, 0.1)
    return x + y + apply(module, x + y, F.gelu, module.scale)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_network_written_out_by_hand_gives_the_same_logits(
    variant: str, tiny: Backbone, batch: dict[str, Tensor]
) -> None:
    base = run(tiny, batch)
    tuner = Adapter(variant=variant, dim=3).attach(tiny).eval()  # type: ignore[arg-type]
    assert isinstance(tuner, AdapterTuner)
    disturb(tuner)
    tuned, model = run(tuner, batch), tiny.timm  # type: ignore[attr-defined]
    assert not torch.allclose(tuned, base, atol=1e-2)
    with torch.no_grad():
        x = model._pos_embed(model.patch_embed(batch["pixels"]))
        tuner.switch.enabled = False
        for layer in range(2):
            x = block_written_out(variant, tuner, layer, x)
        assert torch.allclose(model.forward_head(model.norm(x)), tuned, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "identity"),
    [
        ({"variant": "houlsby"}, False),
        ({"variant": "houlsby", "init": "zero_up"}, True),
        ({"variant": "pfeiffer"}, True),
        ({"variant": "pfeiffer", "init": "published"}, False),
        ({"variant": "parallel"}, False),
        ({"variant": "parallel", "init": "zero_up"}, True),
        ({"variant": "adaptformer"}, True),
        ({"variant": "adaptformer", "init": "published"}, True),
        ({"variant": "adapter_plus"}, False),
        ({"variant": "adapter_plus", "init": "zero_up"}, True),
    ],
)
def test_the_start_is_the_identity_where_it_is_declared(
    options: dict, identity: bool, tiny: Backbone, batch: dict[str, Tensor]
) -> None:
    method, base = Adapter(**options), run(tiny, batch)
    assert method.starts_as_base() == identity
    assert torch.equal(run(method.attach(tiny).eval(), batch), base) == identity


@pytest.mark.parametrize("init", [None, "zero_up", "published"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_steps_move_every_tensor(
    variant: str, init: Any, tiny: Backbone, batch: dict[str, Tensor]
) -> None:
    tuner = Adapter(variant=variant, init=init).attach(tiny)  # type: ignore[arg-type]
    require_movement(tuner, batch)


def test_published_starts_have_the_published_spread() -> None:
    backbone = open_backbone("vit_base_patch16_224", meta=True)
    like = torch.empty(0)
    std = {
        variant: AdapterModule(Adapter(variant=variant, init="published", dim=64).form, 768, like)
        for variant in VARIANTS
    }
    assert std["parallel"].down.std().item() == pytest.approx(0.02, rel=0.02)
    assert std["houlsby"].up.abs().max() <= 0.02
    assert std["houlsby"].up.std().item() == pytest.approx(0.01 * 0.88, rel=0.02)
    assert std["adaptformer"].down.abs().max() <= 768**-0.5
    assert std["adaptformer"].up.abs().sum() == 0
    assert std["pfeiffer"].up.abs().max() <= (6 / (768 + 64)) ** 0.5
    assert torch.equal(torch.as_tensor(std["adapter_plus"].scale), torch.ones(768))
    assert all(m.down_bias.abs().sum() + m.up_bias.abs().sum() == 0 for m in std.values())
    assert all(p.is_meta for p in Adapter().attach(backbone).parameters())


def test_options_take_the_place_of_the_variant_s_own(tiny: Backbone) -> None:
    form = Adapter(variant="parallel", dim=5, scale=2, dropout=0.3, activation="relu").form
    assert (form.dim, form.scale, form.dropout, form.activation) == (5, 2, 0.3, "relu")
    assert replace(form, dim=4, scale=0.1, dropout=0, activation="gelu") == FORMS["parallel"]


def test_dropout_acts_in_training_alone(tiny: Backbone, batch: dict[str, Tensor]) -> None:
    tuner = Adapter(variant="adaptformer", dropout=0.5).attach(tiny).eval()
    assert isinstance(tuner, AdapterTuner)
    disturb(tuner)
    assert torch.equal(run(tuner, batch), run(tuner, batch))
    tuner.train()
    assert not torch.equal(run(tuner, batch), run(tuner, batch))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_block_that_pools_is_refused_where_the_residual_is_read(
    variant: str, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny.point

    def pooling(after: str, layer: int) -> Point:
        return replace(plain(after, layer), aligned=(after, layer) != ("attention", 1))

    monkeypatch.setattr(tiny, "point", pooling)
    if variant != "parallel":
        Adapter(variant=variant).attach(tiny).detach()  # type: ignore[arg-type]
        return
    with pytest.raises(
        NotSupported, match=r"reads the residual, but .* pools its tokens in block 1\."
    ):
        Adapter(variant="parallel").attach(tiny)
    Adapter(variant="parallel", layers=[0]).attach(tiny)


def test_it_does_not_merge_and_says_why(tiny: Backbone) -> None:
    with pytest.raises(NotMergeable, match="non-linearity"):
        Adapter().attach(tiny).merge()


@pytest.mark.parametrize("options", [{"dim": 0}, {"scale": 0}, {"dropout": 1}, {"variant": "x"}])
def test_options_without_meaning_are_refused(options: dict) -> None:
    with pytest.raises(ValidationError):
        Adapter(**options)
