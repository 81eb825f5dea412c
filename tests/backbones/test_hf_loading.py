"""From a transformers folder to a backbone: every key, every shape, any image size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageClassification, ViTImageProcessor

from gistcli.artifacts.plan import MergePlan
from gistcli.artifacts.sources import weight_source
from gistcli.backbones import open_backbone
from gistcli.backbones.fingerprint import fingerprint
from gistcli.errors import NotFound, NotSupported, Refused, WeightsError
from gistcli.methods.merged import Merged
from tests.backbones.hf_kinds import ARGUMENTS, network

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """`save(kind)`: the folder that `save_pretrained` writes."""

    def write(kind: str = "ViT", *, bare: bool = False, **options: Any) -> Path:
        folder = tmp_path / "tiny"
        model = network(kind)
        (model.base_model if bare else model).save_pretrained(folder, **options)
        return folder

    return write


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def plain(folder: Path, pixels: Tensor, **options: Any) -> Tensor:
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits: Tensor = model(pixels, **options).logits
    return logits


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_a_folder_gives_the_network_that_transformers_gives(
    kind: str, save: Save, pixels: Tensor
) -> None:
    folder = save(kind)
    backbone = open_backbone(str(folder)).eval()
    assert backbone.library == "transformers"
    with torch.no_grad():
        assert torch.equal(backbone({"pixels": pixels}).logits, plain(folder, pixels))
    assert open_backbone(str(folder)).resampled() == {}
    meta = open_backbone(str(folder), meta=True)
    assert meta.count() == backbone.count()
    assert next(meta.model.parameters()).is_meta


@pytest.mark.parametrize("kind", ["ViT", "DINOv2 gated"])
def test_shards_are_one_network(kind: str, save: Save, pixels: Tensor, tmp_path: Path) -> None:
    whole = open_backbone(str(save(kind))).eval()
    network(kind).save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    parts = open_backbone(str(tmp_path / "parts")).eval()
    assert len(parts.origin.weights) > 1
    assert parts.fingerprint == whole.fingerprint == fingerprint(whole.origin.weights)
    with torch.no_grad():
        batch = {"pixels": pixels}
        assert torch.equal(parts(batch).logits, whole(batch).logits)
    parts.origin.weights[1].unlink()
    with pytest.raises(NotFound, match=parts.origin.weights[1].name):
        open_backbone(str(tmp_path / "parts"))
    assert open_backbone(str(tmp_path / "parts"), meta=True).depth == 2


def test_a_network_without_a_classifier_has_no_head_until_it_gets_one(
    save: Save, pixels: Tensor
) -> None:
    for kind in ("ViT", "DINOv2"):
        folder = save(kind, bare=True)
        backbone = open_backbone(str(folder)).eval()
        assert backbone.head_names() == []
        with torch.no_grad():
            features = backbone({"pixels": pixels})
        assert torch.equal(features.logits, features.pooled)
        assert open_backbone(str(folder), meta=True).head_names() == []
        backbone.reset_head(3)
        with torch.no_grad():
            assert backbone({"pixels": pixels}).logits.shape == (3, 3)


def test_the_stored_tensors_are_read_under_their_names_in_memory(save: Save) -> None:
    for kind, bare in (("ViT", False), ("ViT", True), ("DINOv2 gated", False)):
        folder = save(kind, bare=bare)
        backbone = open_backbone(str(folder))
        source = weight_source(backbone)
        state = backbone.model.state_dict()
        assert source.files == backbone.origin.weights
        with source:
            assert source.layout().keys() == state.keys()
            assert all(torch.equal(source.read(n), t) for n, t in state.items())
        shutil.rmtree(folder)


def test_a_site_without_a_stored_key_is_an_error(save: Save) -> None:
    backbone = open_backbone(str(save()))
    merged = Merged({"vit.layers.7.attention.o_proj.weight": lambda w: w}, {})
    with pytest.raises(WeightsError, match=r"has no vit\.layers\.7"):
        MergePlan(weight_source(backbone), merged)
    path = backbone.origin.weights[0]
    state = load_file(path)
    del state["vit.encoder.layer.1.output.dense.weight"]
    save_file(state, path)
    with pytest.raises(WeightsError, match=r"vit\.layers\.1\.mlp\.fc2\.weight"):
        weight_source(backbone)


# --- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ViT", "DeiT"])
@pytest.mark.parametrize("size", [48, (24, 48)])
def test_another_size_resamples_the_positions_once(
    kind: str, size: int | tuple[int, int], save: Save, tmp_path: Path
) -> None:
    folder = save(kind)
    backbone = open_backbone(str(folder), img_size=size).eval()
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randn(2, 3, height, width)
    with torch.no_grad():
        logits = backbone({"pixels": images}).logits
    assert torch.equal(logits, plain(folder, images, interpolate_pos_encoding=True))
    assert backbone.data_config()["input_size"] == (3, height, width)
    assert list(backbone.resampled()) == [f"{kind.lower()}.embeddings.position_embeddings"]
    # what is stored afterwards needs no option
    backbone.model.save_pretrained(tmp_path / "again")
    assert torch.equal(plain(tmp_path / "again", images), logits)
    meta = open_backbone(str(folder), img_size=size, meta=True)
    assert meta.count() == backbone.count()


def test_dinov2_takes_any_size_with_the_weights_as_they_are(save: Save) -> None:
    folder = save("DINOv2 registers")
    backbone = open_backbone(str(folder), img_size=(24, 48)).eval()
    images = torch.randn(2, 3, 24, 48)
    with torch.no_grad():
        assert torch.equal(backbone({"pixels": images}).logits, plain(folder, images))
    assert backbone.resampled() == {}
    config = backbone.data_config()
    assert config["input_size"] == (3, 24, 48)
    assert config["crop_mode"] == "squash"
    assert backbone.model.config.image_size == 32


def test_a_size_that_patches_do_not_fill_is_refused(save: Save) -> None:
    for kind in ("ViT", "DINOv2"):
        with pytest.raises(Refused, match="no multiple of the patch size"):
            open_backbone(str(save(kind)), img_size=30)


def test_positions_that_are_not_square_are_not_resampled(save: Save, tmp_path: Path) -> None:
    wide = open_backbone(str(save()), img_size=(16, 32))
    wide.model.save_pretrained(tmp_path / "wide")
    assert open_backbone(str(tmp_path / "wide")).data_config()["input_size"] == (3, 16, 32)
    with pytest.raises(NotSupported, match="not square"):
        open_backbone(str(tmp_path / "wide"), img_size=32)


def test_drop_path_rises_and_is_no_part_of_the_network(save: Save) -> None:
    backbone = open_backbone(str(save("DINOv2")), drop_path=0.2)
    assert [b.drop_path.drop_prob for b in backbone.blocks] == pytest.approx([0, 0.2])
    assert backbone.model.config.drop_path_rate == 0
    with pytest.raises(NotSupported, match="no stochastic depth"):
        open_backbone(str(save("ViT")), drop_path=0.2)


def test_preprocessing_comes_from_its_file_or_the_family(save: Save) -> None:
    folder = save()
    config = open_backbone(str(folder)).data_config()
    assert (config["mean"], config["crop_mode"]) == ((0.5, 0.5, 0.5), "squash")
    processor = ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(folder)
    config = open_backbone(str(folder), meta=True).data_config()
    assert config["mean"] == pytest.approx((0.1, 0.2, 0.3))
    # a ViT reads what it was built for, whatever the file says
    assert config["input_size"] == (3, 32, 32)
    dinov2 = open_backbone(str(save("DINOv2"))).data_config()
    assert dinov2["input_size"] == (3, 64, 64)


def test_bfloat16_and_checkpointing_are_options_of_the_frozen_network(
    save: Save, pixels: Tensor
) -> None:
    backbone = open_backbone(str(save()), dtype="bfloat16", grad_checkpointing=True)
    logits = backbone({"pixels": pixels}).logits
    assert logits.dtype == torch.bfloat16
    assert backbone.blocks[0].gradient_checkpointing


# --- what is wrong ---------------------------------------------------------------------------


def test_damaged_and_foreign_weights_are_named(save: Save) -> None:
    folder = save()
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    state = load_file(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(WeightsError, match="no intact safetensors file"):
        open_backbone(str(folder))
    key = "vit.encoder.layer.1.output.dense.weight"
    for changed, message in (
        ({**state, key: torch.zeros(3, 3)}, r"of another shape: .*mlp\.fc2\.weight \[3, 3\]"),
        ({k: t for k, t in state.items() if k != key}, r"missing: .*1\.mlp\.fc2\.weight"),
        ({**state, "vit.encoder.layer.2.x": torch.zeros(1)}, "unexpected: .*2"),
        ({k: t for k, t in state.items() if "classifier" not in k}, "missing: classifier"),
    ):
        save_file(changed, path)
        with pytest.raises(WeightsError, match=message):
            open_backbone(str(folder))
    pooler = {"vit.pooler.dense.weight": torch.zeros(24, 24)}
    save_file({**state, **pooler}, path)
    assert open_backbone(str(folder)).depth == 2


def test_pickled_weights_are_not_read(save: Save) -> None:
    folder = save()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(NotFound, match=r"only pytorch_model\.bin") as caught:
        open_backbone(str(folder))
    assert "save_pretrained" in caught.value.hint


def test_other_types_and_classes_are_refused_with_their_names(save: Save) -> None:
    config = save() / "config.json"
    edit(config, model_type="clip")
    with pytest.raises(NotSupported, match="type 'clip'") as caught:
        open_backbone(str(config.parent))
    assert "dinov2" in caught.value.hint
    edit(config, model_type="deit", architectures=["DeiTForImageClassificationWithTeacher"])
    with pytest.raises(NotSupported, match="DeiTForImageClassificationWithTeacher"):
        open_backbone(str(config.parent))
    edit(config, model_type="vit", architectures=None, hidden_size="wide")
    with pytest.raises(WeightsError, match=r"config\.json"):
        open_backbone(str(config.parent))


@pytest.mark.parametrize("table", [{}, {"a": "../model.safetensors"}, ["x"]])
def test_an_index_that_leads_elsewhere_is_refused(table: Any, save: Save) -> None:
    folder = save()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    with pytest.raises(WeightsError, match="lists no files beside it"):
        open_backbone(str(folder))


@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_what_is_in_the_hub_cache_needs_no_network(
    size: str, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "cache" / "models--someone--some-vit" / "snapshots" / "abc"
    shutil.copytree(save(max_shard_size=size), snapshot)
    reference = tmp_path / "cache" / "models--someone--some-vit" / "refs" / "main"
    reference.parent.mkdir()
    reference.write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert open_backbone("someone/some-vit").depth == 2
    for path in snapshot.glob("*.safetensors*"):
        path.unlink()
    with pytest.raises(Refused, match="cannot be reached"):
        open_backbone("someone/some-vit")
    assert open_backbone("someone/some-vit", meta=True).depth == 2
