"""The JSON schema and the catalogue of recipes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gistcli import registry
from gistcli.recipe import list_recipes, list_tasks, recipe_schema


def _properties(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        for key, value in node.get("properties", {}).items():
            yield f"{path}.{key}", value
        for key, value in node.items():
            yield from _properties(value, f"{path}.{key}")


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def test_every_key_of_the_schema_is_described() -> None:
    bare = [
        name
        for name, value in _properties(recipe_schema())
        if not value.get("description") and not name.endswith(".name") and "$ref" not in value
    ]
    assert bare == []


def test_every_reference_of_the_schema_leads_somewhere() -> None:
    schema = recipe_schema()
    references = set(_references(schema))
    assert len(references) > 8
    assert all(r.removeprefix("#/$defs/") in schema["$defs"] for r in references)


def test_the_schema_holds_the_options_of_every_method() -> None:
    schema = recipe_schema()
    choices = [c["$ref"].rpartition("/")[2] for c in schema["properties"]["method"]["anyOf"]]
    assert choices == [f"method_{name}" for name in registry.names("methods")]
    gift = schema["$defs"]["method_gift"]
    assert gift["properties"]["name"] == {"const": "gift"}
    assert gift["properties"]["rank"]["minimum"] == 1
    assert gift["additionalProperties"] is False


def test_recipes_are_listed_by_their_first_line_even_where_one_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.yaml").write_text("# What a is\nmodel: {name: x}\n")
    (tmp_path / "deep" / "b.yaml").write_text("a: [\n")
    (tmp_path / "c.yaml").write_text("tasks: {cats: {}, dogs: {}}\n")
    found = {Path(e["name"]).name: e["summary"] for e in list_recipes([tmp_path])}
    assert found["a.yaml"] == "What a is"
    assert found["b.yaml"].startswith("cannot be read")
    assert found["c.yaml"] == ""
    assert [e["name"] for e in list_tasks([tmp_path])] == ["cats", "dogs"]


def test_a_recipe_that_changes_tasks_of_another_adds_none_to_the_list(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("tasks: {cats: {}, dogs: {}}\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\ntasks: {cats: {seed: 1}, birds: {}}\n")
    (tmp_path / "c.yaml").write_text("extends: gone.yaml\ntasks: {fish: {}}\n")
    assert [e["name"] for e in list_tasks([tmp_path])] == ["cats", "dogs", "birds", "fish"]
