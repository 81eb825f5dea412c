"""Two-block networks over text with random weights, one for every family."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from gistcli import registry
from gistcli.backbones.base import Origin
from gistcli.backbones.text import TextBackbone

VOCABULARY, PAD = 61, 0
SIZE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 40, "pad_token_id": PAD, "bos_token_id": 1,
    "eos_token_id": 2, "num_labels": 3,
}  # fmt: skip
GROUPED = {**SIZE, "num_key_value_heads": 2}
SLIDING = {"sliding_window": 4, "head_dim": 8}
DEBERTA = {
    "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8,
    "share_att_key": True, "position_biased_input": False, "norm_rel_ebd": "layer_norm",
}  # fmt: skip
DECODERS: dict[str, dict[str, Any]] = {
    "Llama": {**GROUPED, "tie_word_embeddings": True},
    "Qwen2": GROUPED,
    "Qwen3": {**GROUPED, "head_dim": 8},
    "Mistral": {**GROUPED, **SLIDING},
    "Gemma2": {**GROUPED, **SLIDING, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "Phi3": GROUPED,
    "GPTNeoX": SIZE,
    "GPT2": SIZE,
    "Granite": {**GROUPED, "logits_scaling": 4.0},
    "Cohere": {**GROUPED, "logit_scale": 0.25},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "Bert": SIZE,
    "Roberta": SIZE,
    "DebertaV2": {**SIZE, **DEBERTA},
    "DistilBert": {**SIZE, "hidden_dim": 48},
    "ModernBert": {**SIZE, "cls_token_id": 1, "sep_token_id": 2, "classifier_pooling": "mean"},
    "Electra": {**SIZE, "embedding_size": 32},
}
T5 = {
    "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "pad_token_id": PAD,
    "eos_token_id": 2, "decoder_start_token_id": PAD, "dropout_rate": 0.0,
}  # fmt: skip
FLAN: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
"""What T5 v1.1 and Flan-T5 differ in."""
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "T5": T5,
    "MT5": T5,
    "UMT5": {**T5, "num_decoder_layers": 3},
}


def network(name: str, task: str = "classification", **more: Any) -> Any:
    """A network whose weights are far from any initialisation, in evaluation mode.

    T5 is v1.0, whose output is scaled in front of tied embeddings; `tie_word_embeddings=False`
    makes it v1.1.
    """
    kinds = {**DECODERS, **ENCODERS, **ENCODER_DECODERS}
    config = getattr(transformers, f"{name}Config")(**kinds[name] | more)
    ending = "ForSequenceClassification"
    if task == "causal_lm":
        ending = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    if name in ENCODER_DECODERS:
        ending = "ForConditionalGeneration"
    generator = torch.Generator().manual_seed(0)
    model: Any = getattr(transformers, name + ending)(config)
    if more.get("tie_word_embeddings") is False and name in ENCODER_DECODERS:
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    for key, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
        if "norm" in key.lower() and key.endswith("weight"):
            parameter.data.add_(0.0 if name.startswith("Gemma") else 1.0)
    return model.eval()


def build(name: str, task: str = "classification", **more: Any) -> TextBackbone:
    """The network as a backbone, in evaluation mode."""
    model = network(name, task, **more)
    kinds = {**dict.fromkeys(ENCODERS, "encoder"), **dict.fromkeys(ENCODER_DECODERS, "seq2seq")}
    family = registry.resolve("backbones", kinds.get(name, "causal"))
    backbone: TextBackbone = family(model, Origin(name, type(model).__name__)).eval()
    return backbone


def batch(rows: int = 3, length: int = 10) -> dict[str, Tensor]:
    """Texts of different lengths, padded on the right."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    lengths = length - 2 * torch.arange(rows)
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {"input_ids": ids * mask + PAD * (1 - mask), "attention_mask": mask}
