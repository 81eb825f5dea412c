"""What a run will take, the micro-batch that fits, and what is said where nothing does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gistcli import run
from gistcli.errors import Interrupted, OutOfMemory
from gistcli.recipe import Recipe
from gistcli.run import memory
from gistcli.train.checkpoint import newest_checkpoint, read_checkpoint
from gistcli.train.stepping import Stepper
from tests.listening import Listener
from tests.run import text_models

GIGABYTE = 10**9


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Llama, and completions for it."""
    folder = tmp_path_factory.mktemp("texts")
    model = text_models.save_model(folder / "llama", "Llama", "causal_lm")
    return model, text_models.completions(folder / "data.jsonl")


def make(places: tuple[Path, Path], **train: Any) -> Recipe:
    tree = {
        "model": {"name": str(places[0])},
        "data": {"path": str(places[1])},
        "method": {"name": "lora", "rank": 2},
        "train": {"max_steps": 3, "batch_size": 16, **train},
    }
    return Recipe.model_validate(tree)


def limit(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: free)


def estimator(places: tuple[Path, Path]) -> memory.Estimator:
    recipe = make(places)
    setting = memory.planned_setting(recipe)
    return memory.Estimator(recipe, None, setting, task="causal_lm", classes=1)


def scarce_memory(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> int:
    """Enough for a part of the batch."""
    limit(monkeypatch, 3_000_000)
    found = run.dry_run(make(places))["memory"]
    return int(found["needed"] - found["activations"] // 2)


def test_a_dry_run_says_what_is_needed_item_by_item(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 3_000_000)
    listener = Listener()
    found = run.dry_run(make(places), reporter=listener)["memory"]
    parts = ("weights", "trained", "gradients", "optimiser", "activations", "logits")
    assert found["needed"] == sum(found.get(part, 0) for part in parts)
    assert found["exact"]
    assert found["optimiser"] == 2 * found["trained"]
    assert (found["micro_batch_size"], found["free"]) == (16, 3_000_000)
    (line,) = [line for line in listener.lines if line.startswith("memory: about")]
    assert "for 16 examples of up to" in line
    assert "3 MB are free" in line


def test_what_is_far_below_the_free_memory_is_not_traced(places: tuple[Path, Path]) -> None:
    found = run.dry_run(make(places))["memory"]
    assert not found["exact"]
    assert "activations" not in found


def test_a_run_that_may_not_fit_is_warned_of(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 400_000)
    listener = Listener()
    assert run.dry_run(make(places), reporter=listener)["memory"]["needed"] > 400_000
    (warning,) = [line for line in listener.lines if "may not suffice" in line]
    assert "train.micro_batch_size (auto" in warning


def test_weights_that_do_not_fit_are_refused_before_they_are_loaded(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 1000)
    with pytest.raises(OutOfMemory, match=r"take .* kB, and 1 kB are free on") as caught:
        run.finetune(make(places, device="cpu"), output=tmp_path / "run")
    assert "smaller model" in caught.value.hint
    assert not (tmp_path / "run").exists()
    assert caught.value.exit_code == 2


def test_the_micro_batch_finds_its_size_and_changes_nothing(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run.finetune(make(places), output=tmp_path / "whole")
    limit(monkeypatch, scarce_memory(places, monkeypatch))
    auto = run.finetune(make(places, micro_batch_size="auto"), output=tmp_path / "auto")
    assert auto["micro_batch_size"] in (1, 2, 4, 8)
    assert auto["estimated_memory"]["needed"] <= auto["estimated_memory"]["free"]
    assert auto["metrics"]["test/loss"] == pytest.approx(whole["metrics"]["test/loss"], rel=1e-5)
    assert whole["micro_batch_size"] == 16


def test_going_on_takes_the_micro_batch_of_the_checkpoint(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    limit(monkeypatch, scarce_memory(places, monkeypatch))
    with pytest.raises(Interrupted):
        run.finetune(make(places, micro_batch_size="auto", max_time=1e-6), output=path)
    newest = newest_checkpoint(path / "checkpoints", print)
    assert newest is not None
    before = read_checkpoint(newest).identity["micro_batch_size"]
    assert before < 16
    limit(monkeypatch, GIGABYTE)  # where all of the batch would fit
    result = run.finetune(make(places, micro_batch_size="auto"), output=path)
    assert result["micro_batch_size"] == before


def test_memory_that_is_out_names_settings_with_what_they_need_and_the_run_goes_on_with_them(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Stepper.take

    def scarce(self: Stepper, batch: Any, step: int) -> Any:
        if step == 2 and (self.plan.micro_batch_size or 16) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return take(self, batch, step)

    limit(monkeypatch, 3_000_000)
    monkeypatch.setattr(Stepper, "take", scarce)
    path = tmp_path / "run"
    with pytest.raises(OutOfMemory, match="in step 3 of 3, with 16 examples") as caught:
        run.finetune(make(places), output=path)
    assert "the state is saved in" in caught.value.message
    ways = ["train.micro_batch_size=8", "model.grad_checkpointing=true", "model.dtype=bfloat16"]
    places_in_hint = [caught.value.hint.index(way) for way in ways]
    assert places_in_hint == sorted(places_in_hint)
    assert "about" in caught.value.hint
    assert newest_checkpoint(path / "checkpoints", print) is not None
    listener = Listener()
    result = run.finetune(make(places, micro_batch_size=8), output=path, reporter=listener)
    assert result["steps"] == 3
    assert any("Going on from step 2" in line for line in listener.lines)
    assert any("train.micro_batch_size = None, this is 8" in line for line in listener.lines)


def test_checkpointing_and_fewer_bits_are_foreseen_to_take_less(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 2_000_000)
    asked = estimator(places)
    usual = asked.estimate().footprint
    assert asked.estimate(grad_checkpointing=True).footprint.activations < usual.activations
    assert asked.estimate(dtype="bfloat16").footprint.weights < 0.6 * usual.weights
    assert asked.estimate(quantize="nf4").footprint.weights < usual.weights
    assert asked.estimate(rows=4).footprint.activations < 0.5 * usual.activations


@pytest.mark.parametrize(("size", "sizes"), [(16, [16, 8, 4, 2, 1]), (6, [6, 3, 2, 1]), (1, [1])])
def test_micro_batches_are_tried_by_halves(size: int, sizes: list[int]) -> None:
    assert memory.micro_batch_sizes(size) == sizes
