"""Attention in pieces against attention at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from gistcli.backbones.causal import Causal
from gistcli.backbones.prefix import prefix_of
from gistcli.backbones.sites import Switch
from gistcli.backbones.triangular import FEWEST, PIECE, TriangularMask, triangular
from tests.backbones.text_kinds import build


def tensors(queries: int, keys: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    lengths = (queries, keys, keys, queries)
    shapes = [(2, 3, length, 4) for length in lengths]
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)


def mask_of(queries: int, keys: int) -> Tensor:
    """Some of what is not ahead, and always the key that stands where the query does."""
    seen = torch.rand(2, 1, queries, keys, generator=torch.Generator().manual_seed(1)) < 0.7
    own = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    return (seen | own.triu(keys - queries)) & own


@pytest.mark.parametrize(
    ("queries", "keys"),
    [(1, 1), (1, 4), (2, 2), (7, 7), (7, 12), (PIECE * FEWEST + 1, PIECE * FEWEST + 1)],
)
def test_pieces_give_what_the_whole_gives_and_its_gradients(queries: int, keys: int) -> None:
    *inputs, weights = tensors(queries, keys)
    mask = mask_of(queries, keys)

    def found(seen: Tensor) -> tuple[Tensor, ...]:
        qkv = [t.clone().requires_grad_() for t in inputs]
        mixed = F.scaled_dot_product_attention(*qkv, attn_mask=seen, scale=0.3)
        return mixed, *torch.autograd.grad((mixed * weights).sum(), qkv)

    ours = found(mask.as_subclass(TriangularMask))
    assert type(ours[0]) is Tensor
    for mine, theirs in zip(ours, found(mask), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


def test_whatever_else_is_done_to_it_gives_an_ordinary_tensor() -> None:
    mask = mask_of(4, 4)
    ours = mask.as_subclass(TriangularMask)
    for found in (ours[:, :, :2], ~ours, ours.to(torch.uint8), torch.cat([ours, ours])):
        assert type(found) is Tensor
    assert torch.equal(ours, mask)
    assert (ours.dtype, ours.shape) == (mask.dtype, mask.shape)


def test_heads_that_stand_as_queries_are_left_to_the_kernel() -> None:
    grouped, keys = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 7, 5)
    mask = mask_of(1, 7)
    wanted = F.scaled_dot_product_attention(grouped, keys, keys, attn_mask=mask)
    found = F.scaled_dot_product_attention(grouped, keys, keys, attn_mask=triangular(mask))
    assert torch.equal(found, wanted)


def flops_of_attention(backbone: Causal, batch: dict[str, Tensor]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(batch)
    counts = counter.get_flop_counts()["Global"]
    return sum(n for operation, n in counts.items() if "attention" in str(operation))


@pytest.mark.parametrize("ahead", [0, PIECE])
def test_a_packed_text_multiplies_little_more_than_half_of_its_pairs(ahead: int) -> None:
    """Behind a prefix or none, whose pairs are all there."""
    tokens = 4 * PIECE
    backbone = build("Llama", "causal_lm", max_position_embeddings=tokens + ahead)
    assert isinstance(backbone, Causal)
    ids = torch.randint(3, 50, (1, tokens), generator=torch.Generator().manual_seed(2))
    # of a plain text the counter counts all pairs, whatever its kernel leaves out
    square = flops_of_attention(backbone, {"input_ids": ids})
    if ahead:
        prefix = prefix_of(backbone.hf, {"input_ids": ids[:, :ahead]})
        backbone.prefix_seam().add(ahead, lambda rows: prefix, Switch())
    found = flops_of_attention(backbone, {"input_ids": ids, "segments": torch.ones_like(ids)})
    assert found == pytest.approx(square * (5 / 8 + ahead / tokens))
