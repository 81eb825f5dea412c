"""Text that cannot be used, and model folders that cannot read any: one line each, nothing kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.run.calling import call as run_command
from tests.run.text_models import completions, labelled, save_model

Refuse = Callable[..., Any]
Call = Callable[..., str]
GOOD = {"prompt": "w1 w2", "completion": "w1"}
CHAT = {"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder and an encoder; not to be written to."""
    root = tmp_path_factory.mktemp("models")
    save_model(root / "llama", "Llama", "causal_lm")
    save_model(root / "bert", "Bert", "classification")
    return root


@pytest.fixture
def ask(models: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of a short training on text."""

    def command(data: Path, *more: str, model: str | Path = "llama") -> list[str]:
        where = ["--model", str(models / model), "--data", str(data), "-o", str(tmp_path / "run")]
        return ["finetune", "--method", "lora", *where, "--max-steps", "1", *more]

    return command


def lines(path: Path, rows: list[Any], count: int = 1) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * count))
    return path


def test_a_column_that_is_not_there(refuse: Refuse, ask: Any, tmp_path: Path) -> None:
    data = lines(tmp_path / "a.jsonl", [GOOD], 20)
    said = refuse(2, *ask(data, "--set", "data.columns={prompt: promt, completion: completion}"))
    said.names("no column 'promt' (prompt)")
    said.advises("Did you mean 'prompt'")
    said = refuse(2, *ask(lines(tmp_path / "b.jsonl", [{"a": "w1", "b": "w2"}], 20)))
    said.names("is of no known format", "a, b")
    said.advises("data.columns")
    assert not (tmp_path / "run").exists()


def test_an_empty_answer_is_named_by_its_line(
    refuse: Refuse, call: Call, ask: Any, tmp_path: Path
) -> None:
    data = lines(tmp_path / "a.jsonl", [*[GOOD] * 9, {**GOOD, "completion": " "}], 2)
    said = refuse(1, *ask(data))
    said.names("2 rows (a.jsonl:10: the completion is empty, a.jsonl:20")
    said.advises("data.on_error=skip")
    told = call(*ask(data, "--dry-run", "--set", "data.on_error=skip"))
    assert "a.jsonl:20: the completion is empty) left out" in " ".join(told.split())
    turns = [*CHAT["messages"][:1], {"role": "assistant", "content": ""}]
    refuse(1, *ask(lines(tmp_path / "b.jsonl", [{"messages": turns}]))).names(
        "b.jsonl:1: turn 2, the assistant's, is empty"
    )
    assert not (tmp_path / "run").exists()


def test_examples_that_are_too_long_are_counted_and_all_of_them_are_an_error(
    refuse: Refuse, call: Call, ask: Any, tmp_path: Path
) -> None:
    long = {"prompt": "w1 " * 30, "completion": "w2"}
    data = lines(tmp_path / "a.jsonl", [GOOD, long, long], 20)
    told = call(*ask(data, "--dry-run", "--set", "data.max_length=16"))
    assert "examples left out: longer than 16 tokens" in " ".join(told.split())
    data = lines(tmp_path / "b.jsonl", [long], 20)
    said = refuse(1, *ask(data, "--set", "data.max_length=16"))
    said.names("are longer than 16 tokens")
    said.advises("data.max_length", "data.truncate")
    refuse(2, *ask(data, "--set", "data.max_length=999")).names("data.max_length is 999")
    assert not (tmp_path / "run").exists()


def test_a_label_that_the_model_was_not_trained_on(
    refuse: Refuse, ask: Any, tmp_path: Path, intact: Any
) -> None:
    bare = lines(tmp_path / "bare.jsonl", [{"text": "w1", "label": "odd"}, {"text": "w2"}])
    refuse(1, *ask(bare, model="bert")).names("bare.jsonl:2")
    run_command("gist", *ask(labelled(tmp_path / "parity.jsonl", 60), model="bert"))
    other = lines(tmp_path / "other.jsonl", [{"text": "w1", "label": "evn"}])
    with intact(tmp_path / "run"):
        said = refuse(1, "eval", tmp_path / "run", "--data", other)
    said.names("1 class (evn)", "not trained on")
    said.advises("'even'")


def test_chats_without_a_template_say_which_there_are(
    refuse: Refuse, ask: Any, tmp_path: Path
) -> None:
    data = lines(tmp_path / "chats.jsonl", [CHAT], 20)
    said = refuse(2, *ask(data))
    said.names("chat template")
    said.advises("data.chat_template", "chatml")
    said = refuse(2, *ask(data, "--set", "data.chat_template=./no.jinja"))
    said.names("no.jinja")
    assert not (tmp_path / "run").exists()


def test_rows_of_several_formats_in_a_file(refuse: Refuse, ask: Any, tmp_path: Path) -> None:
    said = refuse(1, *ask(lines(tmp_path / "a.jsonl", [GOOD, CHAT], 10)))
    said.names("rows of several formats", "prompt (10 of 20 rows)", "messages (10 of 20 rows)")
    said.advises("data.format")
    assert not (tmp_path / "run").exists()


def test_a_line_that_is_no_json_is_named_by_its_number(
    refuse: Refuse, ask: Any, tmp_path: Path, intact: Any
) -> None:
    data = lines(tmp_path / "a.jsonl", [GOOD], 3)
    data.write_text(data.read_text() + '{"prompt": "w1", "completion": }\n')
    with intact(data):
        refuse(1, *ask(data)).names(data, "line 4: Expecting value (column 32)")
    listed = tmp_path / "b.json"
    listed.write_text('[{"prompt": "w1"},\n {"prompt": }]')
    refuse(1, *ask(listed)).names(listed, "line 2, column 13")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_an_empty_file(refuse: Refuse, ask: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    refuse(1, *ask(tmp_path / name)).names(tmp_path / name)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_pickled_weights_is_refused_with_the_way_to_convert_them(
    refuse: Refuse, ask: Any, models: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(models / "llama", tmp_path / "pickled"))
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    said = refuse(2, *ask(completions(tmp_path / "a.jsonl"), model=folder))
    said.names(folder, "no model.safetensors", "only pytorch_model.bin")
    said.advises("safetensors", "save_pretrained")
    assert not (tmp_path / "run").exists()


def test_an_encoder_does_not_write(refuse: Refuse, ask: Any, tmp_path: Path) -> None:
    data = completions(tmp_path / "a.jsonl")
    for asked in ((), ("--set", "task.type=causal_lm")):
        said = refuse(2, *ask(data, *asked, model="bert"))
        said.names("bert")
        said.advises("decoder")
    assert not (tmp_path / "run").exists()


def test_a_model_folder_without_a_tokenizer(
    refuse: Refuse, ask: Any, models: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(models / "llama", tmp_path / "mute"))
    for path in folder.glob("token*"):
        path.unlink()
    said = refuse(2, *ask(completions(tmp_path / "a.jsonl"), model=folder))
    said.names(folder, "no tokenizer")
    said.advises("Copy the tokenizer's files")
    assert not (tmp_path / "run").exists()


def test_a_data_set_of_the_hub_while_offline(
    refuse: Refuse, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    command = ask(Path("x"))
    command[command.index("--data") + 1] = "glue/sst2"
    said = refuse(2, *command)
    said.names("'nyu-mll/glue/sst2'")
    said.advises("hf download nyu-mll/glue", "--data DIR/sst2")
    assert not (tmp_path / "run").exists()
