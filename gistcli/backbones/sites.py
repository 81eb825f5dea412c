"""The seams of a backbone: Site (one linear map) and Point (a place on a residual branch).

Everything a method does to the inside of a backbone goes through these two, as forward hooks: no
module is renamed, replaced or subclassed, so the state-dict keys stay those of the pretrained
model. A tuner passes its own Switch, so that two tuners on one backbone switch off independently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

Map = Callable[[Tensor], Tensor]
Blend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Switch:
    """The state that all hooks of one tuner share.

    Attributes:
        enabled: False leaves every value as the pretrained network computes it.
        gate: (B, T, 1) or None; the tuner acts on tokens whose gate is 1. Neither may change
            between a forward pass and its backward: gradient checkpointing runs hooks again.
        fired: names of the sites and points that have acted since the last `fired.clear()`.
        handles: hook handles, and on_release: what else `release` has to undo.
    """

    def __init__(self) -> None:
        self.enabled = True
        self.gate: Tensor | None = None
        self.fired: set[str] = set()
        self.handles: list[RemovableHandle] = []
        self.on_release: list[Callable[[], object]] = []

    def replace(self, name: str, old: Tensor, new: Tensor) -> Tensor:
        """`old + gate (new - old)` in the dtype of `old`; `new` itself without a gate."""
        if name not in self.fired:
            self.fired.add(name)
        if self.gate is not None:
            new = old + self.gate * (new - old)
        return new.to(old.dtype)

    def add(self, name: str, old: Tensor, delta: Tensor) -> Tensor:
        """`old + gate delta` in the dtype of `old`."""
        if name not in self.fired:
            self.fired.add(name)
        if self.gate is not None:
            delta = self.gate * delta
        return old + delta.to(old.dtype)

    def release(self) -> None:
        """Take all hooks and inserted tokens away."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        for undo in self.on_release:
            undo()
        self.on_release.clear()


def whole(tensor: Tensor) -> Tensor:
    """The full tensor behind a sharded one."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@dataclass(frozen=True, eq=False)
class Site:
    """One linear map y = x W^T + b: a module, or some of its output rows (a fused qkv).

    Attributes:
        name: unique in the backbone; the module's path, with `[role]` where rows are a slice.
        module_name: path of the module.
        role: query, key, value, attn_out, fc_in, fc_out, or the family's own name for it.
        layer: index of the block, from 0.
        rows: output rows that belong to this site; None for all.
    """

    name: str
    module_name: str
    role: str
    layer: int
    module: nn.Linear = field(repr=False)
    rows: slice | None = None

    @property
    def d_in(self) -> int:
        """Width of x."""
        return self.module.in_features

    @property
    def d_out(self) -> int:
        """Width of y; of the slice where there is one."""
        return self.module.out_features if self.rows is None else self.rows.stop - self.rows.start

    def weight(self) -> Tensor:
        """(d_out, d_in), as it stands in the module now."""
        weight_OI = whole(self.module.weight)
        return weight_OI if self.rows is None else weight_OI[self.rows]

    def map_input(self, function: Map, switch: Switch) -> None:
        """Let the module read `function(x)` instead of x (..., d_in). Needs whole rows."""
        if self.rows is not None:
            raise ValueError(f"{self.name} is a slice of rows: its input is shared with other rows")

        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not switch.enabled:
                return None
            return (switch.replace(self.name, args[0], function(args[0])), *args[1:])

        switch.handles.append(self.module.register_forward_pre_hook(hook))

    def add_output(self, function: Map, switch: Switch) -> None:
        """Add `function(x)` (..., d_out) to y, where x is the input after all `map_input`."""

        def hook(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor | None:
            if not switch.enabled:
                return None
            delta = function(args[0])
            if self.rows is not None:
                # padded, not sliced and put together: the gradient of y passes without a copy
                delta = F.pad(delta, (self.rows.start, y.shape[-1] - self.rows.stop))
            return switch.add(self.name, y, delta)

        switch.handles.append(self.module.register_forward_hook(hook))


@dataclass(frozen=True, eq=False)
class Point:
    """A place on a residual branch, for methods that transform activations (adapters, SSF).

    `after` "attention" and "mlp" stand on the branch after LayerScale and DropPath: in
    `residual + branch(norm(residual))` the method sees x_in = norm(residual), y = the branch's
    output and the residual itself. `after` a role stands behind that linear map, whose residual
    is the one of its branch.

    Attributes:
        name: unique in the backbone.
        after: attention, mlp or a role.
        layer: index of the block, from 0.
        entry: module whose input is the residual; inner: module whose input is x_in;
        exit: module whose output is y.
    """

    name: str
    after: str
    layer: int
    width: int
    entry: nn.Module = field(repr=False)
    inner: nn.Module = field(repr=False)
    exit: nn.Module = field(repr=False)

    def map_output(self, function: Blend, switch: Switch) -> None:
        """Replace y (B, T, width) by `function(x_in, y, residual)`."""
        seen: dict[str, Tensor] = {}

        def keep(key: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
                if switch.enabled:
                    seen[key] = args[0]

            return hook

        def hook(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor | None:
            if not switch.enabled:
                return None
            x_in, residual = seen.pop("inner"), seen.pop("entry")
            return switch.replace(self.name, y, function(x_in, y, residual))

        switch.handles += [
            self.entry.register_forward_pre_hook(keep("entry")),
            self.inner.register_forward_pre_hook(keep("inner")),
            self.exit.register_forward_hook(hook),
        ]
