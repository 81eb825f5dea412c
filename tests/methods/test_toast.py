"""TOAST: the formula written out, its start, and who may drive it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from gistcli.backbones import open_backbone
from gistcli.backbones.sites import Site, Switch
from gistcli.backbones.vit import ViT
from gistcli.errors import NotSupported, Refused
from gistcli.methods.gift import Gift
from gistcli.methods.toast import Toast, ToastTuner
from gistcli.testing.acting import disturb, gradients, logits, train
from tests.methods.toasting import VARIANTS, Batch, attach, maps


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 14_156_544),
        ({"variant": "lite"}, 738_048),
        ({"variant": "lite", "rank": 8}, 885_504),
    ],
)
def test_counts_on_vit_b_16_are_those_of_the_paper(options: dict, parameters: int) -> None:
    backbone = open_backbone("vit_base_patch16_224", meta=True)
    backbone.reset_head(10)
    trained = Toast(**options).attach(backbone).trainable().values()
    counts = dict.fromkeys(("method", "head"), 0)
    for each in trained:
        counts[each.group] += each.parameter.numel()
    assert counts == {"method": parameters, "head": 7690}


# --- the formula ------------------------------------------------------------------------------


def tokens_of(backbone: ViT, pixels: Tensor, td: list[Tensor] | None = None) -> Tensor:
    """The network block by block; `td` is added to the input of the map to the values."""
    model = backbone.timm
    x = model._pos_embed(model.patch_embed(pixels))
    for layer, block in enumerate(model.blocks):
        y, attention = block.norm1(x), block.attn
        weights, biases = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
        q, k, v = (F.linear(y, w, b) for w, b in zip(weights, biases, strict=True))
        if td is not None:
            v = v + td[layer] @ weights[2].t()
        q, k, v = (t.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = (q @ k.transpose(-1, -2) * attention.scale).softmax(-1) @ v
        x = x + attention.proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return model.norm(x)


def signals(tuner: ToastTuner, z: Tensor) -> list[Tensor]:
    cosine = (z @ tuner.xi) / (z.norm(dim=-1) * tuner.xi.norm())
    z = cosine.clamp(0, 1).unsqueeze(-1) * z
    z = z if tuner.p is None else z @ tuner.p
    td = []
    for layer in reversed(range(tuner.backbone.depth)):
        a, b = maps(tuner, layer)
        z = z @ a.t()
        td.insert(0, z @ b.t())
    return td


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_second_pass_is_the_formula(tiny: ViT, batch: Batch, variant: str) -> None:
    tuner = attach(tiny, variant=variant)
    disturb(tuner, 0.3)
    with torch.no_grad():
        first = tokens_of(tiny, batch["pixels"])
        td = signals(tuner, first)
        second = tokens_of(tiny, batch["pixels"], td)
        found = tuner(batch)
    assert torch.allclose(found.tokens, second, atol=1e-4)
    assert torch.allclose(found.logits, tiny.classify(second[:, 0]), atol=1e-4)
    assert not torch.allclose(second, first, atol=1e-2)
    # the order of the layers is not interchangeable
    with torch.no_grad():
        assert not torch.allclose(tokens_of(tiny, batch["pixels"], td[::-1]), second, atol=1e-2)


def test_tokens_on_the_far_side_of_xi_send_no_signal(tiny: ViT, batch: Batch) -> None:
    tuner = attach(tiny)
    disturb(tuner)
    with torch.no_grad():
        z = tiny(batch).tokens if not tuner.switch.enabled else tuner._first_pass(batch)
        first = tuner._feed_back(z)[0]
    near = (z @ tuner.xi) > 0
    assert near.any()
    assert (~near).any()
    assert (first[~near] == 0).all()
    assert (first[near].abs().sum(-1) > 0).all()


def test_beside_two_passes_there_are_three_square_maps_a_block(tiny: ViT, batch: Batch) -> None:
    def products(network: object) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(batch)
        return counter.get_total_flops()

    base = products(tiny)
    full = attach(tiny)
    tokens = len(batch["pixels"]) * tiny.layout.total
    square = 2 * tokens * 24 * 24
    # A, B and the value's rows of the fused map, not all of its rows
    assert products(full) == 2 * base + 3 * square * tiny.depth
    full.detach()
    lite = attach(tiny, variant="lite", rank=2)
    low = 2 * 2 * tokens * 24 * 2
    assert products(lite) == 2 * base + (3 * square + 2 * low) * tiny.depth + square


def test_tokens_that_another_tuner_puts_in_are_fed_back_too(tiny: ViT, batch: Batch) -> None:
    tuner = attach(tiny)
    disturb(tuner)
    without, other = logits(tuner, batch), Switch()
    extra = torch.randn(3, 24)
    tiny.insert_tokens("prompts", 3, lambda b: extra.expand(b, 3, 24), other)
    features = tuner(batch)
    assert features.tokens.shape[1] == 20
    assert [len(z[0]) for z in tuner._pass.signals] == [20, 20]
    assert not torch.allclose(features.logits, without, atol=1e-3)
    other.release()
    assert torch.equal(logits(tuner, batch), without)


# --- the start and the way from it --------------------------------------------------------------


@pytest.mark.parametrize("init", ["identity", "normal"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_all_that_is_trained_moves_within_two_steps(
    tiny: ViT, batch: Batch, variant: str, init: str
) -> None:
    tuner = attach(tiny, variant=variant, init=init)
    tuner.start()
    trained = tuner.trainable()
    before = {n: t.parameter.detach().clone() for n, t in trained.items()}
    frozen = {n: t.clone() for n, t in tuner.frozen().items()}
    train(tuner, batch, steps=2)
    still = [n for n, t in trained.items() if torch.equal(t.parameter, before[n])]
    assert still == []
    assert len(frozen) == (4 if variant == "lite" else 0)
    assert all(torch.equal(tuner.frozen()[n], t) for n, t in frozen.items())


def test_the_start_turns_xi_to_the_side_of_the_tokens(batch: Batch) -> None:
    backbone = open_backbone("gist_vit_nano")
    shares = {}
    for started in (False, True):
        found = []
        for seed in range(8):
            torch.manual_seed(seed)
            tuner = Toast().attach(backbone, head=False).eval()
            if started:
                tuner.start()
            with torch.no_grad():
                z = tuner._first_pass({"pixels": torch.rand(4, 3, *backbone.image_size)})
            found.append((tuner._select(z) > 0).float().mean().item())
            tuner.detach()
        shares[started] = min(found)
    assert shares[False] < 0.2
    assert shares[True] > 0.4


def test_a_low_rank_above_the_width_is_refused(tiny: ViT) -> None:
    with pytest.raises(Refused, match="only 24 features"):
        attach(tiny, variant="lite", rank=25)


@pytest.mark.parametrize(
    "options", [{"rank": 8}, {"alpha": 2.0}, {"reconstruction": -1}, {"variant": "late"}]
)
def test_options_without_meaning_are_refused(options: dict) -> None:
    with pytest.raises(ValidationError):
        Toast(**options)


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({}, "toast (no pre-tuning)"),
        ({"variant": "lite"}, "toast (lite, no pre-tuning)"),
        ({"reconstruction": 0.1}, "toast (pre-tuning)"),
        ({"weights": "runs/feedback"}, "toast"),
        ({"variant": "lite", "weights": "runs/feedback"}, "toast (lite)"),
    ],
)
def test_a_run_without_pre_tuning_says_so(options: dict, label: str) -> None:
    assert Toast(**options).label() == label


# --- precision, memory, other tuners ------------------------------------------------------------


def test_under_autocast_the_first_pass_takes_no_gradient_from_the_second(
    tiny: ViT, batch: Batch
) -> None:
    tuner = attach(tiny)
    disturb(tuner)
    full = gradients(tuner, batch)
    with torch.autocast("cpu", torch.bfloat16):
        low = gradients(tuner, batch)
    assert low.keys() == full.keys()
    for name in ("head.weight", "xi", "feedback.0.b"):
        assert F.cosine_similarity(low[name].flatten(), full[name].flatten(), dim=0) > 0.95, name


def test_signals_stay_until_the_step_is_over_and_no_longer(tiny: ViT, batch: Batch) -> None:
    tuner = attach(tiny, reconstruction=0.1)
    with tuner.step():
        tuner(batch)
        assert len(tuner._pass.signals) == len(tuner._pass.outputs) == 2
    assert not tuner._pass.signals
    assert not tuner._pass.outputs
    with torch.no_grad():
        tuner(batch)
    assert not tuner._pass.signals


def test_nobody_else_can_drive_the_network(tiny: ViT, batch: Batch) -> None:
    tuner = attach(tiny)
    other = Gift(rank=2).attach(tiny, head=False).eval()
    for network in (tiny, other):
        with pytest.raises(NotSupported, match="two passes"):
            logits(network, batch)
        with tuner.disabled():
            logits(network, batch)
    logits(tuner, batch)


class WithoutValue(ViT):
    """A family that knows no map to the value."""

    def all_sites(self) -> list[Site]:
        return [site for site in super().all_sites() if site.role != "value"]


class Bypassed(ViT):
    """A family that reads the weights of its fused maps."""

    def all_sites(self) -> list[Site]:
        return [dataclasses.replace(s, parent=self.timm) for s in super().all_sites()]


class Windowed(ViT):
    """A family whose blocks do not see one sequence."""

    def carry_tokens(self, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    ("family", "reason"),
    [(WithoutValue, "0 in 2 blocks"), (Bypassed, "instead of calling"), (Windowed, "one sequence")],
)
def test_families_that_cannot_carry_it_are_refused(
    tiny: ViT, family: type[ViT], reason: str
) -> None:
    with pytest.raises(NotSupported, match=reason):
        attach(family(tiny.model, tiny.origin))
