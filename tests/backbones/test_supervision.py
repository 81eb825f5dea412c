"""Positions that predict a supervised label, in padded and packed rows."""

from __future__ import annotations

import torch

from gistcli.backbones.supervision import IGNORED, supervised

X = IGNORED


def test_a_position_predicts_the_label_behind_it() -> None:
    labels = torch.tensor([[X, X, 7, 8], [5, 6, X, X]])
    where, targets = supervised({"labels": labels})
    # 5 stands first in its row: nothing predicts it
    assert where.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert targets.tolist() == [7, 8, 6]


def test_padding_on_either_side_predicts_nothing() -> None:
    labels = torch.tensor([[X, 5, 6, 7], [5, 6, X, X]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]])
    where, targets = supervised({"labels": labels, "attention_mask": mask})
    assert where.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert targets.tolist() == [6, 7, 6]
    without, _ = supervised({"labels": labels})
    assert without[0, 0]


def test_a_text_of_a_packed_row_does_not_predict_the_next() -> None:
    labels = torch.tensor([[1, 2, 3, 4, X, X]])
    segments = torch.tensor([[1, 1, 2, 2, 0, 0]])
    where, targets = supervised({"labels": labels, "segments": segments})
    assert where.tolist() == [[True, False, True, False, False, False]]
    assert targets.tolist() == [2, 4]
    assert supervised({"labels": labels}).where.sum() == 3


def test_a_batch_without_a_supervised_token_gives_none() -> None:
    where, targets = supervised({"labels": torch.full((2, 3), X)})
    assert where.shape == (2, 3)
    assert not where.any()
    assert targets.shape == (0,)
