"""Which files hold the tasks of which split."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from gistcli.data.base import some
from gistcli.data.episodes.reading import ENDINGS
from gistcli.data.splits import split_name
from gistcli.data.tables import readable
from gistcli.data.text.records import SHOWN, STEMS
from gistcli.errors import DataError, NotFound, RecipeError, did_you_mean

Files = dict[str, list[Path]]


def task_files(path: Path, splits: str | Mapping[str, str]) -> tuple[Files, list[str]]:
    """The files of each split (all of them `train` where nothing tells), and warnings.

    Args:
        path: a file, or a folder with task files, with folders of them called after the splits, or
            with one file a split (`train.jsonl`, `test.jsonl`).
        splits: auto, or split -> folder, file, or text file that lists names of tasks.

    Raises:
        NotFound: the path, or what `splits` names, is not there.
        DataError: no task files.
        RecipeError: two folders or files for one split.
    """
    if not path.exists():
        near = os.listdir(path.parent) if path.parent.is_dir() else []
        hint = did_you_mean(path.name, near) if len(near) < 30 else ""
        raise NotFound(f"data.path: {path} does not exist.", hint or "Give a folder of task files.")
    if isinstance(splits, Mapping):
        return _named(path, splits), []
    if path.is_file():
        return {"train": [path]}, []
    folders, warnings = _by_split([p for p in sorted(path.iterdir()) if p.is_dir()])
    if folders:
        loose = [p.name for p in _inside(path)]
        if loose:
            warnings.append(f"{some(loose, 'file', shown=SHOWN)} beside the splits: ignored")
        return {split: _required(folder) for split, folder in folders.items()}, warnings
    files, others = _by_split(_inside(path))
    if files:
        return {split: [file] for split, file in files.items()}, others
    return {"train": _required(path)}, []


def _by_split(places: Sequence[Path]) -> tuple[dict[str, Path], list[str]]:
    """What is called after a split, where one is for training or nothing is called otherwise."""
    named = [p for p in places if STEMS.get(p.stem.lower())]
    chosen: dict[str, Path] = {}
    for place in named:
        split = STEMS[place.stem.lower()]
        assert split is not None
        if split in chosen:
            raise RecipeError(
                f"{chosen[split]} and {place.name} are the same split.",
                f"Choose one: data.splits.{split}=NAME.",
            )
        chosen[split] = place
    others = [p.name for p in places if p not in named and not p.name.startswith(".")]
    if "train" not in chosen and others:
        return {}, []
    ignored = f"{some(others, 'entry', 'entries', shown=SHOWN)} beside the splits: ignored"
    return chosen, [ignored] if others and chosen else []


def _named(path: Path, splits: Mapping[str, str]) -> Files:
    """Split -> files, as the recipe says."""
    root = path if path.is_dir() else path.parent
    places = {split_name(s): root / os.path.expanduser(name) for s, name in splits.items()}
    missing = [str(place) for place in places.values() if not place.exists()]
    if missing:
        raise NotFound(
            f"{some(missing, 'place')} of data.splits not found.",
            did_you_mean(Path(missing[0]).name, [p.name for p in root.iterdir()]),
        )
    return {split: _place(place, root) for split, place in places.items()}


def _place(place: Path, root: Path) -> list[Path]:
    if place.is_dir():
        return _required(place)
    return _listed(place, root) if place.suffix.lower() == ".txt" else [place]


def _listed(place: Path, root: Path) -> list[Path]:
    """The files of the tasks that a text file lists, as S-NI's splits are given."""
    with readable(place):
        names = [line.strip() for line in place.read_text(encoding="utf-8-sig").split("\n")]
    known = {file.stem: file for file in _inside(root)}
    missing = [name for name in names if name and name not in known]
    if missing:
        raise DataError(
            f"{place} lists {some(missing, 'task', shown=SHOWN)} without a file in {root}.",
            "Add the files, or take the names out.",
        )
    if not any(names):
        raise DataError(f"{place} lists no task.", "Write names of task files, one a line.")
    return [known[name] for name in names if name]


def _inside(folder: Path) -> list[Path]:
    return [
        p
        for p in sorted(folder.iterdir())
        if p.is_file() and p.suffix.lower() in ENDINGS and not p.name.startswith(".")
    ]


def _required(folder: Path) -> list[Path]:
    found = _inside(folder)
    if not found:
        raise DataError(
            f"{folder} holds no task files ({' '.join(ENDINGS)}).",
            "Give one file a task: Super-NaturalInstructions JSON, or rows {prompt, completion} or "
            "{text, label}.",
        )
    return found
