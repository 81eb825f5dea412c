"""The method `prefix`: its parameters, where it starts, and PEFT's prefix tuning beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from gistcli.artifacts.prefix_export import flattened, unflattened
from gistcli.backbones.base import Origin
from gistcli.backbones.causal import Causal
from gistcli.backbones.prefix import Prefix
from gistcli.methods.prefix import PrefixTuner, PrefixTuning
from tests.backbones.text_kinds import VOCABULARY, batch, build, network

# PEFT asks for what transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")


def count(tuner: PrefixTuner) -> int:
    return sum(t.parameter.numel() for t in tuner.trainable().values())


def attach(**options: Any) -> PrefixTuner:
    torch.manual_seed(0)
    return PrefixTuning(**options).attach(build("Llama", "causal_lm"))


def test_a_prefix_of_llama_2_has_the_published_size() -> None:
    config = LlamaConfig(num_hidden_layers=32, hidden_size=4096, num_attention_heads=32)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tuner = PrefixTuning().attach(Causal(model, Origin("llama-2-7b", "LlamaForCausalLM")))
    assert count(tuner) == 4_194_304


def test_keys_and_values_are_as_few_as_the_network_has() -> None:
    tuner = attach(length=5)  # two heads of keys for four of queries
    assert tuner.keys.shape == tuner.values.shape == (2, 1, 2, 5, 8)
    assert count(tuner) == 2 * 2 * 2 * 5 * 8
    mlp = attach(length=5, reparameterise=True, hidden=7)
    assert count(mlp) == 5 * 32 + (32 + 1) * 7 + (7 + 1) * 2 * 2 * 2 * 8
    assert not any(t.decay for t in tuner.trainable().values())


def test_it_starts_normal_and_from_the_mlp_of_the_paper_where_that_is_asked_for() -> None:
    tuner = PrefixTuning(length=30).attach(build("Llama", "causal_lm"))
    for tensor in tuner.state().values():
        assert abs(float(tensor.mean())) < 0.15
        assert 0.9 < float(tensor.std()) < 1.1
    mlp = attach(length=3, reparameterise=True, hidden=7)
    assert mlp.mlp is not None
    inside, _, outside = mlp.mlp
    assert isinstance(inside, nn.Linear)
    assert isinstance(outside, nn.Linear)
    rows_PF = torch.tanh(mlp.embeddings @ inside.weight.t() + inside.bias) @ outside.weight.t()
    rows_PF = rows_PF + outside.bias
    torch.testing.assert_close(flattened(mlp.prefix()), rows_PF)


def test_words_start_it_as_if_they_stood_there() -> None:
    tuner = attach(length=4, init="words")
    torch.manual_seed(5)
    tuner.start()
    torch.manual_seed(5)
    words = torch.randint(VOCABULARY, (1, 4))
    ids = torch.tensor([[7, 8, 9]])
    with torch.no_grad():
        found = tuner({"input_ids": ids}).logits
        with tuner.disabled():
            whole = tuner({"input_ids": torch.cat([words, ids], dim=1)}).logits
    torch.testing.assert_close(found, whole[:, 4:], atol=1e-5, rtol=0)


def test_pefts_layout_and_ours_are_each_others_way_back() -> None:
    keys, values = torch.randn(2, 3, 1, 2, 5, 4)  # layers 3, heads 2, positions 5, width 4
    flat = flattened(Prefix(keys, values))
    assert flat.shape == (5, 3 * 2 * 2 * 4)
    # of position 1: layer 2, values, head 1
    start = (2 * 2 + 1) * 8 + 4
    assert torch.equal(flat[1, start : start + 4], values[2, 0, 1, 1])
    again = unflattened(flat, 3, 2)
    assert torch.equal(again.keys, keys)
    assert torch.equal(again.values, values)


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Mistral", "GPT2", "GPTNeoX"])
def test_it_learns_as_pefts_prefix_tuning_does(name: str) -> None:
    tuner = PrefixTuning(length=3).attach(build(name, "causal_lm"))
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    if name == "Qwen3":  # PEFT takes the width of a head for that of the network over its heads
        config.token_dim, config.num_attention_heads, config.num_layers = 16, 2, 2
    theirs = get_peft_model(network(name, "causal_lm"), config).eval()
    encoder = theirs.prompt_encoder["default"]
    encoder.load_prompt_embeddings(flattened(tuner.prefix()))
    texts = batch()
    real = texts["attention_mask"].bool()
    ours_loss = tuner(texts).logits[real].logsumexp(-1).mean()
    theirs_loss = theirs(**texts).logits[real].logsumexp(-1).mean()
    torch.testing.assert_close(ours_loss, theirs_loss, atol=1e-5, rtol=0)
    ours_loss.backward()
    theirs_loss.backward()
    assert tuner.keys.grad is not None
    assert tuner.values.grad is not None
    ours: Tensor = flattened(Prefix(tuner.keys.grad, tuner.values.grad))
    torch.testing.assert_close(ours, encoder.embedding.weight.grad, atol=1e-5, rtol=1e-4)


def test_options_that_do_nothing_together_are_refused() -> None:
    with pytest.raises(ValidationError, match="no MLP yields a given prefix"):
        PrefixTuning(reparameterise=True, init="words")
    with pytest.raises(ValidationError, match="hidden acts with reparameterise only"):
        PrefixTuning(hidden=8)
    with pytest.raises(
        ValidationError, match=r"random, words, a FILE\.safetensors or run:DIR, found wrods"
    ):
        PrefixTuning.model_validate({"init": "wrods"})
    assert PrefixTuning.model_validate({"init": "a/p.safetensors"}).init == Path("a/p.safetensors")
