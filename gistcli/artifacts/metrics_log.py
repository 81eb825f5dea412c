"""metrics.jsonl: one JSON object a line, appended and flushed as it happens."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gistcli import atomic


class MetricsLog:
    """An append-only log of records; each may carry `step`, the optimiser steps done by then."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record. A figure that is not finite is written as null.

        Raises:
            StorageError: the disk is full or may not be written.
        """
        line = json.dumps({k: _finite(v) for k, v in record.items()}, ensure_ascii=False)
        with atomic.storage_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All records; a last line that a kill cut short is left out."""
        if not self.path.is_file():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                records.append(record)
        return records

    def rewind(self, step: int) -> None:
        """Drop what was written after `step`, and a torn line: a resumed run writes it again.

        Raises:
            StorageError: the disk is full or may not be written.
        """
        if not self.path.is_file():
            return
        kept = [r for r in self.read() if r.get("step", 0) <= step]
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept)
        atomic.write_text(self.path, text)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
