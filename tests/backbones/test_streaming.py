"""Weights that are in memory only while their block computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from gistcli.backbones import open_backbone
from gistcli.backbones.streaming import compute, empty, is_empty, stored
from gistcli.backbones.text import TextBackbone
from gistcli.methods.gift import Gift
from tests.backbones.text_kinds import DECODERS, batch, network


def opened(folder: Path, name: str, dtype: torch.dtype) -> tuple[TextBackbone, TextBackbone]:
    """A network in float32, and one whose weights are left on the disk."""
    task = "causal_lm" if name in DECODERS else "classification"
    network(name, task).to(dtype).save_pretrained(folder)
    whole, taken = (open_backbone(str(folder), dtype=d).eval() for d in ("float32", "auto"))
    assert isinstance(whole, TextBackbone)
    assert isinstance(taken, TextBackbone)
    empty(taken.model)
    return whole, taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["Llama", "GPT2", "Gemma2", "DebertaV2", "ModernBert"])
def test_the_logits_are_those_of_the_network_in_memory(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    whole, taken = opened(tmp_path, name, dtype)
    with torch.no_grad():
        wanted = whole(batch()).logits
    assert torch.equal(compute(taken.model, lambda: taken(batch()).logits), wanted)
    assert all(is_empty(p) for p in taken.model.parameters())
    for key, parameter in taken.model.named_parameters():
        assert torch.equal(stored(parameter), whole.model.get_parameter(key)), key


def test_one_block_is_in_memory_at_a_time(tmp_path: Path) -> None:
    _, taken = opened(tmp_path, "Llama", torch.bfloat16)
    alive: list[set[str]] = []

    def look(module: nn.Module, args: object) -> None:
        alive.append({n for n, p in taken.model.named_parameters() if not is_empty(p)})

    for block in taken.blocks:
        block.mlp.register_forward_pre_hook(look)
    compute(taken.model, lambda: taken(batch()).logits)
    first, second = alive
    assert {name for name in first if "layers." in name} == {
        name for name, _ in taken.model.named_parameters() if "layers.0." in name
    }
    assert all("layers.1." in name for name in second if "layers." in name)
    assert not any("embed" in name for name in first | second)


def test_methods_that_read_weights_beforehand_find_them(tmp_path: Path) -> None:
    whole, taken = opened(tmp_path, "Llama", torch.bfloat16)
    logits = []
    for backbone in (whole, taken):
        torch.manual_seed(0)
        tuner = Gift(rank=4, block="mlp_mixer", targets=["value"]).attach(backbone).eval()
        with torch.no_grad():
            for trained in tuner.trainable().values():
                trained.parameter.add_(0.1)

        def call() -> torch.Tensor:
            with tuner.step():  # noqa: B023 - called in the same turn
                return tuner(batch()).logits  # noqa: B023

        logits.append(compute(backbone.model, call))
    assert torch.allclose(*logits, atol=1e-6)


def test_other_tensors_can_stand_in_and_are_gone_afterwards(tmp_path: Path) -> None:
    whole, taken = opened(tmp_path, "Llama", torch.float32)
    halved = {n: p.detach() / 2 for n, p in whole.model.named_parameters()}
    with torch.no_grad():
        for name, parameter in whole.model.named_parameters():
            parameter.copy_(halved[name])
        wanted = whole(batch()).logits
    logits = compute(taken.model, lambda: taken(batch()).logits, halved.__getitem__)
    assert torch.equal(logits, wanted)
    assert all(is_empty(p) for p in taken.model.parameters())


def test_an_error_inside_leaves_nothing_in_memory(tmp_path: Path) -> None:
    _, taken = opened(tmp_path, "Llama", torch.float32)

    for where in ("model.norm", "layers.1.mlp", "embed_tokens"):

        def broken(name: str) -> torch.Tensor:
            if where in name:  # noqa: B023 - called in the same turn
                raise OSError(name)
            return stored(taken.model.get_parameter(name))

        with pytest.raises(OSError, match=where):
            compute(taken.model, lambda: taken(batch()).logits, broken)
        assert all(is_empty(p) for p in taken.model.parameters())
        assert not any(module._forward_hooks for module in taken.blocks)
