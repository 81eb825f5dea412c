"""`prefix.safetensors`: `keys` and `values` (L, 1, H, P, E), and what network they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from gistcli.backbones.locating import MERGED, RECEIPT
from gistcli.backbones.prefix import Prefix
from gistcli.errors import BaseMismatch, NotFound, WeightsError

FILE = "prefix.safetensors"
AXES = "layers, rows, heads, positions, width of a head"
ADAPTED, TOKENIZER, TEMPLATE = "adapted_downstream", "tokenizer_sha256", "template"
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
        template: how the examples were put, and queries have to be (`EpisodeOptions.template`).
        tuner: SHA-256 of the tensors of the hypernetwork's run.
    """

    examples: str
    source_tokens: int
    tokenizer: str
    rope: Any = None
    adapted: bool = False
    template: str = "input-output"
    tuner: str = ""

    def notes(self) -> dict[str, str]:
        """As the file has them."""
        return {
            "examples_sha256": self.examples,
            "source_tokens": str(self.source_tokens),
            TOKENIZER: self.tokenizer,
            "rope_parameters": json.dumps(self.rope, sort_keys=True),
            ADAPTED: json.dumps(self.adapted),
            TEMPLATE: self.template,
            MERGED: self.tuner,
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


@dataclass(frozen=True)
class Stored:
    """A prefix as a file has it.

    Attributes:
        path: of the file.
        prefix: its keys and values.
        notes: what stands beside them; all of it is text.
    """

    path: Path
    prefix: Prefix
    notes: Mapping[str, str]

    def require_for(
        self, fingerprint: str, asked: str, *, adapted: bool = False, tuner: str = ""
    ) -> None:
        """Whether a network reads it as the one that it was made for.

        Args:
            fingerprint: of the network; empty to let any pass.
            asked: who asks, for the message.
            adapted: texts are read with what was trained on that network beside a hypernetwork.
            tuner: SHA-256 of what was, or of what is merged into the network; empty where nobody
                knows.

        Raises:
            BaseMismatch: made for another network, for this one once it was adapted, or before, or
                for one that another run adapted.
        """
        there, own = self.notes.get("base_fingerprint", ""), self.notes.get(ADAPTED) == "true"
        same = not there or not fingerprint or there == fingerprint
        if own and not adapted:
            if there == fingerprint:
                raise BaseMismatch(
                    f"{asked}: the prefix in {self.path} is for this network as it was adapted to "
                    "prefixes, not for the network itself.",
                    "Write that network with `gist merge RUN -o DIR`, and use DIR as the model.",
                )
            self._require_same_run(tuner, asked)
            return  # the merged network has a fingerprint of its own
        if not same:
            raise BaseMismatch(
                f"{asked}: the prefix in {self.path} was made for another network "
                f"({self.notes.get('base_model', '')}, fingerprint {there[:12]}, here "
                f"{fingerprint[:12]}).",
                "Use the model that it was made for.",
            )
        if adapted and not own:
            raise BaseMismatch(
                f"{asked}: the prefix in {self.path} is for the network itself, and here texts are "
                "read by one that was adapted to prefixes.",
                "Use the model that it was made for.",
            )
        if adapted:
            self._require_same_run(tuner, asked)

    def _require_same_run(self, tuner: str, asked: str) -> None:
        own = self.notes.get(MERGED, "")
        if own and tuner and own != tuner:
            raise BaseMismatch(
                f"{asked}: the prefix in {self.path} is for a network that another run adapted "
                f"(tensors {own[:12]}, here {tuner[:12]}).",
                "Use the run that made it, or what `gist merge` writes of that run.",
            )


def merged_into(folder: str | Path | None) -> str:
    """SHA-256 of the tensors that `gist merge` put into a folder; empty where nothing says so."""
    try:
        found = json.loads((Path(folder or "") / RECEIPT).read_text(encoding="utf-8"))
        return str(found[MERGED] or "")
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def read_prefix(path: Path, fingerprint: str, tuner: str = "") -> Prefix:
    """The prefix of a file, for `method.init`.

    Args:
        path: of the file.
        fingerprint: of the network that it is for; empty to take that of any.
        tuner: what is merged into that network (`merged_into`).

    Raises:
        NotFound, WeightsError: as `open_prefix`.
        BaseMismatch: as `Stored.require_for`.
    """
    stored = open_prefix(path, "method.init")
    stored.require_for(fingerprint, "method.init", tuner=tuner)
    return stored.prefix


def open_prefix(path: Path, asked: str) -> Stored:
    """The content of a file.

    Args:
        path: of the file.
        asked: who asks, for the message.

    Raises:
        NotFound: no such file.
        WeightsError: damaged, or no prefix.
    """
    if not path.is_file():
        raise NotFound(f"{asked}: {path} does not exist.", ANOTHER)
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
    return Stored(path, Prefix(found["keys"], found["values"]), notes)
