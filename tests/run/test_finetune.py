"""From a recipe to a finished run, and what happens when it is asked for again."""

from __future__ import annotations

import csv
import json
import re
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gistcli import run
from gistcli.artifacts.rundir import RunDirectory
from gistcli.cli import invoke
from gistcli.errors import Diverged, Interrupted, NotSupported, Refused
from gistcli.recipe import Recipe
from gistcli.run.placing import settle
from tests.forked import Forked, gist
from tests.listening import Listener

Make = Callable[..., Recipe]


def test_a_run_holds_all_that_the_other_commands_need(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    assert names >= {
        "recipe.yaml", "environment.json", "metrics.jsonl", "result.json", "tuner.safetensors",
        "tuner.json", "splits.csv", "predictions", "plots", "checkpoints",
    }  # fmt: skip
    state = load_file(finished / "tuner.safetensors")
    assert set(state) == {"phi.attn_out", "psi.attn_out", "head.weight", "head.bias"}
    info = json.loads((finished / "tuner.json").read_text())
    assert info["classes"] == [str(d) for d in range(10)]
    assert info["method"]["distribution"] == "gistcli"
    assert len(info["backbone"]["fingerprint"]) == 64
    plots = {p.name for p in (finished / "plots").iterdir()}
    assert plots >= {"curves.png", "confusion-test.png", "classes-test.png"}


def test_the_result_agrees_with_the_predictions(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    with (finished / "predictions" / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result["examples"]["test"]
    right = sum(row["correct"] == "1" for row in rows) / len(rows)
    assert result["metrics"]["test/accuracy"] == pytest.approx(right)
    low, high = result["intervals"]["test/accuracy"]
    assert low < right < high
    counts = result["parameters"]
    assert counts["method"] == 2 * 4 * 64
    assert counts["trainable"] == counts["method"] + counts["head"]


def test_the_same_recipe_again_repeats_the_result(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    again = run.finetune(
        Recipe.model_validate(RunDirectory(finished).read_recipe()), output=finished
    )
    assert again["metrics"] == json.loads((finished / "result.json").read_text())["metrics"]
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


def test_another_recipe_in_the_same_folder_is_refused_with_the_differences(
    finished: Path, recipe: Make
) -> None:
    before = (finished / "tuner.safetensors").read_bytes()
    with pytest.raises(Refused, match=r"method\.rank: 4 there, 2 here"):
        run.finetune(recipe(train__max_steps=30, method__rank=2), output=finished)
    assert (finished / "tuner.safetensors").read_bytes() == before


def test_overwrite_replaces_only_when_the_new_run_can_start(tmp_path: Path, recipe: Make) -> None:
    out = tmp_path / "run"
    run.finetune(recipe(), output=out)
    before = (out / "tuner.safetensors").read_bytes()
    with pytest.raises(Refused, match="reads only 64 features"):
        run.finetune(recipe(method__rank=65), output=out, overwrite=True)
    assert (out / "tuner.safetensors").read_bytes() == before
    run.finetune(recipe(method__rank=2), output=out, overwrite=True)
    assert load_file(out / "tuner.safetensors")["psi.attn_out"].shape == (2, 64)


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, recipe: Make) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(Refused, match="no run"):
            run.finetune(recipe(), output=tmp_path, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("method", ["gift", "linear", "full"])
def test_an_interrupted_run_ends_like_one_without_interruption(
    tmp_path: Path, recipe: Make, method: str
) -> None:
    options = {"method": {"name": method}, "train__max_steps": 6, "data__augment": "flip-crop",
               "model__drop_path": 0.2, "train__save_steps": 2}  # fmt: skip
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run.finetune(recipe(**options), output=straight)
    with pytest.raises(Interrupted, match="max_time"):
        run.finetune(recipe(**options, train__max_time=1e-6), output=broken)
    assert not (broken / "result.json").exists()
    run.finetune(recipe(**options), output=broken)
    assert (broken / "tuner.safetensors").read_bytes() == (
        straight / "tuner.safetensors"
    ).read_bytes()
    lines = (broken / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(steps)


@pytest.mark.slow
def test_kill_minus_nine_and_the_same_command_again_is_bit_identical(
    tmp_path: Path, recipe: Make
) -> None:
    command = ["finetune", "--model", "gist_vit_nano", "--data", "digits", "--epochs", "6",
               "--set", "data.shots=8", "--set", "model.drop_path=0.1",
               "--set", "data.augment=flip-crop", "--set", "train.save_steps=2"]  # fmt: skip

    def end(process: Forked, code: int) -> None:
        _, talk = process.communicate()
        assert process.returncode == code, talk

    straight, killed = tmp_path / "straight", tmp_path / "killed"
    end(gist(*command, "-o", straight), 0)
    process = gist(*command, "-o", killed)
    deadline = time.monotonic() + 120
    while not list(killed.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        assert process.returncode is None, "finished before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    end(process, -signal.SIGKILL)
    assert not (killed / "result.json").exists()
    end(gist(*command, "-o", killed), 0)
    assert (killed / "tuner.safetensors").read_bytes() == (
        straight / "tuner.safetensors"
    ).read_bytes()


def test_micro_batches_do_not_change_the_result(tmp_path: Path, recipe: Make) -> None:
    run.finetune(recipe(), output=tmp_path / "whole")
    run.finetune(recipe(train__micro_batch_size=5), output=tmp_path / "parts")
    whole = load_file(tmp_path / "whole" / "tuner.safetensors")
    parts = load_file(tmp_path / "parts" / "tuner.safetensors")
    assert all(torch.allclose(whole[n], parts[n], atol=2e-4) for n in whole)


def test_compiled_training_gives_the_same_weights(tmp_path: Path, recipe: Make) -> None:
    run.finetune(recipe(train__max_steps=2), output=tmp_path / "eager")
    monkey = torch.nn.Module.compile
    try:
        # the code path, without the minutes that a C++ compiler takes
        torch.nn.Module.compile = lambda self: monkey(self, backend="eager")
        run.finetune(recipe(train__max_steps=2, train__compile=True), output=tmp_path / "compiled")
    finally:
        torch.nn.Module.compile = monkey
    eager = load_file(tmp_path / "eager" / "tuner.safetensors")
    compiled = load_file(tmp_path / "compiled" / "tuner.safetensors")
    assert all(torch.allclose(eager[n], compiled[n], atol=1e-6) for n in eager)


def test_a_diverging_run_stops_and_keeps_the_last_good_state(tmp_path: Path, recipe: Make) -> None:
    wild = recipe(
        optim={"name": "sgd", "lr": 1e30, "head_lr": 1e30, "clip_norm": 0}, train__max_steps=20
    )
    with pytest.raises(Diverged, match="no update was made on it"):
        run.finetune(wild, output=tmp_path / "run")
    saved = list((tmp_path / "run").glob("checkpoints/*/tuner.safetensors"))
    assert all(torch.isfinite(t).all() for p in saved for t in load_file(p).values())
    assert not (tmp_path / "run" / "result.json").exists()


def test_what_is_said_at_the_start(tmp_path: Path, recipe: Make) -> None:
    listener = Listener()
    run.finetune(recipe(), output=tmp_path / "run", reporter=listener)
    text = "\n".join(listener.lines)
    for words in (
        "trainable params: 1,162 ||",
        "merge: exact",
        "lr 0.003 (gift default)",
        "4 steps",
        "resident on cpu",
    ):
        assert words in text


def test_automatic_folders_are_numbered(
    tmp_path: Path, recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run.finetune(recipe(train__max_steps=1))["run"] == "runs/gift-gist_vit_nano-digits-1"
    assert run.finetune(recipe(train__max_steps=1))["run"] == "runs/gift-gist_vit_nano-digits-2"
    with_gist = run.finetune(recipe(train__max_steps=1, gist={}))
    assert with_gist["run"] == "runs/gift-gist-gist_vit_nano-digits-1"
    assert with_gist["next"][-1].endswith(
        "PHOTO -o runs/gift-gist-gist_vit_nano-digits-1-maps --tokens"
    )


def test_without_validation_data_there_is_no_best(tmp_path: Path, recipe: Make) -> None:
    with pytest.raises(Refused, match="eval"):
        run.finetune(recipe(eval={"select": "best", "every": "none"}), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_counts_without_weights_and_writes_nothing(
    tmp_path: Path, recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = run.dry_run(recipe(model__name="vit_base_patch16_224", method={"name": "gift"}))
    assert found["parameters"]["method"] == 24_576
    assert found["parameters"]["head"] == 7_690
    assert len(found["sites"]) == 12
    assert found["sites"][0] == {
        "name": "blocks.0.attn.proj", "role": "attn_out", "layer": 0, "d_in": 768, "d_out": 768,
        "rows": None,
    }  # fmt: skip
    assert found["steps"] == 4
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_it_could_not_look_at(recipe: Make) -> None:
    listener = Listener()
    found = run.dry_run(recipe(data={"path": "/no/such/folder"}), reporter=listener)
    assert found["parameters"]["head"] is None
    assert found["parameters"]["trainable"] == found["parameters"]["method"] == 512
    assert any("not looked at: data" in line for line in listener.lines)
    (counted,) = [line for line in listener.lines if line.startswith("trainable params")]
    assert counted.startswith("trainable params: 512 ")
    assert counted.endswith("(gift 512, head unknown)")


def test_an_automatic_folder_is_called_by_the_set_of_a_benchmark(recipe: Make) -> None:
    place = settle(recipe(data={"path": "vtab-1k", "subset": "cifar"}), None, "auto", False)
    assert place.run.path.name == "gift-gist_vit_nano-cifar-1"


def test_smoke_goes_through_everything_and_leaves_nothing(
    tmp_path: Path, recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = run.smoke(recipe())
    assert found["smoke"] == "passed"
    assert found["merged"] is True
    assert list(tmp_path.iterdir()) == []


def test_a_method_without_clusters_is_not_pictured(tmp_path: Path, recipe: Make) -> None:
    run.finetune(recipe(method={"name": "linear"}), output=tmp_path / "run")
    picture = tmp_path / "digit.png"
    Image.new("RGB", (32, 32)).save(picture)
    with pytest.raises(NotSupported, match="no clusters"):
        run.visualize(tmp_path / "run", [picture], tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


def test_the_kept_recipe_holds_the_rates_that_the_method_brought(finished: Path) -> None:
    optim = RunDirectory(finished).read_recipe()["optim"]
    assert (optim["lr"], optim["head_lr"], optim["weight_decay"], optim["clip_norm"]) == (
        0.003, 0.003, 0.0001, 1.0,
    )  # fmt: skip


def test_the_hint_of_an_interruption_is_the_command_that_goes_on(
    tmp_path: Path, recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interrupted) as caught:
        run.finetune(recipe(train__max_time=1e-6, train__max_steps=2))
    command = re.search("`(.+)`", caught.value.hint)
    assert command is not None
    assert invoke(shlex.split(command[1])[1:]) == 0
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["gift-gist_vit_nano-digits-1"]
    assert (tmp_path / "runs" / "gift-gist_vit_nano-digits-1" / "result.json").is_file()
