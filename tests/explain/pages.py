"""Reads a page of `gist visualize` as a browser would."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

VOID = {"meta", "img"}


class Page(HTMLParser):
    """A page whose tags balance and whose links all lead to a file or a place on the page.

    Attributes:
        tags: that occur; text: everything that is read, a piece a line.
        pictures: files that are shown, in order; places: the ids, in order.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.pictures: list[Path] = []
        self.places: list[str] = []
        self._open: list[str] = []
        self._links: list[str] = []
        self._pieces: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self._open
        for link in self._links:
            self._require_there(path.parent, link)
        self.pictures = [path.parent / p for p in self.pictures]
        self.text = "\n".join(self._pieces)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self._open.append(tag)
        values = dict(attrs)
        assert len(values) == len(attrs)
        assert not [name for name in values if name.startswith("on")]
        if "id" in values:
            self.places.append(str(values["id"]))
        self._links += [str(values[name]) for name in ("href", "src") if name in values]
        if tag == "img":
            assert values["loading"] == "lazy"
            assert values["alt"]
            self.pictures.append(Path(unquote(str(values["src"]))))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self._open[-1:] != ["style"]:
            self._pieces.append(data.strip())

    def _require_there(self, folder: Path, link: str) -> None:
        parts = urlsplit(link)
        assert not parts.scheme
        assert not parts.netloc
        assert not parts.query
        if parts.path:
            assert (folder / unquote(parts.path)).is_file(), link
        else:
            assert parts.fragment in self.places
