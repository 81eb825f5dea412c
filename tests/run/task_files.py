"""Small task files for decoders of 53 words, and recipes of runs on them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from gistcli.recipe import Recipe

HYPER = {
    "gists": 3, "example_tokens": 40, "query_tokens": 20, "max_examples": 4, "queries": 2,
}  # fmt: skip


def labelled_rows(task: str, count: int = 12, labels: tuple[str, str] = ("w1", "w2")) -> list[Any]:
    """A word, whose label goes by whether it is an even one; each task has its own labels."""
    draw = random.Random(task)
    pairs = ((i % 2, f"w{2 * draw.randrange(10, 24) + i % 2}") for i in range(count))
    return [{"task": task, "prompt": word, "completion": labels[odd]} for odd, word in pairs]


def free_rows(task: str, count: int = 6) -> list[Any]:
    """A word, twice; no two answers are the same."""
    words = random.Random(task).sample(range(5, 45), count)
    return [
        {"task": task, "prompt": f"w{word}", "completion": f"w{word} w{word}"} for word in words
    ]


def write_tasks(folder: Path, *, free: bool = True) -> Path:
    """Files of tasks in splits: two with options and one without among those held out."""
    folder.mkdir(parents=True, exist_ok=True)
    train = [row for i in range(4) for row in labelled_rows(f"train{i}", labels=(f"w{i}", "w9"))]
    val = labelled_rows("val0", labels=("w3", "w4"))
    test = [*labelled_rows("test0"), *labelled_rows("test1", labels=("w7", "w8"))]
    test += free_rows("copy") if free else []
    for split, rows in (("train", train), ("val", val), ("test", test)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)
    return folder


def task_recipe(model: str | Path, tasks: str | Path, /, **sections: Any) -> Recipe:
    """Hypertuning of LoRA for a few steps; sections are updated, a method with a name
    is put in its place, and None removes one."""
    tree: dict[str, Any] = {
        "task": {"type": "hypertuning"},
        "model": {"name": str(model)},
        "data": {"path": str(tasks)},
        "method": {"name": "lora", "rank": 2},
        "hyper": dict(HYPER),
        "train": {"max_steps": 4, "batch_size": 8, "save_steps": 2},
        "eval": {"every": "none", "max_new_tokens": 4},
        "optim": {"lr": 0.01},
    }
    for name, values in sections.items():
        whole = values is None or (name == "method" and "name" in values)
        tree[name] = values if whole else {**tree.get(name, {}), **values}
    return Recipe.model_validate(tree)
