"""From a name to a backbone: folder, embedded network, local hub cache, then the hub itself."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg, is_model, list_models, split_model_name_tag

from gistcli import registry
from gistcli.backbones.base import Backbone, Origin
from gistcli.backbones.fingerprint import read_header
from gistcli.errors import NotFound, NotSupported, Refused, UnknownName, WeightsError, did_you_mean

EMBEDDED = {"gist_vit_nano": "gist_vit_nano"}
WEIGHTS = "model.safetensors"
DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Source:
    """What a name resolved to: a timm name to build, its weights, and the folder where one is."""

    architecture: str
    weights: Path | None
    folder: Path | None = None


def open_backbone(
    name: str,
    *,
    img_size: int | tuple[int, int] | None = None,
    dtype: str = "auto",
    drop_path: float = 0.0,
    grad_checkpointing: bool = False,
    meta: bool = False,
) -> Backbone:
    """The frozen backbone behind a name.

    Args:
        name: a folder with config.json and model.safetensors, an embedded network, a timm name, or
            a hub repository (`OWNER/NAME`).
        img_size: side (or height, width) of the images in pixels; None for the network's own.
            Position embeddings are resampled.
        dtype: of the frozen weights; auto is float32.
        drop_path: stochastic depth rate at the last block, rising from 0 at the first.
        grad_checkpointing: recompute activations in the backward pass.
        meta: build without weights and memory, for counts; config.json alone is enough then.

    Raises:
        NotFound, UnknownName, Refused: the name leads nowhere, or to the hub while offline.
        NotSupported: another kind of network.
        WeightsError: damaged weights, or weights of another shape.
    """
    source = locate(name, need_weights=not meta)
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    if img_size is not None:
        options["img_size"] = img_size
    model = _build(source, options, meta=meta)
    if not meta:
        model.to(DTYPES[dtype])
    weights = (source.weights,) if source.weights else ()
    config = {"model_args": dict(getattr(model, "_model_args", {})), "folder": source.folder}
    origin = Origin(name, source.architecture, weights, config)
    backbone = _family(source.architecture)(model, origin)
    if grad_checkpointing:
        backbone.checkpoint_gradients()
    return backbone


def supported_models() -> list[str]:
    """Names of the embedded networks and of all timm networks that some family accepts."""
    families = [registry.resolve("backbones", n) for n in registry.names("backbones")]
    names = [n for n in list_models() if any(f.accepts(n) for f in families)]
    return [*EMBEDDED, *names]


def locate(name: str, *, need_weights: bool = True) -> Source:
    """Where the configuration and the weights of a name lie, fetched where that is needed."""
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_folder(path, need_weights)
    if path.exists():
        raise NotFound(f"{name} is a file.", "Give the folder with config.json and the weights.")
    if name in EMBEDDED:
        return _from_folder(Path(str(files("gistcli.assets") / EMBEDDED[name])), need_weights)
    if is_model(name):
        return _from_timm(name, need_weights)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_hub(name.removeprefix("hf-hub:"))
    known = [*EMBEDDED, *list_models(), *list_models(pretrained=True)]
    if "/" in name:
        raise NotFound(f"The model folder {name} does not exist.", "Check the path.")
    hint = did_you_mean(name, known).partition(" Known:")[0].partition("Known:")[0]
    raise UnknownName(
        f"The model {name!r} is no folder and no known network.",
        f"{hint} `gist list models` shows all names.".strip(),
    )


def _from_folder(folder: Path, need_weights: bool) -> Source:
    config = folder / "config.json"
    if not config.is_file():
        raise NotFound(
            f"{folder} has no config.json.",
            "A model folder holds config.json and model.safetensors, as `hf download` writes them.",
        )
    try:
        content = json.loads(config.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{config} is not readable JSON: {error}.", "Copy it again.") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{config} holds no JSON object.", "Copy it again.")
    architecture = content.get("architecture")
    if not architecture:
        kind = content.get("model_type", "unknown")
        raise NotSupported(
            f"{folder} is a transformers folder of type {kind!r}, not a timm one.",
            "Use the timm version of the network (its config.json has the key `architecture`).",
        )
    weights = folder / WEIGHTS
    if need_weights and not weights.is_file():
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pth", ".npz"))
        found = f", only {', '.join(others)}" if others else ""
        raise NotFound(
            f"{folder} has no {WEIGHTS}{found}.",
            "Only safetensors are read; convert other files with `timm.models.save_for_hf`.",
        )
    return Source(str(architecture), weights if weights.is_file() else None, folder)


def _from_timm(name: str, need_weights: bool) -> Source:
    _family(name)
    if not need_weights:
        return Source(name, None)
    config = get_pretrained_cfg(name)
    repository = config.hf_hub_id if config else None
    if not config or not repository:
        tags = [n for n in list_models(pretrained=True) if split_model_name_tag(n)[0] == name]
        raise NotFound(f"timm has no pretrained weights for {name}.", did_you_mean(name, tags))
    return Source(name, _download(repository, WEIGHTS, config.hf_hub_filename))


def _from_hub(repository: str) -> Source:
    config = _download(repository, "config.json")
    _download(repository, WEIGHTS)
    return _from_folder(config.parent, need_weights=True)


def _download(repository: str, filename: str, other: str | None = None) -> Path:
    """A file of a hub repository: from the local cache, else from the network if it answers."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if other and other.endswith(".safetensors"):
        filename = other
    cached = try_to_load_from_cache(repository, filename)
    if isinstance(cached, str):
        return Path(cached)
    if not _hub_answers():
        folder = repository.rpartition("/")[2]
        raise Refused(
            f"{repository} is not on this machine, and the model hub cannot be reached.",
            f"Run `hf download {repository} --local-dir {folder}` where there is a network, "
            f"copy the folder here, and use `--model {folder}`.",
        )
    try:
        return Path(hf_hub_download(repository, filename))
    except Exception as error:  # the hub client has a dozen types for "no such file"
        raise NotFound(f"{repository}/{filename} cannot be fetched: {error}") from error


def _hub_answers(timeout_s: float = 1.5) -> bool:
    """One short request, so that being offline costs a second and not a row of retries."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=timeout_s)
    except Exception:  # whatever keeps it from answering
        return False
    return True


def _family(architecture: str) -> type[Backbone]:
    for name in registry.names("backbones"):
        family: type[Backbone] = registry.resolve("backbones", name)
        if family.accepts(architecture):
            return family
    raise NotSupported(
        f"No backbone family takes {architecture}.", "`gist list models` shows what can be tuned."
    )


def _build(source: Source, options: Mapping[str, Any], *, meta: bool) -> Any:
    if not is_model(source.architecture.split(".")[0]):
        known = list_models()
        hint = did_you_mean(source.architecture, known).partition("Known:")[0]
        raise NotSupported(f"timm does not know the architecture {source.architecture!r}.", hint)
    _family(source.architecture)
    name = f"local-dir:{source.folder}" if source.folder else source.architecture
    with _quiet():
        if meta:
            with torch.device("meta"):
                return timm.create_model(name, pretrained=False, **options)
        assert source.weights is not None
        read_header(source.weights)
        if not source.folder:
            overlay = {"file": str(source.weights), "hf_hub_id": None, "custom_load": False}
            options = {**options, "pretrained_cfg_overlay": overlay}
        try:
            return timm.create_model(name, pretrained=True, **options)
        except (RuntimeError, KeyError, TypeError, AssertionError) as error:
            reason = str(error).strip().replace("\n\t", " ")
            raise WeightsError(
                f"{source.weights} does not fit {source.architecture}: {reason}",
                "Check config.json beside the weights (architecture, num_classes, model_args).",
            ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """timm logs what it loads; the start-up summary says it better."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
