"""Recomputed activations give the gradients of kept ones, in every family of text networks."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from gistcli.methods.lora import Lora
from gistcli.testing.acting import disturb
from tests.backbones import text_kinds

NAMES = [*text_kinds.DECODERS, *text_kinds.ENCODERS]


def count(passes: list[int], *of_the_hook: object) -> None:
    passes[0] += 1


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_same(name: str) -> None:
    found, counted = [], []
    for recompute in (False, True):
        task = "causal_lm" if name in text_kinds.DECODERS else "classification"
        backbone = text_kinds.build(name, task)
        torch.manual_seed(0)
        tuner = Lora(rank=2, targets=("attn_out",)).attach(backbone)
        disturb(tuner)
        passes = [0]
        backbone.all_sites()[0].module.register_forward_pre_hook(partial(count, passes))
        if recompute:
            backbone.checkpoint_gradients()
        backbone.train()
        for module in backbone.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        torch.manual_seed(1)  # of the dropout of attention weights, which is no module
        tuner(text_kinds.batch()).logits.square().mean().backward()
        counted += passes
        found.append({n: t.parameter.grad for n, t in tuner.trainable().items()})
    assert counted[1] == 2 * counted[0] > 0  # DeBERTa calls its maps twice
    plain, again = found
    assert plain.keys() == again.keys()
    for key, gradient in plain.items():
        assert gradient is not None, key
        assert torch.allclose(again[key], gradient, atol=1e-5 * max(float(gradient.abs().max()), 1))
