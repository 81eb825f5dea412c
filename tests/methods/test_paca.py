"""PaCa and its block against loops over layers, heads, tokens and clusters."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.methods.paca import ClusterAttention, MixingBlock, decays, full_float, idle

LIKE = torch.empty(0)


def affine(module: nn.Linear, x: Tensor) -> Tensor:
    return module.weight @ x + module.bias


def on_the_sphere(x: Tensor) -> Tensor:
    return x / math.sqrt(sum(float(v) ** 2 for v in x))


def paca_by_loops(paca: ClusterAttention, x_ND: Tensor) -> Tensor:
    """Equations 10 to 14 for one layer, a scalar at a time where that is the definition."""
    n, d = x_ND.shape
    assignment = [
        [1 / (n * (1 + math.exp(-float(h)))) for h in affine(paca.cluster, x)] for x in x_ND
    ]
    clusters = []
    for m in range(len(assignment[0])):
        z = sum((assignment[i][m] * x_ND[i] for i in range(n)), torch.zeros(d))
        clusters.append(on_the_sphere(z))
    width = d // paca.heads
    rows = []
    for x in x_ND:
        q, heads = affine(paca.q, x), []
        for h in range(paca.heads):
            part = slice(h * width, (h + 1) * width)
            keys = [affine(paca.k, z)[part] for z in clusters]
            weights = [math.exp(float(q[part] @ k) / math.sqrt(width)) for k in keys]
            values = [w * affine(paca.v, z)[part] for w, z in zip(weights, clusters, strict=True)]
            heads.append(sum(values, torch.zeros(width)) / sum(weights))
        rows.append(affine(paca.proj, torch.cat(heads)))
    return torch.stack(rows)


@torch.no_grad()
def test_paca_is_equations_10_to_14() -> None:
    torch.manual_seed(0)
    paca = ClusterAttention(dim=8, clusters=5, heads=2, like=LIKE)
    for parameter in paca.parameters():
        parameter.normal_()
    x_LND = torch.randn(3, 7, 8)
    by_loops = torch.stack([paca_by_loops(paca, x) for x in x_LND])
    assert torch.allclose(paca(x_LND), by_loops, atol=1e-5)
    paca.heads = 4
    assert not torch.allclose(paca(x_LND), by_loops, atol=1e-2)


@torch.no_grad()
def test_the_block_is_two_residuals_of_normalised_tokens() -> None:
    torch.manual_seed(0)
    paca = ClusterAttention(dim=8, clusters=5, heads=2, like=LIKE)
    block = MixingBlock(paca, 8, 3, LIKE)
    w_ND = 5 * torch.randn(7, 8)
    mixed = w_ND + paca_by_loops(paca, torch.stack([on_the_sphere(w) for w in w_ND]))
    rows = []
    for w in mixed:
        hidden = affine(block.ffn.fc_in, on_the_sphere(w))
        gelu = torch.stack([0.5 * h * (1 + torch.erf(h / math.sqrt(2))) for h in hidden])
        rows.append(w + affine(block.ffn.fc_out, gelu))
    assert len(gelu) == 24
    assert torch.allclose(block(w_ND[None])[0], torch.stack(rows), atol=1e-5)


@torch.no_grad()
def test_assignments_lie_between_zero_and_one_over_the_rows() -> None:
    torch.manual_seed(0)
    paca = ClusterAttention(dim=8, clusters=5, heads=2, like=LIKE)
    c_LNM = paca.assign(F.normalize(torch.randn(2, 40, 8), dim=-1))
    assert c_LNM.shape == (2, 40, 5)
    assert ((c_LNM > 0) & (c_LNM < 1 / 40)).all()
    # softmax over the tokens, which this replaced, gives columns that sum to 1
    assert (c_LNM.sum(1) < 0.9).all()


def test_a_common_part_of_all_keys_changes_nothing_and_is_said_to_be_idle() -> None:
    torch.manual_seed(0)
    block = MixingBlock(ClusterAttention(8, 5, 2, LIKE), 8, 2, LIKE)
    w_LND = torch.randn(2, 7, 8)
    assert idle(block) == {"mixing.k.bias"}
    with torch.no_grad():
        before = block(w_LND)
        block.mixing.k.bias += 1
        assert torch.allclose(block(w_LND), before, atol=1e-5)
        block.mixing.v.bias += 1
        assert not torch.allclose(block(w_LND), before, atol=1e-2)
    block(w_LND).sum().backward()
    assert {n for n, p in block.named_parameters() if p.grad is None} == idle(block)


def test_the_cluster_map_and_biases_do_not_decay() -> None:
    block = MixingBlock(ClusterAttention(8, 5, 2, LIKE), 8, 2, LIKE)
    decayed = {n for n, p in block.named_parameters() if decays(f"blocks.0.{n}", p)}
    maps = {"mixing.q", "mixing.k", "mixing.v", "mixing.proj", "ffn.fc_in", "ffn.fc_out"}
    assert decayed == {f"{name}.weight" for name in maps}


def test_autocast_leaves_it_in_float32() -> None:
    paca = ClusterAttention(8, 5, 2, LIKE)
    x_LND = torch.randn(2, 7, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert paca(x_LND).dtype == torch.bfloat16
        with full_float(x_LND.device):
            assert paca(x_LND).dtype == torch.float32
