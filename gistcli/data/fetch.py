"""Loading tables with Hugging Face `datasets`: from disk, from the cache, from the hub."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistcli.data.splits import ALIASES, PAIRED, split_name
from gistcli.errors import DataError, NotFound, RecipeError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

FILES = (".parquet", ".arrow")
OWNERS = {
    "glue": "nyu-mll/glue",
    "super_glue": "aps/super_glue",
    "gsm8k": "openai/gsm8k",
    "ai2_arc": "allenai/ai2_arc",
    "openbookqa": "allenai/openbookqa",
    "winogrande": "allenai/winogrande",
    "wikitext": "Salesforce/wikitext",
}
"""Where data sets of several configurations lie that are mostly called without their owner."""
_SHARD = re.compile(r"(?P<split>.+?)(-\d{5}-of-\d{5})?")
_PATIENCE = 2.0
"""Seconds that the hub has to answer before we go on without it."""


def load_tables(place: Path | str, splits: str | Mapping[str, str]) -> dict[str, Dataset]:
    """Tables by the data set's own split names; one without splits is `train`.

    Args:
        place: an existing file or folder, or a name on the hub: OWNER/NAME, and behind it the
            configuration of a data set that has several (`nyu-mll/glue/sst2`).
        splits: the recipe's `data.splits`; it matters here where it names files.

    Raises:
        NotFound: neither in the cache nor, as far as it can be reached, on the hub.
        DataError: damaged files.
        RecipeError: a folder of several data sets.
    """
    return _tables(place, splits, streaming=False)


def stream_tables(
    place: Path | str, splits: str | Mapping[str, str]
) -> dict[str, Dataset | IterableDataset]:
    """As `load_tables`, for the first rows of something large: read, or fetched, as they are used.

    What is saved or in the cache is mapped into memory. Use `reading_tables` around the reading.
    """
    return _tables(place, splits, streaming=True)


def _tables(place: Path | str, splits: str | Mapping[str, str], *, streaming: bool) -> Any:
    if isinstance(place, Path):
        with reading_tables(place):
            loaded = _from_disk(place, splits, streaming)
    else:
        with _quiet():
            loaded = _from_hub(place, streaming)
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


@contextmanager
def reading_tables(place: Path | str) -> Iterator[None]:
    """Inside, what keeps rows from being read becomes a DataError that says where."""
    import datasets

    try:
        with _quiet():
            yield
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{place} cannot be read: {_short(error)}") from error
    except Exception as error:
        if not _is_of_network(error):
            raise
        raise DataError(f"{place} cannot be read: {_short(error)}", "Try again.") from error


def _from_disk(path: Path, splits: str | Mapping[str, str], streaming: bool) -> Any:
    """A saved data set, arrow or parquet files, or a folder of them."""
    import datasets

    if is_saved(path):
        return datasets.load_from_disk(str(path))
    root = path if path.is_dir() else path.parent
    if isinstance(splits, Mapping) and names_files(splits):
        chosen = {split_name(s): str(root / os.path.expanduser(f)) for s, f in splits.items()}
        files: Mapping[str, str | list[str]] = chosen
        kind = Path(next(iter(chosen.values()))).suffix
    elif path.is_dir():
        named = _named_shards(path)
        if named is None:
            return datasets.load_dataset(str(path), streaming=streaming)
        files, kind = named, ".parquet"
    else:
        files, kind = {"train": str(path)}, path.suffix
    name = "arrow" if kind == ".arrow" else "parquet"
    return datasets.load_dataset(name, data_files=files, streaming=streaming)


def _named_shards(folder: Path) -> dict[str, list[str]] | None:
    """Split -> its parquet files, where every file is called after a split.

    `datasets` goes by single words in the names, so that it takes `validation_matched` and
    `validation_mismatched` for one split.

    Raises:
        RecipeError: folders side by side that each hold a data set of their own.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(p for pattern in ("*", "*/*") for p in folder.glob(pattern)):
        if path.suffix in FILES:
            match = _SHARD.fullmatch(path.stem)
            found[match["split"] if match else path.stem].append(str(path))
    if not {*found} <= {*ALIASES, *PAIRED}:
        return None
    places = {Path(file).parent.name for files in found.values() for file in files}
    if any(len({Path(file).parent for file in files}) > 1 for files in found.values()):
        raise RecipeError(
            f"{folder} holds several data sets: {', '.join(sorted(places))}.",
            f"Name one of them: {folder / min(places)}.",
        )
    return dict(found)


def names_files(splits: str | Mapping[str, str]) -> bool:
    """Whether `data.splits` maps to files rather than to splits of a data set."""
    if isinstance(splits, str):
        return False
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


def hub_name(asked: str) -> str | None:
    """OWNER/NAME, with /CONFIGURATION behind it where one is named; None for what is no such name.

    `hf:` says that the hub is meant. Without it a name of three parts is a path, but for the data
    sets of `OWNERS`, which may also be called without their owner.
    """
    name = asked.removeprefix("hf:")
    first, *rest = parts = name.split("/")
    if not all(re.fullmatch(r"\w[\w.-]*", part) for part in parts):
        return None
    if first in OWNERS and len(rest) <= 1:
        return "/".join([OWNERS[first], *rest])
    known = name != asked or "/".join(parts[:2]) in OWNERS.values()
    return name if len(parts) <= (3 if known else 2) else None


def _from_hub(place: str, streaming: bool) -> Any:
    """A data set of the hub, or its copy in the local cache where the hub does not answer."""
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    *owner, configuration = place.split("/")
    name, configured = ("/".join(owner), configuration) if len(owner) > 1 else (place, None)
    why = ""
    try:
        # one short question first: the loader itself would retry for half a minute
        HfApi().dataset_info(name, timeout=_PATIENCE)
    except (HfHubHTTPError, HFValidationError) as error:
        raise NotFound(
            f"{name!r} is neither a path nor a data set that the hub shows: {_short(error)}"
        ) from None
    except (OfflineModeIsEnabled, OSError, RuntimeError) as error:
        why = _short(error)
    except Exception as error:
        if not _is_of_network(error):
            raise
        why = _short(error)
    try:
        with _offline(bool(why)):
            return datasets.load_dataset(name, configured, streaming=streaming and not why)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if not why:
            more = " ".join(str(error).split("\n")[1:3])  # such as the configurations there are
            raise DataError(f"{place} cannot be loaded: {_short(error)}", more) from error
        part = f" --include '{configured}/*'" if configured else ""
        folder = f"DIR/{configured}" if configured else "DIR"
        raise NotFound(
            f"{place!r} is no path here, and as a data set of the hub it can be neither fetched "
            f"nor found in the cache ({why}).",
            f"Fetch it where there is a network: hf download {name} --repo-type dataset{part} "
            f"--local-dir DIR, and give it: --data {folder}.",
        ) from None


def _is_of_network(error: Exception) -> bool:
    """Whether the hub's client could not reach it."""
    return type(error).__module__.startswith("httpx")


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


def _short(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
