"""Training parameters of the backbone itself, so that the pretrained ones can be put back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gistcli.backbones.base import Backbone
from gistcli.errors import NotSupported


class OwnedParameters:
    """Fresh float32 parameters in the place, and under the name, of pretrained ones.

    They live in the backbone's tree only (a parameter in two trees cannot be sharded). All aliases
    of a tied parameter change together.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._places: dict[str, list[tuple[nn.Module, str]]] = {}
        self._pretrained: dict[str, nn.Parameter] = {}
        self._trained: dict[str, nn.Parameter] = {}
        self._groups: dict[str, Literal["method", "head"]] = {}
        self._casts: list[RemovableHandle] = []
        self._inside = True

    def take(self, names: Sequence[str], group: Literal["method", "head"]) -> None:
        """Own these parameters of `backbone.model`.

        Raises:
            ValueError: one of them is owned already, by this tuner or another one.
        """
        aliases = _aliases(self._backbone.model)
        for name in names:
            module, last = self._backbone.parameter_owner(name)
            old = module._parameters[last]
            if old is None or getattr(old, "_gist_owned", False):
                raise ValueError(f"{name} is already trained, or does not exist")
            if not old.is_floating_point():
                raise NotSupported(
                    f"{name} is kept in fewer bits (model.quantize), so that it cannot be trained.",
                    "Leave model.quantize out, or choose a method beside the weights (gift, lora).",
                )
            new = nn.Parameter(old.detach().to(torch.float32, copy=True))
            new._gist_owned = True  # type: ignore[attr-defined]
            self._places[name] = aliases[id(old)]
            self._pretrained[name], self._trained[name] = old, new
            self._groups[name] = group
        self._reconcile(names, keep_output=group == "head")
        self.swap_in()

    def _reconcile(self, names: Sequence[str], *, keep_output: bool) -> None:
        """Let float32 parameters stand in a network of lower precision."""
        mixed: dict[nn.Module, list[str]] = {}
        dtypes: dict[nn.Module, torch.dtype] = {}
        for name in names:
            dtype = self._pretrained[name].dtype
            if dtype != torch.float32:
                for module, last in self._places[name]:
                    mixed.setdefault(module, []).append(last)
                    dtypes[module] = dtype
        owned = {(module, last) for places in self._places.values() for module, last in places}
        if not mixed:
            return
        read_by: dict[nn.Module, nn.Module] = {
            site.module: site.parent for site in self._backbone.all_sites() if site.parent
        }
        for module, lasts in mixed.items():
            leaf = next(module.children(), None) is None
            if leaf and module not in read_by and _parameters_within(module) <= owned:
                self._cast_around(module, dtypes[module], keep_output=keep_output)
            else:
                reader = read_by.get(module, module)
                self._cast_down(module, dtypes[module], lasts, reader)

    def _cast_around(self, module: nn.Module, dtype: torch.dtype, *, keep_output: bool) -> None:
        """A layer that is owned as a whole computes in float32."""

        def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not self._inside or torch.is_autocast_enabled(args[0].device.type):
                return None
            return tuple(a.float() if a.is_floating_point() else a for a in args)

        self._casts.append(module.register_forward_pre_hook(before))
        if not keep_output:

            def after(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor | None:
                return y.to(dtype) if self._inside else None

            self._casts.append(module.register_forward_hook(after))

    def _cast_down(
        self, module: nn.Module, dtype: torch.dtype, lasts: Sequence[str], reader: nn.Module
    ) -> None:
        """Other modules compute in their own dtype, with casts of what is owned.

        `reader` is the module itself, or the one that reads its weight and never calls it.
        """

        def before(_: nn.Module, args: tuple[Any, ...]) -> None:
            if not self._inside or torch.is_autocast_enabled(args[0].device.type):
                return
            for last in lasts:
                parameter = module._parameters[last]
                assert parameter is not None, last
                # an instance attribute hides the Parameter, which keeps its place
                module.__dict__[last] = parameter.to(dtype)

        def after(_: nn.Module, args: tuple[Any, ...], y: Any) -> None:
            for last in lasts:
                module.__dict__.pop(last, None)

        self._casts += [
            reader.register_forward_pre_hook(before),
            reader.register_forward_hook(after, always_call=True),
        ]

    def items(self) -> Iterator[tuple[str, tuple[nn.Parameter, Literal["method", "head"]]]]:
        """Name, trained parameter and group.

        The parameter is read from its module, where sharding may have replaced it.
        """
        for name, places in self._places.items():
            module, last = places[0]
            parameter = module._parameters[last] if self._inside else self._trained[name]
            assert parameter is not None, name
            yield name, (parameter, self._groups[name])

    def swap_in(self) -> None:
        """The trained parameters take their places."""
        for name, places in self._places.items():
            module, last = places[0]
            current = module._parameters[last]
            assert current is not None, name
            self._trained[name] = _beside(self._trained[name], current)
            for module, last in places:
                module._parameters[last] = self._trained[name]
        self._inside = True

    def swap_out(self) -> None:
        """The pretrained parameters come back."""
        for name, places in self._places.items():
            module, last = places[0]
            current = module._parameters[last]
            assert current is not None, name
            self._trained[name] = current
            # the pretrained one stood in no module when the network was moved
            self._pretrained[name] = _beside(self._pretrained[name], current)
            for module, last in places:
                module._parameters[last] = self._pretrained[name]
        self._inside = False

    def release(self) -> None:
        """Put everything back for good."""
        if self._inside:
            self.swap_out()
        for handle in self._casts:
            handle.remove()
        for table in (self._places, self._pretrained, self._trained, self._groups):
            table.clear()
        self._casts.clear()


def _beside(parameter: nn.Parameter, other: nn.Parameter) -> nn.Parameter:
    """The parameter itself, or one like it where the other lies on another device."""
    if parameter.device == other.device:
        return parameter
    return nn.Parameter(parameter.detach().to(other.device), parameter.requires_grad)


def _aliases(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Every place where a parameter stands, by identity."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for last, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, last))
    return places


def _parameters_within(module: nn.Module) -> set[tuple[nn.Module, str]]:
    """Every place of a parameter in a module and below it."""
    return {
        (child, last)
        for child in module.modules()
        for last, parameter in child._parameters.items()
        if parameter is not None
    }
