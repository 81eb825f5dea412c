"""The lm-evaluation-harness on a run: local tasks, its own options, and what is refused."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from gistcli import run
from gistcli.errors import NotSupported, Refused, UnknownName
from gistcli.run.harness import parse_arguments
from tests.run.calling import call
from tests.run.text_models import completions, save_model, write_rows

INSTALLED = find_spec("lm_eval") is not None
TASK = """task: first_word
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: ["w1", "w2", "w3"]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a decoder that has learnt a little."""
    folder = tmp_path_factory.mktemp("harness")
    save_model(folder / "llama", "Llama", "causal_lm")
    completions(folder / "echo.jsonl")
    call(
        f"gist finetune --model {folder / 'llama'} --data {folder / 'echo.jsonl'} --method full "
        f"--max-steps 20 --lr 3e-3 -o {folder / 'run'}"
    )
    return folder / "run"


def test_arguments_are_the_harnesss_own_and_divided_at_its_names() -> None:
    known = ["num_fewshot", "limit", "gen_kwargs", "include_path"]
    given = ["num_fewshot=5,limit=0.5", "gen_kwargs=temperature=0,top_p=1", "include_path=a b"]
    assert parse_arguments(given, known) == {
        "num_fewshot": 5, "limit": 0.5, "gen_kwargs": "temperature=0,top_p=1",
        "include_path": "a b",
    }  # fmt: skip
    with pytest.raises(UnknownName, match="no argument 'num_fewshots'") as error:
        parse_arguments(["num_fewshots=5"], known)
    assert "num_fewshot" in error.value.hint
    with pytest.raises(Refused, match="is no KEY=VALUE"):
        parse_arguments(["limit"], known)


@pytest.mark.skipif(INSTALLED, reason="the lm-evaluation-harness is installed")
def test_without_the_harness_the_extra_is_named(tuned: Path) -> None:
    with pytest.raises(NotSupported) as error:
        run.evaluate_by_harness(tuned, run.Harness(["piqa"]))
    assert "gistcli[lm-eval]" in error.value.hint


def test_options_of_other_measures_are_refused_beside_it() -> None:
    found = call("gist eval runs/none --lm-eval piqa --split test", code=2)["error"]
    assert "--split" in found["message"]
    found = call("gist eval runs/none --lm-eval-args limit=1", code=2)["error"]
    assert "--lm-eval" in found["message"]


@pytest.mark.skipif(not INSTALLED, reason="needs the lm-evaluation-harness (extra lm-eval)")
@pytest.mark.filterwarnings("ignore")
def test_a_local_task_gives_the_figure_that_ranking_gives(tuned: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": f"w{i % 3 + 1} w{i + 5}", "completion": f" w{i % 3 + 1}", "answer": i % 3,
         "options": [" w1", " w2", " w3"]}
        for i in range(24)
    ]  # fmt: skip
    data = write_rows(tmp_path / "test.jsonl", rows)
    (tmp_path / "first_word.yaml").write_text(TASK.format(data=data))
    line = f"gist eval {tuned} --device cpu --lm-eval first_word"
    found = call(f"{line} --lm-eval-args include_path={tmp_path},num_fewshot=0")
    columns = {"prompt": "prompt", "completion": "completion", "options": "options"}
    recipe = (tuned / "recipe.yaml").read_text()
    (tuned / "recipe.yaml").write_text(
        recipe.replace("columns: null", f"columns: {json.dumps(columns)}")
    )
    ours = run.evaluate(tuned, data=str(data), protocol="rank", device="cpu")
    assert found["metrics"]["first_word/acc"] == pytest.approx(ours["metrics"]["test/accuracy"])
    assert found["examples"] == {"first_word": 24}
    base = call(f"{line} --baseline --lm-eval-args include_path={tmp_path},limit=6")
    assert base["examples"] == {"first_word": 6}
    unknown = call(f"gist eval {tuned} --device cpu --lm-eval piqua", code=2)["error"]
    assert "no task piqua" in unknown["message"]
