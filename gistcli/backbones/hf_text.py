"""A network over text from a transformers folder, with the head that a task asks for."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from gistcli.backbones.fingerprint import read_header
from gistcli.backbones.hf_weights import load_config, load_pretrained, quiet
from gistcli.backbones.locating import Source, read_config
from gistcli.backbones.quantised import (
    head_modules,
    keep_layout,
    quantisation_config,
    require_bitsandbytes,
)
from gistcli.backbones.text_classes import CLASSIFIER, class_for
from gistcli.errors import NotSupported

Kept = torch.dtype | Literal["auto"]
"""A dtype, or that of the files."""


def build(
    source: Source, *, task: str | None, dtype: Kept, meta: bool, quantize: str | None = None
) -> nn.Module:
    """The network behind a source, in training mode.

    A classifier whose folder holds another head, or none, gets one of random numbers: `reset_head`
    makes it anew.

    Args:
        source: of the library transformers.
        task: classification, causal_lm, seq2seq, or None for what the folder's family is mostly
            for.
        dtype: of the weights; auto for that of the files.
        meta: build without weights and memory.
        quantize: nf4 or int8 for the linear maps, heads aside; None keeps them.

    Raises:
        NotSupported: transformers has no class for network and task.
        Refused: the library that quantises is not installed.
        WeightsError: damaged weights, or weights of another network.
    """
    import transformers

    assert source.folder is not None
    content, stored = read_config(source.folder), stored_class(source)
    if task is None and stored.endswith(CLASSIFIER):
        task = "classification"
    name = class_for(str(content["model_type"]), task)
    if name is None:
        raise NotSupported(
            f"transformers has no class of {content['model_type']} for the task {task}.",
            "Choose another task.type, or another model.",
        )
    cls: Any = getattr(transformers, name)
    config = load_config(cls, source.folder)
    if meta:
        return _empty(cls, config, dtype)
    for path in source.weights:
        read_header(path)
    needed = not name.endswith(CLASSIFIER)
    may_differ = _none if stored == name else _Head(cls, config, needed=needed)
    options = {"dtype": dtype, "of_a_head": may_differ, "config": config}
    if quantize is not None:
        options["quantization_config"] = _quantisation(cls, config, dtype, quantize)
    network: nn.Module = load_pretrained(cls, source.folder, **options)
    keep_layout(network)
    return network.train()


def _quantisation(cls: Any, config: Any, dtype: Kept, scheme: str) -> Any:
    require_bitsandbytes()
    network = _empty(cls, config, dtype)
    return quantisation_config(scheme, next(network.parameters()).dtype, head_modules(network))


def stored_class(source: Source) -> str:
    """The class that wrote the folder, as its config.json says."""
    assert source.folder is not None
    named = read_config(source.folder).get("architectures")
    return str((named or [source.architecture])[0])


def _empty(cls: Any, config: Any, dtype: Kept) -> nn.Module:
    with quiet(), torch.device("meta"):
        network: nn.Module = cls(config)
        if getattr(config, "scale_decoder_outputs", True) is False:  # T5 v1.1: two vocabularies
            last = network.get_output_embeddings()  # type: ignore[operator]
            last.weight = nn.Parameter(torch.empty_like(last.weight))
    chosen = (config.dtype or torch.float32) if dtype == "auto" else dtype
    return network.to(chosen).train()


def _none(key: str) -> bool:
    return False


class _Head:
    """Whether a key of a file or network belongs to a head, and so may differ.

    Args:
        cls: of the network that is built.
        config: of it.
        needed: its own head has to be in the file (that of a language model).
    """

    def __init__(self, cls: Any, config: Any, *, needed: bool) -> None:
        with quiet(), torch.device("meta"):
            network: Any = cls(config)
        self.prefix = f"{network.base_model_prefix}."
        self.inside = {name for name, _ in network.base_model.named_children()}
        inner = network.base_model
        self.own = {n for n, child in network.named_children() if child is not inner}
        self.needed = needed

    def __call__(self, key: str) -> bool:
        """Not where it is of the base network, under its prefix or, in files of it alone, not."""
        first = key.partition(".")[0]
        if key.startswith(self.prefix) or first in self.inside - self.own:
            return False
        return not (self.needed and first in self.own)
