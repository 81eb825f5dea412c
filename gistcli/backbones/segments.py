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


def packed_mask(model: Any, segments: Tensor) -> Any:
    """The mask in which a token looks at its own text alone, as the network takes it.

    A tensor (B, 1, T, T), or one for every kind of layer, from transformers' own functions, so that
    sliding windows stay what they are and every implementation of attention gets its form of it.

    Args:
        model: of transformers, with a config.
        segments: (B, T), the number of the text in its row, 0 for padding.

    Raises:
        NotSupported: a network with layers that no mask cuts apart.
    """

    def same(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return segments[batch, query] == segments[batch, key]

    return _mask(model, segments, and_mask_function=same)


def pair_mask(model: Any, allowed: Tensor, positions: Tensor) -> Any:
    """The mask in which a token looks at those that are allowed, as `packed_mask` gives it.

    Sliding windows count positions, as they would if what a token sees stood next to it.

    Args:
        model: of transformers, with a config.
        allowed: (B, T, T) bool, [row, query, key], none behind the query. A token that may look at
            nothing, which is padding, looks at itself: a softmax over nothing is no number.
        positions: (B, T), no further apart than the places of two tokens in the row.

    Raises:
        NotSupported: a network with layers that no mask cuts apart.
    """
    window = getattr(model.config, "sliding_window", None)

    def given(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return allowed[batch, query, key] | (query == key)

    def near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return positions[batch, query] - positions[batch, key] < window

    # a layer without a window sees what is near all the same, so that both get the same functions
    wider = {} if window is None else {"or_mask_function": near}
    return _mask(model, positions, and_mask_function=given, **wider)


def _mask(model: Any, like_BT: Tensor, **functions: Any) -> Any:
    from transformers.masking_utils import create_masks_for_generate

    reason = mixing(model)
    if reason:
        raise NotSupported(
            f"{type(model).__name__} has {reason}, so that packed texts would mix.",
            "Set data.packing to false.",
        )
    dtype = next(model.parameters()).dtype
    like_BT1 = torch.empty(*like_BT.shape, 1, dtype=dtype, device=like_BT.device)
    return create_masks_for_generate(model.config, like_BT1, None, None, **functions)


def mixing(model: Any) -> str:
    """What of a network no mask of pairs reaches; empty where masks decide everything."""
    others = {*(getattr(model.config, "layer_types", None) or ())} - EXACT
    makers = [name for name in ALIBI if hasattr(model.base_model, name)]
    alibi = getattr(model.config, "alibi", False) or makers
    if others or alibi:
        return ", ".join(sorted(others)) or "attention that takes no mask of pairs"
    return ""
