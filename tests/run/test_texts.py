"""Runs on text: trained, stopped and gone on, measured again; and what is refused for now."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import gistcli
from gistcli import run
from gistcli.errors import GistError, Interrupted, NotSupported, RecipeError, Refused
from gistcli.recipe import Recipe, yaml
from gistcli.run.finetuning import prepare
from gistcli.run.placing import settle
from gistcli.run.settings import resolved
from gistcli.run.sweep_request import SweepRequest
from tests.listening import Listener
from tests.run.calling import call
from tests.run.text_models import completions, labelled, save_model, write_rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder, an encoder, and data for each."""
    folder = tmp_path_factory.mktemp("text")
    save_model(folder / "llama", "Llama", "causal_lm")
    save_model(folder / "bert", "Bert", "classification")
    completions(folder / "echo.jsonl")
    labelled(folder / "parity.jsonl")
    return folder


def recipe(place: Path, model: str, file: str, /, **sections: dict[str, Any]) -> Recipe:
    tree: dict[str, Any] = {
        "model": {"name": str(place / model)},
        "data": {"path": str(place / file)},
        "method": {"name": "lora", "rank": 2},
        "train": {"max_steps": 4, "batch_size": 8, "save_steps": 2},
        "eval": {"every": "none"},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return Recipe.model_validate(tree)


def test_a_language_model_learns_and_eval_repeats_its_figures(place: Path, tmp_path: Path) -> None:
    results = []
    for steps, rate, name in ((40, 3e-3, "run"), (1, 1e-9, "base")):
        tree = recipe(
            place, "llama", "echo.jsonl", train={"max_steps": steps}, optim={"lr": rate}
        ).as_dict()  # fmt: skip
        asked = Recipe.model_validate({**tree, "method": {"name": "full"}})
        results.append(run.finetune(asked, output=tmp_path / name))
    result, untrained = results
    assert result["metrics"]["test/loss"] < untrained["metrics"]["test/loss"] - 0.3
    figures = result["metrics"]
    assert figures["test/perplexity"] == pytest.approx(math.exp(figures["test/loss"]))
    assert result["tokens"]["test"] == 3 * result["examples"]["test"]  # two words and the end
    assert result["parameters"]["head"] == 0
    again = run.evaluate(tmp_path / "run", device="cpu", batch_size=3)
    assert again["metrics"] == pytest.approx(
        {k: v for k, v in figures.items() if k.startswith("test/")}, rel=1e-5
    )
    other = run.evaluate(tmp_path / "run", data=str(place / "echo.jsonl"), device="cpu")
    assert other["examples"] == 60


def test_an_encoder_learns_classes_and_a_decoder_does_too(place: Path, tmp_path: Path) -> None:
    for model in ("bert", "llama"):
        tree = recipe(
            place, model, "parity.jsonl", train={"max_steps": 60},
            optim={"lr": 3e-3, "head_lr": 1e-2},
        ).as_dict()  # fmt: skip
        asked = Recipe.model_validate({**tree, "method": {"name": "full"}})
        result = run.finetune(asked, output=tmp_path / model)
        assert result["metrics"]["test/accuracy"] > 0.7
        assert result["parameters"]["head"] > 0
        measured = run.evaluate(tmp_path / model, device="cpu", split="val")
        assert measured["metrics"]["val/accuracy"] == result["metrics"]["val/accuracy"]
        assert {row["class"] for row in measured["per_class"]} == {"even", "odd"}


# PEFT asks transformers by a name that the latter has given up
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("model", ["llama", "bert"])
def test_merged_folders_load_in_transformers_and_peft_alone_and_repeat_the_figures(
    place: Path, tmp_path: Path, model: str
) -> None:
    data = "echo.jsonl" if model == "llama" else "parity.jsonl"
    result = run.finetune(
        recipe(place, model, data, optim={"lr": 0.1, "head_lr": 0.01}), output=tmp_path / "run"
    )
    receipt = run.merge(tmp_path / "run", tmp_path / "merged")
    assert receipt["verified"] is True
    assert receipt["max_abs_logit_difference"] < 1e-4
    written = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= written
    splits = (tmp_path / "run" / "splits.csv").read_text().splitlines()
    assert sum(line.startswith("test,") for line in splits) == result["examples"]["test"]
    whole = run.evaluate(tmp_path / "run", data=str(place / data), device="cpu")
    merged = run.evaluate(tmp_path / "merged", data=str(place / data), device="cpu")
    assert merged["metrics"] == pytest.approx(whole["metrics"], rel=1e-5)

    run.merge(tmp_path / "run", tmp_path / "lora", format="peft")
    ids = torch.tensor([[1, 7, 9, 4]])
    auto = AutoModelForCausalLM if model == "llama" else AutoModelForSequenceClassification
    plain = auto.from_pretrained(tmp_path / "merged").eval()
    options = {} if model == "llama" else {"num_labels": 2, "ignore_mismatched_sizes": True}
    base = auto.from_pretrained(place / model, **options)
    adapted = PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    with torch.no_grad():
        assert torch.allclose(adapted(ids).logits, plain(ids).logits, atol=1e-4)
        untouched = auto.from_pretrained(place / model, **options).eval()(ids).logits
    assert not torch.allclose(untouched, plain(ids).logits, atol=1e-2)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("w3").input_ids


@pytest.mark.parametrize("packing", [False, True])
def test_an_interrupted_run_ends_like_one_without_interruption(
    place: Path, tmp_path: Path, packing: bool
) -> None:
    data = {"packing": packing, "max_length": 32}
    asked = recipe(place, "llama", "echo.jsonl", data=data)
    run.finetune(asked, output=tmp_path / "straight")
    stopped = recipe(place, "llama", "echo.jsonl", data=data, train={"max_time": 1e-6})
    with pytest.raises(Interrupted):
        run.finetune(stopped, output=tmp_path / "broken")
    run.finetune(asked, output=tmp_path / "broken")
    ours, theirs = (load_file(tmp_path / n / "tuner.safetensors") for n in ("straight", "broken"))
    assert all((ours[name] == theirs[name]).all() for name in {*ours, *theirs})


def test_a_dry_run_shows_examples_with_their_mask_and_needs_no_weights(
    place: Path, tmp_path: Path
) -> None:
    light = tmp_path / "light"
    light.mkdir()
    for file in (place / "llama").iterdir():
        if file.suffix != ".safetensors":
            (light / file.name).write_bytes(file.read_bytes())
    listener = Listener()
    asked = recipe(place, str(light), "echo.jsonl", train={"max_steps": None, "epochs": 2})
    found = run.dry_run(asked, reporter=listener)
    assert found["steps"] == 2 * 6  # 48 of 60 examples, 8 at a time
    text = "\n".join(listener.lines)
    assert "tokens learnt" in text
    assert "\u27e6" in text
    (light / "tokenizer.json").unlink()
    bare = run.dry_run(asked, reporter=Listener())
    assert bare["parameters"]["method"] == found["parameters"]["method"]
    assert (bare["steps"], bare["classes"]) == (None, None)


def test_the_checkpoint_in_its_own_precision_is_trained_in_float32(
    place: Path, tmp_path: Path
) -> None:
    asked = resolved(recipe(place, "llama", "echo.jsonl", model={"dtype": "bfloat16"}))
    job = prepare(asked, settle(asked, tmp_path / "run", "auto", False), Listener())
    trained = {t.parameter.dtype for t in job.assembly.tuner.trainable().values()}
    frozen = {p.dtype for p in job.assembly.backbone.model.parameters()}
    assert ({str(d) for d in trained}, {str(d) for d in frozen}) == (
        {"torch.float32"},
        {"torch.bfloat16"},
    )


@pytest.mark.parametrize(
    ("model", "data", "sections", "kind", "words"),
    [
        ("bert", "echo.jsonl", {}, Refused, "is an encoder, which classifies"),
        ("llama", "echo.jsonl", {"data": {"augment": "flip-crop"}}, RecipeError, "data.augment"),
        ("llama", "echo.jsonl", {"method": {"name": "vpt", "rank": None}}, GistError, "vpt"),
        ("llama", "echo.jsonl", {"data": {"columns": {"prompt": "ask"}}}, RecipeError, "'ask'"),
        ("llama", "echo.jsonl", {"task": {"type": "classification"}}, GistError, "echo"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    place: Path, tmp_path: Path, model: str, data: str, sections: dict[str, Any],
    kind: type[GistError], words: str,
) -> None:  # fmt: skip
    if "method" in sections:
        sections = {**sections, "method": {"name": "vpt"}}
        tree = recipe(place, model, data).as_dict() | sections
        asked = Recipe.model_validate(tree)
    else:
        asked = recipe(place, model, data, **sections)
    with pytest.raises(kind, match=words) as caught:
        run.finetune(asked, output=tmp_path / "run")
    assert caught.value.exit_code in (1, 2)
    assert not (tmp_path / "run").exists()


def test_keys_of_text_are_refused_for_pictures(tmp_path: Path) -> None:
    tree = {"model": {"name": "gist_vit_nano"}, "data": {"path": "digits", "packing": True}}
    with pytest.raises(RecipeError, match=r"data\.packing: the model reads pictures"):
        run.finetune(Recipe.model_validate(tree), output=tmp_path / "run")


def test_commands_that_do_not_know_text_yet_say_so(place: Path, tmp_path: Path) -> None:
    run.finetune(recipe(place, "llama", "echo.jsonl"), output=tmp_path / "run")
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    found = call(f"gist visualize {tmp_path / 'run'}", picture, "-o", tmp_path / "maps", code=2)
    assert "reads text" in found["error"]["message"]
    found = call(f"gist merge {tmp_path / 'run'} --format onnx", "-o", tmp_path / "out", code=2)
    assert "not exported to ONNX" in found["error"]["message"]
    with pytest.raises(NotSupported, match="--smoke"):
        run.smoke(recipe(place, "llama", "echo.jsonl"))


def test_a_run_and_its_merged_folder_answer_alike_and_as_transformers_does(
    place: Path, tmp_path: Path
) -> None:
    run.finetune(recipe(place, "llama", "echo.jsonl", optim={"lr": 0.1}), output=tmp_path / "run")
    run.merge(tmp_path / "run", tmp_path / "merged")
    asked = write_rows(tmp_path / "ask.jsonl", [{"prompt": "w3 w4"}, {"prompt": "w9 w8 w7 w6"}])
    ours, theirs = (
        call(f"gist predict {tmp_path / name} --max-new-tokens 6 --prompt 'w1 w2'", asked,
             "-o", tmp_path / f"{name}.jsonl")["predictions"]
        for name in ("run", "merged")
    )  # fmt: skip
    assert [row["text"] for row in ours] == [row["text"] for row in theirs]
    assert [row["prompt"] for row in ours] == ["w1 w2", "w3 w4", "w9 w8 w7 w6"]
    assert [row["name"] for row in ours[1:]] == ["ask.jsonl:1", "ask.jsonl:2"]
    lines = (tmp_path / "run.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == [row["text"] for row in ours]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    inputs = tokenizer("w9 w8 w7 w6", return_tensors="pt")
    loaded = gistcli.load(tmp_path / "run")
    assert torch.allclose(loaded(inputs.input_ids), model(**inputs).logits, atol=1e-4)
    for writing in (model, loaded.backbone.hf):
        out = writing.generate(**inputs, max_new_tokens=6, do_sample=False)
        text = tokenizer.decode(out[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        assert text == ours[2]["text"]
    drawn = {
        call(f"gist predict {tmp_path / 'run'} --prompt 'w1 w2' --temperature 2 --seed {seed}",
             "--max-new-tokens", "6")["predictions"][0]["text"]
        for seed in range(4)
    }  # fmt: skip
    assert len(drawn) > 1


def test_texts_without_labels_get_classes(place: Path, tmp_path: Path) -> None:
    run.finetune(recipe(place, "bert", "parity.jsonl"), output=tmp_path / "run")
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "w2 w4 w6"}, {"text": "w1 w3"}])
    found = call(f"gist predict {tmp_path / 'run'} --top-k 2", texts, "-o", tmp_path / "out.jsonl")
    assert found["examples"] == 2
    for row in found["predictions"]:
        assert {one["class"] for one in row["top"]} == {"even", "odd"}
        assert sum(one["probability"] for one in row["top"]) == pytest.approx(1)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    for asked, words in (
        ([texts, "-o", tmp_path / "out.csv"], "JSON lines"),
        (["--prompt", "w1"], "answers no --prompt"),
        ([], "nothing to predict on"),
        ([tmp_path / "no.jsonl"], "does not exist"),
    ):
        refused = call(f"gist predict {tmp_path / 'run'}", *asked, code=2)
        assert words in refused["error"]["message"]


def test_a_sweep_on_text_trains_every_method_and_compares_them(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "parity.yaml"
    tree = recipe(place, "bert", "parity.jsonl", train={"max_steps": 2}).as_dict()
    file.write_text(yaml.dump({**tree, "method": {"name": "gift"}}))
    request = SweepRequest([file], methods=["gift", "linear"], seeds=[0, 1])
    planned = run.sweep_dry_run(request)
    assert [row["hours"] for row in planned["plan"]] == [None, None]
    found = run.sweep(request, output=tmp_path / "sweep")
    assert (found["done"], found["failed"]) == (4, [])
    value = run.compare([tmp_path / "sweep"])
    assert [row["name"] for row in value["rows"]] == ["gift", "linear"]
    assert len(value["differences"]) == 1
