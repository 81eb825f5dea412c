"""The shared laboratory of the training tests, and one thread, for which exactness is promised."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_lab", Path(__file__).with_name("lab.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_lab"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def lab() -> ModuleType:
    """tests/train/lab.py: objective, digits, train, validator."""
    return _load()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Resume is exact for equal thread counts; one is also the fastest for such small networks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
