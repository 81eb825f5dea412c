"""Tokens that tuners put into the sequence, where the network has them beside its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gistcli.backbones.layout import SLOTS, TokenLayout
from gistcli.backbones.sites import Switch, Tap
from gistcli.errors import UnknownName

MakeTokens = Callable[[int], Tensor]
INSERTED = ("gist", "prompts")
SOURCE_GIST = "source_gist"
"""A gist token in the source of an encoder-decoder; `gist` stands in its target."""


@dataclass(eq=False)
class TokenHandle:
    """Some inserted tokens of one tuner.

    Attributes:
        slot: gist or prompts.
        length: number of tokens.
        make: batch size -> (B, length, D).
        switch: of the tuner.
    """

    slot: str
    length: int
    make: MakeTokens
    switch: Switch
    _sequence: InsertedTokens = field(repr=False)

    def refresh(self, layer: int, make: MakeTokens) -> None:
        """Overwrite these tokens, and no others, at the input of block `layer` (VPT-deep)."""

        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not self.switch.enabled:
                return None
            x_BTD, start = args[0], self._sequence.start(self)
            new = make(x_BTD.shape[0]).to(x_BTD.dtype)
            parts = [x_BTD[:, :start], new, x_BTD[:, start + self.length :]]
            return (torch.cat(parts, dim=1), *args[1:])

        block = self._sequence.blocks[layer]
        self.switch.handles.append(block.register_forward_pre_hook(hook))


class InsertedTokens:
    """The tokens that tuners have put into a sequence, and where they stand in it.

    Every block sees them; pooling and head see what they saw before. A subclass does it, with hooks
    that stay for good and do nothing while nothing is inserted.

    Attributes:
        slots: what can be inserted.
        order: the slots, from the first token to the last.
        cls_tokens: tokens that stay in front of the inserted ones.
        blocks: in order.
        entries: what is inserted, whether switched on or not.
    """

    slots: ClassVar[tuple[str, ...]] = INSERTED
    order: ClassVar[tuple[str, ...]] = SLOTS

    def __init__(self, cls_tokens: int, blocks: Sequence[nn.Module]) -> None:
        self.cls_tokens = cls_tokens
        self.blocks = blocks
        self.entries: list[TokenHandle] = []
        self._full: Tensor | None = None

    def add(self, slot: str, length: int, make: MakeTokens, switch: Switch) -> TokenHandle:
        """Insert from now on, until the switch is released.

        Raises:
            UnknownName: no such slot.
        """
        if slot not in self.slots:
            known = " or ".join(self.slots)
            raise UnknownName(f"No token can be inserted as {slot!r}.", f"Use {known}.")
        entry = TokenHandle(slot, length, make, switch, self)
        self.entries.append(entry)
        switch.on_release.append(lambda: self.entries.remove(entry))
        return entry

    def droppable(self, slot: str) -> bool:
        """Whether no other token looks at those of a slot: without them the logits are the same."""
        return False

    @property
    def room(self) -> int:
        """Positions of the text that the tokens take away."""
        return 0

    def unread(self, slot: str) -> str | None:
        """Why nothing can be read from the outputs of a slot, where that is so."""
        return None

    def active(self) -> list[TokenHandle]:
        """What is inserted now, in the order of the sequence."""
        found = [entry for entry in self.entries if entry.switch.enabled]
        return sorted(found, key=lambda entry: self.order.index(entry.slot))

    @property
    def extra(self) -> int:
        """How many tokens are inserted now."""
        return sum(entry.length for entry in self.active())

    def start(self, entry: TokenHandle) -> int:
        """The position of an entry's first token."""
        active = self.active()
        before = active[: active.index(entry)]
        return self.cls_tokens + sum(other.length for other in before)

    def extend(self, layout: TokenLayout) -> TokenLayout:
        """The layout of a sequence with what is inserted now."""
        lengths: Mapping[str, int] = layout.lengths
        for entry in self.active():
            lengths = {**lengths, entry.slot: lengths.get(entry.slot, 0) + entry.length}
        return TokenLayout(lengths, layout.grid, self.order)

    def forget(self) -> None:
        """Called in front of a forward pass: what an earlier one has left is not its own."""
        self._full = None

    def take_full(self, stripped: Tensor) -> Tensor:
        """The sequence (B, T, D) of this pass before inserted tokens were taken out."""
        full = stripped if self._full is None else self._full
        self._full = None
        return full

    def _made(self, entries: Sequence[TokenHandle], like: Tensor) -> list[Tensor]:
        """(B, length, D) of each entry, as `like` (B, T, D)."""
        for entry in entries:
            entry.switch.mark(entry.slot)
        return [entry.make(like.shape[0]).to(like.dtype) for entry in entries]


class BlockTokens(InsertedTokens):
    """Puts tokens in before the first block and takes them out behind the last norm.

    In between, every block sees [cls | gist | prompts | registers | patches].

    Args:
        cls_tokens: class and distillation tokens.
        blocks: the blocks, in order.
        enter: where the sequence is complete and no checkpointed block has begun.
        leave: the last norm.
    """

    def __init__(
        self, cls_tokens: int, blocks: Sequence[nn.Module], enter: Tap, leave: nn.Module
    ) -> None:
        super().__init__(cls_tokens, blocks)
        if enter.output:
            enter.module.register_forward_hook(lambda _, __, x: self._insert(x))
        else:
            enter.module.register_forward_pre_hook(lambda _, args: self._insert(args[0]))
        leave.register_forward_hook(lambda _, __, x: self._strip(x))

    def _insert(self, x_BTD: Tensor) -> Tensor | None:
        active = self.active()
        if not active:
            return None
        cls, new = self.cls_tokens, self._made(active, x_BTD)
        return torch.cat([x_BTD[:, :cls], *new, x_BTD[:, cls:]], dim=1)

    def _strip(self, x_BTD: Tensor) -> Tensor | None:
        extra, cls = self.extra, self.cls_tokens
        if not extra:
            return None
        self._full = x_BTD
        return torch.cat([x_BTD[:, :cls], x_BTD[:, cls + extra :]], dim=1)
