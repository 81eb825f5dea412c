"""A network from a transformers folder: safetensors only, every key loaded, no code of strangers.

DINOv2 resamples its position embeddings in every forward pass, so another image size changes no
weight. The others get resampled position embeddings and the new size in their config, once, so that
what is stored later loads without options.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gistcli.backbones.fingerprint import read_header
from gistcli.backbones.hf_vit import NETWORKS, Names
from gistcli.backbones.hf_weights import load_config, load_pretrained
from gistcli.backbones.locating import Source
from gistcli.errors import NotSupported, Refused

HEADED = "ForImageClassification"


def build(
    source: Source, *, img_size: tuple[int, int] | None, drop_path: float, meta: bool
) -> nn.Module:
    """The network behind a source, float32, in training mode.

    A folder of the network without a classifier gives one without a head (an Identity).

    Args:
        source: of the library transformers.
        img_size: height and width of the images in pixels; None for the network's own.
        drop_path: stochastic depth rate at the last block, rising from 0 at the first.
        meta: build without weights and memory.

    Raises:
        NotSupported: an option that the network does not have.
        Refused: an image size that patches do not fill.
        WeightsError: damaged weights, or weights of another network.
    """
    names = NETWORKS[source.architecture]
    cls, config = _class_and_config(source)
    stored_rate = getattr(config, "drop_path_rate", None)
    _ask_drop_path(source, config, drop_path)
    if meta:
        with torch.device("meta"):
            model: Any = cls(config)
    else:
        model = _load_folder(cls, source, config)
    if stored_rate is not None:
        _set_drop_path(model, names, drop_path)
        model.config.drop_path_rate = stored_rate  # a matter of training, not of the network
    if img_size is not None:
        _require_patches(model, names, img_size)
        if not names.any_size:
            _resize(source, model, names, img_size)
    network: nn.Module = model.train()
    return network


def _class_and_config(source: Source) -> tuple[Any, Any]:
    import transformers

    assert source.folder is not None
    cls: Any = getattr(transformers, source.architecture)
    config = load_config(cls, source.folder)
    named = (config.architectures or [source.architecture])[0]
    if not named.endswith(HEADED):
        config.num_labels = 0  # rather no head than one of random numbers
    return cls, config


def _ask_drop_path(source: Source, config: Any, drop_path: float) -> None:
    if hasattr(config, "drop_path_rate"):
        config.drop_path_rate = drop_path
    elif drop_path:
        raise NotSupported(
            f"{source.architecture} has no stochastic depth in transformers.",
            "Leave model.drop_path at 0, or use the timm version of the network.",
        )


def _set_drop_path(model: Any, names: Names, rate: float) -> None:
    """Rising from 0 at the first block, as timm has it; transformers gives all blocks the same."""
    if not rate:
        return
    blocks: Any = model.get_submodule(f"{names.base}.{names.blocks}")
    for i, block in enumerate(blocks):
        block.drop_path.drop_prob = rate * i / max(len(blocks) - 1, 1)


# --- weights ------------------------------------------------------------------------------------


def _load_folder(cls: Any, source: Source, config: Any) -> Any:
    assert source.folder is not None
    for path in source.weights:
        read_header(path)
    return load_pretrained(cls, source.folder, config=config)


# --- image size ---------------------------------------------------------------------------------


def _require_patches(model: Any, names: Names, size: tuple[int, int]) -> None:
    patch = getattr(model, names.base).embeddings.patch_embeddings.patch_size
    if any(side % step or side < step for side, step in zip(size, patch, strict=True)):
        raise Refused(
            f"img_size {list(size)} is no multiple of the patch size {list(patch)}.",
            "Choose another model.img_size.",
        )


def _resize(source: Source, model: Any, names: Names, size: tuple[int, int]) -> None:
    """Resample the position embeddings as transformers does with `interpolate_pos_encoding`."""
    embeddings = getattr(model, names.base).embeddings
    patches = embeddings.patch_embeddings
    (own_height, own_width), (step_y, step_x) = patches.image_size, patches.patch_size
    if (own_height, own_width) == size:
        return
    if own_height // step_y != own_width // step_x or step_y != step_x:
        raise NotSupported(
            f"The position embeddings of {source.folder} are not square: they are not resampled.",
            "Leave model.img_size out, or start from a square network.",
        )
    position = embeddings.position_embeddings
    count = (size[0] // step_y) * (size[1] // step_x)
    with torch.no_grad():
        shape = position.new_empty(1, names.cls_tokens + count, position.shape[-1])
        embeddings.patch_size = step_y  # may be a list, which the method does not take
        resampled = embeddings.interpolate_pos_encoding(shape, *size)
    embeddings.position_embeddings = nn.Parameter(resampled.contiguous())
    embeddings.image_size = patches.image_size = size
    patches.num_patches = count
    model.config.image_size = size[0] if size[0] == size[1] else list(size)
