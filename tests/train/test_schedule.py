"""Schedules against their closed forms."""

from __future__ import annotations

import math

import pytest

from gistcli.errors import UnknownName
from gistcli.train.schedule import factor, warmup_steps


def test_cosine_is_one_after_the_warmup_half_in_the_middle_and_nearly_zero_at_the_end() -> None:
    assert factor("cosine", 10, 110, 10) == 1.0
    assert factor("cosine", 60, 110, 10) == pytest.approx(0.5)
    assert factor("cosine", 35, 110, 10) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert factor("cosine", 109, 110, 10) == pytest.approx((1 - math.cos(math.pi / 100)) / 2)


def test_linear_falls_in_equal_steps() -> None:
    assert [factor("linear", s, 8, 4) for s in range(4, 8)] == [1.0, 0.75, 0.5, 0.25]


def test_constant_stays() -> None:
    assert [factor("constant", s, 5, 0) for s in range(5)] == [1.0] * 5


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_the_warmup_rises_in_equal_steps_and_never_takes_a_step_at_rate_zero(name: str) -> None:
    assert [factor(name, s, 100, 3) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_every_step_has_a_rate_above_zero_and_the_one_after_the_last_has_none(name: str) -> None:
    assert all(factor(name, s, 50, 5) > 0 for s in range(50))
    assert factor(name, 50, 50, 5) == pytest.approx(0, abs=1e-15)


def test_warmup_is_a_rounded_share_and_leaves_a_step_at_the_full_rate() -> None:
    assert [warmup_steps(t, 0.1) for t in (1, 4, 5, 6, 100)] == [0, 0, 0, 1, 10]
    assert warmup_steps(3, 0.99) == 2
    assert factor("cosine", 0, 1, warmup_steps(1, 0.9)) == 1.0


def test_an_unknown_schedule_names_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="cosin") as caught:
        factor("cosin", 0, 1, 0)
    assert "Did you mean 'cosine'?" in caught.value.hint
