"""Dividing records whose groups (a patient, a scene, a bird) may not be torn apart."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from gistcli.data.base import Record, class_order, some
from gistcli.errors import DataError, RecipeError


def rank(seed: int, name: str) -> bytes:
    """The key that orders names at random, the same on every machine."""
    return hashlib.sha256(f"{seed}|{name}".encode("utf-8", "surrogateescape")).digest()


def group_pattern(group_by: str | None) -> re.Pattern[str] | None:
    """`data.group_by` as a regular expression over names, whose first group names theirs.

    Raises:
        RecipeError: it is none, or has no parentheses.
    """
    if group_by is None:
        return None
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise RecipeError(
            f"data.group_by {group_by!r} is no regular expression: {error}."
        ) from None
    if not pattern.groups:
        raise RecipeError(
            f"data.group_by {group_by!r} has no group.",
            "Put parentheses around what names the group, as in '^(patient[0-9]+)_'.",
        )
    return pattern


def divide_groups(
    records: Sequence[Record], share: Mapping[str, float], seed: int
) -> dict[str, str]:
    """name -> part, with every group whole and every class in every part.

    First each class, the rarest first, gets a group in each part that has none of it; then the
    remaining groups, the largest first, go where they help most. A record without a group is one.

    Args:
        records: all of them, any order.
        share: of each part; they sum to 1, and the first is the last to be given a class.
        seed: orders groups that are equally good.

    Raises:
        DataError: some part would lack some class.
    """
    groups: dict[str, list[Record]] = defaultdict(list)
    for r in records:
        groups[f"group {r.group}" if r.group else f"name {r.name}"].append(r)
    division = _Division(groups, dict(share), seed)
    first, *others = share
    for label in sorted(division.total, key=lambda c: (len(division.groups_of[c]), c)):
        for split in [*others, first]:
            division.cover(label, split)
    for group in sorted(division.free, key=lambda g: -len(groups[g])):
        division.put(group, min(division.share, key=lambda s: division.growth(group, s)))
    division.refuse_gaps()
    return {r.name: division.place[g] for g, members in groups.items() for r in members}


class _Division:
    """Groups on their way into splits."""

    def __init__(
        self, groups: Mapping[str, list[Record]], share: dict[str, float], seed: int
    ) -> None:
        self.share = share
        self.free = dict.fromkeys(sorted(groups, key=lambda g: rank(seed, g)))
        self.counts = {g: Counter(r.label for r in groups[g]) for g in self.free}
        self.groups_of: dict[str, list[str]] = defaultdict(list)
        for group, count in self.counts.items():
            for label in count:
                self.groups_of[label].append(group)
        self.total: Counter[str] = sum(self.counts.values(), Counter())
        self.have: dict[str, Counter[str]] = {s: Counter() for s in share}
        self.place: dict[str, str] = {}

    def put(self, group: str, split: str) -> None:
        self.place[group] = split
        self.have[split].update(self.counts[group])
        del self.free[group]

    def growth(self, group: str, split: str) -> float:
        """How much sum over classes of (have - share)^2 / share grows if the group joins."""
        grown = 0.0
        for label, n in self.counts[group].items():
            share = self.share[split] * self.total[label]
            grown += n * (n + 2 * (self.have[split][label] - share)) / share
        return grown

    def cover(self, label: str, split: str) -> None:
        """Gives a split that lacks a class the free group of it that fits best."""
        options = [g for g in self.groups_of[label] if g in self.free]
        if options and not self.have[split][label]:
            self.put(min(options, key=lambda g: self.growth(g, split)), split)

    def refuse_gaps(self) -> None:
        gaps = [
            f"{label}: none in {split}"
            for label in class_order(self.total)
            for split in self.share
            if not self.have[split][label]
        ]
        if gaps:
            raise DataError(
                f"The groups cannot be divided so that every part has every class: "
                f"{some(gaps, 'gap')}.",
                "Bring splits of your own, use finer groups, or set a fraction to 0.",
            )
