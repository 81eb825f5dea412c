"""The page to open first: `index.html` beside the sheets, with their figures.

One file without scripts, fonts or anything from elsewhere, that works from a disk. Where the folder
already holds a page with the other kind of maps, and all that it shows, that part stays. Whatever
comes from outside (names of files, classes, runs) is escaped; links are relative and quoted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
from PIL import Image

from gistcli.atomic import write_text
from gistcli.errors import Refused
from gistcli.explain.colour import heat

NAME = "index.html"
GENERATOR = '<meta name="generator" content="gist visualize">'
KINDS = {"clusters": "cluster maps", "tokens": "attention of tokens"}
"""Parts of a page, in their order, and what a link to one says."""
TITLE = "Maps of a tuned network"

_PART = re.compile(r"<!-- (?P<kind>\w+) -->\n(?P<body>.*?)<!-- /(?P=kind) -->\n", re.DOTALL)
_LINK = re.compile(r'(?:href|src)="([^"#]+)"')
_STYLE = """\
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #ffffff; --ink: #1a1c21;
  --muted: #5a606b; --line: #d5d9e0; --mark: #a3360b; }
@media (prefers-color-scheme: dark) { :root { --paper: #0c0e11; --card: #14161b; --ink: #f0f0f2;
  --muted: #a0a6b0; --line: #2b3038; --mark: #ffb27d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.5 system-ui,
  sans-serif; }
main { max-width: 100rem; margin: 0 auto; padding: 1rem clamp(0.75rem, 3vw, 2.5rem) 4rem; }
h1 { font-size: 1.6rem; margin: 0.5rem 0; }
h2 { font-size: 1.3rem; margin: 2rem 0 0.5rem; }
h3 { font-size: 1rem; margin: 0; }
p { max-width: 75ch; margin: 0.4rem 0; }
h3, p, dd, td { overflow-wrap: anywhere; }
.muted, dt, th, summary { color: var(--muted); }
.scale { display: flex; align-items: center; gap: 0.6rem; color: var(--muted); }
.scale b { width: 12rem; height: 0.8rem; border-radius: 2px; background: linear-gradient(to right,
  @COLOURS@); }
dl { display: flex; flex-wrap: wrap; gap: 0.2rem 2rem; margin: 0.5rem 0; }
dt { font-size: 0.85rem; }
dd { margin: 0; font-variant-numeric: tabular-nums; }
.card, .page { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  margin: 1rem 0; padding: 1rem; }
.flag { color: var(--mark); font-weight: 600; }
.sheet { display: block; overflow-x: auto; border-radius: 4px; }
.sheet img { display: block; max-width: 100%; height: auto; }
@media (max-width: 45rem) { .sheet img { max-width: none; width: 45rem; } }
details { margin: 0.5rem 0; overflow-x: auto; }
summary { cursor: pointer; }
table { border-collapse: collapse; margin: 0.5rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.15rem 1rem 0.15rem 0; border-bottom: 1px solid var(--line); text-align: left; }
a { color: inherit; }
"""


@dataclass(frozen=True)
class Table:
    """Figures, hidden under a line of text until they are asked for."""

    summary: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Card:
    """One image.

    Attributes:
        image: its file, as the user named it.
        sheet: the PNG, in the folder of the page.
        facts: name -> text.
        flag: a few words that mark it out.
        table: further figures.
    """

    image: str
    sheet: Path
    facts: Mapping[str, str]
    flag: str = ""
    table: Table | None = None


@dataclass(frozen=True)
class Part:
    """One kind of maps of some images.

    Attributes:
        kind: of KINDS.
        title, lead: what it is, in a few words and in a sentence.
        reading: how to read it, a paragraph each.
        cards: in the order in which the images were given.
        overview: pages with many images, in the folder of the page.
        facts: over all images, name -> text.
        table: further figures over all images.
        order: of the cards on the page; with one, a list of the images as given stands above it.
    """

    kind: str
    title: str
    lead: str
    reading: Sequence[str]
    cards: Sequence[Card]
    overview: Sequence[Path] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    table: Table | None = None
    order: Sequence[int] | None = None


def require_own_page(output: Path) -> None:
    """Whether the page of `output` can be written there without the loss of anything else.

    Raises:
        Refused: the folder has an `index.html` that is none of ours.
    """
    path = output / NAME
    if path.exists() and not (path.is_file() and GENERATOR in _read(path)):
        raise Refused(
            f"{path} is there and was not written by `gist visualize`.",
            "Choose another folder with -o.",
        )


def write_gallery(part: Part, output: Path) -> Path:
    """Write a part, with the other kind's as an earlier page has it; the page's path.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    path = output / NAME
    bodies = {**_kept(path), part.kind: _section(part)}
    parts = {kind: bodies[kind] for kind in KINDS if kind in bodies}
    links = [f'<a href="#{kind}">{KINDS[kind]}</a>' for kind in parts]
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        GENERATOR,
        f"<title>{TITLE}</title>",
        f"<style>\n{_STYLE.replace('@COLOURS@', _colours())}</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{TITLE}</h1>",
        *([f"<nav>{' · '.join(links)}</nav>"] if len(links) > 1 else []),
        *(f"<!-- {kind} -->\n{body}<!-- /{kind} -->" for kind, body in parts.items()),
        "</main>",
        "</body>",
        "</html>",
    ]
    write_text(path, "\n".join(lines) + "\n")
    return path


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _kept(path: Path) -> dict[str, str]:
    """The parts of an earlier page of which every file is still there."""
    if not path.is_file():
        return {}
    found = {match["kind"]: match["body"] for match in _PART.finditer(_read(path))}
    return {
        kind: body
        for kind, body in found.items()
        if all((path.parent / unquote(link)).is_file() for link in _LINK.findall(body))
    }


def _section(part: Part) -> str:
    shown = range(len(part.cards)) if part.order is None else part.order
    lines = [
        f'<section id="{part.kind}">',
        f"<h2>{_text(part.title)}</h2>",
        f"<p>{_text(part.lead)}</p>",
        '<p class="scale"><span>weak</span><b></b><span>strong</span></p>',
        *(f'<p class="muted">{_text(paragraph)}</p>' for paragraph in part.reading),
        *_facts(part.facts),
        *_table(part.table),
        *(f'<div class="page">{_sheet(page, "overview")}</div>' for page in part.overview),
        *(_contents(part) if part.order is not None else ()),
        *(line for i in shown for line in _card(part.cards[i], f"{part.kind}-{i + 1}")),
        "</section>",
    ]
    return "\n".join(lines) + "\n"


def _card(card: Card, name: str) -> list[str]:
    flag = f' <span class="flag">{_text(card.flag)}</span>' if card.flag else ""
    return [
        f'<article class="card" id="{name}">',
        f"<h3>{_text(card.image)}{flag}</h3>",
        *_facts(card.facts),
        _sheet(card.sheet, f"maps of {card.image}"),
        *_table(card.table),
        "</article>",
    ]


def _contents(part: Part) -> list[str]:
    """All images in the order given, with links to their cards."""
    rows = []
    for i, card in enumerate(part.cards, start=1):
        link = f'<a href="#{part.kind}-{i}">{_text(card.image)}</a>'
        rows.append([link, *map(_text, card.facts.values()), _text(card.flag)])
    columns = ["image", *part.cards[0].facts, ""]
    return _folded("all images in the order given", columns, rows)


def _facts(facts: Mapping[str, str]) -> list[str]:
    pairs = [f"<div><dt>{_text(n)}</dt><dd>{_text(v)}</dd></div>" for n, v in facts.items()]
    return ["<dl>", *pairs, "</dl>"] if pairs else []


def _table(table: Table | None) -> list[str]:
    if table is None:
        return []
    rows = [[_text(cell) for cell in row] for row in table.rows]
    return _folded(table.summary, table.columns, rows)


def _folded(summary: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table under its summary; the cells are markup."""
    head = "".join(f"<th>{_text(name)}</th>" for name in columns)
    body = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    return [
        "<details>",
        f"<summary>{_text(summary)}</summary>",
        "<table>",
        *(f"<tr>{row}</tr>" for row in (head, *body)),
        "</table>",
        "</details>",
    ]


def _sheet(path: Path, alternative: str) -> str:
    """A picture that leads to its file; with its size, so that nothing moves while it is loaded."""
    with Image.open(path) as picture:
        width, height = picture.size
    link = quote(path.name, safe="")
    image = f'<img src="{link}" width="{width}" height="{height}" alt="{_text(alternative)}"'
    return f'<a class="sheet" href="{link}">{image} loading="lazy"></a>'


def _text(text: str) -> str:
    """Escaped, also for attributes; bytes of a file name that are no text become question marks."""
    return escape(text.encode("utf-8", "replace").decode("utf-8"))


def _colours() -> str:
    """The colours of the maps, for a gradient."""
    return ", ".join(
        "#" + bytes(colour).hex() for colour in heat(np.linspace(0, 1, 9, dtype=np.float32))
    )
