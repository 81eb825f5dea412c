"""The attention of blocks as the network itself computes it, read while it runs.

Fused attention never holds the weights. While they are looked at, the chosen blocks compute them
step by step; all that acts on them (rotary positions, biases of relative positions, norms of
queries and keys, whatever a tuner changes) is in them. Shape suffixes: B = images, H = heads,
T = tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gistcli.errors import NotSupported

if TYPE_CHECKING:
    from gistcli.backbones.base import Backbone, Layers

See = Callable[[int, Tensor], None]
"""Gets the number of a block and its weights (B, H, T, T)."""


@dataclass(frozen=True)
class AttentionSeam:
    """Where the attention of one block can be read.

    Attributes:
        module: its output holds the weights.
        read: that output -> (B, H, T, T), what multiplies the values; row = the token that looks.
        owner: has the attribute that says how attention is computed.
        attribute: its name.
        unfused: its value for the computation that holds the weights.
    """

    module: nn.Module
    read: Callable[[Any], Tensor]
    owner: nn.Module
    attribute: str
    unfused: Any


@contextmanager
def watch_attention(backbone: Backbone, see: See, layers: Layers = "all") -> Iterator[None]:
    """Inside, every forward pass hands the attention of the chosen blocks to `see`, in order.

    Nothing is kept here: a large network's weights of all blocks do not fit into memory.

    Raises:
        NotSupported: tokens look at a part of the others only, or the network is compiled.
        Refused: a layer that does not exist.
    """
    backbone.require_uncompiled()
    seams = {layer: _seam(backbone, layer) for layer in backbone.layer_numbers(layers)}
    with ExitStack() as stack:
        for layer, seam in seams.items():
            stack.enter_context(_set(seam.owner, seam.attribute, seam.unfused))
            stack.callback(_listen(layer, seam, see).remove)
        yield


def _seam(backbone: Backbone, layer: int) -> AttentionSeam:
    seam = backbone.attention(layer)
    if backbone.modality == "text":
        raise NotSupported(
            f"Attention is shown over pictures, and {backbone.architecture} reads text.",
            "Choose a run over pictures.",
        )
    if seam is None:
        raise NotSupported(
            f"{backbone.architecture} attends within windows or pools its tokens on the way: none "
            "of them looks at the whole picture.",
            "Choose a plain ViT.",
        )
    return seam


def _listen(layer: int, seam: AttentionSeam, see: See) -> Any:
    def hook(module: nn.Module, args: Any, y: Any) -> None:
        see(layer, seam.read(y))

    return seam.module.register_forward_hook(hook)


@contextmanager
def _set(owner: nn.Module, attribute: str, value: object) -> Iterator[None]:
    before = getattr(owner, attribute)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        setattr(owner, attribute, before)
