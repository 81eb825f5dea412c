"""timm's Eva: EVA, EVA02, DINOv3, Perception Encoder, ViTs with rotary positions, Sapiens2."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.eva import Eva, EvaBlock
from torch import Tensor, nn

from gistcli.backbones.base import Origin
from gistcli.backbones.beit_blocks import BeitBlocks
from gistcli.backbones.sites import Tap
from gistcli.backbones.timm_family import built_in
from gistcli.errors import NotMergeable, NotSupported


class EvaViT(BeitBlocks):
    """A timm Eva of pre-norm blocks, with absolute, rotary or mixed positions.

    Raises:
        NotSupported: post-norm blocks, or a gate that reads the input of attention.
    """

    def __init__(self, model: nn.Module, origin: Origin) -> None:
        self._require_plain(model, origin)
        super().__init__(model, origin)
        # in front of norm_pre, so that the Perception Encoder normalises the new tokens too
        self.carry_tokens(self.cls_tokens, Tap(self.timm.norm_pre), self.timm.norm)
        for block in self.blocks:
            self._count_prefix(block.attn)

    @staticmethod
    def _require_plain(model: Any, origin: Origin) -> None:
        reason, blocks = None, getattr(model, "blocks", ())
        if type(model) is not Eva:
            reason = f"a {type(model).__name__}, not an Eva"
        elif any(type(block) is not EvaBlock for block in blocks):
            reason = "of post-norm blocks: no tensor between them is the input of attention alone"
        elif any(block.attn.gate is not None for block in blocks):
            reason = "gated: the input of its query, key and value is that of the gate too"
        if reason is not None:
            raise NotSupported(
                f"{origin.architecture} is {reason}.",
                "See `gist list models` for the backbones that can be tuned.",
            )

    @staticmethod
    def accepts(architecture: str) -> bool:
        """Whether an architecture name is of this family."""
        return built_in(architecture, "eva")

    def _count_prefix(self, attn: Any) -> None:
        """Let an attention rotate patches alone, however many tokens stand in front of them.

        Set at every call, also where gradient checkpointing makes a block compute again.
        """
        inserted, own = self.inserted, attn.num_prefix_tokens
        assert inserted is not None

        def hook(module: Any, args: tuple[Any, ...]) -> None:
            module.num_prefix_tokens = own + inserted.extra

        attn.register_forward_pre_hook(hook)

    def register_tokens(self, tokens_PD: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Registers in front of those there are, with a zero position where registers have one.

        Raises:
            NotMergeable: a pooling attention, which would read registers.
        """
        model = self.timm
        if model.attn_pool is not None:
            raise NotMergeable(
                f"{self.architecture} pools by an attention over all tokens, registers included.",
                "Keep the run directory, or export with `gist merge --format onnx`.",
            )
        registers = tokens_PD.detach()[None]
        if model.reg_token is not None:
            registers = torch.cat([registers, model.reg_token.detach().to(registers)], dim=1)
        new = {"reg_token": registers}
        if model.pos_embed is not None and not model.no_embed_class:
            cls, position = self.cls_tokens, model.pos_embed.detach().float()
            zeros = position.new_zeros(1, len(tokens_PD), position.shape[-1])
            new["pos_embed"] = torch.cat([position[:, :cls], zeros, position[:, cls:]], dim=1)
        return new, {"num_reg_tokens": registers.shape[1]}
