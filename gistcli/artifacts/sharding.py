"""Which tensor goes into which file: as in the base, or in files of at most some size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards

from gistcli.backbones.locating import WEIGHTS
from gistcli.errors import Refused

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
PATTERN = "model{suffix}.safetensors"


@dataclass(frozen=True)
class Shards:
    """The files of one network.

    Attributes:
        files: name of each file -> the stored keys in it.
        layout: dtype and shape of every stored tensor.
    """

    files: Mapping[str, tuple[str, ...]]
    layout: Layout

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(_nbytes(*entry) for entry in self.layout.values())

    def index(self) -> dict[str, Any] | None:
        """The content of model.safetensors.index.json; None for a single file, which needs none."""
        if list(self.files) == [WEIGHTS]:
            return None
        elements = sum(torch.Size(shape).numel() for _, shape in self.layout.values())
        where = {key: name for name, keys in self.files.items() for key in keys}
        return {
            "metadata": {"total_parameters": elements, "total_size": self.nbytes},
            "weight_map": dict(sorted(where.items())),
        }


def divide(layout: Layout, homes: Mapping[str, str], max_size: str | None = None) -> Shards:
    """The files of a network.

    Args:
        layout: dtype and shape of every stored tensor, in the order of the network.
        homes: stored key -> file of the base; tensors without one (a new head) join the last.
        max_size: of a file (`2GB`, `500MB`), named and filled as transformers does; None keeps
            the files of the base.

    Raises:
        Refused: no size.
    """
    if max_size is None:
        return Shards(_as_the_base(layout, homes), layout)
    empty = {
        key: torch.empty(shape, dtype=dtype, device="meta")
        for key, (dtype, shape) in layout.items()
    }
    try:
        found = split_torch_state_dict_into_shards(
            empty, filename_pattern=PATTERN, max_shard_size=parse_size(max_size)
        )
    except ValueError as error:
        raise _no_size(max_size) from error
    return Shards({name: tuple(keys) for name, keys in found.filename_to_tensors.items()}, layout)


def parse_size(text: str) -> int:
    """Bytes of `2GB`, `500MB` or a plain number, in powers of ten as transformers counts.

    Raises:
        Refused: anything else, or nothing.
    """
    units = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3, "B": 1}
    plain = text.strip().upper().replace(" ", "")
    factor = 1
    for unit, size in units.items():
        if plain.endswith(unit):
            plain, factor = plain.removesuffix(unit), size
            break
    try:
        found = int(float(plain) * factor)
    except (ValueError, OverflowError) as error:
        raise _no_size(text) from error
    if found < 1:
        raise _no_size(text)
    return found


def _no_size(text: str) -> Refused:
    return Refused(f"--max-shard-size {text!r} is no size.", "Write it as 2GB or 500MB.")


def _as_the_base(layout: Layout, homes: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    names = sorted({homes[key] for key in layout if key in homes})
    if len(names) < 2:
        return {WEIGHTS: tuple(layout)}
    found: dict[str, list[str]] = {name: [] for name in names}
    for key in layout:
        found[homes.get(key, names[-1])].append(key)
    if names != sorted(set(homes.values())):  # a file of the base held only what is left out
        found = {_numbered(i, len(names)): found[name] for i, name in enumerate(names, 1)}
    return {name: tuple(keys) for name, keys in found.items()}


def _numbered(number: int, total: int) -> str:
    return PATTERN.format(suffix=f"-{number:05}-of-{total:05}")


def _nbytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel()) * dtype.itemsize
