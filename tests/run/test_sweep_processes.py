"""Sweeps that are killed, and several processes at one ledger: the same table, nothing twice."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from gistcli import run
from gistcli.artifacts.ledger import Ledger
from gistcli.run.sweep_request import SweepRequest
from tests.forked import Forked
from tests.listening import Listener
from tests.run.sweeping import results, search, start, state, table, write

Found = tuple[Path, dict[str, Any]]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """A recipe, and what one process finds without interruption."""
    folder = tmp_path_factory.mktemp("straight")
    recipe = write(folder)
    return recipe, run.sweep(search(recipe), output=folder / "s")


def wait_for(path: Path, count: int, process: Forked) -> None:
    deadline = time.monotonic() + 120
    while len(results(path)) < count and time.monotonic() < deadline:
        assert process.returncode is None, "finished before it could be stopped"
        time.sleep(0.002)


def test_an_interrupted_sweep_goes_on_and_repeats_nothing(straight: Found, tmp_path: Path) -> None:
    recipe, expected = straight
    path = tmp_path / "s"
    process = start(recipe, path, "--json")
    wait_for(path, 1, process)  # the other seven take seconds: the signal comes in time
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate()
    assert process.returncode == 130
    error = json.loads(out)["error"]
    assert error["type"] == "Interrupted"
    assert "of 8 runs of the sweep are done, and nothing is lost" in error["message"]
    assert f"-o {path}" in error["hint"]
    before = {p: t for p, t in state(path).items() if p.name == "result.json"}
    kept = results(path)
    assert 1 <= len(kept) < 8
    assert not list((path / "failures").glob("*"))
    assert table(run.sweep(search(recipe), output=path)) == table(expected)
    assert kept.items() <= results(path).items()
    assert {p: state(path)[p] for p in before} == before


def test_two_processes_share_the_work_and_one_does_it_all_when_the_other_is_killed(
    straight: Found, tmp_path: Path
) -> None:
    recipe, expected = straight
    path = tmp_path / "s"
    killed, other = (start(recipe, path) for _ in range(2))
    wait_for(path, 3, killed)
    killed.send_signal(signal.SIGKILL)
    talk = [process.communicate()[1] for process in (killed, other)]
    assert (killed.returncode, other.returncode) == (-signal.SIGKILL, 0), talk
    said = [line.partition(":")[0] for text in talk for line in text.splitlines()
            if "/accuracy" in line]  # fmt: skip
    assert len(said) == len(set(said))
    assert len(said) in (7, 8)  # the kill may have come between a result and its line
    before = results(path)
    assert len(before) == 8
    assert Ledger.open(path).read_chosen() == expected["chosen"]
    assert table(run.sweep(search(recipe), output=path)) == table(expected)
    assert results(path) == before


def test_two_shards_at_once_give_the_table_of_one_process(straight: Found, tmp_path: Path) -> None:
    recipe, expected = straight
    path = tmp_path / "s"
    both = [start(recipe, path, "--shard", f"{i}/2") for i in (1, 2)]
    talk = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], talk
    missing = [r for r in Ledger.open(path).runs if not Ledger.open(path).done(r)]
    # where one was through before the other's candidates were, it said so
    assert bool(missing) == any("run the same command again" in text for text in talk)
    for i in (1, 2):
        again = run.sweep(search(recipe), output=path, shard=(i, 2))
    assert table(again) == table(expected)
    assert again["left"] == 0


def test_a_shard_does_every_nth_run_and_reports_what_it_waits_for(
    straight: Found, tmp_path: Path
) -> None:
    recipe, _ = straight
    listener = Listener()
    found = run.sweep(search(recipe, methods=["linear"]), output=tmp_path / "s", shard=(2, 2),
                      reporter=listener)  # fmt: skip
    plan = Ledger.open(tmp_path / "s").runs
    assert [r["id"] for r in found["results"]] == [plan[1].id]
    assert (found["runs"], found["left"]) == (4, 3)
    assert found["chosen"] == []
    assert listener.lines[-1].startswith("1 final runs need 1 candidates that other processes have")


def test_a_kill_between_a_result_and_its_reduction_is_made_up_for(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    path = tmp_path / "s"
    request = SweepRequest([recipe], methods=["linear"], grid=["optim.lr=x1"])
    run.sweep(request, output=path)
    (folder,) = (path / "runs").iterdir()
    (folder / "checkpoints" / "step-2").mkdir(parents=True)
    (folder / "tuner.safetensors").write_bytes(b"weights")
    before = (folder / "result.json").stat().st_mtime_ns
    run.sweep(request, output=path)
    assert not (folder / "checkpoints").exists()
    assert not (folder / "tuner.safetensors").exists()
    assert (folder / "result.json").stat().st_mtime_ns == before
