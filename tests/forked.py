"""Programs as processes of their own, forked from one that has made the seconds of imports."""

from __future__ import annotations

import os
import runpy
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["gistcli.run.kinds", "gistcli.explain", "transformers"])
START = """\
import os, sys
os.chdir(FOLDER)
os.environ.clear()
os.environ.update(ENVIRONMENT)
for number, path in enumerate(TOLD, start=1):
    os.dup2(os.open(path, os.O_WRONLY), number)
sys.argv = ["forked", *ARGUMENTS]
"""


class Forked:
    """Python code that runs: the part of `subprocess.Popen` that tests of signals need."""

    def __init__(self, code: str, arguments: Sequence[str | Path]) -> None:
        self.folder = TemporaryDirectory()
        script, *self.told = (Path(self.folder.name) / name for name in ("child.py", "out", "err"))
        script.write_text(START + code)
        for path in self.told:
            path.touch()
        given = {
            "ARGUMENTS": [*map(str, arguments)],
            "TOLD": [*map(str, self.told)],
            "ENVIRONMENT": dict(os.environ),
            "FOLDER": str(Path.cwd()),
        }
        self.process = CONTEXT.Process(target=runpy.run_path, args=(str(script), given))
        self.process.start()

    @property
    def returncode(self) -> int | None:
        """The exit code, -N of a process that signal N ended, None of one that runs."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """To the process."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Wait until it ends; what it wrote to standard output and standard error."""
        self.process.join(timeout)
        assert self.returncode is not None, f"runs for more than {timeout} seconds"
        out, err = (path.read_text() for path in self.told)
        self.folder.cleanup()
        return out, err


def gist(*arguments: str | Path) -> Forked:
    """The command line program."""
    return Forked("from gistcli.cli import main\nmain()\n", arguments)
