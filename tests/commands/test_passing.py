"""What each flag becomes: a key of the recipe, or an argument of a function of `run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gistcli import run
from gistcli.cli import invoke
from gistcli.recipe import Recipe

Captured = pytest.CaptureFixture[str]


class Recorder:
    """Stands in for one function of `run` and keeps what it was called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, value: Any = None) -> None:
        self.positional: tuple[Any, ...] = ()
        self.named: dict[str, Any] = {}
        self.value = value if value is not None else {"called": name}
        monkeypatch.setattr(run, name, self)

    def __call__(self, *positional: Any, **named: Any) -> Any:
        self.positional, self.named = positional, named
        self.named.pop("reporter", None)
        return self.value

    @property
    def recipe(self) -> Recipe:
        """The recipe of finetune."""
        assert isinstance(self.positional[0], Recipe)
        return self.positional[0]


def test_every_flag_of_finetune_writes_its_key(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, tmp_path: Path
) -> None:
    called = Recorder(monkeypatch, "finetune")
    monkeypatch.chdir(tmp_path)
    arguments = {
        "--method": ("gift", "method.name", "gift"),
        "--model": ("gist_vit_nano", "model.name", "gist_vit_nano"),
        "--data": ("digits", "data.path", "digits"),
        "--epochs": ("3", "train.epochs", 3),
        "--max-steps": ("7", "train.max_steps", 7),
        "--batch-size": ("5", "train.batch_size", 5),
        "--lr": ("1e-3", "optim.lr", 1e-3),
        "--rank": ("2", "method.rank", 2),
        "--img-size": ("64", "model.img_size", 64),
        "--seed": ("11", "seed", 11),
        "--device": ("cpu", "train.device", "cpu"),
        "--precision": ("fp32", "train.precision", "fp32"),
        "--report-to": ("tensorboard", "output.report_to", ["tensorboard"]),
        "--output-dir": ("out", "output.dir", str(tmp_path / "out")),
    }
    line = [part for flag, (text, *_) in arguments.items() for part in (flag, text)]
    assert invoke(["finetune", *line, "--set", "optim.head_lr=2e-3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"called": "finetune"}
    plain = called.recipe.as_dict()
    for flag, (_, key, value) in arguments.items():
        section, _, name = key.rpartition(".")
        assert (plain[section] if section else plain)[name] == value, flag
        assert called.recipe.origin(key) == flag
    assert called.recipe.optim.head_lr == 2e-3
    assert called.named == {"output": Path("out"), "resume": "auto", "overwrite": False}


def test_a_task_of_a_family_is_chosen_by_its_flag(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    called = Recorder(monkeypatch, "finetune")
    path = tmp_path / "family.yaml"
    path.write_text("model: {name: gist_vit_nano}\ntasks: {a: {data: {path: digits}}, b: {}}\n")
    assert invoke(["finetune", str(path), "--task", "a", "--json"]) == 0
    assert called.recipe.task.name == "a"


def test_resume_and_overwrite_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    called = Recorder(monkeypatch, "finetune")
    line = ["finetune", "--model", "gist_vit_nano", "--data", "digits", "--json"]
    assert invoke([*line, "--resume", "runs/x", "--overwrite"]) == 0
    assert called.named == {"output": None, "resume": "runs/x", "overwrite": True}


@pytest.mark.parametrize("flag", ["--dry-run", "--smoke"])
def test_dry_run_and_smoke_go_to_their_own_functions(
    flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = Recorder(monkeypatch, flag.strip("-").replace("-", "_"))
    line = ["finetune", "--model", "gist_vit_nano", "--data", "digits", "--json"]
    assert invoke([*line, flag]) == 0
    assert called.recipe.model.name == "gist_vit_nano"


CALLS: list[tuple[list[str], str, tuple[Any, ...], dict[str, Any]]] = [
    (
        ["eval", "r", "--data", "d", "--split", "val", "--model", "m", "--device", "cpu",
         "--batch-size", "4", "--protocol", "gsm8k", "--limit", "9", "--max-new-tokens", "8",
         "--baseline", "-o", "a.jsonl"],
        "evaluate",
        (Path("r"),),
        {"data": "d", "split": "val", "model": "m", "device": "cpu", "batch_size": 4,
         "protocol": "gsm8k", "limit": 9, "max_new_tokens": 8, "untuned": True,
         "output": Path("a.jsonl")},
    ),
    (
        ["eval", "r", "--lm-eval", "piqa, boolq", "--lm-eval-args", "num_fewshot=2"],
        "evaluate_by_harness",
        (Path("r"), run.Harness(["piqa", "boolq"], ["num_fewshot=2"])),
        {"untuned": False, "model": None, "device": "auto", "batch_size": None},
    ),
    (
        ["predict", "r", "a.png", "b", "-o", "o.csv", "--top-k", "2"],
        "predict",
        (Path("r"), [Path("a.png"), Path("b")]),
        {"output": Path("o.csv"), "top_k": 2, "prompts": (), "prefix": None,
         "max_new_tokens": None, "temperature": 0.0, "seed": 0, "alpaca_eval": False,
         "generator": None, "model": None, "device": "auto"},
    ),
    (
        ["merge", "r", "-o", "d", "--format", "peft", "--dtype", "bfloat16", "--scale", "0.5",
         "--max-drift", "0.1", "--no-verify", "--model", "m"],
        "merge",
        (Path("r"), Path("d")),
        {"format": "peft", "dtype": "bfloat16", "scale": 0.5, "max_drift": 0.1, "verify": False,
         "model": "m", "max_shard_size": None, "base_name": None},
    ),
    (
        ["visualize", "r", "a.png", "-o", "d", "--layers", "3,5-7", "--clusters", "0", "--all"],
        "visualize",
        (Path("r"), [Path("a.png")], Path("d")),
        {"layers": [3, 5, 6, 7], "clusters": [0], "show_all": True, "model": None,
         "device": "auto"},
    ),
    (
        ["visualize-clusters", "r", "a.png", "-o", "d"],
        "visualize",
        (Path("r"), [Path("a.png")], Path("d")),
        {"layers": None, "clusters": None, "show_all": False, "model": None, "device": "auto"},
    ),
    (
        ["visualize", "r", "a.png", "-o", "d", "--tokens", "--heads", "--layers", "0"],
        "visualize_tokens",
        (Path("r"), [Path("a.png")], Path("d")),
        {"layers": [0], "heads": True, "model": None, "device": "auto"},
    ),
    (["inspect", "gist_vit_nano"], "inspect", ("gist_vit_nano",), {}),
    (["list", "methods"], "listing", ("methods",), {}),
]  # fmt: skip


@pytest.mark.parametrize(("line", "name", "positional", "named"), CALLS)
def test_a_command_is_one_call_of_run_and_its_value_on_stdout(
    line: list[str],
    name: str,
    positional: tuple[Any, ...],
    named: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    called = Recorder(monkeypatch, name)
    assert invoke([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"called": name}
    assert called.positional == positional
    assert called.named == named
