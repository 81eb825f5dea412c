"""Recipes: what a run is made of, read from YAML, flags and defaults, and validated as one."""

from gistcli.recipe.catalogue import list_recipes, list_tasks
from gistcli.recipe.loading import Override, load_recipe, parse_set
from gistcli.recipe.model import MAY_CHANGE, Recipe, differences, dump_recipe
from gistcli.recipe.schema import recipe_schema
from gistcli.recipe.sections import (
    DataSection,
    EvalSection,
    ModelSection,
    OptimSection,
    OutputSection,
    Published,
    TaskSection,
    TrainSection,
)

__all__ = [
    "MAY_CHANGE",
    "DataSection",
    "EvalSection",
    "ModelSection",
    "OptimSection",
    "OutputSection",
    "Override",
    "Published",
    "Recipe",
    "TaskSection",
    "TrainSection",
    "differences",
    "dump_recipe",
    "list_recipes",
    "list_tasks",
    "load_recipe",
    "parse_set",
    "recipe_schema",
]
