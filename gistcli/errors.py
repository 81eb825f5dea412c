"""Every error a user can meet, with its exit code, and the did-you-mean for names.

GistError
├── FoundBad            1  what was found is bad
│   ├── DataError          images, labels, lists
│   ├── WeightsError       damaged or unreadable weights
│   ├── BaseMismatch       the backbone is not the one the run was trained on
│   └── StorageError       disk full, no permission
├── Refused             2  what was asked is wrong
│   ├── RecipeError        recipe or flags
│   ├── UnknownName        a name that no table holds
│   ├── NotFound           a path, run or model that does not exist
│   ├── NotMergeable       the method cannot become plain weights
│   ├── NotSupported       a pair of method and backbone, or method and command, that cannot work
│   └── OutOfMemory        more than the memory holds
├── VerificationFailed  3  a written result differs from the computed one
├── Diverged            4  the loss is not finite
└── Interrupted       130  stopped on request; the state is saved
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GistError(Exception):
    """A mistake that is answered with one message: what, where, and what to do.

    Args:
        message: what failed, where, and what was found.
        hint: what to do about it; may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def as_dict(self) -> dict[str, str]:
        """The form that `--json` prints under the key `error`."""
        return {"type": type(self).__name__, "message": self.message, "hint": self.hint}


class FoundBad(GistError):
    """What was found is bad."""


class DataError(FoundBad):
    """Images, labels or lists that cannot be used."""


class WeightsError(FoundBad):
    """Weights that are damaged, truncated or in a form that is not read."""


class BaseMismatch(FoundBad):
    """The backbone at hand is not the one that the run was trained on."""


class StorageError(FoundBad):
    """The disk is full or may not be written."""


class Refused(GistError):
    """What was asked is wrong."""

    exit_code = 2


class RecipeError(Refused):
    """A recipe, or a flag that writes into one, is wrong."""


class UnknownName(Refused):
    """A name that the registry, a model or a data set does not know."""


class NotFound(Refused):
    """A path, a run or a model that does not exist."""


class NotMergeable(Refused):
    """The tuned model cannot be written as plain weights; the message says why."""


class NotSupported(Refused):
    """Two things that cannot work together; the message says why."""


class OutOfMemory(Refused):
    """More than the memory of the device holds; the hint names what to change, cheapest first."""


class VerificationFailed(GistError):
    """A reloaded result differs from the computed one."""

    exit_code = 3


class Diverged(GistError):
    """The loss is not finite."""

    exit_code = 4


class Interrupted(GistError):
    """Stopped on request, with the state saved."""

    exit_code = 130


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that names the closest known names and then all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.55)
    guess = f"Did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return f"{guess}Known: {', '.join(names)}." if names else guess.strip()
