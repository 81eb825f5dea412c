"""Examples of text as the pairs of a task, and the options among which its answers are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from gistcli.data.base import class_order, some
from gistcli.data.episodes.tasks import Item
from gistcli.data.text.examples import Completion, Example, Labelled
from gistcli.data.text.records import SHOWN
from gistcli.errors import DataError

MOST_OPTIONS = 15
"""Answers of so many kinds at most are options that can be ranked: T0's classification templates
have 2 to 15."""
_LEAST_ITEMS = 3
"""Pairs an option that there have to be, or else the answers are free text that recurs."""
_END = "<|endoftext|>"


def as_items(
    examples: Sequence[Example], where: str, skip: bool, notes: list[str]
) -> tuple[Item, ...]:
    """The pairs that examples are, stripped of blanks, and answers of `<|endoftext|>`.

    Args:
        examples: completions or labelled texts.
        where: the data, for messages.
        skip: leave other examples, and those without an answer, out.
        notes: gets one on what was left out.

    Raises:
        DataError: examples that are no pairs; the first few are named.
    """
    items, problems = [], []
    for example in examples:
        item = _item(example)
        if item is None:
            problems.append(f"{example.origin}: {type(example).__name__.lower()}")
        elif not item.prompt or not item.completion:
            problems.append(f"{example.origin}: no {'answer' if item.prompt else 'prompt'}")
        else:
            items.append(item)
    if problems and not (skip and items):
        raise DataError(
            f"{where}: {some(problems, 'row', shown=SHOWN)} without a prompt and its answer.",
            "Tasks are pairs: {prompt, completion} or {text, label}; data.on_error=skip leaves "
            "other rows out.",
        )
    if problems:
        notes.append(f"{where}: {some(problems, 'row', shown=SHOWN)} left out")
    return tuple(items)


def _item(example: Example) -> Item | None:
    if isinstance(example, Completion):
        answer = example.completion.strip().removesuffix(_END).strip()
        options = example.gold.options if example.gold else ()
        listed = options if answer in options else ()
        return Item(example.prompt.strip(), answer, listed, example.origin)
    if isinstance(example, Labelled):
        text = example.text if example.second_text is None else (
            f"{example.text}\n{example.second_text}"
        )  # fmt: skip
        label = "" if example.label is None else str(example.label)
        return Item(text.strip(), label, (label,), example.origin)
    return None


def with_options(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """The items of a task, which get its answers as options where these are few.

    Labelled texts get their classes. Items that have options already keep them.
    """
    given = {item.options for item in items}
    classes = given <= {(item.completion,) for item in items}
    counted = Counter(item.completion for item in items)
    few = len(counted) <= min(MOST_OPTIONS, len(items) // _LEAST_ITEMS)
    if classes or (given == {()} and few):
        options = tuple(class_order(counted)) if len(counted) > 1 else ()
        return tuple(replace(item, options=options) for item in items)
    return items
