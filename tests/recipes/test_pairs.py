"""The recipes with a gist token: each is another recipe, and the section `gist`."""

from __future__ import annotations

import pytest

from gistcli.recipe import Recipe, yaml
from tests.recipes.known import OF_FAMILIES, ROOT, recipes, without_head

WITH_GIST = [name for name in OF_FAMILIES if name.partition("/")[2].startswith("gist-")]


def extended(name: str) -> str:
    """The recipe that another one extends."""
    tree = yaml.parse_file(ROOT / name, name)[0]
    assert set(tree) == {"extends", "gist"}
    return str((ROOT / name).with_name(tree["extends"]).relative_to(ROOT))


def apart(one: Recipe, other: Recipe) -> set[str]:
    """The sections that two recipes do not share."""
    return {s for s in Recipe.model_fields if getattr(one, s) != getattr(other, s)}


def test_vtab_and_the_few_shot_sets_pair_the_same_five_methods() -> None:
    for family in ("vtab", "fewshot"):
        rows = [n for n in WITH_GIST if n.startswith(f"{family}/")]
        methods = {next(iter(recipes(name).values())).method["name"] for name in rows}
        assert (len(rows), methods) == (5, {"adapter", "vpt", "ssf", "lora", "gift"})
    others = {*OF_FAMILIES} - {*WITH_GIST}
    assert not [name for name in others if any(r.gist for r in recipes(name).values())]


@pytest.mark.parametrize("name", WITH_GIST)
def test_a_pair_differs_in_the_section_gist_alone(name: str) -> None:
    base = extended(name)
    assert list(recipes(name)) == list(recipes(base))
    for task, recipe in recipes(name).items():
        plain = recipes(base)[task]
        assert plain.gist is None
        assert apart(recipe, plain) - {"published"} == {"gist"}, task
        assert without_head(recipe) - without_head(plain) == 768


def test_recipes_of_two_methods_are_no_pair() -> None:
    ssf, adapter = (recipes(f"vtab/{row}.yaml")["dtd"] for row in ("ssf", "parallel-adapter"))
    assert apart(adapter, ssf) - {"published"} == {"method"}


@pytest.mark.parametrize("name", WITH_GIST)
def test_token_and_loss_are_those_of_the_publication(name: str) -> None:
    dropout = 0.0 if name.endswith("gist-ssf.yaml") else 0.1
    said = {"length": 1, "alpha": 0.5, "lambda": 0.75, "temperature": 3.0, "dropout": dropout}
    for recipe in recipes(name).values():
        assert recipe.published is None
        assert recipe.gist is not None
        assert {option: recipe.gist[option] for option in said} == said
        assert (
            f" {without_head(recipe):,} parameters" in (ROOT / name).read_text().partition("\n")[0]
        )
