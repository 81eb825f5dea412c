"""Batches with spans as a decoder reads them, in one pass or in two."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gistcli.backbones.supervision import IGNORED
from gistcli.hyper import gisting

Batch = Mapping[str, Tensor]
VIEWS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gists": lambda spans: spans,
    "full": gisting.full_context,
    "none": gisting.queries_alone,
}
"""`hyper.context` -> the spans of a batch as its queries see them."""


def seen(batch: Batch, spans: Tensor) -> dict[str, Tensor]:
    """The batch with mask and positions of these spans (B, T), which may be others than its own."""
    real_BT = (spans != gisting.PADDING).long()
    return {**batch, **gisting.packed(spans), "attention_mask": real_BT}


def with_gists(words_BTD: Tensor, gists_GD: Tensor, spans: Tensor) -> Tensor:
    """(B, T, D): the embeddings of a batch, with gist 0, 1, ... where gist tokens stand."""
    is_gist_BT = spans == gisting.GIST
    numbers_BT = (is_gist_BT.long().cumsum(1) - 1).clamp(min=0)
    gists_BTD = gists_GD.to(words_BTD.dtype)[numbers_BT]
    return torch.where(is_gist_BT[..., None], gists_BTD, words_BTD)


def divided(batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Context and gists, with their spans, and the queries, packed, with their labels."""
    spans = batch["spans"]
    front = _columns(batch, gisting.is_front(spans))
    queries = _columns(batch, spans >= gisting.QUERY)
    queries["segments"] = queries.pop("spans")
    return front, queries


def _columns(batch: Batch, chosen_BT: Tensor) -> dict[str, Tensor]:
    """The chosen tokens of every row, in their order, padded on the right."""
    width = int(chosen_BT.sum(1).max())
    order_BS = chosen_BT.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    real_BS = chosen_BT.gather(1, order_BS)
    found = {"attention_mask": real_BS.long()}
    for name, filler in (("input_ids", 0), ("spans", gisting.PADDING), ("labels", IGNORED)):
        if name in batch:
            found[name] = batch[name].gather(1, order_BS).masked_fill(~real_BS, filler)
    return found
