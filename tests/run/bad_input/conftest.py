"""A few noise photos, one run on them, and how every refusal is looked at."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gistcli.cli import invoke

CLASSES = ("cat", "dog")
SHORT = ("--max-steps", "2", "--batch-size", "4")


@dataclass(frozen=True)
class Refusal:
    """What `--json` says about a failure."""

    type: str
    message: str
    hint: str

    def names(self, *culprits: str | Path) -> None:
        """The message holds every culprit."""
        missing = [str(c) for c in culprits if str(c) not in self.message]
        assert not missing, f"{missing} not in {self.message!r}"

    def advises(self, *words: str | Path) -> None:
        """The hint holds every word."""
        missing = [str(w) for w in words if str(w) not in self.hint]
        assert not missing, f"{missing} not in {self.hint!r}"


Refuse = Callable[..., Refusal]
Call = Callable[..., str]
Photo = Callable[..., Path]


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Calls a command that must fail with `code`; one JSON value on stdout, no traceback."""

    def run(code: int, *arguments: str | Path) -> Refusal:
        capsys.readouterr()
        ended = invoke([*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert ended == code, out + err
        value = json.loads(out)
        assert list(value) == ["error"]
        refusal = Refusal(**value["error"])
        assert "Traceback" not in out + err
        assert refusal.type != "InternalError", refusal.message
        assert refusal.message
        assert refusal.hint, refusal.message
        return refusal

    return run


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls a command that must succeed; what it said on stderr."""

    def run(*arguments: str | Path) -> str:
        capsys.readouterr()
        ended = invoke([*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert ended == 0, out + err
        json.loads(out)
        return err

    return run


@contextmanager
def untouched(*places: Path) -> Iterator[None]:
    """Files and folders that hold the same bytes afterwards, and nothing new beside them."""
    before = [_content(p) for p in places]
    yield
    assert [_content(p) for p in places] == before


def _content(place: Path) -> dict[str, str]:
    paths = [place] if place.is_file() else sorted(place.rglob("*"))
    return {
        str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in paths
    }


@pytest.fixture(scope="session")
def intact() -> Callable[..., object]:
    """`with intact(PLACE...)`: nothing there changes."""
    return untouched


def save_photo(path: Path, seed: int = 0) -> Path:
    """A picture of noise, 48 pixels square."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="session")
def photo() -> Photo:
    return save_photo


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train, val and test with two classes of four photos; not to be written to."""
    root = tmp_path_factory.mktemp("data") / "pets"
    for i, split in enumerate(("train", "val", "test")):
        for j, label in enumerate(CLASSES):
            for k in range(4):
                save_photo(root / split / label / f"{k}.jpg", 100 * i + 10 * j + k)
    return root


@pytest.fixture
def data(pictures: Path, tmp_path: Path) -> Path:
    """A copy of the pictures that a test may damage."""
    return Path(shutil.copytree(pictures, tmp_path / "pets"))


@pytest.fixture(scope="session")
def nano() -> Path:
    """The folder of the embedded backbone."""
    return Path(str(files("gistcli.assets") / "gist_vit_nano"))


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A finished run on the pictures; not to be written to."""
    path = tmp_path_factory.mktemp("runs") / "done"
    data, model = ("--data", str(pictures)), ("--model", "gist_vit_nano")
    assert invoke(["finetune", *model, *data, *SHORT, "-o", str(path), "--json"]) == 0
    return path


@pytest.fixture
def run(done: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage."""
    return Path(shutil.copytree(done, tmp_path / "run"))


@pytest.fixture(scope="session")
def train() -> Callable[..., list[str]]:
    """The command line of a short training."""

    def command(data: str | Path, output: Path, *more: str, model: str | Path = "") -> list[str]:
        name = str(model or "gist_vit_nano")
        where = ["--data", str(data), "-o", str(output)]
        return ["finetune", "--model", name, *where, *SHORT, *more]

    return command
