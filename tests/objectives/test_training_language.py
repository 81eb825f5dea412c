"""Language models through the training loop: windows of tokens, packed rows, a loss that falls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gistcli.data.text.encoding import Encoded
from gistcli.data.text.split import TextSplit
from gistcli.evaluate.language.perplexity import perplexity
from gistcli.methods.lora import Lora
from gistcli.objectives import CausalLM
from gistcli.train.engine import open_accelerator
from gistcli.train.loop import fit
from gistcli.train.plan import OptimPlan, Plan
from tests.objectives.tiny_lm import tiny_lm


def counting(packing: bool = False) -> TextSplit:
    """Sixteen texts that count upwards, of 3 to 18 tokens; the first two are not learnt."""
    sequences = []
    for i in range(16):
        ids = np.arange(3 + i, 6 + 2 * i, dtype=np.int32)
        labels = np.where(np.arange(len(ids)) < 2, -100, ids).astype(np.int32)
        sequences.append(Encoded(ids, labels, name=f"text {i}"))
    return TextSplit(sequences, None, pad_id=2, capacity=32, packing=packing)


def trained(chunk: int | None = None, **changes: int) -> tuple[CausalLM, dict[str, Tensor], float]:
    """The objective, the tuner's state and the last loss of four epochs."""
    torch.manual_seed(2)
    tuner = Lora(rank=4, targets=["query", "value", "fc_in"]).attach(tiny_lm())
    task = CausalLM(tuner, chunk_tokens=chunk)
    plan = Plan(epochs=4, batch_size=8, optim=OptimPlan(lr=1e-2), **changes)
    result = fit(task, counting(), plan, open_accelerator(torch.device("cpu")))
    losses = [r["train/loss"] for r in result.history if "train/loss" in r]
    return task, tuner.state(), losses[-1]


@pytest.mark.parametrize(("chunk", "micro"), [(None, 3), (5, 8), (5, 1)])
def test_micro_batches_and_chunks_train_the_same_network(chunk: int | None, micro: int) -> None:
    _, whole, _ = trained()
    _, pieces, _ = trained(chunk, micro_batch_size=micro)
    for name, tensor in whole.items():
        assert tensor.abs().max() > 0
        torch.testing.assert_close(pieces[name], tensor, rtol=1e-3, atol=2e-5)


def test_training_lowers_the_perplexity_that_evaluation_finds() -> None:
    task, _, loss = trained()
    split = counting()
    tuned = perplexity(task.tuner, split, 5)
    with task.tuner.disabled():
        base = perplexity(task.tuner, split, 5)
    assert tuned["tokens"] == base["tokens"] == split.supervised
    assert tuned["loss"] < base["loss"] - 0.5
    assert loss < base["loss"]


@pytest.mark.parametrize("chunk", [None, 7])
def test_packed_rows_cost_what_their_texts_cost_alone(chunk: int | None) -> None:
    tuner = Lora(rank=4, targets=["query", "value"]).attach(tiny_lm())
    torch.manual_seed(5)
    for parameter in tuner.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    task = CausalLM(tuner.eval(), chunk_tokens=chunk)
    totals, counts = [], []
    for split in (counting(), counting(packing=True)):
        batches = list(split.batches(4, seed=None))
        counts.append(sum(task.count(b) for b in batches))
        totals.append(sum(task(b, 100.0).total.item() for b in batches))
    assert len(counting(packing=True)) < 8
    assert counts == [counting().supervised] * 2
    assert totals[1] == pytest.approx(totals[0], rel=1e-5)
