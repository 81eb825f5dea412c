"""Commands in this process."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from pathlib import Path
from typing import Any

from gistcli.cli import invoke


def call(line: str, *more: str | Path, code: int = 0) -> Any:
    """The JSON value of a command line that ends with `code`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        ended = invoke([*shlex.split(line)[1:], *map(str, more), "--json"])
    assert ended == code, err.getvalue() + out.getvalue()
    return json.loads(out.getvalue())
