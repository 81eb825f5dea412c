"""`gist sweep --ablate gist`: every method with the gist token and without, all else equal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gistcli import run
from gistcli.errors import GistError, RecipeError, Refused, UnknownName
from gistcli.recipe import Override
from gistcli.recipe.model import flatten
from gistcli.run.sweep_plan import SweepPlan, plan_sweep
from gistcli.run.sweep_request import SweepRequest
from tests.run import sweeping
from tests.run.calling import call

NANO = """\
model: {name: gist_vit_nano}
method: {name: lora, rank: 3}
data: {path: digits, shots: 2}
published: {value: 0.9, metric: test/accuracy}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "nano.yaml"
    path.write_text(NANO)
    return path


def plan(path: Path, **given: Any) -> SweepPlan:
    return plan_sweep(SweepRequest([path], **{"ablate": ["gist"], **given}))


def test_every_method_is_trained_without_and_with_the_token_and_nothing_else_differs(
    recipe: Path,
) -> None:
    found = plan(recipe, methods=["lora", "linear"], seeds=[0, 1])
    assert [run.method for run in found.runs] == [
        *("lora", "lora", "lora+gist", "lora+gist"),
        *("linear", "linear", "linear+gist", "linear+gist"),
    ]
    assert [run.id for run in found.runs[:4]] == [
        *("lora.s0", "lora.s1", "lora-gist.s0", "lora-gist.s1"),
    ]
    without, having = found.recipe(found.runs[1]), found.recipe(found.runs[3])
    a, b = flatten(without.as_dict()), flatten(having.as_dict())
    differing = {key for key in {*a, *b} if a.get(key) != b.get(key)}
    assert {key.partition(".")[0] for key in differing} == {"gist", "published"}
    assert (without.gist, without.published is None) == (None, False)
    assert having.gist is not None
    assert (having.gist["alpha"], having.published) == (0.5, None)


def test_what_the_recipe_says_of_the_token_holds_for_the_arm_that_has_one(recipe: Path) -> None:
    given = {"overrides": [Override("gist", {}, "--gist")], "sets": ["gist.alpha=0.125"]}
    assert [c.method for c in plan(recipe, ablate=[], **given).cells] == ["lora+gist"]
    without, having = plan(recipe, **given).cells
    assert without.recipe.gist is None
    assert having.recipe.gist is not None
    assert having.recipe.gist["alpha"] == 0.125


def test_only_the_arm_with_the_token_is_searched_over_its_options(recipe: Path) -> None:
    grid = ["gist.alpha=0.5,x2", "gist.lambda=0.25,0.75", "optim.lr=x1,x2"]
    without, having = plan(recipe, grid=grid, seeds=[0]).cells
    assert [sorted(point) for point in without.points] == [["optim.lr"]] * 2
    assert len(having.points) == 8
    alphas = {point["gist.alpha"] for point in having.points}
    assert alphas == {0.5, 1.0}
    one = plan(recipe, grid=["gist.alpha=0.1..10"], random=4)
    assert [len(cell.points) for cell in one.cells] == [1, 4]
    last = one.runs[-2]
    assert (last.role, last.method) == ("candidate", "lora+gist")
    chosen = one.recipe(last).gist
    assert chosen is not None
    assert chosen["alpha"] == last.point["gist.alpha"]


def test_a_refit_of_few_shots_leaves_validation_out_where_that_is_asked(recipe: Path) -> None:
    grid = {"grid": ["optim.lr=x1,x2"], "refit": True}
    for where, included in (("train", False), ("train+val", True)):
        found = plan(recipe, **grid, refit_on=where)
        final = found.recipe(found.runs[-1], {"optim.lr": 1.0})
        assert (final.data.include_val, final.eval.select) == (included, "last")


def test_each_seed_draws_its_own_shots_where_that_is_asked(recipe: Path) -> None:
    for asked in (True, False):
        found = plan(recipe, seeds=[0, 3], draw_shots=asked)
        drawn = {run.seed: found.recipe(run).data.shot_seed for run in found.runs}
        assert drawn == {0: 0, 3: 3 if asked else 0}


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (UnknownName, {"ablate": ["gits"]}, "'gits' cannot be left out.*Did you mean 'gist'"),
        (UnknownName, {"grid": ["optim.lr=1"], "refit": True, "refit_on": "tran"}, "mean 'train"),
        (Refused, {"refit_on": "train"}, "without --refit"),
        (Refused, {"ablate": [], "grid": ["gist.alpha=1,2"]}, "no recipe.*--ablate gist"),
        (RecipeError, {"grid": ["gist.alpa=1"]}, "gist.alpa: unknown key.*'alpha'"),
        (RecipeError, {"grid": ["gist.alpha=-1"]}, "gist.alpha"),
        (RecipeError, {"grid": ["optim.lr+gist.alpha=1,2"]}, "go together with one another"),
        (RecipeError, {"sets": ["gist.source=prompts"]}, "lora has no prompts"),
    ],
)
def test_what_does_not_go_is_one_message(
    recipe: Path, kind: type[GistError], given: dict[str, Any], words: str
) -> None:
    with pytest.raises(kind) as caught:
        plan(recipe, **given)
    assert caught.value.exit_code == 2
    found = f"{caught.value.message} {caught.value.hint}".replace("\n", " ")
    assert re.search(words, found), found


def test_both_arms_train_and_compare_shows_the_pair(tmp_path: Path) -> None:
    recipe = sweeping.write(tmp_path)
    found = run.sweep(
        SweepRequest([recipe], methods=["lora", "linear"], seeds=[0, 1], ablate=["gist"]),
        output=tmp_path / "sweep",
    )
    assert (found["done"], found["failed"]) == (8, [])
    value = run.compare([tmp_path / "sweep"])
    assert [row["name"] for row in value["rows"]][1].endswith(" + gist")
    pairs = value["ablations"]["gist"]["pairs"]
    assert [(one["row"], one["reference"]) for one in pairs] == [
        (value["rows"][i + 1]["name"], value["rows"][i]["name"]) for i in (0, 2)
    ]


def test_the_command_takes_the_flags_and_shows_both_arms(recipe: Path) -> None:
    rows = call(
        "gist sweep --methods lora,linear --ablate gist --seeds 0-2 --draw-shots "
        "--grid gist.lambda=0.25,0.75 --refit --refit-on train --dry-run",
        recipe,
    )["plan"]
    assert [(row["method"], row["candidates"]) for row in rows] == [
        *(("lora", 1), ("lora+gist", 2), ("linear", 1), ("linear+gist", 2)),
    ]
