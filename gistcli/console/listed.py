"""What there is, as `gist list` shows it to people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from gistcli.console.tables import make_table, shown

WIDTH = 100
"""Columns of the table, where there are as many."""
CAPABILITIES = {
    "merge": "becomes plain weights: gist merge",
    "low_rank": "also becomes an exact LoRA folder: gist merge --format peft",
    "clusters": "shows where it looks: gist visualize",
    "tokens": "puts tokens into the sequence",
    "gateable": "can be switched off for single tokens",
    "frozen_features": "reads every picture once and keeps the features",
}
"""Capability -> what it means to someone who chooses a method."""

Entry = Mapping[str, Any]


def show_list(console: Console, entries: Sequence[Entry], kind: str) -> None:
    """Methods as a table with what the words in it mean, anything else by name and summary."""
    if not entries:
        console.print(f"no {kind}")
    elif any(e.get("capabilities") or e.get("options") for e in entries):
        rows = [[e["name"], "\n".join(_about(e)), "\n".join(_able(e))] for e in entries]
        table = make_table("", ["name", "what it is, and its options", "can"], rows)
        table.show_lines = True
        console.print(table, width=min(console.width, WIDTH))
        able = "\n".join(row[2] for row in rows)
        for name, meaning in CAPABILITIES.items():
            if name in able:
                console.print(f"[bold]{name}[/]: {escape(meaning)}", soft_wrap=True)
        console.print("Options: --set method.OPTION=VALUE; what each means: --json", soft_wrap=True)
    else:
        for e in entries:
            line = f"[bold]{escape(e['name'])}[/]  {escape(e['summary'])}"
            console.print(line.rstrip(), soft_wrap=True)


def _about(entry: Entry) -> Iterator[str]:
    """Summary; options with their defaults, and with all values where they are choices."""
    yield entry["summary"]
    if entry.get("label", entry["name"]) != entry["name"]:
        yield f"label: {entry['label']}"
    options = []
    for name, option in entry["options"].items():
        default, choices = option.get("default"), option.get("choices") or ()
        others = [_written(c) for c in choices if c != default and not isinstance(c, bool)]
        options.append(f"{name}={'|'.join([_written(default), *others])}")
    if options:
        yield ", ".join(options)


def _able(entry: Entry) -> Iterator[str]:
    """`merge` is null where it works and the reason where not; the others are yes or no."""
    yield from _words(entry["capabilities"])
    for variant in entry.get("variants", ()):
        value = f"{variant['option']}={_written(variant['value'])}"
        yield from (f"{word} ({value})" for word in _words(variant["capabilities"]))


def _words(capabilities: Mapping[str, Any]) -> Iterator[str]:
    for name, value in capabilities.items():
        if name == "merge":
            if value in (None, True):
                yield name
        elif value:
            yield name if value is True else f"{name} {shown(value)}"


def _written(value: Any) -> str:
    """As it stands behind `--set method.OPTION=`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)
