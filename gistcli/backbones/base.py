"""Backbone: a frozen pretrained network seen through roles, whatever its family."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones.attending import AttentionSeam
from gistcli.backbones.fingerprint import fingerprint, read_header
from gistcli.backbones.layout import Features, TokenLayout
from gistcli.backbones.naming import named_sites
from gistcli.backbones.prefix import PrefixSeam
from gistcli.backbones.quantised import stored_elements
from gistcli.backbones.sites import Output, Point, Site, Switch, Tap
from gistcli.backbones.stored import StoredKeys, rows_of
from gistcli.backbones.tokens import BlockTokens, InsertedTokens, MakeTokens, TokenHandle
from gistcli.errors import NotMergeable, NotSupported, Refused

Layers = Literal["all"] | Sequence[int]
Modality = Literal["vision", "text"]
Ran = tuple[Tensor, Tensor, Tensor]
"""Tokens (B, T, D) after the last norm, pooled features (B, P), logits (B, K)."""


@dataclass(frozen=True)
class Origin:
    """Where a backbone comes from.

    Attributes:
        name: as the user wrote it.
        architecture: the family's own name for the network.
        weights: safetensors files; empty where the network was built without weights.
        config: what the family needs to build it again (timm: model_args and pretrained_cfg).
    """

    name: str
    architecture: str
    weights: tuple[Path, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


class Backbone(nn.Module, abc.ABC):
    """A pretrained network, frozen, with named places for methods to act.

    `self.model` is the family's own module: its state-dict keys are never changed.

    Attributes:
        layout: where each kind of token stands in the forward pass that is running, or was last.
        inserted: the tokens that tuners put in; None where the family can carry none.
    """

    modality: ClassVar[Modality]
    """What it reads; decides which of a method's recommended settings apply."""
    library: ClassVar[str] = "timm"
    """Whose folders this family's weights lie in: timm or transformers."""
    token_refusal: str = "it has no place for further tokens"
    """Why the family carries no further tokens, where it does not."""
    prefix_refusal: ClassVar[str] = "only decoders of text keep keys and values"
    """Why the family takes no prefix of keys and values, where it does not."""

    model: nn.Module
    origin: Origin
    layout: TokenLayout
    inserted: InsertedTokens | None = None

    @property
    def name(self) -> str:
        """The backbone as the user named it."""
        return self.origin.name

    @property
    def architecture(self) -> str:
        """The family's own name for the network."""
        return self.origin.architecture

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the stored tensors; empty for a network without weights."""
        return fingerprint(self.origin.weights) if self.origin.weights else ""

    @property
    def license(self) -> str | None:
        """Of the weights, where it is known."""
        return None

    @property
    def compiled(self) -> bool:
        """Whether torch.compile has seen this network: hooks added now would be ignored."""
        dynamo = ("_orig_mod", "_compiled_call_impl")
        return any(getattr(m, a, None) is not None for m in self.modules() for a in dynamo)

    @staticmethod
    @abc.abstractmethod
    def accepts(architecture: str) -> bool:
        """Whether an architecture name is of this family."""

    # --- what a family provides -------------------------------------------------------------

    @property
    @abc.abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks, in order."""

    @abc.abstractmethod
    def reset_head(self, classes: int, seed: int = 0) -> None:
        """Give the network a new head for `classes`; defines what "base" means from here on."""

    @abc.abstractmethod
    def head_names(self) -> list[str]:
        """Names of the head's parameters in `self.model`, in order."""

    @abc.abstractmethod
    def all_sites(self) -> list[Site]:
        """Every linear map that has a role, in order; row slices beside the whole map."""

    @abc.abstractmethod
    def outputs(self) -> list[Output]:
        """Every affine module from the patch embedding to the last norm, in order."""

    @abc.abstractmethod
    def point(self, after: str, layer: int) -> Point:
        """The place behind `after` (attention, mlp or a role) in block `layer`."""

    def attention(self, layer: int) -> AttentionSeam | None:
        """For `watch_attention`; None where not every token of the block looks at every other."""
        return None

    @abc.abstractmethod
    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """One forward pass, through `drive`."""

    @abc.abstractmethod
    def classify(self, pooled: Tensor) -> Tensor:
        """(B, K): the head alone, on pooled features (B, P)."""

    @abc.abstractmethod
    def read_out(self, features: Features, slot: str) -> Tensor:
        """(B, K) logits of the mean output of a slot, on the path from pooling to head."""

    # --- tokens -----------------------------------------------------------------------------

    def carry_tokens(self, cls_tokens: int, enter: Tap, leave: nn.Module) -> None:
        """Called by a family of pictures that can carry further tokens; see `BlockTokens`."""
        self.inserted = BlockTokens(cls_tokens, self.blocks, enter, leave)

    def token_width(self, method: str) -> int:
        """The width of an inserted token.

        Raises:
            NotSupported: blocks of different widths.
        """
        return self.require_one_width(method)

    def insert_tokens(
        self, slot: str, length: int, make: MakeTokens, switch: Switch
    ) -> TokenHandle:
        """Put `make(batch size)` (B, length, D) into the sequence, in front of the first block.

        D is `token_width`. The tokens pass through every block and are taken out behind the last
        norm, so that pooling and head see what they saw before; `Features.tokens` keeps them.

        Raises:
            NotSupported: the family carries no further tokens; says why.
            UnknownName: no such slot.
        """
        if self.inserted is None:
            raise NotSupported(
                f"{self.architecture} takes no further tokens: {self.token_refusal}.",
                "Choose a method without tokens, or a plain ViT.",
            )
        return self.inserted.add(slot, length, make, switch)

    def prefix_seam(self) -> PrefixSeam:
        """Where a prefix of keys and values enters the network.

        Raises:
            NotSupported: the family keeps no keys and values, or not so that a prefix is exact.
        """
        raise NotSupported(
            f"{self.architecture} takes no prefix: {self.prefix_refusal}.",
            "Choose another method, or a decoder (Llama, Qwen, GPT-2, ...).",
        )

    def register_tokens(self, tokens_PD: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Inserted tokens as registers of a stock network.

        Returns:
            new tensors by key, and arguments of the architecture that change.

        Raises:
            NotMergeable: the architecture has no registers.
        """
        raise NotMergeable(
            f"{self.architecture} has no register tokens that could hold trained ones.",
            "Keep the run directory, or export with `gist merge --format onnx`.",
        )

    # --- running ----------------------------------------------------------------------------

    def drive(self, layout: TokenLayout, run: Callable[[], Ran]) -> Features:
        """One forward pass with the inserted tokens in the sequence.

        Args:
            layout: where each kind of token stands without inserted ones.
            run: the family's own pass.
        """
        inserted = self.inserted
        self.layout = layout
        if inserted is not None:
            self.layout = inserted.extend(layout)
            inserted.forget()
        tokens, pooled, logits = run()
        if inserted is not None:
            tokens = inserted.take_full(tokens)
        return Features(tokens, pooled, logits, self.layout)

    def checkpoint_gradients(self) -> None:
        """Recompute the activations of every block in the backward pass."""
        model: Any = self.model
        model.set_grad_checkpointing(True)

    # --- what all families share ------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def widths(self) -> list[int]:
        """Embedding width of every block, where its MLP ends."""
        return [self.point("mlp", layer).width for layer in range(self.depth)]

    def require_one_width(self, method: str) -> int:
        """The embedding width of all blocks.

        Raises:
            NotSupported: blocks of different widths.
        """
        widths = sorted(set(self.widths))
        if len(widths) > 1:
            raise NotSupported(
                f"{method} needs one width in all blocks, but {self.architecture} has "
                f"{', '.join(map(str, widths))}.",
                "Choose another method, or a plain ViT.",
            )
        return widths[0]

    def freeze(self) -> None:
        """No parameter of the network asks for a gradient."""
        self.model.requires_grad_(False)

    def sites(self, targets: Sequence[str], layers: Layers = "all") -> list[Site]:
        """The sites that `targets` name in the chosen layers, in the order of the network.

        Args:
            targets: roles, the family's names at a dot boundary (`attn.proj`), or full paths.
            layers: "all", or block numbers; negative ones count from the end.

        Raises:
            UnknownName: a target that matches nothing, with what could have been meant.
            Refused: a layer that does not exist, or targets that overlap.
        """
        return named_sites(self.all_sites(), targets, self.layer_numbers(layers), self.name)

    def layer_numbers(self, layers: Layers) -> list[int]:
        """Block numbers from 0, sorted, without duplicates.

        Raises:
            Refused: a number outside the network.
        """
        if layers == "all":
            return list(range(self.depth))
        bad = [n for n in layers if not -self.depth <= int(n) < self.depth]
        if bad or not layers:
            raise Refused(
                f"layers: {bad or 'none'} named, but {self.name} has {self.depth} layers.",
                f"Use numbers from 0 to {self.depth - 1} (or -{self.depth} to -1), or `all`.",
            )
        return sorted({int(n) % self.depth for n in layers})

    @contextmanager
    def capture(self, sites: Sequence[Site]) -> Iterator[dict[str, Tensor]]:
        """Outputs (B, T, d_out) of `sites` in the next forward pass, by site name.

        Taken after the hooks of the tuners that are attached by then.
        """
        seen: dict[str, Tensor] = {}

        handles = [self._listen(site, seen) for site in sites]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def _listen(self, site: Site, seen: dict[str, Tensor]) -> Any:
        def keep(y: Tensor) -> None:
            seen[site.name] = y if site.rows is None else y[..., site.rows]

        if site.parent is None:
            return site.module.register_forward_hook(lambda _, __, y: keep(y))
        # never called: its product is made again, with whatever stands in the place of its weight
        return site.parent.register_forward_pre_hook(
            lambda _, args: keep(F.linear(args[0], site.module.weight, self.bypassed_bias(site)))
        )

    def bypassed_bias(self, site: Site) -> Tensor | None:
        """(d_out of the whole module,) bias that the network adds itself, where it does."""
        return None

    def parameter_owner(self, name: str) -> tuple[nn.Module, str]:
        """The module that holds a parameter of `self.model`, and its last name."""
        path, _, last = name.rpartition(".")
        return self.model.get_submodule(path), last

    def stored_keys(self) -> StoredKeys | None:
        """How files name the tensors; None where they do as the network in memory does."""
        return None

    def transposed_keys(self) -> frozenset[str]:
        """Keys of weights that the network keeps as (d_in, d_out): those of GPT-2's Conv1D."""
        modules = self.model.named_modules()
        return frozenset(f"{name}.weight" for name, m in modules if hasattr(m, "nf"))

    def unused_names(self) -> list[str]:
        """Parameters that no forward pass of a classifier reads, so that they cannot be trained."""
        return []

    def resampled(self) -> dict[str, Tensor]:
        """Tensors whose shape differs from the stored ones (another image size), by key."""
        stored = {k: v for path in self.origin.weights for k, v in read_header(path).items()}
        shapes = {key: tuple(entry["shape"]) for key, entry in stored.items()}
        keys = self.stored_keys()
        if keys is not None:
            places = keys.locate(shapes)
            shapes = {name: rows_of(shapes[p.key], p.rows) for name, p in places.items()}
        head = set(self.head_names())
        return {
            name: tensor
            for name, tensor in self.model.state_dict().items()
            if name in shapes and name not in head and tuple(tensor.shape) != shapes[name]
        }

    def count(self) -> int:
        """Parameters of the network as it stands, head included."""
        return sum(p.numel() for p in self.model.parameters()) + stored_elements(self.model)

    def require_uncompiled(self) -> None:
        """Refuse a compiled network, whose hooks would be ignored without a word.

        Raises:
            NotSupported: torch.compile came before attach.
        """
        if self.compiled:
            raise NotSupported(
                f"{self.architecture} is already compiled: a method attached now would not act.",
                "Attach first, compile after.",
            )


def initialise_head(head: nn.Linear, seed: int) -> None:
    """Truncated normal of deviation 0.02 and zero bias, the same for the same seed."""
    if head.weight.device.type == "meta":
        return
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty(head.weight.shape)
    nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04, generator=generator)
    with torch.no_grad():
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.zero_()
