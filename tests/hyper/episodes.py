"""Tiny decoders with a hypernetwork on them, and batches of episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gistcli.backbones.causal import Causal
from gistcli.hyper.hyperllama import HyperTuner
from gistcli.hyper.section import Hyper
from gistcli.methods.base import Method
from gistcli.methods.lora import Lora
from tests.backbones.text_kinds import PAD, VOCABULARY, build

ALL_LINEAR = ("query", "key", "value", "attn_out", "fc_in", "fc_gate", "fc_out")
LLAMA = Lora(rank=3, targets=ALL_LINEAR)
GISTS = 3


def decoder(name: str = "Llama", **more: Any) -> Causal:
    found = build(name, "causal_lm", **more)
    assert isinstance(found, Causal)
    return found


def attach(
    backbone: Causal, method: Method | None = None, *, moved: bool = True, **options: Any
) -> HyperTuner:
    """With whatever starts at zero moved away from it, so that everything acts."""
    torch.manual_seed(0)
    hyper = Hyper.model_validate({"gists": GISTS, **options})
    tuner = hyper.wrap(method or LLAMA).attach(backbone)
    if moved:
        generator = torch.Generator().manual_seed(2)
        for name, trained in tuner.trainable().items():
            if name != "hyper.gists":
                noise = torch.randn(trained.parameter.shape, generator=generator)
                trained.parameter.data.add_(0.2 * noise.to(trained.parameter))
    return tuner.eval()


def episodes(
    contexts: Sequence[int] = (7, 4, 5), queries: Sequence[Sequence[int]] = ((5,), (6,), (3,))
) -> dict[str, Tensor]:
    """Rows [context][gists][queries], right-padded; the last two tokens of each query are learnt.

    Args:
        contexts: length of every row's context.
        queries: lengths of every row's queries.
    """
    generator = torch.Generator().manual_seed(3)
    rows = []
    for context, lengths in zip(contexts, queries, strict=True):
        spans = [1] * context + [2] * GISTS
        learnt = [False] * len(spans)
        for number, length in enumerate(lengths):
            spans += [3 + number] * length
            learnt += [False] * (length - 2) + [True] * 2
        ids = torch.randint(3, VOCABULARY, (len(spans),), generator=generator)
        rows.append((ids, torch.tensor(spans), torch.tensor(learnt)))
    width = max(len(ids) for ids, _, _ in rows)
    batch = {
        "input_ids": torch.full((len(rows), width), PAD),
        "spans": torch.zeros(len(rows), width, dtype=torch.long),
        "labels": torch.full((len(rows), width), -100),
    }
    for number, (ids, spans, learnt) in enumerate(rows):
        batch["input_ids"][number, : len(ids)] = ids.masked_fill(spans == 2, PAD)
        batch["spans"][number, : len(ids)] = spans
        batch["labels"][number, : len(ids)] = ids.masked_fill(~learnt, -100)
    batch["attention_mask"] = (batch["spans"] > 0).long()
    batch["index"] = torch.arange(len(rows))
    return batch


def front(batch: dict[str, Tensor], row: int | None = None) -> dict[str, Tensor]:
    """Context and gists alone; of one row without padding, or of all with it on the right."""
    rows = range(len(batch["spans"])) if row is None else [row]
    lengths = [int(((batch["spans"][r] == 1) | (batch["spans"][r] == 2)).sum()) for r in rows]
    found = {}
    for name in ("input_ids", "attention_mask", "spans"):
        table = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
        for number, (r, length) in enumerate(zip(rows, lengths, strict=True)):
            table[number, :length] = batch[name][r, :length]
        found[name] = table
    return found


def query(batch: dict[str, Tensor], row: int, number: int = 0) -> dict[str, Tensor]:
    """One query of one row as a text."""
    places = batch["spans"][row] == 3 + number
    ids = batch["input_ids"][row, places][None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def gradients(tuner: HyperTuner, loss: Tensor) -> dict[str, Tensor]:
    """By name; zeros where none arrives."""
    named = {n: t.parameter for n, t in tuner.trainable().items()}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(named.items(), found, strict=True)
    }
