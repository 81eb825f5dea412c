"""Protocols of language models in a run: what is answered, kept, measured again, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gistcli import run
from gistcli.errors import DataError, GistError
from gistcli.evaluate.metrics import wilson
from gistcli.recipe import Recipe
from tests.listening import Listener
from tests.run.calling import call
from tests.run.text_models import labelled, save_model, write_rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder, an encoder, and texts that ask for their first word."""
    folder = tmp_path_factory.mktemp("answers")
    save_model(folder / "llama", "Llama", "causal_lm")
    save_model(folder / "bert", "Bert", "classification")
    rows = [
        {"prompt": f"w{i % 4} w{9 + i % 7}", "completion": f" w{i % 4}", "answer": f"w{i % 4}"}
        for i in range(80)
    ]
    write_rows(folder / "echo.jsonl", rows)
    labelled(folder / "parity.jsonl")
    return folder


def recipe(place: Path, model: str = "llama", /, **sections: dict[str, Any]) -> Recipe:
    tree: dict[str, Any] = {
        "model": {"name": str(place / model)},
        "data": {"path": str(place / "echo.jsonl")},
        "method": {"name": "full"},
        "optim": {"lr": 3e-3},
        "train": {"max_steps": 40, "batch_size": 16, "save_steps": 1000},
        "eval": {"every": "none"},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return Recipe.model_validate(tree)


def rows_of(folder: Path, split: str = "test") -> list[dict[str, Any]]:
    lines = (folder / "predictions" / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def ranked(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranked") / "run"
    return folder, run.finetune(recipe(place, eval={"protocol": "rank"}), output=folder)


def test_the_likeliest_of_all_answers_is_the_models_and_every_one_is_kept(
    ranked: tuple[Path, dict[str, Any]],
) -> None:
    folder, result = ranked
    rows, figures = rows_of(folder), result["metrics"]
    assert len(rows) == result["examples"]["test"] == result["answers"]["test"]
    assert {tuple(row["options"]) for row in rows} == {(" w0", " w1", " w2", " w3")}
    right = [row["right"] for row in rows]
    assert right == [row["answer"] == row["gold"] for row in rows]
    assert [min(row["nll"]) for row in rows] == [
        row["nll"][row["options"].index(row["answer"])] for row in rows
    ]
    assert figures["test/accuracy"] == pytest.approx(sum(right) / len(right))
    assert result["intervals"]["test/accuracy"] == list(wilson(sum(right), len(right)))
    assert {"val/loss", "val/perplexity", "val/accuracy_by_mean"} <= figures.keys()
    assert (result["figure"], result["metric"], result["protocol"]) == ("accuracy", "loss", "rank")
    again = run.evaluate(folder, device="cpu", batch_size=3)
    tested = {k: v for k, v in figures.items() if k.startswith("test/")}
    assert again["metrics"] == pytest.approx(tested, rel=1e-5)
    assert again["intervals"] == {
        k: v for k, v in result["intervals"].items() if k.startswith("test/")
    }


def test_answers_are_written_and_judged_by_the_rule_that_was_asked_for(
    place: Path, ranked: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = ranked
    found = run.evaluate(
        folder, device="cpu", protocol="rouge", max_new_tokens=3, output=tmp_path / "out.jsonl"
    )
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found["metrics"]["test/rouge_l"] == pytest.approx(
        sum(row["rouge_l"] for row in rows) / len(rows)
    )
    asked = run.predict(folder, [], prompts=[rows[0]["prompt"]], max_new_tokens=3, device="cpu")
    assert asked["predictions"][0]["text"] == rows[0]["text"]
    assert found["metrics"].keys() == {"test/rouge_l"}  # what was asked for, and no loss
    limited = run.evaluate(folder, device="cpu", protocol="commonsense", limit=2, max_new_tokens=2)
    assert limited["answers"] == limited["counts"]["test/accuracy"] == 2
    # the model never says "the correct answer is"
    assert limited["metrics"]["test/accuracy"] == 0
    assert limited["metrics"]["test/unanswered"] == 1
    plain = run.evaluate(folder, device="cpu", protocol="perplexity")
    assert plain["metrics"].keys() == {"test/loss", "test/perplexity"}


def test_what_answers_decides_the_best_evaluation_where_that_is_asked_for(
    place: Path, tmp_path: Path
) -> None:
    evaluation = {
        "protocol": "rank", "metric": "accuracy", "every": 10, "select": "best", "limit": 5,
    }  # fmt: skip
    result = run.finetune(recipe(place, eval=evaluation), output=tmp_path / "run")
    assert result["metric"] == "accuracy"
    assert result["best"]["value"] == pytest.approx(result["metrics"]["val/accuracy"])
    assert len(rows_of(tmp_path / "run", "val")) == 5


def test_options_of_the_data_are_ranked_and_the_answer_has_to_be_one_of_them(
    place: Path, tmp_path: Path
) -> None:
    rows = [
        {"prompt": "w1 w2", "completion": " w3", "o": [" w3", f" w{4 + i % 9}"]} for i in range(20)
    ]
    data = {
        "path": str(write_rows(tmp_path / "o.jsonl", rows)),
        "columns": {"prompt": "prompt", "completion": "completion", "options": "o"},
    }
    asked = recipe(place, data=data, eval={"protocol": "rank"}, train={"max_steps": 1})
    run.finetune(asked, output=tmp_path / "run")
    found = rows_of(tmp_path / "run")
    assert all(row["options"][0] == row["gold"] == " w3" for row in found)
    rows[3]["o"] = [" w1"]
    write_rows(tmp_path / "o.jsonl", rows)
    with pytest.raises(DataError, match=r"o.jsonl:4: the answer ' w3' is none of its options"):
        run.finetune(asked, output=tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_prompts_without_room_are_told_of_and_count_as_not_answered(
    place: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"w{i} " * (64 if i == 7 else 2), "completion": "w1"} for i in range(12)]
    place_of = str(write_rows(tmp_path / "long.jsonl", rows))
    heard = Listener()
    run.finetune(recipe(place, train={"max_steps": 1}), output=tmp_path / "run")
    found = run.evaluate(
        tmp_path / "run", data=place_of, device="cpu", protocol="rouge", max_new_tokens=2,
        output=tmp_path / "out.jsonl", reporter=heard,
    )  # fmt: skip
    assert found["answers"] == 12
    [eighth] = [
        row
        for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
        if row["name"] == "long.jsonl:8"
    ]
    assert (eighth["text"], eighth["rouge_l"]) == ("", 0)
    assert any("long.jsonl:8" in text and "room" in text for text in heard.lines)


def test_what_makes_no_sense_is_refused_before_anything_is_trained(
    place: Path, tmp_path: Path
) -> None:
    parity = {"path": str(place / "parity.jsonl")}
    asked = {
        "eval.limit: nothing is answered": recipe(place, eval={"limit": 3}),
        "'rouge_l' is not measured": recipe(place, eval={"protocol": "rank", "metric": "rouge_l"}),
        "is for language models": recipe(place, "bert", data=parity, eval={"protocol": "rank"}),
    }
    bad: dict[str, tuple[str, list[dict[str, Any]]]] = {
        "without an answer": ("rouge", [{"text": f"w1 w2 w{i}"} for i in range(20)]),
        "are none for math": (
            "math",
            [{"prompt": f"w{i}", "completion": " w2 w3"} for i in range(20)],
        ),
        "different answers, too many": (
            "rank",
            [{"prompt": f"w{i}", "completion": f" w{i}"} for i in range(90)],
        ),
    }
    for match, (protocol, rows) in bad.items():
        path = write_rows(tmp_path / f"{protocol}.jsonl", rows)
        asked[match] = recipe(place, data={"path": str(path)}, eval={"protocol": protocol})
    for match, one in asked.items():
        with pytest.raises(GistError, match=match):
            run.finetune(one, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bad_options_of_eval_end_with_one_line(
    place: Path, ranked: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = ranked
    unknown = call(f"gist eval {folder} --device cpu --protocol gsm9k", code=2)["error"]
    assert "'gsm9k' is no protocol" in unknown["message"]
    assert "gsm8k" in unknown["hint"]
    data = {"path": str(place / "parity.jsonl")}
    classifier = tmp_path / "parity"
    run.finetune(recipe(place, "bert", data=data, train={"max_steps": 1}), output=classifier)
    refused = call(f"gist eval {classifier} --protocol math", code=2)["error"]
    assert "is for language models" in refused["message"]
    refused = call(f"gist eval {classifier} --baseline", code=2)["error"]
    assert "random numbers before training" in refused["message"]
    run.merge(folder, tmp_path / "merged", verify=False)
    line = f"gist eval {tmp_path / 'merged'} --baseline --data {place / 'echo.jsonl'}"
    refused = call(line, code=2)["error"]
    assert "the untuned network is no longer in it" in refused["message"]


def test_the_untuned_network_is_measured_by_the_same_protocol(
    ranked: tuple[Path, dict[str, Any]],
) -> None:
    folder, result = ranked
    base = call(f"gist eval {folder} --device cpu --baseline")
    assert base["metrics"]["test/loss"] > result["metrics"]["test/loss"] + 0.3
    assert base["answers"] == result["answers"]["test"]
    tuned = call(f"gist eval {folder} --device cpu")
    assert tuned["metrics"]["test/loss"] == pytest.approx(result["metrics"]["test/loss"], rel=1e-5)


def test_base_tuned_and_merged_stand_in_one_table_with_paired_differences(
    ranked: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, result = ranked
    run.merge(folder, tmp_path / "merged")
    line = f"gist compare {folder} --baseline --merged {tmp_path / 'merged'} --device cpu"
    value = call(line)
    assert value["metric"] == "test/accuracy"
    means = {row["name"]: row["tasks"]["echo.jsonl"]["mean"] for row in value["rows"]}
    assert list(means) == ["untuned", "full", "merged"]
    assert means["full"] == result["metrics"]["test/accuracy"]
    kept = {name: rows_of(folder / "evaluations" / name) for name in ("untuned", "merged")}
    kept["full"] = rows_of(folder)
    rates = {name: sum(row["right"] for row in rows) / len(rows) for name, rows in kept.items()}
    assert means == pytest.approx(rates)
    gains = {one["row"]: one["tasks"]["echo.jsonl"] for one in value["differences"]}
    for name, gain in gains.items():
        assert gain["mean"] == pytest.approx(rates[name] - rates["untuned"])
        assert gain["interval"][0] <= gain["mean"] <= gain["interval"][1]
    assert value["reference"] == "untuned"
    parameters = {row["name"]: row["parameters"]["mean"] for row in value["rows"]}
    assert parameters["untuned"] == 0
    written = (folder / "evaluations" / "untuned" / "result.json").stat().st_mtime_ns
    assert call(line)["rows"] == value["rows"]  # read, not measured again
    assert (folder / "evaluations" / "untuned" / "result.json").stat().st_mtime_ns == written
    lower = call(f"{line} --metric test/loss")
    assert lower["differences"] == []
    refused = call(f"gist compare {folder} --merged {folder}", code=2)["error"]
    assert "is a run" in refused["message"]
    assert "needs runs" in call("gist compare --baseline", code=2)["error"]["message"]


def test_an_encoder_decoder_ranks_and_writes_too(place: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "t5", "T5", "seq2seq")
    asked = recipe(place, str(tmp_path / "t5"), eval={"protocol": "rank"}, train={"max_steps": 60})
    result = run.finetune(asked, output=tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert result["metrics"]["test/accuracy"] == pytest.approx(
        sum(row["right"] for row in rows) / len(rows)
    )
    assert result["metrics"]["test/accuracy"] > 0.5
    found = run.evaluate(tmp_path / "run", device="cpu", protocol="rouge", max_new_tokens=3)
    assert 0 <= found["metrics"]["test/rouge_l"] <= 1


def test_alpaca_eval_gets_the_instructions_as_they_are_and_what_was_written_to_them(
    ranked: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = ranked
    asked = [{"instruction": f"w{i} w{i + 1}", "dataset": "koala"} for i in range(3)]
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    line = f"gist predict {folder} {tmp_path / 'asked.json'} --device cpu --max-new-tokens 4"
    output = tmp_path / "outputs.json"
    found = call(f"{line} --alpaca-eval --generator ours -o {output}")
    assert json.loads(output.read_text()) == [
        {**row, "output": answered["text"], "generator": "ours"}
        for row, answered in zip(asked, found["predictions"], strict=True)
    ]
    refused = call(f"{line} --alpaca-eval --temperature 1", code=2)["error"]
    assert "there is no -o FILE.json" in refused["message"]
    assert "draws nothing" in refused["message"]
    assert call(f"{line} --generator ours", code=2)["error"]
