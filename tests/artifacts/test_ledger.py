"""Ledgers: what is kept of a sweep, and what several processes see of each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gistcli.artifacts.ledger import Ledger, PlannedRun, find_ledger
from gistcli.errors import Diverged, NotFound, Refused, WeightsError
from tests.forked import Forked

FINAL = PlannedRun("cats.gift.s0", "r.yaml", "cats", "gift", 0)
CANDIDATES = [
    PlannedRun(f"cats.gift.c{i}.s0.f{fold}", "r.yaml", "cats", "gift", 0, "candidate",
               {"optim.lr": rate, "method.targets": ["query"]}, fold)
    for i, rate in enumerate((1e-3, 3e-3))
    for fold in (0, 1)
]  # fmt: skip
REQUEST = {"methods": ["gift"], "seeds": [0]}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "sweep", REQUEST, [*CANDIDATES, FINAL])


def complete(ledger: Ledger, run: PlannedRun) -> Path:
    """A run directory with everything that a run writes."""
    path = ledger.directory(run).path
    files = ("recipe.yaml", "metrics.jsonl", "environment.json", "tuner.safetensors",
             "tuner.json", "splits.csv", "predictions/val.csv", "predictions/test.csv",
             "plots/curves.png", "checkpoints/step-4/state.pt", "result.json")  # fmt: skip
    for name in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("{}")
    return path


def files_of(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}


def test_what_is_written_is_read_back(ledger: Ledger) -> None:
    again = Ledger.open(ledger.path)
    assert again.request == REQUEST
    assert again.runs == [*CANDIDATES, FINAL]
    assert again.runs[0].point == {"optim.lr": 1e-3, "method.targets": ["query"]}
    assert again.directory(FINAL).path == ledger.path / "runs" / FINAL.id


def test_a_run_is_done_when_it_has_a_result_and_not_before(ledger: Ledger) -> None:
    assert not ledger.done(FINAL)
    path = complete(ledger, FINAL)
    assert ledger.done(FINAL)
    (path / "result.json").unlink()
    assert not ledger.done(FINAL)


def test_a_failure_is_kept_until_the_run_succeeds(ledger: Ledger) -> None:
    assert ledger.failure(FINAL) is None
    ledger.record_failure(FINAL, Diverged("The loss is nan.", "Lower the rate."))
    assert ledger.failure(FINAL) == {
        "type": "Diverged", "message": "The loss is nan.", "hint": "Lower the rate.",
        "exit_code": 4,
    }  # fmt: skip
    complete(ledger, FINAL)
    assert ledger.failure(FINAL) is None
    ledger.forget_failure(FINAL)
    ledger.forget_failure(FINAL)
    assert not list((ledger.path / "failures").iterdir())


def test_configurations_are_counted_whatever_their_seeds_and_folds(ledger: Ledger) -> None:
    assert ledger.tried(FINAL) == 2
    assert ledger.tried(CANDIDATES[0]) == 2
    assert ledger.tried(PlannedRun("cats.lora.s0", "r.yaml", "cats", "lora", 0)) == 1


def test_a_complete_candidate_keeps_what_a_comparison_reads(ledger: Ledger) -> None:
    path = complete(ledger, CANDIDATES[0])
    kept = {"recipe.yaml", "result.json", "metrics.jsonl", "environment.json",
            "predictions/val.csv"}  # fmt: skip
    ledger.reduce(CANDIDATES[0])
    assert files_of(path) == kept
    assert not (path / "plots").exists()
    ledger.reduce(CANDIDATES[0])
    assert files_of(path) == kept


def test_neither_a_final_run_nor_an_unfinished_candidate_is_reduced(ledger: Ledger) -> None:
    for run in (FINAL, CANDIDATES[1]):
        path = complete(ledger, run)
        if run is CANDIDATES[1]:
            (path / "result.json").unlink()
        before = files_of(path)
        ledger.reduce(run)
        assert files_of(path) == before


CLAIM = """
import json, sys
from gistcli.artifacts.ledger import Ledger
ledger = Ledger.open(sys.argv[1])
runs = {run.id: run for run in ledger.runs}
with ledger.claim(runs[sys.argv[2]]) as first, ledger.claim(runs[sys.argv[3]]) as second:
    print(json.dumps([first, second]))
"""


def test_a_claim_holds_against_other_processes_and_ends_with_its_block(ledger: Ledger) -> None:
    def ask() -> list[bool]:
        told, talk = Forked(CLAIM, [ledger.path, FINAL.id, CANDIDATES[0].id]).communicate()
        assert told, talk
        answer: list[bool] = json.loads(told)
        return answer

    with ledger.claim(FINAL) as mine:
        assert mine
        assert ask() == [False, True]
    assert ask() == [True, True]


def test_a_claim_ends_with_an_exception_and_lets_it_through(ledger: Ledger) -> None:
    def fail_within() -> None:
        with ledger.claim(FINAL):
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail_within()
    with ledger.claim(FINAL) as mine, ledger.claim(FINAL) as again:
        assert mine
        assert not again


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, ledger: Ledger) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(Refused, match=r"holds no sweep: thesis\.tex"):
        Ledger.create(tmp_path / "thesis", REQUEST, [FINAL])
    with pytest.raises(Refused, match="holds a sweep already"):
        Ledger.create(ledger.path, {}, [])
    assert Ledger.open(ledger.path).request == REQUEST
    with pytest.raises(Refused, match="is a file"):
        Ledger.create(tmp_path / "thesis" / "thesis.tex", REQUEST, [FINAL])


def test_a_missing_or_damaged_ledger_is_named(tmp_path: Path, ledger: Ledger) -> None:
    with pytest.raises(NotFound, match=r"is no sweep: it has no sweep\.json"):
        Ledger.open(tmp_path)
    plan = ledger.path / "sweep.json"
    whole = json.loads(plan.read_text())
    damaged: list[tuple[str, str]] = [
        ("{", "cannot be read"),
        (json.dumps({**whole, "format": 9}), "has the format 9; this version reads 1"),
        (json.dumps({**whole, "runs": None}), "no request or no runs"),
        (json.dumps({**whole, "runs": [{"id": "x"}]}), "is no run"),
    ]
    for text, words in damaged:
        plan.write_text(text)
        with pytest.raises(WeightsError, match=words):
            Ledger.open(ledger.path)


def test_a_ledger_is_found_from_its_folder_and_from_a_run_in_it(ledger: Ledger) -> None:
    found = find_ledger(ledger.path)
    assert found is not None
    assert found.runs == ledger.runs
    inside = find_ledger(complete(ledger, FINAL))
    assert inside is not None
    assert inside.path == ledger.path
    assert find_ledger(ledger.path / "failures" / "x") is None
    assert find_ledger(ledger.path.parent) is None


def test_what_was_chosen_can_be_written_again(ledger: Ledger) -> None:
    assert ledger.read_chosen() == []
    for figure in (0.5, 0.75):
        entry = {"method": "gift", "point": {"optim.lr": 1e-3}, "value": figure}
        ledger.update_chosen(lambda entry=entry: [entry])  # type: ignore[misc]
        assert Ledger.open(ledger.path).read_chosen() == [entry]
