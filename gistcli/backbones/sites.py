"""The seams of a backbone: Site (a linear map), Point (a residual branch), Output (a module).

Everything a method does to the inside of a backbone goes through these, as forward hooks: no
module is renamed, replaced or subclassed, so the state-dict keys stay those of the pretrained
model. A tuner passes its own Switch, so that two tuners on one backbone switch off independently.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from gistcli.backbones.quantised import dequantised, is_quantised
from gistcli.backbones.streaming import stored
from gistcli.errors import NotSupported

Map = Callable[[Tensor], Tensor]
Factors = Callable[[Tensor], tuple[Tensor, Tensor]]
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

    def mark(self, name: str) -> None:
        """Note that a site, point or slot has acted."""
        if name not in self.fired:  # a compiled graph changes nothing in the second pass
            self.fired.add(name)

    def replace(self, name: str, old: Tensor, new: Tensor) -> Tensor:
        """`old + gate (new - old)` in the dtype of `old`; `new` itself without a gate."""
        self.mark(name)
        if self.gate is not None:
            new = old + self.gate * (new - old)
        return new.to(old.dtype)

    def add(self, name: str, old: Tensor, delta: Tensor) -> Tensor:
        """`old + gate delta` in the dtype of `old`."""
        self.mark(name)
        if self.gate is not None:
            delta = self.gate * delta
        return old + delta.to(old.dtype)

    def add_product(self, name: str, old: Tensor, code: Tensor, b_OR: Tensor) -> Tensor:
        """`old + gate code b^T` by parts of the width of b, see `Site.add_product`."""
        self.mark(name)
        if self.gate is not None:
            code = self.gate * code
        width, rank = b_OR.shape
        parts, codes = old.reshape(-1, width), code.reshape(-1, rank)
        return torch.addmm(parts, codes.to(old.dtype), b_OR.t().to(old.dtype)).view(old.shape)

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


def within_block(path: str) -> str:
    """What stands behind the block's number, which need not be the layer's, in a path or name."""
    return re.sub(r"^.*\.\d+\.", "", path)


@dataclass(frozen=True, eq=False)
class Site:
    """One linear map y = x W^T + b: a module, or some of its output rows (a fused qkv).

    Attributes:
        name: unique in the backbone; the module's path, with `[role]` where rows are a slice.
        module_name: path of the module.
        role: query, key, value, attn_out, fc_in, fc_gate, fc_out, or the family's own name for it.
        layer: index of the block, from 0.
        rows: output rows that belong to this site; None for all.
        parent: the module that reads W itself and never calls the linear one (BEiT, Eva with a
            bias of the query); x is its input. None where the linear module is called.
    """

    name: str
    module_name: str
    role: str
    layer: int
    module: nn.Linear = field(repr=False)
    rows: slice | None = None
    parent: nn.Module | None = field(default=None, repr=False)

    @property
    def family_name(self) -> str:
        """The family's own name for the map: `attn.proj` for `blocks.3.attn.proj`."""
        return within_block(self.module_name)

    @property
    def transposed(self) -> bool:
        """Whether the module keeps W as (d_in, d_out): GPT-2's Conv1D."""
        return hasattr(self.module, "nf")

    @property
    def d_in(self) -> int:
        """Width of x."""
        module: Any = self.module
        return int(module.nx if self.transposed else module.in_features)

    @property
    def d_out(self) -> int:
        """Width of y; of the slice where there is one."""
        if self.rows is not None:
            return int(self.rows.stop - self.rows.start)
        module: Any = self.module
        return int(module.nf if self.transposed else module.out_features)

    def weight(self) -> Tensor:
        """(d_out, d_in), the module's own, without what tuners put in its place."""
        if is_quantised(self.module):
            weight_OI = dequantised(self.module)
            return weight_OI if self.rows is None else weight_OI[self.rows]
        weight_OI = whole(stored(self.module._parameters["weight"]))  # type: ignore[arg-type]
        weight_OI = weight_OI.t() if self.transposed else weight_OI
        return weight_OI if self.rows is None else weight_OI[self.rows]

    def map_input(self, function: Map, switch: Switch) -> None:
        """Let the module read `function(x)` instead of x (..., d_in). Needs whole rows."""
        if self.rows is not None:
            raise ValueError(f"{self.name} is a slice of rows: its input is shared with other rows")

        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not switch.enabled:
                return None
            return (switch.replace(self.name, args[0], function(args[0])), *args[1:])

        target = self.module if self.parent is None else self.parent
        switch.handles.append(target.register_forward_pre_hook(hook))

    def add_output(self, function: Map, switch: Switch) -> None:
        """Add `function(x)` (..., d_out) to y, where x is the input after all `map_input`.

        Where the module is never called, W + dW stands in its place while the parent runs, with dW
        read off by `function(identity)`: `function` has to be linear, without a bias.
        """
        if self.parent is not None:
            self._place_weight(function, switch)
            return

        def hook(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor | None:
            if not switch.enabled:
                return None
            delta = function(args[0])
            if self.rows is not None:
                # padded, not sliced and put together: the gradient of y passes without a copy
                delta = F.pad(delta, (self.rows.start, y.shape[-1] - self.rows.stop))
            return switch.add(self.name, y, delta)

        switch.handles.append(self.module.register_forward_hook(hook))

    def add_product(self, factors: Factors, switch: Switch) -> None:
        """Add a product of low rank to y in one kernel, without a tensor of the update.

        Args:
            factors: from x to code (..., G R) and b (d_out / G, R). y is cut into G parts of equal
                width, and part g gains code_g b^T; G = 1 is an update of rank R.
            switch: the tuner's.
        """

        def product(x: Tensor) -> Tensor:
            code, b_OR = factors(x)
            groups = self.d_out // len(b_OR)
            return (code.unflatten(-1, (groups, -1)) @ b_OR.t().to(code.dtype)).flatten(-2)

        if self.parent is not None or self.rows is not None:
            self.add_output(product, switch)
            return

        def hook(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor | None:
            if not switch.enabled:
                return None
            code, b_OR = factors(args[0])
            return switch.add_product(self.name, y, code, b_OR)

        switch.handles.append(self.module.register_forward_hook(hook))

    def _place_weight(self, function: Map, switch: Switch) -> None:
        assert self.parent is not None
        linear = self.module

        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            if not switch.enabled:
                return
            if switch.gate is not None:
                raise NotSupported(
                    f"{self.name} cannot act on some tokens alone: the network reads its weight.",
                    "Choose other method.targets.",
                )
            w_OI = linear.weight
            delta_IO = function(torch.eye(self.d_in, dtype=w_OI.dtype, device=w_OI.device))
            delta_OI = delta_IO.t()
            if self.rows is not None:
                delta_OI = F.pad(delta_OI, (0, 0, self.rows.start, len(w_OI) - self.rows.stop))
            # an instance attribute hides the Parameter, which stays in its place in the state dict
            object.__setattr__(linear, "weight", switch.add(self.name, w_OI, delta_OI))

        def after(module: nn.Module, args: tuple[Any, ...], y: Any) -> None:
            # not object.__delattr__, which torch.compile cannot trace
            linear.__dict__.pop("weight", None)

        switch.handles += [
            self.parent.register_forward_pre_hook(before),
            # also when the forward pass fails: the pretrained weight must not stay hidden
            self.parent.register_forward_hook(after, always_call=True),
        ]


@dataclass(frozen=True, eq=False)
class Tap:
    """A tensor that a module reads, or (`output`) gives."""

    module: nn.Module
    output: bool = False

    def listen(self, keep: Callable[[Tensor], None]) -> RemovableHandle:
        """Hand the tensor of every forward pass to `keep`."""
        if self.output:
            return self.module.register_forward_hook(lambda _, __, y: keep(y))
        return self.module.register_forward_pre_hook(lambda _, args: keep(args[0]))


@dataclass(frozen=True, eq=False)
class Point:
    """A place on a residual branch, for methods that transform activations (adapters).

    `after` "attention" and "mlp" stand at the end of the branch, after LayerScale and DropPath: in
    `residual + branch(norm(residual))` the method sees x_in = norm(residual), y = the branch's
    output and the residual itself. `after` a role stands behind that linear map, whose residual
    is the one of its branch.

    Attributes:
        name: unique in the backbone.
        after: attention, mlp or a role.
        layer: index of the block, from 0.
        width: of y.
        residual, x_in: where these two are read.
        exit: module whose output is y.
        aligned: x_in and residual have the shape of y; not so where a block pools its tokens.
    """

    name: str
    after: str
    layer: int
    width: int
    residual: Tap = field(repr=False)
    x_in: Tap = field(repr=False)
    exit: nn.Module = field(repr=False)
    aligned: bool = True

    def map_output(self, function: Blend, switch: Switch) -> None:
        """Replace y (B, T, width), on Swin (B, H, W, width), by `function(x_in, y, residual)`."""
        seen: dict[str, Tensor] = {}

        def keeper(key: str) -> Callable[[Tensor], None]:
            def keep(tensor: Tensor) -> None:
                if switch.enabled:
                    seen[key] = tensor

            return keep

        def hook(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor | None:
            if not switch.enabled:
                return None
            x_in, residual = seen.pop("x_in"), seen.pop("residual")
            return switch.replace(self.name, y, function(x_in, y, residual))

        switch.handles += [
            self.residual.listen(keeper("residual")),
            self.x_in.listen(keeper("x_in")),
            self.exit.register_forward_hook(hook),
        ]


@dataclass(frozen=True, eq=False)
class Output:
    """The output of one affine module, for methods that scale and shift it (SSF).

    Attributes:
        name: path of the module.
        kind: linear, norm or embed (the patch embedding's convolution).
        width: number of channels.
        bypassed: the module is never called (see `Site.parent`), so that it has no output.
        offset: what the module adds to its weight before it multiplies.
    """

    name: str
    kind: str
    width: int
    module: nn.Module = field(repr=False)
    bypassed: bool = False
    offset: float = 0.0

    @property
    def has_bias(self) -> bool:
        """Whether a shift can be merged into the module."""
        return getattr(self.module, "bias", None) is not None

    def map_output(self, function: Map, switch: Switch) -> None:
        """Replace y by `function(y)`, which sees channels last whatever the module does.

        Raises:
            NotSupported: the network never calls the module.
        """
        if self.bypassed:
            raise NotSupported(
                f"{self.name} is never called: the network reads its weight.",
                "Choose another method for this network.",
            )
        axis = 1 if isinstance(self.module, nn.Conv2d) else -1

        def hook(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor | None:
            if not switch.enabled:
                return None
            last = y.movedim(axis, -1)
            return switch.replace(self.name, last, function(last)).movedim(-1, axis)

        switch.handles.append(self.module.register_forward_hook(hook))
