"""What people and scripts see of a result, and of a failure."""

from __future__ import annotations

import errno
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from gistcli.console import Result, describe, emit_json, show_failure, show_result
from gistcli.errors import RecipeError, VerificationFailed


def shown(kind: str, value: Any, title: str = "") -> str:
    stream = io.StringIO()
    show_result(Result(kind, value, title), stream)
    return stream.getvalue()


FINETUNED = {
    "run": "runs/x-1",
    "metrics": {"val/accuracy": 0.97, "test/accuracy": 0.9625, "test/loss": 0.125},
    "intervals": {"test/accuracy": [0.9425, 0.976]},
    "examples": {"val": 200, "test": 500},
    "parameters": {"method": 1024, "gist": 0, "head": 650, "trainable": 1674, "total": 217000},
    "seconds": 75.0,
    "samples_per_second": 1234.5,
    "peak_memory_bytes": 2**30,
    "files": {"tuner": "runs/x-1/tuner.safetensors", "plots": ["a.png", "b.png"]},
    "next": ["gist eval runs/x-1", "gist merge runs/x-1 -o 'a [b]'"],
}


def test_a_finished_run_shows_figures_interval_counts_files_and_the_next_commands() -> None:
    text = shown("finetune", FINETUNED)
    row = next(line for line in text.splitlines() if "test/accuracy" in line)
    assert row.split() == ["test/accuracy", "0.9625", "0.9425", "to", "0.9760", "500"]
    assert "1,674 of 217,000 (0.7714%): method 1,024, head 650" in text
    assert "1:15 min, 1,234 samples/s, peak memory 1.00 GiB" in text
    for verbatim in ("gist merge runs/x-1 -o 'a [b]'", "runs/x-1/tuner.safetensors", "b.png"):
        assert verbatim in text


def test_the_speed_of_a_slow_run_is_not_rounded_away() -> None:
    assert "0.116 samples/s" in shown("finetune", {**FINETUNED, "samples_per_second": 0.1162})


def test_a_split_that_also_selected_is_called_so() -> None:
    metrics = {"val/pearson": 0.9, "test/pearson": 0.8}
    more = {"metrics": metrics, "selected_on": "val", "counts": {"test/pearson": 41}}
    text = shown("finetune", {**FINETUNED, **more})
    row = next(line for line in text.splitlines() if "test/pearson" in line)
    assert row.split()[-1] == "41"
    assert "val/pearson (selected on)" in text
    assert "test/pearson (selected" not in text


def test_predictions_say_how_many_there_are_and_where_they_went() -> None:
    rows = [{"file": f"{i}.png", "class": "cat", "probability": 0.5} for i in range(30)]
    text = shown("predict", {"output": "out [1].csv", "examples": 30, "predictions": rows})
    assert "30 images (20 shown), written to out [1].csv" in text
    assert "19.png" in text
    assert "20.png" not in text


def test_a_list_of_methods_shows_what_they_can() -> None:
    entry = {
        "name": "gift",
        "summary": "W (I + phi psi)",
        "capabilities": {"merge": None, "clusters": True, "tokens": False},
        "options": {
            "rank": {"default": 16, "choices": None},
            "targets": {"default": ["query", "value"]},
            "share": {"default": "role", "choices": ["role", "all"]},
        },
    }
    stuck = {
        "name": "prompts",
        "label": "prompts (untrained)",
        "summary": "tokens",
        "capabilities": {"merge": "it has tokens"},
        "options": {"deep": {"default": True, "choices": [False, True]}, "dim": {"default": None}},
        "variants": [{"option": "deep", "value": False, "capabilities": {"merge": None}}],
    }
    text = shown("list", [entry, stuck], "methods")
    assert "rank=16, targets=query,value, share=role|all" in text
    assert "deep=true, dim=null" in text
    assert "label: prompts (untrained)" in text
    gift, prompts = text.split("merge: becomes")[0].split("prompts", 1)
    assert {"merge", "clusters"} <= set(gift.split())
    assert "merge (deep=false)" in prompts
    assert "merge " not in prompts.replace("merge (deep=false)", "")
    assert "clusters: shows" in text
    assert "low_rank" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_an_empty_list_says_so() -> None:
    assert shown("list", [], "tasks") == "no tasks\n"


def test_a_dry_run_shows_its_sites() -> None:
    site = {"name": "blocks.0.attn.proj", "role": "attn_out", "d_in": 64, "d_out": 64, "rows": None}
    value = {"parameters": FINETUNED["parameters"], "steps": 1200, "sites": [site]}
    text = shown("dry-run", value)
    assert "sites: 1" in text
    assert "blocks.0.attn.proj" in text
    assert "1,200 steps" in text


def test_any_other_object_is_a_tree_with_tables_and_files() -> None:
    value = {
        "output": "m",
        "advice": None,
        "deep": {"verified": True, "drift": 1e-7},
        "tensors": [{"key": "w [1]", "cosine": 1.0, "by": {"dtype": 2}}],
        "files": ["m/README.md"],
    }
    text = shown("merge", value)
    assert "verified  yes" in text
    assert "drift  1e-07" in text
    assert "advice" not in text
    row = next(line for line in text.splitlines() if "w [1]" in line)
    assert row.split() == ["w", "[1]", "1"]
    assert "m/README.md" in text


def test_json_holds_one_value_and_no_nan() -> None:
    stream = io.StringIO()
    emit_json({"a": math.nan, "b": [math.inf, 1.5], "p": Path("x"), "é": 1}, stream)
    assert json.loads(stream.getvalue()) == {"a": None, "b": [None, 1.5], "p": "x", "é": 1}


def test_what_is_no_json_value_is_a_fault_and_not_turned_into_text() -> None:
    with pytest.raises(TypeError, match="object is no JSON value"):
        emit_json({"a": object()}, io.StringIO())


class OutOfMemoryError(RuntimeError):
    """As torch's is called."""


@pytest.mark.parametrize(
    ("error", "kind", "code", "part"),
    [
        (RecipeError("bad", "do"), "RecipeError", 2, "bad"),
        (VerificationFailed("differs"), "VerificationFailed", 3, "differs"),
        (KeyboardInterrupt(), "Interrupted", 130, "Interrupted"),
        (OutOfMemoryError("CUDA out of memory"), "OutOfMemory", 1, "memory"),
        (MemoryError(), "OutOfMemory", 1, "memory"),
        (RuntimeError("DefaultCPUAllocator: can't"), "OutOfMemory", 1, "memory"),
        (OSError(errno.ENOSPC, "x", "out/f"), "StorageError", 1, "out/f cannot be written: No sp"),
        (KeyError("k"), "InternalError", 1, "internal error: KeyError: 'k'"),
        (ValueError("two\nlines"), "InternalError", 1, "ValueError: two lines"),
        (OSError(errno.ENOENT, "gone", "f"), "InternalError", 1, "FileNotFoundError"),
    ],
)
def test_every_exception_has_a_sentence_and_an_exit_code(
    error: BaseException, kind: str, code: int, part: str
) -> None:
    failure = describe(error)
    assert (failure.type, failure.exit_code) == (kind, code)
    assert part in failure.message
    assert "\n" not in failure.message


def test_a_failure_is_talk_for_people_and_one_object_for_scripts() -> None:
    failure = describe(RecipeError("r.yaml: [x] is wrong", "Do [y]."))
    results, talk = io.StringIO(), io.StringIO()
    show_failure(failure, as_json=False, results=results, talk=talk)
    assert (results.getvalue(), talk.getvalue()) == ("", "error: r.yaml: [x] is wrong\nDo [y].\n")
    show_failure(failure, as_json=True, results=results, talk=talk)
    assert json.loads(results.getvalue()) == {
        "error": {"type": "RecipeError", "message": "r.yaml: [x] is wrong", "hint": "Do [y]."}
    }
