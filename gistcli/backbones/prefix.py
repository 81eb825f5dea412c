"""Keys and values in front of every text, in every layer of a decoder.

A prefix stands in the cache as the network itself would leave it there behind P tokens: keys are
already rotated for the positions 0 to P - 1, and the text goes on at P. So what is trained here is
what plain `generate(past_key_values=...)` of transformers takes.

Shape suffixes: L = layers, B = rows, N = B, or 1 for the same prefix in all rows, H = heads of keys
and values, P = positions of the prefix, E = width of a head, T = tokens of the text.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones.segments import mixing, packed_mask, positions_within
from gistcli.backbones.sites import Site, Switch
from gistcli.backbones.triangular import TriangularMask, triangular
from gistcli.errors import NotSupported

SLOT = "prefix"
CACHES = ("cache", "past_key_values", "layer_past")
"""What versions (`cache` since 5.24) and families call the argument of earlier keys and values."""
HINT = "Choose a method that acts inside the network, such as gift or lora."


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of P positions, for every layer.

    Attributes:
        keys: (L, N, H, P, E), rotated for the positions 0 to P - 1 where the network rotates.
        values: (L, N, H, P, E).
        start: (N,) positions of the first keys where these are not 0; only a single pass without
            a cache takes such a prefix, and goes on behind it.
    """

    keys: Tensor
    values: Tensor
    start: Tensor | None = None

    @property
    def length(self) -> int:
        """P."""
        return self.keys.shape[-2]

    @property
    def end(self) -> int | Tensor:
        """The position at which a text goes on: P, or (N, 1)."""
        return self.length if self.start is None else self.start[:, None] + self.length

    def cache(self, config: Any, rows: int, dtype: torch.dtype | None = None) -> Any:
        """A new cache of transformers (5.x) that begins with this prefix in each of `rows`.

        It grows in place as text is written: every call of `generate` needs its own.
        """
        from transformers import DynamicCache

        found = DynamicCache(config=config)
        self.fill(found, rows, dtype)
        return found

    def fill(self, cache: Any, rows: int, dtype: torch.dtype | None = None) -> None:
        """Put the prefix into an empty cache."""
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            both = (t.to(dtype or t.dtype).expand(rows, -1, -1, -1) for t in (keys, values))
            cache.update(*both, layer)


def cache_name(network: nn.Module) -> str:
    """What a network of transformers calls the argument for a cache."""
    return _cache_name(network) or CACHES[0]


def given_cache(given: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a network; None without one."""
    return next((given[name] for name in CACHES if given.get(name) is not None), None)


def _cache_name(module: nn.Module) -> str | None:
    taken = inspect.signature(module.forward).parameters
    return next((name for name in CACHES if name in taken), None)


def prefix_of(network: Any, batch: Mapping[str, Any], places: Tensor | None = None) -> Prefix:
    """What a decoder computes of texts (N, T): keys and values where they stand in the text.

    Args:
        network: of transformers, with or without its head.
        batch: `input_ids`, or `inputs_embeds`, and whatever else its forward pass takes.
        places: (N, P), the tokens whose keys and values to keep; None for all of a text without
            padding.
    """
    from transformers import DynamicCache

    cache: Any = DynamicCache()  # without the config, so that layers with a window keep everything
    network.base_model(**batch, **{cache_name(network): cache}, use_cache=True)

    def kept(whole_NHTE: Tensor) -> Tensor:
        if places is None:
            return whole_NHTE
        index = places[:, None, :, None].expand(-1, whole_NHTE.shape[1], -1, whole_NHTE.shape[3])
        return whole_NHTE.gather(2, index)

    keys = torch.stack([kept(layer.keys) for layer in cache.layers])
    return Prefix(keys, torch.stack([kept(layer.values) for layer in cache.layers]))


MakePrefix = Callable[[int], Prefix]
"""Number of rows -> the prefix of a forward pass."""


@dataclass(frozen=True)
class _Front:
    """What an attention module takes for a cache: it puts the prefix in front and keeps nothing.

    Recomputing activations may therefore run it again, which would grow a cache of transformers.
    """

    keys: Tensor
    values: Tensor

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, P + T, E) from those of the text (B, H, T, E)."""
        return _join(self.keys, keys), _join(self.values, values)

    def get_seq_length(self, *_: Any) -> int:
        """P."""
        return self.keys.shape[-2]


def _join(front_NHPE: Tensor, text_BHTE: Tensor) -> Tensor:
    rows, heads, _, width = text_BHTE.shape
    if front_NHPE.shape[1] != heads or front_NHPE.shape[3] != width:
        raise NotSupported(
            f"Attention has {heads} heads of width {width} where the prefix has "
            f"{front_NHPE.shape[1]} of {front_NHPE.shape[3]}.",
            HINT,
        )
    front_BHPE = front_NHPE.to(text_BHTE).expand(rows, -1, -1, -1)
    return torch.cat([front_BHPE, text_BHTE], dim=-2)


class PrefixSeam:
    """Puts one prefix in front of whatever passes through a decoder, by whichever call.

    Without a cache (training, evaluation) attention gets the prefix itself, beside a mask of pairs
    and positions that make room for it; packed texts all see it, and each goes on at P. With one
    (`generate`) an empty cache is filled, and mask and positions grow, so that callers count the
    tokens of their texts alone.

    Nothing may change what `make` returns between a forward pass and its backward: recomputing
    activations reads the prefix of the last forward pass again.

    Args:
        model: of transformers.
        network: the module of it that runs the blocks, whatever calls it.
        blocks: of the network, in order.
        sites: its linear maps, for the widths of keys and values.
        positions: that a text can have; None without a limit.

    Raises:
        NotSupported: a network in which a prefix is not exact; says why.
    """

    def __init__(
        self, model: Any, network: Any, blocks: Any, sites: list[Site], positions: int | None
    ) -> None:
        self.model, self.network, self.positions = model, network, positions
        self.config: Any = model.config
        self.shape = _shape(model, len(blocks), sites)
        self._attentions = [attention_of(block, model) for block in blocks]
        self._names = list(inspect.signature(network.forward).parameters)
        self._entry: tuple[int, MakePrefix, Switch] | None = None
        self._current: Prefix | None = None

    @property
    def length(self) -> int:
        """P of the prefix that acts now; 0 without one."""
        if self._entry is None or not self._entry[2].enabled:
            return 0
        return self._entry[0]

    def add(self, length: int, make: MakePrefix, switch: Switch) -> None:
        """Put a prefix in from now on, until the switch is released.

        Raises:
            NotSupported: another one is in, or this one leaves no position for a text.
        """
        if self._entry is not None:
            raise NotSupported("The network has a prefix already.", "Detach its tuner first.")
        if self.positions is not None and length >= self.positions:
            raise NotSupported(
                f"A prefix of {length} leaves no room for a text: {type(self.model).__name__} has "
                f"{self.positions} positions.",
                "Make it shorter (method.length).",
            )
        self._entry = (length, make, switch)
        before = self.network.register_forward_pre_hook(self._before, with_kwargs=True)
        switch.handles.append(before)
        for layer, (module, name) in enumerate(self._attentions):
            hook = self._hand_over(layer, name)
            switch.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        switch.on_release.append(self._remove)

    def _remove(self) -> None:
        self._entry = self._current = None

    def _hand_over(self, layer: int, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            prefix = self._current
            if prefix is None or kwargs.get(name) is not None:
                return None
            return args, {**kwargs, name: _Front(prefix.keys[layer], prefix.values[layer])}

        return hook

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make room in front of the text, in the arguments of the network."""
        self._current = None
        if self._entry is None or not self._entry[2].enabled:
            return None
        length, make, switch = self._entry
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        text = given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]
        self._current = make(len(text))
        assert self._current.length == length, "the prefix has another length than it was added as"
        switch.mark(SLOT)
        caching = given.get("use_cache")
        caching = self.config.use_cache if caching is None else caching
        if caching or given_cache(given) is not None:
            return (), self._with_cache(given, text, self._current)
        return (), self._with_mask(given, text, length)

    def _with_cache(self, given: dict[str, Any], text: Tensor, prefix: Prefix) -> dict[str, Any]:
        """For a pass that keeps what it computes: the cache starts with the prefix."""
        cache, mask_BT = given_cache(given), given.get("attention_mask")
        if mask_BT is not None and not (isinstance(mask_BT, Tensor) and mask_BT.ndim == 2):
            raise NotSupported(
                "A prefix does not work with a mask of pairs and a cache.",
                "Use a cache that grows (cache_implementation: dynamic).",
            )
        assert prefix.start is None, "a cache counts from position 0"
        dtype: torch.dtype = self.model.dtype
        if cache is None:
            cache = prefix.cache(self.config, len(text), dtype)
        elif cache.get_seq_length() == 0:
            prefix.fill(cache, len(text), dtype)
        found = {k: v for k, v in given.items() if k not in CACHES}
        found[cache_name(self.network)] = cache
        if mask_BT is not None:
            found["attention_mask"] = F.pad(mask_BT, (prefix.length, 0), value=1)
        positions = given.get("position_ids")
        if positions is None and mask_BT is not None:
            positions = (mask_BT.long().cumsum(1) - 1).clamp(min=0)[:, -text.shape[1] :]
        if positions is not None:
            found["position_ids"] = positions + prefix.length
        return found

    def _with_mask(self, given: dict[str, Any], text: Tensor, length: int) -> dict[str, Any]:
        """For a single pass: a mask of pairs (B, 1, T, P + T) for every kind of layer."""
        masks, segments_BT = given.get("attention_mask"), None
        if masks is None:
            segments_BT = torch.ones(text.shape[:2], dtype=torch.long, device=text.device)
        elif isinstance(masks, Tensor) and masks.ndim == 2:
            segments_BT = masks.long()
        positions = given.get("position_ids")
        if segments_BT is not None:
            # padding is a text of its own: the tokens of the other see each other alone
            masks = packed_mask(self.model, segments_BT)
            positions = positions_within(segments_BT) if positions is None else positions
        assert positions is not None, "a mask of pairs needs positions beside it"
        window = getattr(self.config, "sliding_window", None)
        if isinstance(masks, Mapping):
            widened: Any = {
                kind: _widen(mask, positions, length, window if "sliding" in kind else None)
                for kind, mask in masks.items()
            }
        else:
            widened = _widen(masks, positions, length, window)
        assert self._current is not None
        return {
            **given,
            "attention_mask": widened,
            "position_ids": positions + self._current.end,
            "use_cache": False,
        }


def _widen(mask_B1TT: Any, positions_BT: Tensor, length: int, window: int | None) -> Tensor:
    """(B, 1, T, P + T): the prefix is visible, as far back as a sliding window reaches.

    Raises:
        NotSupported: an implementation of attention that takes no mask of pairs.
    """
    if not isinstance(mask_B1TT, Tensor) or mask_B1TT.ndim != 4:
        raise NotSupported(
            "This implementation of attention takes no mask of pairs, which a prefix needs.",
            "Load the network with attn_implementation sdpa or eager.",
        )
    rows, _, tokens, _ = mask_B1TT.shape
    if window is None:
        seen = torch.ones(rows, 1, tokens, length, dtype=torch.bool, device=mask_B1TT.device)
    else:
        numbers_P = torch.arange(length, device=mask_B1TT.device)
        distance = length + positions_BT[:, None, :, None] - numbers_P
        seen = (distance < window).expand(rows, -1, -1, -1)
    if mask_B1TT.dtype != torch.bool:  # eager attention adds it
        least = torch.finfo(mask_B1TT.dtype).min
        seen = torch.zeros_like(seen, dtype=mask_B1TT.dtype).masked_fill(~seen, least)
    widened = torch.cat([seen, mask_B1TT], dim=-1)
    return triangular(widened) if isinstance(mask_B1TT, TriangularMask) else widened


def _shape(model: Any, layers: int, sites: list[Site]) -> tuple[int, int, int]:
    """L, H, E.

    Raises:
        NotSupported: layers that keep something else, or not all the same.
    """
    config, name = model.config, type(model).__name__
    reason = mixing(model)
    if not reason and getattr(config, "num_kv_shared_layers", None):
        reason = "layers that share their keys and values"
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    width = getattr(config, "head_dim", None)
    width = int(width or config.hidden_size // config.num_attention_heads)
    found = {site.d_out for site in sites if site.role in ("key", "value")}
    if not reason and found - {heads * width}:
        listed = ", ".join(map(str, sorted(found)))
        reason = f"keys and values of width {listed}, not {heads} heads of {width}"
    if reason:
        raise NotSupported(f"{name} has {reason}: a prefix would not be exact.", HINT)
    return layers, heads, width


def attention_of(block: nn.Module, model: Any) -> tuple[nn.Module, str]:
    """The module of a block that reads earlier keys and values, and how it calls them.

    Raises:
        NotSupported: the block has none.
    """
    for module in block.modules():
        name = None if module is block else _cache_name(module)
        if name is not None:
            return module, name
    raise NotSupported(
        f"{type(model).__name__} has blocks whose attention takes no cache of keys and values.",
        HINT,
    )
