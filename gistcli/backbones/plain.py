"""What ViT, BEiT and Eva share: one sequence of tokens of one width from first to last block."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from gistcli.backbones.attending import AttentionSeam
from gistcli.backbones.layout import Features, TokenLayout
from gistcli.backbones.sites import Output
from gistcli.backbones.timm_blocks import TimmBlocks
from gistcli.errors import NotMergeable

AFFINE = (
    "norm1", "attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.q_norm", "attn.k_norm",
    "attn.sub_norm", "attn.norm", "attn.proj",
    "norm2", "mlp.fc1", "mlp.fc1_g", "mlp.fc1_x", "mlp.norm", "mlp.fc2",
)  # fmt: skip
"""Modules of a block that may have a weight, in the order in which they act."""


class PlainBlocks(TimmBlocks):
    """Pre-norm blocks over class tokens, registers and patches."""

    register_argument: ClassVar[str]
    """Argument of the architecture that says how many registers there are."""

    def outputs(self) -> list[Output]:
        """Patch embedding, norms and linear maps of every block, last norm.

        Norms of queries and keys act on heads, so that all heads share their channels. A LayerScale
        is no affine module: what scales it also scales the linear map before it.
        """
        paths = ["patch_embed.proj", "patch_embed.norm", "norm_pre"]
        paths += [f"{path}.{part}" for path in self.block_paths for part in AFFINE]
        return self.outputs_at([*paths, "norm", "fc_norm"])

    def attention(self, layer: int) -> AttentionSeam:
        """Behind the dropout of the weights, which fused attention does not call."""
        attn = self.blocks[layer].attn
        return AttentionSeam(attn.attn_drop, partial(_weights, attn), attn, "fused_attn", False)

    # --- tokens -----------------------------------------------------------------------------

    @property
    def registers(self) -> int:
        """Register tokens of the network itself."""
        own: Tensor | None = getattr(self.timm, "reg_token", None)
        return 0 if own is None else own.shape[1]

    @property
    def cls_tokens(self) -> int:
        """Tokens in front of the registers: 1, 2 where distilled, 0 without a class token."""
        return int(self.timm.num_prefix_tokens) - self.registers

    def layout_of(self, pixels: Tensor) -> TokenLayout:
        """Class tokens, registers, patches."""
        grid = tuple(self.timm.patch_embed.dynamic_feat_size(tuple(pixels.shape[-2:])))
        lengths = {
            "cls": self.cls_tokens,
            "registers": self.registers,
            "patches": grid[0] * grid[1],
        }
        return TokenLayout(lengths, (grid[0], grid[1]))

    def register_tokens(self, tokens_PD: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Registers in front of those there are, with a zero position where registers have one.

        Raises:
            NotMergeable: a network without registers, or one whose pooling reads them.
        """
        model = self.timm
        if not hasattr(model, "reg_token") or hasattr(model, "dist_token"):
            return super().register_tokens(tokens_PD)
        if self._pools_registers():
            raise NotMergeable(
                f"{self.architecture} pools over all tokens, registers included.",
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
        return new, {self.register_argument: registers.shape[1]}

    def _pools_registers(self) -> bool:
        """Whether more registers would change what is pooled."""
        model = self.timm
        # Eva has no such option: its mean leaves the prefix out, its pooling attention does not
        included = getattr(model, "pool_include_prefix", model.attn_pool is not None)
        return included and (model.attn_pool is not None or model.global_pool != "token")

    def read_out(self, features: Features, slot: str) -> Tensor:
        """(B, K): the slot's mean output, or what a pooling attention makes of it, classified.

        On the path of the class token: fc_norm, dropout, head (or the mean of both heads).
        """
        model = self.timm
        tokens = features.tokens[:, features.layout.span(slot)]
        pool = getattr(model, "attn_pool", None)
        pooled = tokens.mean(dim=1) if pool is None else pool(tokens)
        pooled = model.head_drop(model.fc_norm(pooled))
        return self.classify(pooled.repeat(1, len(self.heads())))


def _weights(attn: Any, softmax: Tensor) -> Tensor:
    """(B, H, T, T); differential attention subtracts one softmax of two a head from the other."""
    if not hasattr(attn, "lambda_init"):
        return softmax
    first, second = softmax.unflatten(1, (-1, 2)).unbind(2)
    return first - attn._compute_lambda().to(second) * second
