"""TOAST before and after its pre-tuning: the reconstruction, the weights, the two stages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gistcli import run
from gistcli.backbones.vit import ViT
from gistcli.errors import BaseMismatch, NotFound, WeightsError
from gistcli.methods.toast import ToastTuner
from gistcli.objectives import Classification
from gistcli.recipe import Recipe, load_recipe
from gistcli.testing.acting import disturb, logits
from tests.methods.toasting import VARIANTS, Batch, attach, maps


def reconstruction(tuner: ToastTuner, batch: Batch, denominator: float) -> Tensor:
    losses = Classification(tuner)(batch, denominator)
    return losses.parts["reconstruction"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_reconstruction_is_that_of_every_blocks_input(
    tiny: ViT, batch: Batch, variant: str
) -> None:
    tuner = attach(tiny, reconstruction=0.3, variant=variant)
    disturb(tuner)
    seen: dict[str, Tensor] = {}
    handles = []
    for i, block in enumerate(tiny.blocks):
        # the second pass comes last
        handles.append(
            block.register_forward_hook(
                lambda _, args, y, i=i: seen.update({f"in{i}": args[0], f"out{i}": y})
            )
        )
    found = reconstruction(tuner, batch, 6.0)
    expected = sum(
        (seen[f"out{i}"] @ maps(tuner, i)[0].t() - seen[f"in{i}"]).square().mean() for i in (0, 1)
    )
    for handle in handles:
        handle.remove()
    assert torch.allclose(found, 0.3 * expected, rtol=1e-4)
    with torch.no_grad():
        assert tuner.auxiliary(tuner(batch), batch, torch.sum, 1.0) == {}


def test_the_reconstruction_of_micro_batches_adds_up(tiny: ViT, batch: Batch) -> None:
    tuner = attach(tiny, reconstruction=0.3)
    disturb(tuner)
    whole = reconstruction(tuner, batch, 6.0)
    parts = [{key: value[s] for key, value in batch.items()} for s in (slice(2), slice(2, 6))]
    assert torch.allclose(sum(reconstruction(tuner, p, 6.0) for p in parts), whole, rtol=1e-4)


def test_the_reconstruction_trains_a_alone_and_leaves_the_blocks_be(
    tiny: ViT, batch: Batch
) -> None:
    tuner = attach(tiny, reconstruction=0.3)
    disturb(tuner)
    objective = Classification(tuner)
    features = tuner(batch)
    term = tuner.auxiliary(features, batch, torch.sum, 1.0)
    term["reconstruction"].backward()
    dry = {n for n, t in objective.tuner.trainable().items() if t.parameter.grad is None}
    assert dry == set(tuner.trainable()) - {"feedback.0.a", "feedback.1.a"}


# torch hides this warning about the signals by itself, unless warnings are errors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_checkpointed_and_compiled_passes_reconstruct_the_same(tiny: ViT, batch: Batch) -> None:
    tuner = attach(tiny, reconstruction=0.3)
    disturb(tuner)

    def gradients_of(objective: Classification) -> dict[str, Tensor]:
        objective(batch, 6.0).total.backward()
        trained = tuner.trainable()
        found = {n: t.parameter.grad.clone() for n, t in trained.items()}
        for each in trained.values():
            each.parameter.grad = None
        return found

    objective = Classification(tuner)
    plain = gradients_of(objective)
    tiny.timm.set_grad_checkpointing(True)
    again = gradients_of(objective)
    assert not tuner._pass.recording
    tiny.timm.set_grad_checkpointing(False)
    tiny.compile(backend="eager", fullgraph=True)
    compiled = gradients_of(objective)
    for name, gradient in plain.items():
        assert torch.allclose(again[name], gradient, atol=1e-5), name
        assert torch.allclose(compiled[name], gradient, atol=1e-5), name


# --- weights ------------------------------------------------------------------------------------


@pytest.fixture
def feedback(tiny: ViT, tmp_path: Path) -> Path:
    """A file with a feedback path, without a description beside it."""
    tuner = attach(tiny)
    disturb(tuner, 0.3)
    save_file(tuner.state(), tmp_path / "tuner.safetensors")
    tuner.detach()
    return tmp_path / "tuner.safetensors"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fresh_training_starts_from_the_weights(
    tiny: ViT, batch: Batch, feedback: Path, variant: str
) -> None:
    base = logits(tiny, batch)
    tuner = attach(tiny, variant=variant, weights=feedback)
    assert torch.allclose(logits(tuner, batch), base, atol=1e-6)
    tuner.start()
    stored = load_file(feedback)
    assert torch.equal(tuner.xi, stored["xi"])
    for layer in (0, 1):
        a, b = maps(tuner, layer)
        assert torch.equal(a, stored[f"feedback.{layer}.a"])
        assert torch.equal(b, stored[f"feedback.{layer}.b"])
    assert not torch.allclose(logits(tuner, batch), base, atol=1e-3)


def test_lite_keeps_the_frozen_maps_in_its_state_and_out_of_its_counts(
    tiny: ViT, batch: Batch, feedback: Path
) -> None:
    tuner = attach(tiny, variant="lite", weights=feedback)
    tuner.start()
    disturb(tuner)
    tuned, state = logits(tuner, batch), {n: t.clone() for n, t in tuner.state().items()}
    assert set(state) - set(tuner.trainable()) == set(tuner.frozen())
    assert set(tuner.frozen()) == {f"feedback.{i}.{m}" for i in (0, 1) for m in "ab"}
    assert {id(p) for p in tuner.parameters()}.isdisjoint(id(t) for t in tuner.frozen().values())
    tuner.detach()
    feedback.unlink()
    other = attach(tiny, variant="lite", weights=feedback)
    assert not torch.allclose(logits(other, batch), tuned, atol=1e-2)
    other.load_state(state)
    assert torch.equal(logits(other, batch), tuned)
    del state["feedback.1.b"]
    with pytest.raises(WeightsError, match=r"missing feedback\.1\.b"):
        other.load_state(state)


def test_weights_that_do_not_fit_are_refused(tiny: ViT, feedback: Path) -> None:
    tuner = attach(tiny, weights=feedback)
    stored = load_file(feedback)
    save_file({**stored, "xi": torch.zeros(7)}, feedback)
    with pytest.raises(WeightsError, match=r"xi has shape \[7\], expected \[24\]"):
        tuner.start()
    save_file({n: t for n, t in stored.items() if n != "feedback.1.a"}, feedback)
    with pytest.raises(WeightsError, match=r"feedback\.1\.a is missing"):
        tuner.start()
    save_file({**stored, "p": torch.eye(24)}, feedback)
    with pytest.raises(WeightsError, match="variant lite"):
        tuner.start()
    save_file(stored, feedback)
    feedback.with_name("tuner.json").write_text('{"backbone": {"fingerprint": "0123"}}')
    with pytest.raises(BaseMismatch, match="another backbone"):
        tuner.start()
    feedback.with_name("tuner.json").write_text("[]")
    with pytest.raises(WeightsError, match="cannot be read"):
        tuner.start()
    feedback.unlink()
    with pytest.raises(NotFound, match="does not exist"):
        tuner.start()


def test_weights_in_a_recipe_are_relative_to_it(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "r.yaml"
    path.parent.mkdir()
    text = "model: {name: gist_vit_nano}\ndata: {path: digits}\n"
    path.write_text(text + "method: {name: toast, weights: ../feedback}\n")
    recipe = load_recipe(path)
    assert recipe.method["weights"] == str(tmp_path / "feedback")
    assert recipe.build_method().weights == tmp_path / "feedback"


def recipe(method: dict) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name": "gist_vit_nano"},
            "data": {"path": "digits", "shots": 4},
            "method": {"name": "toast", **method},
            "train": {"max_steps": 3, "batch_size": 16, "device": "cpu"},
            "eval": {"every": "none"},
        }
    )


def test_both_stages_run_and_the_second_outlives_the_first(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    result = run.finetune(recipe({"reconstruction": 0.1}), output=first)
    assert result["method"] == "toast (pre-tuning)"
    assert "train/loss/reconstruction" in (first / "metrics.jsonl").read_text()
    task = recipe({"variant": "lite", "weights": str(first)})
    result = run.finetune(task, output=second)
    assert result["method"] == "toast (lite)"
    assert "train/loss/reconstruction" not in (second / "metrics.jsonl").read_text()
    started = load_file(first / "tuner.safetensors")
    kept = load_file(second / "tuner.safetensors")
    assert torch.equal(kept["feedback.3.a"], started["feedback.3.a"])
    assert not torch.equal(kept["xi"], started["xi"])
    shutil.rmtree(first)
    assert run.evaluate(second)["metrics"]["test/loss"] == pytest.approx(
        result["metrics"]["test/loss"], rel=1e-5
    )
    assert run.finetune(task, output=second)["metrics"] == result["metrics"]
    with pytest.raises(NotFound, match="first"):
        run.finetune(task, output=tmp_path / "third")
    assert not (tmp_path / "third").exists()
