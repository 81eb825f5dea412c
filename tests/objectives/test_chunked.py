"""The chunked loss: what it holds at once, counted by the storages that are alive."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gistcli.objectives.chunked import (
    choose_chunk,
    chunked_cross_entropy,
    logit_bytes,
    token_losses,
)

TOKENS, WIDTH = 256, 16


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, from their first use until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if torch.is_tensor(t)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if torch.is_tensor(tensor) and tensor.untyped_storage().data_ptr() not in inputs:
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if storage not in self.known:
            self.known.add(storage)
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.now -= size


def peak(vocabulary: int, chunk: int | None, *, trained: bool) -> int:
    """Of one loss and its gradient with regard to hidden states (and head, where it is trained)."""
    torch.manual_seed(0)
    weight_VD = torch.randn(vocabulary, WIDTH).requires_grad_(trained)
    hidden_ND = torch.randn(TOKENS, WIDTH).requires_grad_()
    targets_N = torch.arange(TOKENS)
    with LiveBytes() as live:
        if chunk is None:
            F.cross_entropy(F.linear(hidden_ND, weight_VD), targets_N, reduction="sum").backward()
        else:
            total, _ = chunked_cross_entropy(
                hidden_ND, targets_N, lambda h: F.linear(h, weight_VD), chunk
            )
            total.backward()
    return live.peak


def test_the_peak_does_not_grow_with_the_vocabulary() -> None:
    available = 2**26
    small, large = (choose_chunk(TOKENS, v, available) for v in (32_000, 128_000))
    assert small is not None
    assert large is not None
    peaks = [peak(v, c, trained=False) for v, c in ((32_000, small), (128_000, large))]
    assert peaks[1] <= 1.1 * peaks[0]
    assert peaks[1] <= available // 8 + 2 * 4 * TOKENS * WIDTH
    assert peak(128_000, None, trained=False) > 20 * peaks[1]


def test_a_trained_head_costs_its_gradient_and_no_logits() -> None:
    vocabulary = 32_000
    head = 4 * vocabulary * WIDTH
    chunked, plain = (peak(vocabulary, c, trained=True) for c in (8, None))
    assert chunked < 3 * head + logit_bytes(8, vocabulary)
    assert plain > 3 * chunked


def test_full_logits_are_kept_where_they_fit() -> None:
    bytes_of_all = logit_bytes(1024, 32_000)
    assert choose_chunk(1024, 32_000, 2 * bytes_of_all) is None
    chunk = choose_chunk(1024, 32_000, 2 * bytes_of_all - 2)
    assert chunk is not None
    assert logit_bytes(chunk, 32_000) <= bytes_of_all // 4
    assert choose_chunk(1024, 32_000, 1) == 1


@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_the_losses_of_tokens_are_those_of_all_logits(chunk: int) -> None:
    torch.manual_seed(0)
    hidden_ND, weight_VD = torch.randn(10, WIDTH), torch.randn(30, WIDTH)
    targets_N = torch.randint(30, (10,))

    def classify(h: Tensor) -> Tensor:
        return F.linear(h, weight_VD)

    expected = F.cross_entropy(classify(hidden_ND), targets_N, reduction="none")
    torch.testing.assert_close(token_losses(hidden_ND, targets_N, classify, chunk), expected)
    assert len(token_losses(hidden_ND[:0], targets_N[:0], classify, chunk)) == 0
