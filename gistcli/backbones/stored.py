"""How the tensors of a network are named in its files, where that is not as in memory."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn


class Place(NamedTuple):
    """Where a tensor lies in the files: under a key, as a whole or as some of its rows."""

    key: str
    rows: slice | None = None


@dataclass(frozen=True)
class StoredKeys:
    """Which stored tensor holds which tensors of the network.

    Attributes:
        written: stored key -> the tensors in memory whose rows it holds, one after the other.
        rows: number of rows of every tensor in memory.
        prefix: what files of the network without its head leave out of every key.
    """

    written: Mapping[str, tuple[str, ...]]
    rows: Mapping[str, int]
    prefix: str = ""

    def locate(self, present: Container[str]) -> dict[str, Place]:
        """Name in memory -> its place, for those whose stored key is `present`."""
        found: dict[str, Place] = {}
        for key, names in self.written.items():
            stored = key if key in present else key.removeprefix(self.prefix)
            if stored not in present:
                continue
            start = 0
            for name in names:
                stop = start + self.rows[name]
                found[name] = Place(stored, slice(start, stop) if len(names) > 1 else None)
                start = stop
        return found


def tied_names(model: nn.Module) -> frozenset[str]:
    """Second names of tensors that stand in several places, and lie in files once."""
    seen: set[int] = set()
    found = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in seen:
            found.add(name)
        seen.add(id(parameter))
    return frozenset(found)


def rows_of(shape: tuple[int, ...], rows: slice | None) -> tuple[int, ...]:
    """The shape of some rows of a tensor."""
    return shape if rows is None else (rows.stop - rows.start, *shape[1:])
