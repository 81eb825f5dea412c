"""A folder that transformers loads: config.json, preprocessor_config.json and stored names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from gistcli import atomic
from gistcli.artifacts.form import Form
from gistcli.backbones import hf_images
from gistcli.backbones.base import Backbone
from gistcli.backbones.hf_weights import load_pretrained
from gistcli.backbones.locating import CONFIG


@dataclass(frozen=True)
class TransformersForm(Form):
    """The folder of a classifier, complete for `pipeline`.

    Attributes:
        config: the content of config.json, without the dtype.
        processor: the content of preprocessor_config.json.
        stored: stored key -> tensors in memory.
    """

    config: Mapping[str, Any]
    processor: Mapping[str, Any]
    stored: Mapping[str, Sequence[str]]
    name: ClassVar[str] = "transformers"

    @property
    def names(self) -> Mapping[str, Sequence[str]]:
        """As `save_pretrained` would write them."""
        return self.stored

    def write(self, folder: Path, dtype: str) -> None:
        """config.json and preprocessor_config.json."""
        atomic.write_json(folder / CONFIG, {**self.config, "dtype": dtype})
        atomic.write_json(folder / hf_images.FILE, dict(self.processor))

    def load(self, folder: Path) -> nn.Module:
        """By `AutoModelForImageClassification`.

        Raises:
            WeightsError: a tensor is missing, unexpected or of another shape.
        """
        from transformers import AutoModelForImageClassification

        return _Logits(load_pretrained(AutoModelForImageClassification, folder)).eval()


class _Logits(nn.Module):
    """Pixels to logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, K)."""
        logits: Tensor = self.model(pixels).logits
        return logits


def transformers_form(
    backbone: Backbone,
    classes: Sequence[str],
    preprocessing: Mapping[str, Any],
    model_args: Mapping[str, Any],
) -> TransformersForm:
    """The folder of a tuned network.

    Args:
        backbone: of transformers, with the head that was tuned.
        classes: names in the order of the logits.
        preprocessing: timm data config that the network was tuned with.
        model_args: entries of config.json that the method changes.

    Raises:
        NotMergeable: the library stores the network in a form that is not written tensor by tensor.
    """
    model: Any = backbone.model
    config = {
        **model.config.to_diff_dict(),
        **model_args,
        "architectures": [type(model).__name__],
        "id2label": dict(enumerate(classes)),
        "label2id": {name: i for i, name in enumerate(classes)},
    }
    plain: dict[str, Any] = json.loads(json.dumps(config))  # as it will be read again
    keys = backbone.stored_keys()
    assert keys is not None, backbone.architecture
    return TransformersForm(plain, hf_images.processor_config(preprocessing), keys.written)
