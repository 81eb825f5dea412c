"""`prefix.safetensors`: `keys` and `values` (L, 1, H, P, E), and what network they belong to."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from gistcli.backbones.prefix import Prefix
from gistcli.errors import BaseMismatch, NotFound, WeightsError

FILE = "prefix.safetensors"
AXES = "layers, rows, heads, positions, width of a head"
ANOTHER = "Give a prefix.safetensors that `gist merge --format prefix` wrote for this model."


def metadata_of(fingerprint: str, base: str, length: int) -> dict[str, str]:
    """What stands beside the tensors; all of it is text, as the format asks for."""
    return {
        "format": "pt",
        "prefix": "1",
        "tokens": str(length),
        "position_start": "0",
        "base_model": base,
        "base_fingerprint": fingerprint,
    }


def read_prefix(path: Path, fingerprint: str) -> Prefix:
    """The prefix of a file.

    Args:
        path: of the file.
        fingerprint: of the network that it is for; empty to take that of any.

    Raises:
        NotFound: no such file.
        WeightsError: damaged, or no prefix.
        BaseMismatch: made for another network.
    """
    if not path.is_file():
        raise NotFound(f"method.init: {path} does not exist.", ANOTHER)
    try:
        with safe_open(path, framework="pt") as file:
            notes: dict[str, str] = file.metadata() or {}
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is no intact safetensors file: {error}", ANOTHER) from error
    shapes = {name: list(tensor.shape) for name, tensor in found.items()}
    keys = shapes.get("keys", [])
    if shapes != {"keys": keys, "values": keys} or len(keys) != 5:
        listed = ", ".join(f"{n} {s}" for n, s in sorted(shapes.items())[:5]) or "nothing"
        raise WeightsError(
            f"{path} holds no prefix, which is keys and values ({AXES}): it has {listed}.", ANOTHER
        )
    there = notes.get("base_fingerprint", "")
    if there and fingerprint and there != fingerprint:
        raise BaseMismatch(
            f"method.init: the prefix in {path} was made for another network "
            f"({notes.get('base_model', '')}, fingerprint {there[:12]}, here {fingerprint[:12]}).",
            "Use the model that it was made for.",
        )
    return Prefix(found["keys"], found["values"])
