"""What the data layer is about: how pixels are prepared, what was found, and in which split."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from gistcli.atomic import write_bytes
from gistcli.errors import DataError, RecipeError, WeightsError, did_you_mean

SPLITS = ("train", "val", "test")
_INTERPOLATIONS = ("bicubic", "bilinear", "box", "hamming", "lanczos", "nearest")
_CROP_MODES = ("center", "squash", "border")
_SHOWN = 50


class DataOptions(Protocol):
    """The options of `recipe.DataSection` that this layer reads."""

    @property
    def path(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def subset(self) -> str | None: ...
    @property
    def classes(self) -> int | None: ...
    @property
    def splits(self) -> str | Mapping[str, str]: ...
    @property
    def val_fraction(self) -> float: ...
    @property
    def test_fraction(self) -> float: ...
    @property
    def split_seed(self) -> int: ...
    @property
    def include_val(self) -> bool: ...
    @property
    def folds(self) -> int | None: ...
    @property
    def fold(self) -> int: ...
    @property
    def group_by(self) -> str | None: ...
    @property
    def shots(self) -> int | None: ...
    @property
    def shot_seed(self) -> int: ...
    @property
    def columns(self) -> Mapping[Any, str] | None: ...


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes model input: timm's data configuration, in one immutable value.

    `size` is (height, width) in pixels; `mean` and `std` are per channel for pixels in [0, 1], and
    their length says how many channels the model reads (1: the picture is made grey).
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    @property
    def channels(self) -> int:
        """3 (RGB) or 1 (grey)."""
        return len(self.mean)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], where: str = "The model's configuration"
    ) -> Preprocess:
        """From timm's keys: input_size (C, H, W), mean, std, interpolation, crop_pct, crop_mode.

        One mean for three channels, or three for one, is spread or averaged as it must be.

        Raises:
            WeightsError: a value is missing or makes no sense; `where` is what the message names.
        """
        try:
            channels, height, width = (int(n) for n in config["input_size"])
            found = cls(
                size=(height, width),
                mean=_per_channel(config["mean"], channels),
                std=_per_channel(config["std"], channels),
                interpolation=str(config.get("interpolation") or "bicubic"),
                crop_pct=float(config.get("crop_pct") or 0.875),
                crop_mode=str(config.get("crop_mode") or "center"),
            )
            wrong = found._nonsense()
        except KeyError as error:
            wrong = f"has no {error.args[0]}"
        except (TypeError, ValueError, ZeroDivisionError) as error:
            wrong = f"cannot be read ({error})"
        if wrong:
            raise WeightsError(
                f"{where}: the preprocessing {wrong}.",
                "Copy the file again, or write it again with the program that made it.",
            )
        return found

    def _nonsense(self) -> str:
        """What no picture could be prepared with; empty where all is well."""
        if min(self.size) < 1 or self.channels not in (1, 3):
            return f"has input_size {[self.channels, *self.size]}, wanted [1 or 3, height, width]"
        if min(self.std) <= 0 or self.crop_pct <= 0:
            return "has a std or crop_pct that is not positive"
        if self.interpolation not in _INTERPOLATIONS:
            return f"has the interpolation {self.interpolation!r}"
        if self.crop_mode not in _CROP_MODES:
            return f"has the crop_mode {self.crop_mode!r}"
        return ""

    def to_config(self) -> dict[str, Any]:
        """The inverse of `from_config`; plain lists, so that it is the same after JSON."""
        return {
            "input_size": [self.channels, *self.size],
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
        }

    def resized(self, size: tuple[int, int], crop_pct: float | None = None) -> Preprocess:
        """The same preparation at another (height, width)."""
        return replace(self, size=size, crop_pct=self.crop_pct if crop_pct is None else crop_pct)

    def rgb(self) -> Preprocess:
        """The same preparation for three channels, to show what a model of grey pictures sees."""
        times = 3 // self.channels
        return replace(self, mean=self.mean * times, std=self.std * times)


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    numbers = tuple(float(v) for v in values)
    if len(numbers) == channels:
        return numbers
    return (sum(numbers) / len(numbers),) * channels


class Blob(Protocol):
    """An encoded picture that is not a file of its own, such as a row of a parquet file."""

    @property
    def nbytes(self) -> int:
        """Its length, known without reading it."""

    def read(self) -> bytes:
        """The encoded picture."""


@dataclass(frozen=True)
class Record:
    """One labelled picture, not yet decoded.

    `name` is its path relative to the data (or the number of its row): unique within a split and
    the same after the data were moved. `size` is the length of a file in bytes where whoever made
    the record has looked it up already.
    """

    name: str
    label: str
    source: Path | bytes | Blob
    group: str | None = None
    size: int | None = field(default=None, compare=False)

    def read(self) -> bytes:
        """The encoded bytes."""
        if isinstance(self.source, bytes):
            return self.source
        return self.source.read_bytes() if isinstance(self.source, Path) else self.source.read()

    def nbytes(self) -> int:
        """The length of the encoded bytes; -1 where the file cannot be reached."""
        if self.size is not None:
            return self.size
        if isinstance(self.source, bytes):
            return len(self.source)
        if not isinstance(self.source, Path):
            return self.source.nbytes
        try:
            return self.source.stat().st_size
        except OSError:
            return -1


@dataclass
class Found:
    """What a source holds, before anything is divided: records by split.

    The keys are among train, val and test; a source that knows no splits puts all in `train`.
    `name` is what messages call the data, where the path's last part does not say it.
    """

    splits: dict[str, list[Record]]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    name: str | None = None


class Source(Protocol):
    """A kind of data: built from the options and a place, asked once what it holds."""

    def __init__(self, data: DataOptions, place: Path | str) -> None: ...

    def find(self) -> Found:
        """Everything that is there; nothing is decoded.

        Raises:
            DataError: what was found cannot be used; all problems in one message.
        """


@dataclass
class Catalog:
    """Which pictures there are, of which class, in which split; nothing is decoded yet.

    Class ids are positions in `classes`, the sorted union over all splits, so that a class which
    one split lacks does not shift the others.
    The splits of a finished catalog stay as they are: fingerprints are computed once.
    """

    name: str
    classes: list[str]
    splits: dict[str, list[Record]]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _fingerprints: dict[tuple[str, ...], str] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def counts(self) -> dict[str, int]:
        """Pictures by split."""
        return {split: len(records) for split, records in self.splits.items()}

    def table(self) -> tuple[list[str], list[list[object]]]:
        """Columns and rows of the class table: class, then its pictures in every split."""
        by_split = [Counter(r.label for r in records) for records in self.splits.values()]
        rows: list[list[object]] = [[c, *(count[c] for count in by_split)] for c in self.classes]
        return ["class", *self.splits], rows

    def labels(self, split: str) -> list[int]:
        """Class ids of a split, in order."""
        ids = {label: i for i, label in enumerate(self.classes)}
        return [ids[r.label] for r in self.splits[split]]

    def with_classes(self, classes: Sequence[str]) -> Catalog:
        """The same pictures under the class order of a trained model.

        Raises:
            DataError: a class here is not among `classes`.
        """
        unknown = sorted({*self.classes} - {*classes})
        if unknown:
            raise DataError(
                f"{self.name} has {some(unknown, 'class', 'classes')} that the model was not "
                f"trained on.",
                did_you_mean(unknown[0], classes),
            )
        return replace(self, classes=list(classes))

    def fingerprint(self, *splits: str) -> str:
        """SHA-256 over split, name, label and length of every picture, whatever their order.

        Args:
            splits: those that count; none means all.
        """
        chosen = tuple(sorted(splits or self.splits))
        if chosen not in self._fingerprints:
            self._fingerprints[chosen] = self._hash(chosen)
        return self._fingerprints[chosen]

    def _hash(self, splits: Sequence[str]) -> str:
        digest = hashlib.sha256()
        for split in splits:
            for record in sorted(self.splits[split], key=lambda r: r.name):
                line = (split, record.name, record.label, str(record.nbytes()))
                digest.update("\0".join(line).encode("utf-8", "surrogateescape") + b"\n")
        return digest.hexdigest()

    def write_splits(self, path: Path) -> None:
        """Write `splits.csv` (split, name, label, and group where there are any), atomically.

        Raises:
            StorageError: the disk is full or may not be written.
        """
        grouped = any(r.group is not None for records in self.splits.values() for r in records)
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["split", "name", "label", *(["group"] if grouped else [])])
        for split, records in self.splits.items():
            for r in records:
                writer.writerow([split, r.name, r.label, *([r.group or ""] if grouped else [])])
        write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def refuse_options(why: str, **given: object) -> None:
    """Refuses keys of the section that would be passed over: those with a value are named.

    Raises:
        RecipeError: at least one of them is set.
    """
    set_ones = [f"data.{key}" for key, value in given.items() if value]
    if set_ones:
        raise RecipeError(f"{why}: {', '.join(set_ones)} cannot apply.", "Leave it out.")


def class_order(labels: Iterable[str]) -> list[str]:
    """Distinct labels in the order of their ids: by number where all are numbers, else by text."""
    distinct = sorted(set(labels))
    if all(label.isascii() and label.isdecimal() for label in distinct):
        return sorted(distinct, key=int)
    return distinct


def some(names: Sequence[object], one: str, many: str = "", shown: int = _SHOWN) -> str:
    """ "3 files (a, b, c)": a count with the names, cut after `shown`."""
    listed = ", ".join(str(n) for n in names[:shown])
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)} {one if len(names) == 1 else many or one + 's'} ({listed}{rest})"
