"""What holds for every hierarchical network: features, seams, training, leaving."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones import Backbone, Site, Switch
from gistcli.errors import NotSupported
from gistcli.methods.base import Method, Tuner
from gistcli.methods.full import Full
from gistcli.methods.gift import Gift
from gistcli.methods.linear import Linear
from tests.backbones.hierarchical import KINDS, NETWORKS, network, seen_at
from tests.backbones.kinds import logits

ROLES = ("qkv", "attn_out", "fc_in", "fc_out")
METHODS = {
    "gift": Gift(rank=4),
    "gift on all maps": Gift(rank=4, targets=ROLES),
    "gift on slices": Gift(rank=4, targets=("query", "value")),
    "linear": Linear(),
    "full": Full(),
}


@pytest.fixture(params=KINDS)
def tiny(request: pytest.FixtureRequest) -> Backbone:
    return KINDS[request.param]()


def tune(backbone: Backbone, method: Method) -> Tuner:
    """The method with every trained value moved away from the start."""
    tuner = method.attach(backbone).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for trained in tuner.trainable().values():
            noise = torch.randn(trained.parameter.shape, generator=generator)
            trained.parameter.add_(noise, alpha=0.1)
    return tuner


def test_features_are_those_of_the_plain_timm_model(tiny: Backbone, pixels: Tensor) -> None:
    with torch.no_grad():
        features = tiny({"pixels": pixels})
        assert torch.equal(features.logits, tiny.model(pixels))
        plain = tiny.model.forward_features(pixels)
    assert torch.equal(features.tokens, plain.flatten(1, -2))
    assert features.layout.total == features.tokens.shape[1]
    assert features.layout.patches == slice(0, features.layout.total)


def test_the_mean_of_all_patches_reads_out_as_the_prediction(
    tiny: Backbone, pixels: Tensor
) -> None:
    with torch.no_grad():
        features = tiny({"pixels": pixels})
        torch.testing.assert_close(tiny.read_out(features, "patches"), features.logits)


def test_layers_are_counted_over_the_stages(tiny: Backbone) -> None:
    assert tiny.depth == 4
    assert [s.layer for s in tiny.sites(["attn_out"])] == [0, 1, 2, 3]
    assert [s.d_out for s in tiny.sites(["attn.proj"], [0, -1])] == [12, tiny.widths[-1]]
    assert tiny.sites(["proj"]) == [] or all(s.role == "attn_out" for s in tiny.sites(["proj"]))
    with pytest.raises(NotSupported, match="one width"):
        tiny.require_one_width("vera")


def test_a_token_is_refused_with_the_reason(tiny: Backbone) -> None:
    with pytest.raises(NotSupported, match="attends within"):
        tiny.insert_tokens("gist", 1, lambda n: torch.zeros(n, 1, 12), Switch())


@pytest.mark.parametrize("role", ROLES)
def test_a_mapped_input_is_what_the_weight_sees(tiny: Backbone, pixels: Tensor, role: str) -> None:
    base = logits(tiny, pixels)
    for site in tiny.sites([role]):
        switch = Switch()
        matrix = torch.randn(site.d_in, site.d_in, generator=torch.Generator().manual_seed(2))
        site.map_input(lambda x, m=matrix: x @ m, switch)
        changed = logits(tiny, pixels)
        switch.release()
        assert_surgery(tiny, pixels, site, site.weight() @ matrix.t(), changed)
        assert not torch.allclose(base, changed, atol=1e-3)
        assert torch.equal(logits(tiny, pixels), base)


@pytest.mark.parametrize("role", [*ROLES, "query", "key", "value"])
def test_an_added_output_is_a_weight_of_its_rows(tiny: Backbone, pixels: Tensor, role: str) -> None:
    base = logits(tiny, pixels)
    for site in tiny.sites([role]):
        switch = Switch()
        delta = torch.randn(site.weight().shape, generator=torch.Generator().manual_seed(2))
        site.add_output(lambda x, d=delta: x @ d.t(), switch)
        changed = logits(tiny, pixels)
        assert switch.fired == {site.name}
        switch.release()
        assert_surgery(tiny, pixels, site, site.weight() + delta, changed)
        assert not torch.allclose(base, changed, atol=1e-3)
        assert torch.equal(logits(tiny, pixels), base)


def assert_surgery(
    backbone: Backbone, pixels: Tensor, site: Site, new: Tensor, changed: Tensor
) -> None:
    """The logits are those of the network whose weight is replaced."""
    rows = site.rows or slice(None)
    weight = site.module.weight
    with torch.no_grad():
        old = weight.clone()
        weight[rows] = new
        torch.testing.assert_close(logits(backbone, pixels), changed, atol=1e-5, rtol=1e-5)
        weight.copy_(old)


@pytest.mark.parametrize("after", ["attention", "mlp", *ROLES])
def test_a_point_sees_its_branch_and_says_what_is_aligned(
    tiny: Backbone, pixels: Tensor, after: str
) -> None:
    base = logits(tiny, pixels)
    for layer in range(tiny.depth):
        if after == "qkv" and tiny.sites(["qkv"])[0].parent is not None:
            with pytest.raises(NotSupported, match="reads its weight"):
                tiny.point(after, layer)
            continue
        point, switch = tiny.point(after, layer), Switch()
        seen = seen_at(tiny, after, layer, pixels)
        assert torch.equal(logits(tiny, pixels), base)
        assert seen["y"].shape[-1] == point.width
        if after in ("attention", "mlp"):
            assert point.aligned == (seen["y"].shape == seen["residual"].shape)
        assert point.aligned == (seen["y"].shape[:-1] == seen["x_in"].shape[:-1])
        point.map_output(lambda x_in, y, residual: y.cumsum(-1), switch)
        assert not torch.allclose(logits(tiny, pixels), base)
        switch.release()


def test_an_output_that_is_scaled_and_shifted_is_a_module_that_is(
    tiny: Backbone, pixels: Tensor
) -> None:
    base = logits(tiny, pixels)
    for output in tiny.outputs():
        if output.bypassed:
            with pytest.raises(NotSupported, match="never called"):
                output.map_output(lambda y: y, Switch())
            continue
        switch, generator = Switch(), torch.Generator().manual_seed(2)
        scale = 1 + torch.rand(output.width, generator=generator)
        shift = torch.rand(output.width, generator=generator) * output.has_bias
        output.map_output(lambda y, a=scale, b=shift: y * a + b, switch)
        changed = logits(tiny, pixels)
        switch.release()
        assert not torch.allclose(changed, base, atol=1e-4), output.name
        weight, bias = output.module.weight, getattr(output.module, "bias", None)
        with torch.no_grad():
            old = {p: p.clone() for p in (weight, bias) if p is not None}
            weight.mul_(scale.view(-1, *[1] * (weight.ndim - 1)))
            if bias is not None:
                bias.mul_(scale).add_(shift)
            torch.testing.assert_close(logits(tiny, pixels), changed, atol=1e-5, rtol=1e-5)
            for parameter, value in old.items():
                parameter.copy_(value)


def test_outputs_are_all_modules_with_a_weight_that_tokens_pass(tiny: Backbone) -> None:
    kinds = (nn.Linear, nn.LayerNorm, nn.Conv2d)
    head = {name.rpartition(".")[0] for name in tiny.head_names()}
    all_of_them = {
        name
        for name, module in tiny.model.named_modules()
        if isinstance(module, kinds) and name not in head and "cpb_mlp" not in name
    }
    assert {output.name for output in tiny.outputs()} == all_of_them


@pytest.mark.parametrize("name", METHODS)
def test_the_merged_state_is_a_plain_timm_model(name: str, tiny: Backbone, pixels: Tensor) -> None:
    tiny.reset_head(7)
    base = logits(tiny, pixels)
    tuner = tune(tiny, METHODS[name])
    tuned, merged = logits(tuner, pixels), tuner.merge()
    with tuner.disabled():
        assert torch.equal(logits(tuner, pixels), base)
    tuner.detach()
    assert torch.equal(logits(tiny, pixels), base)
    assert not torch.allclose(base, tuned, atol=1e-3)
    state = {
        key: merged.patches[key](tensor) if key in merged.patches else tensor
        for key, tensor in tiny.model.state_dict().items()
    } | dict(merged.new)
    plain = build_like(tiny)
    plain.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(plain(pixels), tuned, atol=1e-5, rtol=1e-5)


def build_like(backbone: Backbone) -> nn.Module:
    """The plain network of a tiny backbone, with seven classes and other weights."""
    state = {key: tensor.shape for key, tensor in backbone.model.state_dict().items()}
    for name, (_, architecture, _) in NETWORKS.items():
        model = network(name, num_classes=7).eval()
        shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
        if architecture == backbone.architecture and shapes == state:
            return model
    raise AssertionError("no such kind")


@pytest.mark.slow
@pytest.mark.parametrize("tiny", ["Swin, padded windows", "Swin V2", "Hiera"], indirect=True)
def test_compiled_after_attaching_it_equals_eager(tiny: Backbone, pixels: Tensor) -> None:
    tuner = tune(tiny, Gift(rank=4, targets=("query", "value", "attn_out", "fc_in")))
    eager = logits(tuner, pixels)
    torch.compiler.reset()  # the cases before have used up the limit of recompilations
    tiny.compile(backend="eager", fullgraph=True)
    assert torch.equal(logits(tuner, pixels), eager)


@pytest.mark.parametrize("name", ["gift on all maps", "gift on slices"])
def test_gradient_checkpointing_gives_the_same_gradients(
    name: str, tiny: Backbone, pixels: Tensor
) -> None:
    tuner = tune(tiny, METHODS[name])

    def gradients() -> dict[str, Tensor]:
        loss = F.cross_entropy(tuner({"pixels": pixels}).logits, torch.arange(len(pixels)))
        trained = {n: t.parameter for n, t in tuner.trainable().items()}
        return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))

    plain = gradients()
    assert all(g.abs().sum() > 0 for g in plain.values())
    tiny.checkpoint_gradients()
    for key, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[key], atol=1e-6, rtol=1e-5)
