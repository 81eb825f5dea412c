"""Source `hf`: a Hugging Face data set by name, or parquet, arrow and saved data sets on disk."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gistcli.data.base import DataOptions, Found, Record, some
from gistcli.data.splits import ALIASES, split_name
from gistcli.data.tables import as_label, find_columns
from gistcli.errors import DataError, NotFound, RecipeError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

FILES = (".parquet", ".arrow")
_PATIENCE = 2.0
"""Seconds that the hub has to answer before we go on without it."""


@dataclass(frozen=True)
class Cell:
    """An encoded picture in a row of a table."""

    table: Dataset
    row: int
    column: str
    nbytes: int

    def read(self) -> bytes:
        value = self.table[self.row][self.column]
        if isinstance(value, bytes):
            return value
        if value.get("bytes") is not None:
            content: bytes = value["bytes"]
            return content
        return Path(value["path"]).read_bytes()


class HubDataset:
    """A table with an image column and a column of classes.

    `place` is an existing file or folder (parquet, arrow, or what `save_to_disk` wrote), or a name
    on the hub (`beans`, `owner/name`). `data.splits` maps our splits to those of the data set, or,
    for files, to files. A split without any label (as public test sets are) is left out with a
    warning.
    """

    def __init__(self, data: DataOptions, place: Path | str) -> None:
        self.data = data
        self.place = place
        self.warnings: list[str] = []

    def find(self) -> Found:
        """Every row as a record; its name is `SPLIT/ROW` in the data set's own words.

        Raises:
            NotFound: neither on disk nor, as far as it can be reached, on the hub.
            DataError: damaged files, rows without image or label.
            RecipeError: columns or splits that are not there.
        """
        tables = self._tables()
        chosen = self._chosen(list(tables))
        splits = {split: self._records(name, tables[name]) for split, name in chosen.items()}
        return Found(
            {s: records for s, records in splits.items() if records}, warnings=self.warnings
        )

    def _tables(self) -> dict[str, Dataset]:
        import datasets

        with _quiet():
            if not isinstance(self.place, Path):
                loaded = _from_hub(self.place)
            else:
                try:
                    loaded = _from_disk(self.place, self.data.splits)
                except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
                    raise DataError(f"{self.place} cannot be read: {_short(error)}") from error
        return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}

    def _chosen(self, names: list[str]) -> dict[str, str]:
        """Our split -> the data set's."""
        if isinstance(self.data.splits, Mapping) and not _is_files(self.data.splits):
            asked = {split_name(s): name for s, name in self.data.splits.items()}
            for name in asked.values():
                if name not in names:
                    raise RecipeError(
                        f"{self.place} has no split {name!r}.", did_you_mean(name, names)
                    )
            return asked
        known = {ALIASES[n.lower()]: n for n in reversed(names) if n.lower() in ALIASES}
        ignored = [n for n in names if n not in known.values()]
        if not known:
            raise RecipeError(
                f"{self.place}: which of its splits is which? It has {', '.join(names)}.",
                "Say it: data.splits.train=NAME.",
            )
        if ignored:
            self.warnings.append(f"{some(ignored, 'split')} of {self.place} ignored")
        return known

    def _records(self, name: str, table: Dataset) -> list[Record]:
        import datasets

        columns = self._columns(table)
        image = columns["image"]
        if isinstance(table.features[image], datasets.Image):
            table = table.cast_column(image, datasets.Image(decode=False))
        sizes = _sizes(table, image)
        labels = self._labels(table, columns["label"], name)
        if labels is None:
            self.warnings.append(f"split {name} of {self.place} has no labels: left out")
            return []
        groups = list(map(str, table[columns["group"]])) if "group" in columns else None
        empty = [f"{name}/{row}" for row, size in enumerate(sizes) if size < 0]
        if empty:
            raise DataError(f"{self.place}: {some(empty, 'row')} without a picture.")
        return [
            Record(
                f"{name}/{row}",
                label,
                Cell(table, row, image, int(sizes[row])),
                groups[row] if groups else None,
            )
            for row, label in enumerate(labels)
        ]

    def _columns(self, table: Dataset) -> dict[str, str]:
        import datasets

        chosen = dict(self.data.columns or {})
        for role, kind in (("image", datasets.Image), ("label", datasets.ClassLabel)):
            typed = [c for c, feature in table.features.items() if isinstance(feature, kind)]
            if len(typed) == 1:
                chosen.setdefault(role, typed[0])
        columns = find_columns(table.column_names, chosen, self.data.group_by, str(self.place))
        columns.pop("split", None)
        return columns

    def _labels(self, table: Dataset, column: str, name: str) -> list[str] | None:
        import datasets

        feature = table.features[column]
        values = list(table[column])
        if isinstance(feature, datasets.ClassLabel):
            values = [None if v is None or v < 0 else feature.names[v] for v in values]
        try:
            labels = [as_label(value) for value in values]
        except ValueError as error:
            raise DataError(f"{self.place}, column {column}: {error}.") from None
        without = [f"{name}/{row}" for row, label in enumerate(labels) if label is None]
        if without and len(without) < len(labels):
            raise DataError(f"{self.place}: {some(without, 'row')} without a label.")
        return None if without else [label for label in labels if label is not None]


def _from_disk(path: Path, splits: str | Mapping[str, str]) -> Any:
    """A saved data set, arrow or parquet files, or a folder of them."""
    import datasets

    if is_saved(path):
        return datasets.load_from_disk(str(path))
    root = path if path.is_dir() else path.parent
    if isinstance(splits, Mapping) and _is_files(splits):
        files = {split_name(s): str(root / f) for s, f in splits.items()}
        kind = Path(next(iter(files.values()))).suffix
    elif path.is_dir():
        return datasets.load_dataset(str(path))
    else:
        files, kind = {"train": str(path)}, path.suffix
    return datasets.load_dataset("arrow" if kind == ".arrow" else "parquet", data_files=files)


def _is_files(splits: Mapping[str, str]) -> bool:
    return all(name.endswith(FILES) for name in splits.values())


def is_saved(folder: Path) -> bool:
    """Whether `datasets`' `save_to_disk` wrote this folder."""
    names = ("dataset_dict.json", "state.json")
    return folder.is_dir() and any((folder / name).is_file() for name in names)


def holds_tables(folder: Path) -> bool:
    """Whether a folder is one of parquet or arrow files, at most one folder down."""
    return is_saved(folder) or any(
        path.suffix in FILES for pattern in ("*", "*/*") for path in folder.glob(pattern)
    )


def _from_hub(name: str) -> Any:
    """A data set of the hub, or its copy in the local cache where the hub does not answer."""
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    why = ""
    try:
        # one short question first: the loader itself would retry for half a minute
        HfApi().dataset_info(name, timeout=_PATIENCE)
    except HfHubHTTPError as error:
        raise NotFound(
            f"{name!r} is neither a path nor a data set that the hub shows: {_short(error)}"
        ) from None
    except (OfflineModeIsEnabled, OSError, RuntimeError) as error:
        why = _short(error)
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):
            raise
        why = _short(error)
    try:
        with _offline(bool(why)):
            return datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if not why:
            raise DataError(f"{name} cannot be loaded: {_short(error)}") from error
        raise NotFound(
            f"{name!r} is no path here, and as a data set of the hub it can be neither fetched nor "
            f"found in the cache ({why}).",
            f"Fetch it where there is a network: hf download {name} --repo-type dataset "
            f"--local-dir DIR, and give DIR.",
        ) from None


@contextmanager
def _offline(active: bool) -> Iterator[None]:
    """The cache only, without asking the network."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or active
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no chatter of the library: our reporter talks."""
    import datasets

    bars = datasets.are_progress_bars_disabled()
    level = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


def _sizes(table: Dataset, column: str) -> np.ndarray:
    """Length of every picture without reading it; 0 where only its path is known, -1 for none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    cells = table.with_format("arrow")[:][column]
    if pa.types.is_struct(cells.type):
        nothing = pc.and_(
            pc.is_null(pc.struct_field(cells, "bytes")), pc.is_null(pc.struct_field(cells, "path"))
        )
        lengths = pc.fill_null(pc.binary_length(pc.struct_field(cells, "bytes")), 0)
        lengths = pc.if_else(nothing, -1, lengths)
    elif pa.types.is_binary(cells.type) or pa.types.is_large_binary(cells.type):
        lengths = pc.fill_null(pc.binary_length(cells), -1)
    else:
        raise RecipeError(
            f"Column {column!r} holds {cells.type}, not pictures.", "Say data.columns.image=NAME."
        )
    return lengths.to_numpy()


def _short(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
