"""All that is wrong with a recipe, in one message a user can act on."""

from __future__ import annotations

from pathlib import Path

import pytest

from gistcli.errors import RecipeError
from gistcli.recipe import load_recipe

GOOD = {"model": "{name: gist_vit_nano}", "data": "{path: digits}"}


def message(tmp_path: Path, text: str, sets: tuple[str, ...] = ()) -> str:
    path = tmp_path / "r.yaml"
    present = {line.partition(":")[0] for line in text.splitlines()}
    lines = [f"{k}: {v}" for k, v in GOOD.items() if k not in present]
    path.write_text("\n".join([text, *lines]))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, sets=sets)
    assert caught.value.exit_code == 2
    return caught.value.message.replace(str(path), "r.yaml")


def test_five_mistakes_are_five_lines_of_one_message(tmp_path: Path) -> None:
    text = (
        "method: {name: gift, rnk: 8}\noptim: {lr: fast, schedule: cosin}\n"
        "train: {epochs: 0}\ndata: {path: digits, vla_fraction: 0.1}"
    )
    lines = message(tmp_path, text).splitlines()
    assert lines[0] == "r.yaml: 5 problems:"
    assert sorted(line.split(":")[0].strip() for line in lines[1:]) == [
        "data.vla_fraction (line 4)",
        "method.rnk (line 1)",
        "optim.lr (line 2)",
        "optim.schedule (line 2)",
        "train.epochs (line 3)",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("method: {rnk: 8}", "method.rnk (line 1): no option of gift. Did you mean 'rank'?"),
        ("method: {name: gfit}", "method.name (line 1): 'gfit' is not among the methods. Did you"),
        ("method: {name: 3}", "method.name (line 1): expected the name of a method"),
        ("method: linear", "method (line 1): found 'linear', expected a mapping of keys"),
        ("method: {layers: some}", "method.layers (line 1): found 'some', expected 'all' or a lis"),
        ("optim: {lr: fast}", "optim.lr (line 1): found 'fast', expected a number"),
        ("optim: {lr: '0.1'}", "optim.lr (line 1): found '0.1', expected a number"),
        ("optim: {lr: -1}", "optim.lr (line 1): found -1, expected more than 0"),
        ("optim: {lr: .nan}", "optim.lr (line 1): found nan, expected"),
        ("optim: {warmup_ratio: 1}", "found 1, expected less than 1"),
        ("optim: {schedule: cosin}", "found 'cosin'. Did you mean 'cosine'? Known: constant,"),
        ("train: {compile: on}", "train.compile (line 1): found 'on', expected true or false"),
        ("train: {compile: 1}", "train.compile (line 1): found 1, expected true or false"),
        ("train: {epochs: true}", "train.epochs (line 1): found true, expected a whole number"),
        ("train: {epochs: 1.5}", "found 1.5, expected a whole number"),
        ("train: {epochs: null}", "found null, expected a whole number"),
        ("train: {epochs: 010}", "found '010', expected a whole number"),
        ("train: {device: tpu}", "found 'tpu', expected auto, cpu, mps, cuda or cuda:N"),
        ("train: {max_time: soon}", "found 'soon', expected seconds, or a text such as 90m"),
        ("train: {batch_size: 4, micro_batch_size: 8}", "micro_batch_size is larger than"),
        ("data: {path: d, val_fraction: .6, test_fraction: .5}", "leave nothing to train on"),
        ("data: {path: d, columns: {picture: x}}", "data.columns.picture (line 1): found"),
        ("data: {path: ''}", "data.path (line 1): found '', expected a text that is not empty"),
        ("eval: {every: often}", "found 'often', expected 'epoch' or 'none' or a whole number"),
        ("output: {report_to: [tensorbord]}", "output.report_to.0 (line 1): found 'tensorbord'."),
        ("seed: -1", "seed (line 1): found -1, expected at least 0"),
        ("optm: {lr: 1}", "optm (line 1): unknown key. Did you mean 'optim'?"),
        ("lr: 1e-3", "lr (line 1): unknown key. Did you mean optim.lr?"),
        ("optim: 3", "optim (line 1): found 3, expected a mapping of keys"),
        ("model: {img_size: 32}", "model.name (line 1): missing; give a folder or a name"),
        ("extends: [a, b]", "extends (line 1): expected the path of one recipe"),
        ("tasks: 3", "tasks (line 1): expected {NAME: {section: {key: value}}}"),
        ("published: {value: 0.9}", "published.metric"),
    ],
)
def test_a_mistake_says_where_what_was_found_and_what_is_expected(
    tmp_path: Path, text: str, line: str
) -> None:
    found = message(tmp_path, text)
    assert found.startswith("r.yaml: 1 problem:\n")
    assert line in found


def test_a_problem_of_a_flag_names_the_flag(tmp_path: Path) -> None:
    found = message(tmp_path, "optim: {lr: 1e-3}", ("optim.lr=fast", "optim.wd=1"))
    assert "optim.lr (--set optim.lr): found 'fast'" in found
    assert "optim.wd (--set optim.wd): unknown key" in found


def test_a_problem_of_an_extended_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("\n\noptim: {lr: fast}\n")
    found = message(tmp_path, "extends: base.yaml")
    assert f"optim.lr ({tmp_path / 'base.yaml'}:3): found 'fast'" in found


def test_an_unknown_method_and_other_mistakes_are_told_together(tmp_path: Path) -> None:
    found = message(tmp_path, "method: {name: gfit}\ntrain: {epochs: 0}")
    assert "r.yaml: 2 problems:" in found
