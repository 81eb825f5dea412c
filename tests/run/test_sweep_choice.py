"""The rule by which a configuration is chosen, on results that are written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from gistcli.artifacts.ledger import Ledger
from gistcli.errors import Diverged, Refused
from gistcli.run.sweep_choice import Choice, choose, open_candidates
from gistcli.run.sweep_plan import SweepPlan, plan_sweep
from gistcli.run.sweep_request import SweepRequest

RATES = (1.0, 2.0, 3.0)
Figures = Mapping[tuple[float, int], Mapping[str, float] | None]


def decide(folder: Path, figures: Figures, metric: str = "null") -> tuple[Choice | None, int]:
    """The choice among three rates and two seeds, and how many candidates are open.

    Args:
        folder: for recipe and ledger.
        figures: (rate, seed) -> accuracy and loss on val; None: failed; absent: not done.
        metric: `eval.metric`.
    """
    recipe = folder / "r.yaml"
    recipe.write_text(
        "model: {name: gist_vit_nano}\ndata: {path: digits}\nmethod: {name: linear}\n"
        f"eval: {{metric: {metric}}}\n"
    )
    plan: SweepPlan = plan_sweep(
        SweepRequest([recipe], grid=["optim.lr=1,2,3"], search_seeds=[0, 1])
    )
    ledger = Ledger.create(folder / "s", plan.as_dict(), plan.runs)
    for run in plan.candidates(plan.cells[0]):
        key = (run.point["optim.lr"], run.seed)
        if key not in figures:
            continue
        found = figures[key]
        if found is None:
            ledger.record_failure(run, Diverged("The loss is nan."))
            continue
        directory = ledger.directory(run)
        directory.path.mkdir(parents=True)
        metrics = {f"val/{name}": value for name, value in found.items()}
        directory.write_result({"metrics": metrics, "intervals": {}, "examples": {}})
    cell = plan.cells[0]
    return choose(plan, ledger, cell), len(open_candidates(plan, ledger, cell))


def both(accuracy: tuple[float, float], loss: tuple[float, float] = (1.0, 1.0)) -> list[dict]:  # type: ignore[type-arg]
    return [{"accuracy": a, "loss": x} for a, x in zip(accuracy, loss, strict=True)]


def grid(*rows: list[dict[str, float] | None]) -> Figures:
    return {
        (rate, seed): row[seed] for rate, row in zip(RATES, rows, strict=True) for seed in (0, 1)
    }


def test_the_mean_over_search_seeds_decides(tmp_path: Path) -> None:
    choice, missing = decide(tmp_path, grid(both((0.9, 0.1)), both((0.6, 0.7)), both((0.8, 0.4))))
    assert choice is not None
    assert missing == 0
    assert choice.point == {"optim.lr": 2}
    assert choice.value == pytest.approx(0.65)
    assert (choice.metric, choice.runs, choice.tried, choice.failed) == ("val/accuracy", 2, 3, 0)


def test_equal_means_are_decided_by_the_loss_and_then_by_the_order(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    equal = both((0.5, 0.7), (2, 2)), both((0.6, 0.6), (1, 1.5)), both((0.6, 0.6), (3, 0))
    choice, _ = decide(tmp_path / "a", grid(*equal))
    assert choice is not None
    assert (choice.point, choice.loss) == ({"optim.lr": 2}, 1.25)
    (tmp_path / "b").mkdir()
    same = both((0.5, 0.5))
    choice, _ = decide(tmp_path / "b", grid(both((0.4, 0.4)), same, same))
    assert choice is not None
    assert choice.point == {"optim.lr": 2}


def test_a_loss_is_better_when_it_is_lower(tmp_path: Path) -> None:
    choice, _ = decide(tmp_path, grid(
        both((0.9, 0.9), (2, 2)), both((0.1, 0.1), (1, 1)), both((0.5, 0.5), (3, 3))),
        metric="loss")  # fmt: skip
    assert choice is not None
    assert (choice.point, choice.value, choice.metric) == ({"optim.lr": 2}, 1.0, "val/loss")


def test_a_configuration_of_which_a_run_failed_is_never_chosen(tmp_path: Path) -> None:
    choice, _ = decide(tmp_path, grid(
        both((0.4, 0.4)), [{"accuracy": 1.0, "loss": 0.0}, None], [None, None]))  # fmt: skip
    assert choice is not None
    assert (choice.point, choice.failed, choice.tried) == ({"optim.lr": 1}, 2, 3)


def test_nothing_is_chosen_where_all_failed_and_none_before_all_are_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    choice, missing = decide(tmp_path / "a", grid(*[[None, None]] * 3))
    assert choice is not None
    assert (choice.point, choice.value, choice.failed, missing) == (None, None, 3, 0)
    (tmp_path / "b").mkdir()
    part = {k: v for k, v in grid(*[both((1, 1))] * 3).items() if k != (3.0, 1)}
    assert decide(tmp_path / "b", part) == (None, 1)


def test_a_metric_that_nobody_measured_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="'top5_accuracy' was not measured") as caught:
        decide(tmp_path, grid(*[both((1, 1))] * 3), metric="top5_accuracy")
    assert "accuracy" in caught.value.hint
