"""Source `fgvc`: five fine-grained sets with the splits of VPT (Jia et al. 2022)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gistcli.data.base import SPLITS, Found, Record
from gistcli.data.benchmark import Benchmark, Task
from gistcli.data.listed import Listed
from gistcli.data.tables import as_label, readable
from gistcli.errors import DataError

_ROOTS = ("images", "Images", "")


def _counts(train: int, val: int, test: int) -> dict[str, int]:
    return dict(zip(SPLITS, (train, val, test), strict=True))


TASKS = (
    Task(
        "cub",
        200,
        _counts(5_394, 600, 5_794),
        ("cub200", "cub_200_2011", "caltech_ucsd_birds"),
        "Caltech-UCSD Birds 200-2011, Wah et al. 2011",
        pictures=("images",),
    ),
    Task(
        "nabirds",
        555,
        _counts(21_536, 2_393, 24_633),
        ("nabird",),
        "NABirds, Van Horn et al. 2015",
        pictures=("images",),
    ),
    Task(
        "flowers",
        102,
        _counts(1_020, 1_020, 6_149),
        ("oxford_flowers", "oxford_flower", "oxford_flowers102", "flowers102"),
        "Oxford Flowers, Nilsback and Zisserman 2008",
    ),
    Task(
        "dogs",
        120,
        _counts(10_800, 1_200, 8_580),
        ("stanford_dogs",),
        "Stanford Dogs, Khosla et al. 2011",
        pictures=("Images",),
    ),
    Task(
        "cars",
        196,
        _counts(7_329, 815, 8_041),
        ("stanford_cars",),
        "Stanford Cars, Krause et al. 2013",
    ),
)


class Fgvc(Benchmark):
    """CUB, NABirds, Flowers, Dogs and Cars, divided by `train.json`, `val.json` and `test.json`.

    Each file is one object {path: class id}. Ids are numbers with gaps or texts; class numbers come
    from the union of the three, since a split may lack some (NABirds' val lacks two). Paths start
    from `images/` or `Images/` of the set's folder, or from the folder itself.
    """

    title = "FGVC"
    folder = "fgvc"
    published = (
        "Splits: the repositories KMnP/vpt and savadikarc/gift, and the Hugging Face data set "
        "XiN0919/FGVC."
    )
    tasks = TASKS

    @classmethod
    def holds(cls, folder: Path) -> bool:
        return (folder / "train.json").is_file() and (folder / "test.json").is_file()

    @classmethod
    def unmistakable(cls, folder: Path) -> bool:
        """Whether the paths of train.json start from another folder than its own."""
        try:
            files = [file for file, _ in _read(folder / "train.json")[:10]]
        except (DataError, OSError):
            return False
        below = any((folder / r / file).is_file() for r in _ROOTS if r for file in files)
        return below and cls.holds(folder) and not any((folder / f).is_file() for f in files)

    @classmethod
    def layout(cls, name: str) -> list[str]:
        pictures = cls.named(name).pictures[0]
        lists = "  ".join(f"{s}.json" for s in SPLITS)
        return [
            f'{lists}   each {{"PATH": ID, ...}}',
            f"{pictures}/PATH ..." if pictures else "PATH ...",
        ]

    def find(self) -> Found:
        """The set's pictures under the ids of the files.

        Raises:
            NotFound: the set is not there.
            DataError: files that are damaged or contradict one another, pictures that are missing
                or lie outside; all problems in one message.
        """
        home = self.home()
        tables = {
            split: _read(home / f"{split}.json")
            for split in SPLITS
            if (home / f"{split}.json").is_file()
        }
        root = home / self._root(home, tables["train"])
        listed = Listed(home)
        splits: dict[str, list[Record]] = {}
        for split, rows in tables.items():
            records = []
            for file, value in rows:
                label = self._label(value, f"{split}.json: {file}", listed)
                if label is not None:
                    records.append(listed.record(file, label, root, f"{split}.json"))
            splits[split] = listed.distinct(split, records)
        listed.apart(splits, strict=True)
        listed.refuse(home)
        found = Found(splits, warnings=listed.warnings, name=self.name)
        found.warnings += self.told(found)
        return found

    def _root(self, home: Path, rows: list[tuple[str, Any]]) -> str:
        """The folder from which the paths start: that of the set's publication, if it holds any."""
        first = self.task.pictures if self.task else ()
        for folder in (*first, *_ROOTS):
            if any((home / folder / file).is_file() for file, _ in rows[:10]):
                return folder
        return first[0] if first else ""

    @staticmethod
    def _label(value: Any, where: str, listed: Listed) -> str | None:
        try:
            label = as_label(value)
        except ValueError:
            label = None
        if label is None:
            listed.problem("without a class id", where)
        return label


def _read(path: Path) -> list[tuple[str, Any]]:
    """(path, id) of each entry, those that a reader of JSON would drop as repeated included."""
    with readable(path):
        rows = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=list)
    if not rows or not all(isinstance(row, tuple) for row in rows):
        raise DataError(f"{path} is no object {{path: class id}}.")
    return list(rows)
