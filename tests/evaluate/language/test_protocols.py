"""The published rules of reading answers off generated texts, case by case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gistcli.errors import DataError, UnknownName
from gistcli.evaluate.language.extraction import (
    commonsense_answer,
    first_choice,
    gsm8k_gold,
    last_number,
    same_number,
)
from gistcli.evaluate.language.protocols import PROTOCOLS, judge, protocol, score_judged

INF = float("inf")


@pytest.mark.parametrize(
    ("generated", "answer"),
    [
        ("the correct answer is true", "true"),
        ("the correct answer is answer2\n", "answer2"),
        ("Well, the correct answer is  ending4 ", "ending4"),
        (
            "the correct answer is true the correct answer is false",
            "true the correct answer is false",
        ),
        ("true", ""),
        ("The correct answer is true", ""),
        ("the correct answer is", ""),
        ("the correct answer is:true", ""),
        ("the correct answer is true.", "true."),
        ("", ""),
    ],
)
def test_commonsense_answers_stand_behind_the_first_trigger(generated: str, answer: str) -> None:
    assert commonsense_answer(generated) == answer


def test_commonsense_wants_the_exact_string() -> None:
    texts = [f"the correct answer is {a}" for a in ("true", "true.", "True", "false")] + ["true"]
    assert [j.right for j in judge("commonsense", texts, [" true "] * 5)] == [True] + [False] * 4


@pytest.mark.parametrize(
    ("generated", "number"),
    [
        ("so 3 + 4 = 7", 7),
        ("The final answer is: 1,234.5", 1234.5),
        ("1,2,3", 123),  # crude and published: commas go before numbers are looked for
        ("costs $18.", 18),
        ("-5 degrees", -5),
        ("10-5", -5),
        ("2.5.7", 7),
        ("3e5", 5),
        (".5", 5),
        ("no idea", INF),
        ("", INF),
    ],
)
def test_the_last_number_counts(generated: str, number: float) -> None:
    assert last_number(generated) == number


@pytest.mark.parametrize(
    ("generated", "letter"),
    [("The answer is (C).", "C"), ("An apple: B", "A"), ("E", "E"), ("F or b", ""), ("", "")],
)
def test_the_first_capital_from_a_to_e_is_the_choice(generated: str, letter: str) -> None:
    assert first_choice(generated) == letter


def test_numbers_agree_within_a_thousandth_and_no_number_agrees_with_none() -> None:
    assert same_number(7.0009, 7)
    assert not same_number(7.002, 7)
    assert not same_number(INF, 7)
    assert not same_number(INF, INF)


def test_math_compares_choices_where_the_gold_is_no_number() -> None:
    texts = ["we get 12, so (B)", "we get 12, so (B)", "12.0005", "twelve"]
    verdicts = judge("math", texts, ["B", "12", "12.0", "12"])
    assert [j.right for j in verdicts] == [True, True, True, False]
    assert [j.answer for j in verdicts] == ["B", "12", "12.0005", ""]


def test_gsm8k_compares_with_what_stands_behind_the_hashes() -> None:
    gold = "She makes 9 * 2 = $<<9*2=18>>18 a day.\n#### 1,018"
    assert gsm8k_gold(gold) == "1,018"
    texts = ["The final answer is: 1018", "18", "1,018 dollars", "none"]
    verdicts = judge("gsm8k", texts, [gold] * 4)
    assert [j.right for j in verdicts] == [True, False, True, False]
    assert score_judged(verdicts)["unanswered"] == 1


def test_the_lengths_are_the_published_ones() -> None:
    lengths = {name: p.max_new_tokens for name, p in PROTOCOLS.items()}
    assert lengths == {"commonsense": 32, "math": 512, "gsm8k": 256}


def test_rates_come_with_their_number_and_interval() -> None:
    verdicts = judge("commonsense", ["the correct answer is a", ""], ["a", "a"])
    figures = score_judged(verdicts)
    assert (figures["n"], figures["accuracy"], figures["unanswered"]) == (2, 0.5, 1)
    low, high = figures["interval"]
    assert 0 < low < 0.5 < high < 1
    assert score_judged([])["accuracy"] == 0


def test_data_without_an_answer_are_refused() -> None:
    with pytest.raises(DataError, match=r"2 of 3 answers are none for gsm8k: example 1"):
        judge("gsm8k", ["1"] * 3, ["#### 1", "#### one", ""])
    with pytest.raises(DataError, match="example 0"):
        judge("commonsense", ["x"], [" "])
    with pytest.raises(UnknownName, match="maths"):
        protocol("maths")


@pytest.mark.parametrize("name", ["boolq", "openbookqa", "arc_easy"])
def test_the_targets_of_the_real_data_are_right_by_their_own_rule(assets: Path, name: str) -> None:
    path = assets / "text" / name / "test.json"
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    rows = json.loads(path.read_text("utf-8"))
    golds = [row["answer"] for row in rows]
    verdicts = judge("commonsense", [row["output"] for row in rows], golds)
    assert len(rows) > 400
    assert all(j.right for j in verdicts)
    assert not any(j.right for j in judge("commonsense", golds, golds))


def test_every_real_gsm8k_answer_is_a_number_and_right_by_its_own_rule(assets: Path) -> None:
    path = assets / "text" / "gsm8k" / "test.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    golds = [json.loads(line)["answer"] for line in path.read_text("utf-8").splitlines()]
    targets = [g.replace("####", "The final answer is: ") for g in golds]
    assert all(j.right for j in judge("gsm8k", targets, golds))
