"""The language recipes that come with the package, and networks of their sizes without weights."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from transformers import AutoConfig, LlamaConfig, PretrainedConfig, RobertaConfig, T5Config

from gistcli.backbones.seq2seq import Seq2Seq
from gistcli.recipe import Recipe, load_recipe
from gistcli.recipe.loading import task_names
from gistcli.run.assembling import assemble, open_model
from tests.recipes.known import NAMES, ROOT

FAMILIES = ("glue", "commonsense", "arithmetic", "instruct")
OF_LANGUAGE = [name for name in NAMES if name.partition("/")[0] in FAMILIES]
_BASE = {"max_position_embeddings": 514, "type_vocab_size": 1, "vocab_size": 50_265}
_LARGE = {"hidden_size": 1_024, "num_hidden_layers": 24, "num_attention_heads": 16,
          "intermediate_size": 4_096}  # fmt: skip
_LLAMA_3 = {"vocab_size": 128_256, "intermediate_size": 14_336, "num_key_value_heads": 8}
CONFIGS: dict[str, PretrainedConfig] = {
    "FacebookAI/roberta-base": RobertaConfig(**_BASE),
    "FacebookAI/roberta-large": RobertaConfig(**_BASE | _LARGE),
    "google-t5/t5-base": T5Config(
        d_model=768, d_ff=3_072, num_layers=12, num_heads=12, decoder_start_token_id=0
    ),
    "yahma/llama-7b-hf": LlamaConfig(vocab_size=32_000, intermediate_size=11_008),
    "meta-llama/Llama-2-7b-hf": LlamaConfig(vocab_size=32_000, intermediate_size=11_008),
    "meta-llama/Meta-Llama-3-8B": LlamaConfig(**_LLAMA_3),
    "meta-llama/Meta-Llama-3-8B-Instruct": LlamaConfig(**_LLAMA_3),
}
"""Networks that the recipes name, in their own sizes."""
WRITERS = {"roberta": "RobertaForMaskedLM", "t5": "T5ForConditionalGeneration",
           "llama": "LlamaForCausalLM"}  # fmt: skip


def save_config(folder: Path, name: str) -> Path:
    """A folder that holds the config.json of a network, and nothing else."""
    config = AutoConfig.for_model(**CONFIGS[name].to_dict())
    config.architectures = [WRITERS[config.model_type]]
    config.save_pretrained(folder)
    return folder


@cache
def tasks_of(name: str) -> list[str | None]:
    """The tasks of a recipe; None alone for one without."""
    return [*task_names(ROOT / name)] or [None]


def first_recipe(name: str, *sets: str) -> Recipe:
    """A recipe, with its first task where it has any."""
    [task, *_] = tasks_of(name)
    return load_recipe(ROOT / name, sets=[*([f"task.name={task}"] if task else []), *sets])


@cache
def _counts(folder: Path, sections: str) -> dict[str, int]:
    tree = {"model": {"name": str(folder)}, "data": {"path": "none"}, **json.loads(sections)}
    recipe = Recipe.model_validate(tree)
    task = None if recipe.task.type == "auto" else recipe.task.type
    backbone = open_model(recipe.model, meta=True, task=task)
    if isinstance(backbone, Seq2Seq):
        backbone.set_label_words(["0", "1"], [0, 1])
    return assemble(recipe, 2, meta=True, backbone=backbone).parameters()


def counts(recipe: Recipe, folder: Path) -> dict[str, int]:
    """What a dry run counts without weights; each distinct network is built once."""
    sections = {"method": recipe.method, "gist": recipe.gist, "task": {"type": recipe.task.type}}
    return _counts(folder, json.dumps(sections, sort_keys=True))
