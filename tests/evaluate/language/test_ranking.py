"""Likelihoods of answers against sums of log-probabilities, one sequence at a time."""

from __future__ import annotations

import math

import pytest
import torch

from gistcli.errors import DataError, NotSupported
from gistcli.evaluate.language.ranking import (
    Question,
    Ranking,
    encode_question,
    rank,
    score_rankings,
)
from gistcli.methods.base import Tuner
from tests.evaluate.language.words import KINDS, tokenizer, tuned

QUESTIONS = [
    Question((1, 7, 9), ((5,), (6, 8), (12, 13, 14))),
    Question((1,), ((40, 41), (41, 40))),
    Question((1, *range(20, 40)), ((3,), (4,))),
]


@pytest.fixture(params=sorted(KINDS))
def tuner(request: pytest.FixtureRequest) -> Tuner:
    return tuned(KINDS[request.param]())


def by_hand(tuner: Tuner, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        log_p_TV = tuner({"input_ids": ids}).logits[0].double().log_softmax(-1)
    return -sum(float(log_p_TV[len(prompt) + k - 1, token]) for k, token in enumerate(answer))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_an_answer_costs_minus_the_log_probability_of_its_tokens(
    tuner: Tuner, batch_size: int
) -> None:
    found = rank(tuner, QUESTIONS, batch_size)
    for question, ranking in zip(QUESTIONS, found, strict=True):
        wanted = [by_hand(tuner, question.prompt, a) for a in question.answers]
        assert list(ranking.nll) == pytest.approx(wanted, rel=1e-5)
        assert list(ranking.tokens) == [len(a) for a in question.answers]
    with tuner.disabled():
        assert rank(tuner, QUESTIONS, 8)[0].nll != pytest.approx(found[0].nll, rel=1e-3)
    assert not tuner.backbone.defers_logits


def test_the_probabilities_of_all_words_add_up_to_one(tuner: Tuner) -> None:
    (ranking,) = rank(tuner, [Question((1, 30), tuple((i,) for i in range(60)))], 7)
    assert sum(math.exp(-v) for v in ranking.nll) == pytest.approx(1, abs=1e-5)


def test_long_answers_lose_by_the_sum_and_may_win_by_the_mean() -> None:
    ranking = Ranking(nll=(3.0, 4.0, 3.0), tokens=(1, 4, 2))
    assert (ranking.by_sum, ranking.by_mean) == (0, 1)
    figures = score_rankings([ranking, ranking], [0, 1])
    assert (figures["n"], figures["accuracy"], figures["accuracy_by_mean"]) == (2, 0.5, 0.5)
    assert figures["interval"] == figures["interval_by_mean"]
    assert score_rankings([], [])["accuracy"] == 0


def test_questions_are_split_where_prompt_and_answers_part() -> None:
    question = encode_question(tokenizer(), "w5 w6 ", ["w7 w8", "w9"])
    assert question == Question((1, 5, 6), ((7, 8), (9,)))


def test_a_token_that_prompt_and_answer_share_belongs_to_all_answers() -> None:
    # "w5 w1" + "2" is w5 w12: the last word of the prompt alone is another token
    question = encode_question(tokenizer(), "w5 w1", ["2", "3 w4", " w7"])
    assert question == Question((1, 5), ((12,), (13, 4), (0, 7)))  # w1 alone is unknown


def test_what_cannot_be_ranked_is_refused(tuner: Tuner) -> None:
    for answers in ([], ["w4", ""], ["w4", "w4"]):
        with pytest.raises(DataError, match="cannot be ranked"):
            encode_question(tokenizer(), "w3 ", answers)
    with pytest.raises(DataError, match=r"sequence 1 \(65 tokens\)"):
        rank(tuner, [Question((1,), ((3,), (4,) * 64))], 8)
    with pytest.raises(DataError, match="prompt 0"):
        rank(tuner, [Question((), ((3,),))], 8)


def test_a_network_that_predicts_no_tokens_is_refused() -> None:
    import timm

    from gistcli.backbones.base import Origin
    from gistcli.backbones.vit import ViT
    from gistcli.methods.lora import Lora

    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, depth=1)
    vit = Lora(rank=2).attach(ViT(model, Origin("tiny", "vit_tiny_patch16_224")))
    with pytest.raises(NotSupported, match="predicts no next token"):
        rank(vit, QUESTIONS, 8)
