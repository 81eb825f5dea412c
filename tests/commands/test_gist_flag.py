"""--gist, --no-gist and --set gist.KEY: what they write, what they count, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gistcli import run
from gistcli.cli import invoke
from gistcli.recipe import Recipe

Captured = pytest.CaptureFixture[str]
LINE = ["finetune", "--model", "vit_base_patch16_224", "--data", "digits"]
PUBLISHED = ["--method", "adapter", "--set", "method.variant=parallel", "--set", "method.dim=4"]


def dry_run(capsys: Captured, *more: str, code: int = 0) -> tuple[dict[str, Any], str]:
    assert invoke([*LINE, "--dry-run", "--json", *more]) == code
    captured = capsys.readouterr()
    found: dict[str, Any] = json.loads(captured.out)
    return found, captured.err


@pytest.mark.parametrize(("flags", "gist"), [((), 0), (("--gist",), 768), (("--no-gist",), 0)])
def test_the_published_adapter_has_82_992_parameters_and_768_more_with_the_token(
    flags: tuple[str, ...], gist: int, capsys: Captured
) -> None:
    found, said = dry_run(capsys, *PUBLISHED, *flags)
    counts = found["parameters"]
    assert (counts["method"], counts["gist"]) == (82_992, gist)
    assert counts["trainable"] - counts["head"] == (83_760 if gist else 82_992)
    assert counts["total"] == 85_798_656 + counts["head"] + 82_992 + gist
    assert f"{82_992 + gist:,}, head 7,690" in said


def given(monkeypatch: pytest.MonkeyPatch, *line: str) -> Recipe:
    """The recipe that `run.finetune` is called with."""
    called: list[Recipe] = []

    def finetune(recipe: Recipe, **more: object) -> dict[str, Any]:
        called.append(recipe)
        return {}

    monkeypatch.setattr(run, "finetune", finetune)
    assert invoke(["finetune", *line, "--json"]) == 0
    return called[0]


def test_the_flag_writes_the_section_and_keeps_what_a_file_says_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "r.yaml"
    text = "model: {name: gist_vit_nano}\ndata: {path: digits}\npublished: {value: 1, metric: m}\n"
    file.write_text(text + "gist: {alpha: 0.2}\n")
    assert given(monkeypatch, str(file), "--gist").gist == given(monkeypatch, str(file)).gist
    assert given(monkeypatch, str(file), "--gist").published is not None
    without = given(monkeypatch, str(file), "--no-gist")
    assert without.gist is None
    assert without.published is None  # a figure of another method
    file.write_text(text)
    plain = given(monkeypatch, str(file), "--gist")
    assert plain.gist is not None
    assert (plain.gist["alpha"], plain.gist["lambda"], plain.gist["length"]) == (0.5, 0.75, 1)
    assert plain.origin("gist") == "--gist"
    assert plain.origin("gist.alpha") == "default"
    assert plain.published is None
    assert given(monkeypatch, str(file)).published is not None


def test_a_key_of_the_section_switches_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["--model", "gist_vit_nano", "--data", "digits"]
    sets = ["--set", "gist.alpha=0.3", "--set", "gist.lambda=1", "--set", "gist.length=2"]
    recipe = given(monkeypatch, *line, *sets)
    assert recipe.gist is not None
    assert (recipe.gist["alpha"], recipe.gist["lambda"], recipe.gist["length"]) == (0.3, 1.0, 2)
    assert recipe.origin("gist.alpha") == "--set gist.alpha"
    several = given(monkeypatch, *line, "--set", "gist.interaction={bkld: 0.5, mse: 1}")
    assert several.gist is not None
    assert several.gist["interaction"] == {"bkld": 0.5, "mse": 1.0}
    assert several.origin("gist.interaction.bkld") == "--set gist.interaction"
    assert given(monkeypatch, *line, "--gist", "--set", "gist=null").gist is None
    assert given(monkeypatch, *line).gist is None


@pytest.mark.parametrize(
    ("sets", "text"),
    [
        (["gist.length=0"], "gist.length (--set gist.length): found 0, expected at least 1"),
        (["gist.temperature=0"], "gist.temperature (--set gist.temperature): found 0, expected mo"),
        (["gist.interaction=kl"], "found 'kl', expected auto, none, bkld, fkld"),
        (["gist.interaction={kl: 1}"], "expected auto, none, bkld, fkld"),
        (["gist.lamda=1"], "gist.lamda (--set gist.lamda): unknown key. Did you mean 'lambda'?"),
        (["gist=on"], "gist (--set gist): found 'on', expected a mapping of keys"),
        (["gist.source=prompts"], "gift has no prompts that gist.source: prompts could read"),
        (["gist.alpha=-1"], "gist.alpha (--set gist.alpha): found -1, expected at least 0"),
    ],
)  # fmt: skip
def test_wrong_values_are_one_line_and_exit_2(sets: list[str], text: str, capsys: Captured) -> None:
    flags = [part for each in sets for part in ("--set", each)]
    error = dry_run(capsys, *flags, code=2)[0]["error"]
    assert error["type"] == "RecipeError"
    _, line = error["message"].splitlines()
    assert text in line


@pytest.mark.parametrize(
    ("model", "reason"),
    [("swin_tiny_patch4_window7_224", "attends within"), ("hiera_tiny_224", "attends within")],
)
def test_windowed_networks_are_refused_before_training_with_the_reason(
    model: str, reason: str, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = dry_run(capsys, "--model", model, "--gist", code=2)[0]["error"]
    assert error["type"] == "NotSupported"
    assert f"{model} takes no gist token: " in error["message"]
    assert reason in error["message"]
    assert "--no-gist" in error["hint"]
    dry_run(capsys, "--model", model)
    assert not list(tmp_path.iterdir())
