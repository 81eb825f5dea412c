"""Decoders of text (Llama, Qwen, Mistral, Gemma, Phi, GPT-2, GPT-NeoX, ...).

Shape suffixes: B = rows, T = positions, N = supervised positions, D = width, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gistcli.backbones.base import Origin, Ran
from gistcli.backbones.prefix import PrefixSeam
from gistcli.backbones.segments import packed_mask, positions_within
from gistcli.backbones.supervision import supervised
from gistcli.backbones.text import TextBackbone
from gistcli.backbones.text_classes import family_of_class
from gistcli.backbones.text_tokens import DecoderTokens

PROVEN = ("Llama", "Qwen2", "Qwen3", "Mistral", "Gemma2", "Phi3", "GPTNeoX")


class Causal(TextBackbone):
    """A network in which every token looks at itself and what stands in front of it.

    Rows may be packed: with `segments` (B, T), 0 for padding and 1, 2, ... for the texts of a row,
    no text looks at another; with `shared` (B, T) bool beside them and `position_ids`, all texts of
    a row look at these tokens as well, where they stand in front.

    As a language model, `pooled` is `tokens` (B, T, D), and `logits` are those of the positions
    that predict a supervised label (N, V), in the order of `supervised`, or of all (B, T, V) where
    a batch has no `labels`. As a classifier, `pooled` (B, D) is the last real token.

    Attributes:
        defers_logits: a language model leaves its logits out (0, V), for an objective that applies
            `classify` to the supervised positions itself.
    """

    proven: ClassVar[frozenset[str]] = frozenset(
        (
            *(f"{name}ForCausalLM" for name in (*PROVEN, "Granite", "Cohere")),
            *(f"{name}ForSequenceClassification" for name in (*PROVEN, "GPT2")),
            "GPT2LMHeadModel",
        )
    )

    def __init__(self, model: nn.Module, origin: Origin) -> None:
        self.defers_logits = False
        self._prefix: PrefixSeam | None = None
        super().__init__(model, origin)

    @staticmethod
    def accepts(architecture: str) -> bool:
        """Whether a name is that of a decoder's class in transformers."""
        return family_of_class(architecture) == "causal"

    @property
    def network(self) -> Any:
        """The module that runs the blocks, through which every call passes (not so OPT's base)."""
        return self.model.get_submodule(self.block_paths[0].rsplit(".", 2)[0])

    def place_for_tokens(self) -> DecoderTokens:
        """Prompts in front of the text, a gist token behind it."""
        return DecoderTokens(self.network, self.blocks)

    @property
    def positions(self) -> int | None:
        """Tokens that a text can have, less those that a prefix takes."""
        found = super().positions
        return found if found is None or self._prefix is None else found - self._prefix.length

    def prefix_seam(self) -> PrefixSeam:
        """Keys and values in front of every text.

        Raises:
            NotSupported: layers that keep something else; says what.
        """
        if self._prefix is None:
            sites, room = self.all_sites(), self.positions
            self._prefix = PrefixSeam(self.model, self.network, self.blocks, sites, room)
        return self._prefix

    def run(self, batch: Mapping[str, Tensor]) -> Ran:
        """Tokens behind the last norm, pooled, logits."""
        tokens_BTD = self.base(**self.arguments(batch), use_cache=False).last_hidden_state
        if self.task == "classification":
            pooled_BD = last_real(tokens_BTD, batch.get("attention_mask"))
            return tokens_BTD, pooled_BD, self.classify(pooled_BD)
        if self.defers_logits:
            logits = tokens_BTD.new_empty(0, self.config.vocab_size)
        elif "labels" in batch:
            logits = self.classify(tokens_BTD[supervised(batch).where])
        else:
            logits = self.classify(tokens_BTD)
        return tokens_BTD, tokens_BTD, logits

    def arguments(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Those of the base network for a batch."""
        found = self._inputs(batch)
        segments_BT = batch.get("segments")
        if segments_BT is not None:
            found.setdefault("position_ids", positions_within(segments_BT))
            found["attention_mask"] = packed_mask(
                self.hf, segments_BT, batch.get("shared"), found["position_ids"]
            )
        return found

    def classify(self, pooled: Tensor) -> Tensor:
        """(..., V) of tokens (..., D), capped or scaled as the network does it; or (B, K)."""
        if self.task == "classification":
            return super().classify(pooled)
        logits: Tensor = self.hf.get_output_embeddings()(pooled)
        config = self.config
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        divisor = getattr(config, "logits_scaling", None)  # Granite
        if divisor is not None:
            logits = logits / divisor
        factor = getattr(config, "logit_scale", None)  # Cohere
        return logits if factor is None else logits * factor


def last_real(tokens_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """(B, D): the last position that is no padding, on whichever side that stands."""
    if mask_BT is None:
        return tokens_BTD[:, -1]
    numbers_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B = (numbers_T * mask_BT).argmax(dim=1)
    return tokens_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
