"""Encoders of text (BERT, RoBERTa, DeBERTa, DistilBERT, ModernBERT, ...) as classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from gistcli.backbones.base import Ran
from gistcli.backbones.text import TextBackbone
from gistcli.backbones.text_classes import family_of_class
from gistcli.backbones.text_tokens import EncoderTokens
from gistcli.errors import NotSupported


class Encoder(TextBackbone):
    """A network in which every token looks at every other, with a classifier.

    `Features.pooled` (B, D) is what the part outside the base network reads: the pooler's output
    where the base has one (BERT), else the first token, or the mean of the real ones (ModernBERT).
    """

    proven: ClassVar[frozenset[str]] = frozenset(
        f"{name}ForSequenceClassification"
        for name in ("Bert", "Roberta", "DebertaV2", "DistilBert", "ModernBert")
    )

    @staticmethod
    def accepts(architecture: str) -> bool:
        """Whether a name is that of an encoder's class in transformers."""
        return family_of_class(architecture) == "encoder"

    def place_for_tokens(self) -> EncoderTokens:
        """Behind the class token."""
        return EncoderTokens(self.base, self.blocks, self._positions_of)

    def _positions_of(self, ids_BT: Tensor) -> Tensor:
        """(1 or B, T): those of RoBERTa count the tokens that are no padding."""
        padding = self.padding_position
        if padding is None:
            return torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
        real_BT = (ids_BT != padding).long()
        return real_BT.cumsum(dim=1) * real_BT + padding

    def run(self, batch: Mapping[str, Tensor]) -> Ran:
        """Tokens, what the classifier reads, logits.

        Raises:
            NotSupported: packed rows.
        """
        if "segments" in batch:
            raise NotSupported(
                f"{self.architecture} reads one text a row: it is no causal network.",
                "Set data.packing to false.",
            )
        found = self.base(**self._inputs(batch))
        pooled_BD = self._pool(found, batch.get("attention_mask"))
        return found.last_hidden_state, pooled_BD, self.classify(pooled_BD)

    def pool_token(self, token_BD: Tensor) -> Tensor:
        """(B, D): the pooler, where there is one, reads the first token of a sequence."""
        pooler = getattr(self.base, "pooler", None)
        return token_BD if pooler is None else pooler(token_BD[:, None])

    def _pool(self, found: Any, mask_BT: Tensor | None) -> Tensor:
        tokens_BTD: Tensor = found.last_hidden_state
        if getattr(self.base, "pooler", None) is not None:
            pooled_BD: Tensor = found.pooler_output
            return pooled_BD
        if getattr(self.config, "classifier_pooling", "cls") == "mean":
            if mask_BT is None:
                return tokens_BTD.mean(dim=1)
            weights_BT = mask_BT.to(tokens_BTD)
            return (tokens_BTD * weights_BT[..., None]).sum(dim=1) / weights_BT.sum(1, keepdim=True)
        return tokens_BTD[:, 0]
