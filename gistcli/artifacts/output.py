"""The folder that an export goes to, and the receipt that lies in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gistcli import atomic
from gistcli.artifacts.rounding import Rounding, lost_share, worst
from gistcli.backbones.locating import MERGED, RECEIPT
from gistcli.errors import Refused, StorageError

OURS = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "config.json",
    "model.onnx", "model.onnx.data", "model.safetensors", "onnx.json",
    "preprocessor_config.json", RECEIPT,
}  # fmt: skip


@dataclass(frozen=True)
class Receipt:
    """What was written and how it was checked; `merge.json` and the command's answer.

    Attributes:
        tensors: how many were patched, new (the head), resampled (another image size), unchanged.
        max_abs_logit_difference: against the reference; None where none was given or asked for.
        verified: read back bit for bit, and the logits compared where there was a reference.
        advice: on the choice of the dtype; may be empty.
        notes: what a reader of the receipt should know.
        agreement: share of the inputs (of a language model: of their tokens) on which the likeliest
            answer is that of the reference.
        files: names in the folder, this receipt and the card left out.
        serve: command that serves it, where one does.
        tuner: SHA-256 of what was trained and is merged into it.
    """

    output: Path
    format: str
    dtype: str
    scale: float = 1.0
    tensors: dict[str, int] = field(default_factory=dict)
    max_abs_logit_difference: float | None = None
    verified: bool = False
    rounding: Sequence[Rounding] = ()
    advice: str = ""
    notes: Sequence[str] = ()
    agreement: float | None = None
    files: Sequence[str] = ()
    serve: str | None = None
    tuner: str | None = None

    @property
    def tensors_changed(self) -> int:
        """Tensors that are not those of the base, the head among them."""
        return sum(n for kind, n in self.tensors.items() if kind != "unchanged")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "output": str(self.output),
            "format": self.format,
            "dtype": self.dtype,
            "scale": self.scale,
            "tensors_changed": self.tensors_changed,
            "tensors": self.tensors,
            "max_abs_logit_difference": self.max_abs_logit_difference,
            "greedy_agreement": self.agreement,
            "worst_relative_rounding": worst(self.rounding),
            "lost_share": lost_share(self.rounding),
            "worst_quantisation": max((r.quantisation for r in self.rounding), default=0.0),
            "verified": self.verified,
            "advice": self.advice,
            "notes": list(self.notes),
            "serve": self.serve,
            MERGED: self.tuner,
            "files": list(self.files),
            "per_tensor": [r.as_dict() for r in self.rounding],
        }


def check_output(output: Path, sources: Iterable[Path] = ()) -> None:
    """Whether an export may take this place; call it before anything is computed.

    Raises:
        Refused: the folder holds something that no earlier export wrote, or the base itself.
        StorageError: the place may not be written to.
    """
    atomic.require_writable(output, folder=True)
    if not output.is_dir():
        return
    found = sorted(p.name for p in output.iterdir())
    ours = OURS | _listed(output / RECEIPT)
    foreign = [name for name in found if name not in ours]
    if found and (foreign or RECEIPT not in found):
        shown = ", ".join((foreign or found)[:5])
        raise Refused(
            f"{output} exists and is no earlier export of gist: it holds {shown}.",
            "Choose another output folder, or empty this one.",
        )
    if any(output.resolve() == source.resolve().parent for source in sources):
        raise Refused(
            f"{output} holds the weights that this merge starts from.",
            "Choose another output folder.",
        )


def _listed(receipt: Path) -> set[str]:
    """The files that an earlier receipt says are its own."""
    try:
        return set(json.loads(receipt.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def require_room(output: Path, nbytes: int) -> None:
    """Whether the disk has room for what will be written; an earlier folder stays until then.

    Raises:
        StorageError: it has not.
    """
    place = next(p for p in output.absolute().parents if p.exists())
    free = shutil.disk_usage(place).free
    if nbytes > free:
        raise StorageError(
            f"{output} needs {_size(nbytes)}, and {_size(free)} are free there.",
            "Free some space or choose another output folder; nothing was written.",
        )


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:,.2f} MB"


@contextmanager
def export_folder(output: Path, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """A folder to fill that becomes `output` on success; on failure an earlier one stays.

    Raises:
        Refused: as `check_output`.
        StorageError: the disk is full or may not be written.
    """
    check_output(output, sources)
    with atomic.atomic_directory(output, overwrite=True) as folder:
        yield folder
