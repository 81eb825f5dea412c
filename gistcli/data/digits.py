"""Source `digits`: scikit-learn's handwritten digits, real pictures that need no download."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from gistcli.data.base import DataOptions, Found, Record, refuse_options
from gistcli.data.splits import ranked
from gistcli.errors import RecipeError

_SIZES = {"test": 500, "val": 200}


class Digits:
    """1,797 pictures of 8 x 8 pixels with 16 grey levels, ten classes, white ink on black.

    The split is fixed, whatever the recipe's seeds: 500 test, 200 val and 1,097 training pictures,
    each class by its share. `data.shots` still applies.
    """

    def __init__(self, data: DataOptions, place: Path | str) -> None:
        if str(place) != "digits":
            raise RecipeError(
                f"data.source digits reads nothing from {place}.", "Say data.path: digits."
            )
        named = None if data.splits == "auto" else data.splits
        refuse_options(
            "The digits have a fixed split and neither groups nor columns",
            splits=named,
            group_by=data.group_by,
            columns=data.columns,
        )

    def find(self) -> Found:
        """All digits as PNG in memory."""
        records = _records()
        classes = ranked(records, seed=0)
        place: dict[str, str] = {}
        for split, size in _SIZES.items():
            free = {c: [r for r in rs if r.name not in place] for c, rs in sorted(classes.items())}
            for label, count in _shares(size, {c: len(rs) for c, rs in free.items()}).items():
                place.update((r.name, split) for r in free[label][:count])
        splits: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
        for record in records:
            splits[place.get(record.name, "train")].append(record)
        return Found(splits)


@cache
def _records() -> tuple[Record, ...]:
    """All of them; a sweep opens them for every run."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return tuple(
        Record(f"digit-{i:04d}", str(label), _png(image))
        for i, (image, label) in enumerate(zip(bunch.images, bunch.target, strict=True))
    )


def _shares(size: int, counts: dict[str, int]) -> dict[str, int]:
    """`size` divided in proportion to the counts, the largest remainders rounded up."""
    total = sum(counts.values())
    exact = {c: size * n / total for c, n in counts.items()}
    shares = {c: int(x) for c, x in exact.items()}
    largest = sorted(exact, key=lambda c: (shares[c] - exact[c], c))
    for c in largest[: size - sum(shares.values())]:
        shares[c] += 1
    return shares


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
