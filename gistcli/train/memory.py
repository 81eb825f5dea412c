"""Memory of a device: what is free, what training held at most, and errors that say it is out."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from gistcli.objectives.chunked import logit_bytes

_FORGET_PEAK = "5"
"""What Linux takes in `clear_refs` as the wish to forget the peak of the resident size."""
_CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use, which may be less than the machine has."""
LEAST = 128
"""Tokens of a piece of logits."""
_CPU_MESSAGES = ("DefaultCPUAllocator", "can't allocate memory", "out of memory")


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken, on a GPU with what torch keeps for itself and does not use."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    available = int(psutil.virtual_memory().available)
    allowed = _allowed(_CGROUP)
    return available if allowed is None else min(available, allowed)


def _allowed(group: Path) -> int | None:
    """Bytes that the container may still take; None where nothing limits it."""
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        lines = (group / "memory.stat").read_text().splitlines()
        cached = dict(line.split() for line in lines).get("inactive_file", "0")
    except (OSError, ValueError):  # no such file, or "max"
        return None
    return max(limit - used + int(cached), 0)


def room_for_logits(free: int, reserved: int, vocabulary: int) -> int:
    """Bytes for logits, as `choose_chunk` asks for them.

    Never less than pieces of LEAST tokens need: shorter ones cost much time and save nothing.

    Args:
        free: bytes that can be taken.
        reserved: bytes of them that others will take.
        vocabulary: words.
    """
    return max(free - reserved, 8 * logit_bytes(LEAST, vocabulary))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory is out, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(m in str(error) for m in _CPU_MESSAGES)


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
