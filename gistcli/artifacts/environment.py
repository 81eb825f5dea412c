"""environment.json: what a run was made with, for the reader who wants to repeat it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

import torch

PACKAGES = (
    "gistcli", "torch", "torchvision", "timm", "transformers", "accelerate", "datasets",
    "safetensors", "numpy", "pillow", "scikit-learn", "pydantic",
)  # fmt: skip


def describe_environment(argv: Sequence[str], device: str) -> dict[str, Any]:
    """Versions, command line, device, threads and platform.

    Args:
        argv: the command line, program name first.
        device: as the run uses it (`cpu`, `cuda:0`).
    """
    return {
        "argv": list(argv),
        "python": platform.python_version(),
        "versions": {name: v for name in PACKAGES if (v := _version(name)) is not None},
        "device": device,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "executable": sys.executable,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_name(device: str) -> str:
    """The maker's name of a GPU; the processor's otherwise."""
    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name(torch.device(device))
    return platform.processor() or platform.machine()
