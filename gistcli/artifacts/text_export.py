"""The folder of a network over text: all that transformers, and servers built on it, ask for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gistcli import atomic
from gistcli.artifacts import verify
from gistcli.artifacts.form import Form
from gistcli.artifacts.verify import Inputs
from gistcli.backbones.causal import Causal
from gistcli.backbones.hf_weights import load_pretrained
from gistcli.backbones.locating import CONFIG, TOKENIZER
from gistcli.backbones.streaming import Read, compute, empty
from gistcli.backbones.supervision import IGNORED
from gistcli.backbones.text import TextBackbone

TEMPLATE = "chat_template.jinja"
LABEL_WORDS = "label_words.json"
"""What config.json of a merged folder says of the classes, beside an adapter."""


@dataclass(frozen=True)
class TextForm(Form):
    """The folder of a language model or of a classifier of texts.

    Attributes:
        config: the content of config.json, without the dtype.
        stored: stored key -> tensors in memory.
        base: folder of the base, whose tokenizer and generation config go along.
        template: chat template that replaces the tokenizer's; None leaves that alone.
        network: the base in memory, as `empty` leaves it, inside which no tuner acts.
    """

    config: Mapping[str, Any]
    stored: Mapping[str, Sequence[str]]
    base: Path
    template: str | None = None
    network: Callable[[], AbstractContextManager[nn.Module]] | None = None
    name: ClassVar[str] = "transformers"
    of_text: ClassVar[bool] = True

    @property
    def names(self) -> Mapping[str, Sequence[str]]:
        """As `save_pretrained` would write them."""
        return self.stored

    @property
    def writes_targets(self) -> bool:
        """Whether it is an encoder-decoder."""
        return bool(self.config.get("is_encoder_decoder"))

    @property
    def classifies(self) -> bool:
        """Whether it gives classes by a head, and not the next token."""
        return str(self.config["architectures"][0]).endswith("ForSequenceClassification")

    def write(self, folder: Path, dtype: str) -> None:
        """config.json, and the files of the base that are no weights.

        Raises:
            StorageError: the disk is full or may not be written.
        """
        atomic.write_json(folder / CONFIG, {**self.config, "dtype": dtype})
        self._write_base_files(folder)

    @property
    def peft_task(self) -> str | None:
        """Of a language model; a classifier's head is saved whole, which needs no task."""
        if self.writes_targets:
            return "SEQ_2_SEQ_LM"
        return None if self.classifies else "CAUSAL_LM"

    @property
    def own_template(self) -> str | None:
        """Written where the run had one of its own."""
        return None if self.template is None else TEMPLATE

    def write_beside_adapter(self, folder: Path) -> None:
        """Tokenizer, generation config and chat template; label words, where classes are words.

        Raises:
            StorageError: the disk is full or may not be written.
        """
        self._write_base_files(folder)
        keys = ("id2label", "label_words", "label_token_ids")
        words = {key: self.config[key] for key in keys if key in self.config}
        if len(words) == len(keys):
            atomic.write_json(folder / LABEL_WORDS, words)

    def _write_base_files(self, folder: Path) -> None:
        for name in TOKENIZER:
            if (self.base / name).is_file():
                with atomic.storage_errors(folder / name):
                    shutil.copyfile(self.base / name, folder / name)
        if self.template is not None:
            atomic.write_text(folder / TEMPLATE, self.template)

    def load(self, folder: Path) -> nn.Module:
        """By `AutoModelForCausalLM`, `...ForSeq2SeqLM` or `...ForSequenceClassification`.

        Raises:
            WeightsError: a tensor is missing, unexpected or of another shape.
        """
        import transformers

        kind = "SequenceClassification" if self.classifies else "CausalLM"
        auto = getattr(transformers, f"AutoModelFor{'Seq2SeqLM' if self.writes_targets else kind}")
        model = load_pretrained(auto, folder, dtype="auto")  # mapped, and float32 block by block
        empty(model)
        return _Logits(model, each=self._each).eval()

    @property
    def _each(self) -> bool:
        return not (self.classifies or self.writes_targets)

    def rebuilt(self, read: Read, inputs: Inputs) -> Tensor | None:
        """Float32 logits of the base's network with other tensors, block by block."""
        if self.network is None:
            return None
        with self.network() as model:
            return verify.run(_Logits(model, each=self._each, read=read), inputs)


class _Logits(nn.Module):
    """A batch of text to (B, K) logits, or to (N, V) those at its real tokens (`each`).

    Of an encoder-decoder those that its backbone gives.
    """

    def __init__(self, model: Any, *, each: bool, read: Read | None = None) -> None:
        super().__init__()
        self.model, self.each, self.read = model, each, read

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits."""
        of_target = getattr(self.model.config, "is_encoder_decoder", False)
        call: Callable[[], Tensor] = lambda: (  # noqa: E731
            _target_logits(self.model, batch) if of_target else self.model(**batch).logits
        )
        logits = compute(self.model, call, self.read)
        return at_tokens(logits, batch) if self.each else logits


def _target_logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """(N, V) at the labels of a batch; (B, K) of the label words, or (B, 1, V), at the start."""
    if "labels" in batch:
        found: Tensor = model(**batch).logits[batch["labels"] != IGNORED]
        return found
    start = torch.full_like(batch["input_ids"][:, :1], model.config.decoder_start_token_id)
    logits_BTV: Tensor = model(**batch, decoder_input_ids=start).logits
    words = getattr(model.config, "label_token_ids", None)
    return logits_BTV[:, 0, words] if words else logits_BTV


def at_tokens(logits_BTV: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """(N, V): those at the N positions that are no padding."""
    return logits_BTV[batch["attention_mask"].bool()]


def text_form(
    backbone: TextBackbone,
    classes: Sequence[str],
    template: str | None,
    network: Callable[[], AbstractContextManager[nn.Module]] | None = None,
    pad_id: int | None = None,
) -> TextForm:
    """The folder of a tuned network.

    Args:
        backbone: with the head that was tuned.
        classes: names in the order of the logits; none of a language model.
        template: chat template that the run used in place of the tokenizer's.
        network: of `TextForm`.
        pad_id: of the tokenizer; a decoder that classifies finds the last token of a text by it.

    Raises:
        NotMergeable: the library stores the network in a form that is not written tensor by tensor.
    """
    config: dict[str, Any] = {
        **backbone.config.to_diff_dict(),
        "architectures": [type(backbone.model).__name__],
    }
    if classes:
        config.pop("problem_type", None)  # of what the base was trained for
        config["id2label"] = dict(enumerate(classes))
        config["label2id"] = {name: i for i, name in enumerate(classes)}
    elif backbone.task == "classification":  # a head without classes gives one value
        config["problem_type"] = "regression"
    if isinstance(backbone, Causal) and backbone.task == "classification" and pad_id is not None:
        config["pad_token_id"] = pad_id
    if config.get("tie_word_embeddings") and not _tied(backbone.hf):
        config["tie_word_embeddings"] = False  # the base's file holds two tensors
    plain: dict[str, Any] = json.loads(json.dumps(config))  # as it will be read again
    folder = Path(backbone.origin.config["folder"])
    return TextForm(plain, backbone.stored_keys().written, folder, template, network)


def _tied(model: Any) -> bool:
    """Whether the embedding of the words and the map to them are one; also without such a map."""
    last = model.get_output_embeddings()
    return last is None or last.weight is model.get_input_embeddings().weight
