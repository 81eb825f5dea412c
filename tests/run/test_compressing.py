"""Examples to prefixes: files that others load, what they say of themselves, their worth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from gistcli import run
from gistcli.backbones.prefix import Prefix, cache_name
from gistcli.run.loading import open_target
from tests.listening import Listener
from tests.run.calling import call
from tests.run.task_files import HYPER, free_rows, labelled_rows, task_recipe, write_tasks
from tests.run.text_models import save_model, write_rows
from tests.writing import written

# PEFT asks for what transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
PROMPT = "Input:\nw30\nOutput:\n"
STEPS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a hypernetwork, with and without an adapted network; examples of a new task."""
    folder = tmp_path_factory.mktemp("compressing")
    save_model(folder / "llama", "Llama", "causal_lm")
    write_tasks(folder / "tasks")
    recipe = task_recipe(folder / "llama", folder / "tasks")
    run.finetune(recipe, output=folder / "hyper")
    adapted = task_recipe(folder / "llama", folder / "tasks", hyper={"adapt_downstream": True})
    run.finetune(adapted, output=folder / "adapted")
    write_rows(folder / "new.jsonl", labelled_rows("new", 12))
    write_rows(folder / "more.jsonl", labelled_rows("more", 10))
    return folder


def greedy(model: Any, folder: Path, **more: Any) -> list[int]:
    ids = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt")["input_ids"]
    seen = torch.ones(1, more.pop("front", 0) + ids.shape[1], dtype=torch.long)
    out = model.generate(
        input_ids=ids, attention_mask=seen, max_new_tokens=STEPS, do_sample=False, **more
    )
    found: list[int] = out[0, ids.shape[1] :].tolist()
    return found


def test_transformers_and_peft_write_what_the_run_writes(place: Path, tmp_path: Path) -> None:
    for kind in ("safetensors", "peft"):
        found = run.compress(
            place / "hyper", place / "new.jsonl", tmp_path / kind, format=kind, device="cpu"
        )
        assert found["verified"]
        assert found["max_abs_logit_difference"] < 1e-5
    base = AutoModelForCausalLM.from_pretrained(place / "llama", dtype="float32").eval()
    stored = load_file(tmp_path / "safetensors" / "prefix.safetensors")
    cache = DynamicCache(config=base.config)
    for layer, (keys, values) in enumerate(zip(stored["keys"], stored["values"], strict=True)):
        cache.update(keys, values, layer)
    plain = greedy(base, place / "llama", front=3, **{cache_name(base): cache})
    bare = greedy(base, place / "llama")
    tuned = PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    prompt = AutoTokenizer.from_pretrained(place / "llama")(PROMPT)["input_ids"]
    assert plain == written(tuned, prompt, STEPS)
    assert plain != bare
    text = AutoTokenizer.from_pretrained(place / "llama").decode(plain, skip_special_tokens=True)
    for target in (place / "hyper", place / "llama"):  # both put a prompt as the examples were
        found = run.predict(target, [], prompts=["w30"], prefix=tmp_path / "safetensors",
                            max_new_tokens=STEPS, device="cpu")  # fmt: skip
        assert found["predictions"][0]["text"] == text


def test_the_report_and_the_file_say_what_was_read(place: Path, tmp_path: Path) -> None:
    listener = Listener()
    found = run.compress(
        place / "hyper", place / "new.jsonl", tmp_path / "out", device="cpu", reporter=listener
    )
    assert found["examples"] == {"given": 12, "fitted": 4}
    assert any("4 of 12 examples are read" in line for line in listener.lines)
    assert found["gists"] == 3
    assert found["ratio"] == pytest.approx(found["source_tokens"] / 3, abs=0.01)
    assert found["bytes"] == (tmp_path / "out" / "prefix.safetensors").stat().st_size
    with safe_open(tmp_path / "out" / "prefix.safetensors", "pt") as file:
        notes = file.metadata()
    assert notes["base_fingerprint"] == open_target(place / "hyper").backbone.fingerprint
    assert notes["position_start"] == "0"
    assert notes["tokens"] == "3"
    assert notes["source_tokens"] == str(found["source_tokens"])
    assert notes["adapted_downstream"] == "false"
    assert json.loads(notes["rope_parameters"])["rope_type"] == "default"
    assert len(notes["examples_sha256"]) == 64


def test_a_prefix_is_measured_against_what_it_replaces(place: Path, tmp_path: Path) -> None:
    value = call(
        "gist compress", place / "hyper", place / "new.jsonl", "-o", tmp_path / "out",
        "--eval", place / "more.jsonl", "--device", "cpu",
    )  # fmt: skip
    names = {"accuracy", *(f"accuracy_{c}" for c in ("zero_shot", "in_context", "wrong_task"))}
    assert value["metrics"].keys() == names
    assert value["intervals"].keys() == names
    assert 0 < value["queries"] <= 10
    assert value["wrong_task"] == "copy"
    few = [{**row, "options": ["w1", "w2", "w3"]} for row in labelled_rows("few", 3)]
    listener = Listener()
    listed = run.compress(
        place / "hyper", place / "new.jsonl", tmp_path / "few", device="cpu",
        evaluate=write_rows(tmp_path / "few.jsonl", few), reporter=listener,
    )  # fmt: skip
    assert "accuracy" in listed["metrics"]
    assert listener.phases == ["few", "few zero shot", "few in context", "few wrong task"]
    write_rows(tmp_path / "free.jsonl", free_rows("free"))
    free = run.compress(
        place / "hyper", tmp_path / "free.jsonl", tmp_path / "free", device="cpu",
        evaluate=write_rows(tmp_path / "others.jsonl", free_rows("others", 3)),
    )  # fmt: skip
    assert "rouge_l" in free["metrics"]


def test_a_prefix_of_an_adapted_run_is_for_the_merged_network(place: Path, tmp_path: Path) -> None:
    listener = Listener()
    found = run.compress(
        place / "adapted", place / "new.jsonl", tmp_path / "out", device="cpu", reporter=listener
    )
    assert found["adapted_downstream"]
    assert any("gist merge" in line for line in listener.lines)
    receipt = run.merge(place / "adapted", tmp_path / "merged")
    assert receipt["verified"]
    stored = load_file(tmp_path / "out" / "prefix.safetensors")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="float32").eval()
    cache = DynamicCache(config=network.config)
    for layer, (keys, values) in enumerate(zip(stored["keys"], stored["values"], strict=True)):
        cache.update(keys, values, layer)
    more = {cache_name(network): cache}
    assert greedy(network, place / "llama", front=3, **more) == _written(place, stored)
    path = tmp_path / "out" / "prefix.safetensors"
    tuning = {"name": "prefix", "length": 3, "init": str(path)}
    own = task_recipe(place / "llama", place / "tasks", method=tuning, hyper=None).as_dict()
    (tmp_path / "tuning.json").write_text(json.dumps(own))
    error = call("gist finetune", _yaml(tmp_path, own), "-o", tmp_path / "tuned", code=1)["error"]
    assert "adapted" in error["message"]
    own["model"] = {"name": str(tmp_path / "merged")}
    call("gist finetune", _yaml(tmp_path, own), "-o", tmp_path / "tuned")


def _written(place: Path, stored: dict[str, torch.Tensor]) -> list[int]:
    """What the run itself writes behind a prefix."""
    tuner: Any = open_target(place / "adapted").tuner
    with tuner.prefix_in_use(Prefix(stored["keys"], stored["values"])):
        return greedy(tuner.backbone.model, place / "llama")


def _yaml(folder: Path, tree: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(tree))  # which is YAML
    return path


def test_a_hypernetwork_is_not_merged_and_says_what_to_do(place: Path, tmp_path: Path) -> None:
    error = call("gist merge", place / "hyper", "-o", tmp_path / "out", code=2)["error"]
    assert "gist compress" in error["hint"]


def test_bad_examples_and_other_networks_are_answered_in_a_line(
    place: Path, tmp_path: Path
) -> None:
    def error(examples: Path, *more: str | Path, code: int, target: Path | None = None) -> str:
        line = ("gist compress", target or place / "hyper", examples, "-o", tmp_path / "out")
        found = call(*line, "--device", "cpu", *more, code=code)["error"]
        return f"{found['message']} {found['hint']}"

    nothing = write_rows(tmp_path / "nothing.jsonl", [])
    assert "nothing.jsonl" in error(nothing, code=1)
    assert "does not exist" in error(tmp_path / "absent.jsonl", code=2)
    long = [{"prompt": " ".join(["w1"] * 50), "completion": "w2"}] * 2
    assert "none of 2 examples fits" in error(write_rows(tmp_path / "long.jsonl", long), code=1)
    two = [*labelled_rows("one", 3), *labelled_rows("two", 3)]
    assert "2 tasks" in error(write_rows(tmp_path / "two.jsonl", two), code=1)
    save_model(tmp_path / "other", "Llama", "causal_lm")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    network.model.embed_tokens.weight.data += 1
    network.save_pretrained(tmp_path / "other")
    assert "not the backbone" in error(place / "new.jsonl", "--model", tmp_path / "other", code=1)
    shutil.copytree(place / "llama", tmp_path / "words")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "words")
    tokenizer.add_tokens(["surprise"])
    tokenizer.save_pretrained(tmp_path / "words")
    assert "tokenizer" in error(place / "new.jsonl", "--model", tmp_path / "words", code=1)
    own = {key: value for key, value in HYPER.items() if key != "gists"}
    tree = task_recipe(place / "llama", place / "tasks").as_dict()
    recipe = type(task_recipe(place / "llama", place / "tasks"))
    full = recipe.model_validate({**tree, "hyper": {**own, "context": "full"}})
    run.finetune(full, output=tmp_path / "full")
    assert "makes no prefixes" in error(place / "new.jsonl", code=2, target=tmp_path / "full")
    line = ("gist predict", tmp_path / "full", "--prompt", "w1", "--prefix", tmp_path / "none")
    assert "makes no prefixes" in call(*line, code=2)["error"]["message"]


def test_examples_with_one_answer_are_warned_of(place: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"w{i}", "completion": "w2"} for i in range(10, 13)]
    listener = Listener()
    run.compress(
        place / "hyper", write_rows(tmp_path / "same.jsonl", rows), tmp_path / "out",
        device="cpu", reporter=listener,
    )  # fmt: skip
    assert any("have the answer 'w2'" in line for line in listener.lines)


def test_a_network_in_bfloat16_makes_prefixes_too(place: Path, tmp_path: Path) -> None:
    recipe = task_recipe(
        place / "llama", place / "tasks", model={"dtype": "bfloat16"}, train={"max_steps": 1}
    )
    run.finetune(recipe, output=tmp_path / "run")
    found = run.compress(tmp_path / "run", place / "new.jsonl", tmp_path / "out", device="cpu")
    assert found["max_abs_logit_difference"] < 0.1


def test_documents_come_first_by_a_command_of_their_own(place: Path, tmp_path: Path) -> None:
    rows = [{"text": " ".join(f"w{(3 * i + k) % 50}" for k in range(60))} for i in range(30)]
    write_rows(tmp_path / "documents.jsonl", rows)
    tree = task_recipe(place / "llama", tmp_path / "documents.jsonl", task={"type": "auto"})
    path = _yaml(tmp_path, tree.as_dict())
    counted = call("gist hyperpretrain", path, "--dry-run")
    value = call("gist hyperpretrain", path, "-o", tmp_path / "run", "--max-steps", "2")
    assert value["parameters"] == counted["parameters"]
    assert value["steps"] == 2
    assert open_target(tmp_path / "run").task == "compression"
    other = _yaml(tmp_path, task_recipe(place / "llama", place / "tasks").as_dict())
    error = call("gist hyperpretrain", other, "-o", tmp_path / "other", code=2)["error"]
    assert "hypertuning" in error["message"]
    without = _yaml(tmp_path, {**tree.as_dict(), "hyper": None})
    assert call("gist hyperpretrain", without, code=2)["error"]["type"] == "RecipeError"
