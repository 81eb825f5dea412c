"""Answers of a language model against those of the data: written, or the likeliest of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gistcli.backbones.seq2seq import Seq2Seq
from gistcli.data.text.tokenizer import Tokenizer
from gistcli.evaluate.language.generation import Decoding, Generated, generate
from gistcli.evaluate.language.models import language_model
from gistcli.evaluate.language.protocols import PROTOCOLS, judge, score_judged
from gistcli.evaluate.language.ranking import Question, Ranking, rank, score_rankings
from gistcli.evaluate.language.rouge import rouge_l
from gistcli.methods.base import Tuner
from gistcli.reporting import SILENT, Reporter

FIGURES: dict[str, tuple[str, ...]] = {
    "perplexity": (),
    **dict.fromkeys(PROTOCOLS, ("accuracy", "unanswered")),
    "rank": ("accuracy", "accuracy_by_mean"),
    "rouge": ("rouge_l",),
}
"""What `eval.protocol` may be -> what is measured then, the figure of tables first."""
ROUGE_TOKENS = 256
"""Of texts that are compared with references, where nobody says."""


@dataclass(frozen=True)
class Query:
    """An example that is to be answered.

    Attributes:
        name: of the example.
        prompt: token ids in front of the answer.
        text: of the prompt.
        gold: the answer that the data have.
        question: the prompt with all answers that are ranked; None where one is written.
        options: these answers.
    """

    name: str
    prompt: tuple[int, ...]
    text: str
    gold: str
    question: Question | None = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answered:
    """What became of the queries of a split.

    Attributes:
        figures: JSON values, `n` among them; those of FIGURES are floats.
        intervals: figure -> its 95 % Wilson interval.
        rows: a JSON object for each query.
    """

    figures: Mapping[str, Any]
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()


def answers(
    tuner: Tuner,
    tokenizer: Tokenizer,
    protocol: str,
    queries: Sequence[Query],
    batch_size: int,
    *,
    max_new_tokens: int | None = None,
    precision: str = "fp32",
    reporter: Reporter = SILENT,
    phase: str = "answer",
) -> Answered:
    """Answers all queries greedily, or by the likelihoods of their options, and scores them.

    A prompt that leaves the network no room for a written answer is answered by nothing.

    Args:
        tuner: attached to a language model.
        tokenizer: of the model.
        protocol: a key of FIGURES.
        queries: with options for `rank`.
        batch_size: texts at a time.
        max_new_tokens: of a written answer; None for those of the protocol.
        precision: fp32 or bf16 autocast.
        reporter: gets a phase of that name.
        phase: its name.

    Raises:
        NotSupported: the network predicts no tokens, or the method acts outside of the network.
        DataError: an answer of the data without what the protocol compares.
    """
    common: dict[str, Any] = {"precision": precision, "reporter": reporter, "phase": phase}
    if protocol == "rank":
        return _ranked(tuner, queries, batch_size, common)
    most = max_new_tokens or (
        PROTOCOLS[protocol].max_new_tokens if protocol in PROTOCOLS else ROUGE_TOKENS
    )
    written = _written(tuner, tokenizer, queries, most, batch_size, common)
    if protocol == "rouge":
        return _compared(queries, written)
    return _judged(protocol, queries, written)


def fits(tuner: Tuner, query: Query) -> bool:
    """Whether the network has room for a token behind the prompt, or for every option."""
    backbone = language_model(tuner)
    if backbone.positions is None or isinstance(backbone, Seq2Seq):
        return True
    if query.question is not None:
        longest = max(len(answer) for answer in query.question.answers)
        return len(query.question.prompt) + longest <= backbone.positions
    return len(query.prompt) < backbone.positions


def _written(
    tuner: Tuner,
    tokenizer: Tokenizer,
    queries: Sequence[Query],
    most: int,
    batch_size: int,
    common: Mapping[str, Any],
) -> list[Generated]:
    able = [i for i, query in enumerate(queries) if fits(tuner, query)]
    prompts = [queries[i].prompt for i in able]
    found = generate(tuner, tokenizer, prompts, Decoding(most), batch_size, **common)
    by_place = dict(zip(able, found, strict=True))
    return [by_place.get(i, Generated("", (), False)) for i in range(len(queries))]


def _judged(protocol: str, queries: Sequence[Query], written: Sequence[Generated]) -> Answered:
    judged = judge(protocol, [w.text for w in written], [q.gold for q in queries])
    figures = score_judged(judged)
    interval, n = figures.pop("interval"), figures["n"]
    figures["unanswered"] = figures["unanswered"] / n if n else 0.0
    rows = [
        {**_beginning(query, text), "answer": one.answer, "gold": one.gold, "right": one.right}
        for query, text, one in zip(queries, written, judged, strict=True)
    ]
    return Answered(figures, {"accuracy": interval}, rows)


def _compared(queries: Sequence[Query], written: Sequence[Generated]) -> Answered:
    scores = [rouge_l(w.text, q.gold) for q, w in zip(queries, written, strict=True)]
    rows = [
        {**_beginning(query, text), "gold": query.gold, "rouge_l": score}
        for query, text, score in zip(queries, written, scores, strict=True)
    ]
    n = len(queries)
    return Answered({"n": n, "rouge_l": sum(scores) / n if n else 0.0}, {}, rows)


def _beginning(query: Query, written: Generated) -> dict[str, Any]:
    return {
        "name": query.name,
        "prompt": query.text,
        "text": written.text,
        "finished": written.finished,
    }


def _ranked(
    tuner: Tuner, queries: Sequence[Query], batch_size: int, common: Mapping[str, Any]
) -> Answered:
    questions = [query.question for query in queries if query.question is not None]
    rankings = rank(tuner, questions, batch_size, **common)
    right = [query.options.index(query.gold) for query in queries]
    figures = score_rankings(rankings, right)
    intervals = {
        "accuracy": figures.pop("interval"),
        "accuracy_by_mean": figures.pop("interval_by_mean"),
    }
    rows = [_row(*one) for one in zip(queries, rankings, strict=True)]
    return Answered(figures, intervals, rows)


def _row(query: Query, ranking: Ranking) -> dict[str, Any]:
    by_sum, by_mean = query.options[ranking.by_sum], query.options[ranking.by_mean]
    return {
        "name": query.name,
        "prompt": query.text,
        "options": list(query.options),
        "nll": list(ranking.nll),
        "tokens": list(ranking.tokens),
        "answer": by_sum,
        "answer_by_mean": by_mean,
        "gold": query.gold,
        "right": by_sum == query.gold,
    }
