"""Where a merge reads the base's tensors from: its files, or the network in memory."""

from __future__ import annotations

import abc
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gistcli.artifacts.tensors import DTYPES, RELOAD, open_tensors
from gistcli.backbones.base import Backbone
from gistcli.backbones.fingerprint import read_header
from gistcli.backbones.stored import Place, rows_of, tied_names
from gistcli.backbones.streaming import Change, changes_of
from gistcli.errors import WeightsError


class WeightSource(abc.ABC):
    """Named tensors, read one at a time inside `with source:`.

    Attributes:
        files: where they lie; empty for a network in memory.
    """

    files: tuple[Path, ...] = ()

    @abc.abstractmethod
    def layout(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and shape of every tensor, by key."""

    @abc.abstractmethod
    def read(self, key: str) -> Tensor:
        """One tensor, on the CPU; not to be written to."""

    def home(self, key: str) -> str | None:
        """Name of the file that a tensor comes from; None where there is none."""
        return None

    def lost(self, key: str) -> float:
        """||W - Q(W)|| of a tensor that was read and is not as the file holds it; else 0."""
        return 0.0

    def __enter__(self) -> WeightSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    @property
    def main_dtype(self) -> torch.dtype:
        """The floating dtype that most elements are stored in; float32 where there is none."""
        elements: Counter[torch.dtype] = Counter()
        for dtype, shape in self.layout().values():
            if dtype.is_floating_point:
                elements[dtype] += int(torch.Size(shape).numel())
        return elements.most_common(1)[0][0] if elements else torch.float32


class FileSource(WeightSource):
    """The tensors of one or several safetensors files, each read when it is asked for.

    Read and not mapped into memory: of a base of many gigabytes one tensor is held at a time.

    Raises:
        WeightsError: a file is missing or damaged (at once, not when it is read).
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = tuple(Path(f) for f in files)
        self._stack = ExitStack()
        self._open: dict[Path, BinaryIO] = {}
        self._layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        self._spans: dict[str, tuple[Path, int]] = {}
        for path in self.files:
            start = _start_of_data(path)
            for key, entry in read_header(path).items():
                self._layout[key] = (_dtype(path, key, entry["dtype"]), tuple(entry["shape"]))
                self._spans[key] = (path, start + entry["data_offsets"][0])

    def layout(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """From the headers alone."""
        return self._layout

    def home(self, key: str) -> str | None:
        """Name of the file that holds a tensor."""
        found = self._spans.get(key)
        return None if found is None else found[0].name

    def read(self, key: str) -> Tensor:
        """One tensor, in memory of its own."""
        return self.read_rows(key, None)

    def read_rows(self, key: str, rows: slice | None) -> Tensor:
        """Some rows of a tensor, or all of it; nothing else is read."""
        dtype, shape = self._layout[key]
        path, start = self._spans[key]
        wanted = rows_of(shape, rows)
        size = torch.Size(wanted).numel() * dtype.itemsize
        if rows is not None:
            start += rows.start * torch.Size(shape[1:]).numel() * dtype.itemsize
        raw = torch.empty(size, dtype=torch.uint8)
        file = self._open[path]
        file.seek(start)
        read_into: Any = file.readinto  # type: ignore[attr-defined]
        if read_into(raw.numpy()) != size:
            raise WeightsError(f"{path} ends within {key}.", RELOAD)
        return raw.view(dtype).view(wanted)

    def __enter__(self) -> FileSource:
        for path in self.files:
            self._open[path] = self._stack.enter_context(path.open("rb"))
        return self

    def __exit__(self, *exit: Any) -> None:
        self._open.clear()
        self._stack.close()


def _start_of_data(path: Path) -> int:
    with open_tensors(path):  # intact, and complete
        pass
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def _dtype(path: Path, key: str, code: str) -> torch.dtype:
    if code not in DTYPES:
        raise WeightsError(
            f"{path}: {key} is stored as {code}, which is not merged.",
            f"Use weights in one of {', '.join(DTYPES)}.",
        )
    return DTYPES[code]


class StateSource(WeightSource):
    """The tensors of a state dict, for networks whose stored keys are not those in memory."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = dict(state)

    def layout(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """From the tensors."""
        return {key: (t.dtype, tuple(t.shape)) for key, t in self._state.items()}

    def read(self, key: str) -> Tensor:
        """The tensor itself."""
        return self._state[key].detach().cpu()


class RenamedSource(WeightSource):
    """The tensors of files under the names that they have in memory.

    Args:
        stored: the files.
        places: name in memory -> where the tensor lies.
    """

    def __init__(self, stored: FileSource, places: Mapping[str, Place]) -> None:
        self.files = stored.files
        self._stored = stored
        self._places = dict(places)

    def layout(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """From the headers alone."""
        stored = self._stored.layout()
        return {
            name: (stored[key][0], rows_of(stored[key][1], rows))
            for name, (key, rows) in self._places.items()
        }

    def home(self, key: str) -> str | None:
        """Name of the file that a tensor comes from."""
        place = self._places.get(key)
        return None if place is None else self._stored.home(place.key)

    def read(self, key: str) -> Tensor:
        """One tensor, in memory of its own."""
        place = self._places[key]
        return self._stored.read_rows(place.key, place.rows)

    def __enter__(self) -> RenamedSource:
        self._stored.__enter__()
        return self

    def __exit__(self, *exit: Any) -> None:
        self._stored.__exit__(*exit)


class DequantisedSource(WeightSource):
    """The weights that a quantised network computes with, as float tensors of the files' dtype.

    What was learnt was learnt on these: put on the stored ones, it would meet another network.

    Args:
        stored: the files.
        changes: name -> quantised and back.
    """

    def __init__(self, stored: WeightSource, changes: Mapping[str, Change]) -> None:
        self.files = stored.files
        self._stored, self._changes = stored, dict(changes)
        self._lost: dict[str, float] = {}

    def layout(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """That of the files."""
        return self._stored.layout()

    def home(self, key: str) -> str | None:
        """Name of the file that a tensor comes from."""
        return self._stored.home(key)

    def lost(self, key: str) -> float:
        """||W - Q(W)||, once W was read."""
        return self._lost.get(key, 0.0)

    def read(self, key: str) -> Tensor:
        """Q(W) in float32; what is not quantised as it is."""
        stored = self._stored.read(key)
        if key not in self._changes:
            return stored
        found = self._changes[key](stored).float()
        self._lost[key] = float(torch.linalg.vector_norm(found - stored.float()))
        return found

    def __enter__(self) -> DequantisedSource:
        self._stored.__enter__()
        return self

    def __exit__(self, *exit: Any) -> None:
        self._stored.__exit__(*exit)


def weight_source(backbone: Backbone) -> WeightSource:
    """The base's files where they hold what is in memory, else the memory.

    Call it inside `tuner.disabled()`: the network in memory must hold the pretrained tensors.
    timm drops or rearranges what older files hold, and where it did the memory is read; stored
    tensors that the network lacks stay as they are. transformers says how it names them.

    Raises:
        WeightsError: damaged files, or (transformers) files without a tensor of the network.
    """
    tied = tied_names(backbone.model)
    state = {k: t for k, t in backbone.model.state_dict().items() if k not in tied}
    if not backbone.origin.weights:
        return StateSource(state)
    stored = FileSource(backbone.origin.weights)
    resized = {*backbone.head_names(), *backbone.resampled()}
    keys = backbone.stored_keys()
    source: WeightSource = stored
    if keys is not None:
        source = RenamedSource(stored, keys.locate(stored.layout()))
    layout = source.layout()
    other = [k for k, t in state.items()
             if k not in resized and layout.get(k, (None, None))[1] != tuple(t.shape)]  # fmt: skip
    if other and keys is not None:
        raise WeightsError(
            f"{', '.join(map(str, stored.files))} holds no {', '.join(sorted(other))}.",
            "Use the base that the run was trained on.",
        )
    changes = changes_of(backbone.model)
    if changes:
        return DequantisedSource(source, changes)
    return StateSource(state) if other else source
