"""What is particular to one library about a folder of plain weights."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from torch import nn


class Form(abc.ABC):
    """A kind of folder: the files beside the weights, the names in them, how it is loaded."""

    name: ClassVar[str]
    """Of the library, and of the format."""

    @property
    @abc.abstractmethod
    def names(self) -> Mapping[str, Sequence[str]] | None:
        """Stored key -> the tensors in memory whose rows it holds; None where names are equal."""

    @abc.abstractmethod
    def write(self, folder: Path, dtype: str) -> None:
        """Everything but the weights, which are in `dtype`."""

    @abc.abstractmethod
    def load(self, folder: Path) -> nn.Module:
        """A fresh network by the library alone: float32, in evaluation mode, inputs to logits."""
