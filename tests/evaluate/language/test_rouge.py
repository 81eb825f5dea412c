"""ROUGE-L against closed forms, a plain dynamic programme, and the values of rouge_score 0.1.2."""

from __future__ import annotations

import random

import pytest

from gistcli.evaluate.language.rouge import (
    longest_common_subsequence,
    mean_rouge_l,
    rouge_l,
    words,
)

ALICE = "Alice's 3rd cat -- naive? -- sat; on_the mat!"


def plain(a: list[str], b: list[str]) -> int:
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            rows[i + 1][j + 1] = rows[i][j] + 1 if x == y else max(rows[i][j + 1], rows[i + 1][j])
    return rows[-1][-1]


def test_the_subsequence_is_as_long_as_the_plain_programme_finds() -> None:
    draw = random.Random(0)
    for _ in range(200):
        a, b = (draw.choices("abcde", k=draw.randint(0, 90)) for _ in range(2))
        assert longest_common_subsequence(a, b) == plain(a, b)


def test_words_are_lower_case_runs_of_letters_and_digits() -> None:
    assert words(ALICE) == ["alice", "s", "3rd", "cat", "naive", "sat", "on", "the", "mat"]
    assert words("...") == []


def test_the_figure_is_the_harmonic_mean_of_precision_and_recall() -> None:
    # police . the gunman -> police, the, gunman of 4 and 5 words
    score = rouge_l("police kill the gunman", "the police killed the gunman")
    precision, recall = 3 / 4, 3 / 5
    assert score == pytest.approx(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize(
    ("predicted", "reference", "value"),
    [
        (
            "The quick brown fox jumps over the lazy dog",
            "A quick, brown dog jumps over a lazy fox.",
            5 / 9,
        ),
        (ALICE, "the cat sat on Alice's mat", 0.5),
        ("Größe 12,5 cm", "die Größe ist 12.5 cm", 5 / 6),
    ],
)
def test_the_reference_implementation_finds_the_same(
    predicted: str, reference: str, value: float
) -> None:
    assert rouge_l(predicted, reference) == pytest.approx(value, abs=1e-12)


def test_the_best_of_several_references_counts() -> None:
    assert rouge_l("a b", ["c d", "a b", "a"]) == 1
    assert rouge_l("a b", []) == 0


def test_empty_texts_score_nothing() -> None:
    assert rouge_l("", "a") == rouge_l("a", "?!") == rouge_l("", "") == 0
    assert mean_rouge_l([], []) == 0
    assert mean_rouge_l(["a", "b"], ["a", "c"]) == 0.5
