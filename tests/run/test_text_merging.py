"""Merged runs on text as others use them: PEFT on the plain base, transformers without gistcli."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gistcli import run
from gistcli.errors import Refused, StorageError
from gistcli.recipe import Recipe
from tests.backbones import text_kinds
from tests.data.text.tokens import words
from tests.listening import Listener
from tests.run.calling import call
from tests.run.text_models import completions, labelled, save_model, write_rows

pytestmark = [
    # PEFT asks transformers by a name that the latter has given up
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]


def tune(model: Path, data: Path, output: Path, /, **sections: dict[str, Any]) -> dict[str, Any]:
    """A few steps of GIFT that change the answers."""
    tree: dict[str, Any] = {
        "model": {"name": str(model)},
        "data": {"path": str(data)},
        "method": {"name": "gift", "rank": 4, "targets": ["query", "value"]},
        "train": {"max_steps": 4, "batch_size": 8},
        "optim": {"lr": 0.05, "head_lr": 0.05},
        "eval": {"every": "none"},
    }
    for name, values in sections.items():
        tree[name] = values if name == "method" else {**tree.get(name, {}), **values}
    return run.finetune(Recipe.model_validate(tree), output=output)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder in three bfloat16 shards, a run on it, and an encoder with a run on it."""
    folder = tmp_path_factory.mktemp("merging")
    network = text_kinds.network("Llama", "causal_lm", max_position_embeddings=64)
    network.bfloat16().save_pretrained(folder / "sharded", max_shard_size="14KB")
    words().base.save_pretrained(folder / "sharded")
    completions(folder / "echo.jsonl")
    tune(folder / "sharded", folder / "echo.jsonl", folder / "run", optim={"lr": 0.01})
    save_model(folder / "roberta", "Roberta", "classification")
    labelled(folder / "parity.jsonl")
    return folder


# --- a LoRA folder ------------------------------------------------------------------------------


def chats(path: Path, names: list[str]) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"{name} and {other}"},
                      {"role": "assistant", "content": f"{other} {name}"}]}
        for name in names for other in names if other != name
    ]  # fmt: skip
    return write_rows(path, rows)


def peft_answers(base: Path, adapter: Path, questions: list[str]) -> tuple[list[str], list[str]]:
    """Greedy answers of PEFT on the plain base, and those of the base alone."""
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    found: tuple[list[str], list[str]] = ([], [])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    for question in questions:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True,
            return_tensors="pt", return_dict=True,
        )  # fmt: skip
        asked = inputs["input_ids"].shape[1]
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        out = model.generate(**inputs, **options)
        with model.disable_adapter():
            plain = model.generate(**inputs, **options)
        for texts, ids in zip(found, (out, plain), strict=True):
            texts.append(tokenizer.decode(ids[0, asked:], skip_special_tokens=True))
    return found


@pytest.mark.parametrize("model", ["llama", "stories260K"])
def test_chats_become_an_adapter_with_which_peft_answers_as_predict_does(
    model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if model == "llama":
        base = save_model(tmp_path / "llama", "Llama", "causal_lm")
        names, rate = [f"w{i}" for i in range(6)], 0.05
    else:
        base = request.getfixturevalue("assets") / "stories260K"
        names, rate = ["Lily", "Tom", "the dog", "a cat", "Mom", "the sun"], 0.01
    data = chats(tmp_path / "chats.jsonl", names)
    template = {"chat_template": "chatml"}
    tune(base, data, tmp_path / "run", data=template, optim={"lr": rate})
    receipt = call(
        f"gist merge {tmp_path / 'run'} --format peft --base-name owner/base",
        "-o", tmp_path / "lora",
    )  # fmt: skip
    assert receipt["max_abs_logit_difference"] < 1e-4  # of logits of some tens
    assert receipt["greedy_agreement"] == 1
    questions = [f"{a} and {b}" for a in names for b in names if a != b][:20]
    file = write_rows(
        tmp_path / "ask.jsonl",
        [{"messages": [{"role": "user", "content": question}]} for question in questions],
    )
    ours = call(f"gist predict {tmp_path / 'run'} --max-new-tokens 8", file)["predictions"]
    theirs, untuned = peft_answers(base, tmp_path / "lora", questions)
    assert [row["text"] for row in ours] == theirs
    assert len(theirs) == 20
    assert theirs != untuned
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["task_type"]) == ("owner/base", "CAUSAL_LM")
    card = (tmp_path / "lora" / "README.md").read_text()
    assert "base_model: owner/base" in card
    folder = tmp_path / "lora"
    assert receipt["serve"] == (
        f"vllm serve owner/base --enable-lora --max-lora-rank 8 --lora-modules lora={folder} "
        f"--chat-template {folder / 'chat_template.jinja'}"
    )
    assert receipt["serve"] in card


def test_a_classifier_s_adapter_is_not_for_vllm(place: Path, tmp_path: Path) -> None:
    tune(place / "roberta", place / "parity.jsonl", tmp_path / "run")
    listener = Listener()
    receipt = run.merge(tmp_path / "run", tmp_path / "lora", format="peft", reporter=listener)
    assert receipt["serve"] is None
    assert any("vLLM does not load" in line and "classifier" in line for line in listener.lines)


# --- shards -------------------------------------------------------------------------------------


def shards(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def test_the_files_are_those_of_the_base(place: Path, tmp_path: Path) -> None:
    base, out = place / "sharded", tmp_path / "out"
    receipt = run.merge(place / "run", out)
    ours, theirs = shards(out), shards(base)
    assert len(theirs) == 3
    assert {n: f.keys() for n, f in ours.items()} == {n: f.keys() for n, f in theirs.items()}
    index = "model.safetensors.index.json"
    assert json.loads((out / index).read_text()) == json.loads((base / index).read_text())
    changed = {
        key for name in ours for key in ours[name] if not torch.equal(ours[name][key],
                                                                      theirs[name][key])
    }  # fmt: skip
    assert changed == {
        f"model.layers.{i}.self_attn.{x}_proj.weight" for i in range(2) for x in "qv"
    }
    assert receipt["verified"]
    assert receipt["greedy_agreement"] > 0.5
    again = run.merge(place / "run", out)  # which replaces what it wrote
    assert again["files"] == receipt["files"]


def test_a_size_of_shards_gives_the_files_of_transformers(place: Path, tmp_path: Path) -> None:
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    run.merge(place / "run", out, dtype="float32", max_shard_size="20KB")
    model = AutoModelForCausalLM.from_pretrained(out)
    model.save_pretrained(theirs, max_shard_size="20KB")
    index = "model.safetensors.index.json"
    assert json.loads((out / index).read_text()) == json.loads((theirs / index).read_text())
    assert {n: f.keys() for n, f in shards(out).items()} == {
        n: f.keys() for n, f in shards(theirs).items()
    }
    one = tmp_path / "one"
    run.merge(place / "run", one, max_shard_size="1GB", verify=False)
    assert list(shards(one)) == ["model.safetensors"]
    assert not (one / index).exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_shard_size": "big"}, "'big' is no size"),
        ({"max_shard_size": "0GB"}, "'0GB' is no size"),
        ({"max_shard_size": "2GB", "format": "peft"}, "writes one small file"),
    ],
)
def test_a_size_that_cannot_be_kept_is_refused(
    place: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(Refused, match=words):
        run.merge(place / "run", tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_known_before_anything_is_written(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=10_000))
    for options in ({}, {"format": "peft", "dtype": "float32"}):
        if options:
            monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=100))
        with pytest.raises(StorageError, match="are free there") as caught:
            run.merge(place / "run", tmp_path / "out", **options)
        assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


# --- what is verified, and what is advised ----------------------------------------------------


def test_bfloat16_is_advised_against_with_what_is_lost(place: Path, tmp_path: Path) -> None:
    listener = Listener()
    receipt = run.merge(place / "run", tmp_path / "out", reporter=listener)
    assert receipt["dtype"] == "bfloat16"
    assert 0.02 < receipt["worst_relative_rounding"] < 1
    assert 0 < receipt["lost_share"] < 1
    advice = next(line for line in listener.lines if line.startswith("warning: Rounding"))
    assert f"{receipt['lost_share']:.0%} of all updated weights do not move" in advice
    assert "--dtype float32 would lose nothing" in advice
    assert "--format peft" in advice
    whole = run.merge(place / "run", tmp_path / "whole", dtype="float32")
    assert whole["advice"] == ""
    assert whole["lost_share"] == 0
    assert whole["max_abs_logit_difference"] < 1e-4


def test_without_its_data_a_run_is_verified_on_sentences(place: Path, tmp_path: Path) -> None:
    data = completions(tmp_path / "gone.jsonl", 20)
    tune(place / "sharded", data, tmp_path / "run")
    data.unlink()
    listener = Listener()
    receipt = run.merge(tmp_path / "run", tmp_path / "out", dtype="float32", reporter=listener)
    assert any("verifying on sentences" in line for line in listener.lines)
    assert receipt["max_abs_logit_difference"] < 1e-4
    assert receipt["greedy_agreement"] == 1


@pytest.mark.parametrize("format", ["transformers", "peft"])
def test_half_of_the_update_is_compared_with_the_network_of_that_scale(
    place: Path, tmp_path: Path, format: str
) -> None:
    receipt = run.merge(place / "run", tmp_path / "out", format=format, scale=0.5, dtype="float32")
    assert receipt["max_abs_logit_difference"] < 1e-5
    assert not (tmp_path / "out" / "check").exists()


@pytest.mark.parametrize("model", ["Llama", "GPT2"])
def test_a_run_on_four_bits_is_merged_into_what_it_was_trained_on(
    place: Path, tmp_path: Path, model: str
) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra [quantised] is not installed")
    base, data = save_model(tmp_path / "base", model, "causal_lm"), place / "echo.jsonl"
    section = {"name": str(base), "quantize": "nf4"}
    tune(base, data, tmp_path / "run", model=section)
    receipt = run.merge(tmp_path / "run", tmp_path / "out")
    assert receipt["worst_quantisation"] > 0.1
    ours, theirs = (
        run.evaluate(tmp_path / name, data=str(data), device="cpu")["metrics"]
        for name in ("run", "out")
    )
    assert theirs == pytest.approx(ours, rel=1e-5)


# --- tied embeddings ----------------------------------------------------------------------------

FULL = {"method": {"name": "full"}, "optim": {"lr": 0.01}}


def test_a_tied_network_stays_tied_after_full_fine_tuning(place: Path, tmp_path: Path) -> None:
    tune(place / "sharded", place / "echo.jsonl", tmp_path / "run", **FULL)
    run.merge(tmp_path / "run", tmp_path / "out", dtype="float32")
    tensors = {k: t for file in shards(tmp_path / "out").values() for k, t in file.items()}
    assert "lm_head.weight" not in tensors
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight
    base = AutoModelForCausalLM.from_pretrained(place / "sharded", dtype="float32")
    assert not torch.equal(model.lm_head.weight, base.lm_head.weight)


def test_two_tensors_that_a_config_calls_tied_are_untied_explicitly(
    place: Path, tmp_path: Path
) -> None:
    base = save_model(tmp_path / "base", "Llama", "causal_lm")
    state = load_file(base / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(state, base / "model.safetensors", {"format": "pt"})
    assert json.loads((base / "config.json").read_text())["tie_word_embeddings"] is True
    for name, sections in (("gift", {}), ("full", FULL)):
        tune(base, place / "echo.jsonl", tmp_path / name, **sections)
        out = tmp_path / f"{name}-merged"
        assert run.merge(tmp_path / name, out)["max_abs_logit_difference"] < 1e-4
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
        written = load_file(out / "model.safetensors")
        assert written.keys() == state.keys()
        model = AutoModelForCausalLM.from_pretrained(out)
        assert model.lm_head.weight is not model.model.embed_tokens.weight
        kept = torch.equal(written["lm_head.weight"], state["lm_head.weight"])
        assert kept == (name == "gift")


# --- a folder that needs nothing of us ----------------------------------------------------------

CLASSIFIER = """
import json, sys
sys.modules["gistcli"] = None  # importing it would fail
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, data = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
right = 0
rows = [json.loads(line) for line in open(data)]
for row in rows:
    logits = model(**tokenizer(row["text"], return_tensors="pt")).logits[0]
    right += model.config.id2label[int(logits.argmax())] == row["label"]
assert model.config.label2id == {"even": 0, "odd": 1}
print(right / len(rows))
"""


def test_a_merged_classifier_repeats_its_score_without_gistcli(place: Path, tmp_path: Path) -> None:
    tune(
        place / "roberta", place / "parity.jsonl", tmp_path / "run",
        train={"max_steps": 40}, optim={"lr": 3e-3, "head_lr": 1e-2},
    )  # fmt: skip
    run.merge(tmp_path / "run", tmp_path / "out")
    ours = run.evaluate(tmp_path / "run", data=str(place / "parity.jsonl"), device="cpu")
    done = subprocess.run(
        [sys.executable, "-c", CLASSIFIER, str(tmp_path / "out"), str(place / "parity.jsonl")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(next(
        value for name, value in ours["metrics"].items() if name.endswith("accuracy")
    ))  # fmt: skip


def test_the_folder_answers_chats_with_the_template_of_the_run(place: Path, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "Llama", "causal_lm")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    template = tmp_path / "own.jinja"
    template.write_text(
        "{{ bos_token }}{% for m in messages %}{{ ' w1 ' + m['content'] + ' ' }}{% endfor %}"
    )
    data = chats(tmp_path / "chats.jsonl", ["w3", "w4", "w5"])
    tune(base, data, tmp_path / "run", data={"chat_template": str(template), "train_on": "all"})
    run.merge(tmp_path / "run", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == template.read_text()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == [2, 7]
