"""Streams that never end a run: where nobody reads any more, nothing is written."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO


class Unbreakable(io.TextIOBase):
    """Talk for people: once nobody reads it any more, it goes nowhere and raises nothing."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._broken = False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream below."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The descriptor of the stream below."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Writes, or does nothing when the reader is gone."""
        if not self._broken:
            try:
                self._stream.write(text)
            except (OSError, ValueError):
                self._broken = True
        return len(text)

    def flush(self) -> None:
        """Flushes, or does nothing when the reader is gone."""
        if not self._broken:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._broken = True


def drop_closed() -> None:
    """After a BrokenPipeError: sends what is still buffered for a closed pipe to nowhere."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            try:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
            except (OSError, ValueError):
                continue
