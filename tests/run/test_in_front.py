"""`gist predict --prefix`, on the shipped hypernetworks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from gistcli import run
from gistcli.assets import LLAMA, nano_folder
from gistcli.atomic import sha256
from gistcli.backbones.prefix import cache_name
from gistcli.backbones.prefix_file import FILE
from gistcli.data.episodes import class_to_label
from tests.hyper.nano import CHECKPOINTS
from tests.run.calling import call
from tests.run.text_models import write_rows

FROZEN, ADAPTED = CHECKPOINTS / "frozen", CHECKPOINTS / "adapted"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefixes of a held-out task, and what is asked of it."""
    root = tmp_path_factory.mktemp("in-front")
    items = next(t for t in class_to_label()["test"] if len({i.completion for i in t.items}) > 3)
    rows = [{"prompt": i.prompt, "completion": i.completion} for i in items.items]
    write_rows(root / "examples.jsonl", rows)
    write_rows(root / "asked.jsonl", [{"prompt": row["prompt"]} for row in rows])
    (root / "right.json").write_text(json.dumps([row["completion"] for row in rows]))
    for target in (FROZEN, ADAPTED):
        run.compress(target, root / "examples.jsonl", root / target.name, device="cpu")
    return root


def ask(target: Path, place: Path, *more: str | Path, code: int = 0) -> Any:
    given = (place / "asked.jsonl", "--device", "cpu", "--max-new-tokens", "2")
    return call("gist predict", target, *given, *more, code=code)


def test_answers_are_those_of_plain_transformers_and_mostly_right(place: Path) -> None:
    texts = {}
    for path in (place / "frozen", place / "frozen" / FILE):
        texts[path] = [row["text"] for row in ask(FROZEN, place, "--prefix", path)["predictions"]]
    (ours,) = {tuple(found) for found in texts.values()}
    base = AutoModelForCausalLM.from_pretrained(nano_folder(LLAMA), dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(nano_folder(LLAMA))
    stored = load_file(place / "frozen" / FILE)
    theirs = []
    for row in (place / "asked.jsonl").read_text().splitlines():
        ids = tokenizer(json.loads(row)["prompt"], return_tensors="pt")["input_ids"]
        cache = DynamicCache(config=base.config)
        for layer, both in enumerate(zip(stored["keys"], stored["values"], strict=True)):
            cache.update(*both, layer)
        out = base.generate(
            input_ids=ids, attention_mask=ids.new_ones(1, 8 + ids.shape[1]), max_new_tokens=2,
            do_sample=False, **{cache_name(base): cache},
        )  # fmt: skip
        theirs.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    assert list(ours) == theirs
    right = json.loads((place / "right.json").read_text())
    bare = [row["text"] for row in ask(FROZEN, place)["predictions"]]
    hits = [sum(a.strip() == b for a, b in zip(t, right, strict=True)) for t in (ours, bare)]
    assert hits[0] >= 5 > 3 >= hits[1]


def test_an_adapted_network_reads_its_own_prefix_and_no_other(place: Path) -> None:
    assert ask(ADAPTED, place, "--prefix", place / "adapted")["examples"] == 8
    for target, prefix, words in (
        (ADAPTED, "frozen", "is for the network itself"),
        (FROZEN, "adapted", "as it was adapted to prefixes"),
        (nano_folder(LLAMA), "adapted", "as it was adapted to prefixes"),
    ):
        error = ask(target, place, "--prefix", place / prefix, code=1)["error"]
        assert error["type"] == "BaseMismatch"
        assert words in error["message"]


def test_merged_networks_know_which_run_adapted_them(place: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(ADAPTED, tmp_path / "other"))
    tensors = load_file(other / "tuner.safetensors")
    tensors["hyper.gists"] += 0.1
    save_file(tensors, other / "tuner.safetensors")
    info = json.loads((other / "tuner.json").read_text())
    info["sha256"] = sha256(other / "tuner.safetensors")
    (other / "tuner.json").write_text(json.dumps(info))
    own = Path(shutil.copytree(ADAPTED, tmp_path / "own"))
    for target in (own, other):
        figures = {"examples": {}, "metrics": {}, "intervals": {}}
        (target / "result.json").write_text(json.dumps(figures))
        run.merge(target, tmp_path / f"{target.name}-merged", verify=False)
    front = ("--prefix", place / "adapted")
    found = [ask(target, place, *front)["predictions"]
             for target in (ADAPTED, tmp_path / "own-merged")]  # fmt: skip
    assert found[0] == found[1]
    for target in (other, tmp_path / "other-merged"):
        error = ask(target, place, *front, code=1)["error"]
        assert error["type"] == "BaseMismatch"
        assert "another run adapted" in error["message"]
    file = place / "adapted" / FILE
    start = ("--set", "method.length=8", "--set", f"method.init={file}", "-o", tmp_path / "run")
    error = call("gist finetune --method prefix --model", tmp_path / "other-merged", "--data",
                 place / "examples.jsonl", *start, code=1)["error"]  # fmt: skip
    assert "another run adapted" in error["message"]


def test_prefixes_that_a_target_cannot_read_are_refused_in_a_line(
    place: Path, tmp_path: Path
) -> None:
    def refused(target: Path, prefix: Path, code: int) -> str:
        error = ask(target, place, "--prefix", prefix, code=code)["error"]
        return str(error["message"])

    weights, words = (
        Path(shutil.copytree(nano_folder(LLAMA), tmp_path / n)) for n in ("weights", "words")
    )
    tensors = load_file(weights / "model.safetensors")
    next(iter(tensors.values())).add_(1)
    save_file(tensors, weights / "model.safetensors", {"format": "pt"})
    tokenizer = json.loads((words / "tokenizer.json").read_text())
    known = tokenizer["model"]["vocab"]
    known["a"], known["b"] = known["b"], known["a"]
    (words / "tokenizer.json").write_text(json.dumps(tokenizer))
    stored = load_file(place / "frozen" / FILE)
    save_file({n: t[:, :, :, :3].contiguous() for n, t in stored.items()},
              tmp_path / "short.safetensors")  # fmt: skip
    save_file({n: t[:2].contiguous() for n, t in stored.items()}, tmp_path / "flat.safetensors")
    good = place / "frozen"
    assert "made for another network" in refused(weights, good, 1)
    assert "made with another tokenizer" in refused(words, good, 1)
    assert "nowhere does not exist" in refused(FROZEN, tmp_path / "nowhere", 2)
    assert "holds no prefix" in refused(FROZEN, FROZEN / "tuner.safetensors", 1)
    assert "2 layers of 4 heads" in refused(FROZEN, tmp_path / "flat.safetensors", 1)
    assert "[3, 4, 3, 16]" in refused(FROZEN, tmp_path / "short.safetensors", 2)
    assert "reads pictures, and answers no --prefix" in refused(
        nano_folder(LLAMA).with_name("gist_vit_nano"), good, 2
    )
