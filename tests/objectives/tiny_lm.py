"""A tiny language model (GQA, tied), and a batch of texts for it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from gistcli.backbones.base import Origin
from gistcli.backbones.causal import Causal


def tiny_lm(vocabulary: int = 60, softcap: float | None = None) -> Causal:
    """A Llama of two layers, or a Gemma 2 whose logits are capped."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
    }
    if softcap is None:
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    else:
        model = Gemma2ForCausalLM(
            Gemma2Config(**sizes, head_dim=8, final_logit_softcapping=softcap)
        )
    return Causal(model.eval(), Origin("tiny", type(model).__name__))


def texts(vocabulary: int = 60) -> dict[str, Tensor]:
    """Four right-padded rows of lengths 9, 6, 2 and 7, the first part of each not supervised."""
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(3, vocabulary, (4, 9), generator=generator)
    lengths, prompts = torch.tensor([9, 6, 2, 7]), torch.tensor([4, 0, 1, 3])
    place_T = torch.arange(9)
    mask_BT = place_T < lengths[:, None]
    labels_BT = ids_BT.masked_fill(~mask_BT | (place_T < prompts[:, None]), -100)
    return {"input_ids": ids_BT, "attention_mask": mask_BT.long(), "labels": labels_BT}
