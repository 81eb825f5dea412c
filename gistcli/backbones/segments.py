"""Packed rows: several texts in one, none of which looks at another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gistcli.backbones.triangular import triangular
from gistcli.errors import NotSupported

SLIDING = "sliding_attention"
EXACT = frozenset({"full_attention", SLIDING})
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

    One (B, 1, T, T), or one for every kind of layer, in the form of its implementation of attention
    by transformers' own function for that; under sdpa a `TriangularMask`.

    Args:
        model: of transformers, with a config.
        segments: (B, T), the number of the text in its row, 0 for padding.
        shared: (B, T) bool, tokens that those of all later texts look at as well.
        positions: (B, T), of which sliding windows reach back so many, so that shared tokens are as
            near to every text as if they stood in front of it; None: those in each text.

    Raises:
        NotSupported: a network with layers that no mask cuts apart, or attention without masks.
    """
    config, reason = model.config, mixing(model)
    if reason:
        raise NotSupported(
            f"{type(model).__name__} has {reason}, so that packed texts would mix.",
            "Set data.packing to false.",
        )
    positions_BT = positions_within(segments) if positions is None else positions

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        found = segments[batch, query] == segments[batch, key]
        if shared is not None:
            found = found | shared[batch, key]
        return found & (key <= query)

    def near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = positions_BT[batch, query] - positions_BT[batch, key]
        return seen(batch, head, query, key) & (distance < config.sliding_window)

    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        alike = seen if getattr(config, "sliding_window", None) is None else near
        return _as_taken(model, segments, alike)
    return {k: _as_taken(model, segments, near if k == SLIDING else seen) for k in sorted(kinds)}


def _as_taken(model: Any, like_BT: Tensor, function: Callable[..., Tensor]) -> Any:
    """(B, 1, T, T) of a function of indices, in the form of the network's attention."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    rows, tokens = like_BT.shape
    name = model.config._attn_implementation
    make = ALL_MASK_ATTENTION_FUNCTIONS.get(name)
    found = None
    if make is not None:
        found = make(
            batch_size=rows,
            q_length=tokens,
            kv_length=tokens,
            mask_function=function,
            allow_is_causal_skip=False,
            dtype=next(model.parameters()).dtype,
            config=model.config,
            device=like_BT.device,
        )
    if found is None:
        raise NotSupported(
            f"The implementation {name} of attention takes no mask of pairs, so that packed texts "
            "would mix.",
            "Set data.packing to false, or load the network with attn_implementation sdpa.",
        )
    return triangular(found) if name == "sdpa" else found


def mixing(model: Any) -> str:
    """What of a network no mask of pairs reaches; empty where masks decide everything."""
    others = {*(getattr(model.config, "layer_types", None) or ())} - EXACT
    makers = [name for name in ALIBI if hasattr(model.base_model, name)]
    alibi = getattr(model.config, "alibi", False) or makers
    if others or alibi:
        return ", ".join(sorted(others)) or "attention that takes no mask of pairs"
    return ""
