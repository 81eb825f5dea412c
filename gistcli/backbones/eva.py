"""timm's Eva: EVA, EVA02, DINOv3, Perception Encoder, ViTs with rotary positions, Sapiens2."""

from __future__ import annotations

from typing import Any

from timm.models.eva import Eva, EvaBlock
from torch import nn

from gistcli.backbones.base import Origin
from gistcli.backbones.plain import PlainBlocks
from gistcli.backbones.sites import Tap
from gistcli.backbones.timm_family import built_in


class EvaViT(PlainBlocks):
    """A timm Eva of pre-norm blocks, with absolute, rotary or mixed positions.

    Rotary positions are not shifted or scaled at random in training mode, as some architectures
    ask for in pretraining: no path is dropped by default either.

    Raises:
        NotSupported: post-norm blocks, or a gate that reads the input of attention.
    """

    networks = (Eva,)
    register_argument = "num_reg_tokens"

    def __init__(self, model: nn.Module, origin: Origin) -> None:
        super().__init__(model, origin)
        # in front of norm_pre, so that the Perception Encoder normalises the new tokens too
        self.carry_tokens(self.cls_tokens, Tap(self.timm.norm_pre), self.timm.norm)
        for block in self.blocks:
            self._count_prefix(block.attn)
        if self.timm.rope is not None:
            self.timm.rope.aug_active = False

    @classmethod
    def refusal(cls, model: Any) -> str | None:
        """Another class, post-norm blocks, or a gated attention."""
        if type(model) not in cls.networks:
            return super().refusal(model)
        if any(type(block) is not EvaBlock for block in model.blocks):
            return "of post-norm blocks: no tensor between them is the input of attention alone"
        if any(block.attn.gate is not None for block in model.blocks):
            return "gated: the input of its query, key and value is that of the gate too"
        return None

    @staticmethod
    def accepts(architecture: str) -> bool:
        """Whether an architecture name is of this family; the enormous one has post-norm blocks."""
        return built_in(architecture, "eva") and "_enormous_" not in architecture

    def _count_prefix(self, attn: Any) -> None:
        """Let an attention rotate patches alone, however many tokens stand in front of them.

        Set at every call, also where gradient checkpointing makes a block compute again.
        """
        inserted, own = self.inserted, attn.num_prefix_tokens
        assert inserted is not None

        def hook(module: Any, args: tuple[Any, ...]) -> None:
            module.num_prefix_tokens = own + inserted.extra

        attn.register_forward_pre_hook(hook)
