"""Reading and writing safetensors one tensor at a time.

The library's own writer wants every tensor in memory at once. A file of this format is a length
(8 bytes, little endian), a JSON header that may end in blanks, and the bytes of the tensors without
gaps, so it can be written in one pass: leave room for the header, stream the tensors, fill it in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from xxhash import xxh3_128_hexdigest

from gistcli import atomic
from gistcli.errors import Refused, WeightsError, did_you_mean

CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
DTYPES = {code: dtype for dtype, code in CODES.items()}
NAMES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ALIASES = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
RELOAD = "Copy or download the file again; where it was written by an earlier run, run that again."


@dataclass(frozen=True)
class Pending:
    """A tensor that is not computed yet; `make` is called once, when its turn comes."""

    name: str
    dtype: torch.dtype
    make: Callable[[], Tensor]


@dataclass(frozen=True)
class Written:
    """What went into the file: enough to recognise it on reading it back."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    digest: str


def parse_dtype(name: str) -> torch.dtype:
    """The dtype behind `float32`, `bfloat16`, `bf16`, ...

    Raises:
        Refused: another name.
    """
    full = ALIASES.get(name, name)
    if full not in NAMES:
        raise Refused(f"{name!r} is no dtype to write.", did_you_mean(name, NAMES))
    return NAMES[full]


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def raw_bytes(tensor: Tensor) -> memoryview:
    """The tensor's elements in row-major order, as they stand in a file."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array)


def digest_of(data: memoryview) -> str:
    """What tells other bytes apart: of accidents, not of forgers, at the speed of memory."""
    return xxh3_128_hexdigest(data)


def write_stream(
    path: Path, tensors: Iterable[Pending], metadata: Mapping[str, str]
) -> dict[str, Written]:
    """Write a safetensors file, holding one tensor at a time.

    Wide types come first, so that every tensor is aligned. The file at `path` is written directly:
    the caller writes aside and renames.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    order = sorted(tensors, key=lambda p: (-p.dtype.itemsize, p.name))
    room = 256 + len(json.dumps(dict(metadata)))
    room += sum(256 + len(json.dumps(p.name)) for p in order)
    room += -(8 + room) % 64
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    written: dict[str, Written] = {}
    with atomic.storage_errors(path), path.open("wb") as file:
        file.seek(8 + room)
        offset = 0
        for pending in order:
            entry, size = _append(file, pending)
            header[pending.name] = {
                "dtype": CODES[entry.dtype],
                "shape": list(entry.shape),
                "data_offsets": [offset, offset + size],
            }
            written[pending.name] = entry
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        assert len(text) <= room, f"header of {len(text)} bytes in a room of {room}"
        file.seek(0)
        file.write(room.to_bytes(8, "little") + text.ljust(room))
    return written


def _append(file: BinaryIO, pending: Pending) -> tuple[Written, int]:
    """Compute one tensor, write its bytes, and let go of it."""
    tensor = pending.make()
    assert tensor.dtype == pending.dtype, f"{pending.name}: {tensor.dtype}"
    data = raw_bytes(tensor)
    file.write(data)
    return Written(tensor.dtype, tuple(tensor.shape), digest_of(data)), data.nbytes


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write aside and rename; the same tensors give the same bytes.

    Raises:
        StorageError: the disk is full or may not be written.
        ValueError: one tensor under two names.
    """
    owner: dict[int, str] = {}
    for name, tensor in tensors.items():
        first = owner.setdefault(tensor.untyped_storage().data_ptr(), name)
        if first != name and tensor.numel():
            raise ValueError(f"{first} and {name} share their storage: store it once")
    pending = [Pending(n, t.dtype, _constant(t)) for n, t in tensors.items()]
    with atomic.atomic_file(path) as temporary:
        write_stream(temporary, pending, metadata)


def _constant(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """safetensors' reader of a file, whose tensors are read when they are asked for.

    Raises:
        WeightsError: the file is missing, truncated, or of another format.
    """
    try:
        reader = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        found = _describe(path, error) if path.exists() else "does not exist"
        raise WeightsError(f"{path} {found}.", RELOAD) from error
    with reader as opened:
        try:
            yield opened
        except SafetensorError as error:
            raise WeightsError(f"{path} {_describe(path, error)}.", RELOAD) from error


def _describe(path: Path, error: Exception) -> str:
    size = path.stat().st_size if path.is_file() else 0
    return f"({size:,} bytes) is no intact safetensors file: {str(error).strip().rstrip('.')}"


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, in memory of their own.

    Raises:
        WeightsError: the file is missing, truncated, or of another format.
    """
    with open_tensors(path) as reader:
        return {name: reader.get_tensor(name).clone() for name in sorted(reader.keys())}
