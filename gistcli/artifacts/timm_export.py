"""config.json of a timm `local-dir` folder, in the form that transformers loads as well."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import timm
from torch import nn

from gistcli import atomic
from gistcli.artifacts.form import Form
from gistcli.backbones.base import Backbone
from gistcli.backbones.locating import CONFIG

RUNTIME_ARGS = ("num_classes", "drop_rate", "drop_path_rate", "drop_block_rate", "device", "dtype")
PREPROCESSING = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
STALE = (
    "architecture", "file", "url", "source", "hf_hub_id", "hf_hub_filename", "state_dict",
    "custom_load", "label_names", "label_descriptions", "label_offset", "test_input_size",
    "test_crop_pct", "pool_size", "notes",
)  # fmt: skip


@dataclass(frozen=True)
class TimmForm(Form):
    """A `local-dir` folder.

    Attributes:
        config: the content of config.json.
    """

    config: Mapping[str, Any]
    name: ClassVar[str] = "timm"
    shards: ClassVar[bool] = False

    @property
    def names(self) -> None:
        """Stored as in memory."""
        return None

    def write(self, folder: Path, dtype: str) -> None:
        """config.json."""
        atomic.write_json(folder / CONFIG, dict(self.config))

    def load(self, folder: Path) -> nn.Module:
        """By `timm.create_model`."""
        model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
        return model.float().eval()


def timm_config(
    architecture: str,
    pretrained_cfg: Mapping[str, Any],
    classes: Sequence[str],
    preprocessing: Mapping[str, Any],
    model_args: Mapping[str, Any] | None = None,
    *,
    num_features: int | None = None,
) -> dict[str, Any]:
    """The content of config.json.

    timm reads `num_classes` at the top level; transformers cannot load a folder that has it in
    `model_args` too. `label_names` become the class names of both.

    Args:
        architecture: timm's name, without a tag.
        pretrained_cfg: of the base (`model.pretrained_cfg`); what no longer holds is left out.
        classes: names in the order of the logits.
        preprocessing: timm data config that the network was tuned with.
        model_args: what builds the network besides its name; an image size that differs from that
            of the base is added.
        num_features: width of the pooled features, for readers only.
    """
    size = [int(n) for n in preprocessing["input_size"]]
    args = {k: v for k, v in (model_args or {}).items() if k not in RUNTIME_ARGS}
    base_size = list(pretrained_cfg.get("input_size") or size)
    if size[1:] != base_size[1:] or "img_size" in args:
        args["img_size"] = size[1:]
    kept = {k: v for k, v in pretrained_cfg.items() if v is not None and k not in STALE}
    kept |= {k: preprocessing[k] for k in PREPROCESSING if k in preprocessing}
    kept |= {"input_size": size, "num_classes": len(classes)}
    config: dict[str, Any] = {"architecture": architecture.split(".")[0]}
    config["num_classes"] = len(classes)
    if num_features is not None:
        config["num_features"] = num_features
    config["label_names"] = list(classes)
    if args:
        config["model_args"] = args
    config["pretrained_cfg"] = kept
    plain: dict[str, Any] = json.loads(json.dumps(config))  # tuples become lists
    return plain


def timm_form(
    backbone: Backbone,
    classes: Sequence[str],
    preprocessing: Mapping[str, Any],
    model_args: Mapping[str, Any],
) -> TimmForm:
    """The folder of a backbone in memory; `model_args` are those of its `Merged`."""
    model: Any = backbone.model
    config = timm_config(
        backbone.architecture,
        model.pretrained_cfg,
        classes,
        preprocessing,
        {**backbone_args(backbone.origin.config), **model_args},
        num_features=getattr(model, "num_features", None),
    )
    return TimmForm(config)


def backbone_args(origin_config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that built a backbone: those of its folder, and those it was opened with."""
    args: dict[str, Any] = {}
    folder = origin_config.get("folder")
    if folder is not None and (Path(folder) / "config.json").is_file():
        args |= json.loads((Path(folder) / "config.json").read_text()).get("model_args") or {}
    args |= origin_config.get("model_args") or {}
    return {k: v for k, v in args.items() if k not in RUNTIME_ARGS and not k.endswith("drop_rate")}
