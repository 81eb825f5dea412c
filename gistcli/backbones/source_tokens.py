"""Tokens that tuners put into an encoder-decoder of text.

Prompts stand in front of the source, where the decoder looks at their outputs as well (prompt
tuning, arXiv 2104.08691); a gist token stands last in the target. Shape suffixes: B = rows,
S = positions of the source, P = prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gistcli.backbones.layout import TokenLayout
from gistcli.backbones.sites import Switch
from gistcli.backbones.text_tokens import (
    DecoderTokens,
    TextTokens,
    argument_names,
    close_up,
    continued,
    widen,
)
from gistcli.backbones.tokens import InsertedTokens, MakeTokens, TokenHandle


class SourceTokens(TextTokens):
    """Prompts in front of the source, and in the mask with which the decoder looks at it.

    They stay in the encoder's output.

    Args:
        encoder, decoder: halves of the network.
        blocks: of the encoder.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__(encoder, blocks)
        self._read = argument_names(decoder)
        decoder.register_forward_pre_hook(self._look, with_kwargs=True)

    def _changed(self, given: dict[str, Any]) -> dict[str, Any]:
        x_BSD, prompts = self._embedded(given), self.extra
        new = self._made(self.active(), x_BSD)
        given["inputs_embeds"] = torch.cat([*new, x_BSD], dim=1)
        widen(given, prompts, 0)
        close_up(given, prompts)
        return given

    def _text_of(self, tokens_BSD: Tensor) -> Tensor:
        return tokens_BSD

    def _look(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = {**dict(zip(self._read, args, strict=False)), **kwargs}
        mask_BS = given.get("encoder_attention_mask")
        if not self.active() or mask_BS is None:
            return None
        changed = continued({"attention_mask": mask_BS}, self.extra)
        return (), {**given, "encoder_attention_mask": changed["attention_mask"]}


class Seq2SeqTokens(InsertedTokens):
    """The prompts of the source and the gist token of the target; the layout is the target's.

    Args:
        encoder, decoder: halves of the network.
        blocks: of both, the encoder's first.
    """

    order = DecoderTokens.order

    def __init__(self, encoder: nn.Module, decoder: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__(0, blocks)
        self.source = SourceTokens(encoder, decoder, blocks)
        self.target = DecoderTokens(decoder, blocks)

    def add(self, slot: str, length: int, make: MakeTokens, switch: Switch) -> TokenHandle:
        """Insert from now on, until the switch is released.

        Raises:
            UnknownName: no such slot.
        """
        half = self.source if slot == "prompts" else self.target
        return half.add(slot, length, make, switch)

    def droppable(self, slot: str) -> bool:
        """The gist token is: it stands last."""
        return self.target.droppable(slot)

    def unread(self, slot: str) -> str | None:
        """Prompts are part of the source, and what is read stands in the target."""
        return "stand in the encoder, where nothing is read" if slot == "prompts" else None

    def active(self) -> list[TokenHandle]:
        """What is inserted now."""
        return [*self.source.active(), *self.target.active()]

    def extend(self, layout: TokenLayout) -> TokenLayout:
        """The layout of the target with what is inserted there now."""
        return self.target.extend(layout)

    def forget(self) -> None:
        """Called in front of a forward pass."""
        self.target.forget()

    def take_full(self, stripped: Tensor) -> Tensor:
        """The target's sequence of this pass before inserted tokens were taken out."""
        return self.target.take_full(stripped)
