"""Prefixes and prompts, from training to folders that others use on the plain base."""

from __future__ import annotations

import json
import warnings
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DynamicCache,
)

from gistcli import run
from gistcli.errors import (
    BaseMismatch,
    NotFound,
    NotMergeable,
    RecipeError,
    Refused,
    WeightsError,
)
from gistcli.recipe import Recipe
from gistcli.run.loading import open_target
from tests.run.calling import call
from tests.run.text_models import completions, labelled, save_model
from tests.writing import written

pytestmark = [
    # PEFT asks for what transformers has renamed, and counts positions itself
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.filterwarnings("ignore:Position ids are not supported"),
]

PROMPTS = ["w7 w3", "w9 w9 w1 w2 w30", "w11", "w4 w5 w6 w7 w8 w9 w10 w12", "w20 w21 w22"]
STEPS = 8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoders, an encoder, and data for each."""
    folder = tmp_path_factory.mktemp("fronts")
    save_model(folder / "llama", "Llama", "causal_lm")
    save_model(folder / "gpt2", "GPT2", "causal_lm")
    save_model(folder / "judge", "Qwen3", "classification")
    save_model(folder / "bert", "Bert", "classification")
    completions(folder / "echo.jsonl")
    labelled(folder / "parity.jsonl")
    return folder


def tune(place: Path, output: Path, model: str, file: str, /, **method: Any) -> Path:
    tree = {
        "model": {"name": str(place / model)},
        "data": {"path": str(place / file)},
        "method": method,
        "train": {"max_steps": 6, "batch_size": 8},
        "eval": {"every": "none"},
        "optim": {"lr": 0.05},
    }
    run.finetune(Recipe.model_validate(tree), output=output)
    return output


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """A run of a prefix of five positions in front of the Llama."""
    return tune(place, place / "run", "llama", "echo.jsonl", name="prefix", length=5)


METHODS = {
    "prefix": {"name": "prefix", "length": 5},
    "prefix of an MLP": {"name": "prefix", "length": 5, "reparameterise": True, "hidden": 8},
    "prompt": {"name": "prompt", "length": 5},
}


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("name", METHODS)
def test_peft_writes_what_gist_predict_writes(
    name: str, model: str, place: Path, tmp_path: Path
) -> None:
    tune(place, tmp_path / "run", model, "echo.jsonl", **METHODS[name])
    receipt = run.merge(tmp_path / "run", tmp_path / "out", format="peft")
    assert receipt["verified"]
    assert receipt["max_abs_logit_difference"] < 1e-5
    assert "vLLM" in receipt["notes"][0]
    base = AutoModelForCausalLM.from_pretrained(place / model, dtype="float32").eval()
    plain = [_greedy(base, place / model, p) for p in PROMPTS]
    tuned = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    theirs = [_by_peft(tuned, place / model, p) for p in PROMPTS]
    run.predict(
        tmp_path / "run",
        [],
        prompts=PROMPTS,
        output=tmp_path / "answers.jsonl",
        device="cpu",
        max_new_tokens=STEPS,
    )
    answers = (tmp_path / "answers.jsonl").read_text().splitlines()
    ours = [json.loads(line)["text"] for line in answers]
    assert ours == theirs
    assert theirs != plain


def _greedy(model: Any, folder: Path, prompt: str, **more: Any) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(prompt, return_tensors="pt")
    given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    length = given["input_ids"].shape[1]
    out = model.generate(**(given | more), max_new_tokens=STEPS, do_sample=False)
    text: str = tokenizer.decode(out[0, length:], skip_special_tokens=True)
    return text


def _by_peft(model: Any, folder: Path, prompt: str) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = model.base_model.generation_config.eos_token_id
    new = written(model, tokenizer(prompt)["input_ids"], STEPS, end)
    text: str = tokenizer.decode(new, skip_special_tokens=True)
    return text


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_peft_classifies_as_the_run_with_the_trained_head(
    name: str, place: Path, tmp_path: Path
) -> None:
    tune(place, tmp_path / "run", "judge", "parity.jsonl", name=name, length=3)
    run.merge(tmp_path / "run", tmp_path / "out", format="peft")
    base = AutoModelForSequenceClassification.from_pretrained(
        place / "judge", num_labels=2, ignore_mismatched_sizes=True
    )
    if name == "prefix" and "past_key_values" not in signature(base.forward).parameters:
        pytest.skip("PEFT asks for an argument that transformers calls `cache` from 5.24 on")
    tuned = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "judge")
    ours = open_target(tmp_path / "run").tuner
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            torch.testing.assert_close(tuned(**batch).logits, ours(batch).logits, atol=1e-5, rtol=0)


def test_a_file_of_keys_and_values_is_all_that_transformers_needs(
    place: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = run.merge(trained, tmp_path / "out", format="prefix", base_name="me/llama")
    assert receipt["format"] == "prefix"
    assert sorted(receipt["files"]) == ["prefix.safetensors"]
    base = AutoModelForCausalLM.from_pretrained(place / "llama", dtype="float32").eval()
    prefix = load_file(tmp_path / "out" / "prefix.safetensors")
    assert prefix["keys"].shape == (2, 1, 2, 5, 8)
    texts = []
    for prompt in PROMPTS:
        cache = DynamicCache(config=base.config)
        for layer, (k, v) in enumerate(zip(prefix["keys"], prefix["values"], strict=True)):
            cache.update(k, v, layer)
        ids = AutoTokenizer.from_pretrained(place / "llama")(prompt)["input_ids"]
        seen = torch.ones(1, prefix["keys"].shape[-2] + len(ids), dtype=torch.long)
        more = {"past_key_values": cache, "attention_mask": seen}
        texts.append(_greedy(base, place / "llama", prompt, **more))
    run.merge(trained, tmp_path / "card", format="prefix", base_name=str(place / "llama"))
    monkeypatch.chdir(tmp_path)
    card = (tmp_path / "card" / "README.md").read_text().replace('"..."', f'"{PROMPTS[0]}"')
    snippet = card.partition("```python\n")[2].partition("```")[0]
    scope: dict[str, Any] = {}
    with warnings.catch_warnings(action="error"):
        exec(compile(snippet, "card", "exec"), scope)
    new = scope["out"][0, scope["ids"].shape[1] :]
    assert scope["tokenizer"].decode(new, skip_special_tokens=True).startswith(texts[0])
    run.merge(trained, tmp_path / "peft", format="peft")
    tuned = PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    assert texts == [_by_peft(tuned, place / "llama", p) for p in PROMPTS]


def test_a_run_goes_on_from_the_file_of_another(place: Path, trained: Path, tmp_path: Path) -> None:
    run.merge(trained, tmp_path / "out", format="prefix")
    file = tmp_path / "out" / "prefix.safetensors"
    tree = {
        "model": {"name": str(place / "llama")},
        "data": {"path": str(place / "echo.jsonl")},
        "method": {**METHODS["prefix"], "init": str(file)},
        "train": {"max_steps": 1, "batch_size": 8},
        "eval": {"every": "none"},
        "optim": {"lr": 1e-12},
    }
    before = json.loads((trained / "result.json").read_text())["metrics"]
    again = run.finetune(Recipe.model_validate(tree), output=tmp_path / "again")
    assert again["metrics"]["test/loss"] == pytest.approx(before["test/loss"], rel=1e-5)
    file.unlink()
    assert run.evaluate(tmp_path / "again", device="cpu")["metrics"] == pytest.approx(
        {k: v for k, v in again["metrics"].items() if k.startswith("test/")}, rel=1e-5
    )


def test_files_that_are_no_prefix_for_this_network_are_refused(
    place: Path, trained: Path, tmp_path: Path
) -> None:
    run.merge(trained, tmp_path / "out", format="prefix")
    file = tmp_path / "out" / "prefix.safetensors"
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(file.read_bytes()[:-40])

    def begin(output: str, model: str = "llama", /, **method: Any) -> None:
        options = {**METHODS["prefix"], "init": str(file), **method}
        tune(place, tmp_path / output, model, "echo.jsonl", **options)

    with pytest.raises(RecipeError, match="a prefix of 5 positions"):
        begin("a", length=4)
    with pytest.raises(BaseMismatch, match="another network"):
        begin("b", "gpt2")
    with pytest.raises(WeightsError, match=r"holds no prefix.*weight \[2\]"):
        begin("c", init=str(tmp_path / "other.safetensors"))
    with pytest.raises(WeightsError, match="no intact"):
        begin("d", init=str(tmp_path / "broken.safetensors"))
    with pytest.raises(NotFound, match="does not exist"):
        begin("e", init=str(tmp_path / "none.safetensors"))
    assert not list(tmp_path.glob("?"))


def test_what_no_folder_holds_is_refused_with_what_to_do(place: Path, tmp_path: Path) -> None:
    prefix = tune(place, tmp_path / "prefix", "judge", "parity.jsonl", name="prefix", length=3)
    with pytest.raises(NotMergeable, match="reads it beside each text") as caught:
        run.merge(prefix, tmp_path / "out")
    assert "--format peft" in caught.value.hint
    with pytest.raises(NotMergeable, match="head of a classifier"):
        run.merge(prefix, tmp_path / "out", format="prefix")
    with pytest.raises(Refused, match="no scale"):
        run.merge(prefix, tmp_path / "out", format="peft", scale=0.5)
    prompt = tune(place, tmp_path / "prompt", "bert", "parity.jsonl", name="prompt", length=3)
    with pytest.raises(NotMergeable, match="behind the first token"):
        run.merge(prompt, tmp_path / "out", format="peft")
    lora = tune(place, tmp_path / "lora", "llama", "echo.jsonl", name="lora", rank=1)
    for run_, name in ((lora, "lora"), (prompt, "prompt")):
        with pytest.raises(NotMergeable, match=f"{name} trains no keys and values"):
            run.merge(run_, tmp_path / "out", format="prefix")
    assert not (tmp_path / "out").exists()


def test_half_precision_says_how_far_it_is(trained: Path, tmp_path: Path) -> None:
    receipt = run.merge(trained, tmp_path / "out", format="peft", dtype="bfloat16")
    assert receipt["dtype"] == "bfloat16"
    assert 1e-5 < receipt["max_abs_logit_difference"] < 0.5
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert found["prompt_embeddings"].dtype == torch.bfloat16


def test_the_command_takes_the_format(trained: Path, tmp_path: Path) -> None:
    value = call("gist merge", str(trained), "-o", str(tmp_path / "out"), "--format", "prefix")
    assert value["tensors_changed"] == 2
    card = (tmp_path / "out" / "README.md").read_text()
    assert "DynamicCache" in card
