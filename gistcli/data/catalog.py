"""`open_catalog`: from `data.path` to a catalog, whatever kind of data lies there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from gistcli import registry
from gistcli.data.base import (
    Catalog,
    DataOptions,
    Found,
    Record,
    Source,
    class_order,
    refuse_options,
    some,
)
from gistcli.data.benchmark import Benchmark
from gistcli.data.fetch import FILES, holds_tables
from gistcli.data.fewshot import FewShot
from gistcli.data.fgvc import Fgvc
from gistcli.data.images import is_image_name
from gistcli.data.lists import split_lists
from gistcli.data.splits import settle_splits
from gistcli.data.tables import ENDINGS
from gistcli.data.twins import identical, leaking_groups
from gistcli.data.vtab import Vtab
from gistcli.data.webdataset import holds_shards
from gistcli.errors import DataError, NotFound, did_you_mean

_NEED_NO_PATH = ("digits",)
_HUB_NAME = re.compile(r"(hf:)?(?P<name>[A-Za-z0-9][\w.-]*(/[\w.-]+)?)")


def open_catalog(
    data: DataOptions, *, base: Path, pinned: Path | None = None, whole: bool = False
) -> Catalog:
    """Finds the pictures, their classes and their splits; nothing is decoded.

    `data.source` says how to read what lies at `data.path`; auto goes by its look. An existing path
    wins over the name of a source, and that over a name on the hub (`hf:NAME` says that the hub is
    meant).

    Args:
        data: the recipe's section.
        base: what relative paths start from.
        pinned: a `splits.csv` whose splits must be reproduced; rules and shots are not applied.
        whole: divide nothing, for evaluation: splits as found, a folder without any is all `test`.

    Raises:
        NotFound: there is nothing of that path or name.
        DataError: what is there cannot be used; all problems of a kind in one message.
        RecipeError: columns, groups or splits that are not there; options that cannot apply.
        UnknownName: a source, or a set of a benchmark, of no known name.
    """
    name, found = _find(data, base, whole)
    warnings, notes = [*found.warnings], [*found.notes]
    splits = settle_splits(found, data, warnings, pinned=pinned, whole=whole)
    if not any(splits.values()):
        raise DataError(
            f"{name} holds no labelled pictures.", "Give a folder of class folders, or a list."
        )
    catalog = Catalog(name, class_order(_labels(splits)), splits, notes, warnings)
    if len(catalog.classes) < 2 and not whole:
        raise DataError(
            f"{name} has one class only ({catalog.classes[0]}): nothing to tell apart.",
            "Give data with two classes or more, in a folder or column of their own each.",
        )
    if data.classes not in (None, len(catalog.classes)) and not whole:
        raise DataError(
            f"{name} has {len(catalog.classes)} classes, but data.classes is {data.classes}.",
            "Correct data.classes or leave it out, if these are the data that were meant.",
        )
    _doubt(catalog)
    return catalog


def expected_counts(data: DataOptions) -> dict[str, int] | None:
    """Pictures by split that a benchmark's set has as published, for data that are not there.

    None where `data.source` is no benchmark, no set is named, or the options choose otherwise.

    Raises:
        UnknownName: a source or a set of no known name.
    """
    kind = None if data.source == "auto" else registry.resolve("sources", data.source)
    if not (isinstance(kind, type) and issubclass(kind, Benchmark)):
        return None
    task = kind.asked(data)
    counts = None if task is None else kind.counts(task, data)
    if counts is None or not (data.include_val or data.folds):
        return counts
    pool = counts["train"] + counts.get("val", 0)
    val = 0 if data.folds is None else (pool - data.fold + data.folds - 1) // data.folds
    expected = {"train": pool - val, "val": val, "test": counts["test"]}
    return {split: count for split, count in expected.items() if count}


def _labels(splits: dict[str, list[Record]]) -> list[str]:
    return [record.label for records in splits.values() for record in records]


def _doubt(catalog: Catalog) -> None:
    """Names what is allowed but hardly meant: twins and groups across splits, untrained classes."""
    same, unread = identical(catalog.splits)
    twins = [" = ".join(names) for names in same]
    if twins:
        catalog.warnings.append(
            f"{some(twins, 'picture', shown=10)} in two splits with the same content: "
            f"figures on them are too good"
        )
    if unread:
        catalog.notes.append(
            f"{unread:,} pictures as long as one of another split were not compared with it: "
            f"too many to read"
        )
    groups = leaking_groups(catalog.splits)
    if groups:
        catalog.warnings.append(f"{some(groups, 'group', shown=10)} with members in two splits")
    if "train" in catalog.splits:
        trained = {r.label for r in catalog.splits["train"]}
        untrained = [c for c in catalog.classes if c not in trained]
        if untrained:
            catalog.warnings.append(
                f"{some(untrained, 'class', 'classes', shown=10)} without training pictures"
            )


def _find(data: DataOptions, base: Path, whole: bool) -> tuple[str, Found]:
    """What messages call the data, and what is there."""
    path = base / os.path.expanduser(data.path)
    try:
        source, place = _place(data, path, whole)
        found = _reader(source, place, data, whole).find()
    except OSError as error:
        raise DataError(
            f"{error.filename or path} cannot be read: {error.strerror or error}."
        ) from error
    if found.name is None and isinstance(place, str):
        return place.replace("/", "-"), found
    resolved = path.resolve()
    return found.name or (resolved.stem if path.is_file() else resolved.name), found


def _reader(source: str, place: Path | str, data: DataOptions, whole: bool) -> Source:
    kind = registry.resolve("sources", source)
    if not issubclass(kind, Benchmark):
        subset = None if whole else data.subset
        refuse_options(f"The source {source} has no sets to choose from", subset=subset)
    elif not whole:
        kind.require_options(data)
    reader: Source = kind(data, place)
    return reader


def _place(data: DataOptions, path: Path, whole: bool) -> tuple[str, Path | str]:
    """The source, and the path or name that it reads.

    For evaluation (`whole`) a benchmark's source reads only what has its layout: the run's recipe
    names it, but the data are others.
    """
    kind = None if data.source == "auto" else registry.resolve("sources", data.source)
    is_benchmark = kind is not None and issubclass(kind, Benchmark)
    if path.exists():
        if data.source in _NEED_NO_PATH and data.path == data.source:
            return data.source, data.path
        by_look = kind is None or (whole and is_benchmark and not kind.fits(data, path))
        return _kind(path) if by_look else data.source, path
    sources = [name for name in registry.names("sources") if name in _NEED_NO_PATH]
    if data.path in sources and data.source in ("auto", data.path):
        return data.path, data.path
    match = _HUB_NAME.fullmatch(data.path)
    on_hub = data.source in ("auto", "hf") or (is_benchmark and data.path.startswith("hf:"))
    if is_benchmark and not on_hub:
        return data.source, path  # which says what is missing
    inside = "/" in data.path and path.parent.is_dir()
    if match is None or not on_hub or inside or _close(data.path, path, sources):
        raise _not_found(data.path, path, sources)
    return "hf" if data.source == "auto" else data.source, match["name"]


def _kind(path: Path) -> str:
    """The name of the source for what lies at a path."""
    if path.is_dir():
        looks: tuple[tuple[str, Callable[[Path], object]], ...] = (
            ("vtab", Vtab.looks_like),
            ("fewshot", FewShot.looks_like),
            ("fgvc", Fgvc.looks_like),  # before list, which would look for the pictures elsewhere
            ("hf", holds_tables),
            ("list", split_lists),
            ("webdataset", holds_shards),
        )
        return next((name for name, look in looks if look(path)), "folder")
    endings = {**dict.fromkeys(ENDINGS, "list"), **dict.fromkeys(FILES, "hf"), ".tar": "webdataset"}
    if path.suffix.lower() in endings:
        return endings[path.suffix.lower()]
    if is_image_name(path.name):
        raise DataError(f"{path} is a single picture.", "Give the folder of its class folders.")
    raise DataError(
        f"{path} is no data set: an ending {path.suffix!r} is not known.",
        f"Give a folder of class folders, a list or table ({' '.join(endings)}); other archives "
        f"have to be unpacked first.",
    )


def _siblings(asked: str, path: Path) -> list[str]:
    """What lies beside the path that was asked for, written in the same manner."""
    if not path.parent.is_dir():
        return []
    return [
        str(Path(asked).with_name(name))
        for name in os.listdir(path.parent)
        if not name.startswith(".")
    ]


def _close(asked: str, path: Path, sources: list[str]) -> bool:
    """Whether the name looks like a slip of the pen rather than one of the hub."""
    known = [*_siblings(asked, path), *sources]
    return not asked.startswith("hf:") and did_you_mean(asked, known).startswith("Did you")


def _not_found(asked: str, path: Path, sources: list[str]) -> NotFound:
    siblings = _siblings(asked, path)
    known = [*sources, *siblings] if len(siblings) <= 20 else sources
    hint = did_you_mean(asked, known)
    if not path.parent.is_dir():
        hint = f"There is no folder {path.parent} either. {hint}"
    return NotFound(f"data.path: {asked} does not exist ({path}).", hint)
