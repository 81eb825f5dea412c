"""The training loop on a real GIFT tuner and real digits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from gistcli.errors import DataError, Diverged, Interrupted, NotSupported, Refused, UnknownName
from gistcli.methods.full import Full
from gistcli.reporting import Reporter
from gistcli.train import LogRecorder, OptimPlan, Plan, Recorders, open_accelerator
from gistcli.train.source import data_fingerprint, micro_batches


class Notebook(Reporter):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.started: list[tuple[str, int]] = []
        self.done: dict[str, int] = {}
        self.figures: set[str] = set()

    def say(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(f"warning: {text}")

    def start(self, phase: str, total: int, unit: str = "steps") -> None:
        self.started.append((phase, total))

    def advance(self, phase: str, units: int = 1, **figures: float) -> None:
        self.done[phase] = self.done.get(phase, 0) + units
        self.figures |= set(figures)


class Log:
    """A log in memory."""

    def __init__(self) -> None:
        self.lines: list[Mapping[str, Any]] = []

    def append(self, record: Mapping[str, Any]) -> None:
        self.lines.append(record)

    def rewind(self, step: int) -> None:
        self.lines = [r for r in self.lines if r["step"] <= step]


def test_it_learns_and_says_what_it_does(lab: ModuleType) -> None:
    task, notebook, log = lab.objective(0.0, Full()), Notebook(), Log()
    val = lab.digits("val")
    result = lab.train(
        task, lab.digits("train"), replace(lab.PLAN, epochs=20, optim=OptimPlan(lr=3e-3)),
        evaluate=lab.validator(task, val), reporter=notebook, recorder=LogRecorder(log),
    )  # fmt: skip
    assert (result.steps, result.stopped, result.weights) == (140, None, "last")
    losses = [r["train/loss"] for r in result.history if r["kind"] == "train"]
    assert sum(losses[-7:]) < 0.5 * sum(losses[:7])
    assert result.best["value"] > 0.4
    assert result.samples_per_second > 0
    assert result.seconds > 0
    assert result.peak_memory_bytes > 10_000_000
    assert log.lines == result.history
    assert notebook.started == [("train", 140)]
    assert notebook.done == {"train": 140}
    assert notebook.figures == {"loss", "accuracy", "lr", "samples_per_s"}
    assert len(notebook.lines) == 20
    assert notebook.lines[0].startswith("epoch 1, step 7/140: validation accuracy 0.")
    assert not task.training
    assert not task.tuner.backbone.model.training


def test_a_record_is_one_flat_json_line_with_known_keys(lab: ModuleType) -> None:
    task = lab.objective()
    plan = replace(lab.PLAN, max_steps=7)
    result = lab.train(
        task, lab.digits("train"), plan, evaluate=lab.validator(task, lab.digits("val"))
    )
    first, last = result.history[0], result.history[-1]
    assert set(first) == {
        "kind", "step", "epoch", "train/loss", "train/accuracy", "lr", "head_lr", "grad_norm",
        "samples_per_second",
    }  # fmt: skip
    assert (first["kind"], first["step"], first["epoch"]) == ("train", 1, 0.1429)
    assert (last["kind"], last["step"], last["epoch"]) == ("eval", 7, 1.0)
    assert set(last) == {
        "kind", "step", "epoch", "val/accuracy", "val/balanced_accuracy", "val/macro_f1",
        "val/matthews", "val/loss", "val/top5_accuracy",
    }  # fmt: skip
    assert json.loads(json.dumps(result.history)) == result.history


@pytest.mark.parametrize("size", [1, 5, 15])
def test_micro_batches_of_any_size_give_the_same_training(lab: ModuleType, size: int) -> None:
    plan = replace(lab.PLAN, max_steps=8, optim=OptimPlan(name="sgd", lr=0.1, head_lr=0.1))
    states = []
    for micro in (None, size):
        task = lab.objective(0.0)
        lab.train(task, lab.digits("train"), replace(plan, micro_batch_size=micro))
        states.append(task.tuner.state())
    for name, whole in states[0].items():
        torch.testing.assert_close(states[1][name], whole, rtol=2e-4, atol=2e-6)


def test_a_batch_is_cut_without_loss_or_repetition() -> None:
    batch = {"labels": torch.arange(7), "pixels": torch.rand(7, 2)}
    pieces = micro_batches(batch, 3)
    assert [len(p["labels"]) for p in pieces] == [3, 3, 1]
    assert torch.equal(torch.cat([p["pixels"] for p in pieces]), batch["pixels"])
    assert micro_batches(batch, None) == [batch]


def test_clipping_bounds_the_step_and_the_norm_is_recorded_before_it(lab: ModuleType) -> None:
    optim = OptimPlan(name="sgd", lr=1.0, head_lr=1.0, momentum=0, clip_norm=0.01, warmup_ratio=0)
    task = lab.objective(0.0)
    before = {n: t.clone() for n, t in task.tuner.state().items()}
    result = lab.train(task, lab.digits("train"), Plan(max_steps=1, optim=optim))
    moved = [(t - before[n]).norm() for n, t in task.tuner.state().items()]
    assert float(torch.stack(moved).norm()) == pytest.approx(0.01, rel=1e-3)
    assert result.history[0]["grad_norm"] > 0.05


def test_the_best_evaluation_is_put_back_at_the_end(lab: ModuleType) -> None:
    task = lab.objective()
    seen: list[dict[str, Tensor]] = []
    values = iter([0.1, 0.7, 0.7, 0.3])

    def evaluate() -> dict[str, float]:
        seen.append({n: t.clone() for n, t in task.tuner.state().items()})
        return {"accuracy": next(values), "loss": 1.0}

    plan = replace(lab.PLAN, epochs=4, select="best")
    result = lab.train(task, lab.digits("train"), plan, evaluate=evaluate)
    assert result.best == {"step": 14, "value": 0.7, "accuracy": 0.7, "loss": 1.0}
    assert result.weights == "best"
    state = task.tuner.state()
    assert all(torch.equal(state[n], seen[1][n]) for n in state)
    assert not all(torch.equal(state[n], seen[3][n]) for n in state)


def test_training_stops_when_patience_is_out(lab: ModuleType) -> None:
    values = iter([0.5, 0.4, 0.6, 0.6, 0.5, 0.9])
    plan = Plan(epochs=9, batch_size=50, patience=2)
    notebook = Notebook()
    result = lab.train(
        lab.objective(), lab.digits("train"), plan,
        evaluate=lambda: {"accuracy": next(values)}, reporter=notebook,
    )  # fmt: skip
    assert (result.stopped, result.steps, result.best["step"]) == ("patience", 10, 6)
    assert notebook.lines[-1].endswith("no better for 2 evaluations, so training stops")


def test_a_metric_that_is_not_measured_names_those_that_are(lab: ModuleType) -> None:
    plan = Plan(max_steps=1, metric="acuracy")
    with pytest.raises(UnknownName, match="acuracy") as caught:
        lab.train(lab.objective(), lab.digits("train"), plan, evaluate=lambda: {"accuracy": 1.0})
    assert "Did you mean 'accuracy'" in caught.value.hint


class Poisoned:
    """A split whose batch number `at` holds a pixel that is no number."""

    def __init__(self, split: Any, at: int) -> None:
        self.split, self.at = split, at
        self.names, self.labels = split.names, split.labels

    def __len__(self) -> int:
        return len(self.split)

    def batches_per_epoch(self, batch_size: int) -> int:
        return int(self.split.batches_per_epoch(batch_size))

    def batches(self, batch_size: int, **place: Any) -> Iterator[dict[str, Tensor]]:
        for number, batch in enumerate(self.split.batches(batch_size, **place)):
            if number + place["start_batch"] == self.at:
                batch["pixels"][0, 0, 0, 0] = float("nan")
            yield batch


def test_a_loss_that_is_no_number_stops_and_the_state_before_it_is_kept(
    lab: ModuleType, tmp_path: Path
) -> None:
    task, reference = lab.objective(), lab.objective()
    with pytest.raises(Diverged, match=r"The loss is nan in step 6 of 21 \(lr 0\.0\d+\)") as caught:
        lab.train(task, Poisoned(lab.digits("train"), 5), checkpoints=tmp_path)
    assert caught.value.exit_code == 4
    assert f"the state is saved in {tmp_path / 'step-5'}" in caught.value.message
    assert "lower optim.lr (now 0.01)" in caught.value.hint
    assert "optim.clip_norm" in caught.value.hint
    plan = replace(lab.PLAN, save_steps=5)
    with pytest.raises(Interrupted):
        lab.train(reference, Stopping(lab.digits("train"), 5), plan)
    state, expected = task.tuner.state(), reference.tuner.state()
    assert all(torch.equal(state[n], expected[n]) for n in state)


class Stopping(Poisoned):
    """A split that is interrupted after `at` batches."""

    def batches(self, batch_size: int, **place: Any) -> Iterator[dict[str, Tensor]]:
        for number, batch in enumerate(self.split.batches(batch_size, **place)):
            if number + place["start_batch"] == self.at:
                raise Interrupted("cut")
            yield batch


def test_an_infinite_gradient_takes_no_step_either(lab: ModuleType) -> None:
    task = lab.objective()
    task.tuner.phi["attn_out"].register_hook(lambda g: g * float("inf"))
    before = {n: t.clone() for n, t in task.tuner.state().items()}
    with pytest.raises(Diverged, match=r"The gradient norm is (nan|inf) in step 1 .* no state was"):
        lab.train(task, lab.digits("train"))
    assert all(torch.equal(t, before[n]) for n, t in task.tuner.state().items())


def test_weights_beyond_repair_are_not_saved(lab: ModuleType, tmp_path: Path) -> None:
    task = lab.objective()
    optim = OptimPlan(name="sgd", lr=1e39, head_lr=1e39, warmup_ratio=0)
    with pytest.raises(Diverged, match="no state was saved"):
        lab.train(task, lab.digits("train"), Plan(epochs=9, optim=optim), checkpoints=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_time_limit_saves_and_says_how_to_go_on(lab: ModuleType, tmp_path: Path) -> None:
    plan = replace(lab.PLAN, max_time=1e-6)
    with pytest.raises(Interrupted, match=r"max_time \(1e-06 s\) after step 1") as caught:
        lab.train(lab.objective(), lab.digits("train"), plan, checkpoints=tmp_path)
    assert caught.value.exit_code == 130
    assert caught.value.hint == "Run the same command again to go on from there."
    with pytest.raises(Interrupted, match="no state was saved") as caught:
        lab.train(lab.objective(), lab.digits("train"), plan)
    assert caught.value.hint == ""


def test_another_plan_or_other_data_do_not_go_on_from_a_checkpoint(
    lab: ModuleType, tmp_path: Path
) -> None:
    train = lab.digits("train")
    lab.train(lab.objective(), train, Plan(max_steps=2), checkpoints=tmp_path)
    plan = Plan(max_steps=2, seed=1, optim=OptimPlan(lr=0.5))
    with pytest.raises(Refused, match=r"seed was 0 and is 1, optim\.lr was 0\.003 and is 0\.5"):
        lab.train(lab.objective(), train, plan, checkpoints=tmp_path)
    train.names[0] = "another"
    with pytest.raises(DataError, match="not those"):
        lab.train(lab.objective(), train, Plan(max_steps=2), checkpoints=tmp_path)
    result = lab.train(lab.objective(), train, plan, checkpoints=tmp_path, resume=False)
    assert result.steps == 2


def test_an_empty_split_is_refused(lab: ModuleType) -> None:
    class Empty(Poisoned):
        def __len__(self) -> int:
            return 0

    with pytest.raises(DataError, match="no example"):
        lab.train(lab.objective(), Empty(lab.digits("train"), 0))


def test_memory_that_is_not_there_names_the_way_out(lab: ModuleType) -> None:
    task = lab.objective()

    def no_memory(batch: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    task.tuner.forward = no_memory
    with pytest.raises(Refused, match="16 examples at a time") as caught:
        lab.train(task, lab.digits("train"))
    assert "train.micro_batch_size to 8" in caught.value.hint


def test_bfloat16_autocast_keeps_what_is_trained_in_float32(lab: ModuleType) -> None:
    task = lab.objective(0.0)
    seen: set[torch.dtype] = set()
    task.model.blocks[0].mlp.fc1.register_forward_hook(lambda m, x, y: seen.add(y.dtype))
    result = lab.train(task, lab.digits("train"), Plan(max_steps=3), precision="bf16")
    assert seen == {torch.bfloat16}
    assert {t.dtype for t in task.tuner.state().values()} == {torch.float32}
    exact = lab.train(lab.objective(0.0), lab.digits("train"), Plan(max_steps=3))
    for ours, theirs in zip(result.history, exact.history, strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=0.02)


def test_the_callers_random_numbers_are_as_if_nothing_had_happened(lab: ModuleType) -> None:
    task, split = lab.objective(), lab.digits("train")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    lab.train(task, split, Plan(max_steps=1))
    assert torch.equal(torch.rand(4), expected)


def test_tensorboard_gets_every_figure(lab: ModuleType, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from gistcli.train import TrackerRecorder, fit

    accelerator = open_accelerator(
        torch.device("cpu"), trackers=["tensorboard"], folder=tmp_path, config={"a": {"b": [1]}}
    )
    task = lab.objective()
    recorder = Recorders([TrackerRecorder(accelerator)])
    fit(
        task, lab.digits("train"), Plan(max_steps=3), accelerator,
        evaluate=lambda: {"accuracy": 0.5}, recorder=recorder,
    )  # fmt: skip
    recorder.close()
    events = reader.EventAccumulator(str(tmp_path / "gist"))
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3]
    assert [(e.step, e.value) for e in events.Scalars("val/accuracy")] == [(3, 0.5)]


def test_a_tracker_that_is_missing_comes_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Refused, match="not installed: wandb, trackio") as caught:
        open_accelerator(torch.device("cpu"), trackers=["wandb", "trackio"])
    assert "`pip install wandb trackio`" in caught.value.hint
    with pytest.raises(UnknownName, match="wandbb"):
        open_accelerator(torch.device("cpu"), trackers=["wandbb"])


def test_the_fingerprint_of_data_depends_on_names_labels_and_order(lab: ModuleType) -> None:
    split = lab.digits("val")
    first = data_fingerprint(split)
    assert data_fingerprint(lab.digits("val")) == first
    split.labels = split.labels.flip(0)
    assert data_fingerprint(split) != first


def test_a_frozen_parameter_of_the_method_is_an_error(lab: ModuleType) -> None:
    task = lab.objective()
    for parameter in task.tuner.phi.values():
        parameter.requires_grad_(False)
    with pytest.raises(NotSupported, match=r"phi\.attn_out got no gradient"):
        lab.train(task, lab.digits("train"))
