"""The folder of a network over text: all that transformers, and servers built on it, ask for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from gistcli import atomic
from gistcli.artifacts.form import Form
from gistcli.backbones.hf_weights import load_pretrained
from gistcli.backbones.locating import CONFIG, TOKENIZER
from gistcli.backbones.text import TextBackbone

TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class TextForm(Form):
    """The folder of a language model or of a classifier of texts.

    Attributes:
        config: the content of config.json, without the dtype.
        stored: stored key -> tensors in memory.
        base: folder of the base, whose tokenizer and generation config go along.
        template: chat template that replaces the tokenizer's; None leaves that alone.
    """

    config: Mapping[str, Any]
    stored: Mapping[str, Sequence[str]]
    base: Path
    template: str | None = None
    name: ClassVar[str] = "transformers"

    @property
    def names(self) -> Mapping[str, Sequence[str]]:
        """As `save_pretrained` would write them."""
        return self.stored

    @property
    def classifies(self) -> bool:
        """Whether it gives classes, and not the next token."""
        return str(self.config["architectures"][0]).endswith("ForSequenceClassification")

    def write(self, folder: Path, dtype: str) -> None:
        """config.json, and the files of the base that are no weights.

        Raises:
            StorageError: the disk is full or may not be written.
        """
        atomic.write_json(folder / CONFIG, {**self.config, "dtype": dtype})
        for name in TOKENIZER:
            if (self.base / name).is_file():
                with atomic.storage_errors(folder / name):
                    shutil.copyfile(self.base / name, folder / name)
        if self.template is not None:
            atomic.write_text(folder / TEMPLATE, self.template)

    def load(self, folder: Path) -> nn.Module:
        """By `AutoModelForCausalLM` or `AutoModelForSequenceClassification`.

        Raises:
            WeightsError: a tensor is missing, unexpected or of another shape.
        """
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        auto = AutoModelForSequenceClassification if self.classifies else AutoModelForCausalLM
        return _Logits(load_pretrained(auto, folder), each=not self.classifies).eval()


class _Logits(nn.Module):
    """A batch of text to (B, K) logits, or to (N, V) those at its real tokens (`each`)."""

    def __init__(self, model: Any, *, each: bool) -> None:
        super().__init__()
        self.model, self.each = model, each

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits."""
        logits: Tensor = self.model(**batch).logits
        return at_tokens(logits, batch) if self.each else logits


def at_tokens(logits_BTV: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """(N, V): those at the N positions that are no padding."""
    return logits_BTV[batch["attention_mask"].bool()]


def text_form(backbone: TextBackbone, classes: Sequence[str], template: str | None) -> TextForm:
    """The folder of a tuned network.

    Args:
        backbone: with the head that was tuned.
        classes: names in the order of the logits; none of a language model.
        template: chat template that the run used in place of the tokenizer's.

    Raises:
        NotMergeable: the library stores the network in a form that is not written tensor by tensor.
    """
    config: dict[str, Any] = {
        **backbone.config.to_diff_dict(),
        "architectures": [type(backbone.model).__name__],
    }
    if classes:
        config["id2label"] = dict(enumerate(classes))
        config["label2id"] = {name: i for i, name in enumerate(classes)}
    plain: dict[str, Any] = json.loads(json.dumps(config))  # as it will be read again
    return TextForm(
        plain, backbone.stored_keys().written, Path(backbone.origin.config["folder"]), template
    )
