"""The tables of a comparison as Markdown and as LaTeX."""

from __future__ import annotations

import re

from gistcli.artifacts.comparison_sections import (
    Line,
    Section,
    Value,
    sections,
    source_lines,
    title_of,
)

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$",
}  # fmt: skip


def markdown(value: Value) -> str:
    """All tables, notes and runs; the best is bold, what is published in italics."""
    parts = [f"# {_plain(title_of(value))}", *map(_markdown_table, sections(value))]
    parts.append("\n".join(f"- {_plain(note)}" for note in [*value["notes"], *source_lines(value)]))
    runs = [f"- {_plain(row['name'])}: {_plain(', '.join(row['runs']))}" for row in value["rows"]]
    return "\n\n".join([*parts, "## Runs", "\n".join(runs)]) + "\n"


def _markdown_table(section: Section) -> str:
    def text(line: Line, place: int) -> str:
        cell = _plain(line.cells[place])
        if line.published:
            return f"*{cell}*" if cell else ""
        return f"**{cell}**" if place in line.best else cell

    rule = ["---", *["---:"] * (len(section.columns) - 1)]
    lines = [[text(line, i) for i in range(len(line.cells))] for line in section.lines]
    head = [_plain(name) for name in section.columns]
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *lines])
    return f"**{_plain(section.title)}**\n\n{body}"


def _plain(text: str) -> str:
    """Text that Markdown takes as it is."""
    return re.sub(r"([\\|*<>`])", r"\\\1", text)


def latex(value: Value) -> str:
    """One `table` for each table, for booktabs and xcolor; runs and notes as comments."""
    runs = [f"{row['name']}: {', '.join(row['runs'])}" for row in value["rows"]]
    comments = [title_of(value), *runs, *value["notes"], *source_lines(value)]
    head = [*comments, r"needs \usepackage{booktabs} and \usepackage{xcolor}"]
    lines = [f"% {' '.join(line.split())}" for line in head]
    return "\n".join([*lines, *(_latex_table(s) for s in sections(value))]) + "\n"


def _latex_table(section: Section) -> str:
    def text(line: Line, place: int) -> str:
        cell = escape_latex(line.cells[place])
        if line.published:
            return rf"\textcolor{{gray}}{{{cell}}}" if cell else ""
        return rf"\textbf{{{cell}}}" if place in line.best else cell

    rows = [[text(line, i) for i in range(len(line.cells))] for line in section.lines]
    return "\n".join(
        [
            "",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(section.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(section.columns) - 1)}}}",
            r"\toprule",
            " & ".join(map(escape_latex, section.columns)) + r" \\",
            r"\midrule",
            *(" & ".join(cells) + r" \\" for cells in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it stands; a hyphen before a number becomes a minus sign."""
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"(^|(?<=[\[ ]))-(?=\d)", r"$-$", escaped)
