"""The tensors of a merged network, each computed when it is asked for, in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gistcli.artifacts import rounding
from gistcli.artifacts.rounding import Rounding
from gistcli.artifacts.sharding import Layout
from gistcli.artifacts.sources import WeightSource, weight_source
from gistcli.artifacts.tensors import Pending, Written, parse_dtype, write_stream
from gistcli.errors import Refused, WeightsError
from gistcli.methods.base import Tuner
from gistcli.methods.merged import Merged

Names = Mapping[str, Sequence[str]]
"""Stored key -> the tensors in memory whose rows it holds."""


@dataclass(frozen=True)
class MergePlan:
    """What becomes of every tensor of the base.

    A patched tensor is W + scale (W' - W), where W' = patch(W) in float32; the head is the tuned
    one at every scale, because the base has none for these classes.

    Attributes:
        source: the base's tensors.
        merged: what the method makes of them.
        extra: tensors of the base that another image size changed (position embeddings).
        dtype: of all floating tensors; None for that of the stored one.
        scale: 0 for the base, 1 for the tuned network.

    Raises:
        WeightsError: a patch for a tensor that the base does not have.
    """

    source: WeightSource
    merged: Merged
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        missing = sorted(self.merged.patches.keys() - self.source.layout().keys() - {*self.extra})
        if missing:
            where = ", ".join(map(str, self.source.files)) or "the network in memory"
            raise WeightsError(
                f"{where} has no {', '.join(missing)}, which the method changes.",
                "Use the base that the run was trained on.",
            )

    def dtypes(self) -> dict[str, torch.dtype]:
        """Key -> dtype of every tensor that is written."""
        stored = {key: dtype for key, (dtype, _) in self.source.layout().items()}
        main = self.source.main_dtype
        keys = {*stored, *self.extra, *self.merged.new}
        return {key: self._target(stored.get(key), main) for key in sorted(keys)}

    def _target(self, stored: torch.dtype | None, main: torch.dtype) -> torch.dtype:
        if stored is not None and not stored.is_floating_point:
            return stored
        return self.dtype or stored or main

    def count(self, measured: Iterable[Rounding]) -> dict[str, int]:
        """How many tensors are patched (and moved by it), new, resampled and unchanged."""
        keys, new = set(self.dtypes()), set(self.merged.new)
        patched = {r.key for r in measured if r.relative_change}
        kinds = {
            "patched": len(patched - new),
            "new": len(new),
            "resampled": len(keys & {*self.extra} - new - patched),
        }
        return {**kinds, "unchanged": len(keys) - sum(kinds.values())}

    def compute(self, key: str) -> tuple[Tensor, Tensor | None]:
        """A tensor before the cast, and the base's float32 one where it was patched."""
        if key in self.merged.new:
            return self.merged.new[key].detach().cpu(), None
        stored = self.extra[key].detach().cpu() if key in self.extra else self.source.read(key)
        patch = self.merged.patches.get(key)
        if patch is None:
            return stored, None
        base = stored.to(torch.float32, copy=True)
        tuned = patch(base.clone()).detach().cpu()
        if self.scale != 1:
            tuned = base + self.scale * (tuned - base) if self.scale else base
        return tuned, base

    def stored_layout(self, names: Names | None = None) -> Layout:
        """Dtype and shape of every tensor as it is written, by stored key.

        Args:
            names: stored key -> the tensors whose rows it holds; None for the plan's own keys.

        Raises:
            WeightsError: a tensor without a stored key.
        """
        dtypes, shapes = self.dtypes(), self._shapes()
        found = {}
        for stored, parts in self._named(names).items():
            rows = sum(shapes[key][0] for key in parts) if len(parts) > 1 else 0
            shape = (rows, *shapes[parts[0]][1:]) if rows else shapes[parts[0]]
            found[stored] = (dtypes[parts[0]], shape)
        return found

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        found = {key: shape for key, (_, shape) in self.source.layout().items()}
        for key, tensor in {**self.extra, **self.merged.new}.items():
            found[key] = tuple(tensor.shape)
        return found

    def homes(self, names: Names | None = None) -> dict[str, str]:
        """Stored key -> the base's file that it comes from."""
        found = {stored: self.source.home(parts[0]) for stored, parts in self._named(names).items()}
        return {stored: name for stored, name in found.items() if name is not None}

    def _named(self, names: Names | None) -> Names:
        dtypes = self.dtypes()
        if names is None:
            return {key: (key,) for key in dtypes}
        named = {key for parts in names.values() for key in parts}
        lost = sorted(named ^ dtypes.keys())
        if lost:
            raise WeightsError(
                f"No stored key is known for {', '.join(lost)}.",
                "Please report this with the versions in environment.json.",
            )
        return names

    def _maker(
        self, key: str, dtype: torch.dtype, measured: list[Rounding], tick: Callable[[], None]
    ) -> Callable[[], Tensor]:
        @torch.no_grad()
        def make() -> Tensor:
            tuned, base = self.compute(key)
            if base is not None:
                lost = self.source.lost(key)
                measured.append(rounding.measure(key, base, tuned, dtype, lost))
            written = tuned.to(dtype)
            if written is not tuned or base is not None or key in self.merged.new:
                _require_finite(key, tuned, written, dtype)
            tick()
            return written

        return make

    def write(
        self, path: Path, tick: Callable[[], None] = lambda: None, names: Names | None = None
    ) -> tuple[dict[str, Written], list[Rounding]]:
        """As `write_files`, into one file."""
        files = {path.name: tuple(self._named(names))}
        written, measured = self.write_files(path.parent, files, tick, names)
        return written[path.name], measured

    def write_files(
        self,
        folder: Path,
        files: Mapping[str, Sequence[str]],
        tick: Callable[[], None] = lambda: None,
        names: Names | None = None,
    ) -> tuple[dict[str, dict[str, Written]], list[Rounding]]:
        """Stream all tensors into safetensors files, holding one at a time.

        Args:
            folder: where the files go.
            files: name of each -> the stored keys in it.
            tick: called for every tensor.
            names: stored key -> the tensors whose rows it holds; None for the plan's own keys.

        Returns:
            what was written, by file and key, and the rounding of every patched tensor, in key
            order.

        Raises:
            StorageError, WeightsError: the disk or the base fails; a tensor without a stored key.
            Refused: a value that the dtype cannot hold.
        """
        measured: list[Rounding] = []
        dtypes, named = self.dtypes(), self._named(names)
        assert {key for keys in files.values() for key in keys} == named.keys()

        def pending(stored: str) -> Pending:
            parts = named[stored]
            makers = [self._maker(key, dtypes[key], measured, tick) for key in parts]
            return Pending(stored, dtypes[parts[0]], _joined(makers))

        written = {}
        with self.source:
            for name, keys in files.items():
                tensors = [pending(key) for key in keys]
                written[name] = write_stream(folder / name, tensors, {"format": "pt"})
        return written, sorted(measured, key=lambda r: r.key)


def plan_merge(tuner: Tuner, *, dtype: str | None = None, scale: float = 1.0) -> MergePlan:
    """The plan of a tuner that is attached to its backbone.

    Args:
        tuner: with its trained state loaded.
        dtype: name of the dtype to write; None for that of the stored tensors.
        scale: 0 for the base, 1 for the tuned network; beyond 1 extrapolates.

    Raises:
        NotMergeable: the method has no plain weights.
        Refused: no dtype of that name, or a scale that is no finite number.
        WeightsError: the base's files are damaged, or lack what the method changes.
    """
    if not math.isfinite(scale):
        raise Refused(
            f"--scale {scale} is no finite number.", "0 is the base, 1 the tuned network."
        )
    merged = tuner.merge()
    if scale != 1 and not merged.scalable:
        raise Refused(
            f"--scale {scale} has no meaning for {tuner.method.name}: its tokens are there or not.",
            "Leave --scale out.",
        )
    backbone = tuner.backbone
    with tuner.disabled():
        source, extra = weight_source(backbone), backbone.resampled()
    extra = {key: tensor.detach().clone() for key, tensor in extra.items()}
    return MergePlan(source, merged, extra, None if dtype is None else parse_dtype(dtype), scale)


def _joined(makers: Sequence[Callable[[], Tensor]]) -> Callable[[], Tensor]:
    """The rows of several tensors as one; a single one as it is."""
    if len(makers) == 1:
        return makers[0]
    return lambda: torch.cat([make() for make in makers])


def floats(dtypes: Iterable[torch.dtype]) -> set[torch.dtype]:
    """The floating ones."""
    return {d for d in dtypes if d.is_floating_point}


def _require_finite(key: str, tuned: Tensor, written: Tensor, dtype: torch.dtype) -> None:
    if not written.is_floating_point() or not written.numel():
        return
    low, high = written.aminmax()  # one pass, and NaN where a value is that
    if not (math.isfinite(float(low)) and math.isfinite(float(high))):
        if torch.isfinite(tuned).all():
            raise Refused(
                f"{key} holds {float(tuned.abs().max()):.3g}, which {dtype} cannot.",
                "Use `--dtype bfloat16` or `--dtype float32`.",
            )
        raise WeightsError(
            f"{key} holds values that are not finite.",
            "The base or the run is damaged; a diverged run cannot be merged.",
        )
