"""Merging into plain weights: exact, loadable by others, and never at the cost of what is there."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from gistcli.artifacts import merge as merging
from gistcli.artifacts.merge import merge_weights
from gistcli.artifacts.plan import MergePlan, plan_merge
from gistcli.artifacts.sources import FileSource, StateSource, weight_source
from gistcli.artifacts.targets import kind_of, open_merged
from gistcli.artifacts.tensors import load_tensors
from gistcli.artifacts.verify import Reference, verify_file
from gistcli.backbones import open_backbone
from gistcli.errors import Refused, StorageError, VerificationFailed, WeightsError
from gistcli.methods.full import Full
from gistcli.methods.gift import Gift
from gistcli.methods.linear import Linear
from gistcli.methods.merged import Merged

METHODS = {
    "gift": Gift(rank=4),
    "gift on slices": Gift(rank=3, targets=["query", "value", "fc_out"], share="none"),
    "linear": Linear(),
    "full": Full(),
}


def logits_of(folder: Path, pixels: Tensor) -> Tensor:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        return model(pixels)


@pytest.mark.parametrize("name", METHODS)
def test_timm_gives_the_tuned_logits(name: str, make_tuned: Any, tmp_path: Path) -> None:
    tuned = make_tuned(METHODS[name])
    receipt = merge_weights(tuned.plan(), tuned.form, tmp_path / "out", reference=tuned.reference)
    torch.testing.assert_close(
        logits_of(tmp_path / "out", tuned.pixels), tuned.logits, atol=1e-5, rtol=0
    )
    assert receipt.verified
    assert receipt.max_abs_logit_difference is not None
    assert receipt.max_abs_logit_difference < 1e-5
    assert receipt.as_dict()["worst_relative_rounding"] == 0


def test_transformers_loads_the_same_folder_with_names_and_preprocessing(
    tuned: Any, tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

    merge_weights(tuned.plan(), tuned.form, tmp_path / "out", reference=tuned.reference)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        logits = model(tuned.pixels).logits
    assert torch.equal(logits, logits_of(tmp_path / "out", tuned.pixels))
    assert model.config.id2label == {0: "ant", 1: "bee", 2: "çe"}

    picture = Image.effect_noise((50, 40), 90).convert("RGB")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    native = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(native))
    assert torch.equal(pixels[0], transform(picture))
    classify = pipeline("image-classification", model=str(tmp_path / "out"))
    best = logits_of(tmp_path / "out", pixels)[0].argmax()
    assert classify(picture)[0]["label"] == ["ant", "bee", "çe"][best]


def test_real_weights_survive_merging_at_another_image_size(
    assets: Path, make_tuned: Any, tmp_path: Path
) -> None:
    tuned = make_tuned(Gift(rank=16), 96, assets / "vit_tiny_patch16_224")
    receipt = merge_weights(tuned.plan(), tuned.form, tmp_path / "out", reference=tuned.reference)
    assert receipt.tensors == {"patched": 12, "new": 2, "resampled": 1, "unchanged": 137}
    assert receipt.tensors_changed == 15
    written = load_file(tmp_path / "out" / "model.safetensors")
    stored = load_file(assets / "vit_tiny_patch16_224" / "model.safetensors")
    assert torch.equal(written["blocks.0.attn.qkv.weight"], stored["blocks.0.attn.qkv.weight"])
    assert written["pos_embed"].shape == (1, 1 + 6 * 6, 192)


@pytest.mark.parametrize("method", [Gift(rank=4), Full()], ids=["gift", "full"])
def test_a_grid_that_is_not_square_is_kept(method: Any, make_tuned: Any, tmp_path: Path) -> None:
    tuned = make_tuned(method, (24, 48))
    merge_weights(tuned.plan(), tuned.form, tmp_path / "out", reference=tuned.reference)
    torch.testing.assert_close(
        logits_of(tmp_path / "out", tuned.pixels), tuned.logits, atol=1e-5, rtol=0
    )


def test_the_file_holds_the_formula_tensor_by_tensor(
    base_folder: Path, tuned: Any, tmp_path: Path
) -> None:
    stored = load_file(base_folder / "model.safetensors")
    head = {"head.weight": torch.randn(3, 48), "head.bias": torch.randn(3)}
    doubled = "blocks.1.mlp.fc1.weight"
    merged = Merged(patches={doubled: lambda w: 2 * w}, new=head)
    plan = MergePlan(FileSource([base_folder / "model.safetensors"]), merged, scale=0.25)
    merge_weights(plan, tuned.form, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == stored.keys()
    for key, tensor in written.items():
        wanted = head.get(key, stored[key] * 1.25 if key == doubled else stored[key])
        assert torch.equal(tensor, wanted), key


def test_scale_zero_is_the_base_with_the_tuned_head(
    base_folder: Path, tuned: Any, tmp_path: Path
) -> None:
    plan = tuned.plan(scale=0.0)
    receipt = merge_weights(plan, tuned.form, tmp_path / "out", reference=tuned.reference)
    written = load_file(tmp_path / "out" / "model.safetensors")
    stored = load_file(base_folder / "model.safetensors")
    assert all(torch.equal(written[k], stored[k]) for k in stored if not k.startswith("head"))
    assert torch.equal(written["head.weight"], plan.merged.new["head.weight"])
    assert receipt.tensors["patched"] == 0
    assert "head is the tuned one" in receipt.notes[0]


def test_a_patch_may_write_into_what_it_is_given(base_folder: Path, tmp_path: Path) -> None:
    path = base_folder / "model.safetensors"
    before = path.read_bytes()
    merged = Merged(patches={"cls_token": lambda w: w.mul_(3)}, new={})
    written, measured = MergePlan(FileSource([path]), merged).write(tmp_path / "x")
    assert path.read_bytes() == before
    assert measured[0].relative_change == pytest.approx(2)
    assert "cls_token" in written


def test_bfloat16_is_the_cast_of_the_float32_result(tuned: Any, tmp_path: Path) -> None:
    merge_weights(tuned.plan(), tuned.form, tmp_path / "full")
    receipt = merge_weights(
        tuned.plan(dtype="bf16"), tuned.form, tmp_path / "half", reference=tuned.reference
    )
    full = load_file(tmp_path / "full" / "model.safetensors")
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert all(torch.equal(half[k], full[k].bfloat16()) for k in full)
    assert receipt.dtype == "bfloat16"
    assert 0 < receipt.as_dict()["worst_relative_rounding"] < 1
    assert len(receipt.as_dict()["per_tensor"]) == 2
    assert 1e-4 < receipt.max_abs_logit_difference < 1


def test_the_default_dtype_is_that_of_the_base(
    base_folder: Path, make_tuned: Any, tmp_path: Path
) -> None:
    half = tmp_path / "base"
    half.mkdir()
    stored = load_file(base_folder / "model.safetensors")
    save_file({k: t.half() for k, t in stored.items()}, half / "model.safetensors")
    (half / "config.json").write_bytes((base_folder / "config.json").read_bytes())
    tuned = make_tuned(folder=half)
    receipt = merge_weights(tuned.plan(), tuned.form, tmp_path / "out", reference=tuned.reference)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in written.values()} == {torch.float16}
    assert receipt.dtype == "float16"


def test_another_scale_is_compared_with_a_float32_copy(tuned: Any, tmp_path: Path) -> None:
    receipt = merge_weights(
        tuned.plan(dtype="float16", scale=0.5),
        tuned.form,
        tmp_path / "out",
        reference=tuned.reference,
    )
    assert 0 < receipt.max_abs_logit_difference < 0.05
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json", "merge.json", "model.safetensors",
    ]  # fmt: skip


def test_the_receipt_lies_in_the_folder_and_the_card_says_it(tuned: Any, tmp_path: Path) -> None:
    receipt = merge_weights(
        tuned.plan(),
        tuned.form,
        tmp_path / "out",
        reference=tuned.reference,
        card=lambda r: f"checked: {r.verified}",
    )
    found = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert found == receipt.as_dict()
    assert found["output"] == str(tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "checked: True"


def test_no_verify_says_so(tuned: Any, tmp_path: Path) -> None:
    receipt = merge_weights(
        tuned.plan(), tuned.form, tmp_path / "out", reference=tuned.reference, verified=False
    )
    assert not receipt.verified
    assert receipt.max_abs_logit_difference is None


# --- refusing, failing, and leaving things as they were --------------------------------------


def test_other_logits_fail_and_the_earlier_folder_stays(tuned: Any, tmp_path: Path) -> None:
    merge_weights(tuned.plan(), tuned.form, tmp_path / "out", reference=tuned.reference)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    wrong = Reference(tuned.pixels, tuned.logits + 2e-4)
    with pytest.raises(VerificationFailed, match="differs from the tuned one") as caught:
        merge_weights(tuned.plan(scale=1), tuned.form, tmp_path / "out", reference=wrong)
    assert caught.value.exit_code == 3
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_drift_above_the_limit_fails_and_leaves_nothing(tuned: Any, tmp_path: Path) -> None:
    with pytest.raises(VerificationFailed, match=r"--max-drift 0\.0001"):
        merge_weights(
            tuned.plan(dtype="bfloat16"),
            tuned.form,
            tmp_path / "out",
            reference=tuned.reference,
            max_drift=1e-4,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["value", "dtype", "missing", "unexpected"])
def test_a_tensor_that_changed_on_the_way_to_the_disk_is_found(
    tuned: Any, tmp_path: Path, damage: str
) -> None:
    written, _ = tuned.plan().write(tmp_path / "x.safetensors")
    verify_file(tmp_path / "x.safetensors", written)
    tensors = load_tensors(tmp_path / "x.safetensors")
    if damage == "value":
        tensors["norm.bias"][7] += 1e-7
    elif damage == "dtype":
        tensors["norm.bias"] = tensors["norm.bias"].half()
    elif damage == "missing":
        del tensors["norm.bias"]
    else:
        tensors["norm.bias2"] = torch.zeros(1)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(VerificationFailed, match=r"norm\.bias"):
        verify_file(tmp_path / "x.safetensors", written)


def test_a_reader_that_sees_other_bytes_stops_the_merge(
    tuned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = merging._write

    def bad_disk(plan: MergePlan, form: Any, folder: Path, shards: Any, reporter: Any) -> Any:
        result = write(plan, form, folder, shards, reporter)
        path = folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
        return result

    monkeypatch.setattr(merging, "_write", bad_disk)
    with pytest.raises(VerificationFailed, match="other values than those computed"):
        merge_weights(tuned.plan(), tuned.form, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_is_refused(tuned: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(Refused, match=r"chapter1\.tex") as caught:
        merge_weights(tuned.plan(), tuned.form, tmp_path / "thesis")
    assert caught.value.exit_code == 2
    merge_weights(tuned.plan(), tuned.form, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(Refused, match=r"notes\.txt"):
        merge_weights(tuned.plan(), tuned.form, tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    with pytest.raises(Refused, match="is a file"):
        merge_weights(tuned.plan(), tuned.form, tmp_path / "out" / "notes.txt")


def test_the_base_is_never_overwritten(make_tuned: Any, tuned: Any, tmp_path: Path) -> None:
    merge_weights(tuned.plan(), tuned.form, tmp_path / "base")
    again = make_tuned(folder=tmp_path / "base")
    with pytest.raises(Refused, match="starts from"):
        merge_weights(again.plan(), again.form, tmp_path / "base")
    merge_weights(again.plan(), again.form, tmp_path / "next", reference=again.reference)


def test_a_truncated_base_is_named(base_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((base_folder / "model.safetensors").read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="no intact safetensors file") as caught:
        FileSource([path])
    assert str(path) in caught.value.message


def test_a_patch_without_a_stored_tensor_is_an_error(base_folder: Path) -> None:
    merged = Merged(patches={"blocks.9.attn.proj.weight": lambda w: w}, new={})
    with pytest.raises(WeightsError, match=r"has no blocks\.9\.attn\.proj\.weight"):
        MergePlan(FileSource([base_folder / "model.safetensors"]), merged)


def test_values_that_float16_cannot_hold_are_refused(base_folder: Path, tmp_path: Path) -> None:
    merged = Merged(patches={"norm.bias": lambda w: w + 1e5}, new={})
    source = FileSource([base_folder / "model.safetensors"])
    with pytest.raises(Refused, match=r"norm\.bias holds 1e\+05"):
        MergePlan(source, merged, dtype=torch.float16).write(tmp_path / "x")
    broken = Merged(patches={"norm.bias": lambda w: w / 0}, new={})
    with pytest.raises(WeightsError, match="not finite"):
        MergePlan(source, broken).write(tmp_path / "x")


def test_a_full_disk_is_said_and_the_earlier_folder_stays(tuned: Any, tmp_path: Path) -> None:
    merge_weights(tuned.plan(), tuned.form, tmp_path / "out", verified=False)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(StorageError, match=r"model\.safetensors") as caught:
            merge_weights(tuned.plan(dtype="float32"), tuned.form, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 1
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_limit_that_nobody_would_look_at_is_refused(tuned: Any, tmp_path: Path) -> None:
    options: dict[str, Any]
    for options in ({"verified": False, "reference": tuned.reference}, {"reference": None}):
        with pytest.raises(Refused, match="--max-drift"):
            merge_weights(tuned.plan(), tuned.form, tmp_path / "out", max_drift=1.0, **options)


def test_no_scale_but_a_number(tuned: Any) -> None:
    with pytest.raises(Refused, match="nan"):
        plan_merge(tuned.tuner, scale=float("nan"))


# --- sources and the merged folder ------------------------------------------------------------


def test_sharded_files_are_one_source(base_folder: Path, tuned: Any, tmp_path: Path) -> None:
    stored = load_file(base_folder / "model.safetensors")
    names = sorted(stored)
    save_file({k: stored[k] for k in names[::2]}, tmp_path / "1.safetensors")
    save_file({k: stored[k] for k in names[1::2]}, tmp_path / "2.safetensors")
    source = FileSource([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])
    one, _ = replace(tuned.plan(), source=source).write(tmp_path / "a")
    two, _ = tuned.plan().write(tmp_path / "b")
    assert one == two


def test_memory_is_read_where_the_stored_keys_are_others(base_folder: Path, tmp_path: Path) -> None:
    backbone = open_backbone(str(base_folder))
    assert isinstance(weight_source(backbone), FileSource)
    stored = load_file(base_folder / "model.safetensors")
    renamed = {k.replace("norm.", "ln."): t for k, t in stored.items()}
    save_file(renamed, tmp_path / "x.safetensors")
    backbone.origin = replace(backbone.origin, weights=(tmp_path / "x.safetensors",))
    source = weight_source(backbone)
    assert isinstance(source, StateSource)
    assert torch.equal(source.read("norm.weight"), stored["norm.weight"])


def test_a_merged_folder_says_what_evaluation_needs(tuned: Any, tmp_path: Path) -> None:
    merge_weights(tuned.plan(), tuned.form, tmp_path / "out")
    assert kind_of(tmp_path / "out") == "merged"
    folder = open_merged(tmp_path / "out")
    assert folder.classes == ["ant", "bee", "çe"]
    assert folder.preprocessing["input_size"] == [3, 32, 32]
    assert folder.receipt["format"] == "timm"
    again = open_backbone(str(tmp_path / "out")).data_config()
    assert list(again["mean"]) == folder.preprocessing["mean"]
