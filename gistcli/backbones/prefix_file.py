"""`prefix.safetensors`: `keys` and `values` (L, 1, H, P, E), and what network they belong to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from gistcli.backbones.prefix import Prefix
from gistcli.errors import BaseMismatch, NotFound, WeightsError

FILE = "prefix.safetensors"
AXES = "layers, rows, heads, positions, width of a head"
ADAPTED = "adapted_downstream"
ANOTHER = (
    "Give a prefix.safetensors that `gist compress` or `gist merge --format prefix` wrote for this "
    "model."
)


@dataclass(frozen=True)
class Made:
    """How a hypernetwork made a prefix.

    Attributes:
        examples: SHA-256 over the tokens that it read.
        source_tokens: how many these were.
        tokenizer: hash of the tokenizer.
        rope: parameters of the network's rotary embeddings.
        adapted: texts are read by the network with what was trained beside the hypernetwork.
    """

    examples: str
    source_tokens: int
    tokenizer: str
    rope: Any = None
    adapted: bool = False

    def notes(self) -> dict[str, str]:
        """As the file has them."""
        return {
            "examples_sha256": self.examples,
            "source_tokens": str(self.source_tokens),
            "tokenizer_sha256": self.tokenizer,
            "rope_parameters": json.dumps(self.rope, sort_keys=True),
            ADAPTED: json.dumps(self.adapted),
        }


def metadata_of(
    fingerprint: str, base: str, length: int, made: Made | None = None
) -> dict[str, str]:
    """What stands beside the tensors; all of it is text, as the format asks for."""
    return {
        **({} if made is None else made.notes()),
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
        BaseMismatch: made for another network, or for this one once it was adapted.
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
    if notes.get(ADAPTED) == "true":
        if there == fingerprint:
            raise BaseMismatch(
                f"method.init: the prefix in {path} is for this network as it was adapted to "
                "prefixes, not for the network itself.",
                "Write that network with `gist merge RUN -o DIR`, and use DIR as the model.",
            )
        return Prefix(found["keys"], found["values"])
    if there and fingerprint and there != fingerprint:
        raise BaseMismatch(
            f"method.init: the prefix in {path} was made for another network "
            f"({notes.get('base_model', '')}, fingerprint {there[:12]}, here {fingerprint[:12]}).",
            "Use the model that it was made for.",
        )
    return Prefix(found["keys"], found["values"])
