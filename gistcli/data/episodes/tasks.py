"""What an episode is drawn from: a task, and the pairs of prompt and answer that it consists of."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One pair of a task.

    Attributes:
        prompt: the input, x.
        completion: the answer to learn, y.
        options: among which the answer is, in a fixed order; empty where answers are free text.
        origin: where it stands in the data (`FILE:LINE`, `FILE[ROW]`).
        others: further answers that are as right, where the data have several.
    """

    prompt: str
    completion: str
    options: tuple[str, ...] = ()
    origin: str = ""
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """Pairs that follow one rule, of which an episode shows some and asks others.

    Attributes:
        name: unique in its data.
        family: related tasks (templates of one data set), held out together where that is asked.
        items: two or more.
        positive: exemplary pairs that come with the task; never asked.
        definition: the rule in words; may be empty.
        rule: the items are all inputs that a synthetic rule knows, so that they are drawn with
            replacement, and written as words (`x y`) without a template.
    """

    name: str
    family: str
    items: tuple[Item, ...]
    positive: tuple[Item, ...] = ()
    definition: str = ""
    rule: bool = False


def prefix(name: str) -> str:
    """The family that a name tells: its first word, behind the number that S-NI's files have."""
    return re.split(r"[_\-./ ]", re.sub(r"^task\d+_", "", name))[0] or name
