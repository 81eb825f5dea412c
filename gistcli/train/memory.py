"""The most memory that training held."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import torch

_FORGET_PEAK = "5"
"""What Linux takes in `clear_refs` as the wish to forget the peak of the resident size."""


def reset_peak_memory(device: torch.device) -> None:
    """Starts counting anew, where the device, or on a CPU the system, can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):  # a sandbox may forbid it: the peak is then that of the process
            Path("/proc/self/clear_refs").write_text(_FORGET_PEAK)


def peak_memory(device: torch.device) -> int:
    """Bytes: tensors on the GPU, or the resident size of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has none
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
