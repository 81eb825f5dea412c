"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[
    bool,
    typer.Option("--json", help="Exactly one JSON value on stdout; all talk goes to stderr."),
]
"""Read by `cli` from the arguments themselves, so that a usage error is JSON, too."""
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)]
RunOrFolder = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|DIR", help="A run directory or a merged folder.", show_default=False
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="PATH",
        help="Where the run's backbone lies now; its fingerprint is checked.",
        show_default=False,
    ),
]
Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, mps, cuda or cuda:N.", metavar="NAME")
]


def examples(*commands: str) -> str:
    """The end of a command's help: lines to copy."""
    lines = [f"  {command}".replace("[", r"\[") for command in commands]
    return "\n".join(["[bold]Examples[/]", *lines])


def numbers(text: str | None) -> list[int] | None:
    """`3,5-8` as [3, 5, 6, 7, 8]; None stays None.

    Raises:
        typer.BadParameter: another form.
    """
    if text is None:
        return None
    found: list[int] = []
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise typer.BadParameter(f"found {text!r}, expected numbers such as 3,5-8")
        found += range(int(first), int(last or first) + 1)
    return found


def complete_from(names: Callable[[], Sequence[str]]) -> Callable[[str], list[str]]:
    """Shell completion from a table of names."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete
