"""Names inside the blocks of transformers' text networks: roles, fused maps, branches.

A map that no table knows keeps its own name as its role, so that a network of another family can
be tuned by explicit names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from gistcli.backbones.parts import SLICES, thirds
from gistcli.backbones.sites import Site

ROLES: Mapping[str, str] = {
    # Llama, Qwen, Mistral, Gemma, OLMo; OPT and Phi where they differ
    "self_attn.q_proj": "query", "self_attn.k_proj": "key", "self_attn.v_proj": "value",
    "self_attn.o_proj": "attn_out", "self_attn.out_proj": "attn_out",
    "self_attn.dense": "attn_out",
    "mlp.gate_proj": "fc_gate", "mlp.up_proj": "fc_in", "mlp.down_proj": "fc_out",
    "mlp.fc1": "fc_in", "mlp.fc2": "fc_out", "fc1": "fc_in", "fc2": "fc_out",
    # BERT, RoBERTa, ELECTRA, MiniLM; DeBERTa's projections
    "attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value",
    "attention.self.query_proj": "query", "attention.self.key_proj": "key",
    "attention.self.value_proj": "value",
    "attention.output.dense": "attn_out",
    "intermediate.dense": "fc_in", "output.dense": "fc_out",
    # DistilBERT
    "attention.q_lin": "query", "attention.k_lin": "key", "attention.v_lin": "value",
    "attention.out_lin": "attn_out", "ffn.lin1": "fc_in", "ffn.lin2": "fc_out",
    # GPT-2
    "attn.c_attn": "qkv", "attn.c_proj": "attn_out", "mlp.c_fc": "fc_in", "mlp.c_proj": "fc_out",
    # GPT-NeoX, whose rows of query, key and value alternate from head to head
    "attention.query_key_value": "qkv", "attention.dense": "attn_out",
    "mlp.dense_h_to_4h": "fc_in", "mlp.dense_4h_to_h": "fc_out",
    # Phi-3
    "self_attn.qkv_proj": "qkv", "mlp.gate_up_proj": "gate_up",
    # T5, mT5, UMT5: the feed-forward network is the second layer of an encoder's block, the third
    # of a decoder's
    "layer.0.SelfAttention.q": "query", "layer.0.SelfAttention.k": "key",
    "layer.0.SelfAttention.v": "value", "layer.0.SelfAttention.o": "attn_out",
    "layer.1.EncDecAttention.q": "cross_query", "layer.1.EncDecAttention.k": "cross_key",
    "layer.1.EncDecAttention.v": "cross_value", "layer.1.EncDecAttention.o": "cross_attn_out",
    **{f"layer.{n}.DenseReluDense.{name}": role for n in (1, 2) for name, role in (
        ("wi", "fc_in"), ("wi_0", "fc_gate"), ("wi_1", "fc_in"), ("wo", "fc_out")
    )},
    # ModernBERT
    "attn.Wqkv": "qkv", "attn.Wo": "attn_out", "mlp.Wi": "gate_up", "mlp.Wo": "fc_out",
}  # fmt: skip
"""Path in the block -> role."""

MLP = frozenset({"mlp", "fc_in", "fc_gate", "fc_out", "gate_up"})
"""Places that belong to the branch of the MLP."""
CROSS = "cross_"
"""What the roles of cross-attention begin with. As a target, a role without it names both kinds of
attention: `query` is every query, as `q` is for PEFT; `cross_query` and `SelfAttention.q` are one
kind each."""


def branch_name(after: str) -> str:
    """Which branch a place belongs to: attention, cross_attention or mlp."""
    if after in MLP:
        return "mlp"
    return "cross_attention" if after.startswith(CROSS) else "attention"


def _grouped(fused: Site, config: Any) -> list[Site]:
    """Query, key and value where several queries share one key (GQA)."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = size * (getattr(config, "num_key_value_heads", None) or heads)
    return _cut(fused, dict(zip(SLICES, (size * heads, shared, shared), strict=True)))


def _halves(fused: Site, config: Any) -> list[Site]:
    """What passes the non-linearity first, then what it is multiplied with."""
    half = fused.d_out // 2
    return _cut(fused, {"fc_gate": half, "fc_in": half})


def _cut(fused: Site, widths: Mapping[str, int]) -> list[Site]:
    found, start = [], 0
    for role, width in widths.items():
        rows = slice(start, start + width)
        found.append(replace(fused, name=f"{fused.name}[{role}]", role=role, rows=rows))
        start += width
    return found


FUSED: Mapping[str, Callable[[Site, Any], list[Site]]] = {
    "attn.c_attn": lambda fused, config: thirds(fused),
    "attn.Wqkv": lambda fused, config: thirds(fused),
    "self_attn.qkv_proj": _grouped,
    "mlp.gate_up_proj": _halves,
    "mlp.Wi": _halves,
}
"""Path in the block -> its row slices, from the whole map and the network's config."""


@dataclass(frozen=True)
class Branch:
    """A residual branch of a block.

    Attributes:
        exit: module at its end.
        norm: what it starts with; None where the block normalises behind the sum (BERT), or at the
            end of the branch alone (OLMo 2).
        entry: a map that reads the residual as it is, where there is no norm.
    """

    exit: str
    norm: str | None = None
    entry: str = ""

    @property
    def modules(self) -> set[str]:
        """All that it names."""
        return {self.exit, self.norm or self.entry}


BRANCHES: tuple[tuple[Branch, Branch], ...] = (
    # Gemma 2 and 3: a norm at both ends
    (
        Branch("post_attention_layernorm", "input_layernorm"),
        Branch("post_feedforward_layernorm", "pre_feedforward_layernorm"),
    ),
    # OLMo 2
    (
        Branch("post_attention_layernorm", entry="self_attn.v_proj"),
        Branch("post_feedforward_layernorm", entry="mlp.up_proj"),
    ),
    # Phi-3
    (
        Branch("resid_attn_dropout", "input_layernorm"),
        Branch("resid_mlp_dropout", "post_attention_layernorm"),
    ),
    # GPT-NeoX
    (
        Branch("post_attention_dropout", "input_layernorm"),
        Branch("post_mlp_dropout", "post_attention_layernorm"),
    ),
    # Llama, Qwen, Mistral
    (
        Branch("self_attn.o_proj", "input_layernorm"),
        Branch("mlp", "post_attention_layernorm"),
    ),
    # Cohere and Phi, whose branches stand side by side behind one norm
    (Branch("self_attn.o_proj", "input_layernorm"), Branch("mlp", "input_layernorm")),
    (Branch("self_attn.dense", "input_layernorm"), Branch("mlp", "input_layernorm")),
    # GPT-2
    (Branch("attn.resid_dropout", "ln_1"), Branch("mlp", "ln_2")),
    # BERT, RoBERTa, ELECTRA, MiniLM
    (
        Branch("attention.output.dropout", entry="attention.self.query"),
        Branch("output.dropout", entry="intermediate.dense"),
    ),
    # DeBERTa, whose query and key also read the positions
    (
        Branch("attention.output.dropout", entry="attention.self.value_proj"),
        Branch("output.dropout", entry="intermediate.dense"),
    ),
    # DistilBERT
    (
        Branch("attention.out_lin", entry="attention.q_lin"),
        Branch("ffn", entry="ffn.lin1"),
    ),
    # ModernBERT
    (Branch("attn.out_drop", "attn_norm"), Branch("mlp", "mlp_norm")),
)
"""Attention and MLP of a block; the first pair of which all modules are there."""
T5 = tuple(Branch(f"layer.{n}.dropout", f"layer.{n}.layer_norm") for n in range(3))
"""Layers of a block: two of an encoder's, three of a decoder's."""


def branches_of(block: nn.Module) -> Mapping[str, Branch]:
    """The branches of a block by name (`branch_name`); none for a family that is not known."""
    present = {name for name, _ in block.named_modules()}
    layers = [branch for branch in T5 if branch.modules <= present]
    if layers:
        cross = ("cross_attention",) if len(layers) == 3 else ()
        return dict(zip(("attention", *cross, "mlp"), layers, strict=True))
    for attention, mlp in BRANCHES:
        if attention.modules | mlp.modules <= present:
            return {"attention": attention, "mlp": mlp}
    return {}
