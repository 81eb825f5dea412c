"""Every command and every snippet of the README is run as it is written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import get_pretrained_cfg

from tests.run.task_files import labelled_rows, write_tasks
from tests.run.text_models import completions, save_model, write_rows

ROOT = Path(__file__).resolve().parents[1]
MODEL = "vit_tiny_patch16_224"


IN_ONE_PROCESS = """
import shlex, sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from gistcli.cli import invoke
for number, line in enumerate(sys.argv[1:], start=1):
    out, err = Path(f"{number}.out"), Path(f"{number}.err")
    with out.open("w") as o, err.open("w") as e, redirect_stdout(o), redirect_stderr(e):
        program, *arguments = shlex.split(line)
        code = invoke(arguments)
    if code or program != "gist":
        sys.exit(f"{line}: {code}: {err.read_text()}")
"""


def blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def draw(folder: Path, colour: tuple[int, int, int], count: int, seed: int) -> None:
    """Noisy pictures of one colour: a class that a network can tell from another."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for i in range(count):
        noise = generator.normal(colour, 40, size=(48, 64, 3)).clip(0, 255)
        Image.fromarray(noise.astype("uint8")).save(folder / f"{i}.jpg")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README assumes it: photos, recipes, and a hub cache that holds the model."""
    place = tmp_path_factory.mktemp("readme")
    for number, (split, count) in enumerate([("train", 4), ("val", 2), ("test", 2)]):
        draw(place / "photos" / split / "red", (200, 40, 40), count, number)
        draw(place / "photos" / split / "blue", (40, 40, 200), count, number + 10)
    Image.open(place / "photos" / "test" / "red" / "0.jpg").save(place / "photo.jpg")
    save_model(place / "SmolLM2-135M", "Llama", "causal_lm")
    config = json.loads((place / "SmolLM2-135M" / "config.json").read_text())
    longer = {**config, "max_position_embeddings": 2048}  # RoPE has no weights for them
    (place / "SmolLM2-135M" / "config.json").write_text(json.dumps(longer))
    completions(place / "questions.jsonl")
    write_tasks(place / "tasks", free=False)
    write_rows(place / "examples.jsonl", labelled_rows("examples"))
    write_rows(place / "more.jsonl", labelled_rows("more"))
    (place / "recipes").symlink_to(ROOT / "recipes")
    repository = get_pretrained_cfg(MODEL).hf_hub_id.replace("/", "--")
    cached = place / "hub" / f"models--{repository}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    torch.manual_seed(0)
    model = timm.create_model(MODEL)
    timm.models.save_for_hf(model, str(cached / "snapshots" / "abc"), safe_serialization=True)
    return place


def environment(workplace: Path) -> dict[str, str]:
    import os

    bin_folder = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "HF_HUB_CACHE": str(workplace / "hub"),
    }


@pytest.fixture(scope="module")
def after_commands(workplace: Path) -> dict[str, str]:
    """All shell blocks, one after the other; what each command printed.

    The first in a shell, as a reader would type it; the others in one process, since twenty times
    the imports of torch and timm would take two minutes.
    """
    first, *others = commands()
    shown = f"{first} > 0.out 2> 0.err || (cat 0.err; exit 1)"
    for start in (["bash", "-c", shown], [sys.executable, "-c", IN_ONE_PROCESS, *others]):
        done = subprocess.run(
            start,
            cwd=workplace,
            env=environment(workplace),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return {c: (workplace / f"{n}.out").read_text() for n, c in enumerate(commands())}


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line.strip()]


@pytest.mark.slow
def test_every_command_of_the_readme_runs(after_commands: dict[str, str], workplace: Path) -> None:
    assert len(after_commands) >= 12
    assert all(c.startswith("gist ") for c in after_commands)
    for path in ("first-merged/model.safetensors", "first-lora/adapter_model.safetensors",
                 "text-merged/model.safetensors", "text-lora/adapter_model.safetensors",
                 "task-prefix/prefix.safetensors",
                 "task-peft/adapter_model.safetensors", "maps/photo.png",
                 "predictions.csv", "runs/quick/result.json",
                 "comparison/table.md", "comparison/table.tex"):  # fmt: skip
        assert (workplace / path).is_file(), path
    assert "complete" in (workplace / f"{_again()}.err").read_text()


def _again() -> int:
    """The second time that the README gives the first command."""
    first = commands()[0]
    return len(commands()) - 1 - commands()[::-1].index(first)


@pytest.mark.slow
def test_every_snippet_of_the_readme_runs(after_commands: dict[str, str], workplace: Path) -> None:
    snippets = blocks("python")
    assert len(snippets) == 4
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(snippets)],
        cwd=workplace,
        env=environment(workplace),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "['blue', 'red']" in done.stdout


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    text = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", text, re.MULTILINE), target


def test_files_that_the_readme_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / path).is_file(), path
