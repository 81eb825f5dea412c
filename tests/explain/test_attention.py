"""Where CLS and GIST look: the maps, their figures, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gistcli.backbones import Backbone
from gistcli.backbones.attending import watch_attention
from gistcli.errors import NotSupported, Refused, WeightsError
from gistcli.explain.attention import CHUNK, AttentionMaps, attention_maps, overlap
from gistcli.methods.base import Tuner
from gistcli.methods.gift import Gift
from gistcli.methods.toast import Toast
from gistcli.testing.kinds import KINDS
from tests.explain.conftest import backbone as tiny


def images(count: int = 2, height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(2))


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def tuned(backbone: Backbone, *, gist: int = 0, prompts: int = 0) -> Tuner:
    """GIFT away from its start, and tokens in the sequence."""
    tuner = Gift(rank=4, targets=["attn_out"]).attach(backbone)
    torch.manual_seed(1)
    for trained in tuner.trainable().values():
        torch.nn.init.normal_(trained.parameter, std=0.2)
    for slot, length in (("gist", gist), ("prompts", prompts)):
        if length:
            width = backbone.require_one_width("a token")
            make = noise(1, length, width).expand
            backbone.insert_tokens(
                slot, length, lambda n, make=make: make(n, -1, -1), tuner.switch
            )  # fmt: skip
    return tuner


def by_hand(tuner: Tuner, layer: int, pixels: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) (B, H, T, T) from the normalised input of a block's attention."""
    block = tuner.backbone.model.blocks[layer]
    seen: list[Tensor] = []
    handle = block.norm1.register_forward_hook(lambda m, a, y: seen.append(y))
    with torch.no_grad():
        tuner({"pixels": pixels})
    handle.remove()
    q, k, _ = block.attn.qkv(seen[0]).detach().unflatten(-1, (3, 2, 12)).movedim(2, 0).unbind()
    return torch.einsum("bthd,bshd->bhts", q, k).div(math.sqrt(12)).softmax(-1)


NETWORKS: dict[str, dict[str, Any]] = {
    "class token": {},
    "registers": {"reg_tokens": 4},
    "non-square": {"img_size": (32, 48), "reg_tokens": 2},
}


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_maps_are_the_rows_of_the_softmax_at_the_patches(options: dict[str, Any]) -> None:
    tuner = tuned(tiny(**options), gist=2, prompts=3)
    height, width = tuner.backbone.model.patch_embed.img_size
    pixels = images(2, height, width)
    maps = attention_maps(tuner, pixels)
    assert maps.slots == ["cls", "gist"]
    assert maps.layers == [0, 1, 2]
    grid = (height // 8, width // 8)
    assert maps.maps.shape == (2, 2, 3, 2, *grid)
    for layer in maps.layers:
        a_BHTT = by_hand(tuner, layer, pixels)
        assert a_BHTT.shape[-1] == 1 + 2 + 3 + options.get("reg_tokens", 0) + math.prod(grid)
        to_patches = a_BHTT[..., -math.prod(grid) :].unflatten(-1, grid)
        got = torch.from_numpy(maps.maps[:, :, layer])
        torch.testing.assert_close(got[:, 0], to_patches[:, :, 0])
        torch.testing.assert_close(got[:, 1], to_patches[:, :, 1:3].mean(dim=2))
        assert (got[:, 0] - got[:, 1]).abs().max() > 1e-3


def test_keys_that_are_all_equal_give_even_attention_and_full_overlap() -> None:
    tuner = tuned(tiny(), gist=1)
    for block in tuner.backbone.model.blocks:
        block.attn.qkv.weight.data[24:48] = 0
    maps = attention_maps(tuner, images())
    np.testing.assert_allclose(maps.maps, 1 / 18, rtol=1e-5)
    np.testing.assert_allclose(maps.patch_share, 16 / 18, rtol=1e-5)
    assert maps.overlap is not None
    np.testing.assert_allclose(maps.overlap, 1, rtol=1e-5)


def test_a_key_that_points_along_the_query_draws_all_attention_to_its_patch() -> None:
    tuner = tuned(tiny(), gist=1)
    block = tuner.backbone.model.blocks[0]
    weight, bias = block.attn.qkv.weight.data, block.attn.qkv.bias.data
    weight[:48], bias[:48] = 0, 0
    # every query is (8 sqrt(d), 0, ...), and a key's first channel is channel 5 of its token
    bias[[0, 12]] = 8 * math.sqrt(12)
    weight[[24, 36], 5] = 1
    seen: list[Tensor] = []
    block.norm1.register_forward_hook(lambda m, a, y: seen.append(y))
    maps = attention_maps(tuner, images())
    channel = seen[0][..., 5]
    expected = (8 * channel).softmax(-1)[:, -16:].unflatten(-1, (4, 4))
    for slot in range(2):
        for head in range(2):
            np.testing.assert_allclose(maps.maps[:, slot, 0, head], expected, rtol=1e-3, atol=1e-6)


def test_overlap_is_the_mass_in_common() -> None:
    left, right = np.zeros((2, 4, 4), np.float32)
    left[:, :2], right[:, 2:] = 0.1, 0.3
    even = np.full((4, 4), 0.01, np.float32)
    assert overlap(left, right) == 0
    assert overlap(left, 5 * left) == pytest.approx(1)
    assert overlap(left, even) == pytest.approx(0.5)
    assert overlap(even, left) == pytest.approx(0.5)
    tilted = np.full((4, 4), 1, np.float32)
    tilted[:, 2:] = 3
    assert overlap(tilted, even) == pytest.approx(0.75)
    assert overlap(left - 0.05, left) == pytest.approx(1)  # what is negative does not count
    assert overlap(np.zeros((4, 4), np.float32), even) == 0
    assert overlap(np.stack([left, right]), np.stack([left, left])).tolist() == [1, 0]


def test_the_overlap_of_two_images_is_what_place_alone_explains() -> None:
    maps = np.zeros((2, 2, 1, 1, 2, 2), np.float32)
    maps[0, :, ..., 0, 0] = maps[1, :, ..., 1, 1] = 0.5  # both tokens follow the image
    logits = np.zeros((2, 3), np.float32)
    follow = AttentionMaps(maps, ["cls", "gist"], [0], logits, logits)
    assert follow.overlap.tolist() == [[1], [1]]  # type: ignore[union-attr]
    assert follow.chance.tolist() == [0]  # type: ignore[union-attr]
    fixed = AttentionMaps(maps[:1].repeat(2, axis=0), ["cls", "gist"], [0], logits, logits)
    assert fixed.chance.tolist() == [1]  # type: ignore[union-attr]
    one = AttentionMaps(maps[:1], ["cls", "gist"], [0], logits[:1], logits[:1])
    assert one.chance is None


def test_a_network_that_runs_twice_is_shown_in_its_second_pass() -> None:
    tuner = Toast().attach(tiny())
    torch.manual_seed(1)
    for trained in tuner.trainable().values():
        torch.nn.init.normal_(trained.parameter, std=2.0)
    passes: list[Tensor] = []
    with torch.no_grad(), watch_attention(tuner.backbone, lambda n, a: passes.append(a), [1]):
        tuner({"pixels": images()})
    first, second = (a[:, :, 0, 1:].unflatten(-1, (4, 4)) for a in passes)
    got = torch.from_numpy(attention_maps(tuner, images(), [1]).maps[:, 0, 0])
    torch.testing.assert_close(got, second)
    assert (got - first).abs().max() > 1e-3


def test_the_divergence_is_taken_image_by_image_at_the_temperature() -> None:
    z = np.array([[0, 3 * math.log(3)], [1, 2], [0, 0]], np.float32)
    g = np.array([[3 * math.log(3), 0], [1, 2], [0, 3 * math.log(3)]], np.float32)
    maps = AttentionMaps(np.ones((3, 2, 1, 1, 2, 2), np.float32), ["cls", "gist"], [0], z, g)
    # p = (1/4, 3/4), q = (3/4, 1/4): 2 * 1/2 log 3; (1/2, 1/2) against (1/4, 3/4): 1/4 log 3
    expected = [math.log(3), 0, math.log(3) / 4]
    np.testing.assert_allclose(maps.jeffreys(3), expected, atol=1e-6)
    assert maps.jeffreys(1)[0] > 2 * expected[0]  # type: ignore[index]
    alone = AttentionMaps(maps.maps[:, :1], ["cls"], [0], z, None)
    assert alone.jeffreys(3) is None
    assert alone.overlap is None


def test_logits_are_the_prediction_and_the_read_out_of_the_gist_token() -> None:
    tuner = tuned(tiny(), gist=2)
    maps = attention_maps(tuner, images())
    with torch.no_grad():
        features = tuner({"pixels": images()})
        read_out = tuner.backbone.read_out(features, "gist")
    np.testing.assert_allclose(maps.logits, features.logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(maps.gist_logits, read_out, rtol=1e-4, atol=1e-4)
    assert (features.logits - read_out).abs().max() > 0.1


def test_prompts_stand_beside_cls_where_they_are_read_out() -> None:
    tuner = tuned(tiny(), prompts=3)
    maps = attention_maps(tuner, images(), other="prompts")
    assert maps.slots == ["cls", "prompts"]
    a_BHTT = by_hand(tuner, 1, images())
    got = torch.from_numpy(maps.maps[:, 1, 1]).flatten(-2)
    torch.testing.assert_close(got, a_BHTT[:, :, 1:4, -16:].mean(dim=2))
    assert attention_maps(tuner, images()).slots == ["cls"]


def test_a_network_without_class_token_shows_gist_alone_or_is_refused() -> None:
    options = {"class_token": False, "global_pool": "avg"}
    maps = attention_maps(tuned(tiny(**options), gist=1), images())
    assert maps.slots == ["gist"]
    assert maps.overlap is None
    assert maps.gist_logits is not None
    with pytest.raises(NotSupported, match="no class token, and the run no gist token"):
        attention_maps(tuned(tiny(**options)), images())


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_network_is_shown_or_refused(name: str) -> None:
    backbone = KINDS[name].backbone()
    tuner = tuned(backbone, gist=0 if backbone.inserted is None else 1)
    if backbone.inserted is None or backbone.modality == "text":
        with pytest.raises(NotSupported, match=r"looks at the whole picture|reads text"):
            attention_maps(tuner, images())
        return
    maps = attention_maps(tuner, images())
    assert maps.slots == (["cls", "gist"] if backbone.layout.lengths["cls"] else ["gist"])
    assert maps.maps.shape == (2, len(maps.slots), 2, 2, 4, 4)
    assert (maps.patch_share > 0).all()
    assert (maps.patch_share < 1).all()
    assert maps.gist_logits is not None
    assert maps.gist_logits.shape == maps.logits.shape == (2, 5)


def test_many_images_give_the_maps_that_they_give_alone() -> None:
    tuner = tuned(tiny(), gist=1)
    pixels = images(CHUNK + 1)
    together, alone = attention_maps(tuner, pixels), attention_maps(tuner, pixels[-1:])
    assert len(together.maps) == len(together.logits) == CHUNK + 1
    np.testing.assert_allclose(together.maps[-1], alone.maps[0], rtol=1e-4, atol=1e-5)


def test_looking_leaves_mode_and_outputs_as_they_were() -> None:
    tuner = tuned(tiny(proj_drop_rate=0.5, attn_drop_rate=0.5), gist=1)
    with torch.no_grad():
        before = tuner({"pixels": images()}).logits
    tuner.train()
    tuner.backbone.train()
    first, second = attention_maps(tuner, images()), attention_maps(tuner, images())
    np.testing.assert_array_equal(first.maps, second.maps)
    assert tuner.training
    assert tuner.backbone.model.blocks[1].training
    tuner.backbone.eval()
    with torch.no_grad():
        assert torch.equal(tuner({"pixels": images()}).logits, before)


def test_chosen_layers_count_from_either_end() -> None:
    tuner = tuned(tiny(), gist=1)
    every, chosen = attention_maps(tuner, images()), attention_maps(tuner, images(), [-1, 0])
    assert chosen.layers == [0, 2]
    # blocks that nobody looks at stay fused, which rounds differently
    np.testing.assert_allclose(chosen.maps, every.maps[:, :, [0, 2]], rtol=1e-5)
    with pytest.raises(Refused, match="layers"):
        attention_maps(tuner, images(), [3])


def test_broken_weights_are_refused() -> None:
    tuner = tuned(tiny(), gist=1)
    tuner.get_parameter("phi.attn_out").data[0, 0] = torch.nan
    with pytest.raises(WeightsError, match="not finite"):
        attention_maps(tuner, images())
