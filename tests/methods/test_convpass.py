"""Convpass: counts, starts, a network written out with plain convolutions, and its grid."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from gistcli.backbones import Backbone
from gistcli.backbones.base import Origin
from gistcli.backbones.layout import TokenLayout
from gistcli.backbones.sites import Switch
from gistcli.backbones.vit import ViT
from gistcli.errors import NotMergeable, NotSupported
from gistcli.methods.convpass import Convpass, ConvpassModule, ConvpassTuner
from gistcli.testing.kinds import KINDS, VIT
from tests.backbones.kinds import logits
from tests.methods.measuring import count_on_vit_b_16, require_movement


def attach(backbone: Backbone, **options: Any) -> ConvpassTuner:
    torch.manual_seed(2)
    tuner = Convpass(**options).attach(backbone).eval()
    assert isinstance(tuner, ConvpassTuner)
    tuner.load_state({n: t + 0.3 * torch.randn_like(t) for n, t in tuner.state().items()})
    return tuner


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 327_552),
        ({"after": "attention"}, 163_776),
        ({"dim": 4, "after": "mlp"}, 12 * (769 * 4 + 4 * 4 * 9 + 4 + 4 * 768 + 768)),
        ({"layers": [0, -1]}, 327_552 // 6),
    ],
)
def test_counts_on_vit_b_16_are_those_of_the_paper(options: dict, parameters: int) -> None:
    assert count_on_vit_b_16(Convpass(**options)) == parameters


def sharp(x: Tensor) -> Tensor:
    """QuickGELU, written otherwise."""
    return x / (1 + torch.exp(-1.702 * x))


def bypass(module: ConvpassModule, x: Tensor, grid: tuple[int, int], scale: float) -> Tensor:
    """The formula with two convolutions: one of the grid, one of every other token by itself."""
    h = sharp(F.linear(x, module.down, module.down_bias))
    first = h.shape[1] - grid[0] * grid[1]
    rows = [h[:, first + i * grid[1] : first + (i + 1) * grid[1]] for i in range(grid[0])]
    image = torch.stack(rows, dim=1).movedim(-1, 1)
    image = F.conv2d(image, module.kernel, module.kernel_bias, padding=1)
    patches = image.movedim(1, -1).reshape(h.shape[0], -1, h.shape[2])
    alone = [
        F.conv2d(h[:, i, :, None, None], module.kernel, module.kernel_bias, padding=1)[..., 0, 0]
        for i in range(first)
    ]
    together = torch.cat([*(token[:, None] for token in alone), patches], dim=1)
    return scale * F.linear(sharp(together), module.up, module.up_bias)


def run_by_hand(tuner: ConvpassTuner, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    backbone: Any = tuner.backbone
    model, scale = backbone.timm, tuner.method.scale
    with torch.no_grad(), tuner.disabled():
        x = model.norm_pre(model._pos_embed(model.patch_embed(pixels)))
        for layer, block in enumerate(model.blocks):
            u = block.norm1(x)
            x = x + block.ls1(block.attn(u))
            if f"{layer}_attention" in tuner.bypasses:
                x = x + bypass(tuner.bypasses[f"{layer}_attention"], u, grid, scale)
            u = block.norm2(x)
            x = x + block.ls2(block.mlp(u))
            if f"{layer}_mlp" in tuner.bypasses:
                x = x + bypass(tuner.bypasses[f"{layer}_mlp"], u, grid, scale)
        tokens = model.norm(x)
    with torch.no_grad():
        return model.forward_head(tokens)


@pytest.mark.parametrize("after", ["both", "attention", "mlp"])
@pytest.mark.parametrize("kind", ["class token", "DINOv2 registers", "SigLIP", "CLIP"])
def test_a_network_written_out_by_hand_gives_the_same_logits(kind: str, after: str) -> None:
    backbone, pixels = KINDS[kind].backbone(), torch.randn(2, 3, 32, 32)
    base = logits(backbone, pixels)
    tuner = attach(backbone, dim=3, after=after, scale=0.7)
    tuned = logits(tuner, pixels)
    assert torch.allclose(tuned, run_by_hand(tuner, pixels, (4, 4)), atol=1e-5)
    with tuner.disabled():
        assert torch.equal(logits(tuner, pixels), base)
    assert not torch.allclose(tuned, base, atol=1e-2)


def test_a_grid_that_is_not_square_is_convolved_by_its_own_rows() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **{**VIT, "img_size": (32, 48)})
    backbone, pixels = ViT(model, Origin("t", "vit_tiny_patch16_224")), torch.randn(2, 3, 32, 48)
    backbone.reset_head(5)
    tuner = attach(backbone.eval(), dim=3)
    tuned = logits(tuner, pixels)
    assert torch.allclose(tuned, run_by_hand(tuner, pixels, (4, 6)), atol=1e-5)
    assert not torch.allclose(tuned, run_by_hand(tuner, pixels, (6, 4)), atol=1e-3)


@pytest.mark.parametrize("kind", ["class token", "DINOv2 registers", "SigLIP"])
def test_inserted_tokens_stand_alone_and_leave_the_grid_in_place(kind: str) -> None:
    backbone, switch = KINDS[kind].backbone(), Switch()
    tuner, pixels, seen = attach(backbone, dim=3), torch.randn(2, 3, 32, 32), {}
    tokens = torch.randn(1, 3, 24)
    backbone.insert_tokens("prompts", 3, lambda n: tokens.expand(n, -1, -1), switch)
    module: Any = tuner.bypasses["0_attention"]
    module.register_forward_hook(lambda m, args, y: seen.update(x=args[0], y=y))
    logits(tuner, pixels)
    assert torch.allclose(seen["y"], bypass(module, seen["x"], (4, 4), 1), atol=1e-5)
    first = seen["y"].shape[1] - 16
    assert first == backbone.layout.patches.start >= 3


def test_the_kernel_reaches_the_neighbours_of_a_patch_and_no_other_token() -> None:
    tuner = attach(KINDS["class token"].backbone(), dim=3)
    module: Any = tuner.bypasses["0_mlp"]
    layout = TokenLayout({"cls": 1, "gist": 2, "patches": 12}, (3, 4))
    x = torch.randn(1, 15, 24)
    with torch.no_grad():
        before = module(x, layout)
        for token, reached in ((0, [0]), (2, [2]), (3, [3, 4, 7, 8]), (8, [3, 4, 5, 7, 8, 9, 11])):
            other = x.clone()
            other[:, token] += torch.randn(24)
            moved = (module(other, layout) - before).abs().amax(dim=(0, 2)) > 1e-6
            wanted = set(reached) | ({12, 13} if token == 8 else set())
            assert set(moved.nonzero().flatten().tolist()) == wanted


@pytest.mark.parametrize("conv_init", ["identity", "xavier"])
def test_it_starts_at_the_identity_and_two_steps_move_everything(
    conv_init: Any, tiny: Backbone, batch: dict[str, Tensor]
) -> None:
    base = logits(tiny, batch["pixels"])
    tuner = Convpass(conv_init=conv_init).attach(tiny)
    assert torch.equal(logits(tuner, batch["pixels"]), base)
    kernel = tuner.state()["bypasses.0_mlp.kernel"].clone()
    assert torch.equal(kernel[:, :, 1, 1], torch.eye(8)) == (conv_init == "identity")
    assert (kernel[:, :, 0].abs().sum() == 0) == (conv_init == "identity")
    require_movement(tuner, batch)


def test_dropout_acts_in_training_alone(tiny: Backbone, batch: dict[str, Tensor]) -> None:
    tuner = attach(tiny, dropout=0.5)
    pixels = batch["pixels"]
    assert torch.equal(logits(tuner, pixels), logits(tuner, pixels))
    tuner.train()
    assert not torch.equal(logits(tuner, pixels), logits(tuner, pixels))


def test_a_network_without_one_grid_is_refused_and_left_as_it_was(tiny: Backbone) -> None:
    carried, head = tiny.inserted, tiny.model.head.weight
    tiny.inserted = None
    with pytest.raises(NotSupported, match="needs one sequence with the grid of patches"):
        Convpass().attach(tiny)
    assert tiny.model.head.weight is head
    tiny.inserted = carried
    Convpass().attach(tiny)


def test_it_does_not_merge_and_says_why(tiny: Backbone) -> None:
    with pytest.raises(NotMergeable, match="convolution"):
        Convpass().attach(tiny).merge()


@pytest.mark.parametrize("options", [{"dim": 0}, {"scale": 0}, {"dropout": 1}, {"after": "qkv"}])
def test_options_without_meaning_are_refused(options: dict) -> None:
    with pytest.raises(ValidationError):
        Convpass(**options)
