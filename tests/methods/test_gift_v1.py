"""GIFT v1: the equations, one generator pass a step, exact gradients, counts."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from gistcli.backbones import Backbone
from gistcli.methods.gift_v1 import Generator, GiftV1, GiftV1Tuner
from tests.methods.measuring import count_on_vit_b_16

Batch = dict[str, Tensor]
SMALL = {"dim": 8, "clusters": 5, "blocks": 2, "heads": 2}


def attach(tiny: Backbone, **options: object) -> GiftV1Tuner:
    torch.manual_seed(4)
    return GiftV1(**{**SMALL, **options}).attach(tiny).eval()


def disturb(tuner: GiftV1Tuner) -> None:
    torch.manual_seed(5)
    tuner.load_state({n: t + 0.3 * torch.randn_like(t) for n, t in tuner.state().items()})


def run(tuner: GiftV1Tuner, batch: Batch) -> Tensor:
    with torch.no_grad():
        return tuner(batch).logits


def loss(tuner: GiftV1Tuner, batch: Batch, part: slice = slice(None)) -> Tensor:
    pixels, labels = batch["pixels"][part], batch["labels"][part]
    return F.cross_entropy(tuner({"pixels": pixels}).logits, labels, reduction="sum")


def take_gradients(tuner: GiftV1Tuner) -> dict[str, Tensor]:
    reached = {n: t for n, t in tuner.trainable().items() if n not in tuner.idle()}
    found = {n: t.parameter.grad.clone() for n, t in reached.items()}
    for trained in reached.values():
        trained.parameter.grad = None
    return found


def count_calls(tuner: GiftV1Tuner) -> list[int]:
    """Grows by the number of weights at every pass of a generator."""
    calls: list[int] = []
    for generator in tuner.generators.values():
        generator.register_forward_hook(lambda _m, args, _y: calls.append(len(args[0])))
    return calls


def update_by_the_paper(generator: Generator, w_OI: Tensor) -> Tensor:
    """dW of one weight, with theta_0 added and the recovery written out (equations 5 to 9)."""
    w1_OI = w_OI if generator.theta is None else w_OI + generator.theta
    w_OD = generator.reduction(w1_OI)
    for block in generator.blocks:
        w_OD = w_OD + block.mixing(F.normalize(w_OD, dim=1)[None])[0]
        w_OD = w_OD + block.ffn(F.normalize(w_OD, dim=1))
    return generator.recovery(w_OD)


@torch.no_grad()
@pytest.mark.parametrize("targets", [["attn_out"], ["query", "value"], ["attn_out", "fc_in"]])
@pytest.mark.parametrize("extra", [{}, {"theta": False, "projection_bias": True}])
def test_every_site_computes_its_weight_plus_dw(
    tiny: Backbone, batch: Batch, targets: list[str], extra: dict
) -> None:
    tuner = attach(tiny, targets=targets, **extra)
    disturb(tuner)
    with tuner.step():
        for site in tuner.sites:
            key = f"{site.d_out}x{site.d_in}"
            dw_OI = update_by_the_paper(tuner.generator(key), site.weight())
            assert dw_OI.abs().mean() > 0.1
            x = torch.randn(2, 7, site.d_in)
            rows = site.rows or slice(None)
            dense = F.linear(x, site.weight() + dw_OI, site.module.bias[rows])
            assert torch.allclose(site.module(x)[..., rows], dense, atol=1e-4)


def test_merged_weights_and_the_low_rank_form_are_the_tuned_model(
    tiny: Backbone, batch: Batch
) -> None:
    tuner = attach(tiny, targets=["attn_out", "value"], projection_bias=True)
    disturb(tuner)
    tuned, merged = run(tuner, batch), tuner.merge()
    tuner.detach()
    state = tiny.model.state_dict()
    value = merged.low_rank["blocks.0.attn.qkv"]
    assert value.a.shape == (8 + 1, 24)
    assert value.b(state["blocks.0.attn.qkv.weight"])[:48].abs().max() == 0
    state |= {n: patch(state[n]) for n, patch in merged.patches.items()} | dict(merged.new)
    with torch.no_grad():
        assert not torch.allclose(tiny(batch).logits, tuned, atol=1e-2)
        tiny.model.load_state_dict(state)
        assert torch.allclose(tiny(batch).logits, tuned, atol=1e-5)


def test_theta_and_recovery_start_at_zero_and_the_recovery_moves_first(
    tiny: Backbone, batch: Batch
) -> None:
    tuner = attach(tiny, projection_bias=True)
    generator = tuner.generator("24x24")
    for parameter in (generator.theta, *generator.recovery.parameters()):
        assert parameter.abs().max() == 0
    with tuner.step():
        loss(tuner, batch).backward()
    found = take_gradients(tuner)
    name = "generators.24x24.{}".format
    assert found[name("recovery.weight")].abs().max() > 1e-3
    assert found[name("theta")].abs().max() == 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_gives_the_gradients_of_one_graph(
    tiny: Backbone, batch: Batch, checkpointing: bool
) -> None:
    tuner = attach(tiny, targets=["attn_out", "fc_in", "value"], projection_bias=True)
    disturb(tuner)
    loss(tuner, batch).backward()
    one_graph = take_gradients(tuner)
    tiny.model.set_grad_checkpointing(checkpointing)
    calls = count_calls(tuner)
    with tuner.step():
        for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
            loss(tuner, batch, part).backward()
    assert sorted(calls) == [2, 4]  # fc_in of two blocks; attn_out and value of two blocks
    in_step = take_gradients(tuner)
    assert one_graph.keys() == in_step.keys()
    for name, gradient in one_graph.items():
        scale = float(gradient.abs().max())
        assert scale > 0, name
        # what all rows of attn_out share cancels in LayerNorm: such gradients are rounding noise
        assert torch.allclose(in_step[name], gradient, atol=1e-4 * max(scale, 0.1)), name
    with tuner.step():
        loss(tuner, batch, slice(0, 3)).backward()
    half = take_gradients(tuner)
    name = "generators.24x24.reduction.weight"
    assert not torch.allclose(half[name], one_graph[name], rtol=0.1)


def test_evaluation_generates_once_for_all_batches_and_afresh_in_the_next_step(
    tiny: Backbone, batch: Batch
) -> None:
    tuner = attach(tiny)
    disturb(tuner)
    outside, calls = run(tuner, batch), count_calls(tuner)
    with torch.no_grad(), tuner.step():
        assert calls == [2]
        assert all(torch.equal(tuner(batch).logits, outside) for _ in range(3))
    assert calls == [2]
    run(tuner, batch)
    assert calls == [2, 2]
    disturb(tuner)
    with torch.no_grad(), tuner.step():
        assert not torch.allclose(tuner(batch).logits, outside, atol=1e-3)
    with tuner.disabled(), tuner.step():
        run(tuner, batch)
    assert calls == [2, 2, 2]


def test_a_step_within_a_step_leaves_the_outer_one_whole(tiny: Backbone, batch: Batch) -> None:
    tuner = attach(tiny)
    disturb(tuner)
    with tuner.step():
        loss(tuner, batch).backward()
    alone = take_gradients(tuner)
    with tuner.step():
        total = loss(tuner, batch)
        with torch.no_grad(), tuner.step():
            tuner(batch)
        total.backward()
    nested = take_gradients(tuner)
    assert all(torch.equal(alone[n], nested[n]) for n in alone)


def test_a_step_that_fails_leaves_no_gradient_in_the_generator(
    tiny: Backbone, batch: Batch
) -> None:
    tuner = attach(tiny)
    disturb(tuner)

    def fail() -> None:
        with tuner.step():
            loss(tuner, batch).backward()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert tuner.generator("24x24").reduction.weight.grad is None
    calls = count_calls(tuner)
    run(tuner, batch)
    assert calls == [2]


def test_a_generator_reads_the_weights_that_stand_in_the_network_now(
    tiny: Backbone, batch: Batch
) -> None:
    tuner = attach(tiny)
    disturb(tuner)
    site = tuner.sites[0]
    before = tuner.clusters(site)
    assert not {id(p) for p in tuner.parameters()} & {id(p) for p in tiny.parameters()}
    site.module.weight.data = -2 * site.module.weight.data
    assert not torch.allclose(tuner.clusters(site), before, atol=1e-2)
    dense = update_by_the_paper(tuner.generator("24x24"), site.weight())
    with torch.no_grad(), tuner.step():
        x = torch.randn(3, 24)
        expected = F.linear(x, site.weight() + dense, site.module.bias)
        assert torch.allclose(site.module(x), expected, atol=1e-4)


def test_clusters_are_the_standardised_assignments_of_the_last_block(tiny: Backbone) -> None:
    tuner = attach(tiny)
    disturb(tuner)
    generator, site = tuner.generator("24x24"), tuner.sites[1]
    seen: list[Tensor] = []
    generator.blocks[-1].mixing.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        generator([site.weight()])
    h = F.linear(seen[0][0], *generator.blocks[-1].mixing.cluster.parameters())
    c_OM = 1 / (1 + torch.exp(-h)) / 24
    assert c_OM.shape == (24, 5)
    expected = (c_OM - c_OM.mean(0)) / c_OM.std(0, correction=0)
    assert torch.allclose(tuner.clusters(site), expected, atol=1e-4)
    assert not tuner.clusters(site).requires_grad
    assert not torch.allclose(tuner.clusters(tuner.sites[0]), expected, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"dim": 48, "projection_bias": True}, 758_256),
        ({"dim": 192, "projection_bias": True}, 2_144_832),
        ({}, 757_440),
        ({"dim": 192}, 2_143_872),
        ({"theta": False, "projection_bias": True}, 168_432),
        ({"blocks": 1, "ratio": 4, "projection_bias": True}, 697_152),
        ({"clusters": 64, "projection_bias": True}, 751_984),
        ({"dim": 192, "ratio": 4, "projection_bias": True}, 2_736_192),
        ({"heads": 1, "layers": [0]}, 757_440),
        ({"targets": ["attn_out", "query"]}, 757_440),
        ({"targets": ["attn_out", "fc_in"]}, 757_440 * 2 + (3072 - 768) * 768),
    ],
)
def test_counts_on_vit_b_16_are_those_of_the_paper(options: dict, parameters: int) -> None:
    assert count_on_vit_b_16(GiftV1(**options)) == parameters


def test_theta_decays_and_cluster_maps_do_not(tiny: Backbone) -> None:
    trained = attach(tiny).trainable()
    kept = {n for n, t in trained.items() if not t.decay}
    assert trained["generators.24x24.theta"].decay
    assert {n for n in trained if "cluster" in n or n.endswith("bias")} == kept


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="dim 48 is no multiple of heads 5"):
        GiftV1(heads=5)
