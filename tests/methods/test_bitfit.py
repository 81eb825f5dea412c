"""BitFit: which biases it takes, and float32 biases in a network of lower precision."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones import Backbone
from gistcli.errors import Refused
from gistcli.methods.bitfit import BitFit
from tests.methods.measuring import count_on_vit_b_16, on_vit_b_16


@pytest.mark.parametrize(
    ("options", "parameters"), [({}, 102_912), ({"linear_only": True}, 82_944)]
)
def test_counts_on_vit_b_16_are_those_of_the_papers(options: dict, parameters: int) -> None:
    assert count_on_vit_b_16(BitFit(**options)) == parameters
    assert not any(t.decay for t in on_vit_b_16(BitFit(**options)))


def chosen(method: BitFit, model: nn.Module) -> set[str]:
    picked = {id(p) for p in method.choose(model)}
    return {name for name, p in model.named_parameters() if id(p) in picked}


def test_biases_beside_a_fused_map_count_and_a_table_of_positions_does_not() -> None:
    model = timm.create_model("beit_base_patch16_224", depth=1, embed_dim=24, num_heads=2)
    names = chosen(BitFit(), model)
    assert {"blocks.0.attn.q_bias", "blocks.0.attn.v_bias", "blocks.0.norm1.bias"} <= names
    tables = {n for n, _ in model.named_parameters() if n.endswith("relative_position_bias_table")}
    assert tables
    assert not tables & names


def test_linear_only_leaves_norms_and_convolutions_alone(tiny: Backbone) -> None:
    every, linear = chosen(BitFit(), tiny.model), chosen(BitFit(linear_only=True), tiny.model)
    assert every - linear == {
        "patch_embed.proj.bias",
        "norm.bias",
        *(f"blocks.{i}.norm{j}.bias" for i in (0, 1) for j in (1, 2)),
    }
    assert linear < every


def test_a_network_without_biases_has_nothing_to_train(tiny: Backbone) -> None:
    heads = {f"{name}.bias" for name in ("head",)}
    for name, _ in list(tiny.model.named_parameters()):
        module, last = tiny.parameter_owner(name)
        if last == "bias" and name not in heads:
            module.bias = None
    with pytest.raises(Refused, match="bitfit finds nothing to train"):
        BitFit().attach(tiny)


def test_a_merge_writes_these_tensors_alone(tiny: Backbone) -> None:
    tensors = tiny.model.state_dict()
    patches = BitFit().attach(tiny).merge().patches
    assert set(patches) == {n for n in tensors if n.endswith(".bias") and n != "head.bias"}


def test_float32_biases_train_beside_bfloat16_weights(
    tiny: Backbone, batch: dict[str, Tensor]
) -> None:
    low = {**batch, "pixels": batch["pixels"].bfloat16()}
    tuner = BitFit().attach(tiny.to(torch.bfloat16)).eval()
    before = tuner(low).logits.detach()
    F.cross_entropy(tuner(low).logits, batch["labels"]).backward()
    for name, trained in tuner.trainable().items():
        assert trained.parameter.grad is not None, name
        assert trained.parameter.grad.dtype == torch.float32
    biases = [t.parameter for t in tuner.trainable().values() if t.group == "method"]
    with torch.no_grad():
        for bias in biases:
            bias += 0.5
    assert not torch.allclose(tuner(low).logits, before, atol=1e-2)
    # what hides a bias during the forward pass is gone after it
    assert all("bias" not in vars(m) for m in tiny.model.modules())
    with tuner.disabled():
        assert next(tiny.model.blocks[0].parameters()).dtype == torch.bfloat16
        assert tiny.model.blocks[0].attn.qkv.bias.dtype == torch.bfloat16


def test_it_compiles_in_bfloat16_too(tiny: Backbone, batch: dict[str, Tensor]) -> None:
    low = {**batch, "pixels": batch["pixels"].bfloat16()}
    tuner = BitFit().attach(tiny.to(torch.bfloat16)).eval()
    tuner.load_state({n: t + 0.1 * torch.randn_like(t) for n, t in tuner.state().items()})
    with torch.no_grad():
        eager = tuner(low).logits
        tiny.compile(backend="eager", fullgraph=True)
        assert torch.equal(tuner(low).logits, eager)
