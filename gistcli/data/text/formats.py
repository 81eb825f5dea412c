"""Which format rows are in, and which column is what: found from the columns, or told."""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from gistcli.data.tables import USUAL
from gistcli.data.text.records import Row
from gistcli.errors import DataError, GistError, RecipeError, did_you_mean

_PROMPTS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("input", "output"),
    ("source", "target"),
)
_TEXTS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "passage"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("#1 string", "#2 string"),  # MRPC as GLUE hands it out
    ("text",),
    ("sentence",),
    ("review",),
    ("tweet",),
)
_LABELS = (*USUAL["label"], "gold_label", "is_duplicate", "quality", "score")
_ANSWERS = ("completion", "output", "label")
"""Roles that are lacking where only prompts are given."""
_CONTEXTS = ("passage", "context", "choices", "options", "table", "image")
"""Columns without which a question cannot be answered: a prompt of the question alone is doubt."""


@dataclass(frozen=True)
class Format:
    """A kind of rows.

    Attributes:
        required: roles that a row cannot do without.
        ways: role -> column, as the columns are usually called; the first that fits counts.
        extras: optional roles, whose columns are called the same.
        tasks: what it can be used for.
    """

    required: tuple[str, ...]
    ways: tuple[Mapping[str, str], ...]
    extras: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("causal_lm", "seq2seq")

    @property
    def roles(self) -> tuple[str, ...]:
        """All that `data.columns` may name."""
        return (*self.required, *self.extras)

    def unanswered(self) -> Format:
        """The same without the roles that hold what has to be found out."""
        required = tuple(role for role in self.required if role not in _ANSWERS)
        ways = tuple({r: c for r, c in way.items() if r not in _ANSWERS} for way in self.ways)
        return replace(self, required=required, ways=ways)


_CLASSES = ("classification", "regression")
_GOLD = ("answer", "options")
"""What generated answers are compared with."""
_TOLD = ("second_text", "options")
"""Roles that a column has only where that was said."""
FORMATS = {
    "messages": Format(("messages",), ({"messages": "messages"},), ("tools", *_GOLD)),
    "sharegpt": Format(
        ("conversations",), ({"conversations": "conversations"},), ("system", "tools", *_GOLD)
    ),
    "alpaca": Format(
        ("instruction", "output"),
        tuple({"instruction": "instruction", "output": o} for o in ("output", "response")),
        ("input", "system", *_GOLD),
    ),
    "completion": Format(
        ("prompt", "completion"), tuple({"prompt": p, "completion": c} for p, c in _PROMPTS), _GOLD
    ),
    "labelled": Format(
        ("text", "label"),
        tuple(
            {**dict(zip(("text", "second_text"), texts, strict=False)), "label": label}
            for texts in _TEXTS
            for label in _LABELS
        ),
        ("second_text",),
        _CLASSES,
    ),
    "plain": Format(("text",), ({"text": "text"},), tasks=("causal_lm",)),
}


@dataclass(frozen=True)
class Schema:
    """A format, and the column (or text with `{column}` in it) of each of its roles."""

    format: str
    columns: Mapping[str, str] = field(default_factory=dict)


def fields_of(column: str) -> list[str]:
    """The columns that a mapped value names: itself, or those in its braces.

    Raises:
        RecipeError: unbalanced braces, or something else than names in them.
    """
    if "{" not in column and "}" not in column:
        return [column]
    try:
        parts = list(string.Formatter().parse(column))
    except ValueError as error:
        raise RecipeError(
            f"data.columns: {column!r}: {error}.", "Write {{ and }} for braces."
        ) from None
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise RecipeError(f"data.columns: {column!r} may hold names in its braces only.")
    return [name for _, name, _, _ in parts if name is not None]


def has_header(columns: Mapping[str, str]) -> bool:
    """Whether files have a line of names: not where all mapped columns are numbers."""
    named = [name for column in columns.values() for name in fields_of(str(column))]
    return not named or not all(name.isdecimal() for name in named)


def find_schema(
    rows: Sequence[Row],
    where: str,
    *,
    columns: Mapping[str, str] | None = None,
    format: str = "auto",
    task: str | None = None,
    answered: bool = True,
) -> Schema:
    """The format of rows, by their columns.

    Args:
        rows: at least one.
        where: the data, for messages.
        columns: `data.columns`, which wins over the usual names.
        format: `data.format`; auto finds it.
        task: the recipe's task, which leaves only the formats that serve it; None leaves all.
        answered: whether there must be completions, outputs or labels; without, a column that is
            mapped or called so is still used where it is there.

    Raises:
        RecipeError: a role, column or format that is not there; no format fits, or several do.
        DataError: rows of several formats in one file.
    """
    counted = Counter(key for row in rows for key in row.values)
    asked = {str(role): str(column) for role, column in (columns or {}).items()}
    if not answered:
        lacking = [r for r in _ANSWERS if r in asked and not {*fields_of(asked[r])} <= {*counted}]
        asked = {role: column for role, column in asked.items() if role not in lacking}
    _require_known(asked, counted, where, format)
    candidates = FORMATS if format == "auto" else {format: FORMATS[format]}
    told = task is None or format != "auto"
    serving = {name: kind for name, kind in candidates.items() if told or task in kind.tasks}
    found = _matching(serving, asked, list(counted))
    if not found and not answered:
        bare = {name: kind.unanswered() for name, kind in serving.items()}
        found = _matching(bare, asked, list(counted))
    if "alpaca" in found and not asked:
        found.pop("completion", None)  # its input and output are Alpaca's
    if len(found) > 1 and not asked:
        found.pop("plain", None)
    if len(found) == 1:
        return next(iter(found.values()))
    raise _undecided(found, counted, len(rows), where, task)


def holds_values(rows: Sequence[Row], schema: Schema) -> bool:
    """Whether all labels are finite numbers and some are no whole ones, as no class is called."""
    if schema.format != "labelled":
        return False
    column = schema.columns["label"]
    cells = [row.values.get(column) for row in rows]
    given = [cell for cell in cells if cell is not None and cell != ""]
    try:
        numbers = [float(cell) for cell in given]
    except (TypeError, ValueError):
        return False
    return all(map(math.isfinite, numbers)) and not all(n.is_integer() for n in numbers)


def _undecided(
    found: Mapping[str, Schema], counted: Mapping[str, int], rows: int, where: str, task: str | None
) -> GistError:
    """Why no format, or no single one, fits."""
    has = ", ".join(
        f"{key} ({n:,} of {rows:,} rows)" if n < rows else key for key, n in counted.items()
    )
    if any(n < rows for n in counted.values()) and found:
        return DataError(
            f"{where} holds rows of several formats ({', '.join(found)}): {has}.",
            "Put each format into a file of its own, or say data.format.",
        )
    what = f"could be {' or '.join(found)}" if found else "is of no known format"
    return RecipeError(
        f"{where} {what}{f' for the task {task}' if task else ''}. It has the columns {has}.",
        "Say it: data.format, or data.columns such as {prompt: COLUMN, completion: COLUMN} or "
        "{text: COLUMN, label: COLUMN}.",
    )


def _require_known(
    asked: Mapping[str, str], present: Mapping[str, int], where: str, format: str
) -> None:
    if format != "auto" and format not in FORMATS:
        raise RecipeError(f"data.format: {format!r} is none.", did_you_mean(format, FORMATS))
    kinds = FORMATS.values() if format == "auto" else [FORMATS[format]]
    roles = {role for kind in kinds for role in kind.roles}
    for role, column in asked.items():
        if role not in roles:
            raise RecipeError(f"data.columns: {role!r} is no role.", did_you_mean(role, roles))
        for name in fields_of(column):
            if name not in present:
                raise RecipeError(
                    f"{where} has no column {name!r} ({role}).", did_you_mean(name, present)
                )


def _matching(
    kinds: Mapping[str, Format], asked: Mapping[str, str], present: Sequence[str]
) -> dict[str, Schema]:
    matched = {name: _match(kind, asked, present) for name, kind in kinds.items()}
    return {name: Schema(name, found) for name, found in matched.items() if found is not None}


def _match(kind: Format, asked: Mapping[str, str], present: Sequence[str]) -> dict[str, str] | None:
    """Role -> column, or None where the rows cannot be of this kind."""
    if not {*asked} <= {*kind.roles}:
        return None
    lower = {column.lower(): column for column in reversed(present)}
    if {*kind.required} <= {*asked}:
        matched: dict[str, str] | None = dict(asked)
    else:
        matched = next((m for way in kind.ways if (m := _along(way, asked, lower))), None)
    if matched is None:
        return None
    extras = {role: lower[role] for role in kind.extras if role in lower and role not in _TOLD}
    return {**extras, **matched}


def _along(
    way: Mapping[str, str], asked: Mapping[str, str], lower: Mapping[str, str]
) -> dict[str, str] | None:
    """One way of naming the columns, completed by those that were told."""
    usual = {role: column for role, column in way.items() if role not in asked}
    if any(column not in lower for column in usual.values()):
        return None
    if way.get("prompt") == "question" and any(name in lower for name in _CONTEXTS):
        return None
    if "text" in asked:
        usual.pop("second_text", None)
    return {**{role: lower[column] for role, column in usual.items()}, **asked}
