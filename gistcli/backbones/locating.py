"""From a name to files: folder, embedded network, local hub cache, then the hub itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from timm.models import get_pretrained_cfg, is_model, list_models, split_model_name_tag

from gistcli import registry
from gistcli.backbones import hf_images
from gistcli.backbones.base import Backbone
from gistcli.backbones.hf_vit import MODEL_TYPES, architecture_of
from gistcli.backbones.text_classes import SEQ2SEQ, class_for, is_encoder_decoder
from gistcli.errors import NotFound, NotSupported, Refused, UnknownName, WeightsError, did_you_mean

EMBEDDED = {"gist_vit_nano": "gist_vit_nano", "gist_llama_nano": "gist_llama_nano"}
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.txt", "vocab.json", "merges.txt", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip
"""Files beside the weights of a network over text; no repository has all of them."""
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
RECEIPT = "merge.json"
"""What `gist merge` says of a folder that it wrote."""
MERGED = "tuner_sha256"
"""Its key for what was merged: SHA-256 of the run's tuner.safetensors."""


@dataclass(frozen=True)
class Source:
    """What a name resolved to.

    Attributes:
        architecture: the family's name of the network: timm's, or transformers' class.
        weights: safetensors files; empty where none are there, and none were asked for.
        folder: where a folder with a config.json is the source.
        library: which of the two builds it.
    """

    architecture: str
    weights: tuple[Path, ...]
    folder: Path | None = None
    library: str = "timm"


def locate(name: str, *, need_weights: bool = True) -> Source:
    """Where the configuration and the weights of a name lie, fetched where that is needed.

    Raises:
        NotFound, UnknownName, Refused: the name leads nowhere, or to the hub while offline.
        NotSupported: another kind of network.
        WeightsError: a damaged config.json or index.
    """
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
        return _from_hub(name.removeprefix("hf-hub:"), need_weights)
    known = [*EMBEDDED, *list_models(), *list_models(pretrained=True)]
    if "/" in name:
        raise NotFound(f"The model folder {name} does not exist.", "Check the path.")
    hint = did_you_mean(name, known).partition(" Known:")[0].partition("Known:")[0]
    raise UnknownName(
        f"The model {name!r} is no folder and no known network.",
        f"{hint} `gist list models` shows all names.".strip(),
    )


def family_of(architecture: str) -> type[Backbone]:
    """The family that takes an architecture.

    Raises:
        NotSupported: none does.
    """
    for name in registry.names("backbones"):
        family: type[Backbone] = registry.resolve("backbones", name)
        if family.accepts(architecture):
            return family
    raise NotSupported(
        f"No backbone family takes {architecture}.", "`gist list models` shows what can be tuned."
    )


# --- folders ------------------------------------------------------------------------------------


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a model folder's config.json.

    Raises:
        NotFound: there is none.
        WeightsError: it is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise NotFound(
            f"{folder} has no config.json.",
            "A model folder holds config.json and model.safetensors, as `hf download` writes them.",
        )
    return _read_object(path)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is not readable JSON: {error}.", "Copy it again.") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds no JSON object.", "Copy it again.")
    return content


def _describe(folder: Path) -> tuple[str, str]:
    """Architecture and library of a folder."""
    content = read_config(folder)
    if content.get("architecture"):
        named = str(content["architecture"])
        if not is_model(named.split(".")[0]):
            hint = did_you_mean(named, list_models()).partition("Known:")[0]
            raise NotSupported(f"timm does not know the architecture {named!r}.", hint)
        return named, "timm"
    architecture = architecture_of(content) or _of_text(content)
    if architecture is None:
        raise _not_taken(folder, content)
    return architecture, "transformers"


def _of_text(content: Mapping[str, Any]) -> str | None:
    return class_for(str(content.get("model_type")), None)


def _not_taken(folder: Path, content: Mapping[str, Any]) -> NotSupported:
    kind = content.get("model_type", "unknown")
    classes = ", ".join(content.get("architectures") or ["no class"])
    found = f"{folder} is a transformers folder of type {kind!r} ({classes})"
    if is_encoder_decoder(content):
        return NotSupported(
            f"{found}, an encoder-decoder that no backbone family takes.",
            f"Types that are taken: {', '.join(SEQ2SEQ)}. Or use an encoder or a decoder.",
        )
    return NotSupported(
        f"{found}, which no backbone family takes.",
        f"Types that are taken: {', '.join(MODEL_TYPES)}, and encoders, decoders and T5s of text. "
        "Or use the timm version of the network (its config.json has the key `architecture`).",
    )


def _from_folder(folder: Path, need_weights: bool) -> Source:
    architecture, library = _describe(folder)
    weights: tuple[Path, ...] = ()
    if (folder / WEIGHTS).is_file():
        weights = (folder / WEIGHTS,)
    elif library == "transformers" and (folder / INDEX).is_file():
        weights = tuple(folder / name for name in _shards(folder / INDEX))
    missing = [path.name for path in weights if not path.is_file()]
    if need_weights and missing:
        raise NotFound(f"{folder} lacks {', '.join(missing)}.", "Copy or download it again.")
    if need_weights and not weights:
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pth", ".npz"))
        found = f", only {', '.join(others)}" if others else ""
        writer = "timm.models.save_for_hf" if library == "timm" else "save_pretrained"
        raise NotFound(
            f"{folder} has no {WEIGHTS}{found}.",
            f"Only safetensors are read; convert other files with `{writer}`.",
        )
    return Source(architecture, () if missing else weights, folder, library)


def _shards(index: Path) -> list[str]:
    """Names of the files that an index lists, which lie beside it."""
    table = _read_object(index).get("weight_map")
    names = sorted({str(n) for n in table.values()}) if isinstance(table, dict) else []
    if not names or any(Path(n).name != n for n in names):
        raise WeightsError(f"{index} lists no files beside it.", "Copy it again.")
    return names


# --- timm's names and the hub -------------------------------------------------------------------


def _from_timm(name: str, need_weights: bool) -> Source:
    family_of(name)
    if not need_weights:
        return Source(name, ())
    config = get_pretrained_cfg(name)
    repository = config.hf_hub_id if config else None
    if not config or not repository:
        tags = [n for n in list_models(pretrained=True) if split_model_name_tag(n)[0] == name]
        raise NotFound(f"timm has no pretrained weights for {name}.", did_you_mean(name, tags))
    other = config.hf_hub_filename or ""
    filename = other if other.endswith(".safetensors") else WEIGHTS
    return Source(name, (_download(repository, filename),))


def _from_hub(repository: str, need_weights: bool) -> Source:
    folder = _download(repository, CONFIG).parent
    architecture, library = _describe(folder)
    family_of(architecture)
    if library == "transformers":
        for beside in (hf_images.FILE, *TOKENIZER):
            _download_if_there(repository, beside)
    if need_weights:
        _download_weights(repository, sharded=library == "transformers")
    return _from_folder(folder, need_weights)


def _download_weights(repository: str, *, sharded: bool) -> None:
    if not sharded or _cached(repository, INDEX) is None:
        try:
            _download(repository, WEIGHTS)
            return
        except NotFound:
            if not sharded:
                raise
    for name in _shards(_download(repository, INDEX)):
        _download(repository, name)


def _download_if_there(repository: str, filename: str) -> None:
    try:
        _download(repository, filename)
    except (NotFound, Refused):
        return  # a file that not every repository has


def _cached(repository: str, filename: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repository, filename)
    return Path(cached) if isinstance(cached, str) else None


def _download(repository: str, filename: str) -> Path:
    """A file of a hub repository: from the local cache, else from the network if it answers."""
    from huggingface_hub import hf_hub_download

    cached = _cached(repository, filename)
    if cached is not None:
        return cached
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
