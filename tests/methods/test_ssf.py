"""SSF: its count, its merge on every kind of ViT, what it keeps for the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gistcli.backbones import Backbone
from gistcli.backbones.sites import Output
from gistcli.errors import NotSupported
from gistcli.methods.ssf import Ssf, SsfTuner
from gistcli.testing.kinds import KINDS
from tests.backbones.kinds import ALL
from tests.methods.measuring import on_vit_b_16


def attach(backbone: Backbone, seed: int = 2) -> SsfTuner:
    torch.manual_seed(seed)
    tuner = Ssf().attach(backbone).eval()
    assert isinstance(tuner, SsfTuner)
    return tuner


def test_the_count_on_vit_b_16_is_that_of_the_paper_and_nothing_decays() -> None:
    trained = on_vit_b_16(Ssf())
    assert sum(t.parameter.numel() for t in trained) == 205_824
    assert not any(t.decay for t in trained)


def test_scales_start_around_one_and_shifts_around_zero() -> None:
    backbone = KINDS["class token"].backbone()
    tuner = attach(backbone)
    gamma, beta = torch.cat(list(tuner.gamma.values())), torch.cat(list(tuner.beta.values()))
    assert gamma.mean().item() == pytest.approx(1, abs=2e-3)
    assert beta.mean().item() == pytest.approx(0, abs=2e-3)
    assert gamma.std().item() == pytest.approx(0.02, rel=0.1)
    assert beta.std().item() == pytest.approx(0.02, rel=0.1)
    assert not Ssf().starts_as_base()


@pytest.mark.parametrize(
    "kind",
    [
        "class token", "average pool", "DINOv2 registers", "CLIP", "DINOv3", "Sapiens2",
        "norms of queries and keys", "differential attention", "BEiT 3", "AIMv2",
    ],
)  # fmt: skip
def test_scaled_rows_are_the_tuned_network_in_double_precision(kind: str) -> None:
    backbone = ALL[kind].backbone()
    backbone.model.double()
    pixels = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    tuner = attach(backbone)
    tuner.load_state({n: t + 0.3 * torch.randn_like(t) for n, t in tuner.state().items()})
    with torch.no_grad():
        tuned = tuner({"pixels": pixels}).pooled
    merged = tuner.merge()
    tuner.detach()
    base = backbone.model.state_dict()
    untouched = set(base) - set(merged.patches) - set(merged.new)
    assert not [n for n in untouched if "norm" in n or "patch_embed" in n or "mlp" in n]
    plain = {n: merged.patches[n](t) if n in merged.patches else t for n, t in base.items()}
    with torch.no_grad():
        assert not torch.allclose(backbone({"pixels": pixels}).pooled, tuned, atol=1e-2)
        backbone.model.load_state_dict(plain | merged.new)
        assert torch.allclose(backbone({"pixels": pixels}).pooled, tuned, atol=1e-10)


def test_heads_share_the_scale_behind_the_norm_of_their_queries() -> None:
    backbone = ALL["norms of queries and keys"].backbone()
    tuner, block = attach(backbone), backbone.blocks[1]
    gamma, beta = tuner.gamma["blocks_1_attn_q_norm"], tuner.beta["blocks_1_attn_q_norm"]
    assert gamma.shape == beta.shape == (12,)
    x_BHTD = torch.randn(3, 2, 17, 12)
    scaled = block.attn.q_norm(x_BHTD)
    with tuner.disabled():
        plain = block.attn.q_norm(x_BHTD)
    assert torch.allclose(scaled, gamma * plain + beta, atol=1e-6)
    assert not torch.allclose(scaled, plain, atol=1e-3)


def test_every_channel_of_the_patch_embedding_has_its_own_scale(tiny: Backbone) -> None:
    tuner, pixels = attach(tiny), torch.randn(2, 3, 32, 32)
    convolution = tiny.model.patch_embed.proj
    with tuner.disabled():
        plain = convolution(pixels)
    key = "patch_embed_proj"
    by_hand = tuner.gamma[key][:, None, None] * plain + tuner.beta[key][:, None, None]
    assert torch.allclose(convolution(pixels), by_hand, atol=1e-6)
    assert not torch.allclose(convolution(pixels), plain, atol=1e-3)


def test_a_module_without_a_bias_gets_no_shift(tiny: Backbone) -> None:
    tiny.model.blocks[0].attn.qkv.bias = None
    tuner = attach(tiny)
    assert "blocks_0_attn_qkv" in tuner.gamma
    assert "blocks_0_attn_qkv" not in tuner.beta
    assert "blocks_1_attn_qkv" in tuner.beta
    assert "blocks.0.attn.qkv.bias" not in tuner.merge().patches


def test_a_module_that_is_never_called_is_refused_and_nothing_stays(
    tiny: Backbone, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny(batch).logits
    found = tiny.outputs()
    silent = Output("blocks.1.attn.qkv", "linear", 72, tiny.model.blocks[1].attn.qkv, True)
    monkeypatch.setattr(tiny, "outputs", lambda: [*found, silent])
    with pytest.raises(NotSupported, match=r"blocks\.1\.attn\.qkv is never called"):
        attach(tiny)
    assert torch.equal(tiny(batch).logits, base)
    monkeypatch.setattr(tiny, "outputs", lambda: found)
    attach(tiny)


def test_a_scale_finer_than_bfloat16_acts_in_a_bfloat16_network(
    tiny: Backbone, batch: dict[str, Tensor]
) -> None:
    tuner = attach(tiny.to(torch.bfloat16))
    y = torch.full((1, 24), 200.0, dtype=torch.bfloat16)
    key = "blocks_0_norm1"
    with torch.no_grad():
        tuner.gamma[key].fill_(1.003)  # bfloat16 has 1 and 1.0078
        tuner.beta[key].fill_(0.5)
    scaled = tuner._scale(key)(y)
    assert torch.allclose(scaled, torch.tensor(201.1), atol=1e-4)
    low = {"pixels": batch["pixels"].bfloat16()}
    assert tuner(low).tokens.dtype == torch.bfloat16


def kept_bytes(backbone: Backbone, module: torch.nn.Module, batch: dict[str, Tensor]) -> int:
    """Bytes that the backward pass keeps beside parameters, each storage once."""
    own = {p.untyped_storage().data_ptr() for m in (backbone, module) for p in m.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = F.cross_entropy(module(batch).logits, batch["labels"])
    assert loss.requires_grad
    return sum(t.untyped_storage().nbytes() for p, t in kept.items() if p not in own)


def test_nothing_is_kept_but_one_output_for_every_scale(
    tiny: Backbone, batch: dict[str, Tensor]
) -> None:
    tuner = attach(tiny)
    outputs: dict[str, int] = {}
    handles = [
        o.module.register_forward_hook(
            lambda m, args, y, name=o.name: outputs.update({name: y.numel() * 4})
        )
        for o in tuner.outputs.values()
    ]
    scaled = kept_bytes(tiny, tuner, batch)
    for handle in handles:
        handle.remove()
    for parameter in tuner.gamma.values():  # shifts alone need no activation
        parameter.requires_grad_(False)
    shifted = kept_bytes(tiny, tuner, batch)
    assert 0 < scaled - shifted <= sum(outputs.values())
