"""A run directory: all that the other commands need, besides the backbone that it names."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from torch import Tensor

from gistcli import atomic
from gistcli.artifacts import tuner_file
from gistcli.artifacts.environment import describe_environment
from gistcli.artifacts.metrics_log import MetricsLog
from gistcli.artifacts.tensors import RELOAD
from gistcli.artifacts.tuner_file import TunerInfo
from gistcli.errors import NotFound, RecipeError, Refused, WeightsError, did_you_mean
from gistcli.recipe import Recipe, yaml
from gistcli.recipe.problems import explain

State = Literal["absent", "foreign", "incomplete", "complete"]
OWN = (
    "recipe.yaml", "environment.json", "metrics.jsonl", "result.json", "tuner.safetensors",
    "tuner.json", "splits.csv", "predictions", "plots", "checkpoints", "trackers",
    "evaluations",
)  # fmt: skip
FIGURES = ("metrics", "intervals", "examples")
"""What every result.json holds."""
SECTIONS = ("model", "data", "method", "optim", "train", "eval", "output")
"""What every recipe.yaml of a run holds."""
AGAIN = "Copy the file again, or run that recipe again (`gist finetune ... --overwrite`)."


class RunDirectory:
    """Names, reads and writes the files of one run; every write is atomic.

    Attributes:
        path: of the directory, as the user gave it.
        log: metrics.jsonl.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.recipe_path = self.path / "recipe.yaml"
        self.environment_path = self.path / "environment.json"
        self.result_path = self.path / "result.json"
        self.splits_path = self.path / "splits.csv"
        self.plots = self.path / "plots"
        self.checkpoints = self.path / "checkpoints"
        self.log = MetricsLog(self.path / "metrics.jsonl")

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    @classmethod
    def create(cls, path: Path) -> RunDirectory:
        """A directory for a new or resumed run; made where it is absent.

        Raises:
            Refused: it holds something that is no run.
            StorageError: it cannot be made.
        """
        run = cls(path)
        if run.state == "foreign":
            found = "a file" if run.path.is_file() else f"no run: it holds {_listing(run.path)}"
            raise Refused(f"{path} is {found}.", "Choose another folder with -o.")
        with atomic.storage_errors(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """A run whose trained weights can be read.

        Raises:
            NotFound: no such folder, no run, or a run that was not finished; says what to do.
        """
        run = cls(path)
        if not run.path.is_dir():
            raise _missing(run.path)
        if not run.recipe_path.is_file():
            raise no_run(run.path)
        absent = [n for n in (tuner_file.INFO, tuner_file.WEIGHTS) if not (run.path / n).is_file()]
        if absent:
            step = run.last_step()
            saved = f"its last checkpoint is step {step}" if step else "it has no checkpoint yet"
            raise NotFound(
                f"The run {path} was not finished: {' and '.join(absent)} missing; {saved}.",
                f"Go on with `{run.resume_command()}`.",
            )
        return run

    @property
    def state(self) -> State:
        """absent (or empty), foreign (no run), incomplete, or complete (it has a result)."""
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return "absent"
        if not self.recipe_path.is_file():
            names = [p.name for p in self.path.iterdir()] if self.path.is_dir() else [""]
            ours = all(n in OWN or ".tmp-" in n for n in names)
            return "incomplete" if ours else "foreign"
        return "complete" if self.result_path.is_file() else "incomplete"

    def resume_command(self) -> str:
        """The command line that goes on with this run."""
        return shlex.join(["gist", "finetune", str(self.recipe_path), "-o", str(self.path)])

    def last_step(self) -> int | None:
        """The step of the newest checkpoint by name; None where there is none."""
        names = [p.name for p in self.checkpoints.glob("step-*")]
        steps = [int(m[1]) for n in names if (m := re.fullmatch(r"step-(\d+)", n))]
        return max(steps, default=None)

    def clear(self) -> None:
        """Remove what a run writes, and nothing else; for --overwrite.

        The result goes first: a kill in between leaves an incomplete run, never a wrong one.
        """
        for name in ("result.json", *OWN):
            atomic.discard(self.path / name)
        atomic.clear_leftovers(self.path)

    # --- recipe, environment, result ----------------------------------------------------------

    def write_recipe(self, recipe: Mapping[str, Any]) -> None:
        """The resolved recipe, in its own order."""
        atomic.write_text(self.recipe_path, yaml.dump(dict(recipe)))

    def read_recipe(self) -> dict[str, Any]:
        """The resolved recipe as plain data.

        Raises:
            WeightsError: not readable.
        """
        try:
            content, _ = yaml.parse_file(self.recipe_path, str(self.recipe_path))
        except OSError as error:
            raise WeightsError(f"{self.recipe_path} cannot be read: {error}", AGAIN) from error
        except RecipeError as error:
            raise WeightsError(error.message, AGAIN) from error
        if not isinstance(content, dict):
            raise WeightsError(f"{self.recipe_path} holds no recipe.", AGAIN)
        return content

    def load_recipe(self) -> Recipe:
        """The resolved recipe, validated.

        Raises:
            WeightsError: not readable, or not as it was written; all problems are named.
        """
        content = self.read_recipe()
        missing = [name for name in SECTIONS if name not in content]
        if missing:  # every section is written: a file that was cut must not get defaults instead
            raise WeightsError(
                f"{self.recipe_path} is not as it was written: it lacks {', '.join(missing)}.",
                AGAIN,
            )
        try:
            return Recipe.model_validate(content)
        except ValidationError as error:
            found = "; ".join(f"{p.key}: {p.text}" for p in explain(error, content))
            raise WeightsError(
                f"{self.recipe_path} is not as it was written: {found.rstrip('.')}.", AGAIN
            ) from error

    def write_environment(self, argv: Sequence[str], device: str) -> None:
        """Versions, command line, device, threads."""
        atomic.write_json(self.environment_path, describe_environment(argv, device))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """The final figures; from here on the run is complete."""
        atomic.write_json(self.result_path, dict(result))

    def read_result(self) -> dict[str, Any]:
        """The final figures.

        Raises:
            NotFound: the run was not finished.
            WeightsError: not readable, or not as it was written.
        """
        if not self.result_path.is_file():
            raise NotFound(
                f"The run {self.path} was not finished: it has no result.json.",
                f"Go on with `{self.resume_command()}`.",
            )
        result = read_json(self.result_path, AGAIN)
        missing = [key for key in FIGURES if not isinstance(result.get(key), dict)]
        if missing:
            raise WeightsError(
                f"{self.result_path} is not as it was written: it lacks {', '.join(missing)}.",
                AGAIN,
            )
        return result

    # --- weights and outputs -------------------------------------------------------------------

    def write_tuner(self, state: Mapping[str, Tensor], info: TunerInfo) -> TunerInfo:
        """tuner.safetensors and tuner.json."""
        return tuner_file.write_tuner(self.path, state, info)

    def read_tuner(self) -> tuple[dict[str, Tensor], TunerInfo]:
        """Everything trained, checked against its description.

        Raises:
            WeightsError: missing, truncated or changed.
        """
        return tuner_file.read_tuner(self.path)

    @property
    def info(self) -> TunerInfo:
        """tuner.json alone."""
        return tuner_file.read_info(self.path)

    def predictions_path(self, split: str) -> Path:
        """predictions/SPLIT.csv."""
        return self.path / "predictions" / f"{split}.csv"

    def answers_path(self, split: str) -> Path:
        """predictions/SPLIT.jsonl: what a language model answered."""
        return self.path / "predictions" / f"{split}.jsonl"

    def files(self) -> dict[str, str]:
        """What is there, by its name, for the closing summary."""
        return {name: str(self.path / name) for name in OWN if (self.path / name).exists()}


def read_json(path: Path, hint: str = RELOAD) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        WeightsError: unreadable, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}.", hint) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds no JSON object.", hint)
    return content


def _listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "nothing"


def _missing(path: Path) -> NotFound:
    if path.is_file():
        return NotFound(f"{path} is a file, not a run directory.", "Give the folder around it.")
    parent = path.parent
    names = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    names = [n for n in names if not n.startswith(".")]
    hint = did_you_mean(path.name, names[:20]) if names else "`gist finetune` makes one."
    return NotFound(f"The run {path} does not exist.", hint)


def no_run(path: Path) -> NotFound:
    """The error for a folder that is no run, with what it holds instead."""
    inside = sorted(p.parent.name for p in path.glob("*/recipe.yaml"))
    if inside:
        return NotFound(
            f"{path} is no run, but holds {len(inside)}: {', '.join(inside[:10])}.",
            f"Give one of them, as in {path / inside[0]}.",
        )
    return NotFound(
        f"{path} is no run directory: it has no recipe.yaml; it holds {_listing(path)}.",
        "Give a folder that `gist finetune` wrote.",
    )


def free_path(root: Path, stem: str) -> Path:
    """`root/stem-N` with the smallest N from 1 that nothing has taken yet."""
    number = 1
    while (root / f"{stem}-{number}").exists():
        number += 1
    return root / f"{stem}-{number}"
