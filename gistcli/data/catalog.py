"""`open_catalog`: from `data.path` to a catalog, whatever kind of data lies there."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gistcli import registry
from gistcli.data.base import SPLITS, Catalog, DataOptions, Found, Record, class_order, some
from gistcli.data.fetch import FILES, holds_tables
from gistcli.data.images import is_image_name
from gistcli.data.lists import split_lists
from gistcli.data.splits import divide, identical, leaking_groups, read_pinned, take_shots
from gistcli.data.tables import ENDINGS
from gistcli.errors import DataError, NotFound, did_you_mean

_NEED_A_PATH = ("folder", "list", "hf")
_HUB_NAME = re.compile(r"(hf:)?(?P<name>[A-Za-z0-9][\w.-]*(/[\w.-]+)?)")


def open_catalog(
    data: DataOptions, *, base: Path, pinned: Path | None = None, whole: bool = False
) -> Catalog:
    """Finds the pictures, their classes and their splits; nothing is decoded.

    An existing path wins over the name of a source, and that over a name on the hub (`hf:NAME`
    says that the hub is meant).

    Args:
        data: the recipe's section.
        base: what relative paths start from.
        pinned: a `splits.csv` whose splits must be reproduced; rules and shots are not applied.
        whole: divide nothing, for evaluation: splits as found, a folder without any is all `test`.

    Raises:
        NotFound: there is nothing of that path or name.
        DataError: what is there cannot be used; all problems of a kind in one message.
        RecipeError: columns, groups or splits that are not there.
    """
    name, found = _find(data, base)
    warnings, notes = [*found.warnings], [*found.notes]
    if pinned is not None:
        splits = read_pinned(pinned, found)
    elif whole:
        only_train = [s for s in SPLITS if found.splits.get(s)] == ["train"]
        splits = {"test": found.splits["train"]} if only_train else found.splits
        splits = {s: splits[s] for s in SPLITS if splits.get(s)}
    else:
        splits = divide(found, data)
        if data.shots is not None:
            splits["train"], short = take_shots(splits["train"], data.shots, data.shot_seed)
            if short:
                warnings.append(
                    f"{some(short, 'class', 'classes')} with fewer than {data.shots} "
                    f"training pictures: all of them are taken"
                )
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
    catalog.warnings += _doubts(catalog)
    return catalog


def _labels(splits: dict[str, list[Record]]) -> list[str]:
    return [record.label for records in splits.values() for record in records]


def _doubts(catalog: Catalog) -> list[str]:
    """What is allowed but hardly meant: twins and groups across splits, classes never trained."""
    doubts = []
    twins = [" = ".join(names) for names in identical(catalog.splits)]
    if twins:
        doubts.append(
            f"{some(twins, 'picture', shown=10)} in two splits with the same content: "
            f"figures on them are too good"
        )
    groups = leaking_groups(catalog.splits)
    if groups:
        doubts.append(f"{some(groups, 'group', shown=10)} with members in two splits")
    if "train" in catalog.splits:
        trained = {r.label for r in catalog.splits["train"]}
        untrained = [c for c in catalog.classes if c not in trained]
        if untrained:
            doubts.append(
                f"{some(untrained, 'class', 'classes', shown=10)} without training pictures"
            )
    return doubts


def _find(data: DataOptions, base: Path) -> tuple[str, Found]:
    path = base / os.path.expanduser(data.path)
    if path.exists():
        try:
            source = registry.resolve("sources", _kind(path))(data, path)
            return path.resolve().stem if path.is_file() else path.resolve().name, source.find()
        except OSError as error:
            raise DataError(
                f"{error.filename or path} cannot be read: {error.strerror or error}."
            ) from error
    sources = [name for name in registry.names("sources") if name not in _NEED_A_PATH]
    if data.path in sources:
        return data.path, registry.resolve("sources", data.path)(data, data.path).find()
    match = _HUB_NAME.fullmatch(data.path)
    inside = "/" in data.path and path.parent.is_dir()
    if match is None or inside or _close(data.path, path, sources):
        raise _not_found(data.path, path, sources)
    name = match["name"]
    return name.replace("/", "-"), registry.resolve("sources", "hf")(data, name).find()


def _kind(path: Path) -> str:
    """The name of the source for what lies at a path."""
    if path.is_dir():
        if holds_tables(path):
            return "hf"
        return "list" if split_lists(path) else "folder"
    if path.suffix.lower() in ENDINGS:
        return "list"
    if path.suffix.lower() in FILES:
        return "hf"
    if is_image_name(path.name):
        raise DataError(f"{path} is a single picture.", "Give the folder of its class folders.")
    raise DataError(
        f"{path} is no data set: an ending {path.suffix!r} is not known.",
        f"Give a folder of class folders, a list ({' '.join(ENDINGS)}), or {' '.join(FILES)}; "
        f"archives have to be unpacked first.",
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
