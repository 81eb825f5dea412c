"""What the published benchmarks share: sets by name, where each lies, what is said if it is not."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from gistcli.data.base import SPLITS, DataOptions, Found, refuse_options
from gistcli.data.images import visible_folders
from gistcli.errors import NotFound, RecipeError, UnknownName, did_you_mean


@dataclass(frozen=True)
class Task:
    """One set of a benchmark.

    Attributes:
        name: as tables have it, and usually its folder.
        classes: how many.
        counts: pictures by split, where they are the same for everybody.
        spellings: other names; case, blanks, `-` and `_` do not matter.
        origin: the publication of the pictures.
        group: of the tasks whose mean a table shows.
        pictures: the folders inside the set's that paths may start from.
    """

    name: str
    classes: int
    counts: Mapping[str, int]
    spellings: tuple[str, ...]
    origin: str
    group: str | None = None
    pictures: tuple[str, ...] = ("",)

    def is_called(self, name: str) -> bool:
        """Whether a name means this set."""
        return plain(name) in {plain(n) for n in (self.name, *self.spellings)}


class Benchmark(ABC):
    """A source of several sets: `data.subset`, or the name of the folder, says which.

    `place` is the folder of all sets or that of one.
    """

    title: ClassVar[str]
    folder: ClassVar[str]
    published: ClassVar[str]
    tasks: ClassVar[tuple[Task, ...]]
    required: ClassVar[Mapping[str, str]] = {}
    fixed: ClassVar[bool] = True
    """Whether the splits are those of the publication, whatever the recipe says of splits."""

    def __init__(self, data: DataOptions, place: Path | str) -> None:
        if self.fixed:
            refuse_options(
                f"The sets of {self.title} have fixed splits and neither groups nor columns",
                splits=None if data.splits == "auto" else data.splits,
                group_by=data.group_by,
                columns=data.columns,
            )
        self.data = data
        self.place = place
        self.task = self.asked(data)

    @abstractmethod
    def find(self) -> Found:
        """All pictures of the set."""

    @classmethod
    @abstractmethod
    def holds(cls, folder: Path) -> bool:
        """Whether a folder looks like that of one set."""

    @classmethod
    def unmistakable(cls, folder: Path) -> bool:
        """Whether a folder can be nothing but that of one set."""
        return cls.holds(folder)

    @classmethod
    def looks_like(cls, place: Path) -> bool:
        """Whether a folder, or one in it, can be nothing but that of a set."""
        return cls.unmistakable(place) or any(map(cls.unmistakable, visible_folders(place)))

    @classmethod
    @abstractmethod
    def layout(cls, name: str) -> list[str]:
        """What the folder of a set has to look like, a line each."""

    @classmethod
    def counts(cls, task: Task, data: DataOptions) -> dict[str, int] | None:
        """Pictures by split as published; None where the options choose others."""
        return None if data.shots else dict(task.counts)

    @classmethod
    def require_options(cls, data: DataOptions) -> None:
        """Refuses to go on without an option that chooses what is trained on.

        Raises:
            RecipeError: it is missing.
        """
        for option, way_out in cls.required.items():
            if getattr(data, option) is None:
                raise RecipeError(f"data.{option} is missing: {cls.title} needs it.", way_out)

    @classmethod
    def asked(cls, data: DataOptions) -> Task | None:
        """The set that `data.subset` names.

        Raises:
            UnknownName: there is no such set.
        """
        return None if data.subset is None else cls.named(data.subset)

    @classmethod
    def named(cls, name: str) -> Task:
        """The set of a name.

        Raises:
            UnknownName: there is no such set.
        """
        for task in cls.tasks:
            if task.is_called(name):
                return task
        raise UnknownName(
            f"data.subset: {cls.title} has no set {name!r}.",
            did_you_mean(name, [task.name for task in cls.tasks]),
        )

    @classmethod
    def fits(cls, data: DataOptions, place: Path) -> bool:
        """Whether a set, that of `data.subset` if there is one, lies at a path."""
        return place.is_dir() and bool(cls._homes(place, cls.asked(data)))

    @classmethod
    def _homes(cls, place: Path, task: Task | None) -> dict[str, Path]:
        """Folders of sets by the set's name: those in `place`, or else `place` itself."""
        inside = {
            t.name: p
            for t in cls.tasks
            for p in visible_folders(place)
            if t.is_called(p.name) and task in (None, t) and cls.holds(p)
        }
        if inside or not cls.holds(place):
            return inside
        name = place.resolve().name
        own = next((t for t in cls.tasks if t.is_called(name)), None)
        if own and task and own is not task:
            return {}
        known = task or own
        return {known.name if known else name: place}

    def home(self) -> Path:
        """The folder of the set; `task` becomes what its name says.

        Raises:
            NotFound: it is not there; the message has the layout and where the set is published.
            RecipeError: several are there and none was asked for.
        """
        place = Path(self.place)
        homes = self._homes(place, self.task) if place.is_dir() else {}
        if not homes:
            raise self.missing(self.data, place)
        if len(homes) > 1:
            raise RecipeError(
                f"data.subset is missing: which set of {self.title}? {place} has "
                f"{', '.join(homes)}.",
                f"Say --set data.subset={next(iter(homes))}.",
            )
        ((name, folder),) = homes.items()
        self.task = self.task or next((t for t in self.tasks if t.name == name), None)
        return folder

    @property
    def name(self) -> str:
        """What messages call the data."""
        own = self.task.name if self.task else Path(self.place).resolve().name
        return f"{self.title} {own}"

    @classmethod
    def missing(cls, data: DataOptions, place: Path) -> NotFound:
        """One message: what is not there, the layout that is wanted, where it is published."""
        task = cls.asked(data)
        there = f"{place} has it not" if place.exists() else f"{place} does not exist"
        sets = [task] if task else list(cls.tasks)
        tree = [f"{cls.folder}/", *_indented([f"{sets[0].name}/"])]
        tree += _indented(cls.layout(sets[0].name), 2)
        if task is None:
            tree += _indented([f"... and so on: {', '.join(t.name for t in sets[1:])}"])
        origin = f"Pictures: {task.origin}. " if task else ""
        what = f"The set {task.name} of {cls.title}" if task else cls.title
        return NotFound(
            f"{what} was not found: {there}.",
            "\n".join(
                [
                    "Wanted:",
                    *_indented(tree),
                    f"{origin}{cls.published}",
                    f"Say where it lies: --data DIR, for {cls.folder}/ or the folder of the set.",
                ]
            ),
        )

    def told(self, found: Found) -> list[str]:
        """A warning where sizes or classes are not the published ones."""
        if self.task is None:
            return []
        wanted = self.counts(self.task, self.data) or {}
        if "val" in wanted and "val" not in found.splits:
            wanted["train"] += wanted.pop("val")
        have = {s: len(records) for s, records in found.splits.items()}
        differences = [
            f"{have[s]:,} {s} pictures, not {wanted[s]:,}"
            for s in SPLITS
            if s in wanted and s in have and have[s] != wanted[s]
        ]
        classes = len({r.label for records in found.splits.values() for r in records})
        if classes != self.task.classes:
            differences.append(f"{classes} classes, not {self.task.classes}")
        if not differences:
            return []
        return [f"{self.name} differs from the published set: {', '.join(differences)}"]


def _indented(lines: list[str], times: int = 1) -> list[str]:
    return [f"{'  ' * times}{line}" for line in lines]


def plain(name: str) -> str:
    """A name without what people write differently, and without the mirrors' `wds_vtab-`."""
    return re.sub(r"[-_. ]+", "", re.sub(r"^(wds[-_/])?vtab[-_]", "", name.strip().lower()))
