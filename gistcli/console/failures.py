"""One voice for everything that goes wrong: what, where, and what to do."""

from __future__ import annotations

import errno
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from rich.markup import escape

from gistcli.atomic import storage_errors
from gistcli.console.reporter import open_console
from gistcli.console.results import emit_json
from gistcli.errors import GistError, StorageError


@dataclass(frozen=True)
class Failure:
    """What the user is told about an exception."""

    type: str
    message: str
    hint: str
    exit_code: int


def describe(error: BaseException) -> Failure:
    """The sentence, the advice and the exit code for any exception."""
    if isinstance(error, GistError):
        return Failure(**error.as_dict(), exit_code=error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Failure("Interrupted", "Interrupted.", "", 130)
    if _out_of_memory(error):
        return Failure(
            "OutOfMemory",
            "The memory does not suffice.",
            "Use --set train.micro_batch_size=N (the result stays the same), a smaller "
            "--batch-size or --img-size, or --set model.grad_checkpointing=true.",
            1,
        )
    if isinstance(error, OSError):
        try:
            with storage_errors(Path(error.filename or "The output")):
                raise error
        except StorageError as storage:
            failure = Failure(**storage.as_dict(), exit_code=storage.exit_code)
            if error.errno in (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR):
                # nobody said whether it was to be read or written
                text = failure.message.replace("be written", "be used")
                failure = replace(failure, message=text, hint="Check the path and its permissions.")
            return failure
        except OSError:
            pass
    what = " ".join(str(error).split())
    return Failure(
        "InternalError",
        f"internal error: {type(error).__name__}: {what}" if what else type(error).__name__,
        "This is a fault of gist. Run it again with --debug for the traceback, and report it.",
        1,
    )


def _out_of_memory(error: BaseException) -> bool:
    """Also torch's, without importing torch."""
    names = {cls.__name__ for cls in type(error).__mro__}
    allocator = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return bool(names & {"OutOfMemoryError", "MemoryError"}) or allocator


def show_failure(
    failure: Failure,
    *,
    as_json: bool,
    results: TextIO,
    talk: TextIO,
    error: BaseException | None = None,
) -> None:
    """The failure for people on `talk`, or as the one JSON value on `results`.

    Args:
        failure: what to tell.
        as_json: for scripts.
        results: stdout.
        talk: stderr.
        error: given with `--debug`: its traceback goes to `talk` first.
    """
    if error is not None:
        talk.write("".join(traceback.format_exception(error)))
    if as_json:
        body: dict[str, Any] = {
            "type": failure.type, "message": failure.message, "hint": failure.hint
        }  # fmt: skip
        emit_json({"error": body}, results)
        return
    console = open_console(talk)
    console.print(f"[bold red]error:[/] {escape(failure.message)}", soft_wrap=True)
    if failure.hint:
        console.print(escape(failure.hint), soft_wrap=True)
    talk.flush()
