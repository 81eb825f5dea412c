"""What may stand between phi and psi in GIFT: dW = g(W phi) psi.

These are the block variants of the authors' code (github.com/savadikarc/gift, facts only). g maps
C = W phi (d_out, R) to the same shape, with the d_out rows as tokens, so dW keeps the rank R.
Shape suffixes: N = d_out (tokens), R = rank, L = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from gistcli.methods.paca import ClusterAttention, FeedForward, KeyMap, MixingBlock, attend, linear

BlockName = Literal["none", "gelu", "sigmoid", "mlp", "mlp_mixer", "transformer", "paca"]

USED_BY: dict[str, tuple[BlockName, ...]] = {
    "block_ratio": ("mlp", "mlp_mixer", "transformer", "paca"),
    "heads": ("transformer", "paca"),
    "clusters": ("paca",),
    "mixed_tokens": ("mlp_mixer",),
}
"""Option -> the blocks in which it acts."""


@dataclass(frozen=True)
class BlockOptions:
    """Sizes inside a block.

    Attributes:
        rank: R, width of a token.
        tokens: N; only `mlp_mixer` depends on it.
        ratio: hidden width of the MLP over R.
        heads: attention heads.
        clusters: of `paca`.
        mixed_tokens: hidden width of the token mixing of `mlp_mixer`.
    """

    rank: int
    tokens: int
    ratio: int
    heads: int
    clusters: int
    mixed_tokens: int


class SelfAttention(nn.Module):
    """Multi-head attention of all tokens to all: quadratic in N."""

    def __init__(self, dim: int, heads: int, like: Tensor) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.v, self.proj = (linear(dim, dim, like) for _ in range(3))
        self.k = KeyMap(dim, like)

    def forward(self, x_LND: Tensor) -> Tensor:
        """(L, N, D) -> (L, N, D)."""
        return self.proj(attend(self.q(x_LND), self.k(x_LND), self.v(x_LND), self.heads))


class TokenMixing(nn.Module):
    """An MLP along the tokens, the same for every channel; fixes N."""

    def __init__(self, tokens: int, hidden: int, like: Tensor) -> None:
        super().__init__()
        self.mlp = FeedForward(tokens, hidden, like)

    def forward(self, x_LND: Tensor) -> Tensor:
        """(L, N, D) -> (L, N, D)."""
        return self.mlp(x_LND.mT).mT


def build_block(name: BlockName, options: BlockOptions, like: Tensor) -> nn.Module:
    """A block other than `none`, as a module (L, N, R) -> (L, N, R) on the device of `like`."""
    if name == "gelu":
        return nn.GELU()
    if name == "sigmoid":
        return nn.Sigmoid()
    mixing: nn.Module | None = None
    if name == "mlp_mixer":
        mixing = TokenMixing(options.tokens, options.mixed_tokens, like)
    elif name == "transformer":
        mixing = SelfAttention(options.rank, options.heads, like)
    elif name == "paca":
        mixing = ClusterAttention(options.rank, options.clusters, options.heads, like)
    return MixingBlock(mixing, options.rank, options.ratio, like)
