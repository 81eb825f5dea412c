"""What a loss behind gists is compared with, against transformers' own losses of plain texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gistcli.artifacts.comparison_sections import is_rate
from gistcli.backbones.causal import Causal
from gistcli.data.episodes import Episode, EpisodeOptions, SegmentSplit, WrongDocuments
from gistcli.data.text import Plain
from gistcli.evaluate.language.controls import control_losses
from gistcli.evaluate.language.perplexity import perplexity
from gistcli.figures import lower_is_better
from tests.data.text.tokens import words
from tests.hyper.episodes import FAMILIES, GISTS, attach, decoder

SMALL = EpisodeOptions(gists=GISTS, example_tokens=20, query_tokens=17)
"""Room for 16 tokens of A and D, and 16 of B and C; 37 in all, and the decoder has 40."""


def document(start: int, count: int) -> str:
    return " ".join(f"w{(start + 7 * i) % 50}" for i in range(count))


def split(
    lengths: tuple[int, ...] = (20, 70, 16, 40), options: EpisodeOptions = SMALL
) -> SegmentSplit:
    documents = [Plain(document(11 * i, n), f"d:{i}") for i, n in enumerate(lengths)]
    return SegmentSplit(documents, words(), options)


def plain_loss(backbone: Causal, episodes: list[Episode], *, context: bool) -> float:
    """Of C in [BOS B C], or in [BOS A D BOS B C], by the network's own class."""
    losses = []
    for episode in episodes:
        [query] = episode.queries
        front = [*(episode.context if context else ()), *query.prompt]
        ids = torch.from_numpy(np.array([[*front, *query.answer]], np.int64))
        labels = ids.clone()
        labels[:, : len(front)] = -100
        with torch.no_grad():
            found = backbone.model(input_ids=ids, labels=labels).loss  # type: ignore[operator]
        losses += [float(found)] * len(query.answer)
    return float(np.mean(losses))


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", ["Llama", "GPTNeoX"])
def test_they_are_the_untouched_networks_losses_of_plain_texts(name: str, adapted: bool) -> None:
    rows, backbone = split(), decoder(name)
    backbone.model.eval()
    episodes = [rows.episode(i, seed=None) for i in range(len(rows))]
    alone = plain_loss(backbone, episodes, context=False)
    in_context = plain_loss(backbone, episodes, context=True)
    tuner = attach(backbone, FAMILIES[name], adapt_downstream=adapted)
    for batch_size in (3, 8):
        found = control_losses(tuner, rows, batch_size)
        assert found["loss_alone"] == pytest.approx(alone, abs=1e-5)
        assert found["loss_in_context"] == pytest.approx(in_context, abs=1e-5)
    assert abs(alone - in_context) > 1e-3


def test_a_wrong_document_is_another_one_and_nothing_else() -> None:
    rows = split((20, 200, 16, 40))
    others = WrongDocuments(rows)
    assert len(others) == len(rows) > 6
    for i, partner in enumerate(others.partners):
        assert rows.stretches[partner].document is not rows.stretches[i].document
        own, swapped = rows.episode(i, seed=None), others.episode(i, seed=None)
        assert np.array_equal(swapped.queries[0].prompt, own.queries[0].prompt)
        assert np.array_equal(swapped.queries[0].answer, own.queries[0].answer)
        assert np.array_equal(swapped.context, rows.episode(partner, seed=None).context)
    [one] = others.batches(len(rows), seed=None)
    several = list(others.batches(2, seed=None))
    width = several[-1]["input_ids"].shape[1]
    last = one["input_ids"][-len(several[-1]["input_ids"]) :, :width]
    assert torch.equal(last, several[-1]["input_ids"])


def test_gists_of_the_same_text_are_worth_the_same() -> None:
    tuner = attach(decoder())
    # A and D have one token each, so that all contexts of the same text are the same
    options = EpisodeOptions(gists=GISTS, example_tokens=1 + 2 + GISTS, query_tokens=17)
    same = SegmentSplit([Plain(document(3, 18), f"d:{i}") for i in range(5)], words(), options)
    loss = perplexity(tuner, same, 4)["loss"]
    assert control_losses(tuner, same, 4)["loss_wrong_document"] == pytest.approx(loss, abs=1e-6)
    unlike = split((18,) * 5, options)
    loss = perplexity(tuner, unlike, 4)["loss"]
    assert abs(control_losses(tuner, unlike, 4)["loss_wrong_document"] - loss) > 1e-4


def test_a_single_document_has_no_wrong_one() -> None:
    found = control_losses(attach(decoder()), split((90,)), 4)
    assert found.keys() == {"loss_alone", "loss_in_context"}


def test_less_of_them_is_better_and_none_is_a_share() -> None:
    for name in ("loss", "test/loss_alone", "val/loss_in_context", "val/perplexity", "nll"):
        assert lower_is_better(name)
        assert not is_rate(name)
    for name in ("accuracy", "test/accuracy_wrong_task", "test/rouge_l"):
        assert not lower_is_better(name)
