"""Tokens that tuners put into a text, at the level of its embeddings.

The hooks sit on the network without its head, so that `generate` and every other caller of
transformers' own forward pass finds the tokens in place as well. Shape suffixes: B = rows,
T = positions of the text, P = prompts, G = gist tokens, S = P + T + G, D = width.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones.prefix import given_cache
from gistcli.backbones.tokens import InsertedTokens, TokenHandle
from gistcli.errors import NotSupported

ALONG_TEXT = ("attention_mask", "position_ids", "token_type_ids")
"""Arguments (B, T) that have an entry for every token."""
NEEDED = ("inputs_embeds", "attention_mask")
PositionsOf = Callable[[Tensor], Tensor]


class TextTokens(InsertedTokens):
    """Changes the arguments of the network, and takes the tokens out of `last_hidden_state`.

    Args:
        network: without its head.
        blocks: in order.
    """

    front: ClassVar[int] = 0
    """Tokens of the text that stay in front of the inserted ones."""

    def __init__(self, network: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__(self.front, blocks)
        self.network: Any = network
        self.arguments = argument_names(network)
        self._spread: tuple[int, Tensor | None] | None = None
        network.register_forward_pre_hook(self._enter, with_kwargs=True)
        network.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._spread = None
        if not self.active():
            return None
        given = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        mask = given.get("attention_mask")
        if mask is not None and getattr(mask, "ndim", 0) != 2:
            raise NotSupported(
                f"{type(self.network).__name__} reads packed texts, and tokens are put into one "
                "text a row.",
                "Set data.packing to false.",
            )
        return (), self._changed(given)

    @abc.abstractmethod
    def _changed(self, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments with the tokens in; sets `_spread` where the sequence grew."""

    def _leave(self, module: nn.Module, args: tuple[Any, ...], found: Any) -> Any:
        if self._spread is None:
            return None
        total, order_BS = self._spread
        tokens_BSD = found.last_hidden_state
        if tokens_BSD.shape[1] != total:
            raise NotSupported(
                f"{type(module).__name__} changes the length of a text, so that inserted tokens "
                "cannot be found again.",
                "Choose a method without tokens (--no-gist for the gist token).",
            )
        if order_BS is not None:
            tokens_BSD = _picked(tokens_BSD, order_BS.argsort(dim=1))
        self._full = tokens_BSD
        found.last_hidden_state = self._text_of(tokens_BSD)
        return found

    @abc.abstractmethod
    def _text_of(self, tokens_BSD: Tensor) -> Tensor:
        """(B, T, D) without the inserted tokens."""

    def _embedded(self, given: dict[str, Any]) -> Tensor:
        """(B, T, D); takes the ids out of the arguments."""
        ids_BT, found_BTD = given.pop("input_ids", None), given.get("inputs_embeds")
        if found_BTD is None:
            found_BTD = self.network.get_input_embeddings()(ids_BT)
        embedded: Tensor = found_BTD
        return embedded


class EncoderTokens(TextTokens):
    """Every block sees [cls | gist | prompts | text].

    The tokens repeat the position and the type of the class token, and words keep theirs. Where
    positions are distances inside the attention (DeBERTa) or windows (ModernBERT), the words stand
    that much further from the class token, and as before from one another.

    Args:
        network, blocks: as for `TextTokens`.
        positions_of: ids (B, T) -> positions, as the network makes them; 1 or B rows.
    """

    front = 1

    def __init__(
        self, network: nn.Module, blocks: Sequence[nn.Module], positions_of: PositionsOf
    ) -> None:
        super().__init__(network, blocks)
        self.positions_of = positions_of

    def _changed(self, given: dict[str, Any]) -> dict[str, Any]:
        if given.get("position_ids") is None and "position_ids" in self.arguments:
            given["position_ids"] = self.positions_of(given["input_ids"])
        x_BTD, extra = self._embedded(given), self.extra
        new = self._made(self.active(), x_BTD)
        given["inputs_embeds"] = torch.cat([x_BTD[:, :1], *new, x_BTD[:, 1:]], dim=1)
        for key in ALONG_TEXT:
            value = given.get(key)
            if value is not None:
                cls = value[:, :1].expand(-1, 1 + extra)
                given[key] = torch.cat([cls, value[:, 1:]], dim=1)
        self._spread = x_BTD.shape[1] + extra, None
        return given

    def _text_of(self, tokens_BSD: Tensor) -> Tensor:
        return torch.cat([tokens_BSD[:, :1], tokens_BSD[:, 1 + self.extra :]], dim=1)


class DecoderTokens(TextTokens):
    """Prompts stand in front of the text, gist tokens behind it, where they see all of it.

    Positions count on from prompts to text to gist tokens. A gist token directly follows the last
    token that is no padding, so that it sees what it sees without padding, through windows as
    well. No token of the text sees it: it enters only where gradients are asked for.

    While a text is generated with a cache, prompts enter with the first step.
    """

    order = ("prompts", "text", "gist")

    def droppable(self, slot: str) -> bool:
        """The gist token is: it stands last."""
        return slot == "gist"

    def unread(self, slot: str) -> str | None:
        """Prompts stand in front of the text."""
        return "stand in front of the text and see nothing of it" if slot == "prompts" else None

    def active(self) -> list[TokenHandle]:
        """What is inserted now; gist tokens only where gradients are asked for."""
        learning = torch.is_grad_enabled()
        return [entry for entry in super().active() if learning or not self.droppable(entry.slot)]

    @property
    def room(self) -> int:
        """Positions of the text that the tokens take away."""
        return sum(entry.length for entry in self.entries if entry.switch.enabled)

    def _lengths(self) -> dict[str, int]:
        slots = ("prompts", "gist")
        return {s: sum(e.length for e in self.active() if e.slot == s) for s in slots}

    def _changed(self, given: dict[str, Any]) -> dict[str, Any]:
        prompts, gists = self._lengths().values()
        past = _cached(given)
        if past and prompts:  # they stand in the cache already
            return _continued(given, prompts)
        x_BTD = self._embedded(given)
        length, made = x_BTD.shape[1], self._made(self.active(), x_BTD)
        behind = len(made) - sum(entry.slot == "gist" for entry in self.active())
        given["inputs_embeds"] = torch.cat([*made[:behind], x_BTD, *made[behind:]], dim=1)
        positions = given.get("position_ids")
        if gists and positions is None and "position_ids" in self.arguments:
            positions = (torch.arange(length, device=x_BTD.device) + past)[None]
        if positions is not None:
            given["position_ids"] = _counted(positions, given.get("attention_mask"), prompts, gists)
        widen(given, prompts, gists)
        self._spread = prompts + length + gists, close_up(given, prompts)
        return given

    def _text_of(self, tokens_BSD: Tensor) -> Tensor:
        prompts, gists = self._lengths().values()
        return tokens_BSD[:, prompts : tokens_BSD.shape[1] - gists]


def argument_names(network: nn.Module) -> tuple[str, ...]:
    """Of a network's forward pass, in order."""
    return tuple(inspect.signature(network.forward).parameters)


def refuses_tokens(network: nn.Module) -> str | None:
    """Why tokens cannot be put into a network, where that is so."""
    missing = [name for name in NEEDED if name not in argument_names(network)]
    return f"it takes no {' and no '.join(missing)}" if missing else None


def _picked(x_BSD: Tensor, order_BS: Tensor) -> Tensor:
    return x_BSD.gather(1, order_BS[..., None].expand(-1, -1, x_BSD.shape[-1]))


def _cached(given: Mapping[str, Any]) -> int:
    """Tokens that an earlier step has left."""
    cache = given_cache(given)
    return 0 if cache is None else int(cache.get_seq_length())


def _continued(given: dict[str, Any], prompts: int) -> dict[str, Any]:
    """The arguments of a later step, whose cache holds the prompts."""
    mask = given.get("attention_mask")
    if mask is not None:
        mask_BS = F.pad(mask, (prompts, 0), value=1)
        given["attention_mask"] = mask_BS.gather(1, _places(mask_BS, prompts))
    if given.get("position_ids") is not None:
        given["position_ids"] = given["position_ids"] + prompts
    return given


def close_up(given: dict[str, Any], prompts: int) -> Tensor | None:
    """Lets prompts, text and gist tokens stand side by side, as they do without padding.

    So windows of attention, which count places and not positions, reach as far as without padding.

    Returns:
        (B, S): the place that each token had before; None without padding.
    """
    mask, total = given.get("attention_mask"), given["inputs_embeds"].shape[1]
    if mask is None:
        return None
    order_BS = _places(mask[:, -total:], prompts)
    given["inputs_embeds"] = _picked(given["inputs_embeds"], order_BS)
    earlier, mask_BS = mask[:, :-total], mask[:, -total:].gather(1, order_BS)
    given["attention_mask"] = torch.cat([earlier, mask_BS], dim=1)
    for key in ("position_ids", "token_type_ids"):
        if given.get(key) is not None:
            given[key] = given[key].expand(len(order_BS), -1).gather(1, order_BS)
    return order_BS


def _places(mask_BS: Tensor, prompts: int) -> Tensor:
    """(B, S): padding in front, then prompts, which came first, the text, and padding behind."""
    front, rest = mask_BS[:, :prompts], mask_BS[:, prompts:]
    leading = rest.cumsum(dim=1) == 0
    rank = torch.where(leading, 0, torch.where(rest == 0, 3, 2))
    return torch.cat([torch.ones_like(front), rank], dim=1).argsort(dim=1, stable=True)


def _counted(positions: Tensor, mask: Tensor | None, prompts: int, gists: int) -> Tensor:
    """(1 or B, S): 0, 1, ... for prompts, those of the text behind, then those of gist tokens."""
    device = positions.device
    text = positions + prompts
    seen = text if mask is None else text.masked_fill(mask[:, -text.shape[1] :] == 0, -1)
    rows = len(seen)
    front = torch.arange(prompts, device=device).expand(rows, -1)
    behind = seen.amax(dim=1, keepdim=True) + 1 + torch.arange(gists, device=device)
    return torch.cat([front, text.expand(rows, -1), behind], dim=1)


def widen(given: dict[str, Any], prompts: int, gists: int) -> None:
    """A mask of ones, and the types of the tokens that stand beside, for the new tokens."""
    if given.get("attention_mask") is not None:
        given["attention_mask"] = F.pad(given["attention_mask"], (prompts, gists), value=1)
    types = given.get("token_type_ids")
    if types is not None:
        front, behind = types[:, :1].expand(-1, prompts), types[:, -1:].expand(-1, gists)
        given["token_type_ids"] = torch.cat([front, types, behind], dim=1)
