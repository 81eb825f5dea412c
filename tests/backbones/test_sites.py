"""Sites: their names, their rows, what one switch does to one of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gistcli.backbones import Backbone, Switch
from gistcli.errors import Refused, UnknownName
from tests.backbones.kinds import ALL, logits


@pytest.fixture
def tiny() -> Backbone:
    return ALL["class token"].backbone()


def test_roles_and_family_names_and_paths_name_the_same_sites(tiny: Backbone) -> None:
    by_role = [s.name for s in tiny.sites(["attn_out"])]
    assert by_role == ["blocks.0.attn.proj", "blocks.1.attn.proj"]
    assert [s.name for s in tiny.sites(["attn.proj"])] == by_role
    assert [s.name for s in tiny.sites(["proj"])] == by_role
    assert [s.name for s in tiny.sites(by_role[1:])] == by_role[1:]
    assert [s.layer for s in tiny.sites(["fc_in", "query"], [-1])] == [1, 1]
    names = {s.family_name for s in tiny.sites(["qkv", "fc_out"])}
    assert names == {"attn.qkv", "mlp.fc2"}


def test_every_target_must_match(tiny: Backbone) -> None:
    with pytest.raises(UnknownName, match="'atn_out', 'v_prj'") as caught:
        tiny.sites(["query", "atn_out", "v_prj"])
    assert "attn_out" in caught.value.hint


def test_a_suffix_matches_at_a_dot_only(tiny: Backbone) -> None:
    with pytest.raises(UnknownName):
        tiny.sites(["roj"])


@pytest.mark.parametrize("layers", [[2], [-3], []])
def test_a_layer_that_does_not_exist_is_refused(tiny: Backbone, layers: list[int]) -> None:
    with pytest.raises(Refused, match="2 layers"):
        tiny.sites(["attn_out"], layers)


def test_a_fused_map_and_its_slice_are_not_both_targets(tiny: Backbone) -> None:
    with pytest.raises(Refused, match="part of another target"):
        tiny.sites(["qkv", "query"])


def test_the_three_slices_are_the_rows_of_the_fused_map(tiny: Backbone) -> None:
    query, key, value = tiny.sites(["query", "key", "value"], [0])
    fused = tiny.sites(["qkv"], [0])[0]
    assert torch.equal(torch.cat([s.weight() for s in (query, key, value)]), fused.weight())
    assert (query.d_in, query.d_out, fused.d_out) == (24, 24, 72)


def test_an_added_output_reaches_the_rows_of_its_slice_alone(
    tiny: Backbone, pixels: Tensor
) -> None:
    site, switch = tiny.sites(["key"], [0])[0], Switch()
    with tiny.capture(tiny.sites(["qkv"], [0])) as before:
        logits(tiny, pixels)
    site.add_output(lambda x: torch.ones(*x.shape[:-1], 24), switch)
    with tiny.capture(tiny.sites(["qkv"], [0])) as after:
        logits(tiny, pixels)
    difference = after["blocks.0.attn.qkv"] - before["blocks.0.attn.qkv"]
    assert torch.equal(difference[..., :24], torch.zeros_like(difference[..., :24]))
    assert torch.allclose(difference[..., 24:48], torch.ones(24), atol=1e-5)
    assert torch.equal(difference[..., 48:], torch.zeros_like(difference[..., 48:]))


def test_a_slice_has_no_input_of_its_own(tiny: Backbone) -> None:
    with pytest.raises(ValueError, match="shared with other rows"):
        tiny.sites(["query"])[0].map_input(lambda x: x, Switch())


def test_a_gate_limits_a_site_to_its_tokens(tiny: Backbone, pixels: Tensor) -> None:
    site, switch = tiny.sites(["fc_in"], [0])[0], Switch()
    total = tiny.layout_of(pixels).total
    switch.gate = torch.zeros(1, total, 1)
    switch.gate[:, 2] = 1
    with tiny.capture([site]) as before:
        logits(tiny, pixels)
    site.map_input(lambda x: x + 1, switch)
    with tiny.capture([site]) as after:
        logits(tiny, pixels)
    moved = (after[site.name] - before[site.name]).abs().amax(dim=(0, 2))
    assert moved[2] > 0
    assert moved.sum() == moved[2]


def test_two_switches_on_one_site_act_independently(tiny: Backbone, pixels: Tensor) -> None:
    site, one, two = tiny.sites(["fc_out"], [0])[0], Switch(), Switch()
    base = logits(tiny, pixels)
    site.map_input(lambda x: x * 2, one)
    only_one = logits(tiny, pixels)
    site.map_input(lambda x: x + 1, two)
    both = logits(tiny, pixels)
    two.enabled = False
    assert torch.equal(logits(tiny, pixels), only_one)
    one.enabled = False
    assert torch.equal(logits(tiny, pixels), base)
    assert not torch.allclose(only_one, base)
    assert not torch.allclose(both, only_one)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("gated", [False, True])
def test_a_product_adds_what_the_output_of_both_factors_does(
    tiny: Backbone, pixels: Tensor, groups: int, gated: bool
) -> None:
    site = tiny.sites(["fc_in"], [0])[0]
    a, b = torch.randn(groups * 3, site.d_in), torch.randn(site.d_out // groups, 3)
    delta_OI = torch.cat([b @ part for part in a.chunk(groups)])

    def with_hook(add: Callable[[Switch], None]) -> Tensor:
        switch = Switch()
        if gated:
            switch.gate = torch.zeros(1, tiny.layout_of(pixels).total, 1)
            switch.gate[:, 2] = 1
        add(switch)
        with tiny.capture([site]) as outputs:
            logits(tiny, pixels)
        switch.release()
        return outputs[site.name]

    product = with_hook(lambda switch: site.add_product(lambda x: (x @ a.t(), b), switch))
    output = with_hook(lambda switch: site.add_output(lambda x: x @ delta_OI.t(), switch))
    assert not torch.equal(output, with_hook(lambda switch: None))
    assert torch.allclose(product, output, atol=1e-5)


def test_a_product_reaches_the_rows_of_its_slice_alone(tiny: Backbone, pixels: Tensor) -> None:
    site, switch = tiny.sites(["value"], [0])[0], Switch()
    a, b = torch.randn(3, site.d_in), torch.randn(site.d_out, 3)
    with tiny.capture(tiny.sites(["qkv"], [0])) as before:
        logits(tiny, pixels)
    site.add_product(lambda x: (x @ a.t(), b), switch)
    with tiny.capture(tiny.sites(["qkv"], [0])) as after:
        logits(tiny, pixels)
    difference = after["blocks.0.attn.qkv"] - before["blocks.0.attn.qkv"]
    assert difference[..., :48].abs().max() == 0
    assert difference[..., 48:].abs().min(dim=-1).values.max() > 0
