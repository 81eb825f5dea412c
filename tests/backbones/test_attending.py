"""Attention as it is read, against the outputs of blocks that compute it fused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gistcli.backbones import Backbone, Switch
from gistcli.backbones.attending import AttentionSeam, watch_attention
from gistcli.errors import NotSupported, Refused
from gistcli.testing import kinds as shipped
from tests.backbones.hf_kinds import KINDS as HUGGING_FACE
from tests.backbones.kinds import ALL, random

BUILD: dict[str, Callable[[], Backbone]] = {
    **{name: kind.backbone for name, kind in ALL.items()},
    **{f"Hugging Face {name}": build for name, build in HUGGING_FACE.items()},
}


@pytest.fixture(params=BUILD)
def exact(request: pytest.FixtureRequest) -> Backbone:
    """In float64, with two gist tokens in the sequence."""
    backbone = BUILD[request.param]().double()
    new = random(1, 2, 24)
    backbone.insert_tokens("gist", 2, lambda n: new.expand(n, -1, -1), Switch())
    return backbone


def seam_of(backbone: Backbone, layer: int) -> AttentionSeam:
    seam = backbone.attention(layer)
    assert seam is not None
    return seam


def fused_output(backbone: Backbone, pixels: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """What the attention of a block gives where nobody looks, and its values (B, T, D)."""
    attn, outputs = seam_of(backbone, layer).owner, []
    handle = attn.register_forward_hook(lambda m, a, y: outputs.append(y))
    (value,) = backbone.sites(["value"], [layer])
    with torch.no_grad(), backbone.capture([value]) as seen:
        backbone({"pixels": pixels})
    handle.remove()
    (y,) = outputs
    return y[0] if isinstance(y, tuple) else y, seen[value.name]


def weights_of(backbone: Backbone, pixels: Tensor) -> dict[int, Tensor]:
    """Block -> (B, H, T, T)."""
    weights: dict[int, Tensor] = {}
    with torch.no_grad(), watch_attention(backbone, weights.__setitem__):
        backbone({"pixels": pixels})
    return weights


def output_by_hand(attn: Any, a_BHTT: Tensor, v_BTD: Tensor) -> Tensor:
    """What an attention makes of weights and values: heads side by side, norms, output map."""
    heads = a_BHTT.shape[1]
    size = getattr(attn, "head_dim", v_BTD.shape[-1] // heads)
    if hasattr(attn, "lambda_init"):  # two queries and keys a head, and one value as wide as both
        size = 2 * size
    v_BHTE = v_BTD.unflatten(-1, (-1, size)).transpose(1, 2)
    v_BHTE = v_BHTE.repeat_interleave(heads // v_BHTE.shape[1], dim=1)
    y_BHTE = a_BHTT @ v_BHTE
    if hasattr(attn, "lambda_init"):
        y_BHTE = attn.sub_norm(y_BHTE) * (1 - attn.lambda_init)
    y_BTD = y_BHTE.transpose(1, 2).flatten(2)
    if isinstance(getattr(attn, "norm", None), nn.Module):
        y_BTD = attn.norm(y_BTD)
    return attn.o_proj(y_BTD) if hasattr(attn, "o_proj") else attn.proj(y_BTD)


def test_weights_times_values_are_what_the_fused_attention_gives(
    exact: Backbone, pixels: Tensor
) -> None:
    weights = weights_of(exact, pixels.double())
    assert list(weights) == list(range(exact.depth))
    for layer, a_BHTT in weights.items():
        attn: Any = seam_of(exact, layer).owner
        assert getattr(attn, "fused_attn", None) or attn.config._attn_implementation == "sdpa"
        fused, v_BTD = fused_output(exact, pixels.double(), layer)
        scale = fused.abs().max()
        assert (output_by_hand(attn, a_BHTT, v_BTD) - fused).abs().max() < 1e-5 * scale
        even = torch.full_like(a_BHTT, 1 / a_BHTT.shape[-1])
        assert (output_by_hand(attn, even, v_BTD) - fused).abs().max() > 1e-3 * scale


def test_every_token_looks_at_every_other_and_each_row_is_a_distribution(
    exact: Backbone, pixels: Tensor
) -> None:
    weights = weights_of(exact, pixels.double())
    for layer, a_BHTT in weights.items():
        assert a_BHTT.shape == (3, 2, exact.layout.total, exact.layout.total)
        attn: Any = seam_of(exact, layer).owner
        total = 1 - float(attn._compute_lambda()) if hasattr(attn, "lambda_init") else 1.0
        torch.testing.assert_close(a_BHTT.sum(-1), torch.full_like(a_BHTT.sum(-1), total))
        assert (a_BHTT > 0).all() or total != 1


def state_of(backbone: Backbone) -> list[object]:
    """How attention is computed, and by which objects, with every hook there is."""
    seams = [seam_of(backbone, layer) for layer in range(backbone.depth)]
    hooks = [tuple(m._forward_hooks) for m in backbone.modules()]
    return [*[(id(getattr(s.owner, s.attribute))) for s in seams], *hooks]


def fails(layer: int, weights: Tensor) -> None:
    raise ValueError("seen")


def test_looking_leaves_everything_as_it_was_also_behind_an_error(
    exact: Backbone, pixels: Tensor
) -> None:
    before, keys = state_of(exact), list(exact.model.state_dict())
    with torch.no_grad():
        first = exact({"pixels": pixels.double()}).logits
    weights_of(exact, pixels.double())
    assert state_of(exact) == before
    with watch_attention(exact, fails):
        assert state_of(exact) != before
        with pytest.raises(ValueError, match="seen"):
            exact({"pixels": pixels.double()})
    assert state_of(exact) == before
    with pytest.raises(ValueError, match="seen"), watch_attention(exact, fails):
        exact({"pixels": pixels.double()})
    assert state_of(exact) == before
    assert list(exact.model.state_dict()) == keys
    with torch.no_grad():
        assert torch.equal(exact({"pixels": pixels.double()}).logits, first)


def test_only_the_chosen_blocks_are_looked_at(exact: Backbone, pixels: Tensor) -> None:
    first, last = seam_of(exact, 0), seam_of(exact, -1)
    seen: list[int] = []
    with torch.no_grad(), watch_attention(exact, lambda n, _: seen.append(n), [-1]):
        assert getattr(first.owner, first.attribute) is not first.unfused
        exact({"pixels": pixels.double()})
    assert seen == [exact.depth - 1]
    assert getattr(last.owner, last.attribute) is not last.unfused
    with pytest.raises(Refused, match="layers"), watch_attention(exact, fails, [99]):
        pass


@pytest.mark.parametrize("kind", ["Swin", "Swin V2", "Hiera"])
def test_networks_whose_tokens_look_at_a_part_are_refused(kind: str) -> None:
    backbone = shipped.KINDS[kind].backbone()
    with (
        pytest.raises(NotSupported, match="none of them looks at the whole picture"),
        watch_attention(backbone, fails),
    ):
        pass
