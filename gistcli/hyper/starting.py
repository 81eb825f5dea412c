"""Going on from an earlier hypernetwork: hyperpretraining first, tasks after."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gistcli.errors import BaseMismatch, NotFound, NotSupported, WeightsError

WEIGHTS, INFO = "tuner.safetensors", "tuner.json"
SECOND = "downstream."
HINT = "Give the directory of a run with a section hyper, with the same method, gists and model."


def read_start(path: Path, own: Mapping[str, Tensor], fingerprint: str) -> dict[str, Tensor]:
    """The trained tensors of a run, for a hypernetwork that has these.

    A run without `adapt_downstream` may come before one with it, whose second copy then starts as
    ever.

    Args:
        path: of the run, or its tuner.safetensors.
        own: state of the hypernetwork that goes on.
        fingerprint: of its network; empty to take that of any.

    Raises:
        NotFound: no such run.
        WeightsError: damaged, or no hypernetwork.
        BaseMismatch: trained on another network.
        NotSupported: trained for queries that are adapted to, which they are not here.
    """
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise NotFound(f"hyper.init: {file} does not exist.", HINT)
    there = _fingerprint(file.with_name(INFO))
    if there and fingerprint and there != fingerprint:
        raise BaseMismatch(
            f"hyper.init: {path} was trained on another network (fingerprint {there[:12]}, here "
            f"{fingerprint[:12]}).",
            "Use the model that it was trained on.",
        )
    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} is no intact safetensors file: {error}", HINT) from error
    if not any(name.startswith("hyper.") for name in state):
        raise WeightsError(f"hyper.init: {path} holds no hypernetwork.", HINT)
    if _adapted(state) and not _adapted(own):
        raise NotSupported(
            f"hyper.init: {path} makes prefixes for a network that was adapted to them.",
            "Set hyper.adapt_downstream to true.",
        )
    return state


def _adapted(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(SECOND) for name in state)


def _fingerprint(info: Path) -> str:
    """Of the network that a run belongs to; empty where nothing says so."""
    try:
        return str(json.loads(info.read_text(encoding="utf-8"))["backbone"]["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
