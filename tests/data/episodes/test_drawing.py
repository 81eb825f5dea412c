"""Draws without a generator: pure, and fair."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from gistcli.data.episodes.drawing import Draws


def test_draws_depend_on_their_key_and_place_only() -> None:
    first, second = Draws(1, 2, 3), Draws(1, 2, 3)
    whole = first.take(7)
    assert np.array_equal(whole, np.concatenate([second.take(3), second.take(4)]))
    for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not np.isin(Draws(*key).take(7), whole).any()


def test_places_are_picked_once_and_each_as_often_as_any() -> None:
    counts: Counter[tuple[int, int]] = Counter()
    for i in range(4000):
        picked = Draws(0, 0, i).picked(5, 3)
        assert len({*picked}) == 3
        counts.update(enumerate(picked))
    assert len(counts) == 15
    assert min(counts.values()) / 800 == pytest.approx(1, abs=0.12)
    assert max(counts.values()) / 800 == pytest.approx(1, abs=0.12)
    assert sorted(Draws(0).picked(6, 6)) == [*range(6)]
