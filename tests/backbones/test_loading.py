"""From a name to a backbone, and the fingerprint that recognises it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from timm.layers import DropPath

from gistcli.backbones import open_backbone
from gistcli.backbones.fingerprint import fingerprint
from gistcli.backbones.loading import supported_models
from gistcli.errors import NotFound, NotSupported, Refused, UnknownName, WeightsError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small pretrained network as `hf download` leaves it."""
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **arguments)
    target = tmp_path / "tiny"
    timm.models.save_for_hf(model, str(target), model_args=arguments, safe_serialization=True)
    return target


def test_a_downloaded_folder_gives_the_network_that_timm_gives(folder: Path) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    ours = open_backbone(str(folder)).eval()
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(ours({"pixels": pixels}).logits, theirs(pixels))


def test_the_real_network_knows_its_preprocessing(assets: Path) -> None:
    backbone = open_backbone(str(assets / "vit_tiny_patch16_224"), img_size=112)
    config = backbone.data_config()
    assert config["input_size"] == (3, 112, 112)
    assert tuple(config["mean"]) == (0.5, 0.5, 0.5)
    assert backbone.model.pos_embed.shape == (1, 50, 192)
    assert list(backbone.resampled()) == ["pos_embed"]


def test_the_meta_device_needs_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    backbone = open_backbone(str(folder), meta=True)
    assert backbone.count() == sum(p.numel() for p in backbone.model.parameters())
    assert backbone.fingerprint == ""
    with pytest.raises(NotFound, match=r"no model\.safetensors"):
        open_backbone(str(folder))


def test_drop_path_reaches_the_blocks(folder: Path) -> None:
    blocks = open_backbone(str(folder), drop_path=0.2).model.blocks
    assert blocks[1].drop_path1.drop_prob == pytest.approx(0.2)


def test_no_path_is_dropped_by_default_whatever_the_architecture_says() -> None:
    network = open_backbone("swin_tiny_patch4_window7_224", meta=True).model
    theirs = timm.create_model("swin_tiny_patch4_window7_224")
    assert any(isinstance(m, DropPath) for m in theirs.modules())
    assert not any(isinstance(m, DropPath) for m in network.modules())


def test_truncated_weights_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"model\.safetensors is no intact"):
        open_backbone(str(folder))


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["blocks.0.attn.proj.weight"] = torch.zeros(3, 3)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(WeightsError, match="does not fit"):
        open_backbone(str(folder))


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(NotFound, match=r"only pytorch_model\.bin"):
        open_backbone(str(folder))


def test_a_folder_without_config_and_a_file_and_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no config\.json"):
        open_backbone(str(tmp_path))
    file = tmp_path / "weights"
    file.touch()
    with pytest.raises(NotFound, match="is a file"):
        open_backbone(str(file))
    with pytest.raises(NotFound, match="does not exist"):
        open_backbone(str(tmp_path / "a" / "b"))


def test_a_transformers_folder_is_refused_with_its_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "swin"}))
    with pytest.raises(NotSupported, match="'swin'"):
        open_backbone(str(tmp_path))


def test_an_unknown_name_gets_the_closest_one() -> None:
    with pytest.raises(UnknownName) as caught:
        open_backbone("vit_bse_patch16_224")
    assert "vit_base_patch16_224" in caught.value.hint


def test_another_family_is_refused_before_anything_is_fetched() -> None:
    with pytest.raises(NotSupported, match="resnet50"):
        open_backbone("resnet50")


@pytest.mark.parametrize("name", ["vit_base_patch16_224.augreg_in21k", "someone/some-vit"])
def test_offline_a_hub_name_is_refused_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # an address on this machine where nothing listens: refused as fast as no network at all
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(Refused, match="cannot be reached") as caught:
        open_backbone(name)
    assert time.monotonic() - start < 2
    assert "hf download" in caught.value.hint
    assert "--local-dir" in caught.value.hint


def test_what_is_in_the_hub_cache_needs_no_network(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "cache" / "models--someone--some-vit" / "snapshots" / "abc"
    shutil.copytree(folder, snapshot)
    reference = tmp_path / "cache" / "models--someone--some-vit" / "refs" / "main"
    reference.parent.mkdir()
    reference.write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert open_backbone("someone/some-vit").depth == 2


def test_supported_models_are_timm_names_and_the_embedded_ones() -> None:
    names = supported_models()
    assert names[:2] == ["gist_vit_nano", "gist_llama_nano"]
    assert "vit_base_patch16_224" in names
    assert "swin_tiny_patch4_window7_224" in names
    assert "resnet50" not in names


def test_the_fingerprint_is_of_the_tensors_and_not_of_the_files(tmp_path: Path) -> None:
    state = {f"layer.{i}": torch.randn(3, 4) for i in range(4)}
    one, first, second = (tmp_path / f"{n}.safetensors" for n in ("one", "first", "second"))
    save_file(state, one, metadata={"format": "pt"})
    names = list(state)
    save_file({n: state[n] for n in names[2:]}, first)
    save_file({n: state[n] for n in names[:2]}, second)
    whole = fingerprint([one])
    assert fingerprint([first, second]) == whole
    assert fingerprint([first]) != whole
    changed = tmp_path / "changed.safetensors"
    save_file({**state, "layer.0": state["layer.0"] + 1e-7}, changed)
    assert fingerprint([changed]) != whole
    renamed = tmp_path / "renamed.safetensors"
    save_file({n.replace("layer.3", "layer.9"): t for n, t in state.items()}, renamed)
    assert fingerprint([renamed]) != whole
    assert len(whole) == 64


def test_a_changed_file_is_hashed_again(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(10)}, path)
    before = fingerprint([path])
    save_file({"a": torch.ones(10)}, path)
    assert fingerprint([path]) != before
