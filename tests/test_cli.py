"""The program as its users meet it: help, exit codes, JSON, tracebacks only on request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gistcli import __version__
from gistcli.cli import invoke

COMMANDS = (
    "finetune",
    "hyperpretrain",
    "sweep",
    "compare",
    "eval",
    "predict",
    "compress",
    "merge",
    "visualize",
    "list",
    "inspect",
    "schema",
)
GOOD = "model: {name: gist_vit_nano}\ndata: {path: digits}\n"
Captured = pytest.CaptureFixture[str]


def gist(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "gistcli", *arguments],
        capture_output=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_help_version_completion_and_guesses_load_nothing_heavy() -> None:
    script = """
import contextlib, io, os, sys
from gistcli.cli import invoke
with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
    codes = [invoke(["--help"])]
    assert "pydantic" not in sys.modules
    codes += [invoke(a) for a in (["finetune", "-h"], ["--version"], ["finetun"],
                                  ["finetune", "--rnk", "3"], ["list", "method"])]
    os.environ.update(_GIST_COMPLETE="complete_bash", COMP_WORDS="gist finetune --method g",
                      COMP_CWORD="3")
    try:
        invoke([])
    except SystemExit:
        pass
assert "gift" in out.getvalue().splitlines()[-1], out.getvalue()[-200:]
assert codes == [0, 0, 0, 2, 2, 2], codes
heavy = {"torch", "timm", "transformers", "yaml", "numpy", "gistcli.run"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_the_version_is_that_of_the_package(capsys: Captured) -> None:
    assert invoke(["--version"]) == 0
    assert capsys.readouterr().out == f"gist {__version__}\n"


def test_without_a_command_the_help_is_shown_and_the_exit_code_is_2(capsys: Captured) -> None:
    assert invoke([]) == 2
    out, err = capsys.readouterr()
    assert "finetune" in out
    assert err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_three_examples_in_its_help(command: str, capsys: Captured) -> None:
    assert invoke([command, "-h"]) == 0
    text = capsys.readouterr().out.partition("Examples")[2]
    assert text.count("gist ") >= 3


def test_the_alias_of_visualize_is_the_same_command(capsys: Captured) -> None:
    invoke(["visualize", "-h"])
    first = capsys.readouterr().out.split()
    invoke(["visualize-clusters", "-h"])
    alias = capsys.readouterr().out.split()
    assert [w.replace("visualize-clusters", "visualize") for w in alias] == first


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["finetun"], "Did you mean 'finetune'?"),
        (["finetune", "--rnk", "3"], "--rank"),
        (["finetune", "--lr", "fast"], "--lr"),
        (["finetune", "--dry-run", "--smoke"], "exclude each other"),
        (["merge", "runs/x"], "--output-dir"),
        (["visualize", "r", "i.png", "-o", "m", "--layers", "a-b"], "numbers such as 3,5-8"),
        (["list", "things"], "things"),
    ],
)
def test_a_wrong_command_line_is_exit_2_for_people_and_scripts(
    arguments: list[str], part: str, capsys: Captured
) -> None:
    assert invoke(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert part in err
    assert err.startswith("error: ")
    assert "--help` shows" in err
    assert invoke([*arguments, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "UsageError"
    assert part in error["message"]


def test_underscores_in_flags_are_accepted(tmp_path: Path, capsys: Captured) -> None:
    assert invoke(["finetune", "--batch_size", "0", "--json"]) == 2
    assert "train.batch_size (--batch-size)" in capsys.readouterr().out


def test_a_bad_recipe_is_one_message_and_exit_2(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD + "method: {rnk: 3}\noptim: {lr: fast}\n")
    assert invoke(["finetune", str(path), "--epochs", "0", "--json"]) == 2
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert error["type"] == "RecipeError"
    assert "3 problems" in error["message"]
    assert "train.epochs (--epochs)" in error["message"]
    assert err.splitlines()[0] == f"gist {__version__} finetune"
    assert "Traceback" not in err


@pytest.mark.parametrize("debug", [["--debug", "finetune"], ["finetune", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(debug: list[str], capsys: Captured) -> None:
    assert invoke([*debug, "no/such.yaml"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert "error: The recipe no/such.yaml does not exist" in err


def test_debug_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    assert invoke(["finetune", "no/such.yaml"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("GIST_DEBUG", "1")
    assert invoke(["finetune", "no/such.yaml"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(KeyError("x"), 1), (KeyboardInterrupt(), 130), (MemoryError(), 1)]
)
def test_any_exception_of_a_command_ends_with_its_code_and_one_json_value(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    from gistcli import run

    def fail(*_: Any, **__: Any) -> None:
        sys.stdout.write("a library talks\n")
        raise error

    monkeypatch.setattr(run, "inspect", fail)
    assert invoke(["inspect", "x", "--json"]) == code
    out, err = capsys.readouterr()
    assert set(json.loads(out)["error"]) == {"type", "message", "hint"}
    assert "a library talks" in err
    assert "Traceback" not in err


def test_a_recipe_schema_is_json_on_stdout(capsys: Captured) -> None:
    assert invoke(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "gist recipe"


def test_the_same_program_starts_as_a_module() -> None:
    done = gist("--version")
    assert (done.returncode, done.stdout) == (0, f"gist {__version__}\n".encode())


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_an_odd_encoding_of_the_pipe_ends_nothing(encoding: str, tmp_path: Path) -> None:
    done = gist("finetune", "no/sucé→.yaml", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 2
    assert b"does not exist" in done.stderr
    assert gist("--help", PYTHONIOENCODING=encoding).returncode == 0


def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m gistcli schema 2>err.txt | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, cwd=tmp_path, check=False)
    assert done.stdout == b"{"
    talk = (tmp_path / "err.txt").read_text()
    assert talk.startswith(f"gist {__version__} schema")
    assert "Traceback" not in talk
    assert "Exception ignored" not in talk
