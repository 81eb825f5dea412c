"""The recipe object: equality, dumping, and which keys make another run."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from gistcli.recipe import Override, Recipe, differences, dump_recipe, load_recipe


def recipe(*sets: str) -> Recipe:
    start = [
        Override("model.name", "gist_vit_nano", "--model"),
        Override("data.path", "digits", "--data"),
    ]
    return load_recipe(overrides=start, sets=sets)


@pytest.mark.parametrize(
    "sets",
    [
        (),
        ("model.img_size=[32, 48]", "optim.lr=1e-5", "train.max_time=2h", "eval.every=3"),
        ("data.columns={image: photo, label: 'on'}", "data.splits={train: 'true', test: '1e3'}"),
        ("method.name=linear", "output.report_to=[wandb]", "train.max_steps=1e4"),
        ("published={value: 0.5, metric: test/accuracy, source: 'Table 1: left'}",),
    ],
)
def test_a_dumped_recipe_loads_back_equal(tmp_path: Path, sets: tuple[str, ...]) -> None:
    path = tmp_path / "recipe.yaml"
    first = recipe(*sets)
    path.write_text(dump_recipe(first), encoding="utf-8")
    again = load_recipe(path)
    assert again == first
    assert dump_recipe(again) == dump_recipe(first)
    assert not again.defaulted().keys() - {"published"}


def test_times_and_round_floats_become_plain_numbers() -> None:
    made = recipe("train.max_time=90m", "train.max_steps=1e4")
    assert made.train.max_time == 5400.0
    assert made.train.max_steps == 10_000
    assert type(made.train.max_steps) is int


def test_equality_is_about_values_not_about_who_gave_them() -> None:
    assert recipe() == recipe("train.epochs=20")
    assert recipe() != recipe("train.epochs=21")


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        recipe().seed = 3  # type: ignore[misc]


def test_differences_name_both_values() -> None:
    assert differences(recipe(), recipe("optim.lr=1e-3", "method.rank=8")) == [
        "method.rank: 16 there, 8 here",
        "optim.lr: null there, 0.001 here",
    ]


def test_another_method_shows_its_missing_options() -> None:
    found = differences(recipe(), recipe("method.name=linear"))
    assert "method.name: gift there, linear here" in found
    assert "method.rank: 16 there, absent here" in found


def test_what_does_not_change_a_result_may_change() -> None:
    other = recipe(
        "train.device=cpu", "train.max_time=3", "train.keep=4", "train.save_steps=5",
        "output.dir=x", "output.report_to=[wandb]", "eval.batch_size=7",
    )  # fmt: skip
    assert differences(recipe(), other) == []
    assert differences(recipe(), recipe("train.batch_size=16"))
    assert differences(recipe(), recipe("train.epochs=30"))
