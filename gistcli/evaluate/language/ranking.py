"""Rank classification: of several answers to a prompt, the one that the model finds likeliest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gistcli.backbones.seq2seq import Seq2Seq
from gistcli.data.text.collate import collate
from gistcli.data.text.encoding import IGNORED, Encoded
from gistcli.data.text.tokenizer import Tokenizer
from gistcli.errors import DataError
from gistcli.evaluate.classify import autocast, evaluation_mode
from gistcli.evaluate.language.likelihood import batch_losses
from gistcli.evaluate.language.models import (
    device_of,
    language_model,
    require_room,
)
from gistcli.evaluate.metrics import wilson
from gistcli.methods.base import Tuner
from gistcli.objectives.chunked import deferred_logits
from gistcli.reporting import SILENT, Reporter


@dataclass(frozen=True)
class Question:
    """Token ids of a prompt, and of what follows it in each answer."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Ranking:
    """How likely each answer to one question is.

    Attributes:
        nll: -log p(answer | prompt) in nats, summed over its tokens.
        tokens: how many these are.
    """

    nll: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def by_sum(self) -> int:
        """The answer with the highest probability; the first of equal ones."""
        return min(range(len(self.nll)), key=lambda i: self.nll[i])

    @property
    def by_mean(self) -> int:
        """The answer with the highest probability a token; the first of equal ones."""
        return min(range(len(self.nll)), key=lambda i: self.nll[i] / self.tokens[i])


def encode_question(
    tokenizer: Tokenizer, prompt: str, answers: Sequence[str], *, begun: bool = False
) -> Question:
    """Token ids of prompt and answers, as the whole text `prompt + answer` has them.

    Where the last characters of the prompt share a token with an answer (a space, mostly), that
    token counts as part of every answer, so that all of them follow the same prompt.

    Args:
        tokenizer: of the model.
        prompt: the text in front.
        answers: that may follow.
        begun: the prompt holds the tokens that belong in front of a text, as chats do.

    Raises:
        DataError: no answer, an empty one, or two that are the same.
    """
    if not answers or "" in answers or len(set(answers)) < len(answers):
        raise DataError(
            f"The answers {list(answers)!r} cannot be ranked.", "Give different, non-empty answers."
        )
    own, *wholes = tokenizer.ids([prompt, *(prompt + answer for answer in answers)])
    shared = min(_common(own, whole) for whole in wholes)
    # an answer that adds no token of its own leaves one to be predicted
    shared = min(shared, *(len(whole) - 1 for whole in wholes))
    before = (*(() if begun else tokenizer.prefix), *wholes[0][:shared])
    return Question(before, tuple(tuple(whole[shared:]) for whole in wholes))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def rank(
    tuner: Tuner,
    questions: Sequence[Question],
    batch_size: int,
    *,
    precision: str = "fp32",
    reporter: Reporter = SILENT,
    phase: str = "rank",
) -> list[Ranking]:
    """The likelihood of every answer to every question, in right-padded batches of like lengths.

    Args:
        tuner: attached to a language model; left in the mode it was in.
        questions: as `encode_question` gives them.
        batch_size: sequences at a time; changes speed, memory and rounding only.
        precision: fp32 or bf16 autocast, as in training.
        reporter: gets a phase of that name, in sequences.
        phase: its name.

    Raises:
        NotSupported: the network predicts no tokens.
        DataError: a prompt without a token, or a sequence beyond the network's positions.
    """
    backbone = language_model(tuner)
    pairs = [(q.prompt, answer) for q in questions for answer in q.answers]
    require_room([len(q.prompt) for q in questions], None, "prompt")
    apart = isinstance(backbone, Seq2Seq)  # answers stand in the decoder
    if not apart:
        require_room([len(p) + len(a) for p, a in pairs], backbone.positions, "sequence")
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    sums = torch.zeros(len(pairs), dtype=torch.float64)
    device = device_of(backbone)
    reporter.start(phase, len(pairs), "sequences")
    try:
        with (
            evaluation_mode(tuner, backbone),
            torch.no_grad(),
            tuner.step(),
            deferred_logits(backbone),
        ):
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                batch = _batch([pairs[i] for i in chosen], device, apart)
                with autocast(device, precision):
                    features = tuner(batch)
                rows_N, losses_N = batch_losses(backbone, batch, features, precision)
                sums.index_add_(0, torch.tensor(chosen)[rows_N.cpu()], losses_N.double().cpu())
                reporter.advance(phase, len(chosen))
    finally:
        reporter.finish(phase)
    return _gathered(questions, sums.tolist())


def _batch(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], device: torch.device, apart: bool
) -> dict[str, Tensor]:
    """Right-padded rows; the answers alone are supervised, behind the prompts or `apart`."""
    rows = [
        Encoded(np.array(prompt), np.array(answer))
        if apart
        else Encoded(np.array([*prompt, *answer]), np.array([IGNORED] * len(prompt) + [*answer]))
        for prompt, answer in pairs
    ]
    batch = collate(rows, pad_id=0, multiple=1)
    return {key: value.to(device) for key, value in batch.items()}


def _gathered(questions: Sequence[Question], sums: Sequence[float]) -> list[Ranking]:
    found, start = [], 0
    for question in questions:
        stop = start + len(question.answers)
        found.append(Ranking(tuple(sums[start:stop]), tuple(len(a) for a in question.answers)))
        start = stop
    return found


def score_rankings(rankings: Sequence[Ranking], right: Sequence[int]) -> dict[str, Any]:
    """Rates of right choices, with 95 % Wilson intervals.

    Args:
        rankings: of N questions.
        right: number of the right answer of each.

    Returns:
        `n`; `accuracy` and `interval` by the sum; `accuracy_by_mean` and `interval_by_mean` by the
        probability a token.
    """
    pairs = list(zip(rankings, right, strict=True))
    n = len(pairs)
    by_sum = sum(r.by_sum == i for r, i in pairs)
    by_mean = sum(r.by_mean == i for r, i in pairs)
    return {
        "n": n,
        "accuracy": by_sum / n if n else 0.0,
        "interval": list(wilson(by_sum, n)),
        "accuracy_by_mean": by_mean / n if n else 0.0,
        "interval_by_mean": list(wilson(by_mean, n)),
    }
