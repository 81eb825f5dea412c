"""`gist schema`: the JSON schema of a recipe."""

from __future__ import annotations

from gistcli.commands.options import AsJson, examples

EXAMPLES = examples(
    "gist schema",
    "gist schema > recipe.schema.json",
    "gist schema | python -m json.tool | less",
)


def schema(as_json: AsJson = False) -> object:
    """Print the JSON schema of a recipe: every key, its default, bounds and meaning."""
    from gistcli import console

    with console.working("schema"):
        from gistcli.recipe import recipe_schema

        return console.Result("schema", recipe_schema(), as_json=True)
