"""The traced step holds what a real one holds, to the byte where nothing is chosen by values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import profile

from gistcli.backbones.base import Backbone
from gistcli.methods.base import Method
from gistcli.methods.full import Full
from gistcli.methods.gift import Gift
from gistcli.methods.gift_v1 import GiftV1
from gistcli.methods.lora import Lora
from gistcli.methods.ssf import Ssf
from gistcli.objectives import CausalLM, Classification, Objective
from gistcli.testing.kinds import KINDS, Kind
from gistcli.testing.kinds import batch as images_or_texts
from gistcli.train.footprint import fixed_footprint, weight_bytes
from gistcli.train.tracing import Peak, Tracer, equal_runs, shortened
from tests.backbones import text_kinds

CPU = torch.device("cpu")
Make = Callable[[], Objective]
Batch = dict[str, Tensor]


def language_model(
    method: Method,
    *,
    meta: bool,
    name: str = "Llama",
    checkpointing: bool = False,
    chunk: int | None = None,
    **more: Any,
) -> CausalLM:
    backbone: Any = text_kinds.build(name, "causal_lm", **more)
    if checkpointing:
        backbone.checkpoint_gradients()
    if meta:
        backbone.to("meta")
        backbone.model.tie_weights()
    backbone.train()
    return CausalLM(method.attach(backbone), chunk_tokens=chunk)


def texts(rows: int = 4, length: int = 24, packed: bool = False) -> Batch:
    batch = text_kinds.batch(rows, length)
    supervised = batch["attention_mask"].bool() & (torch.arange(length) > length // 3)
    labels = torch.where(supervised, batch["input_ids"], -100)
    if packed:
        segments = (1 + (torch.arange(length) > length // 2).long()).expand(rows, -1)
        batch["segments"] = segments * batch["attention_mask"]
    return {**batch, "labels": labels}


def step(objective: Objective, batch: Batch, precision: str) -> Tensor:
    with objective.tuner.step():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            total = objective(batch, objective.count(batch)).total
        total.backward()
    return total


def measured(objective: Objective, batch: Batch, precision: str = "fp32") -> int:
    """The most bytes that the allocator had given out in the second step."""
    step(objective, batch, precision)
    with profile(profile_memory=True) as profiler:
        step(objective, batch, precision)
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    now = peak = 0
    for event in events:
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def traced(objective: Objective, batch: Batch, precision: str = "fp32") -> Peak:
    return Tracer(objective.tuner, CPU, precision).peak(objective, batch)


@pytest.mark.parametrize(
    ("method", "how", "precision"),
    [
        (Gift(rank=2), {}, "fp32"),
        (Gift(rank=2), {"checkpointing": True}, "fp32"),
        (Gift(rank=2), {"vocab_size": 3000}, "fp32"),
        (Gift(rank=2), {"vocab_size": 3000, "chunk": 8}, "fp32"),
        (Lora(rank=2, layers=(-1,)), {}, "fp32"),
        (Lora(rank=2, dropout=0.1), {"num_hidden_layers": 5}, "fp32"),
        (Ssf(), {}, "bf16"),
        (Full(), {"num_hidden_layers": 4}, "fp32"),
        (Gift(rank=2), {"name": "GPT2"}, "fp32"),
    ],
)
def test_a_language_model_holds_what_was_foreseen(
    method: Method, how: dict[str, Any], precision: str
) -> None:
    real = measured(language_model(method, meta=False, **how), texts(), precision)
    foreseen = traced(language_model(method, meta=True, **how), texts(), precision)
    assert foreseen.bytes == pytest.approx(real, rel=0.05)
    assert foreseen.saved <= foreseen.bytes
    assert foreseen.logits < foreseen.bytes


def test_packed_rows_are_foreseen_too() -> None:
    real = measured(language_model(Gift(rank=2), meta=False), texts(packed=True))
    foreseen = traced(language_model(Gift(rank=2), meta=True), texts(packed=True))
    assert foreseen.bytes == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize(
    ("kind", "method"),
    [("RoBERTa", Gift(rank=2)), ("class token", GiftV1()), ("EVA02", Lora(rank=2))],
)
def test_classifiers_of_texts_and_pictures_hold_what_was_foreseen(
    kind: str, method: Method
) -> None:
    batch = images_or_texts(KINDS[kind])
    real = measured(_classifier(KINDS[kind], method), batch)
    foreseen = traced(_classifier(KINDS[kind], method, meta=True), batch)
    assert foreseen.bytes == pytest.approx(real, rel=0.05)


def _classifier(kind: Kind, method: Method, *, meta: bool = False) -> Classification:
    backbone: Backbone = kind.backbone(meta=meta).train()
    return Classification(method.attach(backbone))


def test_what_is_saved_is_what_the_graph_keeps() -> None:
    objective, batch = language_model(Lora(rank=2), meta=False), texts()
    there = [*objective.model.parameters(), *objective.model.buffers()]
    there += [*objective.tuner.parameters(), *batch.values()]
    known = {tensor.untyped_storage().data_ptr() for tensor in there}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = objective(batch, objective.count(batch)).total
    foreseen = traced(language_model(Lora(rank=2), meta=True), batch)
    assert total.requires_grad
    assert foreseen.saved == pytest.approx(sum(kept.values()), rel=0.03)


@pytest.mark.parametrize("layers", ["all", (2, 3, 4)])
def test_equal_blocks_are_extrapolated_exactly(layers: Any) -> None:
    def objective() -> Objective:
        return language_model(Gift(rank=2, layers=layers), meta=True, num_hidden_layers=6)

    made = objective()
    tracer = Tracer(made.tuner, CPU)
    whole = tracer._run(made, texts())
    runs = equal_runs(tracer.tuner.backbone)
    assert len(runs) == (1 if layers == "all" else 3)
    assert tracer.peak(made, texts()) == whole
    (blocks,) = {run.container for run in runs}
    assert len(list(blocks.children())) == 6
    with shortened(runs, [1] * len(runs)):
        assert len(list(blocks.children())) == len(runs)


def test_tied_weights_count_once_and_everything_trained_four_times() -> None:
    tied: Any = text_kinds.build("Llama", "causal_lm")
    apart: Any = text_kinds.build("Llama", "causal_lm", tie_word_embeddings=False)
    embedding = 4 * tied.hf.lm_head.weight.numel()
    assert weight_bytes(apart.model) - weight_bytes(tied.model) == embedding
    weights = weight_bytes(tied.model)
    tuner = Lora(rank=2).attach(tied)
    found = fixed_footprint(weights, tuner, "adamw")
    trained = 4 * sum(t.parameter.numel() for t in tuner.trainable().values())
    assert (found.trained, found.gradients, found.optimiser) == (trained, trained, 2 * trained)
    assert found.total == weights + 4 * trained
    assert fixed_footprint(weights, tuner, "sgd").total == weights + 3 * trained


@pytest.mark.parametrize("name", ["Gemma2", "GPTNeoX"])
def test_other_decoders_are_traced(name: str) -> None:
    objective = language_model(Gift(rank=2), meta=True, name=name)
    real = measured(language_model(Gift(rank=2), meta=False, name=name), texts())
    assert traced(objective, texts()).bytes == pytest.approx(real, rel=0.05)
