"""What a grid may say, and the configurations that follow from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from gistcli.errors import NotFound, RecipeError
from gistcli.recipe import Recipe
from gistcli.recipe.grid import Axis, Factor, Range, parse_axis, parse_grid
from gistcli.recipe.loading import task_names
from gistcli.recipe.points import points, with_method, with_values

METHODS = ("gift", "linear", "lora")


def make(method: str = "gift", **optim: Any) -> Recipe:
    """A recipe whose optim section has no nulls, as `resolved` leaves it."""
    rates = {"lr": 3e-3, "head_lr": 1e-2, "weight_decay": 0.0, "clip_norm": 1.0, **optim}
    return Recipe.model_validate(
        {"model": {"name": "m"}, "data": {"path": "p"}, "method": {"name": method}, "optim": rates}
    )


def problems(*texts: str, methods: tuple[str, ...] = METHODS, random: bool = False) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_grid(texts, methods, random=random)
    assert caught.value.exit_code == 2
    return caught.value.message


def test_values_are_yaml_with_factors_and_ranges() -> None:
    axis = parse_axis("optim.lr=1e-3, x0.3,1e-4..1e-2")
    assert axis == Axis("optim.lr", (1e-3, Factor(0.3), Range(1e-4, 1e-2)))
    lists = parse_axis("gift,lora:method.targets=[query],[query, value]")
    assert lists.values == (["query"], ["query", "value"])
    assert lists.methods == ("gift", "lora")
    assert parse_axis("method.bias=true,null,no").values == (True, None, "no")
    assert parse_axis("model.img_size=224,[224, 448]").values == (224, [224, 448])
    own = parse_axis("own.py:Own:method.rank=2")
    assert own.methods == (f"{Path('own.py').absolute()}:Own",)


def test_an_axis_as_plain_values_is_the_same_for_the_same_meaning() -> None:
    one, other = "lora,gift:optim.lr=0.001,x2", "gift,lora:optim.lr=1e-3,x2.0"
    assert parse_axis(one).as_dict() == parse_axis(other).as_dict()
    assert parse_axis(one).as_dict()["values"] == [1e-3, "x2"]
    assert parse_axis("a.b=1..8").as_dict()["values"] == ["1..8"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim.lr", r"expected \[METHOD,...:\]section.key\[\+section.key\]=VALUE"),
        ("=3", "expected"),
        ("optim..lr=3", "expected"),
        ("optim.lr=", "no values"),
        ("optim.lr=1e-3,0.001", "0.001 stands there twice"),
        ("optim.lr=1e-2..1e-4", "is no range"),
        ("optim.lr=0..1", "is no range"),
        ("optim.lr=a..b", "is no range"),
        ("optim.lr=[1,", "grid optim.lr"),
    ],
)
def test_another_form_is_refused(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse_axis(text)


def test_all_that_is_wrong_with_a_grid_is_one_message() -> None:
    message = problems("optim.lrr=1", "method.rnk=2", "optim.lr", "seed=1,2")
    assert message.startswith("--grid: 4 problems:")
    assert "optim.lrr: unknown key. Did you mean 'lr'" in message
    assert "method.rnk: no option of gift, linear, lora. Did you mean 'rank'?" in message
    assert "optim.lr: expected" in message
    assert "seed: --seeds and --search-seeds say it" in message


def test_a_key_that_some_methods_lack_is_named_with_them_and_can_be_limited() -> None:
    message = problems("method.rank=4,16")
    assert "no option of linear; limit it to those that have it: --grid gift,lora:" in message
    (axis,) = parse_grid(["gift,lora:method.rank=4,16"], METHODS)
    assert points([axis], make("lora")) == [{"method.rank": 4}, {"method.rank": 16}]
    assert points([axis], make("linear")) == [{}]
    assert "no option of lora" in problems("lora:method.share=all")


def test_a_limit_to_a_method_of_no_use_is_refused() -> None:
    assert "'lorra' is not among the methods of this sweep. Did you mean 'lora'?" in problems(
        "lorra:method.rank=2"
    )
    assert "'vpt' is not among" in problems("vpt:method.tokens=2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task.name=a", "--tasks says it"),
        ("method.name=gift", "--methods says it"),
        ("eval.test=true", "a search never reads test"),
        ("data.include_val=true", "a search never reads test"),
        ("data.val_fraction=0.2", "on the same examples"),
        ("eval.metric=loss", "by the same figure"),
        ("train.patience=2", "no validation data left"),
        ("train.device=cpu", "does not change what a run finds"),
        ("output.dir=x", "does not change what a run finds"),
        ("lr=1", "Did you mean optim.lr?"),
        ("rank=1", "Did you mean method.rank?"),
        ("optimm.lr=1", "Did you mean optim.lr?"),
        ("optimm.speed=1", "Did you mean 'optim'"),
        ("optim.lr=1e-4..1e-2", "needs --random N"),
    ],
)
def test_keys_that_no_grid_may_hold(text: str, words: str) -> None:
    assert words in problems(text)


def test_a_key_stands_once_for_each_method() -> None:
    assert "given twice for lora" in problems("optim.lr=1", "lora:optim.lr=2")
    assert len(parse_grid(["gift:optim.lr=1", "lora:optim.lr=2"], METHODS)) == 2


def test_nested_keys_exist() -> None:
    assert parse_grid(["data.preprocess.crop_pct=0.875,1"], METHODS)
    assert "Did you mean 'crop_pct'" in problems("data.preprocess.crop_pt=1")


def test_a_grid_is_the_product_in_the_order_it_was_given() -> None:
    axes = parse_grid(["optim.lr=1e-3,x1,x0.3", "gift:method.rank=x0.5,x2"], METHODS)
    found = points(axes, make())
    assert [(p["optim.lr"], p["method.rank"]) for p in found] == [
        (1e-3, 8), (1e-3, 32), (3e-3, 8), (3e-3, 32), (9e-4, 8), (9e-4, 32),
    ]  # fmt: skip
    assert isinstance(found[0]["method.rank"], int)


def test_keys_that_are_joined_go_together() -> None:
    axes = parse_grid(["optim.lr + optim.head_lr=x1,x3", "linear:optim.weight_decay=0.0"], METHODS)
    assert points(axes, make()) == [
        {"optim.lr": 3e-3, "optim.head_lr": 1e-2},
        {"optim.lr": 9e-3, "optim.head_lr": 3e-2},
    ]
    drawn = points(
        parse_grid(["optim.lr+optim.head_lr=1e-4..1e-2"], METHODS, random=True), make(), 5
    )
    assert len(drawn) == 5
    assert all(point["optim.lr"] == point["optim.head_lr"] for point in drawn)


def test_each_of_joined_keys_has_to_be_one() -> None:
    found = problems("optim.lr+optim.head=1e-3", "method.rank+optim.lr=4", "optim.lr+optim.lr=1")
    assert "optim.lr+optim.head: optim.head: unknown key. Did you mean 'head_lr'?" in found
    assert "method.rank+optim.lr: method.rank: no option of linear" in found
    assert "method.rank+optim.lr: optim.lr: given twice for gift, linear, lora" in found
    assert "optim.lr+optim.lr: optim.lr: given twice" in found
    assert "expected [METHOD,...:]section.key[+section.key]" in problems("optim.lr+=1e-3")


def test_equal_configurations_are_one() -> None:
    assert points([parse_axis("optim.lr=3e-3,x1,1e-3")], make()) == [
        {"optim.lr": 3e-3}, {"optim.lr": 1e-3},
    ]  # fmt: skip


def test_a_factor_of_no_number_is_refused() -> None:
    with pytest.raises(RecipeError, match="x2 multiplies a number, but with gift it is none"):
        points([parse_axis("optim.schedule=x2")], make().model_copy(
            update={"optim": make().optim.model_copy(update={"schedule": "none"})}
        ))  # fmt: skip
    with pytest.raises(RecipeError, match="with gift it is null"):
        points([parse_axis("train.max_steps=x2")], make())


def test_draws_lie_in_their_range_evenly_in_the_logarithm() -> None:
    axes = [parse_axis("optim.lr=1e-4..1e-2"), parse_axis("method.rank=2..64")]
    drawn = points(axes, make(), 400)
    rates = [p["optim.lr"] for p in drawn]
    assert all(1e-4 <= r <= 1e-2 for r in rates)
    logs = sorted(math.log10(r) for r in rates)
    # the median of 400 uniform figures on [-4, -2] lies within 0.2 of -3 (four deviations)
    assert abs(logs[200] + 3) < 0.2
    ranks = {p["method.rank"] for p in drawn}
    assert all(isinstance(r, int) and 2 <= r <= 64 for r in ranks)
    assert min(ranks) < 4 < 32 < max(ranks)


def test_draws_are_the_same_for_every_method_and_a_longer_list_begins_alike() -> None:
    axes = [parse_axis("optim.lr=1e-4..1e-2"), parse_axis("train.epochs=5,10,20")]
    gift = points(axes, make("gift"), 6)
    assert gift == points(axes, make("lora"), 6)
    assert gift == points(axes, make("gift"), 12)[:6]
    assert len({p["optim.lr"] for p in gift}) == 6


def test_drawing_from_a_list_repeats_nothing_and_ends_where_there_is_no_more() -> None:
    axes = [parse_axis("train.epochs=1,2,3,4"), parse_axis("optim.lr=x1,x2")]
    drawn = points(axes, make(), 5)
    assert len({str(p) for p in drawn}) == len(drawn) == 5
    assert len(points(axes, make(), 100)) == 8
    assert len(points([parse_axis("train.epochs=1..3")], make(), 9)) == 3


def test_a_range_of_fractions_for_a_whole_number_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"0.5..3.5 has fractions, but with gift it is a whole"):
        points([parse_axis("method.rank=0.5..3.5")], make(), 2)
    assert all(
        isinstance(p["optim.lr"], float) for p in points([parse_axis("optim.lr=1..9")], make(), 3)
    )


def test_another_method_leaves_the_options_of_the_first_behind_and_keeps_what_optim_says() -> None:
    recipe = Recipe.model_validate(
        {"model": {"name": "m"}, "data": {"path": "p"}, "method": {"name": "gift", "rank": 3},
         "optim": {"lr": 0.5}, "published": {"value": 0.9, "metric": "test/accuracy"}}
    )  # fmt: skip
    other = with_method(recipe, "lora")
    assert other.method["rank"] != 3
    assert (other.optim.lr, other.optim.head_lr) == (0.5, None)
    assert other.published is None
    assert with_method(recipe, "gift") is recipe


def test_a_method_that_the_rest_of_a_recipe_excludes_is_refused() -> None:
    prompts = with_values(make("vpt"), {"gist": {"source": "prompts"}}, "--set")
    with pytest.raises(RecipeError, match=r"(?s)--methods lora: 1 problem.*has no prompts"):
        with_method(prompts, "lora")


def test_values_are_validated_like_any_others() -> None:
    recipe = make()
    changed = with_values(recipe, {"method.rank": 2, "seed": 7, "eval.test": False}, "--grid")
    assert (changed.method["rank"], changed.seed, changed.eval.test) == (2, 7, False)
    assert recipe.method["rank"] == 16
    with pytest.raises(RecipeError) as caught:
        with_values(recipe, {"method.rank": 0, "optim.lr": "fast"}, "--grid")
    assert caught.value.message.startswith("--grid with gift: 2 problems:")
    assert "found 'fast', expected a number" in caught.value.message


def test_the_tasks_of_a_family_are_those_of_the_files_that_it_extends_too(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("tasks: {cats: {}, 7: {}}\n")
    (tmp_path / "more.yaml").write_text("extends: base.yaml\ntasks: {dogs: , cats: {seed: 1}}\n")
    (tmp_path / "one.yaml").write_text("seed: 1\n")
    assert task_names(tmp_path / "more.yaml") == ["cats", "7", "dogs"]
    assert task_names(tmp_path / "one.yaml") == []
    with pytest.raises(NotFound, match="does not exist"):
        task_names(tmp_path / "mor.yaml")
