"""Tables without a line of names: what their columns are, where that leaves no doubt."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")
_TEXTS = (("sentence",), ("sentence1", "sentence2"))


def column_names(lines: Sequence[Sequence[str]]) -> list[str] | None:
    """Names of the columns of a table whose first line is data; None where it may be names.

    One or two columns of text and one of numbers are a text, or a pair, and its label. Source,
    label, mark (nothing or a star) and sentence are CoLA's, as GLUE hands it out.

    Args:
        lines: all of them, the first included.
    """
    width = len(lines[0])
    if any(len(line) != width for line in lines):
        return None
    numbers = [all(_NUMBER.fullmatch(line[i]) for line in lines) for i in range(width)]
    if numbers == [False, True, False, False] and all(line[2] in ("", "*") for line in lines):
        return ["source", "label", "mark", "sentence"]
    texts = next((names for names in _TEXTS if len(names) == width - 1), None)
    if texts is None or sum(numbers) != 1:
        return None
    words = iter(texts)
    return ["label" if is_number else next(words) for is_number in numbers]
