"""The vision Transformers of transformers: features, sites, points and inserted tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from gistcli.backbones import Backbone, Switch
from gistcli.backbones.base import Origin
from gistcli.backbones.hf_images import processor_config, read_images
from gistcli.backbones.hf_keys import stored_keys
from gistcli.backbones.hf_vit import HFViT
from gistcli.data import Preprocess
from gistcli.data.transforms import Normalize, crop_transform
from gistcli.errors import NotMergeable, NotSupported, UnknownName, WeightsError
from gistcli.methods.full import Full
from tests.backbones.hf_kinds import KINDS, build, network


@pytest.fixture(params=KINDS)
def hf(request: pytest.FixtureRequest) -> Backbone:
    return KINDS[request.param]()


def logits(backbone: Backbone, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return backbone({"pixels": pixels}).logits


def test_features_are_those_of_the_plain_model(hf: Backbone, pixels: Tensor) -> None:
    with torch.no_grad():
        features = hf({"pixels": pixels})
        plain = hf.model(pixels, output_hidden_states=True)
    assert torch.equal(features.logits, plain.logits)
    assert torch.equal(features.logits, hf.classify(features.pooled))
    layout = features.layout
    assert layout.total == features.tokens.shape[1]
    assert layout.grid == (4, 4)
    assert layout.patches == slice(layout.total - 16, layout.total)


def test_the_grid_is_not_square_where_the_image_is_not() -> None:
    vit = build("ViT", image_size=[32, 48])
    assert vit({"pixels": torch.zeros(1, 3, 32, 48)}).layout.grid == (4, 6)
    assert vit.data_config()["input_size"] == (3, 32, 48)
    dino = build("DINOv2 registers")
    assert dino({"pixels": torch.zeros(1, 3, 32, 48)}).layout.grid == (4, 6)


def test_another_network_is_refused() -> None:
    config = transformers.ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(NotSupported, match="is a ViTModel, not one of"):
        HFViT(transformers.ViTModel(config), Origin("x", "vit"))
    assert HFViT.accepts("ViTForImageClassification")
    assert not HFViT.accepts("vit_tiny_patch16_224")


def test_roles_and_family_names_and_paths_name_the_same_sites(hf: Backbone) -> None:
    by_role = [s.name for s in hf.sites(["attn_out"])]
    assert len(by_role) == 2
    assert [s.name for s in hf.sites(["attention.o_proj"])] == by_role
    assert [s.name for s in hf.sites(["o_proj"])] == by_role
    assert [s.name for s in hf.sites(by_role[1:])] == by_role[1:]
    assert [s.layer for s in hf.sites(["fc_in", "query"], [-1])] == [1, 1]
    with pytest.raises(UnknownName, match="'qkv'"):
        hf.sites(["qkv"])


def test_every_linear_map_of_the_blocks_is_a_site(hf: Backbone) -> None:
    sites = {id(s.module) for s in hf.all_sites()}
    assert sites == {id(m) for m in hf.blocks.modules() if isinstance(m, nn.Linear)}
    gated = [s.d_out for s in KINDS["DINOv2 gated"]().sites(["fc_gate", "fc_in"], [0])]
    assert gated == [32, 32]


def test_a_mapped_input_is_what_the_weight_sees(hf: Backbone, pixels: Tensor) -> None:
    for role in ("query", "attn_out", "fc_out"):
        site, switch, base = hf.sites([role], [1])[0], Switch(), logits(hf, pixels)
        matrix = torch.randn(site.d_in, site.d_in)
        site.map_input(lambda x, m=matrix: x @ m, switch)
        changed = logits(hf, pixels)
        switch.release()
        with torch.no_grad():
            old = site.module.weight.clone()
            site.module.weight.copy_(old @ matrix.t())
            torch.testing.assert_close(logits(hf, pixels), changed, atol=1e-4, rtol=1e-5)
            site.module.weight.copy_(old)
        assert not torch.allclose(base, changed, atol=1e-2)
        assert torch.equal(logits(hf, pixels), base)


def test_all_affine_modules_are_outputs_in_order(hf: Backbone, pixels: Tensor) -> None:
    outputs, called, switch = hf.outputs(), [], Switch()
    kinds = (nn.Linear, nn.LayerNorm, nn.Conv2d)
    names = {n for n, m in hf.model.named_modules() if isinstance(m, kinds)} - {"classifier"}
    assert {o.name for o in outputs} == names
    for output in outputs:
        output.map_output(lambda y, o=output: called.append(o.name) or 1.5 * y, switch)
    assert not torch.allclose(logits(hf, pixels), logits(KINDS["ViT"](), pixels))
    assert called == [o.name for o in outputs]
    assert all(o.width == o.module.weight.shape[0] for o in outputs)


POINTS = ["attention", "mlp", "attn_out", "fc_in", "fc_out", "query"]


@pytest.mark.parametrize("after", POINTS)
def test_a_point_sees_its_branch(hf: Backbone, pixels: Tensor, after: str) -> None:
    point, switch, base = hf.point(after, 1), Switch(), logits(hf, pixels)
    shapes = {}

    def keep(x_in: Tensor, y: Tensor, residual: Tensor) -> Tensor:
        shapes.update(x_in=x_in.shape[-1], y=y.shape[-1], residual=residual.shape[-1])
        return y

    point.map_output(keep, switch)
    assert torch.equal(logits(hf, pixels), base)
    assert shapes == {"x_in": 24, "y": point.width, "residual": 24}
    switch.release()
    point.map_output(lambda x_in, y, residual: 2 * y, switch)
    assert not torch.allclose(logits(hf, pixels), base)


def test_the_points_of_a_block_hold_it_together(hf: Backbone, pixels: Tensor) -> None:
    switch, seen = Switch(), {}

    def keeper(key: str) -> Any:
        def keep(x_in: Tensor, y: Tensor, residual: Tensor) -> Tensor:
            seen[key] = (x_in, y, residual)
            return y

        return keep

    for layer in (0, 1):
        for after in ("attention", "mlp"):
            hf.point(after, layer).map_output(keeper(f"{after} {layer}"), switch)
    logits(hf, pixels)
    for before, behind in (("attention 0", "mlp 0"), ("mlp 0", "attention 1")):
        _, y, residual = seen[before]
        assert torch.equal(residual + y, seen[behind][2])
    with pytest.raises(UnknownName, match="No point 'atention'"):
        hf.point("atention", 0)


def test_an_inserted_token_takes_part_and_is_not_pooled(hf: Backbone, pixels: Tensor) -> None:
    base, switch = hf({"pixels": pixels}), Switch()
    token = nn.Parameter(torch.randn(2, 24))
    handle = hf.insert_tokens("gist", 2, lambda n: token.expand(n, -1, -1), switch)
    features = hf({"pixels": pixels})
    assert features.layout.total == base.layout.total + 2 == features.tokens.shape[1]
    cls = base.layout.lengths["cls"]
    assert features.layout.span("gist") == slice(cls, cls + 2)
    assert not torch.allclose(features.logits, base.logits)
    assert hf.read_out(features, "gist").shape == features.logits.shape
    features.logits.sum().backward()
    assert token.grad is not None
    assert token.grad.abs().sum() > 0
    once = features.logits
    handle.refresh(1, lambda n: torch.ones(n, 2, 24))
    assert not torch.allclose(logits(hf, pixels), once)
    switch.enabled = False
    assert torch.equal(logits(hf, pixels), base.logits.detach())
    switch.release()
    assert torch.equal(logits(hf, pixels), base.logits.detach())


def test_the_class_token_reads_out_as_the_network_does(hf: Backbone, pixels: Tensor) -> None:
    features = hf({"pixels": pixels})
    if features.layout.lengths["cls"] == 1:
        assert torch.allclose(hf.read_out(features, "cls"), features.logits, atol=1e-5)


def test_an_inserted_token_is_a_register_of_a_stock_dinov2(pixels: Tensor) -> None:
    hf = KINDS["DINOv2 registers"]()
    tokens = torch.randn(2, 24)
    new, arguments = hf.register_tokens(tokens)
    assert arguments == {"num_register_tokens": 5}
    stock = network("DINOv2 registers", **arguments).eval()
    stock.load_state_dict({**hf.model.state_dict(), **new})
    hf.insert_tokens("prompts", 2, lambda n: tokens.expand(n, -1, -1), Switch())
    with torch.no_grad():
        assert torch.equal(stock(pixels).logits, logits(hf, pixels))
    with pytest.raises(NotMergeable, match="no register tokens"):
        KINDS["DINOv2"]().register_tokens(tokens)


def test_the_new_head_follows_its_seed(hf: Backbone, pixels: Tensor) -> None:
    hf.reset_head(7, seed=3)
    first = hf.model.classifier.weight.clone()
    hf.reset_head(7, seed=3)
    assert torch.equal(hf.model.classifier.weight, first)
    hf.reset_head(7, seed=4)
    assert not torch.equal(hf.model.classifier.weight, first)
    assert hf.head_names() == ["classifier.weight", "classifier.bias"]
    assert not any(p.requires_grad for p in hf.model.parameters())
    assert hf.model.config.num_labels == len(hf.model.config.id2label) == 7
    assert torch.equal(logits(hf, pixels), hf.model(pixels).logits)


def test_only_the_mask_token_is_never_read(hf: Backbone, pixels: Tensor) -> None:
    hf.model.requires_grad_(True)
    hf({"pixels": pixels}).logits.square().sum().backward()
    unread = [n for n, p in hf.model.named_parameters() if p.grad is None]
    assert unread == hf.unused_names()
    # what gets no gradient is not trained
    owned = Full().attach(hf).trainable()
    assert {n for n, _ in hf.model.named_parameters()} - owned.keys() == set(unread)


def tuned_by_hand(hf: Backbone) -> list[nn.Parameter]:
    """An input map, an added output and a point, so that all kinds of hooks are there."""
    torch.manual_seed(5)
    matrices = [nn.Parameter(0.1 * torch.randn(24, 24)) for _ in range(3)]
    switch = Switch()
    hf.sites(["attn_out"], [0])[0].map_input(lambda x: x + x @ matrices[0], switch)
    hf.sites(["query"], [1])[0].add_output(lambda x: x @ matrices[1], switch)
    hf.point("mlp", 0).map_output(lambda x, y, r: y + r @ matrices[2], switch)
    hf.insert_tokens("prompts", 1, lambda n: matrices[0][:1].expand(n, -1, -1), switch)
    return matrices


def test_compiling_after_attaching_changes_nothing(hf: Backbone, pixels: Tensor) -> None:
    base = logits(hf, pixels)
    tuned_by_hand(hf)
    eager = logits(hf, pixels)
    assert not torch.allclose(base, eager, atol=1e-2)
    torch.compiler.reset()
    hf.compile(backend="eager", fullgraph=True)
    assert hf.compiled
    assert torch.equal(logits(hf, pixels), eager)


def test_checkpointing_gives_the_same_gradients(hf: Backbone, pixels: Tensor) -> None:
    matrices = tuned_by_hand(hf)
    gradients = []
    for _ in range(2):
        hf.train()
        hf({"pixels": pixels}).logits.square().sum().backward()
        gradients.append([m.grad.clone() for m in matrices])
        for matrix in matrices:
            matrix.grad = None
        hf.checkpoint_gradients()
    assert all(g.abs().sum() > 0 for g in gradients[0])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_stored_names_are_those_of_save_pretrained(hf: Backbone, tmp_path: Path) -> None:
    hf.model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    keys = stored_keys(hf.model)
    assert keys.written.keys() == stored.keys()
    state = hf.model.state_dict()
    places = keys.locate(stored)
    assert places.keys() == state.keys()
    for name, (key, rows) in places.items():
        found = stored[key] if rows is None else stored[key][rows]
        assert torch.equal(found, state[name]), name
    assert any(name != place.key for name, place in places.items())


# --- pictures --------------------------------------------------------------------------------

PROCESSORS: dict[str, dict[str, Any]] = {
    "squash": {"image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 32}},
    "old ViT": {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "resample": 2},
    "crop": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 37},
        "crop_size": {"height": 32, "width": 32},
        "resample": 3,
    },
    "other range": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 32},
        "rescale_factor": 1 / 127.5,
        "image_mean": [1.0, 1.0, 1.0],
        "image_std": [1.0, 1.0, 1.0],
    },
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pictures_are_prepared_as_transformers_does(name: str, tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(PROCESSORS[name]))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    images = read_images(tmp_path)
    assert images is not None
    config = images.at(images.size).as_config(3)
    preprocess = Preprocess.from_config(config)
    picture = Image.effect_noise((50, 41), 90).convert("RGB")
    ours = Normalize(preprocess, torch.device("cpu"))(crop_transform(preprocess)(picture)[None])
    auto = transformers.AutoImageProcessor
    theirs = auto.from_pretrained(tmp_path, backend="pil")(picture, return_tensors="pt")
    torch.testing.assert_close(ours, theirs["pixel_values"], atol=2e-6, rtol=0)
    path.write_text(json.dumps(processor_config(config)))
    again = auto.from_pretrained(tmp_path, backend="pil")(picture, return_tensors="pt")
    torch.testing.assert_close(again["pixel_values"], ours, atol=2e-6, rtol=0)
    assert read_images(tmp_path) == images


def test_a_picture_of_no_fixed_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(
        '{"image_processor_type": "BitImageProcessor", "do_center_crop": false,'
        ' "size": {"shortest_edge": 32}}'
    )
    with pytest.raises(WeightsError, match="differ in shape"):
        read_images(tmp_path)
    path.write_text("{")
    with pytest.raises(WeightsError, match="cannot be used"):
        read_images(tmp_path)
    path.unlink()
    assert read_images(tmp_path) is None
