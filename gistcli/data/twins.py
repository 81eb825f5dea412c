"""What should not be in two splits: the same picture, members of the same group."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress

from gistcli.data.base import Record

FILES, BYTES = 5_000, 100_000_000
"""How much is read to find twins: seconds even where every file is small or far away."""


def identical(splits: Mapping[str, Sequence[Record]]) -> tuple[list[tuple[str, ...]], int]:
    """Sets of names with the same bytes that are spread over two splits or more.

    Only pictures of equal length are read, the rarest lengths first, until `FILES` of them or
    `BYTES` were read.

    Returns:
        The sets, and how many pictures of equal length were not read.
    """
    sizes: dict[int, list[tuple[str, Record]]] = defaultdict(list)
    for split, records in splits.items():
        for record in records:
            sizes[record.nbytes()].append((split, record))
    shared = [
        (size, members)
        for size, members in sizes.items()
        if size >= 0 and len({split for split, _ in members}) > 1
    ]
    shared.sort(key=lambda s: (len(s[1]), s[0]))
    same: list[tuple[str, ...]] = []
    files = nbytes = unread = 0
    for size, members in shared:
        if files + len(members) > FILES or nbytes + size * len(members) > BYTES:
            unread += len(members)
            continue
        files, nbytes = files + len(members), nbytes + size * len(members)
        same += _equal(members)
    return sorted(same), unread


def _equal(members: Sequence[tuple[str, Record]]) -> list[tuple[str, ...]]:
    contents: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    for split, record in members:
        with suppress(OSError):  # decoding will name it
            contents[hashlib.sha256(record.read()).digest()].append((split, record.name))
    return [
        tuple(f"{s}: {n}" for s, n in sorted(twins))
        for twins in contents.values()
        if len({s for s, _ in twins}) > 1
    ]


def leaking_groups(splits: Mapping[str, Sequence[Record]]) -> list[str]:
    """Groups with members in more than one split."""
    where: dict[str, set[str]] = defaultdict(set)
    for split, records in splits.items():
        for record in records:
            if record.group is not None:
                where[record.group].add(split)
    return sorted(group for group, members in where.items() if len(members) > 1)
