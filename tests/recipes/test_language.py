"""The language recipes: published counts on the meta device, published figures, their READMEs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from gistcli.data.text import Completion, examples_of, open_texts
from gistcli.recipe import Recipe, load_recipe
from gistcli.run.texts import text_options
from tests.data.text.tokens import letters
from tests.recipes.known import ROOT, recipes
from tests.recipes.language import (
    CONFIGS,
    FAMILIES,
    OF_LANGUAGE,
    counts,
    first_recipe,
    save_config,
    tasks_of,
)
from tests.run.calling import call

COUNTS = {
    "glue/gift.yaml": 98_304,
    "glue/gift-large.yaml": 131_072,
    "glue/lora.yaml": 294_912,
    "glue/lora-large.yaml": 786_432,
    "glue/bitfit.yaml": 102_144,
    "glue/bitfit-large.yaml": 271_360,
    "glue/t5-adapter.yaml": 1_807_488,
    "glue/t5-prompt.yaml": 76_800,
    "glue/t5-layernorm.yaml": 47_616,
    "commonsense/gift-qv.yaml": 1_048_576,
    "commonsense/gift-attn-out.yaml": 1_048_576,
    "commonsense/gift-qkvud.yaml": 3_506_176,
    "commonsense/lora.yaml": 56_098_816,
    "commonsense/llama2-gift-qv.yaml": 1_048_576,
    "commonsense/llama2-gift-attn-out.yaml": 1_048_576,
    "commonsense/llama2-gift-qkvud.yaml": 3_506_176,
    "commonsense/llama2-lora.yaml": 56_098_816,
    "commonsense/llama3-gift-qv.yaml": 1_048_576,
    "commonsense/llama3-gift-attn-out.yaml": 1_048_576,
    "commonsense/llama3-gift-qkvud.yaml": 3_932_160,
    "commonsense/llama3-lora.yaml": 56_623_104,
    "arithmetic/gift-qv.yaml": 1_048_576,
    "arithmetic/gift-attn-out.yaml": 1_048_576,
    "arithmetic/gift-qkvud.yaml": 3_506_176,
    "arithmetic/gsm8k.yaml": 1_048_576,
    "arithmetic/lora.yaml": 56_098_816,
    "instruct/gift-r16.yaml": 262_144,
    "instruct/gift-r128.yaml": 2_097_152,
    "instruct/alpaca.yaml": 262_144,
    "instruct/chats.yaml": 4_980_736,
}
"""Trained parameters without head and gist token; none for protocols without a method."""
PROTOCOLS = (
    "glue/tasks.yaml",
    "glue/t5.yaml",
    "commonsense/commonsense.yaml",
    "arithmetic/math.yaml",
    "instruct/ultrafeedback.yaml",
)
WIDTHS = {
    "FacebookAI/roberta-base": 768,
    "FacebookAI/roberta-large": 1_024,
    "google-t5/t5-base": 768,
}
SIX = ("cola", "sst2", "mrpc", "stsb", "qnli", "rte")
MEANS = {
    "glue/gift.yaml": 85.1,
    "glue/gift-large.yaml": 87.5,
    "glue/lora.yaml": 86.6,
    "glue/lora-large.yaml": 87.8,
    "glue/bitfit.yaml": 85.4,
}
"""In percent, of the six tasks."""


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe], Path]:
    """The folder of a recipe's network, which holds its config.json alone."""
    root = tmp_path_factory.mktemp("networks")
    folders = {name: save_config(root / name.rpartition("/")[2], name) for name in CONFIGS}
    return lambda recipe: folders[recipe.model.name]


def base_of(name: str) -> str:
    """The recipe without the gist token that one with it extends."""
    return name.replace("/gist-", "/")


def test_every_language_recipe_has_a_count_or_is_a_protocol() -> None:
    assert {name.partition("/")[0] for name in OF_LANGUAGE} == set(FAMILIES)
    assert {base_of(name) for name in OF_LANGUAGE} == {*COUNTS, *PROTOCOLS}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_with_a_config_alone_is_enough_for_the_published_counts(
    networks: Callable[[Recipe], Path], family: str
) -> None:
    for name in (n for n in OF_LANGUAGE if n.startswith(family) and n not in PROTOCOLS):
        recipe = first_recipe(name)
        found = counts(recipe, networks(recipe))
        published = recipe.published.parameters if recipe.published else None
        assert found["method"] == COUNTS[base_of(name)], name
        assert published in (None, found["method"]), name
        token = WIDTHS[recipe.model.name] if recipe.gist else 0
        assert found["gist"] == token, name
        assert f"{found['method'] + token:,} parameters" in _first_line(name), name


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("glue/gift.yaml", 98_304),
        ("glue/gist-t5-prompt.yaml", 76_800 + 768),
        ("commonsense/llama3-gift-qkvud.yaml", 3_932_160),
    ],
)
def test_a_dry_run_needs_neither_weights_nor_tokenizer_nor_data(
    networks: Callable[[Recipe], Path], tmp_path: Path, name: str, count: int
) -> None:
    task = "--task sst2" if name.startswith("glue") else ""
    found = call(
        f"gist finetune {ROOT / name} {task} --dry-run",
        "--model", networks(first_recipe(name)), "--data", tmp_path / "nothing.jsonl",
    )  # fmt: skip
    assert found["parameters"]["method"] + found["parameters"]["gist"] == count
    assert found["examples"] is None


def _first_line(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8").partition("\n")[0]


@pytest.mark.parametrize("name", MEANS)
def test_the_mean_of_a_row_follows_from_the_figures_of_its_tasks(name: str) -> None:
    figures = {t: r.published for t, r in recipes(name).items() if r.published}
    assert set(figures) == set(SIX)
    values = [100 * figure.value for figure in figures.values()]
    assert mean(values) == pytest.approx(MEANS[name], abs=0.051)
    assert f"published {MEANS[name]}" in _first_line(name)


@pytest.mark.parametrize("name", OF_LANGUAGE)
def test_a_recipe_selects_and_reports_what_the_publication_does(name: str) -> None:
    family = name.partition("/")[0]
    for task, recipe in recipes(name).items():
        if family == "glue":
            metric = {"cola": "matthews", "stsb": "pearson"}.get(str(task), "accuracy")
            assert (recipe.eval.metric, recipe.eval.select) == (metric, "best")
            assert (recipe.data.splits != "auto") is ("t5" in name)
            assert recipe.data.path == f"glue/{task}"
            assert recipe.published is None or recipe.published.metric == f"val/{metric}"
            assert (recipe.task.type == "regression") is (task == "stsb")
        else:
            assert recipe.eval.select == "last"
            assert recipe.task.type == ("auto" if name == "instruct/chats.yaml" else "causal_lm")
        if recipe.published:
            assert 0 < recipe.published.value < 1
            assert recipe.published.protocol
            assert recipe.published.protocol.startswith(("best by validation", "last"))
            assert recipe.published.source
    protocol = {"commonsense": "commonsense", "arithmetic": "math"}.get(family)
    expected = "gsm8k" if name.endswith("gsm8k.yaml") else protocol
    assert next(iter(recipes(name).values())).eval.protocol == expected


@pytest.mark.parametrize("name", [n for n in OF_LANGUAGE if "/gist-" in n])
def test_a_pair_differs_in_the_section_gist_alone(name: str) -> None:
    plain = recipes(base_of(name))
    for task, recipe in recipes(name).items():
        other = plain[task]
        apart = {s for s in Recipe.model_fields if getattr(recipe, s) != getattr(other, s)}
        assert apart - {"published"} == {"gist"}
        assert recipe.gist is not None
        assert recipe.published is None
        said = {"alpha": 0.5, "lambda": 0.75, "temperature": 3.0, "dropout": 0.1}
        assert {option: recipe.gist[option] for option in said} == said


# --- with data --------------------------------------------------------------------------------

ROWS: dict[str, dict[str, Any]] = {
    "commonsense/gift-qv.yaml": {
        "instruction": "Is it so?\n\nAnswer format: true/false", "input": "",
        "output": "the correct answer is true", "answer": "true",
    },
    "arithmetic/gift-qv.yaml": {
        "instruction": "What is 1 + 1?", "input": "", "output": "1 + 1 = 2", "answer": "2.0",
    },
    "arithmetic/gsm8k.yaml": {"question": "What is 1 + 1?", "answer": "1 + 1 = 2\n#### 2"},
    "instruct/gift-r16.yaml": {"instruction": "Say.", "input": "this", "output": "This."},
}  # fmt: skip
PROMPTS = {
    "commonsense/gift-qv.yaml": ("Is it so?\n\nAnswer format: true/false\n", "the correct answer"),
    "arithmetic/gift-qv.yaml": ("What is 1 + 1?\n\n### Response:\n", "1 + 1 = 2"),
    "arithmetic/gsm8k.yaml": (
        "What is 1 + 1?\nAnswer the above question. First think step by step and then answer the "
        "final number.\n",
        "1 + 1 = 2\nThe final answer is:  2",
    ),
    "instruct/gift-r16.yaml": ("### Input:\nthis\n\n### Response:\n", "This."),
}
"""End of the prompt and begin of the answer, as the authors' code puts them."""


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_put_as_the_publication_puts_them(tmp_path: Path, name: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(ROWS[name]) + "\n" for _ in range(40)))
    recipe = load_recipe(ROOT / name, sets=[f"data.path={file}"])
    catalog = open_texts(recipe.data, text_options(recipe.data), base=tmp_path, task="causal_lm")
    example = examples_of(catalog, "train")[0]
    assert isinstance(example, Completion)
    before, behind = PROMPTS[name]
    assert example.prompt.endswith(before)
    assert example.completion.startswith(behind)
    if recipe.eval.protocol:
        assert example.gold is not None
        assert example.gold.answer == ROWS[name]["answer"]
    if name != "arithmetic/gsm8k.yaml":
        assert catalog.counts() == {"train": 40}  # all of them


def test_a_dry_run_with_tokenizer_and_data_counts_the_steps(tmp_path: Path) -> None:
    folder = save_config(tmp_path / "llama", "meta-llama/Meta-Llama-3-8B")
    letters(template=None).base.save_pretrained(folder)
    row = json.dumps(ROWS["commonsense/gift-qv.yaml"])
    (tmp_path / "rows.json").write_text(f"[{', '.join([row] * 64)}]")
    found = call(
        f"gist finetune {ROOT / 'commonsense/llama3-gift-qkvud.yaml'} --dry-run",
        "--model", folder, "--data", tmp_path / "rows.json",
    )  # fmt: skip
    assert found["parameters"]["trainable"] == 3_932_160
    assert (found["examples"], found["steps"]) == ({"train": 64}, 6 * 2)


def test_glue_recipes_read_the_real_fragments(assets: Path, tmp_path: Path) -> None:
    folder = save_config(tmp_path / "roberta", "FacebookAI/roberta-base")
    letters(template=None).base.save_pretrained(folder)
    found = call(
        f"gist finetune {ROOT / 'glue/gist-gift.yaml'} --task rte --dry-run",
        "--model", folder, "--data", assets / "text" / "rte",
    )  # fmt: skip
    assert found["parameters"]["method"] + found["parameters"]["gist"] == 98_304 + 768
    assert len(found["classes"]) == 2
    assert set(found["examples"]) == {"train", "val"}


# --- what the README of a family says ---------------------------------------------------------


def _rows(folder: str) -> dict[str, list[str]]:
    lines = (ROOT / folder / "README.md").read_text(encoding="utf-8").splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return {m[1]: c[1:] for c in cells if (m := re.match(r"`([\w-]+\.yaml)`", c[0]))}


@pytest.mark.parametrize("folder", FAMILIES)
def test_the_readme_of_a_family_names_all_its_recipes_with_their_counts(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    there = {path.name for path in (ROOT / folder).glob("*.yaml")}
    named = set(re.findall(r"(?<![\w/-])[\w-]+\.yaml", text.replace(f"recipes/{folder}/", "")))
    assert named == there
    rows = _rows(folder)
    assert set(rows) == {n.partition("/")[2] for n in OF_LANGUAGE if n.startswith(folder)} - {
        protocol.partition("/")[2] for protocol in PROTOCOLS
    }
    for file, cells in rows.items():
        name = f"{folder}/{file}"
        recipe = first_recipe(name)
        count = COUNTS[base_of(name)] + (WIDTHS[recipe.model.name] if recipe.gist else 0)
        assert f"{count:,}" in cells, file


@pytest.mark.parametrize("folder", FAMILIES)
def test_the_readme_of_a_family_shows_the_figures_of_its_recipes(folder: str) -> None:
    for file, cells in _rows(folder).items():
        name = f"{folder}/{file}"
        figures = {t: r.published for t, r in recipes(name).items()}
        values = [100 * f.value for f in figures.values() if f]
        shown = [float(cell) for cell in cells if re.fullmatch(r"\d\d\.\d+", cell)]
        assert bool(values) == bool(shown), name
        for value in values:
            assert any(value == pytest.approx(one, abs=0.006) for one in shown), (name, value)


def test_tasks_of_glue_are_named_once() -> None:
    assert tasks_of("glue/tasks.yaml") == [
        "cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte",
    ]  # fmt: skip
