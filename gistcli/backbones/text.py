"""What all networks over text share: transformers' blocks behind roles, and their heads.

Shape suffixes: B = rows, T = positions, D = width, K = classes, V = vocabulary.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones.base import Backbone, Modality, Origin, Ran, initialise_head
from gistcli.backbones.hf_keys import stored_keys
from gistcli.backbones.layout import Features, TokenLayout
from gistcli.backbones.parts import affine_outputs, weight_offset
from gistcli.backbones.sites import Output, Point, Site, Switch, Tap
from gistcli.backbones.stored import StoredKeys
from gistcli.backbones.supervision import Supervised, supervised
from gistcli.backbones.text_roles import FUSED, ROLES, branch_name, branches_of
from gistcli.backbones.text_tokens import refuses_tokens
from gistcli.backbones.timm_family import unknown_point
from gistcli.backbones.tokens import SOURCE_GIST, InsertedTokens, MakeTokens, TokenHandle
from gistcli.errors import NotMergeable, NotSupported

Task = Literal["classification", "causal_lm", "seq2seq"]


class TextBackbone(Backbone):
    """A network of Hugging Face transformers over tokens of text.

    A batch holds `input_ids` (B, T) int64, `attention_mask` (B, T), 1 where a token is real, and,
    where they are needed, `position_ids` (B, T), `token_type_ids` (B, T), and `inputs_embeds`
    (B, T, D), which the network then reads in place of the ids.

    Attributes:
        task: classification has a head of its own, outside the base network; causal_lm and
            seq2seq have none but the map to the vocabulary.

    Raises:
        NotSupported: no sequence of equal blocks is found, or the head is not known.
    """

    modality: ClassVar[Modality] = "text"
    library: ClassVar[str] = "transformers"
    proven: ClassVar[frozenset[str]]
    """Classes whose head is known to be computed as `classify` does; others are compared."""

    def __init__(self, model: nn.Module, origin: Origin) -> None:
        super().__init__()
        self.model = model
        self.origin = origin
        self.task: Task = "classification"
        if not type(model).__name__.endswith("ForSequenceClassification"):
            self.task = "causal_lm"
        self.block_paths = self._find_blocks()
        self.freeze()
        reason = refuses_tokens(self.base)
        if reason is None:
            self.inserted = self.place_for_tokens()
        else:
            self.token_refusal = reason
        self._require_known_head()

    @property
    def hf(self) -> Any:
        """The network, without a type: every class has its own attributes."""
        return self.model

    @property
    def base(self) -> Any:
        """The network without its head."""
        return self.hf.base_model

    @property
    def config(self) -> Any:
        """transformers' configuration of the network."""
        return self.hf.config

    @property
    def blocks(self) -> list[nn.Module]:
        """`model.layers`, `roberta.encoder.layer`; of an encoder-decoder first the encoder's."""
        return [self.model.get_submodule(path) for path in self.block_paths]

    def _find_blocks(self) -> list[str]:
        """Paths of all blocks, in order.

        Raises:
            NotSupported: there is no list that holds them.
        """
        path = find_blocks(self.hf, int(self.config.num_hidden_layers))
        return [f"{path}.{number}" for number in range(self.config.num_hidden_layers)]

    def supervised(self, batch: Mapping[str, Tensor]) -> Supervised:
        """The positions of a batch that predict a label, and the labels."""
        return supervised(batch)

    @property
    def positions(self) -> int | None:
        """Tokens that a text can have; None where the configuration names no limit.

        RoBERTa and its like count positions from behind the id of the padding. Inserted tokens may
        take some away.
        """
        found = getattr(self.config, "max_position_embeddings", None)
        if not found:
            return None
        padding = self.padding_position
        first = 0 if padding is None else padding + 1
        taken = 0 if self.inserted is None else self.inserted.room
        return int(found) - first - taken

    @property
    def padding_position(self) -> int | None:
        """The position of padding, in RoBERTa and its like."""
        found = getattr(getattr(self.base, "embeddings", None), "padding_idx", None)
        return None if found is None else int(found)

    def stored_keys(self) -> StoredKeys:
        """By transformers' own mapping, which keeps the names of earlier versions in files."""
        return stored_keys(self.model)

    def checkpoint_gradients(self) -> None:
        """Recompute the activations of every block in the backward pass."""
        self.hf.activation_checkpointing_enable()

    # --- seams ------------------------------------------------------------------------------

    def all_sites(self) -> list[Site]:
        """Every linear map of every block, in order; row slices beside the whole map."""
        sites: list[Site] = []
        for layer, block in enumerate(self.blocks):
            for path, module in block.named_modules():
                if not is_linear(module):
                    continue
                name = f"{self.block_paths[layer]}.{path}"
                site = Site(name, name, ROLES.get(path, path), layer, module)
                sites.append(site)
                if path in FUSED:
                    sites += FUSED[path](site, self.config)
        return sites

    def outputs(self) -> list[Output]:
        """Norms and linear maps: those of the embeddings, of every block, and behind the last."""
        base = self.base
        prefix = self.hf.base_model_prefix if base is not self.model else ""
        inside = tuple(f"{path}." for path in self.block_paths)
        paths = []
        for path, module in base.named_modules(prefix=prefix):
            norm = getattr(getattr(module, "weight", None), "ndim", 0) == 1
            if norm or (is_linear(module) and path.startswith(inside)):
                paths.append(path)
        found = affine_outputs(self.model, paths)
        norms = {o.name: weight_offset(o.module) for o in found if o.kind == "norm"}
        return [replace(o, offset=norms.get(o.name, 0.0)) for o in found]

    def point(self, after: str, layer: int) -> Point:
        """The place behind attention, cross_attention, mlp or a role in block `layer`.

        Where the block normalises behind the sum, attention and mlp stand in front of that sum,
        and what the branch reads is the residual itself.

        Raises:
            UnknownName: no such place in the block, or a family whose branches are not known.
        """
        block = self.blocks[layer]
        found = branches_of(block)
        linears = {ROLES.get(path, path): path for path, m in block.named_modules() if is_linear(m)}
        if after not in {*found, *(linears if found else ())}:
            raise unknown_point(after, [*linears, *found] if found else [], self.architecture)
        branch = found[branch_name(after)]
        leaf = block.get_submodule(linears.get(after, branch.exit))
        if branch.norm is None:
            x_in = residual = Tap(block.get_submodule(branch.entry))
        else:
            norm = block.get_submodule(branch.norm)
            residual, x_in = Tap(norm), Tap(norm, output=True)
        width = _width(leaf) or int(self.config.hidden_size)
        name = f"{self.block_paths[layer]}@{after}"
        # keys and values of cross-attention are as many as the encoder's tokens
        aligned = after not in ("cross_key", "cross_value")
        return Point(name, after, layer, width, residual, x_in, leaf, aligned)

    # --- head -------------------------------------------------------------------------------

    def head_modules(self) -> dict[str, nn.Module]:
        """What a classifier has outside the base network, in order; none for a language model."""
        if self.task != "classification":
            return {}
        base = self.base
        return {
            name: module
            for name, module in self.model.named_children()
            if module is not base and next(module.parameters(), None) is not None
        }

    def reset_head(self, classes: int, seed: int = 0) -> None:
        """A new head for `classes`: truncated normal 0.02 and zero biases in every map of it.

        A language model keeps its map to the vocabulary: nothing happens.
        """
        if self.task != "classification":
            return
        modules = [
            (f"{name}.{path}".rstrip("."), module)
            for name, stage in self.head_modules().items()
            for path, module in stage.named_modules()
        ]
        *_, (last, old) = [(n, m) for n, m in modules if isinstance(m, nn.Linear)]
        new = nn.Linear(
            old.in_features,
            classes,
            bias=old.bias is not None,
            device=old.weight.device,
            dtype=old.weight.dtype,
        )
        self.model.set_submodule(last, new)
        for step, (name, module) in enumerate(modules):
            if isinstance(module, nn.Linear):
                initialise_head(new if name == last else module, seed + step)
            elif isinstance(module, nn.LayerNorm) and not module.weight.is_meta:
                module.reset_parameters()
        self.hf.num_labels = self.config.num_labels = classes
        self.freeze()

    def head_names(self) -> list[str]:
        """`classifier.dense.weight`, `score.weight`, ...; none for a language model."""
        found = self.head_modules()
        return [n for n, _ in self.model.named_parameters() if n.partition(".")[0] in found]

    def classify(self, pooled: Tensor) -> Tensor:
        """(B, K): the head alone, on what the network pools (B, D)."""
        x_BD, model = pooled, self.hf
        drop = getattr(model, "dropout", None) or getattr(model, "drop", None)
        stages = list(self.head_modules().values())
        for stage in stages:
            if not isinstance(stage, nn.Linear):  # it reads the first position of a sequence
                x_BD = stage(x_BD[:, None])
                x_BD = x_BD[:, 0] if x_BD.ndim == 3 else x_BD
            elif stage is not stages[-1]:  # DistilBERT
                x_BD = F.relu(stage(x_BD))
            else:
                x_BD = stage(x_BD if drop is None else drop(x_BD))
        return x_BD

    def pool_token(self, token_BD: Tensor) -> Tensor:
        """(B, D): what pooling makes of one token behind the last norm."""
        return token_BD

    def read_out(self, features: Features, slot: str) -> Tensor:
        """(B, K): the slot's mean output, pooled and classified as the text's is."""
        tokens_BPD = features.tokens[:, features.layout.span(slot)]
        return self.classify(self.pool_token(tokens_BPD.mean(dim=1)))

    # --- tokens -----------------------------------------------------------------------------

    def place_for_tokens(self) -> InsertedTokens | None:
        """Where this family has inserted tokens; None where it has no place for them."""
        return None

    def token_width(self, method: str) -> int:
        """That of the embeddings, which some networks map to that of the blocks (ELECTRA)."""
        width: int = self.base.get_input_embeddings().embedding_dim
        return width

    def insert_tokens(
        self, slot: str, length: int, make: MakeTokens, switch: Switch
    ) -> TokenHandle:
        """As for every backbone.

        Raises:
            NotSupported: a gist token where tokens are predicted; more tokens than positions.
        """
        if slot in ("gist", SOURCE_GIST) and self.task != "classification":
            raise NotSupported(
                f"A gist token learns one answer a text, and {self.architecture} predicts many "
                "tokens.",
                "Leave the token out (--no-gist), or classify (task.type: classification).",
            )
        handle = super().insert_tokens(slot, length, make, switch)
        if self.positions is not None and self.positions < 1:
            raise NotSupported(
                f"{length} further tokens leave no room for a text: {self.architecture} has "
                f"{self.positions + length} positions.",
                "Insert fewer tokens (method.length).",
            )
        return handle

    def register_tokens(self, tokens_PD: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Not in text.

        Raises:
            NotMergeable: always.
        """
        raise NotMergeable(
            f"a stock {self.architecture} has no place for a trained token in its sequence.",
            "Keep the run directory, which `gist eval` and `gist predict` take.",
        )

    # --- running ----------------------------------------------------------------------------

    @abc.abstractmethod
    def run(self, batch: Mapping[str, Tensor]) -> Ran:
        """One forward pass of the network."""

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Features of a batch of token ids."""
        cls = 0 if self.inserted is None else self.inserted.cls_tokens
        lengths = {"cls": cls, "text": batch["input_ids"].shape[1] - cls}
        return self.drive(TokenLayout(lengths, (0, 0)), lambda: self.run(batch))

    def _inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """The arguments of the base network that a batch has."""
        mask_BT = batch.get("attention_mask")
        found: dict[str, Any] = {
            "input_ids": batch["input_ids"],
            "attention_mask": None if mask_BT is None else mask_BT.long(),
        }
        if "inputs_embeds" in batch:
            found["input_ids"] = None
        optional = ("position_ids", "token_type_ids", "inputs_embeds")
        return found | {key: batch[key] for key in optional if key in batch}

    @torch.no_grad()
    def _require_known_head(self) -> None:
        """Compare `classify` with the network's own forward pass on three tokens.

        Raises:
            NotSupported: they differ, so that the head is of a kind that is not known.
        """
        model, name = self.hf, type(self.model).__name__
        parameter = next(self.model.parameters())
        if name in self.proven or parameter.is_meta:
            return
        training = model.training
        ids = torch.tensor([[2, 3, 4]], device=parameter.device)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        model.eval()
        ours, theirs = self(batch).logits, model(**batch).logits
        model.train(training)
        scale = float(theirs.abs().max())
        if ours.shape != theirs.shape or float((ours - theirs).abs().max()) > 1e-2 * scale:
            raise NotSupported(
                f"The head of {name} is computed in a way that is not known here.",
                "See `gist list models` for the backbones that can be tuned.",
            )


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map: nn.Linear, or GPT-2's Conv1D."""
    return isinstance(module, nn.Linear) or hasattr(module, "nf")


def _width(module: Any) -> int | None:
    found = getattr(module, "out_features", None) or getattr(module, "nf", None)
    return None if found is None else int(found)


def find_blocks(model: Any, depth: int) -> str:
    """Path of the first list of `depth` blocks of one kind.

    Raises:
        NotSupported: there is none.
    """
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth and _equal(module):
            return str(path)
    raise NotSupported(
        f"{type(model).__name__} has no list of {depth} blocks of one kind.",
        "See `gist list models` for the backbones that can be tuned.",
    )


def _equal(modules: Sequence[nn.Module] | nn.ModuleList) -> bool:
    return len({type(module) for module in modules}) == 1
