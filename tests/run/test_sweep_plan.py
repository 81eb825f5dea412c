"""From a request to its runs: names, order, recipes, and everything that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gistcli import registry
from gistcli.errors import GistError, NotFound, RecipeError, Refused, UnknownName
from gistcli.methods.lora import Lora
from gistcli.recipe import Override
from gistcli.run.sweep_plan import SweepPlan, plan_sweep
from gistcli.run.sweep_request import SweepRequest
from tests.run.text_models import save_model

FAMILY = """\
model: {name: gist_vit_nano}
method: {name: gift, rank: 4}
optim: {weight_decay: 0.5}
data: {include_val: true}
train: {patience: 3}
eval: {select: best, best_test: true}
published: {value: 0.9, metric: test/accuracy}
tasks:
  cats: {data: {path: digits}, task: {group: natural}}
  dogs: {data: {path: digits}, method: {rank: 6}}
"""


@pytest.fixture
def family(tmp_path: Path) -> Path:
    path = tmp_path / "family.yaml"
    path.write_text(FAMILY)
    return path


def plan(*recipes: Path, **given: Any) -> SweepPlan:
    return plan_sweep(SweepRequest(recipes, **given))


def ids(found: SweepPlan) -> list[str]:
    return [run.id for run in found.runs]


def refused(kind: type[GistError], *recipes: Path, **given: Any) -> str:
    with pytest.raises(kind) as caught:
        plan(*recipes, **given)
    assert caught.value.exit_code == 2
    return f"{caught.value.message} {caught.value.hint}"


def test_runs_follow_recipe_task_method_and_seed(family: Path) -> None:
    assert ids(plan(family, methods=["linear", "gift"], seeds=[1, 0])) == [
        "cats.linear.s1", "cats.linear.s0", "cats.gift.s1", "cats.gift.s0",
        "dogs.linear.s1", "dogs.linear.s0", "dogs.gift.s1", "dogs.gift.s0",
    ]  # fmt: skip
    assert ids(plan(family, tasks=["dogs"])) == ["dogs.gift.s0"]
    assert ids(plan(family, tasks=["all"], sets=["seed=7"])) == ["cats.gift.s7", "dogs.gift.s7"]


def test_all_methods_are_those_that_work_on_what_the_model_reads(
    family: Path, tmp_path: Path
) -> None:
    found = {run.method for run in plan(family, tasks=["cats"], methods=["all"]).runs}
    assert set(registry.names("methods")) - found == {"prompt", "prefix"}
    save_model(tmp_path / "llama", "Llama", "causal_lm")
    text = tmp_path / "text.yaml"
    text.write_text(f"model: {{name: {tmp_path / 'llama'}}}\ndata: {{path: texts.jsonl}}\n")
    found = {run.method for run in plan(text, methods=["all"]).runs}
    assert found >= {"gift", "lora", "prompt", "prefix"}
    assert not found & {"vpt", "convpass"}


def test_candidates_come_before_the_final_runs_of_their_task_and_method(family: Path) -> None:
    found = plan(family, tasks=["cats"], grid=["optim.lr=1e-3,2e-3"], folds=2,
                 search_seeds=[5, 6], seeds=[0, 1])  # fmt: skip
    kinds = [(run.role, run.point.get("optim.lr"), run.seed, run.fold) for run in found.runs]
    assert kinds == [
        *(("candidate", lr, seed, fold) for lr in (1e-3, 2e-3) for seed in (5, 6)
          for fold in (0, 1)),
        ("final", None, 0, None), ("final", None, 1, None),
    ]  # fmt: skip
    assert len(set(ids(found))) == 10
    assert found.runs[0].id.startswith("cats.gift.c")
    assert found.runs[0].id.endswith(".s5.f0")
    assert plan(family, grid=["optim.lr=1"], seeds=[3, 4]).runs[0].seed == 3


def test_names_of_runs_depend_on_values_and_not_on_their_place_in_the_grid(family: Path) -> None:
    one = ids(plan(family, grid=["optim.lr=1e-3,2e-3"]))
    other = ids(plan(family, grid=["optim.lr=2e-3,4e-3"]))
    assert one[1] == other[0]
    assert one[0] not in other


def test_another_method_leaves_options_and_published_figures_behind(family: Path) -> None:
    found = plan(family, tasks=["dogs"], methods=["gift", "lora"])
    gift, lora = (found.recipe(run) for run in found.runs)
    assert (gift.method["rank"], gift.optim.weight_decay) == (6, 0.5)
    assert gift.published is not None
    assert "share" not in lora.method
    assert (lora.method["rank"], lora.optim.weight_decay) == (Lora().rank, 0.5)
    assert lora.published is None


def test_a_final_run_without_a_grid_is_the_recipe_and_reads_test(family: Path) -> None:
    found = plan(family, tasks=["cats"], seeds=[4])
    recipe = found.recipe(found.runs[0])
    assert (recipe.seed, recipe.eval.test, recipe.eval.select) == (4, True, "best")
    assert (recipe.data.include_val, recipe.train.patience) == (True, 3)
    assert (recipe.task.name, recipe.task.group) == ("cats", "natural")


def test_a_candidate_never_reads_test_and_validates_on_what_the_recipe_would_train_on(
    family: Path,
) -> None:
    found = plan(family, tasks=["cats"], grid=["optim.lr=1e-3"], folds=3)
    recipe = found.recipe(found.runs[2])
    assert (recipe.eval.test, recipe.eval.best_test) == (False, False)
    assert (recipe.data.include_val, recipe.data.folds, recipe.data.fold) == (False, 3, 2)
    assert (recipe.eval.select, recipe.train.patience) == ("best", 3)


def test_a_refit_trains_on_everything_to_the_last_step_with_the_chosen_values(
    family: Path,
) -> None:
    found = plan(family, tasks=["cats"], grid=["optim.lr=1e-3,5"], folds=3, refit=True)
    recipe = found.recipe(found.runs[-1], {"optim.lr": 5})
    assert (recipe.optim.lr, recipe.data.include_val, recipe.data.folds) == (5.0, True, None)
    assert (recipe.eval.test, recipe.eval.best_test, recipe.eval.select) == (True, False, "last")
    assert recipe.train.patience is None


def test_factors_multiply_the_recipe_or_what_the_method_recommends(family: Path) -> None:
    grid = ["optim.lr=x2", "optim.weight_decay=x2", "gift:method.rank=x0.5"]
    found = plan(family, tasks=["dogs"], methods=["gift", "lora"], grid=grid)
    gift, lora = found.cells
    rates = {m: registry.resolve("methods", m).recommended["vision"].lr for m in ("gift", "lora")}
    assert gift.points == [
        {"optim.lr": 2 * rates["gift"], "optim.weight_decay": 1.0, "method.rank": 3}
    ]
    assert lora.points == [{"optim.lr": 2 * rates["lora"], "optim.weight_decay": 1.0}]


def test_draws_are_as_many_for_every_method_and_the_same(family: Path) -> None:
    found = plan(family, methods=["gift", "lora", "vpt"], grid=["optim.lr=1e-4..1e-2"], random=5)
    assert {len(cell.points) for cell in found.cells} == {5}
    assert len({str(cell.points) for cell in found.cells}) == 1


def test_flags_reach_every_recipe_and_options_every_method(family: Path, tmp_path: Path) -> None:
    flags = [Override("train.epochs", 3, "--epochs")]
    found = plan(family, methods=["gift", "lora"], overrides=flags,
                 sets=["method.rank=2", "optim.lr=0.25"])  # fmt: skip
    recipes = [found.recipe(run) for run in found.runs]
    assert {(r.train.epochs, r.method["rank"], r.optim.lr) for r in recipes} == {(3, 2, 0.25)}
    with pytest.raises(RecipeError, match=r"--set with linear: 1 problem:\n.*no option of linear"):
        plan(family, methods=["gift", "linear"], sets=["method.rank=2"])


def test_several_recipes_stand_in_front_of_their_runs(family: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for place in (tmp_path / "one.yaml", tmp_path / "b" / "one.yaml"):
        place.write_text("model: {name: gist_vit_nano}\ndata: {path: digits}\n")
    found = plan(family, tmp_path / "one.yaml", tasks=[])
    assert ids(found) == ["family.cats.gift.s0", "family.dogs.gift.s0", "one.gift.s0"]
    alike = ids(plan(tmp_path / "one.yaml", tmp_path / "b" / "one.yaml"))
    assert len(set(alike)) == 2
    assert alike[1].endswith("-b-one-yaml.gift.s0")


def test_a_method_from_a_file_is_found_from_here_and_called_by_its_class(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(
        "from gistcli.methods.linear import Linear\nclass Own(Linear):\n    strength: int = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    found = plan(family, tasks=["cats"], methods=["own.py:Own", "gift"],
                 grid=["own.py:Own:method.strength=1,2"])  # fmt: skip
    assert [run.id.split(".c")[0] for run in found.runs[:2]] == ["cats.Own", "cats.Own"]
    assert found.runs[0].method == f"{tmp_path / 'own.py'}:Own"
    assert found.cells[1].points == [{}]


def test_all_unknown_names_are_one_message_with_guesses(family: Path) -> None:
    text = refused(UnknownName, family, methods=["gitf", "lora", "no.py:X"], tasks=["cat", "dogs"])
    assert text.startswith("3 problems with the names:")
    assert "--methods: 'gitf' is not among the methods. Did you mean 'gift'" in text
    assert "no.py does not exist" in text
    assert "--tasks: 'cat' is not among the tasks. Did you mean 'cats'?" in text
    assert text.endswith("Tasks: cats, dogs.")


def test_tasks_of_recipes_that_have_none_are_refused(family: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.yaml"
    one.write_text("model: {name: gist_vit_nano}\ndata: {path: digits}\n")
    assert "No recipe here has tasks." in refused(UnknownName, one, tasks=["cats"])
    text = refused(UnknownName, family, one, tasks=["cats"])
    assert f"{one} has none of these tasks" in text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"refit": True}, "--refit without --grid"),
        ({"random": 3, "folds": 2}, "--random, --folds without --grid"),
        ({"search_seeds": [1]}, "--search-seeds without --grid"),
        ({"sets": ["method.name=lora"]}, "Use --methods."),
        ({"sets": ["task.name=cats"]}, "Use --tasks."),
        ({"sets": ["eval.test=false"]}, "--set eval.test cannot be used in a sweep"),
        ({"seeds": [1, 1]}, "Several runs would be called cats.gift.s1"),
    ],
)
def test_flags_that_do_not_go_together(family: Path, given: dict[str, Any], words: str) -> None:
    assert words in refused(Refused, family, **given)


def test_a_recipe_given_twice_or_absent_is_refused(family: Path) -> None:
    assert "given twice" in refused(Refused, family, family)
    assert "does not exist" in refused(NotFound, family.with_name("famly.yaml"))


def test_a_value_that_its_key_does_not_take_is_refused_before_any_run(family: Path) -> None:
    text = refused(RecipeError, family, methods=["gift", "lora"], grid=["gift:method.rank=4,0"])
    assert "--grid with gift: 1 problem:" in text
    assert "method.rank: found 0, expected at least 1" in text
