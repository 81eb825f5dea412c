"""timm's Beit: BEiT and BEiT v2, with biases of relative positions."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.beit import Beit as TimmBeit
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones.base import Origin
from gistcli.backbones.plain import PlainBlocks
from gistcli.backbones.sites import Tap
from gistcli.backbones.timm_family import built_in
from gistcli.backbones.tokens import InsertedTokens

TABLE, SHARED = "relative_position_bias_table", "shared_rel_pos_bias"


class Beit(PlainBlocks):
    """A timm Beit: a class token, patches, a bias for every pair of relative positions.

    Inserted tokens have no position: their rows and columns of the bias are zero.

    Raises:
        NotSupported: the network is of another kind.
    """

    networks = (TimmBeit,)

    def __init__(self, model: nn.Module, origin: Origin) -> None:
        super().__init__(model, origin)
        self.carry_tokens(self.cls_tokens, Tap(self.timm.pos_drop, output=True), self.timm.norm)
        assert self.inserted is not None
        _extend_biases(self.timm, self.inserted)

    @staticmethod
    def accepts(architecture: str) -> bool:
        """Whether an architecture name is of this family."""
        return built_in(architecture, "beit")


def _extend_biases(model: Any, inserted: InsertedTokens) -> None:
    """Hooks for good, which do nothing while nothing is inserted."""
    if model.rel_pos_bias is not None:
        model.rel_pos_bias.register_forward_hook(
            lambda _, __, bias: extended(bias, inserted.extra) if inserted.extra else None
        )
    for block in model.blocks:
        if getattr(block.attn, TABLE) is not None:
            _extend_own_bias(block.attn, inserted)


def _extend_own_bias(attn: Any, inserted: InsertedTokens) -> None:
    """Hand an attention its own bias, extended, as part of the one that blocks share.

    Its table is hidden meanwhile, so that the bias is not added a second time.
    """

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if not inserted.extra:
            return None
        bias = extended(module._get_rel_pos_bias(), inserted.extra)
        shared = kwargs.get(SHARED)
        # an instance attribute hides the Parameter, which stays in its place in the state dict
        object.__setattr__(module, TABLE, None)
        return args, {**kwargs, SHARED: bias if shared is None else bias + shared}

    def after(module: Any, args: Any, y: Any) -> None:
        module.__dict__.pop(TABLE, None)

    attn.register_forward_pre_hook(before, with_kwargs=True)
    attn.register_forward_hook(after, always_call=True)  # also when the forward pass fails


def extended(bias: Tensor, extra: int) -> Tensor:
    """Zero rows and columns behind the class token: (..., N, N) -> (..., N + extra, N + extra)."""
    cls, rest = bias.split([1, bias.shape[-2] - 1], dim=-2)
    rows = torch.cat([F.pad(cls, (0, 0, 0, extra)), rest], dim=-2)
    cls, rest = rows.split([1, bias.shape[-1] - 1], dim=-1)
    return torch.cat([F.pad(cls, (0, extra)), rest], dim=-1)
