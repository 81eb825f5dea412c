"""Who is in which split: carving, groups, few shots, and `splits.csv`.

Nothing here uses a generator: names are ordered by a hash of (seed, name), so a division depends
neither on the order of the files nor on the machine, and grows little when a file is added.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from gistcli.data.base import SPLITS, DataOptions, Found, Record, class_order, some
from gistcli.data.groups import divide_groups, rank
from gistcli.errors import DataError, NotFound, RecipeError, did_you_mean

ALIASES = {
    "train": "train",
    "training": "train",
    "train800": "train",
    "val200": "val",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Names of splits as people write them, in lower case."""
PAIRED = {
    f"{name}_{half}": split if half == "matched" else None
    for name, split in (("dev", "val"), ("validation", "val"), ("test", "test"))
    for half in ("matched", "mismatched")
}
"""The two halves that MNLI has of these splits: the one that counts, and None for the other."""

Part = dict[str, list[Record]]


def split_name(name: str) -> str:
    """train, val or test for a name as people write it.

    Raises:
        RecipeError: it is none of them.
    """
    known = ALIASES.get(name.strip().lower())
    if known is None:
        raise RecipeError(f"data.splits: {name!r} is no split.", did_you_mean(name, SPLITS))
    return known


def name_splits(
    names: Sequence[str], asked: str | Mapping[str, str], where: str
) -> tuple[dict[str, str], list[str]]:
    """Our split -> the name that the data have for it, and warnings on those that are left out.

    Args:
        names: what is there.
        asked: `data.splits`, whose values are names of the data's, or usual ones; auto goes by the
            usual names.
        where: the data, for messages.

    Raises:
        RecipeError: a split that is not there, or no name that says which is which.
    """
    aliases = {**PAIRED, **ALIASES}
    known = {split: n for n in reversed(names) if (split := aliases.get(n.lower()))}
    if isinstance(asked, Mapping):
        chosen = {}
        for split, name in asked.items():
            # `val` means what the data call validation
            there = name if name in names else known.get(aliases.get(name.lower()) or "")
            if there is None:
                raise RecipeError(f"{where} has no split {name!r}.", did_you_mean(name, names))
            chosen[split_name(split)] = there
        return chosen, []
    ignored = [n for n in names if n not in known.values()]
    if not known:
        raise RecipeError(
            f"{where}: which of its splits is which? It has {', '.join(names)}.",
            "Say it: data.splits.train=NAME.",
        )
    return known, [f"{some(ignored, 'split')} of {where} ignored"] if ignored else []


def settle_splits(
    found: Found, data: DataOptions, warnings: list[str], *, pinned: Path | None, whole: bool
) -> Part:
    """Who is in which split: as an earlier run had it, as found, or by the recipe's rule.

    Args:
        found: before any division.
        data: the recipe's section.
        warnings: see `divide_as_asked`.
        pinned: a `splits.csv` whose splits must be reproduced; rules and shots are not applied.
        whole: divide nothing, for evaluation: splits as found, training examples alone are `test`.

    Raises:
        NotFound, DataError, RecipeError: as `read_pinned` and `divide_as_asked`.
    """
    if pinned is not None:
        return read_pinned(pinned, found)
    if not whole:
        return divide_as_asked(found, data, warnings)
    splits = {s: found.splits[s] for s in SPLITS if found.splits.get(s)}
    return {"test": splits["train"]} if [*splits] == ["train"] else splits


def divide_as_asked(found: Found, data: DataOptions, warnings: list[str]) -> Part:
    """The recipe's splits: carved or found, then few shots, then folds.

    Args:
        found: before any division.
        data: the recipe's section.
        warnings: gets one on classes with fewer examples than shots.

    Raises:
        DataError, RecipeError: as `divide` and `divide_folds`.
    """
    splits = divide(found, data)
    if data.shots is not None:
        splits["train"], short = take_shots(splits["train"], data.shots, data.shot_seed)
        if short:
            warnings.append(
                f"{some(short, 'class', 'classes')} with fewer than {data.shots} training "
                f"examples: all of them are taken"
            )
    if data.folds is not None:
        splits |= divide_folds(splits["train"], data.folds, data.fold, data.split_seed)
    return {s: splits[s] for s in SPLITS if s in splits}


def divide(found: Found, data: DataOptions) -> Part:
    """The splits of the recipe's rule out of the splits that were found.

    train + val (+ test): as found. train + test: `val_fraction` of train becomes val. Training
    examples alone: `val_fraction` and `test_fraction` of each class go to val and test, at least
    one example each. Members of a group stay together. With `include_val` or `folds` val, found or
    taken from train, is (back) in train; test is what it is without them.

    Raises:
        DataError: no training examples, or a class (all of them named) too small to be divided.
    """
    splits = {s: found.splits[s] for s in SPLITS if found.splits.get(s)}
    if "train" not in splits:
        raise DataError(
            f"No training examples: found {', '.join(splits) or 'nothing'}.",
            "Name the split that is trained on under data.splits.",
        )
    if data.val_fraction + data.test_fraction >= 1:
        raise RecipeError("data.val_fraction and data.test_fraction leave nothing to train on.")
    wanted = carved_fractions(splits, data)
    pooled = data.include_val or data.folds is not None
    everything = [*splits["train"], *splits.get("val", [])]
    if wanted:
        parts = carve(splits["train"], wanted, data.split_seed)
        splits = {s: (parts.get(s) or splits.get(s) or []) for s in SPLITS}
    if pooled:
        tested = {r.name for r in splits["test"]} if "test" in wanted else set()
        once = {r.name: r for r in everything if r.name not in tested}
        splits = {"train": [*once.values()], "test": splits.get("test", [])}
    return {s: records for s, records in splits.items() if records}


def carved_fractions(present: Collection[str], data: DataOptions) -> dict[str, float]:
    """Split -> the share of the training examples that becomes it, by the rule of `divide`.

    Args:
        present: the splits that were found.
        data: the recipe's section.
    """
    fractions = {"val": data.val_fraction, "test": data.test_fraction}
    wanted = {s: f for s, f in fractions.items() if f > 0 and s not in present}
    pooled = data.include_val or data.folds is not None
    return {} if "val" in present or (pooled and "test" not in wanted) else wanted


def carve(records: Sequence[Record], wanted: Mapping[str, float], seed: int) -> Part:
    """Divides records into the wanted shares and `train`, class by class, groups together."""
    grouped = any(r.group is not None for r in records)
    why = "one for each of train and the splits that are taken from it"
    way_out = "set data.val_fraction or data.test_fraction to 0"
    _refuse_small(records, 1 + len(wanted), grouped, why, way_out)
    if grouped:
        shares = {"train": 1 - sum(wanted.values()), **wanted}
        chosen = divide_groups(records, shares, seed)
    else:
        chosen = _by_class(records, wanted, seed)
    parts: Part = {s: [] for s in SPLITS if s == "train" or s in wanted}
    for record in records:
        parts[chosen.get(record.name, "train")].append(record)
    return parts


def divide_folds(records: Sequence[Record], folds: int, fold: int, seed: int) -> Part:
    """train and val of one of `folds` stratified parts of nearly equal size, of which it is val.

    Of each class the parts differ by one record at most, and so do the parts as a whole; where
    there are groups, which stay whole, they only come near that.

    Raises:
        DataError: classes (all of them named) too small for a record, or a group, in every part.
    """
    names = [f"fold {k}" for k in range(folds)]
    grouped = any(r.group is not None for r in records)
    _refuse_small(records, folds, grouped, "one for each fold", "ask for fewer data.folds")
    if grouped:
        places = divide_groups(records, dict.fromkeys(names, 1 / folds), seed)
    else:
        places = _deal(records, names, seed)
    parts: Part = {"train": [], "val": []}
    for record in records:
        parts["val" if places[record.name] == names[fold] else "train"].append(record)
    return parts


def _deal(records: Sequence[Record], names: Sequence[str], seed: int) -> dict[str, str]:
    """name -> part, as if cards were dealt class after class.

    A part's cards of a class are neighbours in the hash's order, so that a record that is added
    moves one other from each part to the next at most.
    """
    places: dict[str, str] = {}
    dealt = 0
    classes = ranked(records, seed)
    for label in class_order(classes):
        members = classes[label]
        count, start = len(members), 0
        for k, name in enumerate(names):
            turn = (k - dealt) % len(names)  # this part's place in the round of this class
            size = (count - turn + len(names) - 1) // len(names)
            places.update((r.name, name) for r in members[start : start + size])
            start += size
        dealt += count
    return places


def _refuse_small(
    records: Sequence[Record], needed: int, grouped: bool, why: str, way_out: str
) -> None:
    members = defaultdict(set)
    for r in records:
        members[r.label].add((r.group, None if r.group else r.name))
    small = [
        f"{label or 'all'}: {len(members[label])}"
        for label in class_order(members)
        if len(members[label]) < needed
    ]
    if small:
        what = "groups" if grouped else "examples"
        raise DataError(
            f"{some(small, 'class', 'classes')} with too few {what} to be divided: at least "
            f"{needed} {what} a class are needed, {why}.",
            f"Add {what}, remove the class, bring splits of your own, or {way_out}.",
        )


def ranked(records: Sequence[Record], seed: int) -> dict[str, list[Record]]:
    """Records by class, each class in the order of the seed's hash."""
    classes: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda r: rank(seed, r.name)):
        classes[record.label].append(record)
    return classes


def _by_class(records: Sequence[Record], wanted: Mapping[str, float], seed: int) -> dict[str, str]:
    """name -> split: of each class round(n f) records, at least one and leaving one to train."""
    chosen: dict[str, str] = {}
    for members in ranked(records, seed).values():
        start = 0
        for place, (split, fraction) in enumerate(wanted.items()):
            still = len(wanted) - place - 1
            count = max(1, int(len(members) * fraction + 0.5))
            count = min(count, len(members) - start - still - 1)
            chosen.update((r.name, split) for r in members[start : start + count])
            start += count
    return chosen


def take_shots(train: Sequence[Record], shots: int, seed: int) -> tuple[list[Record], list[str]]:
    """`shots` records of each class, in their old order, and the classes that have fewer.

    The choice is nested: fewer shots of a seed are among its more shots.
    """
    classes = ranked(train, seed)
    kept = {r.name for members in classes.values() for r in members[:shots]}
    short = [f"{c}: {len(classes[c])}" for c in class_order(classes) if len(classes[c]) < shots]
    return [r for r in train if r.name in kept], short


def read_pinned(path: Path, found: Found) -> Part:
    """The splits exactly as an earlier `splits.csv` has them.

    Raises:
        NotFound: the file does not exist.
        DataError: it is not a splits.csv, or names examples that are no longer there or that now
            have another label; all in one message.
    """
    if not path.is_file():
        raise NotFound(
            f"{path} does not exist, which says what was in which split.",
            "Copy it again, or name the data: --data PATH.",
        )
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    columns = reader.fieldnames or []
    if not {"split", "name", "label"} <= {*columns}:
        raise DataError(
            f"{path} lacks columns: wanted split, name, label; found {columns}.",
            "Copy it again, or name the data: --data PATH.",
        )
    known = {r.name: r for records in found.splits.values() for r in records}
    missing = [row["name"] for row in rows if row["name"] not in known]
    changed = [
        f"{row['name']}: {row['label']}, now {known[row['name']].label}"
        for row in rows
        if row["name"] in known and known[row["name"]].label != row["label"]
    ]
    strange = sorted({row["split"] for row in rows} - {*SPLITS})
    problems = [
        f"{some(names, *words)} {what}"
        for names, words, what in (
            (strange, ("split",), "of no known name"),
            (missing, ("example",), "no longer there"),
            (changed, ("example",), "with another label"),
        )
        if names
    ]
    if problems:
        raise DataError(
            f"The data are not those of {path}: {'; '.join(problems)}.",
            "Put them back, or start a new run.",
        )
    parts: Part = {}
    for row in rows:
        parts.setdefault(row["split"], []).append(known[row["name"]])
    return parts
