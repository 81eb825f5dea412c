"""Packed rows: several texts in one, none of which looks at another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gistcli.errors import NotSupported

EXACT = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers in which a mask keeps texts apart; a recurrent layer has no mask."""
ALIBI = ("build_alibi_tensor", "build_mpt_alibi_tensor")
"""What a network has whose attention goes by distances that it makes from a mask of tokens."""


def positions_within(segments: Tensor) -> Tensor:
    """(B, T): the position of every token in its own text, from the numbers of the texts (B, T)."""
    numbers_T = torch.arange(segments.shape[1], device=segments.device)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    first_BT = torch.where(starts, numbers_T, 0).cummax(dim=1).values
    return numbers_T - first_BT


def packed_mask(
    model: Any, segments: Tensor, shared: Tensor | None = None, positions: Tensor | None = None
) -> Any:
    """The mask in which a token looks at its own text alone, as the network takes it.

    A tensor (B, 1, T, T), or one for every kind of layer, from transformers' own functions, so that
    sliding windows stay what they are and every implementation of attention gets its form of it.

    Args:
        model: of transformers, with a config.
        segments: (B, T), the number of the text in its row, 0 for padding.
        shared: (B, T) bool, tokens that those of all later texts look at as well.
        positions: (B, T), beside `shared`: windows count them, so that shared tokens are as near to
            every text as if they stood in front of it. None is further apart than in the row.

    Raises:
        NotSupported: a network with layers that no mask cuts apart.
    """
    from transformers.masking_utils import create_masks_for_generate

    config, dtype = model.config, next(model.parameters()).dtype
    reason = mixing(model)
    if reason:
        raise NotSupported(
            f"{type(model).__name__} has {reason}, so that packed texts would mix.",
            "Set data.packing to false.",
        )

    def same(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return segments[batch, query] == segments[batch, key]

    like = torch.empty(*segments.shape, 1, dtype=dtype, device=segments.device)
    if shared is None:
        return create_masks_for_generate(config, like, None, None, and_mask_function=same)

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return same(batch, head, query, key) | shared[batch, key]

    def near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        close = positions[batch, query] - positions[batch, key] < config.sliding_window
        return close & (key <= query)

    # what transformers' own window leaves in, `near` leaves in as well: together they are `near`
    windowed = getattr(config, "sliding_window", None) is not None
    wider = {"or_mask_function": near} if windowed else {}
    return create_masks_for_generate(config, like, None, None, and_mask_function=seen, **wider)


def mixing(model: Any) -> str:
    """What of a network no mask of pairs reaches; empty where masks decide everything."""
    others = {*(getattr(model.config, "layer_types", None) or ())} - EXACT
    makers = [name for name in ALIBI if hasattr(model.base_model, name)]
    alibi = getattr(model.config, "alibi", False) or makers
    if others or alibi:
        return ", ".join(sorted(others)) or "attention that takes no mask of pairs"
    return ""
