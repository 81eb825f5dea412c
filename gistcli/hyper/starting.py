"""Going on from an earlier hypernetwork: hyperpretraining first, tasks after."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gistcli.atomic import sha256
from gistcli.errors import BaseMismatch, NotFound, NotSupported, WeightsError

WEIGHTS, INFO = "tuner.safetensors", "tuner.json"
SECOND = "downstream."
GISTS = "hyper.gists"
SHOWN = 3
HINT = "Give the directory of a run with a section hyper, with the same method, gists and model."
AGAIN = "Copy the file again, or run that recipe again."


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
        NotSupported: another hypernetwork, or one for queries that are adapted to, which they are
            not here.
    """
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise NotFound(f"hyper.init: {file} does not exist.", HINT)
    info = _info(file.with_name(INFO))
    backbone = info.get("backbone")
    there = backbone.get("fingerprint", "") if isinstance(backbone, dict) else ""
    if there and fingerprint and there != fingerprint:
        raise BaseMismatch(
            f"hyper.init: {path} was trained on another network (fingerprint {there[:12]}, here "
            f"{fingerprint[:12]}).",
            "Use the model that it was trained on.",
        )
    if info.get("sha256", "") not in ("", sha256(file)):
        raise WeightsError(f"{file} is not the file that {INFO} beside it describes.", AGAIN)
    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} is no intact safetensors file: {error}", AGAIN) from error
    if not any(name.startswith("hyper.") for name in state):
        raise WeightsError(f"hyper.init: {path} holds no hypernetwork.", HINT)
    if _adapted(state) and not _adapted(own):
        raise NotSupported(
            f"hyper.init: {path} makes prefixes for a network that was adapted to them.",
            "Set hyper.adapt_downstream to true.",
        )
    _require_same_shapes(path, state, own)
    return state


def _require_same_shapes(
    path: Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> None:
    """A hypernetwork of the same method, gists and places; the second copy may come anew."""
    here, there = _shapes(own), _shapes(state)
    if not _adapted(state):
        here = {name: shape for name, shape in here.items() if not name.startswith(SECOND)}
    other = [
        f"{name}: {there.get(name, 'nothing')} there, {here.get(name, 'nothing')} here"
        for name in sorted(here.keys() | there.keys(), key=lambda name: (name != GISTS, name))
        if here.get(name) != there.get(name)
    ]
    if other:
        more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
        raise NotSupported(
            f"hyper.init: {path} is another hypernetwork than the recipe's "
            f"({'; '.join(other[:SHOWN])}{more}).",
            HINT,
        )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in state.items()}


def _adapted(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(SECOND) for name in state)


def _info(path: Path) -> dict[str, Any]:
    """What stands beside the tensors; empty where nothing does."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
