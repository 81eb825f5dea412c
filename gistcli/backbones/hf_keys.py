"""The stored names of a transformers network, read off the library's own conversion.

transformers 5 renames tensors on loading (and cuts fused ones into pieces), and writes the names of
earlier versions. Here every row of every tensor is numbered, the numbers go through the conversion
that `save_pretrained` uses, and the numbers in a stored tensor say which rows it holds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gistcli.backbones.stored import StoredKeys, tied_names
from gistcli.errors import NotMergeable


def stored_keys(model: nn.Module) -> StoredKeys:
    """How `save_pretrained` would name the tensors of a network.

    Raises:
        NotMergeable: a stored tensor is no sequence of whole tensors.
    """
    from transformers.core_model_loading import revert_weight_conversion

    numbered: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    starts: dict[int, str] = {}
    total = 0
    tied = tied_names(model)
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        rows[name] = len(tensor) if tensor.ndim else 1
        numbers = torch.arange(total, total + rows[name], device="cpu")
        numbered[name] = numbers.view(-1, *[1] * (tensor.ndim - 1)) if tensor.ndim else numbers[0]
        starts[total] = name
        total += rows[name]
    network: Any = model
    reverted = revert_weight_conversion(network, numbered)
    written = {key: _names(key, t.flatten().tolist(), starts, rows) for key, t in reverted.items()}
    return StoredKeys(written, rows, prefix=f"{network.base_model_prefix}.")


def _names(
    key: str, numbers: list[int], starts: dict[int, str], rows: dict[str, int]
) -> tuple[str, ...]:
    """The tensors whose rows these are, each whole and in order."""
    found: list[str] = []
    position = 0
    while position < len(numbers):
        first = numbers[position]
        name = starts.get(first, "")
        count = rows.get(name, 0)
        if not count or numbers[position : position + count] != [*range(first, first + count)]:
            raise NotMergeable(
                f"{key} is stored as something else than rows of the network's tensors.",
                "Export with `gist merge --format onnx`.",
            )
        found.append(name)
        position += count
    return tuple(found)
