"""Tokens that tuners put into an encoder-decoder of text.

Prompts stand in front of the source, where the decoder looks at their outputs as well (prompt
tuning, arXiv 2104.08691). A gist token stands last in the target, or first in the source. Shape
suffixes: B = rows, S = positions of the source, G = gist tokens, D = width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones.layout import TokenLayout
from gistcli.backbones.sites import Switch
from gistcli.backbones.text_tokens import (
    DecoderTokens,
    TextTokens,
    argument_names,
    close_up,
    widen,
)
from gistcli.backbones.tokens import (
    INSERTED,
    SOURCE_GIST,
    InsertedTokens,
    MakeTokens,
    TokenHandle,
)


class SourceTokens(TextTokens):
    """Gist tokens and prompts in front of the source.

    Prompts stay in the encoder's output, and in the mask with which the decoder looks at it; gist
    tokens are taken out of it.

    Args:
        encoder, decoder: halves of the network.
        blocks: of the encoder.
    """

    slots = (SOURCE_GIST, "prompts")
    order = (SOURCE_GIST, "prompts", "text")

    def __init__(self, encoder: nn.Module, decoder: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__(encoder, blocks)
        self._read = argument_names(decoder)
        decoder.register_forward_pre_hook(self._look, with_kwargs=True)

    def length_of(self, slot: str) -> int:
        """Tokens that are inserted now."""
        return sum(entry.length for entry in self.active() if entry.slot == slot)

    def gist_outputs(self) -> Tensor:
        """(B, G, D): of the gist tokens in the last pass through the encoder."""
        assert self._full is not None, "no gist token was in the last forward pass"
        return self._full[:, : self.length_of(SOURCE_GIST)]

    def _changed(self, given: dict[str, Any]) -> dict[str, Any]:
        x_BSD, extra = self._embedded(given), self.extra
        new = self._made(self.active(), x_BSD)
        given["inputs_embeds"] = torch.cat([*new, x_BSD], dim=1)
        widen(given, extra, 0)
        self._spread = x_BSD.shape[1] + extra, close_up(given, extra)
        return given

    def _text_of(self, tokens_BSD: Tensor) -> Tensor:
        gists = self.length_of(SOURCE_GIST)
        if not gists:
            self.forget()
        return tokens_BSD[:, gists:]

    def _look(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = {**dict(zip(self._read, args, strict=False)), **kwargs}
        mask_BS, states_BSD = given.get("encoder_attention_mask"), given["encoder_hidden_states"]
        if mask_BS is None or mask_BS.shape[1] == states_BSD.shape[1]:
            return None
        mask_BS = F.pad(mask_BS, (self.length_of("prompts"), 0), value=1)
        return (), {**given, "encoder_attention_mask": mask_BS}


class Seq2SeqTokens(InsertedTokens):
    """The tokens of the source and those of the target; the layout is the target's.

    Args:
        encoder, decoder: halves of the network.
        blocks: of both, the encoder's first.
    """

    slots = (*INSERTED, SOURCE_GIST)
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
        half = self.source if slot in SourceTokens.slots else self.target
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
        self.source.forget()
        self.target.forget()

    def take_full(self, stripped: Tensor) -> Tensor:
        """The target's sequence of this pass before inserted tokens were taken out."""
        return self.target.take_full(stripped)
