"""Masks of pairs under which attention leaves out what stands behind every query.

A kernel that is told "causal" multiplies half of all pairs; one that is given a mask multiplies all
of them, and throws half away. Queries taken in pieces, each with the keys up to its last query,
come close to the half: n pieces multiply (1 + 1/n) / 2 of the pairs.

Shape suffixes: B = rows, H = heads, Q = queries, K = keys, E = width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PIECE = 256
"""Queries of a piece, at most: smaller ones save little more, and have a cost of their own."""
FEWEST = 2
"""Pieces, at least: halves save a quarter, which pays from a hundred tokens on."""


class TriangularMask(Tensor):
    """A mask of pairs (B, 1, Q, K) in which query i sees none of the keys behind K - Q + i.

    As torch's own `CausalBias` does, it takes the place of `scaled_dot_product_attention` wherever
    it is that function's mask: so the network needs no other implementation of attention, and the
    mask does the same where activations are recomputed. All else that is done to it is done to the
    mask as an ordinary tensor, and gives one.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The function itself, or attention in pieces."""
        function = attention_in_pieces if func is F.scaled_dot_product_attention else func
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


def triangular(mask: Tensor) -> Tensor:
    """The mask as a `TriangularMask`; as it is where it is of a class of its own (FakeTensor)."""
    return mask.as_subclass(TriangularMask) if type(mask) is Tensor else mask


def attention_in_pieces(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, **options: Any
) -> Tensor:
    """`scaled_dot_product_attention` of (B, H, Q, E), without the pairs that no such mask shows.

    Args:
        query: (B, H, Q, E).
        key, value: (B, H, K, E).
        attn_mask: (B, 1, Q, K), what a `TriangularMask` holds.
        options: those of the function.
    """
    queries, ahead = query.shape[2], key.shape[2] - query.shape[2]
    if attn_mask.shape[2] != queries:  # transformers lays a single query's heads out as queries
        return F.scaled_dot_product_attention(query, key, value, attn_mask, **options)
    pieces = min(queries, max(FEWEST, -(-queries // PIECE)))
    ends = [queries * piece // pieces for piece in range(pieces + 1)]
    found = [
        F.scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, : ahead + end],
            value[:, :, : ahead + end],
            attn_mask[:, :, start:end, : ahead + end],
            **options,
        ).transpose(1, 2)
        for start, end in pairwise(ends)
    ]
    # laid out as the kernels leave their result, so that nobody has to copy it once more
    return torch.cat(found, dim=1).transpose(1, 2)
