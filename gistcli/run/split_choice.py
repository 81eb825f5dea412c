"""Which split is evaluated."""

from __future__ import annotations

from gistcli.data import Catalog
from gistcli.errors import UnknownName, did_you_mean


def choose_split(catalog: Catalog, split: str | None) -> str:
    """The asked split; test, else val, else train where none was asked for.

    Raises:
        UnknownName: there is no such split.
    """
    available = [s for s in ("test", "val", "train") if s in catalog.splits]
    if split is None:
        return available[0]
    if split not in available:
        raise UnknownName(f"{catalog.name} has no split {split!r}.", did_you_mean(split, available))
    return split
