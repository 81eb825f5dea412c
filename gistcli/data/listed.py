"""Pictures that lists name: found on disk, each once, everything that is wrong told at once."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from gistcli.data.base import Record, some
from gistcli.data.tables import readable
from gistcli.errors import DataError


class Listed:
    """Rows of lists on their way to records.

    Paths are relative to the folder that the list speaks of. A relative path may not lead out of
    that folder (`..`), so that a list from elsewhere reads nothing unexpected; an absolute one is
    taken as it is, since only who wrote it for this machine can have meant it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: dict[str, list[str]] = {}
        self.warnings: list[str] = []
        self._prefix = os.path.join(os.path.normpath(root), "")

    def problem(self, what: str, where: str) -> None:
        """Keeps what is wrong with a row, to be told with the others."""
        self.problems.setdefault(what, []).append(where)

    def record(
        self,
        file: str,
        label: str,
        folder: Path,
        where: str,
        *,
        group: str | None = None,
        endings: Sequence[str] = (),
    ) -> Record:
        """The record of a row; its name is the path relative to the root where it lies below it.

        Args:
            file: as the list has it.
            label: its class.
            folder: that relative paths start from.
            where: list and row, for messages.
            group: of the picture.
            endings: other endings that the file may have in fact.
        """
        path = os.path.join(folder, file)
        if ".." in file and not os.path.isabs(file) and ".." in Path(file).parts:
            self.problem("with a path that leaves the folder of the list", f"{where}: {file}")
            return Record(file, label, Path(path), group, -1)
        path, size = _look_up(path, endings)
        if size < 0:
            self.problem("whose file does not exist", f"{where}: {file}")
        plain = os.path.normpath(path)
        name = plain.removeprefix(self._prefix).replace(os.sep, "/")
        return Record(name, label, Path(path), group, size)

    def distinct(self, split: str, records: Sequence[Record]) -> list[Record]:
        """Each file once; a contradiction is a problem, a repetition only a warning."""
        known: dict[str, Record] = {}
        repeated = []
        for record in records:
            earlier = known.setdefault(record.name, record)
            if earlier.label != record.label:
                self.problem(
                    "that contradict another", f"{record.name}: {earlier.label}, {record.label}"
                )
            elif earlier is not record:
                repeated.append(record.name)
        if repeated:
            self.warnings.append(
                f"{some(repeated, 'row', shown=5)} of {split} repeated: each picture counts once"
            )
        return list(known.values())

    def apart(self, splits: Mapping[str, Sequence[Record]], *, strict: bool = False) -> None:
        """Notes pictures that two splits have under different classes; if strict, all they share.

        Those of the same class are told by whoever compares contents, as of any other data.
        """
        where: dict[str, tuple[str, str]] = {}
        for split, records in splits.items():
            for record in records:
                first, label = where.setdefault(record.name, (split, record.label))
                if label != record.label:
                    self.problem(
                        "that contradict another split",
                        f"{record.name}: {first} {label}, {split} {record.label}",
                    )
                elif strict and first != split:
                    self.problem("in two splits", f"{record.name}: {first}, {split}")

    def refuse(self, place: Path) -> None:
        """Raises one DataError for all problems, if there are any."""
        if self.problems:
            told = [f"{some(names, 'row')} {what}" for what, names in self.problems.items()]
            raise DataError(
                f"{place} cannot be used: {'; '.join(told)}.", "Correct or remove these rows."
            )


def _look_up(path: str, endings: Sequence[str]) -> tuple[str, int]:
    """The file and its length, looked up once; under another ending if it has one; else -1."""
    stem, own = os.path.splitext(path)
    for candidate in (path, *(stem + e for e in endings if e != own)):
        try:
            status = os.stat(candidate)
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(status.st_mode):
            return candidate, status.st_size
    return path, -1


def read_lines(path: Path, listed: Listed) -> list[tuple[str, str, str]]:
    """(where, file, class id) of each line `PATH ID` of a list; other lines become problems.

    Ids come out without leading zeros. Blanks in a path are part of it: the last one divides.

    Raises:
        DataError: the file is not text, cannot be read, or holds no line.
    """
    with readable(path):
        text = path.read_text(encoding="utf-8-sig")
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        parts = line.strip().rsplit(maxsplit=1)
        where = f"{path.name} {number}"
        if len(parts) == 2 and parts[1].isascii() and parts[1].isdecimal():
            rows.append((where, parts[0], str(int(parts[1]))))
        elif parts:
            listed.problem("that are not `PATH NUMBER`", f"{where}: {line.strip()[:80]}")
    if not rows and not listed.problems:
        raise DataError(f"{path} is empty.", "Copy it again.")
    return rows
