"""Choice of device and precision."""

from __future__ import annotations

import pytest
import torch

from gistcli.errors import NotSupported, UnknownName
from gistcli.reporting import Reporter
from gistcli.train import choose_device, choose_precision, precision


class Listener(Reporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_auto_on_a_cpu_is_float32_and_says_nothing() -> None:
    listener = Listener()
    assert choose_precision("auto", torch.device("cpu"), listener) == "fp32"
    assert listener.warnings == []


@pytest.mark.parametrize("fast", [True, False])
def test_bf16_on_a_cpu_warns_only_where_it_is_emulated(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_fast_bf16", lambda device: fast)
    listener = Listener()
    assert choose_precision("bf16", torch.device("cpu"), listener) == "bf16"
    assert len(listener.warnings) == (0 if fast else 1)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(NotSupported, match="cuda:99"):
        choose_device("cuda:99")
    with pytest.raises(UnknownName, match="gpu"):
        choose_device("gpu")
    with pytest.raises(UnknownName, match="cuda:x"):
        choose_device("cuda:x")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UnknownName, match="fp8"):
        choose_precision("fp8", torch.device("cpu"))


def test_auto_takes_a_gpu_where_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    if not torch.backends.mps.is_available():
        assert choose_device("auto").type == expected
