"""What identifies a backbone: a hash of its stored tensors, not of the file around them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gistcli import atomic
from gistcli.errors import GistError, WeightsError

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> {dtype, shape, data_offsets} of a safetensors file, checked against its size.

    Raises:
        WeightsError: not a safetensors file, or a truncated one.
    """
    hint = "Copy or download the file again."
    try:
        with safe_open(path, framework="pt"):  # validates header, offsets and length
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, ValueError, OSError) as error:
        raise WeightsError(f"{path} is no intact safetensors file: {error}", hint) from error
    header.pop("__metadata__", None)
    return header


def fingerprint(files: Iterable[Path]) -> str:
    """SHA-256 over name, dtype, shape and bytes of every stored tensor, in name order.

    Load dtype, sharding and file metadata do not change it. Cached by path, size and mtime.

    Raises:
        WeightsError: a file is damaged.
    """
    paths = sorted(Path(f).resolve() for f in files)
    key = json.dumps([[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in paths])
    cache = _read_cache()
    if key not in cache:
        cache[key] = _hash(paths)
        _write_cache(cache)
    return cache[key]


def _hash(paths: list[Path]) -> str:
    where = {name: (p, entry) for p in paths for name, entry in read_header(p).items()}
    digest = hashlib.sha256()
    for name in sorted(where):
        path, entry = where[name]
        digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        begin, end = entry["data_offsets"]
        with path.open("rb") as file:
            base = 8 + int.from_bytes(file.read(8), "little")
            file.seek(base + begin)
            left = end - begin
            while left > 0:
                block = file.read(min(left, 1 << 24))
                digest.update(block)
                left -= len(block)
    return digest.hexdigest()


def _cache_file() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "gistcli" / "fingerprints.json"


def _read_cache() -> dict[str, str]:
    try:
        cache = json.loads(_cache_file().read_text())
    except (OSError, ValueError):
        return {}
    return cache if isinstance(cache, dict) else {}


def _write_cache(cache: dict[str, str]) -> None:
    kept = dict(list(cache.items())[-256:])
    try:
        _cache_file().parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(_cache_file(), kept)
    except (OSError, GistError):
        return  # a cache that cannot be written only costs time
