"""The largest micro-batch by trial, on a device that is out of memory beyond some size."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from gistcli.train.fitting import largest_by_trial
from gistcli.train.memory import _allowed, is_out_of_memory, room_for_logits


@pytest.mark.parametrize(("holds", "found"), [(100, 16), (15, 8), (5, 4), (0, 1)])
def test_the_first_size_that_the_device_holds(lab: ModuleType, holds: int, found: int) -> None:
    task, split = lab.objective(), lab.digits("train")
    forward, seen = task.tuner.forward, []

    def scarce(batch: Any) -> Any:
        seen.append(len(batch["labels"]))
        if seen[-1] > holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(batch)

    task.tuner.forward = scarce
    task.eval()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    size = largest_by_trial(
        task,
        lambda rows: next(iter(split.batches(rows, seed=None))),
        [16, 8, 4, 1],
        precision="fp32",
    )
    assert size == found
    assert sorted(set(seen), reverse=True) == [n for n in (16, 8, 4, 1) if n >= found]
    assert torch.equal(torch.rand(2), expected)
    assert all(t.parameter.grad is None for t in task.tuner.trainable().values())
    assert not task.training


def test_other_errors_are_not_taken_for_it(lab: ModuleType) -> None:
    task = lab.objective()

    def broken(batch: Any) -> Any:
        raise RuntimeError("shapes cannot be multiplied")

    task.tuner.forward = broken
    batch = next(iter(lab.digits("train").batches(2, seed=None)))
    with pytest.raises(RuntimeError, match="multiplied"):
        largest_by_trial(task, lambda rows: batch, [2, 1], precision="fp32")


def test_a_cpu_that_is_out_of_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_container_may_allow_less_than_the_machine_has(tmp_path: Any) -> None:
    assert _allowed(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    assert _allowed(tmp_path) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert _allowed(tmp_path) is None


def test_pieces_of_logits_are_never_tiny() -> None:
    assert room_for_logits(10**12, 10**11, 1000) == 9 * 10**11
    assert room_for_logits(0, 10**9, 1000) == 8 * 16 * 128 * 1000
