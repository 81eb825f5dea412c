"""The table of names: kind -> name -> "module:Class", resolved on first use.

Literal strings keep `gist --help` free of torch. Other distributions add methods through the
entry-point group `gistcli.methods`; a file on disk is named as `FILE.py:Class`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
import zlib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from gistcli.errors import NotFound, Refused, UnknownName, did_you_mean

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
        "prefix": "gistcli.methods.prefix:PrefixTuning",
        "prompt": "gistcli.methods.prompt:Prompt",
        "repadapter": "gistcli.methods.repadapter:RepAdapter",
        "ssf": "gistcli.methods.ssf:Ssf",
        "toast": "gistcli.methods.toast:Toast",
        "vpt": "gistcli.methods.vpt:Vpt",
    },
    "backbones": {
        "beit": "gistcli.backbones.beit:Beit",
        "causal": "gistcli.backbones.causal:Causal",
        "encoder": "gistcli.backbones.encoder:Encoder",
        "eva": "gistcli.backbones.eva:EvaViT",
        "hf_vit": "gistcli.backbones.hf_vit:HFViT",
        "hiera": "gistcli.backbones.hiera:HieraViT",
        "seq2seq": "gistcli.backbones.seq2seq:Seq2Seq",
        "swin": "gistcli.backbones.swin:Swin",
        "vit": "gistcli.backbones.vit:ViT",
    },
    "sources": {
        "digits": "gistcli.data.digits:Digits",
        "fewshot": "gistcli.data.fewshot:FewShot",
        "fgvc": "gistcli.data.fgvc:Fgvc",
        "folder": "gistcli.data.folder:Folder",
        "hf": "gistcli.data.hub:HubDataset",
        "list": "gistcli.data.lists:ImageList",
        "vtab": "gistcli.data.vtab:Vtab",
        "webdataset": "gistcli.data.webdataset:WebDataset",
    },
    "objectives": {
        "causal_lm": "gistcli.objectives.causal_lm:CausalLM",
        "classification": "gistcli.objectives.classification:Classification",
        "compression": "gistcli.objectives.hypertuning:Compression",
        "hypertuning": "gistcli.objectives.hypertuning:Hypertuning",
        "regression": "gistcli.objectives.regression:Regression",
        "seq2seq": "gistcli.objectives.causal_lm:Seq2SeqLM",
    },
    "sections": {
        "gist": "gistcli.methods.gist:Gist",
        "hyper": "gistcli.hyper.section:Hyper",
    },
}


BASES = {"methods": ("gistcli.methods.base:Method", ("name", "summary", "recommended"))}
"""Kind -> the class that third parties' classes derive from, and what they have to define."""


@cache
def _extensions(kind: str) -> dict[str, EntryPoint]:
    """What installed distributions add to a kind, by name."""
    return {e.name: e for e in entry_points(group=f"gistcli.{kind}")}


def table(kind: str) -> dict[str, str]:
    """All names of a kind with where they live; our own win over third parties'."""
    return {**{name: e.value for name, e in _extensions(kind).items()}, **TABLES[kind]}


def names(kind: str) -> list[str]:
    """The names of a kind, sorted."""
    return sorted(table(kind))


def split_file(name: str) -> tuple[Path, str] | None:
    """File and class of `FILE.py:Class`; None for other names."""
    path, _, attribute = name.rpartition(":")
    return (Path(path), attribute) if path.endswith(".py") else None


def distribution(kind: str, name: str) -> tuple[str, str]:
    """The distribution that adds a name, and its version; empty where none does."""
    entry = _extensions(kind).get(name)
    if entry is None or entry.dist is None:
        return "", ""
    return entry.dist.name, entry.dist.version


def resolve(kind: str, name: str) -> Any:
    """The class behind a name.

    Raises:
        UnknownName: no such name; the hint holds the closest ones.
        NotFound: `FILE.py:Class` whose file or class is not there.
        Refused: code of third parties that cannot be imported, or is not of this kind.
    """
    file = split_file(name)
    if file is not None:
        return _checked(kind, _from_file(*file), name)
    known = table(kind)
    if name not in known:
        raise UnknownName(f"{name!r} is not among the {kind}.", did_you_mean(name, known))
    if name not in TABLES[kind]:
        return _checked(kind, _from_distribution(kind, name), name)
    module, _, attribute = known[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _from_distribution(kind: str, name: str) -> Any:
    try:
        return _extensions(kind)[name].load()
    except Exception as error:
        source = " ".join(distribution(kind, name))
        raise Refused(
            f"{name!r} of {source} cannot be imported: {type(error).__name__}: {error}.",
            f"Install a version of {source.partition(' ')[0]} that works, or uninstall it.",
        ) from error


def _from_file(path: Path, attribute: str) -> Any:
    path = path.absolute()
    if not path.is_file():
        raise NotFound(f"{path} does not exist.", "Give FILE.py:Class with an existing file.")
    module = _module(path, path.stat().st_mtime_ns)
    if not hasattr(module, attribute):
        own = [
            n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__
        ]
        raise NotFound(f"{path} has no {attribute!r}.", did_you_mean(attribute, own))
    return getattr(module, attribute)


@cache
def _module(path: Path, changed: int) -> ModuleType:
    """The module of a file, imported once for every state of the file."""
    name = f"gistcli_file_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic and dataclasses look annotations up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)
        ]
        where = f"line {lines[-1]}: " if lines else ""
        raise Refused(
            f"{path} cannot be imported: {where}{type(error).__name__}: {error}.", "Mend the file."
        ) from error
    return module


def _checked(kind: str, found: Any, name: str) -> Any:
    """A third party's object, if it is what its kind asks for."""
    if kind not in BASES:
        return found
    base, attributes = BASES[kind]
    ancestors = found.__mro__ if isinstance(found, type) else ()
    if base not in [f"{c.__module__}:{c.__qualname__}" for c in ancestors]:
        raise Refused(
            f"{name} is not one of the {kind}: it does not derive from {base.replace(':', '.')}.",
            "CONTRIBUTING.md of gistcli has an example.",
        )
    missing = [a for a in attributes if not hasattr(found, a)]
    missing += sorted(found.__abstractmethods__) if inspect.isabstract(found) else []
    if missing:
        raise Refused(f"{name} does not define {', '.join(missing)}.", "Define them in the class.")
    return found
