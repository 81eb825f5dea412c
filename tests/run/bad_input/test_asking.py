"""What a hasty user types: every mistake gets one message that names it, exit code 2."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gistcli.cli import invoke

Refuse = Callable[..., Any]
Train = Callable[..., list[str]]


def test_an_unknown_method_comes_with_the_nearest_name(
    refuse: Refuse, train: Train, pictures: Path, tmp_path: Path
) -> None:
    said = refuse(2, *train(pictures, tmp_path / "run", "--method", "gitf"))
    said.names("method.name (--method)", "'gitf'", "Did you mean 'gift'")
    assert not (tmp_path / "run").exists()


def test_a_misspelt_target_is_not_passed_over(
    refuse: Refuse, train: Train, pictures: Path, tmp_path: Path
) -> None:
    wish = ("--set", "method.targets=[fc_in, atn_out]")
    said = refuse(2, *train(pictures, tmp_path / "run", *wish))
    said.names("'atn_out'", "gist_vit_nano")
    said.advises("Did you mean 'attn_out'")
    assert "'fc_in'" not in said.message
    assert not (tmp_path / "run").exists()


def test_five_mistakes_in_a_recipe_are_named_at_once(refuse: Refuse, tmp_path: Path) -> None:
    recipe = tmp_path / "five.yaml"
    recipe.write_text(
        "seed: -1\n"
        "model: {name: gist_vit_nano, img_size: big}\n"
        "data: {path: digits, shotz: 3}\n"
        "method: {name: gift, rnk: 3}\n"
        "optim: {lr: fast}\n"
    )
    said = refuse(2, "finetune", recipe)
    said.names(
        recipe,
        "5 problems",
        "seed (line 1): found -1",
        "model.img_size (line 2): found 'big'",
        "data.shotz (line 3): unknown key. Did you mean 'shots'",
        "method.rnk (line 4): no option of gift. Did you mean 'rank'?",
        "optim.lr (line 5): found 'fast'",
    )
    said.advises("gist schema")


def test_people_see_the_message_and_the_hint_on_stderr(
    capsys: pytest.CaptureFixture[str], train: Train, pictures: Path, tmp_path: Path
) -> None:
    assert invoke(train(pictures, tmp_path / "run", "--device", "gpu")) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("error:") == 1
    assert "train.device (--device): found 'gpu', expected auto, cpu" in err
    assert err.rstrip().endswith("`gist schema` prints every key with its meaning and bounds.")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["finetune", "--nonsense"], "--nonsense"),
        (["predct", "RUN"], "predict"),
        (["merge", "RUN"], "--output-dir"),
        (["finetune", "--epochs", "many"], "--epochs"),
        (["finetune", "--dry-run", "--smoke"], "exclude each other"),
        (["finetune"], "model.name: missing"),
        (["visualize", "RUN", "x.png", "-o", "maps", "--layers", "3-b"], "3-b"),
        (["list", "pictures"], "methods"),
        (["merge", "RUN", "-o", "out", "--format", "gguf"], "peft"),
    ],
)
def test_usage_errors_are_one_json_value(
    refuse: Refuse, arguments: list[str], culprit: str
) -> None:
    refuse(2, *arguments).names(culprit)


@pytest.mark.parametrize("asked", ["pet", "pets/trian", "no/such/folder"])
def test_data_that_do_not_exist(
    refuse: Refuse, train: Train, data: Path, tmp_path: Path, asked: str
) -> None:
    said = refuse(2, *train(tmp_path / asked, tmp_path / "run"))
    said.names("data.path", tmp_path / asked, "does not exist")
    assert ("Did you mean" in said.hint) is not asked.startswith("no")
    assert not (tmp_path / "run").exists()


def test_an_unknown_split(refuse: Refuse, done: Path, pictures: Path) -> None:
    refuse(2, "eval", done, "--split", "tset").advises("Did you mean 'test'?")
    refuse(2, "eval", done, "--data", pictures, "--split", "dev").names("'dev'")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(
    refuse: Refuse, train: Train, done: Path, pictures: Path, tmp_path: Path
) -> None:
    for command in (train(pictures, tmp_path / "run", "--device", "cuda"),
                    ["eval", done, "--device", "cuda"]):  # fmt: skip
        said = refuse(2, *command)
        said.names("'cuda'")
        said.advises("cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["nobody/nothing", "vit_base_patch16_224.dino"])
def test_a_hub_name_while_offline_says_so_at_once(
    refuse: Refuse,
    train: Train,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    start = time.perf_counter()
    said = refuse(2, *train(pictures, tmp_path / "run", model=model))
    assert time.perf_counter() - start < 2
    said.names(model.rpartition("/")[2], "cannot be reached")
    said.advises("hf download", "--local-dir")
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_nowhere(
    refuse: Refuse, train: Train, pictures: Path, tmp_path: Path
) -> None:
    said = refuse(2, *train(pictures, tmp_path / "run", model="vit_base_patch16_225"))
    said.names("'vit_base_patch16_225'")
    said.advises("'vit_base_patch16_224'")
    refuse(2, *train(pictures, tmp_path / "run", model=tmp_path / "gone")).names(tmp_path / "gone")


def test_a_tracker_that_is_not_installed(
    refuse: Refuse, train: Train, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else find(name, *a)
    )
    said = refuse(2, *train(pictures, tmp_path / "run", "--report-to", "wandb"))
    said.names("output.report_to", "wandb")
    said.advises("pip install wandb")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("resume", ["nevr", "pets", "gone"])
def test_resume_of_what_is_no_run(
    refuse: Refuse, train: Train, data: Path, tmp_path: Path, intact: Any, resume: str
) -> None:
    place = resume if resume == "nevr" else str(tmp_path / resume)
    with intact(data):
        said = refuse(2, *train(data, tmp_path / "run", "--resume", place))
    said.names("--resume", place)
    said.advises("auto, never, or the folder of a run")


def test_a_merged_folder_is_no_run(
    refuse: Refuse, call: Callable[..., str], done: Path, pictures: Path, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    call("merge", done, "-o", merged)
    call("eval", merged, "--data", pictures)
    refuse(2, "eval", merged).advises("--data PATH")
    picture = pictures / "test" / "cat" / "0.jpg"
    for command in (["merge", merged, "-o", tmp_path / "twice"],
                    ["visualize", merged, picture, "-o", tmp_path / "maps"]):  # fmt: skip
        refuse(2, *command).advises("the run it was merged from")
    assert {p.name for p in tmp_path.iterdir()} == {"merged"}


def test_a_layer_or_cluster_that_does_not_exist(
    refuse: Refuse, done: Path, pictures: Path, tmp_path: Path
) -> None:
    picture = pictures / "test" / "cat" / "0.jpg"
    look = ["visualize", done, picture, "-o", tmp_path / "maps"]
    said = refuse(2, *look, "--layers", "1,99")
    said.names("99")
    said.advises("0 to 3")
    refuse(2, *look, "--clusters", "16").advises("0 to 15")
    assert not (tmp_path / "maps").exists()


def test_what_is_no_run_says_what_it_is(
    refuse: Refuse, done: Path, pictures: Path, tmp_path: Path
) -> None:
    refuse(2, "eval", done.with_name("don")).advises("'done'")
    refuse(2, "eval", pictures).names(pictures, "test, train, val")
    refuse(2, "merge", done.parent, "-o", tmp_path / "m").advises(done)
    refuse(2, "eval", done / "result.json").names("is a file")


def test_a_plain_failure_leaves_stdout_empty(
    capsys: pytest.CaptureFixture[str], done: Path, tmp_path: Path
) -> None:
    assert invoke(["predict", str(done), str(tmp_path / "gone.png")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "gone.png" in err
    assert invoke(["inspect", str(done), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "complete"
