"""The gist token among other tokens, and its path to the logits, on every network that takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gistcli.backbones import Backbone
from gistcli.errors import NotFound
from gistcli.methods.base import Method
from gistcli.methods.convpass import Convpass, ConvpassModule
from gistcli.methods.gift import Gift
from gistcli.methods.gift_v1 import Generator, GiftV1
from gistcli.methods.gist import Gist, GistTuner
from gistcli.methods.linear import Linear
from gistcli.methods.toast import Toast, ToastTuner
from gistcli.methods.vpt import Vpt
from gistcli.objectives import Classification
from gistcli.testing.acting import disturb
from gistcli.testing.kinds import KINDS
from gistcli.testing.kinds import batch as new_batch
from gistcli.train.guards import require_fired
from tests.backbones.kinds import NEW

Batch = dict[str, Tensor]
ALL = {**KINDS, **{kind.name: kind for kind in NEW}}
TAKING = {name: kind for name, kind in ALL.items() if kind.backbone().inserted is not None}
TIMM = [name for name, kind in TAKING.items() if kind.backbone().library == "timm"]


def attach(backbone: Backbone, method: Method, **options: Any) -> GistTuner:
    torch.manual_seed(2)
    tuner = Gist(**options).wrap(method).attach(backbone).eval()
    assert isinstance(tuner, GistTuner)
    disturb(tuner)
    return tuner


@pytest.mark.parametrize("kind", TIMM)
def test_the_token_goes_through_pooling_and_head_of_timms_own_code(kind: str, batch: Batch) -> None:
    """A sequence made of the token alone is pooled to it, whatever the network pools."""
    backbone = TAKING[kind].backbone()
    tuner, model = attach(backbone, Linear()), backbone.timm  # type: ignore[attr-defined]
    with torch.no_grad():
        features = tuner(batch)
        own = int(model.num_prefix_tokens) - backbone.registers  # type: ignore[attr-defined]
        token = features.tokens[:, own : own + 1]
        many = token.expand(-1, features.tokens.shape[1] - 1, -1)
        alone = model.forward_head(many)
        read = backbone.read_out(features, "gist")
    assert torch.allclose(read, alone, atol=1e-5)
    assert not torch.allclose(read, features.logits, atol=1e-3)


@pytest.mark.parametrize("kind", TIMM)
def test_the_main_path_pools_what_it_pooled_before(kind: str, batch: Batch) -> None:
    backbone = TAKING[kind].backbone()
    tuner, model = attach(backbone, Linear(), length=2), backbone.timm  # type: ignore[attr-defined]
    with torch.no_grad():
        features = tuner(batch)
        at = features.layout.span("gist")
        rest = torch.cat([features.tokens[:, : at.start], features.tokens[:, at.stop :]], dim=1)
        assert torch.equal(model.forward_head(rest), features.logits)
    assert at.stop - at.start == 2
    assert at.start == features.layout.span("cls").stop


@pytest.mark.parametrize("kind", ["Hugging Face ViT", "Hugging Face DINOv2"])
def test_classifiers_of_transformers_read_it_in_the_place_of_the_class_token(
    kind: str, batch: Batch
) -> None:
    backbone = TAKING[kind].backbone()
    tuner, model = attach(backbone, Linear()), backbone.hf  # type: ignore[attr-defined]
    with torch.no_grad():
        features = tuner(batch)
        token, patches = features.tokens[:, 1], features.tokens[:, -16:]
        assert features.tokens.shape[1] == 1 + 1 + 16 + features.layout.lengths["registers"]
        both = torch.cat([token, patches.mean(dim=1)], dim=1)
        expected = model.classifier(both if "DINOv2" in kind else token)
        read = backbone.read_out(features, "gist")
    assert torch.allclose(read, expected, atol=1e-5)
    assert not torch.allclose(read, features.logits, atol=1e-3)


@pytest.mark.parametrize("kind", TAKING)
def test_its_losses_reach_it_on_every_network(kind: str) -> None:
    backbone = TAKING[kind].backbone()
    tuner = attach(backbone, Linear() if backbone.head_names() else Gift(rank=2), length=2)
    losses = Classification(tuner)(new_batch(TAKING[kind]), 6)
    assert losses.parts.keys() == {"classification", "gist", "interaction"}
    token = tuner.gist["token"]
    (gradient,) = torch.autograd.grad(losses.total, token)
    assert (gradient.abs().amax(dim=1) > 1e-8).all()


def test_clip_normalises_it_in_front_of_the_blocks(batch: Batch) -> None:
    backbone = KINDS["CLIP"].backbone()
    tuner, model = attach(backbone, Linear()), backbone.timm  # type: ignore[attr-defined]
    seen: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0][:, 1]))
    with torch.no_grad():
        tuner(batch)
        norm = model.norm_pre
        token = torch.nn.functional.layer_norm(
            tuner.gist["token"], norm.normalized_shape, norm.weight, norm.bias, norm.eps
        )
    assert torch.allclose(seen[0], token.expand(6, -1), atol=1e-5)
    assert not torch.allclose(seen[0][:1], tuner.gist["token"], atol=1e-2)


# --- beside tokens, grids and second passes of others -------------------------------------------


def inputs_of_blocks(tuner: GistTuner, batch: Batch) -> list[Tensor]:
    """(B, T, D) before every block."""
    seen: list[Tensor] = []
    blocks: Any = tuner.backbone.blocks
    handles = [
        # behind the hooks of the tuner: what the block reads
        block.norm1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for block in blocks
    ]
    tuner(batch)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("kind", ["class token", "DINOv2 registers", "SigLIP"])
@pytest.mark.parametrize("deep", [False, True])
def test_blocks_replace_deep_prompts_and_not_the_token(kind: str, deep: bool, batch: Batch) -> None:
    tuner = attach(KINDS[kind].backbone(), Vpt(length=3, deep=deep), length=2)
    with torch.no_grad():
        first, second = inputs_of_blocks(tuner, batch)
        layout, prompts = tuner.backbone.layout, tuner.trainable()["prompts"].parameter
    gist, mine = layout.span("gist"), layout.span("prompts")
    assert (gist.stop - gist.start, mine.stop - mine.start, mine.start) == (2, 3, gist.stop)
    assert torch.allclose(first[:, gist], tuner.gist["token"].expand(6, -1, -1), atol=1e-6)
    assert torch.equal(first[:, mine], prompts[0].expand(6, -1, -1))
    assert torch.equal(second[:, mine], prompts[-1].expand(6, -1, -1)) == deep
    assert not torch.allclose(second[:, gist], first[:, gist], atol=1e-2)


def test_convpass_convolves_the_token_by_itself(tiny: Backbone, batch: Batch) -> None:
    tuner = attach(tiny, Convpass(), length=2)
    calls: list[tuple[Tensor, Tensor]] = []
    modules = [m for m in tuner.modules() if isinstance(m, ConvpassModule)]
    for module in modules:
        module.register_forward_hook(lambda _, args, y: calls.append((args[0], y)))
    with torch.no_grad():
        tuner(batch)
        layout = tiny.layout
        assert len(calls) == len(modules) == 4
        for module, (x, y) in zip(modules, list(calls), strict=True):
            nudged = x.clone()
            nudged[:, layout.span("gist")] += 1
            moved = (module(nudged, layout) - y).abs().amax(dim=(0, 2)) > 1e-6
            assert moved.nonzero().flatten().tolist() == [1, 2]
    assert layout.total == 1 + 2 + 16


def test_both_passes_of_toast_see_the_token(tiny: Backbone, batch: Batch) -> None:
    tuner = attach(tiny, Toast())
    assert isinstance(tuner.inner, ToastTuner)
    lengths: list[int] = []
    tiny.blocks[0].register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    losses = Classification(tuner)(batch, 6)
    losses.total.backward()
    assert losses.parts.keys() == {"classification", "gist", "interaction"}
    assert lengths == [18, 18]
    missing = [n for n, t in tuner.trainable().items() if t.parameter.grad is None]
    assert set(missing) <= tuner.idle()


def test_a_step_is_one_of_the_method_under_it(tiny: Backbone, batch: Batch) -> None:
    tuner = attach(tiny, GiftV1(dim=8, clusters=4, heads=2))
    generated: list[object] = []
    for module in tuner.modules():
        if isinstance(module, Generator):
            module.register_forward_hook(lambda *arguments: generated.append(arguments))
    with tuner.step():  # generates once for both passes
        for _ in range(2):
            Classification(tuner)(batch, 6).total.backward()
    assert len(generated) == 1
    assert tuner.idle() == tuner.inner.idle() != set()


def test_sites_clusters_and_start_are_those_of_the_method_under_it(
    tiny: Backbone, batch: Batch, tmp_path: Path
) -> None:
    tuner = attach(tiny, Gift(rank=4))
    tuner(batch)
    assert tuner.sites
    assert tuner.fired() == {"gist", *(site.name for site in tuner.sites)}
    require_fired(tuner)
    assert torch.equal(tuner.clusters(tuner.sites[0]), tuner.inner.clusters(tuner.sites[0]))
    tuner.detach()
    with pytest.raises(NotFound):
        attach(tiny, Toast(weights=tmp_path / "nowhere")).start()


def test_terms_of_the_method_under_it_stay(tiny: Backbone, batch: Batch) -> None:
    tuner = attach(tiny, Toast(reconstruction=0.1))
    losses = Classification(tuner)(batch, 6)
    assert losses.parts.keys() == {"classification", "reconstruction", "gist", "interaction"}
    with tuner.step():
        pass
    with torch.no_grad():
        assert tuner.auxiliary(tuner(batch), batch, torch.sum, 1.0) == {}
