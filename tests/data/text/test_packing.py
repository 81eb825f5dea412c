"""Rows and batches of sequences: how close, how random, how repeatable."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from gistcli.data.text.collate import (
    Packed,
    collate,
    collate_packed,
    collate_prompts,
    pad,
)
from gistcli.data.text.encoding import IGNORED, Encoded
from gistcli.data.text.packing import grouped_batches, pack, padded_share

LENGTHS = np.random.default_rng(0).integers(1, 60, 500)


def sequence(*ids: int, first: int = 1) -> Encoded:
    """Ids of which all from place `first` on are learnt."""
    input_ids = np.array(ids, np.int32)
    labels = np.where(np.arange(len(ids)) < max(first, 1), IGNORED, input_ids).astype(np.int32)
    return Encoded(input_ids, labels)


@pytest.mark.parametrize("window", [10, 64, 500])
@pytest.mark.parametrize("seed", [None, 3])
def test_every_sequence_is_in_one_row_that_is_not_too_long(window: int, seed: int | None) -> None:
    rows = pack(LENGTHS, 64, seed=seed, window=window)
    assert sorted(itertools.chain(*rows)) == list(range(500))
    assert max(LENGTHS[row].sum() for row in rows) <= 64


def test_first_fit_with_the_longest_first_packs_as_by_hand() -> None:
    assert pack([2, 7, 5, 3, 3], 10, seed=None) == [[1, 3], [2, 4, 0]]
    assert pack([2, 7, 5, 3, 3], 10, seed=None, window=2) == [[1, 0], [2, 3], [4]]
    assert pack([], 10, seed=None) == []
    with pytest.raises(ValueError, match="11 tokens cannot be in a row of 10"):
        pack([11], 10, seed=None)


def test_packing_is_close_and_depends_on_seed_and_epoch_alone() -> None:
    rows = pack(LENGTHS, 128, seed=1, epoch=2)
    assert LENGTHS.sum() / (len(rows) * 128) > 0.98
    assert rows == pack(LENGTHS, 128, seed=1, epoch=2)
    small = [pack(LENGTHS, 128, seed=s, epoch=e, window=50) for s, e in ((1, 2), (1, 3), (2, 2))]
    assert small[0] != small[1]
    assert small[0] != small[2]


def test_grouped_batches_hold_similar_lengths_and_every_sequence_once() -> None:
    batches = grouped_batches(LENGTHS, 8, seed=5, epoch=1)
    assert sorted(np.concatenate(batches)) == list(range(500))
    assert len(batches) == -(-500 // 8)
    spread = [np.ptp(LENGTHS[b]) for b in batches]
    assert np.mean(spread) < 3
    means = [LENGTHS[b].mean() for b in batches]
    assert means != sorted(means, reverse=True)
    again = grouped_batches(LENGTHS, 8, seed=5, epoch=1, start_batch=7)
    assert all(np.array_equal(a, b) for a, b in zip(batches[7:], again, strict=True))
    other = grouped_batches(LENGTHS, 8, seed=5, epoch=2)
    assert not np.array_equal(batches[0], other[0])
    parts = [grouped_batches(LENGTHS, 8, seed=5, epoch=1, rank=r, world=3) for r in range(3)]
    for whole, *shares in zip(batches, *parts, strict=True):
        assert sorted(np.concatenate(shares)) == sorted(whole)
    ordered = grouped_batches(LENGTHS, 8, seed=None)
    assert ordered[0].tolist() == list(range(8))


def test_the_share_of_real_tokens_is_as_by_hand() -> None:
    lengths = np.array([2, 4, 6, 6])
    assert padded_share(lengths, [[0, 1], [2, 3]]) == 18 / 20
    assert padded_share(lengths, [[0, 1], [2, 3]], multiple=8) == 18 / 32
    assert padded_share(lengths, []) == 1


def test_padding_goes_by_length_and_not_by_id() -> None:
    eos = 2
    batch = collate([sequence(1, 5, eos), sequence(1, eos)], pad_id=eos, multiple=4)
    assert batch["input_ids"].tolist() == [[1, 5, eos, eos], [1, eos, eos, eos]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 5, eos, -100], [-100, eos, -100, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert pad([[1]], 0).shape == (1, 8)
    assert pad([], 0).shape == (0, 8)


def test_prompts_are_padded_on_the_left_with_positions_from_their_first_token() -> None:
    batch = collate_prompts([[1, 5, 2], [7]], pad_id=2)
    assert batch["input_ids"].tolist() == [[1, 5, 2], [2, 2, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


def test_a_packed_row_counts_positions_and_segments_and_never_learns_a_first_token() -> None:
    row = Packed.of([sequence(1, 5, 6), sequence(1, 8)])
    batch = collate_packed([row, Packed.of([sequence(1, 9)])], pad_id=2, multiple=1)
    assert batch["input_ids"].tolist() == [[1, 5, 6, 1, 8], [1, 9, 2, 2, 2]]
    assert batch["labels"].tolist() == [[-100, 5, 6, -100, 8], [-100, 9, -100, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    assert batch["segments"].tolist() == [[1, 1, 1, 2, 2], [1, 1, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
