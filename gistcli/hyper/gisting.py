"""Who sees whom, and where it stands, when examples are compressed into gist tokens.

One tensor says everything: `spans` (B, T) int64 is 0 for padding, 1 for context (the examples), 2
for gist tokens, and 3, 4, ... for the queries of a row, in this order, with padding anywhere.

    [context][gists][query 1][query 2] ...

Context and gists form a text of their own, in which tokens look back as in any decoder; a query
sees the gists and what stands in front of it in itself, and nothing else. So it costs one pass, and
computes what two passes do: one over context and gists, whose keys and values at the gists are then
the prefix of another one over each query. Compression pretraining is the same with A and D of a
document as context, B and C as query: [A D][gists][B C].

Papers: arXiv 2402.16817 (HyperLlama); 2304.08467 (`gist_mask`). Shape suffixes: B = rows,
T = tokens, q = who looks, k = what is seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

PADDING, CONTEXT, GIST, QUERY = 0, 1, 2, 3
"""Values of `spans`; the queries of a row are QUERY, QUERY + 1, ..."""


def allowed(spans: Tensor) -> Tensor:
    """(B, T, T) bool, [row, q, k]: whether q sees k. Padding neither sees nor is seen."""
    q_BT1, k_B1T = spans[:, :, None], spans[:, None, :]
    seen_BTT = (q_BT1 == k_B1T) | (k_B1T == GIST)
    seen_BTT |= (q_BT1 == GIST) & (k_B1T == CONTEXT)
    return (seen_BTT & (q_BT1 != PADDING)).tril()


def packed(spans: Tensor) -> dict[str, Tensor]:
    """`allowed` and `positions` as a decoder takes them: packed texts, and what all of them share.

    Context and gists are one text, every query is another, and all look at the gists. Padding is a
    text as well, for a softmax over nothing would be no number.

    Returns:
        `segments` (B, T) int64, `shared` (B, T) bool and `position_ids` (B, T).
    """
    return {
        "segments": spans.masked_fill(spans == GIST, CONTEXT),
        "shared": spans == GIST,
        "position_ids": positions(spans),
    }


def positions(spans: Tensor) -> Tensor:
    """(B, T): context and gists count from 0, and every query goes on behind the gists.

    Positions have no gaps, wherever padding stands; that of padding means nothing.
    """
    rank_BT = (spans != PADDING).long().cumsum(1) - 1
    latest_BT = spans.cummax(1).values
    opens_BT = latest_BT.diff(dim=1, prepend=latest_BT.new_zeros(len(spans), 1)) > 0
    opens_BT &= spans >= QUERY
    first_BT = torch.where(opens_BT, rank_BT, 0).cummax(1).values
    in_query_BT = rank_BT - first_BT + front_length(spans)[:, None]
    return torch.where(spans >= QUERY, in_query_BT, rank_BT.clamp(min=0))


def front_length(spans: Tensor) -> Tensor:
    """(B,): context and gist tokens of every row."""
    return is_front(spans).sum(1)


def is_front(spans: Tensor) -> Tensor:
    """(B, T) bool: context and gist tokens."""
    return (spans == CONTEXT) | (spans == GIST)


def gate(spans: Tensor) -> Tensor:
    """(B, T, 1) float: 1 where the hypernetwork's tuner acts, on context and gist tokens."""
    return is_front(spans)[..., None].float()


def gist_places(spans: Tensor, length: int) -> Tensor:
    """(B, length): where the gist tokens of every row stand, of which each has `length`."""
    return (spans == GIST).int().argsort(dim=1, descending=True, stable=True)[:, :length]


def full_context(spans: Tensor) -> Tensor:
    """Spans in which queries see the examples themselves, as few-shot prompting has it.

    The context takes the part of the gists, which become padding: `allowed` and `positions` mean
    the same as ever.
    """
    without = spans.masked_fill(spans == GIST, PADDING)
    return without.masked_fill(spans == CONTEXT, GIST)


def queries_alone(spans: Tensor) -> Tensor:
    """Spans in which queries see neither examples nor gists."""
    return spans.masked_fill(is_front(spans), PADDING)


# --- Mu et al. ----------------------------------------------------------------------------------


def gist_mask(gists: Tensor, *, causal: bool) -> Tensor:
    """(B, T, T) bool: the mask of Mu et al., for a decoder (`causal`) or an encoder.

    Behind the last gist token nothing sees what stands in front of the first one; up to the last
    one nothing sees what stands behind it. Rows without a gist token are left alone; padding is
    no part of it.

    Args:
        gists: (B, T) bool, the gist tokens.
        causal: nothing sees what follows it, too.
    """
    after_BT = _after(gists)
    before_BT = _before(gists)
    hidden_BTT = after_BT[:, :, None] & before_BT[:, None, :]
    hidden_BTT |= ~after_BT[:, :, None] & after_BT[:, None, :]
    return (~hidden_BTT).tril() if causal else ~hidden_BTT


def gist_cross_mask(gists: Tensor) -> Tensor:
    """(B, T) bool: what of an encoder's text the decoder sees, from the first gist token on."""
    return ~_before(gists)


def _before(gists: Tensor) -> Tensor:
    """In front of the first gist token of the row; nowhere without one."""
    return (gists.cumsum(1) == 0) & gists.any(1, keepdim=True)


def _after(gists: Tensor) -> Tensor:
    """Behind the last gist token of the row; everywhere without one."""
    later_BT = gists.sum(1, keepdim=True) - gists.cumsum(1)
    return (later_BT == 0) & ~gists
