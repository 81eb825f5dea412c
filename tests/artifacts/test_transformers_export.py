"""The folder for transformers, judged by transformers itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BitImageProcessor,
    pipeline,
)

from gistcli import run
from gistcli.artifacts.form import Form
from gistcli.artifacts.merge import merge_weights, tuned_form
from gistcli.artifacts.peft_export import export_peft
from gistcli.artifacts.plan import MergePlan, plan_merge
from gistcli.artifacts.predictions import read_csv
from gistcli.artifacts.targets import kind_of, open_merged
from gistcli.artifacts.transformers_export import TransformersForm
from gistcli.artifacts.verify import Reference
from gistcli.backbones import open_backbone
from gistcli.data import Preprocess
from gistcli.errors import NotMergeable, NotSupported, Refused, VerificationFailed, WeightsError
from gistcli.methods.base import Method, Tuner
from gistcli.methods.bitfit import BitFit
from gistcli.methods.full import Full
from gistcli.methods.gift import Gift
from gistcli.methods.merged import Merged
from gistcli.methods.vpt import Vpt
from gistcli.recipe import Recipe
from tests.backbones.hf_kinds import ARGUMENTS, network

CLASSES = ["ant", "bee", "çe"]
OLD_NAME = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
GATED = Gift(rank=3, targets=["query", "fc_gate", "fc_in", "fc_out"], share="none")


@dataclass(frozen=True)
class Tuned:
    """A tuner on a transformers folder, away from its start, and what it answers."""

    folder: Path
    tuner: Tuner
    form: Form
    reference: Reference

    def plan(self, **options: Any) -> MergePlan:
        """The plan of its merge."""
        return plan_merge(self.tuner, **options)


Tune = Callable[..., Tuned]


@pytest.fixture
def tune(tmp_path: Path) -> Tune:
    """`tune(kind, method)`, on a folder that `save_pretrained` has written."""

    def make(
        kind: str = "ViT",
        method: Method | None = None,
        size: tuple[int, int] | None = None,
        **saving: Any,
    ) -> Tuned:
        folder = tmp_path / "base"
        model = network(kind)
        (model.base_model if saving.pop("bare", False) else model).save_pretrained(folder, **saving)
        backbone = open_backbone(str(folder), img_size=size)
        backbone.reset_head(len(CLASSES))
        tuner = (method or Gift(rank=4)).attach(backbone)
        generator = torch.Generator().manual_seed(1)
        for trained in tuner.trainable().values():
            noise = torch.randn(trained.parameter.shape, generator=generator)
            trained.parameter.data.add_(noise, alpha=0.1)
        config = backbone.data_config()
        pixels = torch.randn(3, *config["input_size"], generator=generator)
        backbone.eval()
        tuner.eval()
        with torch.no_grad():
            logits = tuner({"pixels": pixels}).logits
        form = tuned_form(backbone, CLASSES, config, tuner.merge().model_args)
        return Tuned(folder, tuner, form, Reference(pixels, logits))

    return make


def logits_of(folder: Path, pixels: Tensor) -> Tensor:
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits: Tensor = model(pixels).logits
    return logits


CASES = [(kind, Gift(rank=4)) for kind in ARGUMENTS]
CASES += [("DINOv2 gated", GATED), ("DINOv2 gated", Full()), ("DINOv2 registers", Full())]
CASES += [("ViT", BitFit())]


@pytest.mark.parametrize(("kind", "method"), CASES, ids=lambda v: getattr(v, "name", v))
def test_transformers_gives_the_tuned_logits(
    kind: str, method: Method, tune: Tune, tmp_path: Path
) -> None:
    tuned = tune(kind, method)
    out = tmp_path / "out"
    receipt = merge_weights(tuned.plan(), tuned.form, out, reference=tuned.reference)
    assert receipt.format == "transformers"
    assert receipt.verified
    assert receipt.max_abs_logit_difference is not None
    assert receipt.max_abs_logit_difference < 1e-5
    pixels, wanted = tuned.reference.inputs, tuned.reference.logits
    torch.testing.assert_close(logits_of(out, pixels), wanted, atol=1e-5, rtol=0)
    assert not torch.allclose(logits_of(tuned.folder, pixels)[:, :3], wanted, atol=1e-2)
    # the same keys, shapes and dtypes as the base, but for the head
    stored = load_file(tuned.folder / "model.safetensors")
    written = load_file(out / "model.safetensors")
    assert written.keys() == stored.keys()
    for key, tensor in written.items():
        assert tensor.dtype == stored[key].dtype
        assert key.startswith("classifier") or tensor.shape == stored[key].shape
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "ant", "1": "bee", "2": "çe"}
    assert config["label2id"] == {"ant": 0, "bee": 1, "çe": 2}


def test_only_what_the_method_changes_differs_from_the_base(tune: Tune, tmp_path: Path) -> None:
    tuned = tune("DINOv2 gated", Gift(rank=2, targets=["fc_gate"], layers=[1]))
    merge_weights(tuned.plan(), tuned.form, tmp_path / "out")
    stored = load_file(tuned.folder / "model.safetensors")
    written = load_file(tmp_path / "out" / "model.safetensors")
    changed = {k for k, t in written.items() if not torch.equal(t, stored[k])}
    fused = "dinov2.encoder.layer.1.mlp.weights_in.weight"
    assert changed == {"classifier.weight", "classifier.bias", fused}
    assert torch.equal(written[fused][32:], stored[fused][32:])
    assert not torch.allclose(written[fused][:32], stored[fused][:32], atol=1e-3)


def test_prompts_become_registers_of_a_stock_dinov2(tune: Tune, tmp_path: Path) -> None:
    tuned = tune("DINOv2 registers", Vpt(deep=False, length=2))
    out = tmp_path / "out"
    merge_weights(tuned.plan(), tuned.form, out, reference=tuned.reference)
    assert json.loads((out / "config.json").read_text())["num_register_tokens"] == 3 + 2
    pixels, wanted = tuned.reference.inputs, tuned.reference.logits
    torch.testing.assert_close(logits_of(out, pixels), wanted, atol=1e-5, rtol=0)
    with pytest.raises(NotMergeable, match="no register tokens"):
        tune("DINOv2", Vpt(deep=False, length=2))


def test_a_base_without_a_classifier_becomes_a_classifier(tune: Tune, tmp_path: Path) -> None:
    for kind in ("ViT", "DINOv2 gated"):
        tuned = tune(kind, bare=True)
        out = tmp_path / kind
        merge_weights(tuned.plan(), tuned.form, out, reference=tuned.reference)
        network(kind).save_pretrained(tmp_path / "headed")
        headed = load_file(tmp_path / "headed" / "model.safetensors")
        assert load_file(out / "model.safetensors").keys() == headed.keys()
        pixels, wanted = tuned.reference.inputs, tuned.reference.logits
        torch.testing.assert_close(logits_of(out, pixels), wanted, atol=1e-5, rtol=0)


def test_a_sharded_base_keeps_its_files(tune: Tune, tmp_path: Path) -> None:
    tuned = tune(max_shard_size="20KB")
    names = sorted(path.name for path in tuned.tuner.backbone.origin.weights)
    assert len(names) > 1
    out = tmp_path / "out"
    merge_weights(tuned.plan(), tuned.form, out, reference=tuned.reference)
    assert sorted(path.name for path in out.glob("*.safetensors")) == names
    index = json.loads((out / "model.safetensors.index.json").read_text())
    for name in names:
        keys = {key for key, file in index["weight_map"].items() if file == name}
        assert keys == load_file(out / name).keys()


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "DINOv2"])
def test_another_image_size_needs_no_option_afterwards(
    kind: str, tune: Tune, tmp_path: Path
) -> None:
    tuned = tune(kind, size=(24, 48))
    out = tmp_path / "out"
    receipt = merge_weights(tuned.plan(), tuned.form, out, reference=tuned.reference)
    assert receipt.tensors["resampled"] == (kind != "DINOv2")
    wanted = tuned.reference.logits
    torch.testing.assert_close(logits_of(out, tuned.reference.inputs), wanted, atol=1e-5, rtol=0)
    picture = Image.effect_noise((50, 40), 90).convert("RGB")
    processor = AutoImageProcessor.from_pretrained(out)
    assert processor(picture, return_tensors="pt")["pixel_values"].shape == (1, 3, 24, 48)
    assert open_backbone(str(out)).data_config()["input_size"] == (3, 24, 48)


def test_bfloat16_is_loaded_as_bfloat16(tune: Tune, tmp_path: Path) -> None:
    tuned = tune()
    out = tmp_path / "out"
    receipt = merge_weights(tuned.plan(dtype="bf16"), tuned.form, out, reference=tuned.reference)
    assert 1e-4 < receipt.max_abs_logit_difference < 1
    assert AutoModelForImageClassification.from_pretrained(out).dtype == torch.bfloat16
    half = merge_weights(
        tuned.plan(scale=0.5), tuned.form, tmp_path / "half", reference=tuned.reference
    )
    assert half.max_abs_logit_difference < 1e-6


def test_other_logits_leave_nothing(tune: Tune, tmp_path: Path) -> None:
    tuned = tune()
    wrong = Reference(tuned.reference.inputs, tuned.reference.logits + 1e-3)
    with pytest.raises(VerificationFailed, match="differs from the tuned one"):
        merge_weights(tuned.plan(), tuned.form, tmp_path / "out", reference=wrong)
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_a_tensor_without_a_stored_key_is_an_error(tune: Tune, tmp_path: Path) -> None:
    tuned = tune()
    form = tuned.form
    assert isinstance(form, TransformersForm)
    lost = {k: v for k, v in form.stored.items() if "layer.1.output.dense" not in k}
    broken = TransformersForm(form.config, form.processor, lost)
    with pytest.raises(WeightsError, match=r"No stored key is known for vit\.layers\.1\.mlp\.fc2"):
        merge_weights(tuned.plan(), broken, tmp_path / "out")
    more = Merged(tuned.plan().merged.patches, {"vit.extra": torch.zeros(1)})
    plan = MergePlan(tuned.plan().source, more)
    with pytest.raises(WeightsError, match=r"vit\.extra"):
        merge_weights(plan, form, tmp_path / "out")


def test_a_folder_that_lost_a_key_is_not_taken_for_loaded(tune: Tune, tmp_path: Path) -> None:
    tuned = tune()
    merge_weights(tuned.plan(), tuned.form, tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    state = load_file(path)
    del state["vit.layernorm.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"missing: vit\.layernorm\.weight"):
        tuned.form.load(tmp_path / "out")


@OLD_NAME
@pytest.mark.parametrize("kind", ["ViT", "DINOv2 gated"])
def test_peft_gives_the_tuned_logits(kind: str, tune: Tune, tmp_path: Path) -> None:
    tuned = tune(kind, GATED if "gated" in kind else None)
    export_peft(tuned.plan(), "owner/base", tuned.form, tmp_path / "out", reference=tuned.reference)
    base = AutoModelForImageClassification.from_pretrained(
        tuned.folder, num_labels=3, ignore_mismatched_sizes=True
    )
    model = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    wanted = tuned.reference.logits
    with torch.no_grad():
        logits = model(tuned.reference.inputs).logits
        torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=0)
        # the call that the card shows for another image size
        same = model(tuned.reference.inputs, interpolate_pos_encoding=True).logits
        torch.testing.assert_close(same, wanted, atol=1e-5, rtol=0)


def test_the_merged_folder_is_evaluated_as_it_was_tuned(tune: Tune, tmp_path: Path) -> None:
    tuned = tune("DINOv2")
    out = tmp_path / "out"
    merge_weights(tuned.plan(), tuned.form, out)
    assert kind_of(out) == "merged"
    found = open_merged(out)
    assert found.classes == CLASSES
    assert found.architecture == "Dinov2ForImageClassification"
    assert found.receipt["format"] == "transformers"
    was = Preprocess.from_config(tuned.tuner.backbone.data_config())
    assert Preprocess.from_config(open_backbone(str(out)).data_config()) == was
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "id2label": {"a": "b"}}))
    with pytest.raises(WeightsError, match="id2label"):
        open_merged(out)
    (out / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="no configuration of timm"):
        open_merged(out)


# --- the whole way ---------------------------------------------------------------------------


def recipe(folder: Path, **method: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name": str(folder)},
            "data": {"path": "digits", "shots": 4},
            "method": {"name": "gift", "rank": 4, **method},
            "train": {"max_steps": 2, "batch_size": 16, "device": "cpu"},
        }
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder with a preprocessor_config.json that resizes and crops."""
    place = tmp_path_factory.mktemp("hf")
    network("ViT").save_pretrained(place / "tiny")
    size, crop = {"shortest_edge": 36}, {"height": 32, "width": 32}
    BitImageProcessor(size=size, crop_size=crop).save_pretrained(place / "tiny")
    run.finetune(recipe(place / "tiny"), output=place / "run")
    run.merge(place / "run", place / "out")
    return place


def test_a_run_merges_into_a_folder_that_needs_nothing_of_us(finished: Path) -> None:
    assert sorted(p.name for p in (finished / "out").iterdir()) == [
        "README.md", "config.json", "merge.json", "model.safetensors",
        "preprocessor_config.json",
    ]  # fmt: skip
    receipt = json.loads((finished / "out" / "merge.json").read_text())
    assert receipt["verified"]
    assert receipt["max_abs_logit_difference"] < 1e-5
    card = (finished / "out" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "timm" not in card.partition("## Recipe")[0]


def test_the_merged_folder_has_the_figures_of_the_run(finished: Path) -> None:
    ours = run.evaluate(finished / "run", device="cpu")
    theirs = run.evaluate(finished / "out", data="digits", split="test", device="cpu")
    assert theirs["metrics"] == pytest.approx(ours["metrics"], abs=1e-5)
    assert theirs["examples"] == ours["examples"] > 100
    inspected = run.inspect(str(finished / "out"))
    assert inspected["kind"] == "merged"
    assert inspected["classes"] == [str(i) for i in range(10)]
    assert inspected["receipt"]["format"] == "transformers"
    assert {s["role"] for s in inspected["sites"]} >= {"query", "attn_out", "fc_in"}


def test_the_pipeline_answers_as_the_run_does(finished: Path, tmp_path: Path) -> None:
    pictures = []
    for i in range(6):
        picture = Image.effect_noise((60, 48), 30 * (i + 1)).convert("RGB")
        pictures.append(tmp_path / f"{i}.png")
        picture.save(pictures[-1])
    for target in ("run", "out"):
        run.predict(finished / target, pictures, output=tmp_path / f"{target}.csv", device="cpu")
    ours, theirs = (read_csv(tmp_path / f"{target}.csv") for target in ("run", "out"))
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine["file"], mine["class"]) == (other["file"], other["class"])
        rates = [key for key in mine if mine[key].startswith("0.")]
        for key in rates:  # the last digit may be rounded otherwise
            assert float(other[key]) == pytest.approx(float(mine[key]), abs=2e-6), key
        assert len(rates) == 5
    processor = AutoImageProcessor.from_pretrained(finished / "out", backend="pil")
    classify = pipeline(
        "image-classification", model=str(finished / "out"), image_processor=processor
    )
    assert [classify(str(p))[0]["label"] for p in pictures] == [row["class"] for row in ours]
    plain = pipeline("image-classification", model=str(finished / "out"))
    assert len(plain(str(pictures[0]))) == 5


def test_the_other_library_s_format_is_refused_with_the_reason(finished: Path) -> None:
    with pytest.raises(Refused, match="ViTForImageClassification is a network of transformers"):
        run.merge(finished / "run", finished / "no", format="timm")
    assert not (finished / "no").exists()
    with pytest.raises(Refused, match="is a merged folder"):
        run.merge(finished / "out", finished / "no")


def test_a_timm_network_is_not_written_for_transformers(tmp_path: Path) -> None:
    run.finetune(recipe(Path("gist_vit_nano")), output=tmp_path / "run")
    with pytest.raises(Refused, match="a network of timm") as caught:
        run.merge(tmp_path / "run", tmp_path / "out", format="transformers")
    assert "transformers loads a timm folder" in caught.value.hint


def test_a_network_without_a_classifier_is_not_evaluated(tmp_path: Path) -> None:
    network("ViT").base_model.save_pretrained(tmp_path / "bare")
    with pytest.raises(NotSupported, match="without a classifier"):
        run.evaluate(tmp_path / "bare", data="digits", device="cpu")


@OLD_NAME
def test_the_peft_folder_of_a_run_says_how_it_is_used(finished: Path, tmp_path: Path) -> None:
    run.merge(finished / "run", tmp_path / "lora", format="peft")
    card = (tmp_path / "lora" / "README.md").read_text()
    assert "AutoModelForImageClassification" in card
    assert "timm" not in card.partition("## Recipe")[0]
    code = card.partition("```python\n")[2].partition("logits =")[0]
    names: dict[str, Any] = {}
    exec(code.replace('"lora"', repr(str(tmp_path / "lora"))), names)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = logits_of(finished / "out", pixels)
        torch.testing.assert_close(names["model"](pixels).logits, wanted, atol=1e-5, rtol=0)
