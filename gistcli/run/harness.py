"""`gist eval --lm-eval`: EleutherAI's lm-evaluation-harness on a tuned or merged language model."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from gistcli.data.text import open_tokenizer
from gistcli.errors import FoundBad, NotSupported, Refused, UnknownName, did_you_mean
from gistcli.evaluate.language.generation import require_hooks_only
from gistcli.evaluate.language.models import language_model
from gistcli.recipe import yaml
from gistcli.reporting import Reporter
from gistcli.run.loading import Loaded
from gistcli.run.text_evaluation import require_untuned

OURS = frozenset(
    ("model", "model_args", "tasks", "device", "task_manager", "batch_size", "log_samples",
     "evaluation_tracker", "verbosity", "metadata")
)  # fmt: skip
"""Arguments of the harness that follow from the run and from our own options."""


@dataclass(frozen=True)
class Harness:
    """What the harness is asked for.

    Attributes:
        tasks: names of its tasks, groups or tags.
        arguments: `KEY=VALUE`, `KEY=VALUE,KEY=VALUE`, by the harness's own names.
    """

    tasks: Sequence[str]
    arguments: Sequence[str] = ()


def evaluate_harness(
    loaded: Loaded, asked: Harness, batch_size: int | None, untuned: bool, reporter: Reporter
) -> dict[str, Any]:
    """The figures of the harness's tasks.

    Args:
        loaded: a run or merged folder of a language model.
        asked: tasks and arguments.
        batch_size: texts at a time; None for that of the run.
        untuned: the pretrained network, without what was trained.
        reporter: gets all talk.

    Returns:
        `tasks`, `metrics` and `stderr` (`TASK/figure` -> value), `examples` (task -> how many).

    Raises:
        NotSupported: the harness is not installed, or the network is no language model.
        UnknownName: a task or an argument that the harness does not have.
        FoundBad: the harness could not do a task.
    """
    require_harness()
    if untuned:
        require_untuned(loaded)
    backbone = language_model(loaded.tuner)
    require_hooks_only(loaded.tuner)
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    arguments = parse_arguments(asked.arguments, _accepted(lm_eval.simple_evaluate))
    manager = TaskManager(include_path=arguments.pop("include_path", None))
    _require_tasks(asked.tasks, manager.all_tasks)
    tokenizer = open_tokenizer(loaded.backbone.origin.config["folder"])
    reporter.say(f"lm-evaluation-harness {lm_eval.__version__}: {', '.join(asked.tasks)}")
    with _told(), loaded.tuner.disabled() if untuned else nullcontext(), loaded.tuner.step():
        model = HFLM(
            pretrained=backbone.hf,
            tokenizer=tokenizer.base,
            batch_size=batch_size or loaded.batch_size,
            max_length=backbone.positions,
        )
        found = lm_eval.simple_evaluate(
            model=model, tasks=list(asked.tasks), task_manager=manager, log_samples=False,
            **arguments,
        )  # fmt: skip
    return _figures(found, list(asked.tasks), lm_eval.__version__)


def parse_arguments(given: Sequence[str], known: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` pairs with values as YAML has them; a comma in front of a known key divides.

    Raises:
        UnknownName: a key that is none of `known`.
        Refused: no pair.
    """
    names = "|".join(map(re.escape, known))
    pairs = [pair for text in given for pair in re.split(rf",(?=(?:{names})=)", text)]
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise Refused(f"--lm-eval-args: {pair!r} is no KEY=VALUE.", "As in num_fewshot=5.")
        if key not in known:
            raise UnknownName(
                f"--lm-eval-args: the harness has no argument {key!r} that could be given here.",
                did_you_mean(key, known),
            )
        found[key] = yaml.parse(value, "--lm-eval-args")[0]
    return found


def require_harness() -> None:
    """Whether the harness is installed.

    Raises:
        NotSupported: it is not.
    """
    if find_spec("lm_eval") is None:
        raise NotSupported(
            "--lm-eval needs the lm-evaluation-harness, which is not installed.",
            "pip install 'gistcli[lm-eval]'",
        )


def _accepted(function: Any) -> list[str]:
    return sorted({*inspect.signature(function).parameters, "include_path"} - OURS)


def _require_tasks(asked: Sequence[str], known: Sequence[str]) -> None:
    missing = [name for name in asked if name not in known]
    if missing:
        raise UnknownName(
            f"The harness has no task {', '.join(missing)}.", did_you_mean(missing[0], known)
        )


@contextmanager
def _told() -> Iterator[None]:
    """What the harness cannot do (no network, a data set that is gone) is one message."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise FoundBad(
            f"lm-evaluation-harness: {type(error).__name__}: {str(error).strip()}",
            "Most tasks load their data from the hub; local ones: --lm-eval-args include_path=DIR.",
        ) from error


def _figures(found: Mapping[str, Any], tasks: list[str], version: str) -> dict[str, Any]:
    """`acc,none` of a task as `TASK/acc`; other filters keep their name behind a comma."""
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    for task, figures in found["results"].items():
        for key, value in figures.items():
            name = key.removesuffix(",none")
            if not isinstance(value, int | float) or name in ("sample_len", "sample_count"):
                continue
            plain = name.replace("_stderr", "")
            (errors if "_stderr" in name else metrics)[f"{task}/{plain}"] = float(value)
    counts = {task: n["effective"] for task, n in found.get("n-samples", {}).items()}
    return {
        "tasks": tasks,
        "metrics": metrics,
        "stderr": errors,
        "examples": counts,
        "harness": version,
    }
