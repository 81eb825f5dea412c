"""Source `fewshot`: five sets at 1 to 16 shots, with the lists of NOAH (Zhang et al. 2022)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from gistcli.data.base import DataOptions, Found, Record
from gistcli.data.benchmark import Benchmark, Task
from gistcli.data.listed import Listed, read_lines
from gistcli.errors import NotFound

_LIST = re.compile(r"train_meta\.list\.num_shot_(\d+)\.seed_(\d+)")

TASKS = (
    Task("food101", 101, {"test": 30_300}, (), "Food-101, Bossard et al. 2014", None, ("images",)),
    Task(
        "stanford_cars",
        196,
        {"test": 8_041},
        ("cars", "standford_cars"),
        "Stanford Cars, Krause et al. 2013",
    ),
    Task(
        "oxford_flowers",
        102,
        {"test": 2_463},
        ("flowers", "flowers102", "oxford_flowers102"),
        "Oxford Flowers, Nilsback and Zisserman 2008",
        None,
        ("images", "jpg"),
    ),
    Task(
        "fgvc_aircraft",
        100,
        {"test": 3_333},
        ("aircraft",),
        "FGVC-Aircraft, Maji et al. 2013",
        None,
        ("images",),
    ),
    Task(
        "oxford_pets",
        37,
        {"test": 3_669},
        ("pets", "oxford_pet", "oxford_iiit_pet"),
        "Oxford-IIIT Pet, Parkhi et al. 2012",
        None,
        ("images",),
    ),
)


class FewShot(Benchmark):
    """Food, Cars, Flowers, Aircraft and Pets with few training pictures a class.

    `data.shots` and `data.shot_seed` choose the list of training pictures
    (`annotations/train_meta.list.num_shot_K.seed_S`); `val_meta.list` and `test_meta.list` are the
    same for all. With `include_val` or `folds` val_meta.list is left out: the shots are all that
    there is to train on.
    """

    title = "few-shot"
    folder = "few-shot"
    published = (
        "Lists: the repository ZhangYuanhan-AI/NOAH, data/few-shot; how to get the pictures: "
        "DATASETS.md of the repository KaiyangZhou/CoOp."
    )
    tasks = TASKS
    required: ClassVar[Mapping[str, str]] = {
        "shots": "Choose 1, 2, 4, 8 or 16 training pictures a class, such as "
        "--set data.shots=16; data.shot_seed is 0, 1 or 2."
    }

    @classmethod
    def holds(cls, folder: Path) -> bool:
        annotations = folder / "annotations"
        return annotations.is_dir() and any(
            (annotations / name).is_file() for name in ("val_meta.list", "test_meta.list")
        )

    @classmethod
    def layout(cls, name: str) -> list[str]:
        pictures = cls.named(name).pictures[0]
        return [
            "annotations/",
            "  train_meta.list.num_shot_1.seed_0 ... num_shot_16.seed_2   lines: PATH ID",
            "  val_meta.list  test_meta.list",
            f"{pictures}/PATH ..." if pictures else "PATH ...",
        ]

    @classmethod
    def counts(cls, task: Task, data: DataOptions) -> dict[str, int] | None:
        return {"train": task.classes * (data.shots or 0), **task.counts}

    def find(self) -> Found:
        """The set's pictures with the training list that is asked for; without shots there is none.

        Raises:
            NotFound: the set or the list is not there.
            DataError: lines or files that cannot be used; all problems in one message.
        """
        home = self.home()
        names = {"val": "val_meta.list", "test": "test_meta.list"}
        if self.data.shots is not None:
            train = f"train_meta.list.num_shot_{self.data.shots}.seed_{self.data.shot_seed}"
            names = {"train": train, **names}
        notes = []
        if self.data.include_val or self.data.folds is not None:
            del names["val"]
            notes.append("val_meta.list is left out: the shots are all that is trained on")
        self._refuse_missing(home / "annotations", names)
        listed = Listed(home)
        splits: dict[str, list[Record]] = {}
        root: Path | None = None
        for split, name in names.items():
            rows = read_lines(home / "annotations" / name, listed)
            root = root or home / self._root(home, [file for _, file, _ in rows[:10]])
            records = [listed.record(file, label, root, where) for where, file, label in rows]
            splits[split] = listed.distinct(split, records)
        listed.apart(splits)
        listed.refuse(home)
        found = Found(splits, notes, listed.warnings, self.name)
        found.warnings += self.told(found)
        return found

    def _refuse_missing(self, folder: Path, names: dict[str, str]) -> None:
        missing = [name for name in names.values() if not (folder / name).is_file()]
        if not missing:
            return
        if missing != [names.get("train")]:
            raise self.missing(self.data, folder / missing[0])
        there = [_LIST.fullmatch(p.name) for p in folder.iterdir()]
        pairs = sorted((int(m[1]), int(m[2])) for m in there if m)
        shots = {k: [s for j, s in pairs if j == k] for k, _ in pairs}
        have = "; ".join(f"{k} (seeds {', '.join(map(str, s))})" for k, s in shots.items())
        raise NotFound(
            f"{self.name} has no list of {self.data.shots} shots with seed {self.data.shot_seed} "
            f"in {folder}.",
            f"There are lists of {have} shots." if have else f"There is none; {self.published}",
        )

    def _root(self, home: Path, files: list[str]) -> str:
        """The folder from which the paths start."""
        first = self.task.pictures if self.task else ("images",)
        for folder in (*first, "images", ""):
            if any((home / folder / file).is_file() for file in files):
                return folder
        return first[0]
