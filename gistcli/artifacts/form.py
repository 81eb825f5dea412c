"""What is particular to one library about a folder of plain weights."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from gistcli.artifacts.verify import Inputs


class Form(abc.ABC):
    """A kind of folder: the files beside the weights, the names in them, how it is loaded."""

    name: ClassVar[str]
    """Of the library, and of the format."""
    shards: ClassVar[bool] = True
    """Whether the library reads a network from several files."""
    of_text: ClassVar[bool] = False
    """Whether the network reads text, so that servers of language models may know it."""

    @property
    def peft_task(self) -> str | None:
        """PEFT's name of the task; None where PEFT has no class for it."""
        return None

    @property
    def own_template(self) -> str | None:
        """File of a chat template that is not the base's; None where there is none."""
        return None

    def write_beside_adapter(self, folder: Path) -> None:
        """What belongs beside an adapter: nothing, or the tokenizer."""
        return None

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

    def rebuilt(self, read: Callable[[str], Tensor], inputs: Inputs) -> Tensor | None:
        """Float32 logits of a network with other tensors, which is not written for that.

        Args:
            read: name in memory -> tensor.
            inputs: as for `load`'s network.

        Returns:
            None where the folder has to be written to run its network.
        """
        return None
