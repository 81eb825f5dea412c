"""The embedded backbone: two libraries load it, no digit taught it, its script works."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from torch import Generator, Tensor, nn

from gistcli.assets import nano_folder, pretrain_nano
from gistcli.assets.glyphs import FACES, GLYPHS, SIZE, Glyphs, atlas, render
from gistcli.atomic import sha256

PARAMETERS = 217_174


@pytest.fixture(scope="module")
def drawn() -> Tensor:
    return atlas()


@pytest.fixture(scope="module")
def nano() -> nn.Module:
    return timm.create_model(f"local-dir:{nano_folder()}", pretrained=True).eval()


def pixels(seed: int, n: int, drawn: Tensor) -> Glyphs:
    return render(drawn, n, Generator().manual_seed(seed))


def test_the_model_is_a_small_plain_vision_transformer(nano: nn.Module) -> None:
    assert type(nano) is timm.models.VisionTransformer
    assert sum(p.numel() for p in nano.parameters()) == PARAMETERS
    assert nano.blocks[0].attn.qkv.out_features == 3 * 64
    assert nano.num_prefix_tokens == 1
    assert nano.global_pool == "token"
    assert (nano_folder() / "model.safetensors").stat().st_size < 1_000_000


def test_the_stored_weights_are_fp32_and_complete(nano: nn.Module) -> None:
    with safe_open(nano_folder() / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(nano.state_dict())
        assert {file.get_tensor(k).dtype for k in nano.state_dict()} == {torch.float32}
        assert all(file.get_tensor(k).isfinite().all() for k in nano.state_dict())


@torch.no_grad()
def test_timm_loads_weights_that_name_fresh_glyphs(nano: nn.Module, drawn: Tensor) -> None:
    assert pretrain_nano.accuracy(nano, drawn, 500, seed=12345) > 0.55


@torch.no_grad()
def test_transformers_loads_the_same_model(nano: nn.Module, drawn: Tensor) -> None:
    from transformers import AutoModelForImageClassification

    other = AutoModelForImageClassification.from_pretrained(nano_folder()).eval()
    x = pretrain_nano.normalise(pixels(3, 16, drawn).images)
    assert torch.equal(other(pixel_values=x).logits, nano(x))
    assert [other.config.id2label[i] for i in range(len(GLYPHS))] == list(GLYPHS)


def test_timm_reads_preprocessing_and_labels(nano: nn.Module) -> None:
    data = timm.data.resolve_model_data_config(nano)
    assert data["input_size"] == (3, 32, 32)
    assert [*data["mean"], *data["std"]] == [0.5] * 6
    assert data["crop_pct"] == 1.0
    assert list(nano.pretrained_cfg["label_names"]) == list(GLYPHS)


def test_the_weights_are_those_whose_figures_the_script_states() -> None:
    assert sha256(nano_folder() / "model.safetensors") in str(pretrain_nano.__doc__)


def test_the_stored_config_is_the_scripts() -> None:
    stored = json.loads((nano_folder() / "config.json").read_text(encoding="utf-8"))
    assert stored == pretrain_nano.config()
    assert stored["num_classes"] == len(stored["label_names"]) == 150
    assert "num_classes" not in stored["model_args"]


def test_no_glyph_is_a_digit_in_any_form() -> None:
    assert len(set(GLYPHS)) == len(GLYPHS) == 150
    assert not [g for g in GLYPHS if unicodedata.numeric(g, None) is not None]
    assert not [g for g in GLYPHS if any(c.isdigit() for c in unicodedata.normalize("NFKD", g))]


def test_the_atlas_holds_every_glyph_in_every_face_inside_the_canvas(drawn: Tensor) -> None:
    assert drawn.shape == (len(GLYPHS), len(FACES), 48, 48)
    assert (drawn.amax(dim=(2, 3)) > 0.5).all()
    inside = torch.zeros(48, 48, dtype=torch.bool)
    inside[6:42, 6:42] = True
    assert not drawn[..., ~inside].any()
    flat = drawn.flatten(2)
    for face in range(len(FACES)):  # a missing glyph would be drawn as the same box as another
        assert len(torch.unique(flat[:, face], dim=0)) == len(GLYPHS)


def test_one_seed_gives_one_batch_and_another_seed_another(drawn: Tensor) -> None:
    first, again, other = pixels(7, 64, drawn), pixels(7, 64, drawn), pixels(8, 64, drawn)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)


def test_rendering_leaves_the_global_generator_alone(drawn: Tensor) -> None:
    before = torch.get_rng_state()
    pixels(7, 8, drawn)
    assert torch.equal(before, torch.get_rng_state())


def test_rendered_glyphs_are_grey_images_of_both_polarities(drawn: Tensor) -> None:
    images, labels = pixels(1, 400, drawn)
    assert images.shape == (400, 1, SIZE, SIZE)
    assert images.min() >= 0
    assert images.max() <= 1
    assert labels.min() >= 0
    assert labels.max() < len(GLYPHS)
    border = torch.cat([images[:, 0, 0], images[:, 0, -1]], dim=1).mean(dim=1)
    dark = (border < 0.5).float().mean().item()
    assert 0.4 < dark < 0.6


def test_twenty_steps_lower_the_loss_on_two_glyphs(drawn: Tensor) -> None:
    model = pretrain_nano.build()
    losses = pretrain_nano.train(model, drawn[:2], steps=20, batch=32)
    assert len(losses) == 20
    assert np.mean(losses[-3:]) < 0.5 * losses[0]


def test_training_repeats_bit_for_bit(drawn: Tensor) -> None:
    runs = []
    for _ in range(2):
        model = pretrain_nano.build()
        pretrain_nano.train(model, drawn, steps=2, batch=8)
        runs.append(model.state_dict())
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    moved = pretrain_nano.build().state_dict()
    assert all(not torch.equal(runs[0][k], moved[k]) for k in moved)
