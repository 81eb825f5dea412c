"""How file, extended files, tasks and flags become one recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gistcli.errors import NotFound, RecipeError
from gistcli.methods.gift import Gift
from gistcli.recipe import Override, Recipe, load_recipe, parse_set

BASE = "model: {name: gist_vit_nano}\ndata: {path: digits}\n"
MINIMAL = (
    Override("model.name", "gist_vit_nano", "--model"),
    Override("data.path", "digits", "--data"),
)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(text: str, name: str = "r.yaml", base: str = BASE) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(base + text, encoding="utf-8")
        return path

    return _write


def problems(path: Path | None = None, **given: object) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, **given)  # type: ignore[arg-type]
    return caught.value.message


def test_model_and_data_are_enough() -> None:
    recipe = load_recipe(overrides=MINIMAL)
    assert set(recipe.method) == {"name", *Gift.model_fields}
    published = {"name": "gift", "rank": 16, "targets": ["attn_out"], "layers": "all",
                 "share": "role", "dropout": 0.0, "scaling": 1.0, "block": "none"}  # fmt: skip
    assert {key: recipe.method[key] for key in published} == published
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.seed) == (20, 32, 0)


def test_without_anything_both_are_named_with_their_flags() -> None:
    message = problems()
    assert message.startswith("command line: 2 problems:")
    assert "model.name: missing" in message
    assert "--data" in message


def test_flags_win_over_the_file_and_set_over_flags(write: Write) -> None:
    path = write("optim: {lr: 1e-3, head_lr: 1e-4}\ntrain: {epochs: 3}\n")
    recipe = load_recipe(
        path, overrides=[Override("optim.lr", 0.5, "--lr")], sets=["optim.lr=2e-2", "seed=7"]
    )
    assert (recipe.optim.lr, recipe.optim.head_lr) == (2e-2, 1e-4)
    assert (recipe.train.epochs, recipe.seed) == (3, 7)


def test_every_value_knows_who_gave_it(write: Write) -> None:
    path = write("optim: {lr: 1e-3}\nmethod: {rank: 4}\n")
    recipe = load_recipe(path, overrides=[Override("seed", 3, "--seed")], sets=["train.keep=2"])
    assert recipe.origin("optim.lr") == f"{path}:3"
    assert recipe.origin("method.rank") == f"{path}:4"
    assert recipe.origin("seed") == "--seed"
    assert recipe.origin("train.keep") == "--set train.keep"
    assert recipe.origin("optim.head_lr") == "default"
    assert recipe.origin("method.share") == "gift default"
    defaulted = recipe.defaulted()
    assert defaulted["train.epochs"] == (20, "default")
    assert not {"optim.lr", "seed", "model.name", "method.rank"} & set(defaulted)


def test_another_method_leaves_the_options_of_the_first_behind(write: Write) -> None:
    path = write("method: {name: gift, rank: 4, share: none}\n")
    recipe = load_recipe(path, overrides=[Override("method.name", "linear", "--method")])
    assert recipe.method == {"name": "linear"}
    assert recipe.origin("method.name") == "--method"
    kept = load_recipe(path, overrides=[Override("method.name", "gift", "--method")])
    assert (kept.method["rank"], kept.method["share"]) == (4, "none")


def test_a_method_given_last_still_comes_before_its_options() -> None:
    recipe = load_recipe(overrides=MINIMAL, sets=["method.rank=2", "method.name=gift"])
    assert recipe.method["rank"] == 2


def test_extends_is_a_chain_relative_to_each_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "deep" / "images").mkdir(parents=True)
    write("train: {epochs: 5, keep: 4}\ndata: {path: images}\n", "deep/a.yaml",
          "model: {name: gist_vit_nano}\n")  # fmt: skip
    write("extends: deep/a.yaml\ntrain: {epochs: 6}\n", "b.yaml", "")
    path = write("extends: ../b.yaml\nseed: 3\n", "sub/c.yaml", "")
    recipe = load_recipe(path)
    assert (recipe.train.epochs, recipe.train.keep, recipe.seed) == (6, 4, 3)
    assert recipe.data.path == str(tmp_path / "deep" / "images")
    assert recipe.origin("train.keep") == f"{tmp_path / 'deep' / 'a.yaml'}:2"


def test_a_circle_of_extends_is_refused(write: Write) -> None:
    write("extends: b.yaml\n", "a.yaml")
    path = write("extends: a.yaml\n", "b.yaml")
    assert "b.yaml -> a.yaml -> b.yaml" in problems(path)


def test_a_missing_base_names_the_file_that_is_nearest(write: Write) -> None:
    write("", "quickstart.yaml")
    path = write("extends: quikstart.yaml\n", "a.yaml")
    with pytest.raises(NotFound) as caught:
        load_recipe(path)
    assert "quikstart.yaml does not exist" in caught.value.message
    assert "'quickstart.yaml'" in caught.value.hint


def test_a_run_directory_in_place_of_a_recipe_is_pointed_at_its_own(write: Write) -> None:
    run = write("", "run/recipe.yaml").parent
    with pytest.raises(NotFound, match="is a run directory"):
        load_recipe(run)


def test_a_task_of_a_family_file_overrides_it(write: Write, tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    path = write(
        "model: {name: gist_vit_nano}\ntrain: {epochs: 9}\n"
        "tasks:\n  cats: {data: {path: cats}, train: {epochs: 2}}\n"
        "  dogs: {data: {path: digits}}\n",
        base="",
    )
    recipe = load_recipe(path, overrides=[Override("task.name", "cats", "--task")])
    assert recipe.data.path == str(tmp_path / "cats")
    assert (recipe.train.epochs, recipe.task.name) == (2, "cats")
    assert recipe.origin("train.epochs") == f"{path}:4"
    message = problems(path)
    assert "choose a task with --task" in message
    assert "cats, dogs" in message
    assert "data.path" not in message
    misspelt = problems(path, overrides=[Override("task.name", "catz", "--task")])
    assert "Did you mean 'cats'" in misspelt


FAMILY = """\
method: {name: lora, rank: 4}
published: {metric: test/accuracy, source: a paper}
tasks:
  cats: {published: {value: 0.9}, method: {rank: 8}, optim: {lr: 1e-3}}
  dogs: {published: {value: 0.8, metric: test/accuracy}, method: {name: linear}}
"""


def test_published_figures_and_options_of_a_family_end_with_its_method(write: Write) -> None:
    path = write(FAMILY, "family.yaml")
    cats, other = (
        Override("task.name", "cats", "--task"),
        Override("method.name", "bitfit", "--method"),
    )
    recipe = load_recipe(path, overrides=[cats])
    assert recipe.published is not None
    assert (recipe.published.value, recipe.published.source) == (0.9, "a paper")
    assert recipe.method["rank"] == 8
    flagged = load_recipe(path, overrides=[cats, other])
    assert (flagged.published, flagged.method["name"]) == (None, "bitfit")
    assert flagged.optim.lr == 1e-3
    same = [Override("method.name", "lora", "--method"), Override("method.rank", 2, "--rank")]
    kept = load_recipe(path, overrides=[cats, *same])
    assert (kept.method["rank"], kept.published) == (2, recipe.published)


def test_a_family_extended_by_another_method_keeps_what_it_says_of_that(write: Write) -> None:
    write(FAMILY, "family.yaml")
    text = "extends: family.yaml\nmethod: {name: bitfit}\n"
    published = "published: {metric: test/accuracy, value: 0.7}"
    path = write(f"{text}tasks: {{cats: {{{published}}}}}\n", base="")
    cats, dogs = (load_recipe(path, sets=[f"task.name={n}"]) for n in ("cats", "dogs"))
    assert cats.method == {"name": "bitfit", "linear_only": False}
    assert cats.published is not None
    assert (cats.published.value, cats.published.source) == (0.7, None)
    assert dogs.published is not None
    assert (dogs.published.value, dogs.method["name"]) == (0.8, "linear")


def test_a_task_without_a_family_is_refused() -> None:
    message = problems(overrides=[*MINIMAL, Override("task.name", "cats", "--task")])
    assert "has no `tasks`" in message


def test_paths_are_relative_to_the_file_and_names_stay_names(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("sub/weights", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = write(
        "model: {name: weights}\ndata: {path: ../pictures}\noutput: {dir: out}\n", "sub/r.yaml", ""
    )
    recipe = load_recipe(path)
    assert recipe.model.name == str(tmp_path / "sub" / "weights")
    assert recipe.data.path == str(tmp_path / "pictures")
    assert recipe.output.dir == str(tmp_path / "sub" / "out")
    named = load_recipe(path, overrides=[Override("model.name", "weights", "--model")])
    assert named.model.name == "weights"


def test_a_start_from_a_file_is_a_path_and_a_word_is_none(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "words").mkdir()
    monkeypatch.chdir(tmp_path)
    for init, found in (("words", "words"), ("p.safetensors", tmp_path / "sub" / "p.safetensors")):
        path = write(
            f"model: {{name: m}}\ndata: {{path: d}}\nmethod: {{name: prefix, init: {init}}}\n",
            "sub/r.yaml",
            "",
        )
        assert load_recipe(path).method["init"] == str(found)


def test_tilde_and_variables_expand(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICTURES", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write("data: {path: '${PICTURES}/a'}\noutput: {dir: ~/b}\n", base="model: {name: x}\n")
    recipe = load_recipe(path)
    assert recipe.data.path == str(tmp_path / "a")
    assert recipe.output.dir == str(tmp_path / "b")


def test_an_undefined_variable_is_one_of_the_problems(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_PLACE", raising=False)
    path = write("model: {name: '${NO_SUCH_PLACE}/m'}\ndata: {path: digits, shots: 0}\n", base="")
    message = problems(path)
    assert "model.name (line 1): the variable ${NO_SUCH_PLACE} is not set" in message
    assert "data.shots (line 2): found 0, expected at least 1" in message


def test_an_emptied_section_means_its_defaults(write: Write) -> None:
    assert load_recipe(write("train:\n#  epochs: 3\noptim:\n")).train.epochs == 20


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n", "3\n"])
def test_a_file_that_is_no_mapping_is_refused(write: Write, text: str) -> None:
    with pytest.raises(RecipeError, match="expected a mapping"):
        load_recipe(write(text, base=""))


@pytest.mark.parametrize("text", ["foo", "=3", "a..b=1", ".x=2"])
def test_a_set_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"expected section\.key=value"):
        parse_set(text)


def test_set_reads_values_as_the_file_does() -> None:
    assert parse_set("optim.lr=1e-3") == Override("optim.lr", 1e-3, "--set optim.lr")
    assert parse_set("a.b=on").value == "on"
    assert parse_set("a.b=[1, x=y]").value == [1, "x=y"]
    assert parse_set("a.b=").value is None


def test_a_set_that_is_no_yaml_is_one_of_the_problems() -> None:
    message = problems(overrides=MINIMAL, sets=["train.keep=[1,", "train.epochs=0"])
    assert message.startswith("command line: 2 problems:")
    assert "--set train.keep" in message
    assert "train.epochs (--set train.epochs): found 0" in message


def test_a_method_from_a_file_is_found_from_the_recipe(write: Write, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from gistcli.methods.linear import Linear\nclass Own(Linear):\n    strength: int = 3\n"
    )
    recipe = load_recipe(write("method: {name: 'own.py:Own', strength: 5}\n"))
    assert recipe.method == {"name": f"{own}:Own", "strength": 5}
    assert recipe.build_method().strength == 5


def test_a_recipe_from_a_dictionary_is_validated_alike() -> None:
    plain = {"model": {"name": "m"}, "data": {"path": "p"}, "method": {"name": "gift", "rank": 2}}
    recipe = Recipe.model_validate(plain)
    assert recipe.method["share"] == "role"
    assert recipe.build_method().rank == 2
