"""GIFT's blocks between phi and psi: dW = g(W phi) psi in every form."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones import Backbone
from gistcli.methods.gift import Gift, GiftTuner
from gistcli.methods.gift_blocks import BlockName
from tests.methods.measuring import count_on_vit_b_16

BLOCKS = [name for name in get_args(BlockName) if name != "none"]
SMALL = {"paca": {"clusters": 5, "heads": 2}, "transformer": {"heads": 2}}
SMALL["mlp_mixer"] = {"mixed_tokens": 3}


def small(block: str, **options: object) -> Gift:
    return Gift(**{"rank": 4, "block": block, **SMALL.get(block, {}), **options})


def disturb(tuner: GiftTuner, size: float = 0.3) -> None:
    torch.manual_seed(5)
    tuner.load_state({n: t + size * torch.randn_like(t) for n, t in tuner.state().items()})


def run(tuner: GiftTuner, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return tuner(batch).logits


def attention_by_rows(block: nn.Module, x_ND: Tensor, heads: int) -> Tensor:
    q, k, v = (F.linear(x_ND, m.weight, m.bias) for m in (block.q, block.k, block.v))
    width = x_ND.shape[1] // heads
    parts = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        parts.append((q[:, part] @ k[:, part].t() / width**0.5).softmax(1) @ v[:, part])
    return F.linear(torch.cat(parts, 1), block.proj.weight, block.proj.bias)


def mlp(ffn: nn.Module, x: Tensor) -> Tensor:
    hidden = F.gelu(F.linear(x, ffn.fc_in.weight, ffn.fc_in.bias))
    return F.linear(hidden, ffn.fc_out.weight, ffn.fc_out.bias)


def expected(name: str, block: nn.Module, c_NR: Tensor) -> Tensor:
    """g as the authors' code defines it, for one weight."""
    if name == "gelu":
        return F.gelu(c_NR)
    if name == "sigmoid":
        return 1 / (1 + torch.exp(-c_NR))
    normal = F.normalize(c_NR, dim=1)
    if name == "mlp_mixer":
        c_NR = c_NR + mlp(block.mixing.mlp, normal.t()).t()
    elif name == "transformer":
        c_NR = c_NR + attention_by_rows(block.mixing, normal, 2)
    elif name == "paca":
        c_NR = c_NR + block.mixing(normal[None])[0]
    return c_NR + mlp(block.ffn, F.normalize(c_NR, dim=1))


@torch.no_grad()
@pytest.mark.parametrize("targets", [["attn_out"], ["query"]])
@pytest.mark.parametrize("block", BLOCKS)
def test_the_site_computes_w_plus_g_of_w_phi_psi(
    tiny: Backbone, block: str, targets: list[str]
) -> None:
    tuner = small(block, targets=targets, scaling=0.7).attach(tiny).eval()
    disturb(tuner)
    for site in tuner.sites:
        key = tuner.key_of(site)
        g = tuner.blocks[key]
        c_NR = site.weight() @ tuner.phi[key]
        columns = expected(block, g, c_NR)
        assert torch.allclose(tuner.clusters(site), columns, atol=1e-5)
        assert not torch.allclose(columns, c_NR, atol=1e-2)
        dense = site.weight() + 0.7 * columns @ tuner.psi[key]
        x = torch.randn(2, 7, site.d_in)
        rows = site.rows or slice(None)
        y = site.module(x)[..., rows]
        assert torch.allclose(y, F.linear(x, dense, site.module.bias[rows]), atol=1e-4)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_starts_at_the_identity_and_merges(
    tiny: Backbone, batch: dict[str, Tensor], block: str
) -> None:
    with torch.no_grad():
        base = tiny(batch).logits
    tuner = small(block, targets=["attn_out", "value"]).attach(tiny).eval()
    assert torch.equal(run(tuner, batch), base)
    disturb(tuner)
    tuned = run(tuner, batch)
    assert not torch.allclose(tuned, base, atol=1e-2)
    merged = tuner.merge()
    tuner.detach()
    state = tiny.model.state_dict()
    for name, update in merged.low_rank.items():
        weight = state[f"{name}.weight"]
        dense = weight + update.b(weight) @ update.a
        assert torch.allclose(merged.patches[f"{name}.weight"](weight), dense)
    state |= {n: patch(state[n]) for n, patch in merged.patches.items()} | dict(merged.new)
    tiny.model.load_state_dict(state)
    with torch.no_grad():
        assert torch.allclose(tiny(batch).logits, tuned, atol=1e-5)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_part_of_a_block_learns_also_under_checkpointing(
    tiny: Backbone, batch: dict[str, Tensor], block: str
) -> None:
    # not attn_out: what all its rows share is taken out again by the next LayerNorm
    tuner = small(block, targets=["fc_in"]).attach(tiny)
    disturb(tuner)
    seen = []
    for checkpointing in (False, True):
        tiny.model.set_grad_checkpointing(checkpointing)
        with tuner.step():
            F.cross_entropy(tuner(batch).logits, batch["labels"]).backward()
        grads = {n: p.grad.clone() for n, p in tuner.named_parameters() if p.requires_grad}
        tuner.zero_grad()
        tiny.model.zero_grad()
        seen.append(grads)
    assert set(tuner.trainable()) - set(seen[0]) == tuner.idle() | {"head.weight", "head.bias"}
    for name, gradient in seen[0].items():
        assert torch.allclose(gradient, seen[1][name], atol=1e-6), name
        assert gradient.abs().max() > 1e-6, name


def test_evaluation_computes_each_block_once_and_training_every_time(
    tiny: Backbone, batch: dict[str, Tensor]
) -> None:
    tuner = small("paca").attach(tiny).eval()
    disturb(tuner)
    outside, calls = run(tuner, batch), []
    tuner.blocks["attn_out"].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), tuner.step():
        inside = [tuner(batch).logits for _ in range(3)]
    assert len(calls) == len(tuner.sites) == 2
    assert all(torch.equal(each, outside) for each in inside)
    disturb(tuner)
    assert not torch.allclose(run(tuner, batch), outside, atol=1e-3)
    assert len(calls) == 4
    with tuner.step():
        tuner(batch)
        tuner(batch)
    assert len(calls) == 8


@pytest.mark.parametrize("block", BLOCKS)
def test_compiled_after_attaching_a_block_equals_eager(
    tiny: Backbone, batch: dict[str, Tensor], block: str
) -> None:
    tuner = small(block).attach(tiny).eval()
    disturb(tuner)
    eager = run(tuner, batch)
    tiny.compile(backend="eager", fullgraph=True)
    assert torch.equal(run(tuner, batch), eager)
    with tuner.step():
        assert torch.equal(run(tuner, batch), eager)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"block": "gelu"}, 0),
        ({"block": "sigmoid"}, 0),
        ({"block": "mlp"}, 2 * 2 * 16**2 + 3 * 16),
        ({"block": "mlp_mixer"}, 2 * 768 * 64 + 768 + 64 + 1072),
        ({"block": "transformer"}, 4 * (16**2 + 16) + 1072),
        ({"block": "paca"}, 4 * (16**2 + 16) + 64 * 17 + 1072),
        ({"block": "paca", "clusters": 8, "block_ratio": 3}, 1088 + 8 * 17 + 6 * 256 + 64),
    ],
)
def test_counts_on_vit_b_16_are_those_of_the_sizes(options: dict, parameters: int) -> None:
    assert count_on_vit_b_16(Gift(**options)) == 24_576 + parameters


def test_token_mixing_is_shared_only_where_the_rows_are_as_many(tiny: Backbone) -> None:
    both = {"targets": ["attn_out", "fc_in"], "share": "all"}
    tuner = small("mlp_mixer", **both).attach(tiny)
    assert sorted(tuner.blocks) == sorted(tuner.phi) == ["all_24x24", "all_24x96"]
    assert [b.mixing.mlp.fc_in.in_features for _, b in sorted(tuner.blocks.items())] == [24, 96]
    tuner.detach()
    assert sorted(small("mlp", **both).attach(tiny).phi) == ["all"]


def test_the_cluster_map_does_not_decay(tiny: Backbone) -> None:
    trained = small("paca").attach(tiny).trainable()
    decayed = {n.removeprefix("blocks.attn_out.") for n, t in trained.items() if t.decay}
    assert {"phi.attn_out", "psi.attn_out", "mixing.q.weight", "ffn.fc_in.weight"} <= decayed
    assert not any("cluster" in n or "bias" in n for n in decayed)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"heads": 2}, "heads acts with block transformer or paca only"),
        ({"block": "mlp", "clusters": 8}, "clusters acts with block paca only"),
        ({"block": "transformer", "heads": 3}, "rank 16 is no multiple of heads 3"),
        ({"block": "conv"}, "'none', 'gelu'"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: dict, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Gift(**options)
