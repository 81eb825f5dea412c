"""From a name to a frozen backbone, built by timm or by transformers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.models import list_models
from torch import nn

from gistcli import registry
from gistcli.backbones import hf_loading, hf_text
from gistcli.backbones.base import Backbone, Modality, Origin
from gistcli.backbones.fingerprint import read_header
from gistcli.backbones.locating import EMBEDDED, Source, family_of, locate
from gistcli.backbones.text_classes import HEADED
from gistcli.errors import NotSupported, WeightsError

DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}


def open_backbone(
    name: str,
    *,
    task: str | None = None,
    img_size: int | tuple[int, int] | None = None,
    dtype: str = "auto",
    drop_path: float = 0.0,
    grad_checkpointing: bool = False,
    meta: bool = False,
    quantize: str | None = None,
) -> Backbone:
    """The frozen backbone behind a name.

    Args:
        name: a folder with config.json and safetensors (of timm or transformers), an embedded
            network, a timm name, or a hub repository (`OWNER/NAME`).
        task: classification, causal_lm for a decoder of text, or seq2seq for an encoder-decoder;
            None for what the network is for.
        img_size: side (or height, width) of the images in pixels; None for the network's own.
            Position embeddings are resampled.
        dtype: of the frozen weights; auto is float32 for pictures, and for text as stored.
        drop_path: stochastic depth rate at the last block, rising from 0 at the first.
        grad_checkpointing: recompute activations in the backward pass.
        meta: build without weights and memory, for counts; config.json alone is enough then.
        quantize: nf4 or int8 for frozen linear maps of text; None keeps their dtype.

    Raises:
        NotFound, UnknownName, Refused: the name leads nowhere, or to the hub while offline.
        NotSupported: another kind of network.
        WeightsError: damaged weights, or weights of another shape.
    """
    source = locate(name, need_weights=not meta)
    family = family_of(source.architecture)
    if family.modality == "text":
        backbone = _open_text(name, source, task, dtype, meta, (img_size, drop_path), quantize)
    else:
        _require_pictures(name, task)
        if quantize is not None:
            raise NotSupported(
                f"{name} reads pictures, whose weights are not quantised.",
                "Leave model.quantize out.",
            )
        model, config = _open_images(source, img_size, drop_path, meta)
        if not meta:
            model.to(DTYPES[dtype])
        config["folder"] = source.folder
        backbone = family(model, Origin(name, source.architecture, source.weights, config))
    if grad_checkpointing:
        backbone.checkpoint_gradients()
    return backbone


def _open_text(
    name: str,
    source: Source,
    task: str | None,
    dtype: str,
    meta: bool,
    of_pictures: tuple[Any, float],
    quantize: str | None,
) -> Backbone:
    if any(of_pictures):
        raise NotSupported(
            f"{name} reads text: it has neither a size of images nor stochastic depth.",
            "Leave model.img_size and model.drop_path out.",
        )
    stored: hf_text.Kept = "auto" if dtype == "auto" else DTYPES[dtype]
    model = hf_text.build(source, task=task, dtype=stored, meta=meta, quantize=quantize)
    architecture = type(model).__name__
    config = {"folder": source.folder}
    family = family_of(architecture)
    backbone = family(model, Origin(name, architecture, source.weights, config))
    if architecture != hf_text.stored_class(source):
        network: Any = model
        backbone.reset_head(network.config.num_labels)
    return backbone


def _require_pictures(name: str, task: str | None) -> None:
    if task not in (None, *HEADED):
        raise NotSupported(
            f"{name} reads pictures: it is trained for no task {task}.",
            "Choose a model that reads text, or another task.type.",
        )


def _open_images(
    source: Source, img_size: int | tuple[int, int] | None, drop_path: float, meta: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """The network, and what `Origin.config` keeps of how it was built."""
    if source.library == "transformers":
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        model = hf_loading.build(source, img_size=size, drop_path=drop_path, meta=meta)
        return model, {"img_size": size}
    # also where it is 0: some architectures (Swin) have another default
    options: dict[str, Any] = {"drop_path_rate": drop_path}
    if img_size is not None:
        options["img_size"] = img_size
    network = _build(source, options, meta=meta)
    return network, {"model_args": dict(getattr(network, "_model_args", {}))}


def modality_of(name: str) -> Modality:
    """Whether the model behind a name reads pictures or text, by its configuration alone.

    Raises:
        GistError: the name leads nowhere, or to the hub while offline.
    """
    return family_of(locate(name, need_weights=False).architecture).modality


def supported_models() -> list[str]:
    """Names of the embedded networks and of all timm networks that some family accepts."""
    families = [registry.resolve("backbones", n) for n in registry.names("backbones")]
    names = [n for n in list_models() if any(f.accepts(n) for f in families)]
    return [*EMBEDDED, *names]


def _build(source: Source, options: Mapping[str, Any], *, meta: bool) -> Any:
    name = f"local-dir:{source.folder}" if source.folder else source.architecture
    with _quiet():
        if meta:
            with torch.device("meta"):
                return timm.create_model(name, pretrained=False, **options)
        (weights,) = source.weights
        read_header(weights)
        if not source.folder:
            overlay = {"file": str(weights), "hf_hub_id": None, "custom_load": False}
            options = {**options, "pretrained_cfg_overlay": overlay}
        try:
            return timm.create_model(name, pretrained=True, **options)
        except (RuntimeError, KeyError, TypeError, AssertionError) as error:
            reason = str(error).strip().replace("\n\t", " ")
            hint = "Check config.json beside the weights (architecture, num_classes, model_args)."
            if "img_size" in options and "pos_embed" in reason:  # Hiera's is not resampled
                hint = "Its position embedding is of one image size: leave model.img_size out."
            raise WeightsError(
                f"{weights} does not fit {source.architecture}: {reason}", hint
            ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """timm logs what it loads (the start-up summary says it better) and warns as it resamples."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"timm\.layers\.interpolate")
            yield
    finally:
        logger.setLevel(level)
