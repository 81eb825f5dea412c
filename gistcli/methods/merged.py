"""What a tuned network is as plain weights: patches of the stored tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

Patch = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LowRank:
    """The update of one linear map as B A: `a` (r, d_in), `b(W)` (d_out, r) for W (d_out, d_in).

    Attributes:
        transposed: the network keeps W as (d_in, d_out).
    """

    a: Tensor
    b: Patch
    transposed: bool = False

    def turned(self, tensor: Tensor) -> Tensor:
        """From the shape in which the network keeps W to (d_out, d_in), and back."""
        return tensor.t() if self.transposed else tensor


@dataclass(frozen=True)
class Merged:
    """How to turn the base's stored tensors into tuned ones, one at a time, in float32.

    Attributes:
        patches: stored key -> function of the base tensor (float32) that yields the tuned one, both
            as they are stored.
        new: tensors that replace or join the stored ones whatever those hold (the head).
        model_args: arguments of the architecture that change (register tokens).
        low_rank: module name -> its update as B A, where every patch is one of these.
        scalable: a scale between 0 and 1 has a meaning (registers are there or not).
    """

    patches: Mapping[str, Patch]
    new: Mapping[str, Tensor]
    model_args: Mapping[str, Any] = field(default_factory=dict)
    low_rank: Mapping[str, LowRank] = field(default_factory=dict)
    scalable: bool = True


def as_stored(merged: Merged, transposed: Collection[str]) -> Merged:
    """The same for a network that keeps some of the weights as (d_in, d_out)."""
    if not merged.patches.keys() & set(transposed):
        return merged
    patches = {k: _turned(p) if k in transposed else p for k, p in merged.patches.items()}
    low_rank = {
        name: replace(update, transposed=f"{name}.weight" in transposed)
        for name, update in merged.low_rank.items()
    }
    return replace(merged, patches=patches, low_rank=low_rank)


def _turned(patch: Patch) -> Patch:
    return lambda w_IO: patch(w_IO.t()).t()
