"""Sequences to tensors: padded by length and never by id, for padding may share an id with EOS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gistcli.data.text.encoding import IGNORED, Encoded

MULTIPLE = 8
"""Rows are padded to a multiple of so many tokens, for which kernels are made."""
Side = Literal["left", "right"]


@dataclass(frozen=True)
class Packed:
    """Several sequences in a row.

    Attributes:
        input_ids: (T,) int32.
        labels: (T,) int32, `IGNORED` at the first token of every sequence.
        position_ids: (T,) int32, from 0 in every sequence.
        segments: (T,) int32, number of the sequence from 1.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    segments: np.ndarray

    @classmethod
    def of(cls, sequences: Sequence[Encoded]) -> Packed:
        """Sequences one behind the other."""
        return cls(
            np.concatenate([s.input_ids for s in sequences]),
            np.concatenate([s.labels for s in sequences]),
            np.concatenate([np.arange(len(s), dtype=np.int32) for s in sequences]),
            np.repeat(
                np.arange(1, len(sequences) + 1, dtype=np.int32), [len(s) for s in sequences]
            ),
        )


def pad(
    sequences: Sequence[np.ndarray | Sequence[int]],
    value: int,
    *,
    side: Side = "right",
    multiple: int = MULTIPLE,
    most: int | None = None,
) -> Tensor:
    """Int64 (B, T), T the longest sequence rounded up to `multiple`, but to no more than `most`."""
    longest = max((len(s) for s in sequences), default=0)
    width = max(-(-longest // multiple) * multiple, multiple)
    width = width if most is None else max(min(width, most), longest)
    padded = np.full((len(sequences), width), value, np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        place = slice(width - len(sequence), width) if side == "left" else slice(len(sequence))
        row[place] = sequence
    return torch.from_numpy(padded)


def collate(
    sequences: Sequence[Encoded],
    pad_id: int,
    *,
    multiple: int = MULTIPLE,
    most: int | None = None,
) -> dict[str, Tensor]:
    """Sequences as a batch for training, padded on the right.

    Args:
        sequences: of any length.
        pad_id: put where the mask is 0.
        multiple: of which the width is one,
        most: except where the network has no more positions.

    Returns:
        input_ids, attention_mask (1 = real) and labels, each (B, T) int64; token_type_ids where
        the tokenizer has them.
    """
    batch = {
        "input_ids": pad([s.input_ids for s in sequences], pad_id, multiple=multiple, most=most),
        "attention_mask": _mask([len(s) for s in sequences], "right", multiple, most),
        "labels": pad([s.labels for s in sequences], IGNORED, multiple=multiple, most=most),
    }
    kinds = [s.type_ids for s in sequences if s.type_ids is not None]
    if kinds and len(kinds) == len(sequences):
        batch["token_type_ids"] = pad(kinds, 0, multiple=multiple, most=most)
    return batch


def collate_packed(
    rows: Sequence[Packed], pad_id: int, *, multiple: int = MULTIPLE
) -> dict[str, Tensor]:
    """Packed rows as a batch: as `collate`, with position_ids and segments (0 = padding)."""
    segments = pad([r.segments for r in rows], 0, multiple=multiple)
    return {
        "input_ids": pad([r.input_ids for r in rows], pad_id, multiple=multiple),
        "attention_mask": (segments > 0).long(),
        "labels": pad([r.labels for r in rows], IGNORED, multiple=multiple),
        "position_ids": pad([r.position_ids for r in rows], 0, multiple=multiple),
        "segments": segments,
    }


def collate_prompts(
    prompts: Sequence[Sequence[int]], pad_id: int, *, multiple: int = 1
) -> dict[str, Tensor]:
    """Prompts as a batch for generation, padded on the left.

    Returns:
        input_ids, attention_mask and position_ids, each (B, T) int64; positions count from the
        first real token.
    """
    mask = _mask([len(p) for p in prompts], "left", multiple)
    return {
        "input_ids": pad(prompts, pad_id, side="left", multiple=multiple),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }


def _mask(lengths: Sequence[int], side: Side, multiple: int, most: int | None = None) -> Tensor:
    ones = [np.ones(n, np.int64) for n in lengths]
    return pad(ones, 0, side=side, multiple=multiple, most=most)
