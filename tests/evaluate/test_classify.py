"""Predictions of a real tuner."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from gistcli.data import ImageSplit
from gistcli.evaluate import predict, scalars, score
from gistcli.evaluate.metrics import wilson
from gistcli.methods.base import Tuner
from gistcli.reporting import Reporter

CLASSES = [str(i) for i in range(10)]


def test_predictions_come_in_the_order_of_the_split_with_its_labels(
    tuner: Tuner, digits: ImageSplit
) -> None:
    found = predict(tuner, digits, 16)
    assert found.index.tolist() == list(range(50))
    assert torch.equal(found.labels, digits.labels)
    assert found.names == digits.names
    assert found.logits.shape == (50, 10)
    assert found.logits.dtype == torch.float32
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(50))
    assert torch.equal(found.predicted, found.logits.argmax(1))
    assert len(found) == 50


def test_the_batch_size_changes_nothing_but_rounding(tuner: Tuner, digits: ImageSplit) -> None:
    whole = predict(tuner, digits, 50)
    for size in (1, 7):
        torch.testing.assert_close(predict(tuner, digits, size).logits, whole.logits)


def test_drop_path_is_off_inside_and_every_mode_is_as_before_behind(
    tuner: Tuner, digits: ImageSplit
) -> None:
    tuner.train()
    tuner.backbone.train()
    tuner.backbone.model.norm.eval()  # a module that somebody keeps out of training
    assert torch.equal(predict(tuner, digits, 25).logits, predict(tuner, digits, 25).logits)
    assert tuner.training
    assert tuner.backbone.model.blocks[0].training
    assert not tuner.backbone.model.norm.training
    assert all(p.grad is None for p in tuner.parameters())


def test_one_step_of_the_tuner_surrounds_all_batches(
    tuner: Tuner, digits: ImageSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    @contextmanager
    def step() -> Iterator[None]:
        events.append("enter")
        yield
        events.append("exit")

    monkeypatch.setattr(tuner, "step", step)
    handle = tuner.backbone.model.register_forward_hook(
        lambda *_: events.append("batch" if not torch.is_grad_enabled() else "gradients")
    )
    predict(tuner, digits, 20)
    handle.remove()
    assert [e for e in events if e != "batch"] == ["enter", "exit"]
    assert (events[0], events[-1]) == ("enter", "exit")


def test_bfloat16_autocast_is_close_and_not_equal(tuner: Tuner, digits: ImageSplit) -> None:
    exact = predict(tuner, digits, 50).logits
    rounded = predict(tuner, digits, 50, precision="bf16").logits
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.02)


def test_figures_are_json_and_agree_with_the_logits(tuner: Tuner, digits: ImageSplit) -> None:
    found = predict(tuner, digits, 50)
    figures = score(found, CLASSES)
    right = int((found.predicted == digits.labels).sum())
    assert figures["accuracy"] == right / 50
    assert figures["interval"] == list(wilson(right, 50))
    log_p = found.logits.double().log_softmax(1)[torch.arange(50), digits.labels]
    assert figures["loss"] == pytest.approx(-float(log_p.mean()), rel=1e-6)
    assert figures["top5_accuracy"] >= figures["accuracy"]
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert set(scalars(figures)) == {
        "accuracy", "balanced_accuracy", "macro_f1", "matthews", "loss", "top5_accuracy",
    }  # fmt: skip


def test_progress_is_told_in_examples_and_ended_also_on_an_error(
    tuner: Tuner, digits: ImageSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []

    class Listener(Reporter):
        def start(self, phase: str, total: int, unit: str = "steps") -> None:
            told.append((phase, total, unit))

        def advance(self, phase: str, units: int = 1, **figures: float) -> None:
            told.append(units)

        def finish(self, phase: str) -> None:
            told.append("end")

    predict(tuner, digits, 20, reporter=Listener(), phase="validate")
    assert told == [("validate", 50, "examples"), 20, 20, 10, "end"]
    monkeypatch.setattr(tuner, "forward", lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict(tuner, digits, 20, reporter=Listener())
    assert told[-1] == "end"
