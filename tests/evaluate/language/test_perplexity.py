"""Perplexity over a split against its closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor, nn

from gistcli.evaluate import scalars
from gistcli.evaluate.language import likelihood
from gistcli.evaluate.language.perplexity import perplexity
from tests.evaluate.language.words import tuned
from tests.objectives.tiny_lm import texts, tiny_lm


class Rows:
    """A split of the rows of one batch."""

    def __init__(self, batch: Mapping[str, Tensor]) -> None:
        self.batch = batch
        self.names = [f"row {i}" for i in range(len(batch["labels"]))]

    def __len__(self) -> int:
        return len(self.names)

    def batches(self, batch_size: int, *, seed: int | None) -> Iterator[Mapping[str, Tensor]]:
        for start in range(0, len(self), batch_size):
            yield {k: v[start : start + batch_size] for k, v in self.batch.items()}


@pytest.mark.parametrize("batch_size", [1, 3, 4])
@pytest.mark.parametrize("piece", [1, 2**28])
def test_every_supervised_token_weighs_the_same(
    batch_size: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "PIECE_BYTES", piece)
    tuner, batch = tuned(tiny_lm()), texts()
    figures = perplexity(tuner, Rows(batch), batch_size)
    loss = tuner.backbone.hf(**batch).loss.item()
    assert (figures["n"], figures["tokens"]) == (4, 15)
    assert figures["loss"] == pytest.approx(loss, rel=1e-6)
    assert figures["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert scalars(figures).keys() == {"loss", "perplexity"}
    assert not tuner.backbone.defers_logits


def test_a_network_that_knows_nothing_is_as_perplexed_as_there_are_words() -> None:
    tuner = tuned(tiny_lm())
    nn.init.zeros_(tuner.backbone.hf.model.norm.weight)
    assert perplexity(tuner, Rows(texts()), 4)["perplexity"] == pytest.approx(60)


def test_without_a_supervised_token_there_is_nothing_to_say() -> None:
    batch = texts()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    figures = perplexity(tuned(tiny_lm()), Rows(batch), 4)
    assert (figures["tokens"], figures["loss"], figures["perplexity"]) == (0, 0.0, 0.0)


def test_a_perplexity_beyond_all_floats_is_none() -> None:
    tuner, batch = tuned(tiny_lm()), texts()
    with torch.no_grad():
        tuner.backbone.hf.model.norm.weight.mul_(1000)
    figures = perplexity(tuner, Rows(batch), 4)
    assert figures["loss"] > 800
    assert figures["perplexity"] is None
