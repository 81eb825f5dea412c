"""The method that CONTRIBUTING shows, as a stranger would use it: a file, then a package."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from gistcli import registry
from gistcli.cli import invoke
from gistcli.errors import NotFound, Refused

TEXT = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text()
TRY = ("--model", "gist_vit_nano", "--data", "digits", "--max-steps", "2")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


def block(language: str, word: str = "") -> str:
    (found,) = [b for b in blocks(language) if word in b]
    return found


def shell(script: str, place: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run in a shell that knows nothing of this repository but what is installed."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    environment = {
        **inherited,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(place / "cache"),
        "PYTEST_DEBUG_TEMPROOT": str(place),
        **more,
    }
    return subprocess.run(
        ["bash", "-ec", script],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def call(*arguments: str | Path, code: int = 0) -> Any:
    """The JSON value of a command that ends with `code`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        ended = invoke([*map(str, arguments), "--json"])
    assert ended == code, err.getvalue() + out.getvalue()
    assert "Traceback" not in err.getvalue()
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with example.py in it."""
    place = tmp_path_factory.mktemp("stranger")
    (place / "example.py").write_text(block("python"))
    return place


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """What the commands of the text leave: trained in a shell, then evaluated and merged."""
    first, *others = block("bash", "gist finetune").splitlines()
    done = shell(first, place)
    assert done.returncode == 0, done.stderr
    with contextlib.chdir(place):
        for line in others:
            program, *arguments = shlex.split(line)
            assert program == "gist"
            assert invoke(arguments) == 0
    return place / "runs" / "scale"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file as an installed distribution: what pip would unpack, without pip."""
    site = tmp_path_factory.mktemp("site")
    (site / "example.py").write_text(block("python"))
    folder = site / "example_methods-1.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: example-methods\nVersion: 1.2\n")
    groups = tomllib.loads(block("toml"))["project"]["entry-points"]
    lines = [
        line
        for group, entries in groups.items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in entries.items()))
    ]
    (folder / "entry_points.txt").write_text("\n".join(lines))
    return site


def test_the_example_is_short_and_no_method_of_ours() -> None:
    code = [line for line in block("python").splitlines() if line.strip()]
    assert len(code) <= 70
    assert max(map(len, code)) <= 100
    assert "scale" not in registry.TABLES["methods"]


@pytest.mark.slow
def test_the_commands_of_the_text_train_evaluate_and_merge_it(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert result["parameters"]["method"] == 4 * (64 + 256)
    receipt = json.loads((run.parents[1] / "scale-merged" / "merge.json").read_text())
    assert receipt["verified"] is True
    assert receipt["tensors_changed"] == 8 + 2  # the head


@pytest.mark.slow
def test_a_run_finds_its_file_from_another_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = run.parents[1] / "example.py"
    recorded = json.loads((run / "tuner.json").read_text())["method"]
    assert recorded["name"] == f"{file}:Scale"
    assert (recorded["distribution"], recorded["version"]) == ("", "")
    assert f"name: {file}:Scale" in (run / "recipe.yaml").read_text()
    result = json.loads((run / "result.json").read_text())["metrics"]
    assert call("eval", run)["metrics"]["test/accuracy"] == result["test/accuracy"]


@pytest.mark.slow
def test_a_run_whose_file_is_gone_says_which(run: Path) -> None:
    file = run.parents[1] / "example.py"
    moved = file.rename(file.with_name("moved.py"))
    try:
        for command in (("eval", run), ("merge", run, "-o", run.parent / "never")):
            error = call(*command, code=2)["error"]
            assert error["type"] == "NotFound"
            assert f"from a file: {file} does not exist" in error["message"]
            assert "tuner.json and recipe.yaml" in error["hint"]
    finally:
        moved.rename(file)
    assert call("eval", run)["metrics"]


@pytest.mark.slow
def test_the_example_passes_the_contract_from_any_folder(place: Path) -> None:
    command = block("bash", "gistcli.testing").strip()
    done = shell(f"{command} -q -n 1 -W error --strict-markers -p no:cacheprovider", place)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 300
    line = f"gist contract: {passed[1]} cases ran, 0 failed; 0 pairs are refused with their reason"
    assert line in done.stdout


CAPTURED = (
    "return lambda x: x * (1 + self.s[key]).to(x.dtype)",
    "s = self.s[key]\n        return lambda x: x * (1 + s).to(x.dtype)",
)
UNMERGED = ("w_OI * (1 + s_I).to(w_OI)", "w_OI.clone()")


@pytest.mark.slow
def test_the_contract_catches_a_captured_parameter_and_a_wrong_merge(tmp_path: Path) -> None:
    asked = ""
    for word, (right, wrong) in {"captured": CAPTURED, "unmerged": UNMERGED}.items():
        text = block("python")
        assert text.count(right) == 1
        (tmp_path / f"{word}.py").write_text(text.replace(right, wrong))
        asked += f" --gist-method {word}.py:Scale"
    chosen = "class and token and (test_hooks_read or test_the_streamed_merge or test_every_site)"
    done = shell(
        f"pytest --pyargs gistcli.testing {asked} -q -rf -p no:cacheprovider -k '{chosen}' || true",
        tmp_path,
    )
    failed = re.findall(r"^FAILED \S*::(test_\w+)\[(\w+)\.py", done.stdout, re.MULTILINE)
    expected = [
        ("test_hooks_read_the_parameters_that_stand_there_now", "captured"),
        ("test_the_streamed_merge_is_the_tuned_network", "unmerged"),
    ]
    # each alone, and with a gist token beside it
    assert sorted(failed) == sorted(2 * expected), done.stdout
    assert "gist contract: 12 cases ran, 4 failed;" in done.stdout


def test_the_contract_refuses_an_unknown_method_with_one_line(tmp_path: Path) -> None:
    done = shell("pytest --pyargs gistcli.testing --gist-method none.py:Scale", tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: --gist-method: {tmp_path / 'none.py'} does not exist." in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


LIST_AND_RUN = """
import contextlib, sys
from gistcli.cli import invoke
with open("list.json", "w") as file, contextlib.redirect_stdout(file):
    assert invoke(["list", "methods", "--json"]) == 0
sys.exit(invoke(sys.argv[1:]))
"""
"""Two commands, and the imports of one."""


@pytest.mark.slow
def test_an_installed_package_adds_its_method_and_is_recorded(
    package: Path, tmp_path: Path
) -> None:
    script = shlex.join(["python", "-c", LIST_AND_RUN, "finetune", "--method", "scale", *TRY])
    done = shell(f"{script} -o named", tmp_path, PYTHONPATH=str(package))
    assert done.returncode == 0, done.stderr
    listed = {m["name"]: m for m in json.loads((tmp_path / "list.json").read_text())}
    assert listed.keys() == {*registry.TABLES["methods"], "scale"}
    assert listed["scale"]["capabilities"]["merge"] is None
    assert set(listed["scale"]["options"]) == {"targets", "layers"}
    recorded = json.loads((tmp_path / "named" / "tuner.json").read_text())["method"]
    assert (recorded["name"], recorded["distribution"]) == ("scale", "example-methods")
    assert recorded["version"] == "1.2"
    # here, where the package is not installed
    error = call("eval", tmp_path / "named", code=2)["error"]
    assert error["type"] == "NotFound"
    assert "'scale' of example-methods 1.2, which is not here" in error["message"]
    assert error["hint"] == "Install it: pip install example-methods==1.2"


def test_a_package_that_cannot_be_imported_is_named(package: Path, tmp_path: Path) -> None:
    script = f"gist finetune --method scale {' '.join(TRY)} --dry-run || echo ended with $?"
    (tmp_path / "example.py").write_text("import no_such_module\n")
    paths = f"{tmp_path}:{package}"
    done = shell(script, tmp_path, PYTHONPATH=paths)
    assert "ended with 2" in done.stdout
    told = " ".join(done.stderr.split())
    assert "'scale' of example-methods 1.2 cannot be imported: ModuleNotFoundError" in told
    assert "Traceback" not in told


BAD = {
    "def broken(:": "cannot be imported: SyntaxError",
    "x = 1\nraise OSError('no disk')": "cannot be imported: line 2: OSError: no disk",
    "import no_such_module": "line 1: ModuleNotFoundError",
    "class Other: pass": "has no 'Own'",
    "class Own: pass": "does not derive from gistcli.methods.base.Method",
    "Own = 3": "does not derive from gistcli.methods.base.Method",
    "from gistcli.methods.base import Method\nclass Own(Method): pass": (
        "does not define name, summary, recommended, attach, capabilities"
    ),
}


@pytest.mark.parametrize("text", BAD)
def test_a_file_that_is_no_method_is_refused_with_one_message(text: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(text)
    error = call("finetune", "--method", f"{file}:Own", *TRY, "--dry-run", code=2)["error"]
    assert str(file) in error["message"]
    assert BAD[text] in error["message"]


def test_a_file_is_imported_once_until_it_changes(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    # annotations as text are looked up in the module, which has to be findable by its name
    file.write_text(f"from __future__ import annotations\n{block('python')}")
    first = registry.resolve("methods", f"{file}:Scale")
    assert first(layers=(0,)).layers == (0,)
    assert registry.resolve("methods", f"{file}:Scale") is first
    assert registry.resolve("methods", f"{place / 'example.py'}:Scale") is not first
    file.write_text(file.read_text().replace('"fc_out")\n', '"fc_in")\n'))
    os.utime(file, ns=(time.time_ns(), time.time_ns() + 1_000_000_000))
    assert registry.resolve("methods", f"{file}:Scale")().targets != first().targets


def test_a_missing_file_and_a_missing_class_are_not_found(place: Path) -> None:
    with pytest.raises(NotFound, match=r"nothing\.py does not exist"):
        registry.resolve("methods", f"{place / 'nothing.py'}:Scale")
    with pytest.raises(NotFound, match="has no 'Scala'") as caught:
        registry.resolve("methods", f"{place / 'example.py'}:Scala")
    assert caught.value.hint.startswith("Did you mean 'Scale'?")
    with pytest.raises(Refused, match="does not derive"):
        registry.resolve("methods", f"{place / 'example.py'}:ScaleTuner")
