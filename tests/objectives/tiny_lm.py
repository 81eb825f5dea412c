"""A tiny Llama (GQA, tied) behind the contract of a causal backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from gistcli.backbones.base import Backbone, Modality, Origin
from gistcli.backbones.layout import Features, TokenLayout
from gistcli.backbones.sites import Output, Point, Site
from gistcli.backbones.supervision import supervised

ROLES = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "attn_out"}


class TinyLM(Backbone):
    """Stands in for `backbones/causal.py`."""

    modality: ClassVar[Modality] = "text"
    defers_logits = False

    def __init__(self, vocabulary: int = 60, width: int = 32, softcap: float | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            initializer_range=0.3,
            bos_token_id=1,
            eos_token_id=2,
        )
        self.model = LlamaForCausalLM(config).eval()
        self.origin = Origin("tiny", "llama")
        self.softcap = softcap

    @staticmethod
    def accepts(architecture: str) -> bool:
        return architecture == "llama"

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.model.layers)  # type: ignore[union-attr]

    def reset_head(self, classes: int, seed: int = 0) -> None:
        raise NotImplementedError

    def head_names(self) -> list[str]:
        return []

    def all_sites(self) -> list[Site]:
        paths = [
            (i, f"model.layers.{i}.self_attn.{n}", r) for i in (0, 1) for n, r in ROLES.items()
        ]
        return [
            Site(path, path, role, i, self.model.get_submodule(path)) for i, path, role in paths
        ]

    def outputs(self) -> list[Output]:
        return []

    def point(self, after: str, layer: int) -> Point:
        raise NotImplementedError

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        model: Any = self.model
        base = model.model(batch["input_ids"], attention_mask=batch.get("attention_mask"))
        tokens = base.last_hidden_state
        read = tokens[:0, 0] if self.defers_logits else tokens
        if "labels" in batch and not self.defers_logits:
            read = tokens[supervised(batch).where]
        return Features(tokens, tokens, self.classify(read), TokenLayout({}, (0, 0)))

    def classify(self, pooled: Tensor) -> Tensor:
        model: Any = self.model
        logits = model.lm_head(pooled)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def read_out(self, features: Features, slot: str) -> Tensor:
        raise NotImplementedError


def texts(vocabulary: int = 60) -> dict[str, Tensor]:
    """Four right-padded rows of lengths 9, 6, 2 and 7, the first part of each not supervised."""
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(3, vocabulary, (4, 9), generator=generator)
    lengths, prompts = torch.tensor([9, 6, 2, 7]), torch.tensor([4, 0, 1, 3])
    place_T = torch.arange(9)
    mask_BT = place_T < lengths[:, None]
    labels_BT = ids_BT.masked_fill(~mask_BT | (place_T < prompts[:, None]), -100)
    return {"input_ids": ids_BT, "attention_mask": mask_BT.long(), "labels": labels_BT}
