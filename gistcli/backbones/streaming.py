"""Networks larger than the memory: weights in float32 only while their block computes.

transformers maps files of the dtype that is asked for into memory and copies nothing. `empty`
takes these tensors out of the network and leaves float32 stand-ins of one element; `compute` puts
each block's weights in place as the block starts, and takes them out as it ends.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Read = Callable[[str], Tensor]
"""Name of a parameter -> its values."""
Change = Callable[[Tensor], Tensor]
"""A stored weight -> that which a network computes with, float32."""
Named = list[tuple[str, nn.Parameter]]
Result = TypeVar("Result")
_PAGEOUT = 21
"""Linux's MADV_PAGEOUT."""


def empty(model: nn.Module, changes: Mapping[str, Change] | None = None) -> None:
    """Take the weights out of a network of transformers, which computes in float32 from then on.

    Nothing is lost: `stored` gives them.

    Args:
        model: whose parameters are as the files hold them.
        changes: by name, what is done to a weight each time that it is read: a quantised network
            computes with others than those of its files.
    """
    for name, parameter in model.named_parameters():
        values = parameter.data
        if values.numel() < 2:  # as large as its stand-in
            parameter.data = values.float()
            continue
        parameter._gist_stored = values  # type: ignore[attr-defined]
        if changes is not None and name in changes:
            parameter._gist_change = changes[name]  # type: ignore[attr-defined]
        parameter.data = torch.zeros((), dtype=torch.float32).expand(values.shape)
    _widen_buffers(model)


def _widen_buffers(model: Any) -> None:
    """Constants that were rounded as the network was built in a lower precision."""
    for name, buffer in list(model.named_buffers()):
        if not buffer.is_floating_point() or buffer.dtype == torch.float32:
            continue
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        module._buffers[last] = buffer.float()
        if last in module._non_persistent_buffers_set:
            with torch.no_grad():
                model._init_weights(module)  # weights are marked as loaded, and stay


def stored(parameter: Tensor) -> Tensor:
    """The values of a parameter, also of one that `empty` took out; not to be written to."""
    if is_empty(parameter):
        values: Tensor = parameter._gist_stored  # type: ignore[attr-defined]
        change: Change | None = getattr(parameter, "_gist_change", None)
        return (values if change is None else change(values)).float()
    return parameter


def changes_of(model: nn.Module) -> dict[str, Change]:
    """By name, what `empty` was asked to do to weights as they are read."""
    found = {n: getattr(p, "_gist_change", None) for n, p in model.named_parameters()}
    return {name: change for name, change in found.items() if change is not None}


def is_empty(parameter: Tensor) -> bool:
    """Whether `empty` took the values of a parameter out."""
    taken = hasattr(parameter, "_gist_stored")
    return taken and parameter.untyped_storage().nbytes() < parameter.nbytes


def compute(model: nn.Module, call: Callable[[], Result], read: Read | None = None) -> Result:
    """What `call` gives, with the weights in place while they are needed.

    Args:
        model: on the CPU; `empty` took its weights out.
        call: runs it, once.
        read: gives all parameters of the network, by name; None puts those that were taken out in
            place, and leaves the others alone.
    """
    names = [(name, p) for name, p in model.named_parameters() if read is not None or is_empty(p)]
    chosen: Read = read or _reader(names)
    units = _units(model)
    with torch.no_grad(), _filled(model, units, names, chosen) as ran:
        result = call()
    if len(ran) == len(units):
        return result
    with torch.no_grad(), _filled(model, [], names, chosen):  # some blocks are no calls
        return call()


def _reader(names: Named) -> Read:
    by_name = dict(names)
    return lambda name: stored(by_name[name])


@contextmanager
def _filled(
    model: nn.Module, units: Sequence[nn.Module], names: Named, read: Read
) -> Iterator[set[int]]:
    """The weights outside of all units, and those of each while it runs; yields which have run."""
    ran: set[int] = set()
    handles: list[RemovableHandle] = []
    inside: set[int] = set()
    for unit in units:
        within = {id(p) for p in unit.parameters()}
        part = [(name, p) for name, p in names if id(p) in within]
        inside |= within
        handles += _around(unit, part, read, ran)
    for module in _embeddings(model, inside):
        own = {id(p) for p in module.parameters(recurse=False)}
        part = [(name, p) for name, p in names if id(p) in own]
        inside |= own
        handles += _around(module, part, read, set())
    rest = [(name, p) for name, p in names if id(p) not in inside]
    try:
        before = _put(rest, read)
        try:
            yield ran
        finally:
            _restore(rest, before)
    finally:
        for handle in handles:
            handle.remove()


def _around(unit: nn.Module, part: Named, read: Read, ran: set[int]) -> list[RemovableHandle]:
    kept: list[list[Tensor]] = []

    def start(module: nn.Module, args: Any) -> None:
        ran.add(id(module))
        kept.append(_put(part, read))

    def end(module: nn.Module, args: Any, output: Any) -> None:
        if kept:  # not so where reading failed
            _restore(part, kept.pop())

    return [
        unit.register_forward_pre_hook(start, prepend=True),
        unit.register_forward_hook(end, always_call=True),
    ]


def _put(part: Named, read: Read) -> list[Tensor]:
    filled = [read(name).to(torch.float32) for name, _ in part]  # all of them, or none
    before = [parameter.data for _, parameter in part]
    for (_, parameter), values in zip(part, filled, strict=True):
        parameter.data = values
    return before


def _restore(part: Named, before: Sequence[Tensor]) -> None:
    for (_, parameter), values in zip(part, before, strict=True):
        parameter.data = values
        if is_empty(parameter):
            _let_go(parameter._gist_stored)  # type: ignore[attr-defined]


def _let_go(mapped: Tensor) -> None:
    """Tell the system (Linux) that these pages of a file can leave the memory."""
    if not sys.platform.startswith("linux"):
        return
    first = -(-mapped.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = mapped.data_ptr() + mapped.nbytes - first
    if size >= mmap.PAGESIZE:
        size -= size % mmap.PAGESIZE
        # advice: nothing is lost where it is not followed
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), _PAGEOUT)


def _units(model: nn.Module) -> list[nn.Module]:
    """The elements of the outermost lists of modules: the blocks."""
    found: list[nn.Module] = []
    for child in model.children():
        found += list(child) if isinstance(child, nn.ModuleList) else _units(child)
    return found


def _embeddings(model: Any, inside: Collection[int]) -> list[nn.Module]:
    """The modules that hold the vocabulary: the first and last of a network, mostly tied."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    weights = {id(p) for end in ends if end is not None for p in end.parameters(recurse=False)}
    return [
        module
        for module in model.modules()
        if any(id(p) in weights - set(inside) for p in module.parameters(recurse=False))
    ]
