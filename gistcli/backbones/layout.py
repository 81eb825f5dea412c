"""Where each kind of token stands in the sequence, and what a forward pass yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

SLOTS = ("cls", "gist", "prompts", "registers", "patches", "text")


@dataclass(frozen=True)
class TokenLayout:
    """Named slices of the token axis inside the blocks.

    Attributes:
        lengths: number of tokens of each slot.
        grid: rows and columns of the patch tokens; rows * columns == lengths["patches"]. (0, 0)
            for text.
        order: of the slots; in a decoder of text a gist token stands last.
    """

    lengths: Mapping[str, int]
    grid: tuple[int, int]
    order: tuple[str, ...] = SLOTS

    def span(self, slot: str) -> slice:
        """The positions of a slot; an empty slice where the backbone has none."""
        start = 0
        for name in self.order:
            stop = start + self.lengths.get(name, 0)
            if name == slot:
                return slice(start, stop)
            start = stop
        raise KeyError(f"{slot!r} is no slot; slots are {', '.join(self.order)}")

    @property
    def patches(self) -> slice:
        """The positions of the patch tokens."""
        return self.span("patches")

    @property
    def total(self) -> int:
        """Tokens in all."""
        return sum(self.lengths.values())


class Features(NamedTuple):
    """What one forward pass yields.

    Attributes:
        tokens: (B, T, D) after the last norm, inserted tokens included: `layout` names the slices.
        pooled: (B, D) what the head reads; (B, T, D) in a language model, where that is `tokens`.
        logits: (B, K); in a language model (N, V) or (B, T, V), see `backbones.causal`.
        layout: where each kind of token stands in `tokens`, and at every site inside the blocks.
    """

    tokens: Tensor
    pooled: Tensor
    logits: Tensor
    layout: TokenLayout
