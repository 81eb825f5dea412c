"""The section `gist` of recipes: its schema, its way through files, tasks and back."""

from __future__ import annotations

from pathlib import Path

from gistcli.methods.gist import Gist
from gistcli.recipe import dump_recipe, load_recipe, recipe_schema

BASE = "model: {name: gist_vit_nano}\ndata: {path: digits}\n"


def test_the_schema_knows_every_option_under_its_name_in_files() -> None:
    schema = recipe_schema()
    options = schema["$defs"]["gist"]["properties"]
    assert set(options) == set(Gist().model_dump(by_alias=True))
    assert "lambda" in options
    assert all(option["description"] for option in options.values())
    assert options["length"]["minimum"] == 1
    choices = schema["properties"]["gist"]["anyOf"]
    assert choices == [{"$ref": "#/$defs/gist"}, {"type": "null"}]


def test_it_survives_being_written_and_read(tmp_path: Path) -> None:
    for text in ("", "gist: {}\n", "gist: {interaction: {mse: 2, rkld: 1}, lambda: 1}\n"):
        (tmp_path / "a.yaml").write_text(BASE + text)
        recipe = load_recipe(tmp_path / "a.yaml")
        assert (recipe.gist is None) == (text == "")
        (tmp_path / "b.yaml").write_text(dump_recipe(recipe))
        assert load_recipe(tmp_path / "b.yaml") == recipe


def test_a_section_whose_lines_are_commented_out_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(BASE + "gist:\n#  alpha: 1\n")
    assert load_recipe(tmp_path / "a.yaml").gist is None


def test_the_method_may_change_and_the_token_stays(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(BASE + "gist: {alpha: 1}\nmethod: {name: gift, rank: 4}\n")
    recipe = load_recipe(tmp_path / "a.yaml", sets=["method.name=lora"])
    assert recipe.build_method().label() == "lora + gist"
    assert recipe.build_method().gist.alpha == 1


def test_a_figure_without_the_token_is_not_one_with_it_in_tasks_too(tmp_path: Path) -> None:
    figure = "published: {value: 0.9, metric: test/accuracy}"
    (tmp_path / "base.yaml").write_text(
        BASE + f"tasks:\n  one: {{{figure}}}\n  two: {{gist: {{}}, {figure}}}\n"
    )
    (tmp_path / "a.yaml").write_text("extends: base.yaml\ngist: {alpha: 1}\n")
    found = {}
    for file in ("base", "a"):
        for task in ("one", "two"):
            recipe = load_recipe(tmp_path / f"{file}.yaml", sets=[f"task.name={task}"])
            found[file, task] = (recipe.gist is not None, recipe.published is not None)
    assert found == {
        ("base", "one"): (False, True),
        ("base", "two"): (True, True),
        ("a", "one"): (True, False),
        ("a", "two"): (True, True),
    }
