"""The recipes of HyperLlama: counts on the meta device, and what their README says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import LlamaConfig

from gistcli import run
from gistcli.recipe import Recipe, load_recipe
from tests.recipes.known import ROOT
from tests.recipes.language import save_config

LLAMA = "meta-llama/Llama-2-7b-hf"
SMOL = LlamaConfig(
    vocab_size=49_152, hidden_size=576, intermediate_size=1_536, num_hidden_layers=30,
    num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
)  # fmt: skip
COUNTS = {
    "quickstart": (104_448, 8 * 64),
    "tasks": (4_884_480, 16 * 576),
    "symbols": (4_884_480, 16 * 576),
    "hyperpretrain": (19_988_480, 16 * 4_096),
    "hypertune": (19_988_480, 16 * 4_096),
    "adapted": (39_976_960, 16 * 4_096),
    "shared-prefix": (4_194_304, 0),
    "full-context": (19_988_480, 0),
}
"""Of method and gists."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Networks that the recipes name, as folders with config.json alone."""
    root = tmp_path_factory.mktemp("networks")
    SMOL.architectures = ["LlamaForCausalLM"]
    SMOL.save_pretrained(root / "smol")
    llama = save_config(root / "llama", LLAMA)
    return {LLAMA: str(llama), "HuggingFaceTB/SmolLM2-135M": str(root / "smol")}


def test_every_recipe_has_a_count_and_a_row_in_the_readme() -> None:
    found = {path.stem for path in (ROOT / "hyper").glob("*.yaml")}
    assert found == set(COUNTS)
    text = (ROOT / "hyper" / "README.md").read_text()
    for name, (method, _) in COUNTS.items():
        assert re.search(rf"`{name}.yaml` \|.*\| {method:,} \|", text), name


@pytest.mark.parametrize("name", COUNTS)
def test_a_dry_run_counts_what_the_readme_says(
    name: str, folders: dict[str, str], tmp_path: Path
) -> None:
    recipe = load_recipe(ROOT / "hyper" / f"{name}.yaml")
    model = folders.get(recipe.model.name, recipe.model.name)
    tree = recipe.as_dict()
    tree["model"] |= {"name": model, "quantize": None}
    if name != "quickstart":
        tree["data"]["path"] = str(tmp_path / "nothing")
    found = run.dry_run(Recipe.model_validate(tree))["parameters"]
    assert (found["method"], found["gist"]) == COUNTS[name]


def test_no_figure_is_claimed_to_be_the_papers() -> None:
    for name in COUNTS:
        assert load_recipe(ROOT / "hyper" / f"{name}.yaml").published is None
