"""What a generated text answers: the rules of GIFT's published language tables.

Each works on the text behind the prompt, without special tokens. They are those of LLM-Adapters and
of the ReFT code that GIFT's evaluation uses, also where they are crude (the first capital A of
`An answer` counts as choice A): a published figure is only repeated by the rule that made it.
"""

from __future__ import annotations

import re

TRIGGER = "the correct answer is "
"""What commonsense targets begin with; the answer follows."""

TOLERANCE = 1e-3
"""Numbers that differ by no more than this are equal."""

_NUMBER = re.compile(r"-?\d+\.?\d*")
_CHOICE = re.compile("[A-E]")


def commonsense_answer(generated: str) -> str:
    """The text behind the first TRIGGER, without white space around; empty where there is none."""
    _, found, answer = generated.partition(TRIGGER)
    return answer.strip() if found else ""


def last_number(generated: str) -> float:
    """The last number, commas removed (`1,234.5` is one number); infinity where there is none."""
    numbers = _NUMBER.findall(generated.replace(",", ""))
    return float(numbers[-1]) if numbers else float("inf")


def first_choice(generated: str) -> str:
    """The first of the letters A to E; empty where there is none."""
    found = _CHOICE.search(generated)
    return found.group() if found else ""


def gsm8k_gold(answer: str) -> str:
    """What stands behind the last `####` of a GSM8K answer."""
    return answer.rpartition("####")[2].strip()


def is_number(text: str) -> bool:
    """Whether the whole text is one number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def same_number(found: float, gold: float) -> bool:
    """Equal within TOLERANCE; infinity, the lack of a number, equals nothing."""
    return abs(found - gold) <= TOLERANCE
