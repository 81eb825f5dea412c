"""Every recipe that comes with the package: it loads, builds, and says what was published."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest

from gistcli import run
from gistcli.recipe import load_recipe
from tests.recipes.known import FAMILIES, NAMES, OF_FAMILIES, ROOT, recipes, without_head
from tests.recipes.language import OF_LANGUAGE

PROTOCOLS = ("last", "best_test", "unstated")

# rows without `published`: the papers print means only, or nobody published them
COUNTS = {
    "vtab/gift.yaml": {24_576},
    "vtab/gift-lora.yaml": {147_456},
    "vtab/gift-vpt.yaml": {46_080},
    "vtab/gift-bitfit.yaml": {82_944},
    "vtab/gift-v1.yaml": {757_440},
    "vtab/gift-v1-in1k.yaml": {757_440},
    "vtab/gift-v1-lora4.yaml": {73_728},
    "vtab/gift-v1-lora48.yaml": {884_736},
    "vtab/toast-lora.yaml": {147_456},
    "vtab/toast-vpt.yaml": {921_600},
    "vtab/parallel-adapter.yaml": {82_992},
    "vtab/gist-adapter.yaml": {83_760},
    "vtab/gist-ssf.yaml": {205_824 + 768},
    "vtab/gist-vpt.yaml": {92_160 + 768},
    "vtab/gist-lora.yaml": {294_912 + 768},
    "vtab/gist-gift.yaml": {24_576 + 768},
    "vtab/noah-vpt.yaml": {92_160},
    "vtab/fact-tt.yaml": {8_448, 21_504, 61_440},
    "vtab/fact-tk.yaml": {30_976, 86_528},
    "vtab/vpt-linear.yaml": {0},
    "vtab/strong.yaml": {165_984},
    "vtab/strong-tuned.yaml": {12 * (1_537 * h + 2 * 768) for h in (1, 2, 4, 8, 16, 32)},
    "vtab/strong-vpt.yaml": {9_216 * p for p in (1, 5, 10, 50, 100, 200)},
    "vtab/strong-lora.yaml": {294_912},
    "vtab/strong-full.yaml": {85_798_656},
    "vtab/osu.yaml": {38_400},
    "fgvc/gift-v1.yaml": {2_143_872},
    "fgvc/toast-linear.yaml": {0},
    "fewshot/lora.yaml": {294_912},
    "fewshot/adapter.yaml": {156_768},
    "fewshot/vpt.yaml": {92_160},
    "fewshot/gift.yaml": {24_576},
    "fewshot/ssf.yaml": {205_824},
    "fewshot/gist-lora.yaml": {294_912 + 768},
    "fewshot/gist-adapter.yaml": {156_768 + 768},
    "fewshot/gist-vpt.yaml": {92_160 + 768},
    "fewshot/gist-gift.yaml": {24_576 + 768},
    "fewshot/gist-ssf.yaml": {205_824 + 768},
}
# accuracy in percent: mean of the three groups, mean of the 19 tasks
MEANS = {
    "gift-v1": (74.51, 72.11),
    "gift-v1-in1k": (72.54, 69.69),
    "toast": (73.05, 70.22),
    "ssf": (75.69, 73.10),
    "noah-adapter": (73.86, 71.44),
    "noah-lora": (74.60, 72.25),
    "adaptformer": (74.75, 72.32),
    "fact-tk": (75.55, 73.23),
    "repadapter": (76.09, 73.84),
    "convpass": (76.56, 74.44),
    "vpt-deep": (71.97, 69.43),
    "vpt-shallow": (67.82, 64.85),
    "vpt-bitfit": (65.22, 62.05),
    "vpt-full": (68.97, 65.57),
    "vpt-linear": (57.64, 52.94),
}
AUGREG, ORIG = "vit_base_patch16_224.augreg_in21k", "vit_base_patch16_224.orig_in21k"
DEIT = "deit_base_patch16_224.fb_in1k"
HALF, IMAGENET, NONE = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406), (0.0, 0.0, 0.0)
CHECKPOINTS = {
    "vtab/gift.yaml": (AUGREG, HALF),
    "vtab/gift-v1.yaml": (ORIG, IMAGENET),
    "vtab/gift-v1-in1k.yaml": (DEIT, IMAGENET),
    "vtab/toast.yaml": (ORIG, IMAGENET),
    "vtab/ssf.yaml": (AUGREG, HALF),
    "vtab/gist-adapter.yaml": (AUGREG, HALF),
    "vtab/gist-ssf.yaml": (AUGREG, HALF),
    "vtab/noah-lora.yaml": (ORIG, IMAGENET),
    "vtab/noah-vpt.yaml": (ORIG, HALF),
    "vtab/fact-tk.yaml": (ORIG, IMAGENET),
    "vtab/vpt-deep.yaml": (ORIG, IMAGENET),
    "vtab/strong.yaml": (ORIG, HALF),
    "vtab/osu.yaml": (ORIG, NONE),
    "fgvc/gift.yaml": (AUGREG, HALF),
    "fgvc/toast.yaml": (DEIT, IMAGENET),
    "fgvc/gift-v1.yaml": (DEIT, IMAGENET),
    "fgvc/ssf.yaml": (AUGREG, HALF),
    "fgvc/vpt-deep.yaml": (ORIG, IMAGENET),
    "fewshot/lora.yaml": (ORIG, IMAGENET),
    "fewshot/gist-ssf.yaml": (ORIG, IMAGENET),
}


def percent(name: str) -> dict[str | None, float]:
    """The published figure of each task."""
    published = {task: recipe.published for task, recipe in recipes(name).items()}
    return {task: 100 * figure.value for task, figure in published.items() if figure}


def test_every_folder_holds_the_recipes_that_it_should() -> None:
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and p.name != "images"}
    assert {*FAMILIES, "smoke"} <= folders
    assert all(list((ROOT / folder).rglob("*.yaml")) for folder in folders)
    rows = Counter(name.partition("/")[0] for name in OF_FAMILIES)
    assert rows == {family: number for family, (_, number) in FAMILIES.items()}
    assert not list(ROOT.rglob("*.yml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_loads_with_each_of_its_tasks_and_says_what_it_is(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8").startswith("# ")
    assert recipes(name)


@pytest.mark.parametrize("folder", FAMILIES)
def test_the_tasks_of_a_family_are_those_of_its_source(folder: str) -> None:
    known = FAMILIES[folder][0].tasks
    base = "tasks.yaml" if folder == "vtab" else "sets.yaml"
    found = recipes(f"{folder}/{base}")
    assert list(found) == [task.name for task in known]
    for task in known:
        recipe = found[task.name]
        assert (recipe.data.subset, recipe.data.classes) == (task.name, task.classes)
        assert (recipe.data.source, recipe.task.group) == (folder, task.group)


def test_vtab_has_7_natural_4_specialized_and_8_structured_tasks() -> None:
    groups = [recipe.task.group for recipe in recipes("vtab/tasks.yaml").values()]
    assert groups == ["natural"] * 7 + ["specialized"] * 4 + ["structured"] * 8


@pytest.mark.parametrize("name", OF_FAMILIES)
def test_a_row_has_the_tasks_of_its_family(name: str) -> None:
    source = FAMILIES[name.partition("/")[0]][0]
    assert list(recipes(name)) == [task.name for task in source.tasks]


@pytest.mark.parametrize("name", sorted({*OF_FAMILIES} - {"vtab/tasks.yaml", "fgvc/sets.yaml"}))
def test_no_rate_is_missing_from_a_row(name: str) -> None:
    for task, recipe in recipes(name).items():
        optim = recipe.optim
        rates = (optim.lr, optim.head_lr, optim.weight_decay, optim.clip_norm)
        assert None not in rates, task
        assert optim.clip_norm == 0, task
        if name not in ("fewshot/gift.yaml", "fewshot/gist-gift.yaml"):
            assert optim.lr == optim.head_lr, task
        assert recipe.train.epochs == 100, task


@pytest.mark.parametrize("name", [n for n in NAMES if n not in OF_LANGUAGE])
def test_published_figures_are_complete_and_possible(name: str) -> None:
    figures = [recipe.published for recipe in recipes(name).values()]
    assert all(figures) or not any(figures)
    for figure in filter(None, figures):
        assert 0 < figure.value <= 1
        assert figure.metric == "test/accuracy"
        assert figure.protocol
        assert figure.protocol.startswith(PROTOCOLS)
        assert figure.source


@pytest.mark.parametrize("name", OF_FAMILIES)
def test_a_row_trains_as_many_parameters_as_published(name: str) -> None:
    counts = set()
    for task, recipe in recipes(name).items():
        count = without_head(recipe)
        counts.add(count)
        if recipe.published and recipe.published.parameters:
            assert count == recipe.published.parameters, task
    assert counts == COUNTS.get(name, counts)


def test_counts_that_are_not_in_a_recipe_are_of_recipes_that_there_are() -> None:
    assert set(COUNTS) | set(CHECKPOINTS) <= set(NAMES)
    assert {f"vtab/{row}.yaml" for row in MEANS} <= set(NAMES)


@pytest.mark.parametrize("row", MEANS)
def test_both_means_follow_from_the_figures_of_the_tasks(row: str) -> None:
    name = f"vtab/{row}.yaml"
    figures = percent(name)
    assert len(figures) == 19
    groups: dict[str | None, list[float]] = {}
    for task, value in figures.items():
        groups.setdefault(recipes(name)[task].task.group, []).append(value)
    assert mean(map(mean, groups.values())) == pytest.approx(MEANS[row][0], abs=0.011)
    assert mean(figures.values()) == pytest.approx(MEANS[row][1], abs=0.011)


def test_no_figures_of_vtab_are_left_without_a_known_mean() -> None:
    with_figures = {n for n in OF_FAMILIES if n.startswith("vtab/") and percent(n)}
    assert with_figures == {f"vtab/{row}.yaml" for row in MEANS}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_and_normalisation_are_those_of_the_publication(name: str) -> None:
    model, centre = CHECKPOINTS[name]
    for recipe in recipes(name).values():
        assert recipe.data.preprocess.mean
        assert (recipe.model.name, tuple(recipe.data.preprocess.mean)) == (model, centre)


@pytest.mark.parametrize("name", OF_FAMILIES)
def test_pictures_are_cut_as_the_family_does(name: str) -> None:
    family = name.partition("/")[0]
    augment = {"vtab": "none", "fgvc": "flip-crop", "fewshot": "randaugment"}[family]
    for recipe in recipes(name).values():
        preprocess = recipe.data.preprocess
        assert recipe.data.augment == augment
        assert recipe.data.include_val is (family == "vtab")
        if family == "fgvc":
            assert preprocess.crop_mode == "center"
        else:
            crop_pct = {"vtab": 1.0, "fewshot": 0.875}[family]
            assert (preprocess.crop_mode, preprocess.crop_pct) == ("squash", crop_pct)


# --- what the README of a family says ---------------------------------------------------------


def _rows(folder: str) -> dict[str, list[str]]:
    """The cells behind the name of each recipe in the tables of a family's README."""
    lines = (ROOT / folder / "README.md").read_text(encoding="utf-8").splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return {m[1]: c[1:] for c in cells if (m := re.match(r"`([\w-]+\.yaml)`", c[0]))}


@pytest.mark.parametrize("folder", FAMILIES)
def test_the_readme_of_a_family_names_all_its_recipes_and_no_others(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    there = {path.name for path in (ROOT / folder).glob("*.yaml")}
    assert set(re.findall(r"(?<![\w/-])[\w-]+\.yaml", _without_others(text, folder))) == there
    assert set(_rows(folder)) <= there


def _without_others(text: str, folder: str) -> str:
    """Without paths to recipes of other places; `recipes/FOLDER/x.yaml` is `x.yaml`."""
    return text.replace(f"recipes/{folder}/", "")


@pytest.mark.parametrize("row", MEANS)
def test_the_readme_of_vtab_shows_the_means_of_its_recipes(row: str) -> None:
    name = f"vtab/{row}.yaml"
    figures = percent(name)
    groups = [[v for t, v in figures.items() if recipes(name)[t].task.group == g]
              for g in ("natural", "specialized", "structured")]  # fmt: skip
    shown = [float(cell) for cell in _rows("vtab")[f"{row}.yaml"][1:6]]
    means = [*map(mean, groups), mean(map(mean, groups)), mean(figures.values())]
    assert shown == pytest.approx(means, abs=0.011)


@pytest.mark.parametrize("name", [n for n in OF_FAMILIES if n.startswith("fgvc/") and percent(n)])
def test_the_readme_of_fgvc_shows_the_figures_of_its_recipes(name: str) -> None:
    figures = percent(name)
    shown = [float(cell) for cell in _rows("fgvc")[Path(name).name][1:7]]
    assert shown[:5] == pytest.approx(list(figures.values()))
    assert shown[5] == pytest.approx(mean(figures.values()), abs=0.051)


@pytest.mark.parametrize("name", OF_FAMILIES)
def test_the_readme_of_a_family_counts_the_parameters_of_its_recipes(name: str) -> None:
    folder, _, file = name.partition("/")
    cells = _rows(folder).get(file, [])
    counts = {without_head(recipe) for recipe in recipes(name).values()}
    said = [re.findall(r"^([\d,]+)(?: (?:to|or) ([\d,]+))?(?:$| with 10)", cell) for cell in cells]
    ends = [{int(n.replace(",", "")) for n in m[0] if n} for m in said if m and "," in m[0][0]]
    assert ends or not re.search(r"\d,\d{3}", " ".join(cells))
    for end in ends:
        assert end == {min(counts), max(counts)}


# --- the way that a user goes -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "task", "count"),
    [
        ("vtab/noah-lora.yaml", "cifar", 294_912),
        ("vtab/fact-tt.yaml", "clevr_dist", 8_448),
        ("fgvc/gift.yaml", "nabirds", 24_576),
        ("fewshot/adapter.yaml", "food101", 156_768),
        ("vtab/gist-adapter.yaml", "sun397", 83_760),
    ],
)
def test_a_dry_run_needs_neither_data_nor_weights(name: str, task: str, count: int) -> None:
    recipe = recipes(name)[task]
    assert recipe.data.classes
    found = run.dry_run(recipe)["parameters"]
    assert found["method"] + found["gist"] == count
    assert found["head"] == 769 * recipe.data.classes


def test_another_method_under_a_protocol_has_nothing_published() -> None:
    sets = ["task.name=cifar", "method.name=bitfit"]
    recipe = load_recipe(ROOT / "vtab" / "fact-tk.yaml", sets=sets)
    assert recipe.published is None
    assert recipe.method == {"name": "bitfit", "linear_only": False}
    assert recipe.optim.lr == recipes("vtab/fact-tk.yaml")["cifar"].optim.lr
