"""The built-in family `class-to-label`: 4,096 tasks that a tiny model learns in context.

Eight inputs stand in four fixed classes, which no text names; a task gives each class one of eight
labels. So a few pairs tell the whole task to a model that knows the classes, and nothing else does:
without examples no answer is better than chance, 1 in 8.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from gistcli.data.augment import uniforms
from gistcli.data.episodes.tasks import Item, Task
from gistcli.data.groups import rank
from gistcli.data.text.examples import Plain

NAME = "class-to-label"
"""Of the family, and as `data.path`."""
INPUTS = ("a", "b", "c", "d", "e", "f", "g", "h")
LABELS = ("A", "B", "C", "D", "E", "F", "G", "H")
CLASSES = (("a", "e"), ("b", "f"), ("c", "g"), ("d", "h"))
VOCABULARY = (*INPUTS, *LABELS)
"""All words of its texts, which blanks separate: a token each in a word-level tokenizer."""
TESTED = 256
"""Tasks held out for the test."""
VALIDATED = 64
"""Tasks held out for validation."""


def class_to_label() -> dict[str, tuple[Task, ...]]:
    """All tasks by split (train, val, test): the same in every run, whatever its seeds.

    A task is called after the labels of its classes (`class-to-label/CAAH`), and has one item for
    each input, with all labels as options.
    """
    tasks = [_task(labels) for labels in itertools.product(LABELS, repeat=len(CLASSES))]
    tasks.sort(key=lambda task: rank(0, task.name))
    held = TESTED + VALIDATED
    parts = {"train": tasks[held:], "val": tasks[TESTED:held], "test": tasks[:TESTED]}
    return {split: tuple(sorted(part, key=lambda t: t.name)) for split, part in parts.items()}


def passage(task: Task, pairs: int, *, seed: int, index: int = 0) -> str:
    """A text of so many pairs of a task, drawn with replacement: `a C f A a C`.

    Args:
        task: of this family.
        pairs: how many.
        seed: of the draws.
        index: number of the passage, which has draws of its own.
    """
    draws = uniforms(seed, 0, np.array([index]), pairs)[0]
    chosen = [task.items[int(draw * len(task.items))] for draw in draws]
    return " ".join(f"{item.prompt} {item.completion}" for item in chosen)


def passages(tasks: Sequence[Task], pairs: int, *, seed: int = 0) -> list[Plain]:
    """A document of so many pairs for each task, for compression."""
    return [
        Plain(passage(task, pairs, seed=seed, index=i), task.name) for i, task in enumerate(tasks)
    ]


def _task(labels: tuple[str, ...]) -> Task:
    name = f"{NAME}/{''.join(labels)}"
    label = {word: y for members, y in zip(CLASSES, labels, strict=True) for word in members}
    items = tuple(Item(word, label[word], LABELS, f"{name}[{word}]") for word in INPUTS)
    return Task(name, NAME, items, rule=True)
