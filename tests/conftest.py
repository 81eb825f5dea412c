"""Shared fixtures: the real weights and data that lie beside the repository, where they are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# two workers on two cores: one thread each, also in the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets"


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real weights and pictures; tests that need it skip where it is missing."""
    if not ASSETS.is_dir():
        pytest.skip("the real weights and pictures (../shared/assets) are not on this machine")
    return ASSETS


@pytest.fixture(autouse=True)
def private_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fingerprints are cached in a folder of the test session, not in the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


DRAWING = {
    "gistcli.run.finetuning": "write_curves",
    "gistcli.run.classification": "write_classification_plots",
}


@pytest.fixture(autouse=True)
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the same for all methods, and half of the time of a short run.

    Drawn are runs of fixtures that live longer than a test, and of processes of their own.
    """
    for module, name in DRAWING.items():
        if module in sys.modules:
            monkeypatch.setattr(sys.modules[module], name, lambda *arguments: None)


@pytest.fixture(autouse=True)
def no_recompilations_of_others() -> None:
    """Whole-graph compilation fails behind eight others of the same code, whoever made them."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first: one that is left to the end keeps one worker waiting for the other."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
