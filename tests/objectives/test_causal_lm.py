"""The loss of a causal language model against transformers' own and against its closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gistcli import registry
from gistcli.backbones.causal import Causal
from gistcli.errors import DataError
from gistcli.methods.base import Tuner
from gistcli.methods.full import Full
from gistcli.methods.gift import Gift
from gistcli.objectives import CausalLM
from tests.objectives.tiny_lm import texts, tiny_lm


def gift(backbone: Causal | None = None) -> Tuner:
    tuner = Gift(rank=4, targets=["query", "value"]).attach(backbone or tiny_lm())
    torch.manual_seed(3)
    for psi in tuner.psi.values():
        nn.init.normal_(psi, std=0.3)
    return tuner.eval()


def gradients(task: CausalLM, batch: dict[str, Tensor], denominator: float) -> dict[str, Tensor]:
    task.zero_grad()
    task(batch, denominator).total.backward()
    return {n: t.parameter.grad.clone() for n, t in task.tuner.trainable().items()}


def test_the_loss_is_that_of_the_network_itself() -> None:
    tuner, batch = gift(), texts()
    task = CausalLM(tuner)
    count = task.count(batch)
    assert count == 5 + 5 + 1 + 4  # the first token of a row is predicted by nothing
    own = tuner.backbone.model(**batch).loss
    assert task(batch, count).total.item() == pytest.approx(own.item(), rel=1e-6)
    with tuner.disabled():
        assert task(batch, count).total.item() != pytest.approx(own.item(), rel=1e-2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_minus_the_mean_log_probability_of_the_smoothed_targets(
    smoothing: float,
) -> None:
    tuner, batch = gift(), texts()
    log_p_BTV = (
        tuner.backbone.model(batch["input_ids"], attention_mask=batch["attention_mask"])
        .logits.double()
        .log_softmax(-1)
    )
    terms = []
    for row, labels in zip(log_p_BTV, batch["labels"].tolist(), strict=True):
        for place, label in enumerate(labels[1:]):
            if label != -100:
                own = (1 - smoothing) * row[place, label] + smoothing * row[place].mean()
                terms.append(-own.item())
    losses = CausalLM(tuner, smoothing)(batch, len(terms))
    assert losses.total.item() == pytest.approx(sum(terms) / len(terms), rel=1e-6)
    assert losses.parts.keys() == {"causal_lm"}
    assert losses.logits is None


@pytest.mark.parametrize("chunk", [1, 4, 15, 100])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_in_chunks_loss_and_gradients_are_the_same(chunk: int, softcap: float | None) -> None:
    tuner, batch = gift(tiny_lm(softcap=softcap)), texts()
    plain, chunked = CausalLM(tuner, 0.1), CausalLM(tuner, 0.1, chunk_tokens=chunk)
    expected, got = plain(batch, 15), chunked(batch, 15)
    assert got.total.item() == pytest.approx(expected.total.item(), rel=1e-6)
    assert got.figures["token_accuracy"] == expected.figures["token_accuracy"]
    wanted = gradients(plain, batch, 15)
    for name, gradient in gradients(chunked, batch, 15).items():
        assert wanted[name].abs().max() > 1e-3
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-6)


def test_in_chunks_a_trained_vocabulary_gets_its_gradient_too() -> None:
    batch = texts()
    tuner = Full().attach(tiny_lm()).eval()
    wanted = gradients(CausalLM(tuner), batch, 15)
    got = gradients(CausalLM(tuner, chunk_tokens=4), batch, 15)
    assert any("embed" in name for name in got)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-6)


def test_in_chunks_evaluation_without_gradients_costs_the_same() -> None:
    tuner, batch = gift(), texts()
    with torch.no_grad():
        assert CausalLM(tuner, chunk_tokens=4)(batch, 15).total.item() == pytest.approx(
            CausalLM(tuner)(batch, 15).total.item(), rel=1e-6
        )


def test_in_chunks_autocast_computes_what_it_computes_for_the_whole() -> None:
    tuner, batch = gift(), texts()
    with torch.autocast("cpu", torch.bfloat16):
        expected = CausalLM(tuner)(batch, 15).total
        got = CausalLM(tuner, chunk_tokens=4)(batch, 15).total
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    got.backward()


@pytest.mark.parametrize("chunk", [None, 3])
def test_unequal_micro_batches_add_up_to_the_gradient_of_the_whole(chunk: int | None) -> None:
    tuner, batch = gift(), texts()
    task = CausalLM(tuner, chunk_tokens=chunk)
    whole = gradients(task, batch, task.count(batch))
    pieces = [{k: v[s] for k, v in batch.items()} for s in (slice(0, 1), slice(1, 4))]
    counts = [task.count(p) for p in pieces]
    assert counts == [5, 10]
    parts = [gradients(task, p, sum(counts)) for p in pieces]
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], gradient)
    means = [gradients(task, p, c) for p, c in zip(pieces, counts, strict=True)]
    off = [(sum(m[n] for m in means) / 2 - g).abs().max() for n, g in whole.items()]
    assert max(off) > 1e-3  # a mean of means is another gradient


@pytest.mark.parametrize("chunk", [None, 3])
def test_a_micro_batch_without_a_supervised_token_adds_nothing(chunk: int | None) -> None:
    tuner, batch = gift(), texts()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    task = CausalLM(tuner, chunk_tokens=chunk)
    assert task.count(batch) == 0
    assert all(not g.any() for g in gradients(task, batch, 15).values())
    with pytest.raises(DataError, match="supervised"):
        task(batch, 0)


def test_the_backbone_makes_logits_again_behind_a_chunked_loss() -> None:
    tuner, batch = gift(), texts()
    CausalLM(tuner, chunk_tokens=4)(batch, 15)
    assert len(tuner(batch).logits) == 15


def test_it_is_in_the_table() -> None:
    assert registry.resolve("objectives", "causal_lm") is CausalLM
