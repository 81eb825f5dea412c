"""Images for all networks here."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
