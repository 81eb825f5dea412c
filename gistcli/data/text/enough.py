"""Where reading stops: a run of so many steps can use no more rows than it takes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gistcli.data.base import DataOptions
from gistcli.data.splits import carved_fractions
from gistcli.data.text.records import Row


@dataclass(frozen=True)
class Enough:
    """How many rows are enough.

    Attributes:
        train: to train on.
        measured: of a split that is not trained on.
        why: those to train on are enough: `which 3,000 steps of 32 rows can use`.
    """

    train: int
    measured: int
    why: str

    def rows(self, present: Collection[str], data: DataOptions) -> dict[str, int]:
        """Split -> the rows that are read, those that `data` holds out of training among them.

        Args:
            present: the splits that there are.
            data: the recipe's section.
        """
        return {split: self._train(present, data) if split == "train" else self.measured
                for split in present}  # fmt: skip

    def _train(self, present: Collection[str], data: DataOptions) -> int:
        """The fewest of which so many are left to train on; groups may need a few more."""
        carved = carved_fractions(present, data)
        if data.include_val or data.folds is not None:
            carved.pop("val", None)
        count = left = 0
        while left < self.train:
            count += self.train - left
            left = count - sum(max(1, int(count * share + 0.5)) for share in carved.values())
            if data.folds is not None:
                left -= -(-left // data.folds)
        return count

    def notes(self, found: Mapping[str, Sequence[Row]], data: DataOptions) -> list[str]:
        """A line that says where reading stopped; none where it did not.

        Args:
            found: rows by split.
            data: the recipe's section.
        """
        told, most = [], self.rows(found, data)
        for split, rows in found.items():
            if len(rows) < most[split]:
                continue
            file = re.sub(r"(:\d+|\[\d+\])$", "", rows[0].origin)
            place = file if Path(file).suffix else f"{data.path} {file}"
            use = "by which the loss is measured"
            if split == "train":
                use = self.why + (" beside what is held out" if len(rows) > self.train else "")
            told.append(f"the first {len(rows):,} of {place} are read, {use}")
        return [f"documents: {'; '.join(told)}"] if told else []
