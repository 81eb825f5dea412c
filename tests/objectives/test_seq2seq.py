"""The loss of encoder-decoders: transformers' own, whatever the micro-batches and pieces."""

from __future__ import annotations

import pytest
import torch

from gistcli import registry
from gistcli.evaluate.language.perplexity import perplexity
from gistcli.methods.full import Full
from gistcli.objectives import Seq2SeqLM
from tests.backbones.test_seq2seq import KINDS, pairs, seq2seq
from tests.backbones.text_kinds import network


@pytest.mark.parametrize("kind", ["T5", "Flan-T5"])
def test_loss_and_gradients_are_those_of_transformers(kind: str) -> None:
    name, more = KINDS[kind]
    theirs = network(name, "seq2seq", **more)
    expected = theirs(**pairs()).loss
    expected.backward()
    for chunk in (None, 2):
        backbone = seq2seq(name, **more)
        tuner = Full().attach(backbone).eval()
        objective = registry.resolve("objectives", "seq2seq")(tuner, chunk_tokens=chunk)
        assert isinstance(objective, Seq2SeqLM)
        window = [{k: v[rows] for k, v in pairs().items()} for rows in (slice(0, 2), slice(2, 3))]
        tokens = sum(objective.count(batch) for batch in window)
        assert tokens == 15
        total = torch.zeros(())
        for batch in window:
            losses = objective(batch, tokens)
            assert losses.parts.keys() == {"seq2seq"}
            losses.total.backward()
            total += losses.total.detach()
        assert float(total) == pytest.approx(expected.item(), rel=1e-5)
        wanted = {n: p.grad for n, p in theirs.named_parameters()}
        for key, trained in tuner.trainable().items():
            ours, scale = trained.parameter.grad, float(wanted[key].abs().max())
            assert torch.allclose(ours, wanted[key], atol=1e-5 * max(scale, 1.0)), key
        tuner.detach()


def test_perplexity_is_a_mean_over_the_tokens_of_all_targets() -> None:
    theirs = network("T5", "seq2seq")(**pairs()).loss.item()

    class Rows:
        def __len__(self) -> int:
            return 3

        def batches(self, size: int, *, seed: int | None) -> list[dict[str, torch.Tensor]]:
            return [{k: v[i : i + size] for k, v in pairs().items()} for i in range(0, 3, size)]

    tuner = Full().attach(seq2seq("T5"))
    found = perplexity(tuner, Rows(), 2)  # type: ignore[arg-type]
    assert found["tokens"] == 15
    assert found["loss"] == pytest.approx(theirs, rel=1e-5)
