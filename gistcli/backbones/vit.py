"""timm's VisionTransformer: AugReg, DeiT, DINO, CLIP, SigLIP, AIMv2, BEiT 3, whatever they pool."""

from __future__ import annotations

import re
from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from gistcli.backbones.base import Origin
from gistcli.backbones.plain import PlainBlocks
from gistcli.backbones.sites import Tap
from gistcli.backbones.timm_family import built_in

OTHER_BLOCKS = re.compile(r"_(18x2|d?pwee|rpn|xp)_")
"""In the names of timm's networks of parallel or post-norm blocks."""


class ViT(PlainBlocks):
    """A timm VisionTransformer of pre-norm blocks: class token, average, map pooling, registers.

    Raises:
        NotSupported: the network is of another kind.
    """

    networks = (VisionTransformer, VisionTransformerDistilled)
    register_argument = "reg_tokens"

    def __init__(self, model: nn.Module, origin: Origin) -> None:
        super().__init__(model, origin)
        # before norm_pre, so that a CLIP ViT normalises the new tokens too
        self.carry_tokens(self.cls_tokens, Tap(self.timm.norm_pre), self.timm.norm)

    @classmethod
    def refusal(cls, model: Any) -> str | None:
        """Another class, or blocks whose branches do not follow one another."""
        other = {type(block) for block in getattr(model, "blocks", ())} - {Block}
        if type(model) not in cls.networks or not other:
            return super().refusal(model)
        return f"made of {', '.join(kind.__name__ for kind in other)}, not of pre-norm blocks"

    @staticmethod
    def accepts(architecture: str) -> bool:
        """Whether an architecture name is of this family."""
        of_timm = built_in(architecture, "vision_transformer", "deit")
        return of_timm and OTHER_BLOCKS.search(architecture) is None

    def pool(self, features: Tensor) -> Tensor:
        """(B, P): class and distillation token side by side where there are two."""
        if not isinstance(self.model, VisionTransformerDistilled):
            return super().pool(features)
        return self.timm.head_drop(features[:, :2]).flatten(1)

    def classify(self, pooled: Tensor) -> Tensor:
        """(B, K); a distilled network averages its two heads, in training too."""
        heads = self.heads()
        parts = pooled.chunk(len(heads), dim=-1)
        logits = [head(part) for head, part in zip(heads, parts, strict=True)]
        return logits[0] if len(logits) == 1 else torch.stack(logits).mean(0)
