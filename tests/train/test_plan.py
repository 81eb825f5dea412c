"""When a plan evaluates, saves and stops."""

from __future__ import annotations

import pytest

from gistcli.errors import Refused
from gistcli.train import Plan


def test_max_steps_wins_over_epochs() -> None:
    assert Plan(epochs=3).total_steps(7) == 21
    assert Plan(epochs=3, max_steps=5).total_steps(7) == 5


def test_evaluation_comes_every_epoch_and_after_the_last_step() -> None:
    plan = Plan(max_steps=10)
    assert [s for s in range(11) if plan.evaluates_at(s, 4)] == [4, 8, 10]
    plan = Plan(max_steps=10, eval_every=3)
    assert [s for s in range(11) if plan.evaluates_at(s, 4)] == [3, 6, 9, 10]
    plan = Plan(max_steps=10, eval_every="none")
    assert not any(plan.evaluates_at(s, 4) for s in range(11))


def test_checkpoints_come_once_an_epoch_or_every_save_steps_and_after_the_last_step() -> None:
    assert [s for s in range(11) if Plan(max_steps=10).saves_at(s, 4)] == [4, 8, 10]
    assert [s for s in range(11) if Plan(max_steps=10, save_steps=3).saves_at(s, 4)] == [
        3,
        6,
        9,
        10,
    ]


def test_losses_are_better_when_lower_and_equal_is_not_better() -> None:
    assert Plan().better(0.9, 0.8)
    assert not Plan().better(0.9, 0.9)
    assert Plan(metric="loss").better(0.8, 0.9)


def test_selecting_without_evaluations_is_refused_with_the_reason() -> None:
    with pytest.raises(Refused, match=r"eval\.select: best and train\.patience.* no valid"):
        Plan(select="best", patience=2).require_evaluation(False)
    with pytest.raises(Refused, match=r"eval\.every is none"):
        Plan(select="best", eval_every="none").require_evaluation(True)
    Plan(eval_every="none").require_evaluation(False)
