"""tuner.safetensors and tuner.json: everything that was trained, and what it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from gistcli import atomic
from gistcli.artifacts.tensors import RELOAD, load_tensors, save_tensors
from gistcli.errors import NotSupported, WeightsError

FORMAT_VERSION = 1
WEIGHTS, INFO = "tuner.safetensors", "tuner.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class MethodInfo(_Frozen):
    """The method, what stands beside it, and where its code comes from."""

    name: str
    """Registry name, or `FILE.py:Class`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """All hyper-parameters, defaults written out."""
    gist: dict[str, Any] | None = None
    """Options of the gist token beside it; null where there is none."""
    hyper: dict[str, Any] | None = None
    """Options of the hypernetwork that it makes up; null where it is none."""
    distribution: str = "gistcli"
    """The installed package that holds the method."""
    version: str = ""
    """Its version."""


class BackboneInfo(_Frozen):
    """The backbone that the tuner belongs to."""

    name: str
    """As the user named it."""
    path: str | None = None
    """Absolute folder or file of the weights at the time."""
    architecture: str
    """The family's own name for the network."""
    fingerprint: str
    """SHA-256 over the stored tensors."""
    img_size: tuple[int, int] | None = None
    """Height and width in pixels, where they differ from the network's own."""


class TunerInfo(_Frozen):
    """What stands in tuner.json."""

    format_version: int = FORMAT_VERSION
    method: MethodInfo
    backbone: BackboneInfo
    task: str = "classification"
    classes: list[str]
    """Names in the order of the logits."""
    preprocessing: dict[str, Any]
    """timm data config: input_size (C, H, W), interpolation, mean, std, crop_pct, crop_mode."""
    parameters: dict[str, int] = Field(default_factory=dict)
    """Counts: method, gist, head, trainable, total."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Free for the caller (the step and metric of the weights, say)."""
    sha256: str = ""
    """Of tuner.safetensors; filled in on writing, empty where a file was made by hand."""


def write_tuner(folder: Path, state: Mapping[str, Tensor], info: TunerInfo) -> TunerInfo:
    """Write both files, each aside and renamed; the same state gives the same bytes.

    Returns:
        the info as written, with the hash.

    Raises:
        StorageError: the disk is full or may not be written.
        ValueError: one tensor under two names.
    """
    metadata = {"format": "pt", "gistcli_format": str(FORMAT_VERSION)}
    save_tensors(folder / WEIGHTS, state, metadata)
    info = info.model_copy(update={"sha256": atomic.sha256(folder / WEIGHTS)})
    atomic.write_json(folder / INFO, info.model_dump(mode="json"))
    return info


def read_info(folder: Path) -> TunerInfo:
    """tuner.json alone.

    Raises:
        WeightsError: missing or damaged.
        NotSupported: written by a newer version.
    """
    path = folder / INFO
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}", RELOAD) from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise NotSupported(
            f"{path} has format {version}; this version reads up to {FORMAT_VERSION}.",
            "Install a newer gistcli.",
        )
    try:
        return TunerInfo.model_validate(content)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise WeightsError(f"{path} is not as it was written: {found}.", RELOAD) from error


def read_tuner(folder: Path) -> tuple[dict[str, Tensor], TunerInfo]:
    """Both files, checked against each other.

    Raises:
        WeightsError: a file is missing, truncated or changed.
        NotSupported: written by a newer version.
    """
    info = read_info(folder)
    state = load_tensors(folder / WEIGHTS)
    if info.sha256 and atomic.sha256(folder / WEIGHTS) != info.sha256:
        raise WeightsError(
            f"{folder / WEIGHTS} is not the file that {INFO} beside it describes.",
            RELOAD,
        )
    return state, info
