"""Per-example outputs of language models as files: JSON lines, and what AlpacaEval reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gistcli import atomic
from gistcli.errors import DataError


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, in UTF-8, written aside and renamed.

    Raises:
        StorageError: the disk is full or may not be written.
        ValueError: NaN or infinity in a row.
    """
    lines = [json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    atomic.write_text(path, "".join(lines))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that `write_json_lines` wrote.

    Raises:
        DataError: the file is missing, or a line is no JSON; names the line.
    """
    rows = []
    try:
        # split at newlines alone: a JSON string may hold other separators of lines as they are
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "Run `gist eval` again.") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise DataError(
                    f"{path}:{number} is no JSON: {error}.", "Run `gist eval` again."
                ) from error
    return rows


def write_alpaca_eval(
    path: Path,
    instructions: Sequence[str],
    outputs: Sequence[str],
    *,
    datasets: Sequence[str],
    generator: str,
) -> None:
    """The JSON list of {instruction, output, dataset, generator} that `alpaca_eval` judges.

    Args:
        path: of the file.
        instructions: as the benchmark has them, without a template around.
        outputs: what the model wrote, in the same order.
        datasets: the benchmark's names for where each instruction comes from.
        generator: what the model is to be called in the table.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    rows = [
        {"instruction": instruction, "output": output, "dataset": dataset, "generator": generator}
        for instruction, output, dataset in zip(instructions, outputs, datasets, strict=True)
    ]
    atomic.write_json(path, rows)
