"""Which positions of a text predict a supervised label: shared by backbone and objective.

Shape suffixes: B = rows, T = positions, N = supervised positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100
"""Label of a token that is read and not learnt."""


class Supervised(NamedTuple):
    """What a language model is asked for in a batch.

    Attributes:
        where: (B, T) bool, the positions whose output predicts a supervised token.
        targets: (N,) int64, these tokens, in the order in which `where` picks them from (B, T).
    """

    where: Tensor
    targets: Tensor


def supervised_targets(batch: Mapping[str, Tensor]) -> Supervised:
    """Those of an encoder-decoder, whose labels stand where they are predicted.

    Its decoder reads the labels shifted by one, so that nothing is left to shift.

    Args:
        batch: `labels` (B, T) of the targets, -100 where nothing is learnt.
    """
    where_BT = batch["labels"] != IGNORED
    return Supervised(where_BT, batch["labels"][where_BT])


def supervised(batch: Mapping[str, Tensor]) -> Supervised:
    """The positions that predict a label, each the one in front of it in the same text.

    The first token of a text is predicted by nothing, whatever its label; nor does a row's padding
    predict, nor one text of a packed row the next.

    Args:
        batch: `labels` (B, T), -100 where nothing is learnt; `attention_mask` (B, T), 1 = real;
            `segments` (B, T), 0 = padding, else the number of the text in its row. The last two
            may be missing.
    """
    labels_BT = batch["labels"]
    asked_BT = labels_BT[:, 1:] != IGNORED
    mask_BT, segments_BT = batch.get("attention_mask"), batch.get("segments")
    if mask_BT is not None:
        real_BT = mask_BT.bool()
        asked_BT = asked_BT & real_BT[:, :-1] & real_BT[:, 1:]
    if segments_BT is not None:
        left, right = segments_BT[:, :-1], segments_BT[:, 1:]
        asked_BT = asked_BT & (left == right) & (left > 0)
    where_BT = torch.cat([asked_BT, torch.zeros_like(labels_BT[:, :1], dtype=torch.bool)], dim=1)
    return Supervised(where_BT, labels_BT[:, 1:][asked_BT])
