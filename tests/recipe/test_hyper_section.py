"""The section `hyper` of recipes: its schema, its way through files and back, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from gistcli.errors import RecipeError
from gistcli.hyper.section import Hyper, WithHyper
from gistcli.recipe import dump_recipe, load_recipe, recipe_schema
from gistcli.run.methods import method_info, method_of

BASE = "model: {name: gist_vit_nano}\ndata: {path: digits}\nmethod: {name: lora}\n"


def test_the_schema_knows_every_option() -> None:
    schema = recipe_schema()
    options = schema["$defs"]["hyper"]["properties"]
    assert set(options) == set(Hyper.model_fields)
    assert all(option["description"] for option in options.values())
    assert schema["properties"]["hyper"]["anyOf"] == [{"$ref": "#/$defs/hyper"}, {"type": "null"}]


def test_it_survives_being_written_and_read(tmp_path: Path) -> None:
    for text in ("", "hyper: {}\n", "hyper: {gists: 4, distill: 0.5, temperature: 2}\n"):
        (tmp_path / "a.yaml").write_text(BASE + text)
        recipe = load_recipe(tmp_path / "a.yaml")
        assert (recipe.hyper is None) == (text == "")
        (tmp_path / "b.yaml").write_text(dump_recipe(recipe))
        assert load_recipe(tmp_path / "b.yaml") == recipe


def test_the_run_that_it_starts_from_lies_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(BASE + "hyper: {init: runs/one}\n")
    recipe = load_recipe(tmp_path / "a.yaml")
    assert recipe.hyper is not None
    assert recipe.hyper["init"] == str(tmp_path / "runs" / "one")


def test_a_run_remembers_it_beside_the_method(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(BASE + "hyper: {gists: 4, adapt_downstream: true}\n")
    method = load_recipe(tmp_path / "a.yaml").build_method()
    assert isinstance(method, WithHyper)
    assert method.label() == "lora + hyper"
    assert method_of(method_info(method, "lora")) == method


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hyper: {}\ngist: {}\n", "gist token learns one answer"),
        ("hyper: {context: full, gists: 4}\n", "gists acts with context gists only"),
        ("hyper: {copy_probability: 0.2}\n", "copy_probability acts with mode copy only"),
        ("hyper: {temperature: 2}\n", "temperature acts with distill only"),
        ("hyper: {gists: 40, example_tokens: 41}\n", "leaves no room for examples beside 40"),
        ("hyper: {gits: 4}\n", "hyper.gits"),
    ],
)
def test_what_says_nothing_together_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.yaml").write_text(BASE + text)
    with pytest.raises(RecipeError, match=said):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "method", ["bitfit", "full", "layernorm", "prefix", "prompt", "ssf", "toast", "vpt"]
)
def test_a_method_that_no_gate_reaches_is_no_hypernetwork(tmp_path: Path, method: str) -> None:
    (tmp_path / "a.yaml").write_text(BASE.replace("lora", method) + "hyper: {}\n")
    with pytest.raises(RecipeError, match=f"{method} cannot be a hypernetwork: it does more than"):
        load_recipe(tmp_path / "a.yaml")
