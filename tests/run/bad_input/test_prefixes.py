"""Examples, prefixes and hypernetworks that do not fit: one line each, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from gistcli import run
from gistcli.assets import LLAMA, nano_folder
from gistcli.backbones.prefix_file import FILE
from gistcli.data.episodes import Task, class_to_label
from gistcli.recipe import yaml
from tests.hyper.nano import CHECKPOINTS
from tests.run.task_files import task_recipe
from tests.run.text_models import write_rows

Refuse = Callable[..., Any]
Call = Callable[..., str]
FROZEN, ADAPTED = CHECKPOINTS / "frozen", CHECKPOINTS / "adapted"
LONG = {"prompt": " ".join("a" * 80), "completion": "A"}
HYPER = {"gists": 8, "example_tokens": 64, "query_tokens": 8, "max_examples": 10}
LORA = yaml.parse((FROZEN / "recipe.yaml").read_text(), "recipe.yaml")[0]["method"]


def pairs(task: Task, count: int = 8) -> list[dict[str, str]]:
    return [{"prompt": i.prompt, "completion": i.completion} for i in task.items[:count]]


GOOD = pairs(class_to_label()["test"][0])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that are not the embedded one, runs that are damaged, data; not to be written to."""
    root = tmp_path_factory.mktemp("prefixes")
    names = ("weights", "words", "dynamic")
    weights, words, dynamic = (shutil.copytree(nano_folder(LLAMA), root / n) for n in names)
    tensors = load_file(weights / "model.safetensors")
    tensors["lm_head.weight" if "lm_head.weight" in tensors else next(iter(tensors))] += 1
    save_file(tensors, weights / "model.safetensors", {"format": "pt"})
    tokenizer = json.loads((words / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (words / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((dynamic / "config.json").read_text())
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    (dynamic / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    for name in ("unfinished", "truncated", "flipped"):
        weights = shutil.copytree(FROZEN, root / name) / "tuner.safetensors"
        content = bytearray(weights.read_bytes())
        content[-5] ^= 255
        weights.write_bytes(content if name == "flipped" else content[:1000])
    (root / "unfinished" / "tuner.safetensors").unlink()
    train = [t for t in class_to_label()["train"] if len({i.completion for i in t.items}) > 1]
    tasks = [{"task": f"t{i}", **pair} for i in range(5) for pair in pairs(train[50 * i])]
    write_rows(root / "good.jsonl", GOOD)
    write_rows(root / "tasks.jsonl", tasks)
    write_rows(root / "asked.jsonl", GOOD * 5)
    write_rows(root / "classes.jsonl", [{"text": r["prompt"], "label": r["completion"]}
                                        for r in GOOD * 5])  # fmt: skip
    for kind, source in (("frozen", FROZEN), ("adapted", ADAPTED)):
        run.compress(source, root / "good.jsonl", root / f"{kind}-prefix", device="cpu")
    return root


@pytest.fixture
def compress(tmp_path: Path) -> Callable[..., list[str | Path]]:
    """The command line."""

    def command(examples: Path, *more: str | Path, target: Path = FROZEN) -> list[str | Path]:
        return ["compress", target, examples, "-o", tmp_path / "out", "--device", "cpu", *more]

    return command


# --- examples ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (GOOD * 3, "10 of 24 examples are read"),
        ([LONG, *GOOD[:3]], "3 of 4 examples are read"),
        ([{**GOOD[0], "prompt": " ".join("a" * 20)}] * 4, "2 of 4 examples are read"),
        ([{**pair, "completion": "A"} for pair in GOOD], "all 8 examples have the answer 'A'"),
    ],
)
def test_what_does_not_fit_or_teaches_nothing_is_warned_of(
    call: Call, compress: Any, tmp_path: Path, rows: list[Any], said: str
) -> None:
    told = call(*compress(write_rows(tmp_path / "examples.jsonl", rows)))
    assert said in " ".join(told.split())


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        ([LONG] * 2, 1, "none of 2 examples fits in 64 tokens, 8 gists included"),
        ([], 1, "examples.jsonl is empty"),
        ([{"text": "a b c"}] * 2, 1, "2 rows (examples.jsonl:1: plain"),
        ([{"question": "a", "reply": "A"}], 1, "It has the columns question, reply"),
        ([{**GOOD[0], "completion": " "}], 1, "examples.jsonl:1: the completion is empty"),
        ([{"task": "x", **GOOD[0]}, {"task": "y", **GOOD[1]}], 1, "holds 2 tasks (x, y)"),
        ([{"task": "x", **GOOD[0]}, GOOD[1]], 1, "1 row (examples.jsonl:2) without a task"),
        ("{no json\n", 1, "1 line (line 1: "),
        (None, 2, "examples.jsonl does not exist"),
        ("folder", 2, "examples.jsonl is a folder"),
    ],
)
def test_examples_that_cannot_be_used(
    refuse: Refuse, compress: Any, tmp_path: Path, content: Any, code: int, words: str
) -> None:
    path = tmp_path / "examples.jsonl"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        write_rows(path, content)
    said = refuse(code, *compress(path))
    said.names(words)
    assert "data." not in said.hint  # no recipe is at hand, whose keys these would be
    assert not (tmp_path / "out").exists()


def test_pairs_to_measure_by_are_looked_at_before_anything_is_written(
    refuse: Refuse, compress: Any, place: Path, tmp_path: Path
) -> None:
    two = write_rows(tmp_path / "two.jsonl", [{"task": t, **GOOD[0]} for t in "xy"])
    for path, code, words in (
        (place / "good.jsonl", 1, "all 8 pairs are among the examples"),
        (two, 1, "holds 2 tasks"),
        (tmp_path / "nowhere.jsonl", 2, "nowhere.jsonl does not exist"),
    ):
        refuse(code, *compress(place / "good.jsonl", "--eval", path)).names(words)
    assert not (tmp_path / "out").exists()


# --- runs, networks, outputs ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        (nano_folder(LLAMA), 2, "is a merged folder"),
        ("nowhere", 2, "nowhere does not exist"),
        ("unfinished", 2, "unfinished was not finished: tuner.safetensors missing"),
        ("truncated", 1, "tuner.safetensors (1,000 bytes) is no intact safetensors file"),
        ("flipped", 1, "is not the file that tuner.json beside it describes"),
    ],
)
def test_runs_that_make_no_prefix(
    refuse: Refuse, compress: Any, place: Path, target: Any, code: int, words: str
) -> None:
    refuse(code, *compress(place / "good.jsonl", target=place / target)).names(words)


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("weights", 1, "is not the backbone that the run was trained on"),
        ("words", 1, "the tokenizer beside the model is not the one"),
        ("dynamic", 2, "whose angles depend on the length of the text (dynamic)"),
        ("nowhere", 2, "nowhere does not exist"),
    ],
)
def test_networks_that_a_hypernetwork_was_not_trained_on(
    refuse: Refuse, compress: Any, place: Path, model: str, code: int, words: str
) -> None:
    refuse(code, *compress(place / "good.jsonl", "--model", place / model)).names(words)


def test_only_an_earlier_prefix_gives_way(
    refuse: Refuse, call: Call, compress: Any, place: Path, tmp_path: Path, intact: Any
) -> None:
    out, long = tmp_path / "out", write_rows(tmp_path / "long.jsonl", [LONG])
    call(*compress(place / "good.jsonl"))
    with intact(out):
        refuse(1, *compress(long))
    assert "holds an earlier prefix, which is replaced" in call(*compress(place / "good.jsonl"))
    merged = Path(shutil.copytree(nano_folder(LLAMA), tmp_path / "merged"))
    receipt = {"format": "transformers", "files": [file.name for file in merged.iterdir()]}
    (merged / "merge.json").write_text(json.dumps(receipt))
    with intact(merged):
        said = refuse(2, *compress(place / "good.jsonl", "-o", merged))
    said.names("merged holds what `gist merge` wrote")
    shutil.rmtree(out)
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with intact(out):
        refuse(2, *compress(place / "good.jsonl")).names("it holds notes.txt")
    refuse(2, *compress(place / "good.jsonl", "-o", out / "notes.txt")).names("is a file")
    refuse(2, *compress(place / "good.jsonl", "-o", "a.safetensors")).names("-o is a folder")


# --- prefix tuning, and going on --------------------------------------------------------------


@pytest.fixture
def tune(place: Path, tmp_path: Path) -> Callable[..., list[str | Path]]:
    """The command line of a recipe."""

    def command(model: str | Path, data: str, **sections: Any) -> list[str | Path]:
        tree = task_recipe(place / model, place / data, **sections).as_dict()
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.dump(tree))
        return ["finetune", path, "-o", tmp_path / "run", "--device", "cpu"]

    return command


@pytest.mark.parametrize(
    ("init", "model", "data", "code", "words"),
    [
        ("frozen-prefix", "", "asked", 2, "holds a prefix of 8 positions, and method.length is 5"),
        (f"run:{FROZEN}", "", "asked", 2, "makes prefixes of 8 positions, and method.length is 5"),
        ("frozen-prefix", "weights", "asked", 1, "was made for another network (gist_llama_nano"),
        (f"run:{FROZEN}", "weights", "asked", 1, "was trained on another network"),
        (f"run:{FROZEN}", "words", "asked", 1, "the tokenizer beside the model is not the one"),
        (f"run:{FROZEN}", "dynamic", "asked", 2, "depend on the length of the text"),
        (f"run:{FROZEN}", "", "classes", 2, "has no prompts with answers"),
        ("adapted-prefix", "", "asked", 1, "as it was adapted to prefixes"),
        (f"run:{ADAPTED}", "", "asked", 2, "makes prefixes for a network that it adapted"),
        ("nowhere", "", "asked", 2, "nowhere/prefix.safetensors does not exist"),
        ("run:nowhere", "", "asked", 2, "nowhere does not exist"),
        ("run:unfinished", "", "asked", 2, "unfinished was not finished"),
        (str(FROZEN / "tuner.safetensors"), "", "asked", 1, "holds no prefix"),
    ],
)
def test_prefixes_that_tuning_cannot_start_from(
    refuse: Refuse, tune: Any, place: Path, tmp_path: Path,
    init: str, model: str, data: str, code: int, words: str,
) -> None:  # fmt: skip
    _, run_, path = init.rpartition("run:")
    whole = place / path if run_ or path.endswith(".safetensors") else place / path / FILE
    start = f"{run_}{whole}"
    length = 5 if "length is 5" in words else 8
    method = {"name": "prefix", "length": length, "init": start}
    task = "classification" if data == "classes" else "causal_lm"
    asked = tune(model or nano_folder(LLAMA), f"{data}.jsonl", task={"type": task},
                 method=method, hyper=None, eval={"max_new_tokens": None})  # fmt: skip
    refuse(code, *asked).names(words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("hyper", "method", "code", "words"),
    [
        ({"init": "nowhere"}, LORA, 2, "nowhere does not exist"),
        ({"init": "unfinished"}, LORA, 2, "tuner.safetensors does not exist"),
        ({"init": "truncated"}, LORA, 1, "is not the file that tuner.json beside it describes"),
        ({"init": "flipped"}, LORA, 1, "is not the file that tuner.json beside it describes"),
        ({"init": "weights/model.safetensors"}, LORA, 1, "holds no hypernetwork"),
        ({"init": "frozen", "gists": 4}, LORA, 2, "hyper.gists: [8, 64] there, [4, 64] here"),
        ({"init": "frozen"}, {**LORA, "rank": 2}, 2, "[32, 128] there, [2, 128] here"),
        ({"init": "frozen"}, {"name": "adapter"}, 2, "is another hypernetwork than the recipe's"),
        ({"init": "adapted"}, LORA, 2, "for a network that was adapted"),
        ({"init": "run:frozen"}, LORA, 2, "without `run:`"),
    ],
)
def test_hypernetworks_that_training_cannot_go_on_from(
    refuse: Refuse, tune: Any, place: Path, tmp_path: Path,
    hyper: dict[str, Any], method: dict[str, Any], code: int, words: str,
) -> None:  # fmt: skip
    known = {"frozen": FROZEN, "adapted": ADAPTED, "run:frozen": f"run:{FROZEN}"}
    hyper = {**HYPER, **hyper, "init": str(known.get(hyper["init"], place / hyper["init"]))}
    asked = tune(nano_folder(LLAMA), "tasks.jsonl", method=method)
    tree = yaml.parse(asked[1].read_text(), "")[0]
    asked[1].write_text(yaml.dump({**tree, "hyper": hyper}))
    refuse(code, *asked).names(words)
    assert not (tmp_path / "run").exists()


def test_a_hypernetwork_is_gone_on_from_and_so_is_one_without_the_second_copy(
    call: Call, tune: Any
) -> None:
    for changes in ({}, {"adapt_downstream": True}):
        asked = tune(nano_folder(LLAMA), "tasks.jsonl", method=LORA, train={"max_steps": 1},
                     hyper={**HYPER, **changes, "init": str(FROZEN)})  # fmt: skip
        call(*asked, "--overwrite")


def test_a_task_with_one_label_is_warned_of_by_its_name(
    call: Call, tune: Any, place: Path, tmp_path: Path
) -> None:
    same = [{"task": "same", **pair, "completion": "A"} for pair in GOOD]
    lines = (place / "tasks.jsonl").read_text()
    write_rows(tmp_path / "tasks.jsonl", same)
    with (tmp_path / "tasks.jsonl").open("a") as file:
        file.write(lines)
    asked = tune(nano_folder(LLAMA), tmp_path / "tasks.jsonl", hyper=HYPER)
    told = " ".join(call(*asked, "--dry-run").split())
    assert "1 task (same (tasks.jsonl)) with one answer only" in told


def test_a_network_whose_keys_cannot_be_moved_trains_no_hypernetwork(
    refuse: Refuse, tune: Any, tmp_path: Path
) -> None:
    refuse(2, *tune("dynamic", "tasks.jsonl", hyper=HYPER)).names("(dynamic)")
    assert not (tmp_path / "run").exists()
