"""The peak of memory belongs to one training, not to the process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from gistcli.train.memory import peak_memory, reset_peak_memory

CPU = torch.device("cpu")
SIZE = 300_000_000


def _may_reset() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets the peak of a process")
def test_what_was_held_before_does_not_count() -> None:
    if not _may_reset():
        pytest.skip("this system does not let a process forget its peak")
    reset_peak_memory(CPU)
    before = peak_memory(CPU)
    block = torch.ones(SIZE, dtype=torch.uint8)
    held = peak_memory(CPU)
    assert held - before > 0.9 * SIZE
    del block
    assert peak_memory(CPU) == held
    reset_peak_memory(CPU)
    assert held - peak_memory(CPU) > 0.9 * SIZE
