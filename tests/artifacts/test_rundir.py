"""Run directories: what opens, what is refused, and what is said about it."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
import torch

from gistcli.artifacts.rundir import RunDirectory, free_path
from gistcli.artifacts.targets import kind_of
from gistcli.artifacts.tuner_file import BackboneInfo, MethodInfo, TunerInfo
from gistcli.errors import NotFound, NotSupported, Refused, WeightsError

INFO = TunerInfo(
    method=MethodInfo(name="gift", options={"rank": 4}, version="0.1"),
    backbone=BackboneInfo(
        name="nano", architecture="vit", fingerprint="ab" * 32, img_size=(32, 48)
    ),
    classes=["ant", "bee"],
    preprocessing={"input_size": [3, 32, 48], "mean": [0.5, 0.5, 0.5]},
    parameters={"method": 8, "head": 6, "trainable": 14, "total": 100},
)
STATE = {"phi.attn_out": torch.arange(8.0).reshape(4, 2), "head.bias": torch.ones(2)}

RESULT = {
    "metrics": {"test/accuracy": 0.5},
    "intervals": {"test/accuracy": [0.4, 0.6]},
    "examples": {"test": 96},
}


def finished(path: Path) -> RunDirectory:
    run = RunDirectory.create(path)
    run.write_recipe({"seed": 0, "optim": {"lr": 1e-5}, "data": {"path": "çe"}})
    run.write_environment(["gist", "finetune"], "cpu")
    run.write_tuner(STATE, INFO)
    run.write_result(RESULT)
    return run


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    finished(tmp_path / "run")
    run = RunDirectory.open(tmp_path / "run")
    state, info = run.read_tuner()
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[k], STATE[k]) for k in STATE)
    assert info == INFO.model_copy(update={"sha256": info.sha256})
    assert len(info.sha256) == 64
    assert run.read_recipe() == {"seed": 0, "optim": {"lr": 1e-5}, "data": {"path": "çe"}}
    assert run.read_result() == RESULT
    assert run.info.backbone.img_size == (32, 48)
    environment = json.loads(run.environment_path.read_text())
    assert environment["versions"]["torch"] == importlib.metadata.version("torch")
    assert environment["argv"] == ["gist", "finetune"]
    assert environment["threads"] == torch.get_num_threads()
    assert kind_of(tmp_path / "run") == "run"


def test_the_same_state_gives_the_same_file(tmp_path: Path) -> None:
    one, two = finished(tmp_path / "a"), finished(tmp_path / "b")
    first = (one.path / "tuner.safetensors").read_bytes()
    assert first == (two.path / "tuner.safetensors").read_bytes()


def test_the_state_follows_the_files(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    assert run.state == "absent"
    run = RunDirectory.create(tmp_path / "run")
    assert run.state == "absent"
    run.write_recipe({})
    assert run.state == "incomplete"
    run.write_result({})
    assert run.state == "complete"
    run.clear()
    assert run.state == "absent"
    (run.path / "mine.txt").write_text("")
    assert run.state == "foreign"


def test_a_kill_before_the_recipe_was_written_leaves_no_foreign_folder(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    (run.path / ".recipe.yaml.tmp-1-ab").write_text("half")
    assert run.state == "incomplete"
    RunDirectory.create(tmp_path / "run")


def test_clearing_removes_what_a_run_writes_and_nothing_else(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    run.log.append({"step": 1})
    run.plots.mkdir()
    (run.plots / "curve.png").write_bytes(b"")
    (run.path / "notes.md").write_text("mine")
    run.clear()
    assert [p.name for p in run.path.iterdir()] == ["notes.md"]


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_text("")
    with pytest.raises(Refused, match=r"holds thesis\.tex"):
        RunDirectory.create(tmp_path / "d")
    with pytest.raises(Refused, match="is a file"):
        RunDirectory.create(tmp_path / "d" / "thesis.tex")


def test_a_misspelt_run_gets_the_closest_names(tmp_path: Path) -> None:
    finished(tmp_path / "gift-nano-digits-1")
    with pytest.raises(NotFound, match="does not exist") as caught:
        RunDirectory.open(tmp_path / "gift-nano-digit-1")
    assert "'gift-nano-digits-1'" in caught.value.hint
    assert caught.value.exit_code == 2


def test_a_folder_of_runs_names_them(tmp_path: Path) -> None:
    finished(tmp_path / "runs" / "a-1")
    finished(tmp_path / "runs" / "b-1")
    with pytest.raises(NotFound, match=r"holds 2: a-1, b-1"):
        RunDirectory.open(tmp_path / "runs")


def test_a_folder_that_is_no_run_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(NotFound, match=r"no recipe\.yaml; it holds x"):
        kind_of(tmp_path)
    with pytest.raises(NotFound, match="is a file"):
        kind_of(tmp_path / "x")


def test_an_unfinished_run_says_how_to_go_on(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "my run")
    run.write_recipe({})
    (run.checkpoints / "step-20").mkdir(parents=True)
    (run.checkpoints / "step-100").mkdir()
    (run.checkpoints / "step-120.tmp").mkdir()
    with pytest.raises(NotFound, match=r"was not finished.*step 100") as caught:
        RunDirectory.open(tmp_path / "my run")
    assert f"gist finetune '{tmp_path}/my run/recipe.yaml' -o '{tmp_path}/my run'" in (
        caught.value.hint
    )
    with pytest.raises(NotFound, match=r"no result\.json"):
        run.read_result()


def test_a_truncated_tuner_is_named(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    path = run.path / "tuner.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(WeightsError, match=r"tuner\.safetensors"):
        RunDirectory.open(run.path).read_tuner()


def test_a_tuner_with_one_flipped_bit_is_found(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    path = run.path / "tuner.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"is not the file that tuner\.json"):
        run.read_tuner()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", WeightsError, "cannot be read"),
        ('{"format_version": 1, "classes": 3}', WeightsError, "method: Field required"),
        ('{"format_version": 2}', NotSupported, "has format 2"),
        ("[]", WeightsError, "not as it was written"),
    ],
)
def test_a_damaged_or_newer_description_is_named(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    run = finished(tmp_path / "run")
    (run.path / "tuner.json").write_text(text)
    with pytest.raises(error, match=message):
        run.read_tuner()


@pytest.mark.parametrize("text", ["a: [1", "- 1"])
def test_a_damaged_recipe_is_named(tmp_path: Path, text: str) -> None:
    run = finished(tmp_path / "run")
    run.recipe_path.write_text(text)
    with pytest.raises(WeightsError, match=r"recipe\.yaml"):
        run.read_recipe()


def test_the_next_free_name_has_the_smallest_number(tmp_path: Path) -> None:
    assert free_path(tmp_path, "gift") == tmp_path / "gift-1"
    (tmp_path / "gift-1").mkdir()
    (tmp_path / "gift-3").mkdir()
    assert free_path(tmp_path, "gift") == tmp_path / "gift-2"
