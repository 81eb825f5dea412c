"""Folders of text networks: the task's head, the stored dtype, every key, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gistcli.artifacts.plan import plan_merge
from gistcli.artifacts.sources import weight_source
from gistcli.backbones import open_backbone
from gistcli.backbones.text import TextBackbone
from gistcli.errors import NotFound, NotSupported, WeightsError
from gistcli.methods.full import Full
from gistcli.methods.gift import Gift
from gistcli.methods.linear import Linear
from gistcli.methods.lora import Lora
from gistcli.run.inspection import inspect
from gistcli.testing.acting import disturb
from tests.backbones.text_kinds import batch, network

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a tiny network as transformers does, and gives the folder."""

    def write(
        name: str, task: str = "causal_lm", dtype: torch.dtype = torch.float32, **more: Any
    ) -> Path:
        folder = tmp_path / name
        network(name, task, **more).to(dtype).save_pretrained(folder)
        return folder

    return write


def opened(folder: Path, **options: Any) -> TextBackbone:
    backbone = open_backbone(str(folder), **options).eval()
    assert isinstance(backbone, TextBackbone)
    return backbone


@torch.no_grad()
def test_a_real_llama_gives_the_logits_of_transformers(assets: Path) -> None:
    import transformers

    folder = assets / "stories260K"
    backbone = opened(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    inputs = batch()
    assert torch.equal(backbone(inputs).logits, theirs(**inputs).logits)
    assert backbone.task == "causal_lm"
    assert backbone.count() == open_backbone(str(folder), meta=True).count() == 260_032


@torch.no_grad()
def test_the_task_decides_the_class_and_its_head_is_new(save: Save) -> None:
    folder = save("Llama")
    language, classifier = opened(folder), opened(folder, task="classification")
    assert language.architecture == "LlamaForCausalLM"
    assert classifier.architecture == "LlamaForSequenceClassification"
    assert classifier.head_names() == ["score.weight"]
    inputs = batch()
    assert torch.equal(language(inputs).tokens, classifier(inputs).tokens)
    again = opened(folder, task="classification")
    assert torch.equal(classifier(inputs).logits, again(inputs).logits)


@torch.no_grad()
def test_a_folder_of_a_classifier_keeps_its_head(save: Save) -> None:
    folder = save("Roberta", "classification")
    backbone = opened(folder)
    assert torch.equal(backbone(batch()).logits, network("Roberta")(**batch()).logits)
    assert opened(save("Llama", "classification")).task == "classification"


@torch.no_grad()
def test_a_folder_of_the_bare_network_gets_a_head(save: Save, tmp_path: Path) -> None:
    model = network("Roberta")
    model.roberta.save_pretrained(tmp_path / "bare")
    backbone = opened(tmp_path / "bare")
    tokens = model.roberta(**batch()).last_hidden_state
    assert torch.equal(backbone(batch()).tokens, tokens)
    edit(tmp_path / "bare" / "config.json", num_hidden_layers=1)
    with pytest.raises(WeightsError, match=r"unexpected: .*layer\.1"):
        opened(tmp_path / "bare")


def test_the_stored_dtype_is_kept_unless_another_is_asked_for(save: Save) -> None:
    folder = save("Llama", dtype=torch.bfloat16)
    assert {p.dtype for p in opened(folder).model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in opened(folder, meta=True).model.parameters()} == {torch.bfloat16}
    asked = opened(folder, dtype="float32").model.parameters()
    assert {p.dtype for p in asked} == {torch.float32}
    trained = Lora().attach(opened(folder, task="classification")).trainable().values()
    assert {t.parameter.dtype for t in trained} == {torch.float32}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("layers", [1, 3])
def test_every_key_has_to_fit(save: Save, layers: int) -> None:
    folder = save("Llama")
    edit(folder / "config.json", num_hidden_layers=layers)
    for task in ("causal_lm", "classification"):
        with pytest.raises(WeightsError, match=rf"model\.layers\.{layers - 1 or 1}"):
            opened(folder, task=task)


def test_a_language_model_needs_its_head(save: Save) -> None:
    folder = save("Qwen2")
    state = load_file(folder / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"missing: lm_head\.weight"):
        opened(folder)
    edit(folder / "config.json", architectures=["Qwen2Model"])
    with pytest.raises(WeightsError, match=r"missing: lm_head\.weight"):
        opened(folder)
    assert opened(folder, task="classification").task == "classification"


def test_what_is_not_taken_says_why(save: Save, tmp_path: Path) -> None:
    folder = save("Llama")
    with pytest.raises(NotSupported, match="no class of llama for the task compression"):
        opened(folder, task="compression")
    with pytest.raises(NotSupported, match="reads text"):
        opened(folder, img_size=32)
    edit(folder / "config.json", model_type="bart", architectures=["BartForConditionalGeneration"])
    with pytest.raises(
        NotSupported, match="encoder-decoder that no backbone family takes"
    ) as other:
        opened(folder)
    assert "t5, mt5, umt5" in other.value.hint
    with pytest.raises(NotSupported, match="no class of roberta for the task causal_lm"):
        opened(save("Roberta", "classification"), task="causal_lm")
    with pytest.raises(NotSupported, match="reads pictures"):
        open_backbone("vit_tiny_patch16_224", task="causal_lm", meta=True)
    bare = save("GPT2")
    (bare / "model.safetensors").rename(bare / "pytorch_model.bin")
    with pytest.raises(NotFound, match=r"only pytorch_model\.bin") as caught:
        opened(bare)
    assert "save_pretrained" in caught.value.hint


@torch.no_grad()
@pytest.mark.parametrize("name", ["Llama", "GPT2"])
@pytest.mark.parametrize("method", [Full(), Gift(rank=4, targets=["attn_out", "fc_out"])])
def test_a_language_model_merges_into_its_own_keys(
    name: str, method: Full | Gift, save: Save, tmp_path: Path
) -> None:
    """Tied tensors lie in the file once and stay tied; Conv1D weights keep their shape."""
    import transformers

    folder = save(name)
    tuner = method.attach(opened(folder)).eval()
    disturb(tuner)
    head = tuner.backbone.hf.lm_head.weight
    assert head is tuner.backbone.hf.get_input_embeddings().weight
    tuned = tuner(batch()).logits
    plan, keys = plan_merge(tuner), tuner.backbone.stored_keys().written
    with tuner.disabled():
        assert weight_source(tuner.backbone).layout().keys() == {
            n for k in keys.values() for n in k
        }
    (out := tmp_path / "merged").mkdir()
    plan.write(out / "model.safetensors", names=keys)
    (out / "config.json").write_text((folder / "config.json").read_text())
    assert load_file(out / "model.safetensors").keys() == keys.keys()
    merged = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    assert merged.lm_head.weight is merged.get_input_embeddings().weight
    assert torch.allclose(merged(**batch()).logits, tuned, atol=1e-4)
    with tuner.disabled():
        assert not torch.allclose(tuner(batch()).logits, tuned, atol=1e-2)
        assert (tuner.backbone.hf.lm_head.weight is head) == isinstance(method, Gift)


def test_inspecting_shows_the_sites_with_their_roles(save: Save) -> None:
    folder = save("GPT2")
    (folder / "model.safetensors").unlink()
    found = inspect(str(folder))
    assert (found["modality"], found["layers"]) == ("text", 2)
    first = {s["role"]: s for s in found["sites"] if s["layer"] == 0}
    assert first["value"]["name"] == "transformer.h.0.attn.c_attn[value]"
    assert first["value"]["rows"] == [64, 96]
    assert (first["fc_in"]["d_in"], first["fc_in"]["d_out"]) == (32, 128)


def test_linear_probing_wants_a_head(save: Save) -> None:
    with pytest.raises(NotSupported, match="has none of its own"):
        Linear().attach(opened(save("Llama")))
