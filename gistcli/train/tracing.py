"""What a training step will hold in memory, found without weights, data or arithmetic.

A step of the objective, forward and backward, runs on tensors that have shapes and no storage, and
every storage that it would have made is counted from its birth to its death. So the figure follows
from the operations themselves, whatever family, method and precision, and what is recomputed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gistcli.backbones.base import Backbone
from gistcli.methods.base import Tuner
from gistcli.objectives.base import Batch, Objective

KEPT = 2
"""Equal blocks that are run; each further one adds what the third adds to two."""
MOST_RUNS = 3
"""With more kinds of blocks all are run."""


@dataclass(frozen=True)
class Peak:
    """What a step holds at once, at most, beside parameters, their gradients and the batch.

    Attributes:
        bytes: all of it.
        logits: what of it has the vocabulary as its last dimension.
        saved: what the forward pass leaves for the backward pass.
    """

    bytes: int
    logits: int
    saved: int


class Tracer:
    """Runs steps of a tuner that stands on the meta device.

    Args:
        tuner: attached to a network without weights; it is used up, since its parameters and those
            of the network become tensors without storage on `device`.
        device: where the step will be computed; attention chooses its kernel by it.
        precision: fp32 or bf16 autocast.
    """

    def __init__(self, tuner: Tuner, device: torch.device, precision: str = "fp32") -> None:
        self.tuner = tuner
        # what computes elsewhere is counted as on a CPU
        self.device = device if device.type == "cuda" else torch.device("cpu")
        self.precision = precision
        self._mode = FakeTensorMode()
        self._known: list[Any] = []
        self._replace()

    def peak(self, objective: Objective, batch: Batch) -> Peak:
        """The peak of one step on a micro-batch, in training mode.

        Args:
            objective: around the tuner.
            batch: real, or on the meta device where only the shapes are known.
        """
        objective.train()
        runs = equal_runs(self.tuner.backbone)
        if len(runs) > MOST_RUNS or all(run.length <= KEPT + 1 for run in runs):
            return self._run(objective, batch)
        try:
            return self._extrapolate(objective, batch, runs)
        except (AttributeError, IndexError, KeyError):  # a network that looks for its blocks
            return self._run(objective, batch)

    def _extrapolate(self, objective: Objective, batch: Batch, runs: list[Run]) -> Peak:
        """By blocks that do the same: what one of them adds, as often as it stands there."""
        few = [min(run.length, KEPT) for run in runs]
        with shortened(runs, few):
            base = self._run(objective, batch)
        total = base
        for i, run in enumerate(runs):
            further = run.length - KEPT
            if further > 0:
                with shortened(runs, [n + (i == k) for k, n in enumerate(few)]):
                    more = self._run(objective, batch)
                total = Peak(
                    total.bytes + further * (more.bytes - base.bytes),
                    total.logits,
                    total.saved + further * (more.saved - base.saved),
                )
        return total

    def _replace(self) -> None:
        """Tensors without storage take the place of those on the meta device; ties stay ties."""
        made: dict[int, Tensor] = {}
        for module in [*self.tuner.backbone.model.modules(), *self.tuner.modules()]:
            for table in (module._parameters, module._buffers):
                for name, old in table.items():
                    if old is not None:
                        if id(old) not in made:
                            made[id(old)] = self._fake(old)
                        table[name] = made[id(old)]  # type: ignore[assignment]
        self._known = [tensor.untyped_storage() for tensor in made.values()]
        for trained in self.tuner.trainable().values():
            with self._mode:  # gradients are there from the second micro-batch on
                trained.parameter.grad = torch.zeros_like(trained.parameter)
            self._known.append(trained.parameter.grad.untyped_storage())

    def _fake(self, old: Tensor) -> Tensor:
        with self._mode:
            new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=self.device)
        if isinstance(old, nn.Parameter):
            return nn.Parameter(new, requires_grad=old.requires_grad)
        return new

    def _run(self, objective: Objective, batch: Batch) -> Peak:
        count = objective.count(batch)
        with self._mode:
            fake = {k: torch.empty(v.shape, dtype=v.dtype, device=self.device)
                    for k, v in batch.items()}  # fmt: skip
        known = [*self._known, *(t.untyped_storage() for t in fake.values())]
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bf16"
        )
        live = _Live(known, int(count), _vocabulary(self.tuner.backbone))
        with self._mode, live, self.tuner.step():
            with autocast:
                total = objective(fake, count).total
            saved = live.bytes
            total.backward()
        return Peak(live.peak, live.logits_at_peak, saved)


# --- counting -----------------------------------------------------------------------------------


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that are alive.

    Args:
        known: storages that are not counted.
        picked: places that a mask picks, since a mask without values picks none.
        vocabulary: last dimension by which logits are told; 0 for none.
    """

    def __init__(self, known: list[Any], picked: int, vocabulary: int) -> None:
        super().__init__()
        self._seen = {storage._cdata for storage in known}
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._picked, self._vocabulary = picked, vocabulary
        self.bytes = self.peak = self.logits = self.logits_at_peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # asked for all the time, and slow to dispatch
        if func is torch.ops.aten._local_scalar_dense.default:
            return _zero(args[0].dtype)  # a decision by values: `mask.all()` is then false
        if func in _PICKING:
            args = (args[0], self._places(args[0], args[1]), *args[2:])
        out = func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return out

    def _places(self, source: Tensor, index: Any) -> list[Tensor | None]:
        """Numbers of places instead of masks, as many as the mask will pick."""
        places: list[Tensor | None] = []
        for one in index:
            if one is not None and one.dtype == torch.bool:
                shape, device = (self._picked,), source.device
                places += [torch.empty(shape, dtype=torch.int64, device=device)
                           for _ in range(one.ndim)]  # fmt: skip
            else:
                places.append(one)
        return places

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or key in self._alive:
            return
        is_logits = bool(self._vocabulary) and tensor.shape[-1:] == (self._vocabulary,)
        self._alive[key] = weakref.ref(storage, self._forget(key, size, is_logits))
        self.bytes += size
        self.logits += size if is_logits else 0
        if self.bytes > self.peak:
            self.peak, self.logits_at_peak = self.bytes, self.logits

    def _forget(self, key: int, size: int, is_logits: bool) -> Callable[[Any], None]:
        def forget(_: Any) -> None:
            self._alive.pop(key, None)
            self.bytes -= size
            self.logits -= size if is_logits else 0

        return forget


_PICKING = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}


def _zero(dtype: torch.dtype) -> bool | int | float:
    if dtype == torch.bool:
        return False
    return 0.0 if dtype.is_floating_point else 0


def _vocabulary(backbone: Any) -> int:
    """Words of a language model; 0 where nothing is predicted word by word."""
    if getattr(backbone, "task", "classification") == "classification":
        return 0
    return int(getattr(backbone.config, "vocab_size", 0))


# --- equal blocks -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Run:
    """A stretch of blocks on which a method acts in the same way.

    Attributes:
        container: the list that holds them, among others.
        names: of its children that belong to the stretch.
    """

    container: nn.Module
    names: list[str]

    @property
    def length(self) -> int:
        """How many blocks."""
        return len(self.names)


def equal_runs(backbone: Backbone) -> list[Run]:
    """The stretches of all lists of blocks, in order; none where the blocks differ in shape."""
    blocks = {id(block) for block in backbone.blocks}
    runs: list[Run] = []
    for container in backbone.model.modules():
        children = list(container.named_children())
        inside = isinstance(container, nn.ModuleList | nn.Sequential) and children
        if not inside or not all(id(child) in blocks for _, child in children):
            continue
        if len({_shapes(child) for _, child in children}) > 1:
            return []
        before: Any = None
        for name, child in children:
            if (signature := _signature(child)) == before:
                runs[-1].names.append(name)
            else:
                runs.append(Run(container, [name]))
            before = signature
    return runs


def _shapes(block: nn.Module) -> Any:
    own = ((n, tuple(p.shape)) for n, p in block.named_parameters())
    return tuple(own)


def _signature(block: nn.Module) -> Any:
    return tuple(
        (
            name,
            type(module).__name__,
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            tuple(n for n, p in module._parameters.items() if p is not None and p.requires_grad),
        )
        for name, module in block.named_modules()
    )


@contextmanager
def shortened(runs: list[Run], keep: list[int]) -> Iterator[None]:
    """Inside, only the first `keep[i]` blocks of the run i are in their list."""
    before = {run.container: dict(run.container._modules) for run in runs}
    try:
        for container in before:
            pairs = zip(runs, keep, strict=True)
            names = [n for run, k in pairs if run.container is container for n in run.names[:k]]
            kept = (before[container][name] for name in names)
            container._modules = {str(i): block for i, block in enumerate(kept)}
        yield
    finally:
        for container, children in before.items():
            container._modules = children
