"""A two-block ViT with random weights, and six labelled images, for the method tests."""

from __future__ import annotations

import pytest
from torch import Tensor

from gistcli.backbones import Backbone
from gistcli.testing import kinds
from gistcli.testing.cases import PLAIN


@pytest.fixture
def tiny() -> Backbone:
    return kinds.KINDS[PLAIN].backbone()


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return kinds.batch()
