"""Finished runs in use: evaluate, predict, merge, look, load."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

import gistcli
from gistcli import run
from gistcli.backbones.locating import locate
from gistcli.errors import BaseMismatch, NotMergeable, Refused
from gistcli.recipe import Recipe

Make = Callable[..., Recipe]


@pytest.fixture(scope="module")
def merged(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "out"
    run.merge(finished, folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for i, image in enumerate(load_digits().images[:6]):
        paths.append(folder / f"digit-{i}.png")
        Image.fromarray((image * 15.9).astype(np.uint8)).resize((64, 64)).save(paths[-1])
    return paths


def metrics(path: Path) -> dict[str, float]:
    return json.loads((path / "result.json").read_text())["metrics"]


def test_eval_repeats_the_figures_of_the_run(finished: Path) -> None:
    found = run.evaluate(finished, device="cpu")
    assert found["metrics"]["test/accuracy"] == metrics(finished)["test/accuracy"]
    assert found["metrics"]["test/loss"] == pytest.approx(metrics(finished)["test/loss"], rel=1e-5)
    validation = run.evaluate(finished, split="val", device="cpu", batch_size=7)
    assert validation["metrics"]["val/accuracy"] == metrics(finished)["val/accuracy"]
    assert validation["examples"] == 200


def test_the_merged_folder_repeats_them_without_the_method(finished: Path, merged: Path) -> None:
    found = run.evaluate(merged, data="digits", device="cpu")
    assert found["metrics"]["test/accuracy"] == metrics(finished)["test/accuracy"]


def test_the_receipt_is_kept_beside_the_weights(merged: Path) -> None:
    receipt = json.loads((merged / "merge.json").read_text())
    assert receipt["verified"] is True
    assert receipt["max_abs_logit_difference"] < 1e-4
    assert receipt["tensors"] == {"patched": 4, "new": 2, "resampled": 0, "unchanged": 50}
    assert receipt["worst_relative_rounding"] == 0.0
    card = (merged / "README.md").read_text()
    assert card.startswith("---\n")
    assert "test/accuracy" in card


def test_timm_and_transformers_give_the_tuned_logits(
    finished: Path, merged: Path, pictures: list[Path]
) -> None:
    ours = gistcli.load(finished)
    plain = timm.create_model(f"local-dir:{merged}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(plain))
    pixels = torch.stack([transform(Image.open(p).convert("RGB")) for p in pictures])
    other = AutoModelForImageClassification.from_pretrained(merged).eval()
    processor = AutoImageProcessor.from_pretrained(merged)
    theirs = processor([Image.open(p).convert("RGB") for p in pictures], return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(plain(pixels), ours(pixels), atol=1e-4)
        assert torch.allclose(other(theirs["pixel_values"]).logits, plain(pixels), atol=1e-5)
    assert plain.pretrained_cfg["label_names"] == ours.classes
    assert other.config.id2label[3] == "3"


def test_merged_weights_need_no_line_of_ours(merged: Path) -> None:
    script = (
        "import sys, timm, torch\n"
        f"m = timm.create_model('local-dir:{merged}', pretrained=True).eval()\n"
        "print(m(torch.zeros(1, 3, 32, 32)).shape, 'gistcli' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "torch.Size([1, 10]) False"


def test_scale_goes_from_the_base_to_the_tuned_network(finished: Path, tmp_path: Path) -> None:
    key = "blocks.0.attn.proj.weight"
    from safetensors.torch import load_file

    weights = {}
    for scale in (0.0, 0.5, 1.0):
        run.merge(finished, tmp_path / str(scale), scale=scale)
        weights[scale] = load_file(tmp_path / str(scale) / "model.safetensors")[key]
    base = load_file(locate("gist_vit_nano").weights[0])[key]
    assert torch.equal(weights[0.0], base)
    assert torch.allclose(weights[0.5], (base + weights[1.0]) / 2, atol=1e-6)
    assert not torch.allclose(weights[1.0], base, atol=1e-4)


def test_half_precision_reports_what_rounding_costs(finished: Path, tmp_path: Path) -> None:
    receipt = run.merge(finished, tmp_path / "bf16", dtype="bfloat16")
    assert receipt["dtype"] == "bfloat16"
    assert receipt["worst_relative_rounding"] > 0
    assert receipt["max_abs_logit_difference"] > 0


def test_predict_writes_the_top_classes_of_every_picture(
    finished: Path, merged: Path, pictures: list[Path], tmp_path: Path
) -> None:
    table = tmp_path / "out.csv"
    found = run.predict(finished, [pictures[0].parent], output=table, top_k=3, device="cpu")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [r["file"] for r in rows] == [str(p) for p in pictures]
    assert list(rows[0]) == [
        "file", "class", "probability", "class_2", "probability_2", "class_3", "probability_3",
    ]  # fmt: skip
    probabilities = [float(rows[0][k]) for k in ("probability", "probability_2", "probability_3")]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) <= 1 + 1e-5
    again = run.predict(merged, pictures, device="cpu")
    assert [p["class"] for p in again["predictions"]] == [p["class"] for p in found["predictions"]]
    right = sum(p["class"] == str(i) for i, p in enumerate(found["predictions"]))
    assert right >= 4  # of 6, where guessing gets 0.6


def test_visualize_writes_a_sheet_for_every_picture_and_the_raw_maps(
    finished: Path, pictures: list[Path], tmp_path: Path
) -> None:
    found = run.visualize(finished, pictures[:2], tmp_path / "maps", device="cpu")
    assert [Path(p).name for p in found["sheets"]] == ["digit-0.png", "digit-1.png"]
    assert found["clusters"] == 4
    with np.load(found["maps"], allow_pickle=False) as raw:
        maps = raw["maps"]
        best = raw["pick_score"][:, 0].tolist()
    assert [entry["picks"][0]["score"] for entry in found["images"]] == best
    assert maps.shape == (2, 4, 4, 8, 8)
    model = gistcli.load(finished)
    site = model.tuner.sites[2]
    with torch.no_grad(), model.backbone.capture([site]) as seen:
        from gistcli.data import load_images

        features = model.tuner({"pixels": load_images(pictures[:2], model.preprocess)[0]})
        tokens = seen[site.name][:, features.layout.patches]
        by_hand = (tokens @ model.tuner.clusters(site)).transpose(1, 2).reshape(2, 4, 8, 8)
    assert np.allclose(maps[:, 2], by_hand.numpy(), atol=1e-5)


def test_a_loaded_run_is_a_module_like_any_other(finished: Path) -> None:
    model = gistcli.load(str(finished))
    assert not model.training
    assert model.classes == [str(d) for d in range(10)]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    model(torch.zeros(1, 3, 32, 32)).sum().backward()
    assert model.tuner.phi["attn_out"].grad is not None


def test_a_run_whose_backbone_was_swapped_is_refused(
    tmp_path: Path, recipe: Make, finished: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(locate("gist_vit_nano").folder, other)
    state = load_file(other / "model.safetensors")
    state["norm.weight"] = state["norm.weight"] + 1e-3
    save_file(state, other / "model.safetensors")
    for command in (
        lambda: run.evaluate(finished, model=str(other)),
        lambda: run.merge(finished, tmp_path / "out", model=str(other)),
    ):
        with pytest.raises(BaseMismatch, match="not the backbone"):
            command()
    assert not (tmp_path / "out").exists()
    moved = tmp_path / "moved"
    shutil.copytree(locate("gist_vit_nano").folder, moved)
    found = run.evaluate(finished, model=str(moved), device="cpu")
    assert found["metrics"]["test/accuracy"] == metrics(finished)["test/accuracy"]


def test_a_merged_folder_has_no_data_and_no_method(merged: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="knows no data"):
        run.evaluate(merged)
    with pytest.raises(Refused, match="merged folder"):
        run.merge(merged, tmp_path / "again")


def test_full_fine_tuning_has_no_lora_folder(tmp_path: Path, recipe: Make) -> None:
    run.finetune(recipe(method={"name": "full"}, train__max_steps=2), output=tmp_path / "run")
    with pytest.raises(NotMergeable, match="LoRA"):
        run.merge(tmp_path / "run", tmp_path / "out", format="peft")
    assert run.merge(tmp_path / "run", tmp_path / "out")["verified"]


@pytest.mark.slow
def test_an_onnx_export_gives_the_same_classes(
    finished: Path, pictures: list[Path], tmp_path: Path
) -> None:
    import onnxruntime

    run.merge(finished, tmp_path / "onnx", format="onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    pixels = torch.randn(5, 3, 32, 32)
    logits = session.run(None, {"pixels": pixels.numpy()})[0]
    with torch.no_grad():
        assert np.allclose(logits, gistcli.load(finished)(pixels).numpy(), atol=1e-4)


@pytest.mark.parametrize("method", ["gift", "full"])
def test_a_run_on_a_bfloat16_backbone_merges_from_the_stored_weights(
    tmp_path: Path, recipe: Make, method: str
) -> None:
    low = recipe(model__dtype="bfloat16", method={"name": method})
    result = run.finetune(low, output=tmp_path / "run")
    again = run.evaluate(tmp_path / "run", device="cpu")["metrics"]
    assert again == pytest.approx({name: result["metrics"][name] for name in again}, rel=1e-5)
    receipt = run.merge(tmp_path / "run", tmp_path / "out")
    assert receipt["dtype"] == "float32"
    assert receipt["max_abs_logit_difference"] < 1e-4


@pytest.mark.parametrize(
    "changes",
    [{"model__grad_checkpointing": True}, {"train__precision": "bf16"},
     {"data__augment": "randaugment"}, {"model__img_size": 48}],
    ids=str,
)  # fmt: skip
def test_settings_of_training_leave_a_run_that_merges(
    tmp_path: Path, recipe: Make, changes: dict
) -> None:
    run.finetune(recipe(**changes), output=tmp_path / "run")
    assert run.merge(tmp_path / "run", tmp_path / "out")["verified"]
    merged = run.evaluate(tmp_path / "out", data="digits", device="cpu")
    tuned = run.evaluate(tmp_path / "run", device="cpu")
    assert merged["metrics"]["test/accuracy"] == pytest.approx(
        tuned["metrics"]["test/accuracy"], abs=0.005
    )
