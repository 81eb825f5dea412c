"""Decoding many pictures: in threads, counted, into one uint8 tensor where there is room."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from gistcli.data.base import Catalog, Preprocess, Record, some
from gistcli.data.images import quiet_pillow, read_image
from gistcli.data.transforms import crop_transform
from gistcli.errors import DataError
from gistcli.reporting import SILENT, Reporter

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 64


@dataclass(frozen=True)
class Decoder:
    """One picture to uint8 (C, H, W); `at_least` as in `read_image`."""

    preprocess: Preprocess
    at_least: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every picture."""
        return (self.preprocess.channels, *self.preprocess.size)

    @property
    def nbytes(self) -> int:
        """Bytes of one decoded picture."""
        return math.prod(self.shape)

    def __call__(self, record: Record) -> Tensor:
        grey = self.preprocess.channels == 1
        picture = read_image(record.source, name=record.name, grey=grey, at_least=self.at_least)
        return crop_transform(self.preprocess)(picture)

    def or_error(self, record: Record) -> Tensor | DataError:
        """The pixels, or the error instead of raising it."""
        try:
            return self(record)
        except DataError as error:
            return error


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int = _AHEAD
) -> Generator[Result, None, None]:
    """Results in the order of the items, computed by threads at most `ahead` items in advance.

    Pillow releases the interpreter's lock while it decodes and resizes. Closing the iterator
    drops what is still waiting.
    """
    pool = ThreadPoolExecutor(_workers(), thread_name_prefix="decode")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _workers() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def fill(
    records: Sequence[Record], decoder: Decoder, device: torch.device, reporter: Reporter
) -> tuple[Tensor, dict[int, DataError]]:
    """All good pictures as uint8 (N, C, H, W) on a device, and the errors by position."""
    pixels = torch.empty((len(records), *decoder.shape), dtype=torch.uint8, device=device)
    broken: dict[int, DataError] = {}
    for i, result in enumerate(_counted(decoder.or_error, records, "decode", reporter)):
        if isinstance(result, DataError):
            broken[i] = result
        else:
            pixels[i - len(broken)] = result
    return pixels[: len(records) - len(broken)], broken


def check(records: Sequence[Record], reporter: Reporter = SILENT) -> dict[int, DataError]:
    """The errors, by position, of pictures that cannot be decoded; keeps no pixels.

    JPEGs are decoded at 1/8 of their size, which still reads every byte.
    """

    def probe(record: Record) -> DataError | None:
        try:
            read_image(record.source, name=record.name, at_least=1)
        except DataError as error:
            return error
        return None

    results = enumerate(_counted(probe, records, "check", reporter))
    return {i: error for i, error in results if error is not None}


def _counted(
    function: Callable[[Record], Result],
    records: Sequence[Record],
    phase: str,
    reporter: Reporter,
) -> Iterator[Result]:
    reporter.start(phase, len(records), unit="images")
    with quiet_pillow():
        for result in in_threads(function, records):
            reporter.advance(phase)
            yield result
    reporter.finish(phase)


def check_images(
    catalog: Catalog, splits: Sequence[str] | None = None, reporter: Reporter = SILENT
) -> None:
    """Decodes the pictures of some splits (default all) and keeps nothing.

    Raises:
        DataError: pictures that cannot be decoded, all of them named.
    """
    chosen = catalog.splits if splits is None else splits
    broken = {s: check(catalog.splits[s], reporter) for s in chosen}
    refuse(catalog, {s: list(errors.values()) for s, errors in broken.items()})


def refuse(catalog: Catalog, broken: dict[str, list[DataError]]) -> None:
    """Raises one DataError for all broken pictures of all splits, if there are any."""
    count = sum(map(len, broken.values()))
    if count:
        places = [
            f"{s} {len(errors)} of {len(catalog.splits[s])}"
            for s, errors in broken.items()
            if errors
        ]
        errors = [str(error) for found in broken.values() for error in found]
        raise DataError(
            f"{catalog.name}: {some(errors, 'picture')} cannot be decoded; {', '.join(places)}.",
            "Repair or remove them, or leave them out with data.on_error=skip.",
        )


def place(nbytes: int, device: torch.device, budget: int | None) -> torch.device | None:
    """Where a cache of that size goes: on the device, in host memory, or (None) nowhere.

    A cache may take half of the device's free memory and a quarter of the host's; `budget`, in
    bytes, replaces both.
    """
    if budget is not None:
        return device if nbytes <= budget else None
    if device.type == "cuda" and nbytes <= torch.cuda.mem_get_info(device)[0] // 2:
        return device
    if nbytes > _host_memory() // 4:
        return None
    return device if device.type != "cuda" else torch.device("cpu")


def _host_memory() -> int:
    """Bytes of memory that are free for us, container limits included; 8 GB where unknown."""
    limits = [8 * 10**9]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        group = Path("/sys/fs/cgroup")
        top = (group / "memory.max").read_text().strip()
        if top != "max":
            limits.append(int(top) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # not Linux, or no container
    return min(limits, default=8 * 10**9)
