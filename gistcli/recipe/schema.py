"""The JSON schema of a recipe file, with the options of every method that is installed."""

from __future__ import annotations

from typing import Any

from gistcli import registry
from gistcli.recipe.model import DEFAULT_METHOD, Recipe


def recipe_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) for editors and checks; `method` is one of the known ones."""
    schema = Recipe.model_json_schema(ref_template="#/$defs/{model}")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "gist recipe"
    definitions = schema.setdefault("$defs", {})
    choices = []
    for name in registry.names("methods"):
        definitions[f"method_{name}"] = _method_schema(name, definitions)
        choices.append({"$ref": f"#/$defs/method_{name}"})
    fields = schema["properties"]
    fields["method"] = {
        "description": fields["method"].get("description", ""),
        "anyOf": choices,
        "default": {"name": DEFAULT_METHOD},
    }
    for name in registry.names("sections"):
        fields[name] = {
            "description": fields[name].get("description", ""),
            "anyOf": [_section_schema(name, definitions), {"type": "null"}],
            "default": None,
        }
    fields["extends"] = {
        "type": "string",
        "description": "Another recipe, relative to this one, whose keys this one overrides.",
    }
    fields["tasks"] = {
        "type": "object",
        "additionalProperties": {"type": ["object", "null"]},
        "description": "NAME: overrides, of which `task.name` chooses one (a family file).",
    }
    # a file may leave to `extends`, `tasks` or flags what a run cannot do without
    schema.pop("required", None)
    for section in ("ModelSection", "DataSection"):
        definitions[section].pop("required", None)
    return schema


def _section_schema(name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """A reference to the schema of an optional section, which joins `definitions`."""
    definitions[name] = registry.resolve("sections", name).model_json_schema(by_alias=True)
    return {"$ref": f"#/$defs/{name}"}


def _method_schema(name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of one method's section; what it refers to joins `definitions`."""
    method = registry.resolve("methods", name)
    template = f"#/$defs/method_{name}_{{model}}"
    own: dict[str, Any] = method.model_json_schema(ref_template=template)
    for key, value in own.pop("$defs", {}).items():
        definitions[f"method_{name}_{key}"] = value
    own["title"] = name
    own["description"] = method.summary
    own["properties"] = {"name": {"const": name}, **own.get("properties", {})}
    if name != DEFAULT_METHOD:
        own["required"] = ["name"]
    return own
