"""The training loop takes a split of text as it takes one of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gistcli.data.text import Encoder, Plain, TextOptions, TextSplit, load_texts
from gistcli.errors import DataError
from gistcli.methods.lora import Lora
from gistcli.objectives.causal_lm import CausalLM
from gistcli.train import OptimPlan, Plan, fit, open_accelerator
from tests.data.text.tokens import words
from tests.objectives.tiny_lm import tiny_lm

PLAN = Plan(
    epochs=2, batch_size=4, micro_batch_size=3, save_steps=2, optim=OptimPlan(lr=1e-2, head_lr=1e-2)
)


class Cut:
    """A split that fails before step `at` of the first epoch."""

    def __init__(self, split: TextSplit, at: int) -> None:
        self.split, self.at = split, at
        self.names, self.labels = split.names, split.labels

    def __len__(self) -> int:
        return len(self.split)

    def batches_per_epoch(self, batch_size: int) -> int:
        return self.split.batches_per_epoch(batch_size)

    def batches(self, batch_size: int, **place: Any) -> Iterator[Mapping[str, Tensor]]:
        for number, batch in enumerate(self.split.batches(batch_size, **place)):
            if number == self.at:
                raise RuntimeError("cut")
            yield batch


def documents(word: str = "w7", **options: Any) -> TextSplit:
    examples = [
        Plain(" ".join([*(f"w{(i * j) % 50}" for j in range(i % 9 + 1)), word]), f"f:{i}")
        for i in range(30)
    ]
    encoder = Encoder(words(), TextOptions(**options), 16)
    return load_texts("documents", examples, encoder, train=True)


def trained(split: Any, checkpoints: Path | None = None) -> tuple[dict[str, Tensor], list[float]]:
    network = tiny_lm()
    torch.manual_seed(1)
    task = CausalLM(Lora(rank=2).attach(network))
    accelerator = open_accelerator(torch.device("cpu"), "fp32")
    result = fit(task, split, PLAN, accelerator, checkpoints=checkpoints)
    losses = [record["train/loss"] for record in result.history if "train/loss" in record]
    return {name: t.clone() for name, t in task.tuner.state().items()}, losses


@pytest.mark.parametrize("mode", [{}, {"packing": True}, {"group_by_length": True}])
def test_a_run_cut_short_ends_in_the_same_bits(tmp_path: Path, mode: dict[str, Any]) -> None:
    split = documents(**mode)
    whole, losses = trained(split)
    assert len(losses) == 2 * split.batches_per_epoch(4)
    half = len(losses) // 2
    assert sum(losses[half:]) < sum(losses[:half])
    with pytest.raises(RuntimeError, match="cut"):
        trained(Cut(split, 2 if "packing" in mode else 5), tmp_path)
    resumed, _ = trained(documents(**mode), tmp_path)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_packed_rows_have_the_loss_of_their_sequences_one_by_one() -> None:
    task = CausalLM(Lora(rank=2).attach(tiny_lm())).eval()
    with torch.no_grad():
        for parameter in task.tuner.parameters():
            parameter.normal_(std=0.1)
        means = []
        for mode in ({}, {"packing": True}):
            batches = list(documents(**mode).batches(4, seed=0))
            tokens = sum(task.count(batch) for batch in batches)
            means.append(sum(float(task(batch, tokens).total) for batch in batches))
            assert tokens == documents(**mode).supervised
    assert means[0] == pytest.approx(means[1], abs=1e-5)


def test_a_run_does_not_go_on_with_other_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cut"):
        trained(Cut(documents(), 5), tmp_path)
    with pytest.raises(DataError, match="not those that the checkpoint"):
        trained(documents(word="w8"), tmp_path)
