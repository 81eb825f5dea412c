"""Runs on encoder-decoders: targets that are written, and classes that are words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from gistcli import run
from gistcli.backbones import open_backbone
from gistcli.errors import RecipeError, Refused
from gistcli.recipe import Recipe
from gistcli.run.loading import open_target
from tests.backbones.text_kinds import FLAN, network
from tests.data.text.tokens import closed_words
from tests.run.calling import call
from tests.run.text_models import completions, labelled, save_model, write_rows

WORDS = {"even": "w1", "odd": "w2"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5, a Flan-T5, a decoder, and data of all kinds."""
    folder = tmp_path_factory.mktemp("seq2seq")
    save_model(folder / "t5", "T5", "seq2seq")
    network("T5", "seq2seq", **FLAN).save_pretrained(folder / "flan")
    closed_words().base.save_pretrained(folder / "flan")
    save_model(folder / "llama", "Llama", "causal_lm")
    completions(folder / "echo.jsonl")
    labelled(folder / "parity.jsonl")
    write_rows(folder / "plain.jsonl", [{"text": f"w{i} w1"} for i in range(30)])
    write_rows(folder / "values.csv.jsonl", [{"text": f"w{i}", "label": i / 7} for i in range(30)])
    return folder


def recipe(place: Path, model: str, file: str, /, **sections: dict[str, Any]) -> Recipe:
    tree: dict[str, Any] = {
        "model": {"name": str(place / model)},
        "data": {"path": str(place / file)},
        "method": {"name": "lora", "rank": 4},
        "optim": {"lr": 0.02},
        "train": {"max_steps": 12, "batch_size": 8},
        "eval": {"every": "none"},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return Recipe.model_validate(tree)


@pytest.fixture(scope="module")
def written(place: Path) -> dict[str, Any]:
    """A run that writes targets, on a T5 with two vocabularies."""
    return run.finetune(recipe(place, "flan", "echo.jsonl"), output=place / "written")


def greedy(model: Any, folder: Path, sources: list[str]) -> list[str]:
    """What transformers writes for each source alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = []
    for source in sources:
        ids = tokenizer(source, return_tensors="pt").input_ids
        out = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
        texts.append(tokenizer.decode(out[0], skip_special_tokens=True).strip())
    return texts


def test_targets_are_learnt_measured_written_and_merged(
    place: Path, written: dict[str, Any], tmp_path: Path
) -> None:
    target = place / "written"
    figures = written["metrics"]
    untrained = recipe(place, "flan", "echo.jsonl", train={"max_steps": 1}, optim={"lr": 1e-9})
    base = run.finetune(untrained, output=tmp_path / "base")["metrics"]
    assert figures["test/loss"] < base["test/loss"] - 0.2
    assert written["tokens"]["test"] == 3 * written["examples"]["test"]  # two words and the end
    assert json.loads((target / "tuner.json").read_text())["task"] == "seq2seq"
    again = run.evaluate(target, device="cpu", batch_size=3)["metrics"]
    assert again["test/loss"] == pytest.approx(figures["test/loss"], rel=1e-5)
    receipt = call("gist merge", target, "-o", tmp_path / "merged")
    assert receipt["max_abs_logit_difference"] < 1e-4
    merged = run.evaluate(tmp_path / "merged", data=str(place / "echo.jsonl"), device="cpu")
    tuned = run.evaluate(target, data=str(place / "echo.jsonl"), device="cpu")
    assert merged["metrics"] == pytest.approx(tuned["metrics"], rel=1e-4)
    sources = [json.loads(x)["prompt"] for x in (place / "echo.jsonl").read_text().splitlines()[:6]]
    write_rows(tmp_path / "ask.jsonl", [{"prompt": source} for source in sources])
    found = [
        [row["text"].strip() for row in call(line, "--max-new-tokens", "6")["predictions"]]
        for line in (
            f"gist predict {target} {tmp_path}/ask.jsonl -o {tmp_path}/a.jsonl",
            f"gist predict {tmp_path}/merged {tmp_path}/ask.jsonl -o {tmp_path}/b.jsonl",
        )
    ]
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").eval()
    assert found[0] == found[1] == greedy(model, tmp_path / "merged", sources)
    assert model.lm_head.weight is not model.shared.weight
    assert "AutoModelForSeq2SeqLM" in (tmp_path / "merged" / "README.md").read_text()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it
def test_the_lora_folder_is_the_tuned_network_in_peft(
    place: Path, written: dict[str, Any], tmp_path: Path
) -> None:
    receipt = call("gist merge", place / "written", "-o", tmp_path / "lora", "--format", "peft")
    assert receipt.get("serve") is None
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"
    assert any("EncDecAttention.q" in name for name in config["target_modules"])
    base = AutoModelForSeq2SeqLM.from_pretrained(place / "flan")
    adapted = PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    generator = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(3, 53, (3, 7), generator=generator),
        "attention_mask": torch.ones(3, 7, dtype=torch.long),
        "labels": torch.randint(3, 53, (3, 4), generator=generator),
    }
    tuned = open_target(place / "written").tuner(batch).logits
    theirs = adapted(**batch).logits.flatten(0, 1)
    assert torch.allclose(tuned, theirs, atol=1e-5 * max(float(theirs.abs().max()), 1.0))
    plain = open_backbone(str(place / "flan")).eval()(batch).logits
    assert not torch.allclose(tuned, plain, atol=1e-2)


def test_classes_are_words_in_a_run_and_in_its_merged_folder(place: Path, tmp_path: Path) -> None:
    asked = recipe(
        place, "t5", "parity.jsonl",
        task={"label_words": WORDS}, train={"max_steps": 60, "batch_size": 32},
        optim={"lr": 0.01},
    )  # fmt: skip
    result = run.finetune(asked, output=tmp_path / "run")
    figures = result["metrics"]
    assert figures["test/accuracy"] > 0.8
    assert result["parameters"]["head"] == 0
    info = json.loads((tmp_path / "run" / "tuner.json").read_text())
    assert info["task"] == "classification"
    assert info["extra"] == {"label_words": ["w1", "w2"], "label_token_ids": [4, 5]}
    again = run.evaluate(tmp_path / "run", device="cpu", batch_size=7)["metrics"]
    assert again == pytest.approx({k: v for k, v in figures.items() if k.startswith("test/")})
    call("gist merge", tmp_path / "run", "-o", tmp_path / "merged")
    call("gist merge", tmp_path / "run", "-o", tmp_path / "lora", "--format", "peft")
    beside = json.loads((tmp_path / "lora" / "label_words.json").read_text())
    assert (beside["id2label"], beside["label_token_ids"]) == ({"0": "even", "1": "odd"}, [4, 5])
    assert not (tmp_path / "merged" / "label_words.json").exists()
    rows = [json.loads(line) for line in (place / "parity.jsonl").read_text().splitlines()[:20]]
    write_rows(tmp_path / "ask.jsonl", [{"text": row["text"]} for row in rows])
    found = [
        call("gist predict", folder, tmp_path / "ask.jsonl", "-o", tmp_path / "o.jsonl")
        for folder in (tmp_path / "run", tmp_path / "merged")
    ]
    classes = [[row["class"] for row in one["predictions"]] for one in found]
    assert classes[0] == classes[1]
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert model.config.label_words == ["w1", "w2"]
    for row, name in zip(rows, classes[0], strict=True):
        ids = tokenizer(row["text"], return_tensors="pt").input_ids
        start = torch.tensor([[model.config.decoder_start_token_id]])
        with torch.no_grad():
            logits = model(input_ids=ids, decoder_input_ids=start).logits[0, 0]
        best = int(logits[model.config.label_token_ids].argmax())
        assert model.config.id2label[best] == name
    other = run.evaluate(tmp_path / "merged", data=str(place / "parity.jsonl"), device="cpu")
    assert other["metrics"]["test/accuracy"] > 0.8


def test_a_tied_network_stays_tied_when_all_of_it_is_trained(place: Path, tmp_path: Path) -> None:
    asked = recipe(place, "t5", "echo.jsonl").as_dict()
    full = {**asked, "method": {"name": "full"}, "train": {"max_steps": 2}, "optim": {"lr": 1e-3}}
    result = run.finetune(Recipe.model_validate(full), output=tmp_path / "run")
    base = open_backbone(str(place / "t5"))
    assert result["parameters"]["method"] == base.count()
    call("gist merge", tmp_path / "run", "-o", tmp_path / "merged")  # verified on real inputs
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert "shared.weight" in stored
    assert not {"lm_head.weight", "encoder.embed_tokens.weight"} & stored.keys()
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    assert model.lm_head.weight is model.shared.weight
    assert not torch.equal(model.shared.weight, base.hf.shared.weight)


def test_a_dry_run_shows_source_and_target_apart(place: Path) -> None:
    line = f"gist finetune --model {place}/t5 --data {place}/echo.jsonl --method gift --dry-run"
    found = call(line)
    assert found["parameters"]["head"] == 0
    assert {site["role"] for site in found["sites"]} == {"attn_out", "cross_attn_out"}


@pytest.mark.parametrize(
    ("model", "file", "sections", "told"),
    [
        ("t5", "echo.jsonl", {"data": {"packing": True}}, "data.packing"),
        ("t5", "echo.jsonl", {"data": {"train_on": "all"}}, "data.train_on"),
        ("t5", "parity.jsonl", {}, "'even' is unknown to the tokenizer"),
        (
            "t5",
            "parity.jsonl",
            {"task": {"label_words": ["w1 w2", "w1 w3"]}},
            "'w1 w2' and 'w1 w3' begin with the same token 'w1'",
        ),
        ("t5", "parity.jsonl", {"task": {"label_words": ["w1"]}}, "1 words for 2 classes"),
        ("t5", "parity.jsonl", {"task": {"label_words": {"even": "w1"}}}, "no word for odd"),
        (
            "t5",
            "parity.jsonl",
            {"task": {"label_words": {**WORDS, "evn": "w3"}}},
            "evn is no class",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    place: Path, tmp_path: Path, model: str, file: str, sections: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        run.finetune(recipe(place, model, file, **sections), output=tmp_path / "run")
    assert told in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "file", "task", "told"),
    [
        ("t5", "echo.jsonl", "causal_lm", "causal_lm is none of its tasks"),
        ("t5", "values.csv.jsonl", "auto", "regression is none of its tasks"),
        ("t5", "plain.jsonl", "auto", "holds documents"),
        ("llama", "echo.jsonl", "seq2seq", "no encoder-decoder"),
    ],
)
def test_tasks_of_other_families_are_refused(
    place: Path, tmp_path: Path, model: str, file: str, task: str, told: str
) -> None:
    with pytest.raises(Refused) as caught:
        run.finetune(recipe(place, model, file, task={"type": task}), output=tmp_path / "run")
    assert told in caught.value.message
    assert caught.value.hint
