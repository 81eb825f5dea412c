"""Benchmarks that are scored by what the model writes: how to decode, and what counts as right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gistcli.errors import DataError, UnknownName, did_you_mean
from gistcli.evaluate.language.extraction import (
    commonsense_answer,
    first_choice,
    gsm8k_gold,
    is_number,
    last_number,
    same_number,
)
from gistcli.evaluate.metrics import wilson


@dataclass(frozen=True)
class Judged:
    """One generated text: the answer read off it, and whether it is right.

    Attributes:
        answer: as text; empty where none was found.
        gold: what it was compared with.
        right: whether both agree.
    """

    answer: str
    gold: str
    right: bool


@dataclass(frozen=True)
class Protocol:
    """How the answers of a benchmark are made and judged.

    Attributes:
        max_new_tokens: of greedy decoding.
        judge: generated text behind the prompt and the data's answer -> verdict.
    """

    max_new_tokens: int
    judge: Callable[[str, str], Judged]


def _commonsense(generated: str, answer: str) -> Judged:
    found, gold = commonsense_answer(generated), answer.strip()
    return Judged(found, gold, found == gold)


def _math(generated: str, answer: str) -> Judged:
    """A choice (AQuA) where the data's answer is no number, else the last number."""
    gold = answer.strip()
    if is_number(gold):
        return _numeric(generated, gold, float(gold))
    found = first_choice(generated)
    return Judged(found, gold, found == gold)


def _gsm8k(generated: str, answer: str) -> Judged:
    gold = gsm8k_gold(answer)
    return _numeric(generated, gold, last_number(gold))


def _numeric(generated: str, gold: str, value: float) -> Judged:
    found = last_number(generated)
    answer = "" if found == float("inf") else f"{found:.15g}"
    return Judged(answer, gold, same_number(found, value))


PROTOCOLS: dict[str, Protocol] = {
    "commonsense": Protocol(32, _commonsense),
    "gsm8k": Protocol(256, _gsm8k),
    "math": Protocol(512, _math),
}


def protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UnknownName: there is none.
    """
    if name not in PROTOCOLS:
        raise UnknownName(f"{name!r} is no protocol of answers.", did_you_mean(name, PROTOCOLS))
    return PROTOCOLS[name]


def judge(name: str, generated: Sequence[str], answers: Sequence[str]) -> list[Judged]:
    """The verdicts on generated texts, in their order.

    Args:
        name: of the protocol.
        generated: texts behind the prompts, without special tokens.
        answers: the data's answers, as they stand there.

    Raises:
        UnknownName: no such protocol.
        DataError: an answer of the data without what the protocol compares.
    """
    chosen = protocol(name)
    require_answers(name, answers, [str(i) for i in range(len(answers))])
    return [chosen.judge(text, gold) for text, gold in zip(generated, answers, strict=True)]


def require_answers(name: str, answers: Sequence[str], names: Sequence[str]) -> None:
    """Whether every answer of the data has what a protocol compares.

    Args:
        name: of the protocol.
        answers: of the data.
        names: of the examples.

    Raises:
        DataError: some have not; the first five are named.
    """
    bad = [f"{n} ({a!r})" for n, a in zip(names, answers, strict=True) if not _usable(name, a)]
    if bad:
        raise DataError(
            f"{len(bad)} of {len(answers)} answers are none for {name}: example "
            f"{', '.join(bad[:5])}.",
            "Name the column that holds the answers: data.columns.answer=NAME.",
        )


def _usable(name: str, answer: str) -> bool:
    if name == "gsm8k":
        return last_number(gsm8k_gold(answer)) != float("inf")
    return bool(answer.strip())


def score_judged(judged: Sequence[Judged]) -> dict[str, Any]:
    """`n`, `accuracy`, its 95 % Wilson `interval`, and `unanswered`: texts without any answer."""
    n, right = len(judged), sum(j.right for j in judged)
    return {
        "n": n,
        "accuracy": right / n if n else 0.0,
        "interval": list(wilson(right, n)),
        "unanswered": sum(not j.answer for j in judged),
    }
