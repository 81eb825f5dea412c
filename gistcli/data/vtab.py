"""Source `vtab`: the 19 tasks of VTAB-1k (Zhai et al. 2019, arXiv 1910.04867)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from gistcli.data.base import DataOptions, Found, Record, class_order, refuse_options, some
from gistcli.data.benchmark import Benchmark, Task
from gistcli.data.fetch import holds_tables
from gistcli.data.hub import HubDataset
from gistcli.data.listed import Listed, read_lines
from gistcli.data.webdataset import WebDataset, holds_shards

LISTS = {"train": "train800", "val": "val200", "test": "test"}
UNION = "train800val200"
_SIZES = {"train": 800, "val": 200}
_ENDINGS = (".png", ".jpg", ".jpeg")


_GROUPS = {
    "natural": (
        ("cifar cifar100", 100, 10_000, "CIFAR-100, Krizhevsky 2009"),
        ("caltech101 caltech", 102, 6_084, "Caltech-101, Fei-Fei et al. 2004"),
        ("dtd textures", 47, 1_880, "Describable Textures, Cimpoi et al. 2014"),
        (
            "oxford_flowers102 oxford_flowers flowers102 flowers",
            *(102, 6_149, "Oxford Flowers, Nilsback and Zisserman 2008"),
        ),
        (
            "oxford_iiit_pet oxford_pet oxford_pets oxford_iiit_pets pets pet",
            *(37, 3_669, "Oxford-IIIT Pet, Parkhi et al. 2012"),
        ),
        ("svhn svhn_cropped", 10, 26_032, "Street View House Numbers, Netzer et al. 2011"),
        ("sun397 sun", 397, 21_750, "SUN397, Xiao et al. 2010"),
    ),
    "specialized": (
        (
            "patch_camelyon camelyon pcam",
            *(2, 32_768, "PatchCamelyon, Veeling et al. 2018"),
        ),
        ("eurosat eurosat_rgb", 10, 5_400, "EuroSAT (RGB), Helber et al. 2019"),
        ("resisc45 resisc", 45, 6_300, "NWPU-RESISC45, Cheng et al. 2017"),
        (
            "diabetic_retinopathy retinopathy",
            *(5, 42_670, "Diabetic Retinopathy Detection, Kaggle 2015 (btgraham-300)"),
        ),
    ),
    "structured": (
        ("clevr_count clevr_count_all", 8, 15_000, "CLEVR, Johnson et al. 2017"),
        (
            "clevr_dist clevr_distance clevr_closest_object_distance",
            *(6, 15_000, "CLEVR, Johnson et al. 2017"),
        ),
        ("dmlab", 6, 22_735, "DeepMind Lab, Beattie et al. 2016"),
        (
            "kitti kitti_dist kitti_distance kitti_closest_vehicle_distance",
            *(4, 711, "KITTI, Geiger et al. 2013"),
        ),
        (
            "dsprites_loc dsprites_location dsprites_position dsprites_label_x_position",
            *(16, 73_728, "dSprites, Matthey et al. 2017 (x position in 16 bins)"),
        ),
        (
            "dsprites_ori dsprites_orientation dsprites_label_orientation",
            *(16, 73_728, "dSprites, Matthey et al. 2017 (orientation in 16 bins)"),
        ),
        (
            "smallnorb_azi smallnorb_azimuth smallnorb_label_azimuth",
            *(18, 12_150, "small NORB, LeCun et al. 2004"),
        ),
        (
            "smallnorb_ele smallnorb_elevation smallnorb_label_elevation",
            *(9, 12_150, "small NORB, LeCun et al. 2004"),
        ),
    ),
}
"""Group -> tasks: name and other spellings, classes, test pictures, publication."""

TASKS = tuple(
    Task(
        name=names.split()[0],
        classes=classes,
        counts={**_SIZES, "test": test},
        spellings=tuple(names.split()[1:]),
        origin=origin,
        group=group,
    )
    for group, rows in _GROUPS.items()
    for names, classes, test, origin in rows
)


class Vtab(Benchmark):
    """The 19 tasks of VTAB-1k: 800 training and 200 validation pictures and the whole test set.

    A task's folder has lists of lines `PATH ID` (`train800.txt` and so on), or is a mirror in
    parquet files or WebDataset archives; `hf:OWNER/NAME` is one on the hub. Ids are numbers.
    """

    title = "VTAB-1k"
    folder = "vtab-1k"
    published = (
        "Lists: google-research/task_adaptation makes them with TensorFlow Datasets, "
        "get_vtab1k.py of the repository ZhangYuanhan-AI/NOAH writes this layout from it; a "
        "finished folder (as JPEG) is the Hugging Face data set XiN0919/VTAB-1k."
    )
    tasks = TASKS
    fixed = False  # a mirror may name its splits and columns otherwise

    def __init__(self, data: DataOptions, place: Path | str) -> None:
        refuse_options("The tasks of VTAB-1k have no groups", group_by=data.group_by)
        super().__init__(data, place)

    @classmethod
    def holds(cls, folder: Path) -> bool:
        return cls.unmistakable(folder) or holds_tables(folder) or holds_shards(folder)

    @classmethod
    def unmistakable(cls, folder: Path) -> bool:
        return any((folder / f"{name}.txt").is_file() for name in (LISTS["train"], UNION))

    @classmethod
    def layout(cls, name: str) -> list[str]:
        lists = "  ".join(f"{n}.txt" for n in (*LISTS.values(), UNION))
        return [f"{lists}   lines like: images/test/000000.png 7", "images/test/000000.png ..."]

    def find(self) -> Found:
        """The task's pictures; a mirror of the full splits is cut to a thousand.

        Raises:
            NotFound: the task or one of its lists is not there.
            DataError: lines, files or archives that cannot be used.
        """
        if isinstance(self.place, str):
            found = self._thousand(HubDataset(self.data, self.place).find())
        else:
            home = self.home()
            if self.unmistakable(home):
                found = self._lists(home)
            else:
                mirror = HubDataset if holds_tables(home) else WebDataset
                found = self._thousand(mirror(self.data, home).find())
        found.name = self.name
        found.notes += self._notes(found)
        found.warnings += self.told(found)
        return found

    def _lists(self, home: Path) -> Found:
        refuse_options(
            "The lists of VTAB-1k have fixed splits and no columns",
            columns=self.data.columns,
            splits=None if self.data.splits == "auto" else self.data.splits,
        )
        lists = dict(LISTS)
        if self.data.include_val and not (home / f"{lists['train']}.txt").is_file():
            lists = {"train": UNION, "test": LISTS["test"]}
        missing = [f"{n}.txt" for n in lists.values() if not (home / f"{n}.txt").is_file()]
        if missing:
            raise self.missing(self.data, home / missing[0])
        listed = Listed(home)
        splits: dict[str, list[Record]] = {}
        for split, name in lists.items():
            rows = read_lines(home / f"{name}.txt", listed)
            records = [
                listed.record(file, label, home, where, endings=_ENDINGS)
                for where, file, label in rows
            ]
            splits[split] = listed.distinct(split, records)
        listed.apart(splits)
        listed.refuse(home)
        warnings = [*listed.warnings, *_union_differs(home / f"{UNION}.txt", splits)]
        return Found(splits, warnings=warnings)

    def _thousand(self, found: Found) -> Found:
        """800 and 200 of a mirror's full splits, by its order."""
        train, val = found.splits.get("train", []), found.splits.get("val", [])
        if len(train) <= _SIZES["train"] and len(val) <= _SIZES["val"]:
            return found
        chosen, rest = train[: _SIZES["train"]], train[_SIZES["train"] :]
        held, whence = (val, "val") if val else (rest, "those after them")
        splits = {**found.splits, "train": chosen, "val": held[: _SIZES["val"]]}
        warning = (
            f"{self.place} holds full splits ({len(train):,} train, {len(val):,} val): taken are "
            f"the first {len(chosen)} of train and {len(splits['val'])} of {whence}. These are not "
            f"the published thousand; figures cannot be compared with published ones."
        )
        return Found(splits, found.notes, [*found.warnings, warning])

    def _notes(self, found: Found) -> list[str]:
        first = next((records[0] for records in found.splits.values() if records), None)
        is_cifar = self.task is not None and self.task.name == "cifar"
        if not is_cifar or first is None or first.read()[:3] != b"\xff\xd8\xff":
            return []
        return [
            "CIFAR-100 comes as JPEG here, which costs accuracy on pictures so small: about 70 % "
            "where the original pixels (PNG) give about 80 % (visinf/adapter_plus, issue 3)"
        ]


def _union_differs(path: Path, splits: Mapping[str, list[Record]]) -> list[str]:
    """How train800val200.txt differs from the two lists, if it is there and does.

    Its pictures may be copies under other names; then only their classes can be compared.
    """
    if not path.is_file() or "val" not in splits:
        return []
    listed = Listed(path.parent)
    rows = [(file, label) for _, file, label in read_lines(path, listed)]
    both = [(r.name, r.label) for s in ("train", "val") for r in splits[s]]
    bad = sum(map(len, listed.problems.values()))
    told = [f"{bad} damaged lines"] if bad else []
    if {file for file, _ in rows} & {name for name, _ in both}:
        wanted, found = {name for name, _ in both}, {file for file, _ in rows}
        for names, how in ((wanted - found, "missing"), (found - wanted, "too many")):
            told += [f"{some(sorted(names), 'picture', shown=5)} {how}"] if names else []
    else:
        ids, own = (Counter(label for _, label in part) for part in (both, rows))
        other = [f"{c}: {own[c]}, not {ids[c]}" for c in class_order(ids | own) if own[c] != ids[c]]
        told += [f"other counts in {some(other, 'class', 'classes', shown=5)}"] if other else []
    union = f"{path.name} is not the union of {LISTS['train']}.txt and {LISTS['val']}.txt"
    return [f"{union}: {'; '.join(told)}"] if told else []
