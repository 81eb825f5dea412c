"""A run that was interrupted, in whatever way, ends in the same bits as one that was not.

GIFT with dropout, drop-path and augmentation; checkpoints fall inside epochs.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from gistcli.artifacts.metrics_log import MetricsLog
from gistcli.errors import Interrupted
from gistcli.train import LogRecorder, Plan
from gistcli.train.checkpoint import step_folders
from gistcli.train.session import Session
from tests.forked import Forked

LAB = Path(__file__).with_name("lab.py")
State = dict[str, Tensor]


class Cut:
    """A split that fails after `at` steps of the whole run."""

    def __init__(self, split: Any, at: int) -> None:
        self.split, self.at = split, at
        self.names, self.labels = split.names, split.labels

    def __len__(self) -> int:
        return len(self.split)

    def batches_per_epoch(self, batch_size: int) -> int:
        return int(self.split.batches_per_epoch(batch_size))

    def batches(self, batch_size: int, **place: Any) -> Iterator[Mapping[str, Tensor]]:
        before = place["epoch"] * self.batches_per_epoch(batch_size) + place["start_batch"]
        for number, batch in enumerate(self.split.batches(batch_size, **place)):
            if before + number == self.at:
                self.cut()
            yield batch

    def cut(self) -> None:
        raise RuntimeError("cut")


class Signalled(Cut):
    """A split in which a signal arrives before step `at`."""

    def __init__(self, split: Any, at: int, number: signal.Signals) -> None:
        super().__init__(split, at)
        self.number = number

    def cut(self) -> None:
        os.kill(os.getpid(), self.number)


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def run(
    lab: ModuleType, split: Any, plan: Plan, folder: Path | None, **options: Any
) -> tuple[State, list[dict[str, Any]]]:
    task = lab.objective()
    validate = lab.validator(task, lab.digits("val"))
    log = options.pop("log", None)
    recorder = LogRecorder(log) if log else None
    result = lab.train(
        task, split, plan, checkpoints=folder, evaluate=validate, recorder=recorder, **options
    )
    return {n: t.clone() for n, t in task.tuner.state().items()}, timeless(result.history)


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "samples_per_second"} for r in records]


@pytest.fixture(scope="module")
def straight(lab: ModuleType) -> tuple[State, list[dict[str, Any]]]:
    """Three epochs of seven steps without an interruption."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    outcome = run(lab, lab.digits("train", "flip-crop"), lab.PLAN, None)
    torch.set_num_threads(threads)
    return outcome


@pytest.mark.parametrize("at", [2, 10, 14, 19])
def test_a_run_cut_at_any_step_ends_bit_identical(
    lab: ModuleType, straight: tuple[State, list[dict[str, Any]]], at: int, tmp_path: Path
) -> None:
    train, log = lab.digits("train", "flip-crop"), MetricsLog(tmp_path / "metrics.jsonl")
    folder = tmp_path / "checkpoints"
    with pytest.raises(RuntimeError, match="cut"):
        run(lab, Cut(train, at), lab.PLAN, folder, log=log)
    saved = at - at % 4
    assert [p.name for p in step_folders(folder)] == ([f"step-{saved}"] if saved else [])
    torch.manual_seed(time.time_ns() % 2**31)  # whatever the new process draws
    state, history = run(lab, train, lab.PLAN, folder, log=log)
    assert same(state, straight[0])
    assert history == straight[1]
    assert timeless(log.read()) == straight[1]


def test_without_seeds_of_the_step_this_test_would_fail(
    lab: ModuleType, straight: tuple[State, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gistcli.train import stepping

    monkeypatch.setattr(stepping, "seed_all", lambda value: None)
    torch.manual_seed(1)
    state, _ = run(lab, lab.digits("train", "flip-crop"), lab.PLAN, None)
    assert not same(state, straight[0])


def test_best_weights_and_patience_survive_an_interruption(lab: ModuleType, tmp_path: Path) -> None:
    plan = replace(lab.PLAN, epochs=6, select="best", patience=3, eval_every=5)
    train = lab.digits("train")
    expected = run(lab, train, plan, None)
    with pytest.raises(RuntimeError, match="cut"):
        run(lab, Cut(train, 13), plan, tmp_path)
    state, history = run(lab, train, plan, tmp_path)
    assert same(state, expected[0])
    assert history == expected[1]


def test_a_finished_run_is_only_read_again(
    lab: ModuleType, straight: tuple[State, list[dict[str, Any]]], tmp_path: Path
) -> None:
    train = lab.digits("train", "flip-crop")
    run(lab, train, lab.PLAN, tmp_path)
    state, history = run(lab, Cut(train, 0), lab.PLAN, tmp_path)
    assert same(state, straight[0])
    assert history == straight[1]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    lab: ModuleType, straight: tuple[State, list[dict[str, Any]]], tmp_path: Path
) -> None:
    train, plan = lab.digits("train", "flip-crop"), replace(lab.PLAN, keep=2)
    with pytest.raises(RuntimeError, match="cut"):
        run(lab, Cut(train, 10), plan, tmp_path)
    with (tmp_path / "step-8" / "optimiser.safetensors").open("r+b") as file:
        file.truncate(50)
    state, _ = run(lab, train, plan, tmp_path)
    assert same(state, straight[0])


@pytest.mark.parametrize(
    ("number", "step"), [(signal.SIGINT, 10), (signal.SIGTERM, 10), (signal.SIGINT, 21)]
)
def test_a_signal_saves_after_the_step_and_the_run_goes_on_bit_identical(
    lab: ModuleType,
    straight: tuple[State, list[dict[str, Any]]],
    number: signal.Signals,
    step: int,
    tmp_path: Path,
) -> None:
    train = lab.digits("train", "flip-crop")
    before = signal.getsignal(number)
    with pytest.raises(
        Interrupted, match=f"Stopped by {number.name} after step {step} of 21"
    ) as caught:
        run(lab, Signalled(train, step - 1, number), lab.PLAN, tmp_path)
    assert str(tmp_path / f"step-{step}") in caught.value.message
    assert signal.getsignal(number) is before
    state, history = run(lab, train, lab.PLAN, tmp_path)
    assert same(state, straight[0])
    assert history == straight[1]


def test_a_signal_behind_the_last_step_is_not_lost(
    lab: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Session.run

    def late(session: Session) -> None:
        whole(session)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Session, "run", late)
    with pytest.raises(Interrupted, match="Stopped by SIGINT after step 21 of 21"):
        run(lab, lab.digits("train", "flip-crop"), lab.PLAN, tmp_path)


def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(
    lab: ModuleType, tmp_path: Path
) -> None:
    task, train = lab.objective(), lab.digits("train")
    begun = []

    def endless() -> dict[str, float]:
        begun.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
        return {"accuracy": 1.0}

    with pytest.raises(Interrupted, match="Stopped by SIGINT after step 7"):
        lab.train(task, train, lab.PLAN, checkpoints=tmp_path, evaluate=endless)
    assert time.monotonic() - begun[0] < 5
    evaluated = []
    lab.train(
        lab.objective(), train, lab.PLAN, checkpoints=tmp_path,
        evaluate=lambda: evaluated.append(0) or {"accuracy": 1.0},
    )  # fmt: skip
    assert len(evaluated) == 3  # the one that was broken off among them


def program(folder: Path, seconds: float = 0.0) -> Forked:
    code = f"import runpy\nrunpy.run_path({str(LAB)!r}, run_name='__main__')\n"
    return Forked(code, [folder, str(seconds)])


@pytest.mark.slow
def test_kill_minus_nine_and_again_ends_bit_identical(
    straight: tuple[State, list[dict[str, Any]]], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    first = program(folder, 0.05)
    deadline = time.monotonic() + 120
    while not (folder / "step-8").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    _, talk = first.communicate()
    assert first.returncode == -signal.SIGKILL, talk
    assert not (folder / "final.pt").exists()
    assert step_folders(folder)
    second = program(folder)
    _, talk = second.communicate()
    assert second.returncode == 0, talk
    final = torch.load(folder / "final.pt", weights_only=True)
    assert same(final, straight[0])
