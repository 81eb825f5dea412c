"""Methods on text networks: PEFT's own LoRA as the oracle, and the published counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.nn import functional as F

from gistcli.artifacts.peft_export import export_peft
from gistcli.artifacts.plan import plan_merge
from gistcli.artifacts.text_export import text_form
from gistcli.backbones import open_backbone
from gistcli.backbones.supervision import supervised
from gistcli.backbones.text import TextBackbone
from gistcli.methods.base import Method, Tuner
from gistcli.methods.full import Full
from gistcli.methods.gift import Gift
from gistcli.methods.lora import Lora
from gistcli.methods.ssf import Ssf
from gistcli.testing.acting import disturb
from tests.backbones.text_kinds import batch, build, network

NAMES = {
    "Llama": ["q_proj", "v_proj", "down_proj"],
    "GPT2": ["c_attn", "c_fc"],
    "Roberta": ["query", "value", "intermediate.dense"],
}


# PEFT asks transformers by a name that the latter has given up
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("name", NAMES)
def test_pefts_lora_with_the_same_factors_gives_the_same_logits_and_gradients(name: str) -> None:
    backbone, inputs, labels = build(name), batch(), torch.tensor([0, 2, 1])
    tuner = Lora(rank=3, alpha=5, targets=NAMES[name]).attach(backbone, head=False).eval()
    disturb(tuner)
    ours = tuner(inputs).logits
    F.cross_entropy(ours, labels).backward()
    pairs = {s.module_name: tuner.pair(s) for s in tuner.sites}
    grads = {n: [p.grad for p in pair] for n, pair in pairs.items()}
    tuner.detach()

    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=NAMES[name], fan_in_fan_out=name == "GPT2"
    )
    model = peft.get_peft_model(backbone.hf, config).eval()
    layers = {n: m for n, m in model.base_model.model.named_modules() if hasattr(m, "lora_A")}
    assert layers.keys() == pairs.keys()
    with torch.no_grad():
        for path, layer in layers.items():
            layer.lora_A["default"].weight.copy_(pairs[path][0])
            layer.lora_B["default"].weight.copy_(pairs[path][1])
    theirs = model(**inputs).logits
    F.cross_entropy(theirs, labels).backward()
    assert torch.allclose(ours, theirs, atol=1e-5)
    for path, layer in layers.items():
        a, b = grads[path]
        assert torch.allclose(a, layer.lora_A["default"].weight.grad, atol=1e-5)
        assert torch.allclose(b, layer.lora_B["default"].weight.grad, atol=1e-5)


# --- counts -------------------------------------------------------------------------------------

ROBERTA = {
    "model_type": "roberta", "vocab_size": 50265, "type_vocab_size": 1,
    "max_position_embeddings": 514,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "RoBERTa-base": ROBERTA,
    "RoBERTa-large": {
        **ROBERTA, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "Llama-7B": {"model_type": "llama"},
    "Llama-3-8B": {
        "model_type": "llama", "vocab_size": 128256, "intermediate_size": 14336,
        "num_key_value_heads": 8,
    },
}  # fmt: skip
QKVUD = ["query", "key", "value", "fc_in", "fc_out"]
PUBLISHED = [
    ("RoBERTa-base", ["query", "value"], 32, 98_304),
    ("RoBERTa-large", ["query", "value"], 32, 131_072),
    ("Llama-7B", ["query", "value"], 64, 1_048_576),
    ("Llama-7B", ["attn_out"], 128, 1_048_576),
    ("Llama-7B", QKVUD, 64, 3_506_176),
    ("Llama-7B", ["query", "value"], 16, 262_144),
    ("Llama-7B", ["query", "value"], 128, 2_097_152),
    ("Llama-3-8B", QKVUD, 64, 3_932_160),
]


def method_parameters(tuner: Tuner) -> int:
    return sum(t.parameter.numel() for t in tuner.trainable().values() if t.group == "method")


@pytest.mark.parametrize(("name", "targets", "rank", "parameters"), PUBLISHED)
def test_gift_has_the_published_number_of_parameters(
    name: str, targets: list[str], rank: int, parameters: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    backbone = open_backbone(str(tmp_path), meta=True)
    tuner = Gift(rank=rank, targets=targets).attach(backbone)
    assert method_parameters(tuner) == parameters
    sizes = {"RoBERTa-base": 124_647_170, "Llama-7B": 6_738_415_616, "Llama-3-8B": 8_030_261_248}
    assert backbone.count() == sizes.get(name, backbone.count())


# --- merging ------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["Gemma2", "Phi3", "GPTNeoX", "DebertaV2", "ModernBert"])
def test_scales_and_shifts_merge_into_norms_of_every_family(name: str) -> None:
    """Gemma's norms multiply by 1 + weight."""
    backbone = build(name)
    tuner = Ssf().attach(backbone).eval()
    disturb(tuner)
    tuned, patches, head = tuner(batch()).logits, tuner.merge().patches, tuner.merge().new
    tuner.detach()
    base = backbone(batch()).logits
    state = backbone.model.state_dict()
    assert patches.keys() <= state.keys()
    merged = {n: patches[n](t) if n in patches else t for n, t in state.items()}
    backbone.model.load_state_dict({**merged, **head})
    assert torch.allclose(backbone(batch()).logits, tuned, atol=1e-4)
    assert not torch.allclose(base, tuned, atol=1e-2)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("task", ["causal_lm", "classification"])
@pytest.mark.parametrize("name", ["Llama", "GPT2"])
@pytest.mark.parametrize(
    "method",
    [
        Gift(rank=3, targets=["query", "value", "fc_out"], scaling=0.5),
        Gift(rank=2, targets=["key", "attn_out"], share="all"),
        Lora(rank=3, alpha=7, targets=["query", "key", "fc_in"]),
    ],
    ids=["gift", "gift shared", "lora"],
)
def test_an_exported_lora_folder_gives_the_tuned_logits_in_peft_and_merges_there(
    method: Gift | Lora, name: str, task: str, tmp_path: Path
) -> None:
    """Of grouped queries, and of Conv1D, where query, key and value are rows of one map."""
    network(name, task).save_pretrained(tmp_path / "base")
    backbone = open_backbone(str(tmp_path / "base"), task=task).eval()
    assert isinstance(backbone, TextBackbone)
    tuner = method.attach(backbone).eval()
    disturb(tuner)
    tuned, plan = tuner(batch()).logits, plan_merge(tuner)
    form = text_form(backbone, ["a", "b", "c"] if task == "classification" else [], None)
    export_peft(plan, "base", form, tmp_path / "out", verified=False)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"]
    assert config["fan_in_fan_out"] == (name == "GPT2")
    model = peft.PeftModel.from_pretrained(network(name, task), tmp_path / "out").eval()
    assert torch.allclose(model(**batch()).logits, tuned, atol=1e-5)
    merged = model.merge_and_unload()
    assert torch.allclose(merged(**batch()).logits, tuned, atol=1e-5)
    state = merged.state_dict()
    for key, patch in plan.merged.patches.items():
        wanted = patch(backbone.model.get_parameter(key))
        assert torch.allclose(state[key], wanted, atol=1e-6), key
    with tuner.disabled():
        assert not torch.allclose(tuner(batch()).logits, tuned, atol=1e-2)


# --- tied tensors -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_fine_tuning_keeps_tied_embeddings_tied(dtype: torch.dtype) -> None:
    backbone: TextBackbone = build("Llama", "causal_lm")
    backbone.model.to(dtype)
    method: Method = Full()
    tuner = method.attach(backbone)
    network = backbone.hf
    shared = network.lm_head.weight
    assert shared is network.model.embed_tokens.weight
    assert [n for n in tuner.trainable() if "embed" in n or "head" in n] == [
        "model.embed_tokens.weight"
    ]
    labels = batch()["input_ids"]
    logits = tuner({**batch(), "labels": labels}).logits.float()
    logits.square().mean().backward()
    assert shared.grad is not None
    torch.optim.SGD([shared], lr=1.0).step()
    assert network.lm_head.weight is network.model.embed_tokens.weight is shared
    tuner.detach()
    assert network.lm_head.weight is network.model.embed_tokens.weight is not shared
    assert network.lm_head.weight.dtype == dtype


# --- training -----------------------------------------------------------------------------------


def test_recomputed_activations_of_packed_rows_give_the_same_gradients() -> None:
    ids = batch()["input_ids"][:2]
    segments = torch.tensor([[1] * 4 + [2] * 6, [1] * 7 + [0] * 3])
    labels = torch.where(segments > 0, ids, -100)
    packed = {"input_ids": ids, "segments": segments, "labels": labels}
    found = []
    for recompute in (False, True):
        backbone = build("Gemma2", "causal_lm").train()
        torch.manual_seed(0)
        tuner = Lora(rank=2).attach(backbone)
        disturb(tuner)
        if recompute:
            backbone.checkpoint_gradients()
        logits = tuner(packed).logits
        assert len(logits) == 3 + 5 + 6
        F.cross_entropy(logits, supervised(packed).targets).backward()
        found.append([t.parameter.grad for t in tuner.trainable().values()])
    for plain, again in zip(*found, strict=True):
        assert torch.allclose(plain, again, atol=1e-6)
        assert plain.abs().max() > 1e-3
