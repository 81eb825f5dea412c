"""The table of names: kind -> name -> "module:Class", resolved on first use.

Literal strings keep `gist --help` free of torch. Other distributions add methods through the
entry-point group `gistcli.methods`; a file on disk is named as `FILE.py:Class`.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from gistcli.errors import NotFound, UnknownName, did_you_mean

TABLES: dict[str, dict[str, str]] = {
    "methods": {
        "adapter": "gistcli.methods.adapter:Adapter",
        "bitfit": "gistcli.methods.bitfit:BitFit",
        "convpass": "gistcli.methods.convpass:Convpass",
        "fact": "gistcli.methods.fact:Fact",
        "full": "gistcli.methods.full:Full",
        "gift": "gistcli.methods.gift:Gift",
        "gift_v1": "gistcli.methods.gift_v1:GiftV1",
        "layernorm": "gistcli.methods.layernorm:LayerNorm",
        "linear": "gistcli.methods.linear:Linear",
        "lora": "gistcli.methods.lora:Lora",
        "repadapter": "gistcli.methods.repadapter:RepAdapter",
        "ssf": "gistcli.methods.ssf:Ssf",
        "toast": "gistcli.methods.toast:Toast",
        "vpt": "gistcli.methods.vpt:Vpt",
    },
    "backbones": {
        "beit": "gistcli.backbones.beit:Beit",
        "eva": "gistcli.backbones.eva:EvaViT",
        "hf_vit": "gistcli.backbones.hf_vit:HFViT",
        "hiera": "gistcli.backbones.hiera:HieraViT",
        "swin": "gistcli.backbones.swin:Swin",
        "vit": "gistcli.backbones.vit:ViT",
    },
    "sources": {
        "digits": "gistcli.data.digits:Digits",
        "folder": "gistcli.data.folder:Folder",
        "list": "gistcli.data.lists:ImageList",
        "hf": "gistcli.data.hub:HubDataset",
    },
    "objectives": {
        "classification": "gistcli.objectives.classification:Classification",
    },
}


@cache
def _extensions(kind: str) -> dict[str, str]:
    """Names that installed distributions add to a kind."""
    return {e.name: e.value for e in entry_points(group=f"gistcli.{kind}")}


def table(kind: str) -> dict[str, str]:
    """All names of a kind with where they live; our own win over third parties'."""
    return {**_extensions(kind), **TABLES[kind]}


def names(kind: str) -> list[str]:
    """The names of a kind, sorted."""
    return sorted(table(kind))


def resolve(kind: str, name: str) -> Any:
    """The class behind a name.

    Raises:
        UnknownName: no such name; the hint holds the closest ones.
        NotFound: `FILE.py:Class` whose file or class is not there.
    """
    path, _, attribute = name.rpartition(":")
    if path.endswith(".py"):
        return _from_file(Path(path), attribute)
    known = table(kind)
    if name not in known:
        raise UnknownName(f"{name!r} is not among the {kind}.", did_you_mean(name, known))
    module, _, attribute = known[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _from_file(path: Path, attribute: str) -> Any:
    if not path.is_file():
        raise NotFound(f"{path} does not exist.", "Give FILE.py:Class with an existing file.")
    spec = importlib.util.spec_from_file_location(f"gistcli_file_{path.stem}", path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, attribute):
        classes = [n for n, v in vars(module).items() if isinstance(v, type)]
        raise NotFound(f"{path} has no {attribute!r}.", did_you_mean(attribute, classes))
    return getattr(module, attribute)
