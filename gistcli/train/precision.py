"""Which device to compute on, and in which precision."""

from __future__ import annotations

import torch

from gistcli.errors import NotSupported, UnknownName, did_you_mean
from gistcli.reporting import SILENT, Reporter

PRECISIONS = ("auto", "fp32", "bf16")


def choose_device(asked: str = "auto") -> torch.device:
    """`auto` is the first of CUDA, MPS and CPU that is there; else what is asked for, checked.

    Raises:
        UnknownName: no such kind of device.
        NotSupported: this machine does not have it.
    """
    if asked == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, number = asked.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdigit()):
        known = ("auto", "cpu", "cuda", "cuda:0", "mps")
        raise UnknownName(f"{asked!r} is no device.", did_you_mean(asked, known))
    found = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": torch.backends.mps.is_available()}
    if int(number or 0) >= found[kind]:
        raise NotSupported(f"This machine has no device {asked!r}.", "Use `auto` or `cpu`.")
    return torch.device("cpu" if kind == "cpu" else asked)


def choose_precision(asked: str, device: torch.device, reporter: Reporter = SILENT) -> str:
    """`fp32` or `bf16`: `auto` takes bf16 on a GPU that computes in it, else fp32.

    bf16 asked for on a CPU that has to emulate it (some 30 times slower) is done, with a warning.

    Raises:
        UnknownName: no such precision.
    """
    if asked not in PRECISIONS:
        raise UnknownName(f"{asked!r} is no precision.", did_you_mean(asked, PRECISIONS))
    if asked == "auto":
        return "bf16" if device.type == "cuda" and _fast_bf16(device) else "fp32"
    if asked == "bf16" and not _fast_bf16(device):
        reporter.warn(
            f"bf16 on this {device.type} is emulated and far slower than fp32: "
            "use train.precision auto or fp32."
        )
    return asked


def _fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_sve_supported")
        return any(getattr(torch.cpu, name, bool)() for name in probes)
    return True
