"""One pass over examples and queries against two: compress, then read behind the prefix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gistcli.errors import NotSupported
from gistcli.hyper.gisting import GIST
from gistcli.hyper.hyperllama import HyperTuner
from gistcli.methods.adapter import Adapter
from gistcli.methods.gift import Gift
from gistcli.methods.lora import Lora
from tests.hyper.episodes import GISTS, LLAMA, attach, decoder, episodes, front, gradients, query

FAMILIES = {
    "Llama": LLAMA,
    "GPTNeoX": Lora(rank=3, targets=("query_key_value", "attn_out", "fc_in", "fc_out")),
    "Phi3": Lora(rank=3, targets=("query", "key", "value", "fc_out")),
    "Cohere": Lora(rank=3),
    "Mistral": Lora(rank=3),
    "Gemma2": Lora(rank=3),
}
"""Turned by halves, in part, in a fused map, in alternating pairs, and behind windows of 4."""
EXACT = {"Gemma2": 1e-5}  # its softmax is float32 whatever the network is


def scale(gradient: Tensor) -> float:
    return float(gradient.abs().max())


def require_equal(tuner: HyperTuner, batch: dict[str, Tensor], logits: float, grads: float) -> None:
    """One pass and two give the same logits and gradients."""
    single = tuner(batch).logits
    ours = gradients(tuner, single.float().pow(2).mean())
    double = tuner.two_pass(batch).logits
    theirs = gradients(tuner, double.float().pow(2).mean())
    assert single.shape == (int((batch["labels"] != -100).sum()), single.shape[1])
    torch.testing.assert_close(double, single, atol=logits, rtol=0)
    largest = max(scale(g) for g in ours.values())
    for name, gradient in ours.items():
        near = grads * max(scale(gradient), 1e-3 * largest)
        torch.testing.assert_close(theirs[name], gradient, atol=near, rtol=0)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_two_passes_are_one_in_double_precision(name: str, adapted: bool) -> None:
    backbone = decoder(name)
    tuner = attach(backbone, FAMILIES[name], adapt_downstream=adapted)
    backbone.model.double()
    tuner.double()
    exact = EXACT.get(name)
    require_equal(tuner, episodes(), exact or 1e-10, exact or 1e-8)


@pytest.mark.parametrize("method", [LLAMA, Adapter(dim=4), Gift(rank=2)], ids=lambda m: m.name)
def test_they_are_so_in_single_precision_with_every_kind_of_seam(method: Lora) -> None:
    tuner = attach(decoder(), method)
    require_equal(tuner, episodes(), 1e-5, 1e-4)
