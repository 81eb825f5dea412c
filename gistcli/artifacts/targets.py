"""What a command was pointed at: a run, or a merged folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gistcli.artifacts.rundir import RunDirectory, no_run, read_json
from gistcli.artifacts.timm_export import PREPROCESSING
from gistcli.backbones.locating import CONFIG, INDEX, RECEIPT, WEIGHTS
from gistcli.errors import NotFound, NotSupported, WeightsError


@dataclass(frozen=True)
class MergedFolder:
    """A folder of timm or transformers with everything that evaluation needs.

    Attributes:
        path: of the folder.
        architecture: the library's name of the network.
        classes: names in the order of the logits; empty where the folder holds none.
        preprocessing: timm data config; empty where the network knows better (transformers).
        receipt: merge.json; empty where the folder was not written by us.
    """

    path: Path
    architecture: str
    classes: list[str]
    preprocessing: dict[str, Any]
    receipt: Mapping[str, Any]


def kind_of(path: Path) -> Literal["run", "merged"]:
    """Whether a path is a run or a merged folder (config.json and safetensors).

    Raises:
        NotFound: neither; says what is there.
        NotSupported: an export of another format.
    """
    if not path.is_dir() or (path / "recipe.yaml").is_file():
        RunDirectory.open(path)
        return "run"
    if (path / CONFIG).is_file():
        if not any((path / name).is_file() for name in (WEIGHTS, INDEX)):
            raise NotFound(f"{path} has config.json but no model.safetensors.", "Merge again.")
        return "merged"
    for marker, kind in (("adapter_config.json", "PEFT"), ("model.onnx", "ONNX")):
        if (path / marker).is_file():
            raise NotSupported(
                f"{path} is a {kind} export, which is for other programs.",
                "Use the run, or a folder that `gist merge` wrote without --format.",
            )
    raise no_run(path)


def open_merged(path: Path) -> MergedFolder:
    """Read config.json and merge.json of a merged folder.

    Raises:
        NotFound: as `kind_of`.
        WeightsError: config.json is damaged, or that of neither library.
    """
    if kind_of(path) != "merged":
        raise NotFound(f"{path} is a run, not a merged folder.", "`gist merge` makes one of it.")
    config = read_json(path / CONFIG)
    receipt = read_json(path / RECEIPT) if (path / RECEIPT).is_file() else {}
    if "model_type" in config and "architecture" not in config:
        return _of_transformers(path, config, receipt)
    nested = config.get("pretrained_cfg", config)
    if "architecture" not in config or not isinstance(nested, dict):
        raise WeightsError(
            f"{path / CONFIG} is no configuration of timm (no `architecture`) or transformers "
            "(no `model_type`).",
            "Give a folder that `gist merge` wrote.",
        )
    names = config.get("label_names") or nested.get("label_names") or []
    return MergedFolder(
        path=path,
        architecture=str(config["architecture"]),
        classes=[str(n) for n in names],
        preprocessing={k: nested[k] for k in PREPROCESSING if nested.get(k) is not None},
        receipt=receipt,
    )


def _of_transformers(
    path: Path, config: Mapping[str, Any], receipt: Mapping[str, Any]
) -> MergedFolder:
    labels = config.get("id2label") or {}
    try:
        classes = [str(labels[key]) for key in sorted(labels, key=int)]
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"{path / CONFIG} has an id2label that cannot be read: {error}.", "Copy it again."
        ) from error
    named = config.get("architectures") or [config["model_type"]]
    return MergedFolder(path, str(named[0]), classes, {}, receipt)
