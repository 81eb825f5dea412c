"""What every family of plain ViTs holds, against timm's own networks with the weights changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from gistcli import registry
from gistcli.backbones import Backbone, Site, Switch
from gistcli.backbones.base import Origin
from gistcli.errors import NotMergeable, NotSupported
from gistcli.methods.gift import Gift
from gistcli.testing.kinds import Kind
from tests.backbones.kinds import (
    ALL,
    WITHOUT_REGISTERS,
    attach_everything,
    gradients,
    logits,
    random,
    require_same,
    stock,
)


@pytest.fixture(params=ALL)
def kind(request: pytest.FixtureRequest) -> Kind:
    return ALL[request.param]


@pytest.fixture
def backbone(kind: Kind) -> Backbone:
    return kind.backbone()


@pytest.fixture
def exact(backbone: Backbone) -> Backbone:
    """In float64, where a product made in two orders is the same to twelve digits."""
    return backbone.double()


# --- the network itself ---------------------------------------------------------------------------


def test_features_are_those_of_timm(kind: Kind, backbone: Backbone, pixels: Tensor) -> None:
    plain = stock(kind, backbone)
    with torch.no_grad():
        features = backbone({"pixels": pixels})
        assert torch.equal(features.logits, plain(pixels))
        assert torch.equal(features.tokens, plain.forward_features(pixels))
        assert torch.equal(backbone.classify(features.pooled), features.logits)
    layout = features.layout
    assert features.tokens.shape == (3, layout.total, 24)
    assert layout.patches == slice(layout.total - 16, layout.total)
    assert backbone.count() == sum(p.numel() for p in plain.parameters())
    assert backbone.require_one_width("a method") == 24


def test_the_grid_follows_the_image(kind: Kind) -> None:
    family = registry.resolve("backbones", kind.family)
    wide = family(kind.network(img_size=(32, 48)), Origin("wide", kind.architecture)).eval()
    features = wide({"pixels": torch.zeros(1, 3, 32, 48)})
    assert features.layout.grid == (4, 6)
    assert features.layout.total == features.tokens.shape[1]
    assert wide.data_config()["input_size"] == (3, 32, 48)


def test_a_new_head_reads_what_the_old_one_read(backbone: Backbone, pixels: Tensor) -> None:
    backbone.reset_head(7, seed=3)
    heads = backbone.heads()
    paths = ("head", "head_dist")[: len(heads)]
    assert backbone.head_names() == [f"{h}.{n}" for h in paths for n in ("weight", "bias")]
    assert all(0.015 < head.weight.std() < 0.025 for head in heads)
    assert not any(head.bias.any() for head in heads)
    first = [head.weight for head in heads]
    backbone.reset_head(7, seed=3)
    assert all(map(torch.equal, first, (head.weight for head in backbone.heads())))
    backbone.reset_head(7, seed=4)
    assert not any(map(torch.equal, first, (head.weight for head in backbone.heads())))
    assert logits(backbone, pixels).shape == (3, 7)
    assert not any(p.requires_grad for p in backbone.parameters())


# --- sites ----------------------------------------------------------------------------------------


def test_every_mapped_input_is_a_product_in_the_weight(
    kind: Kind, exact: Backbone, pixels: Tensor
) -> None:
    base, plain = logits(exact, pixels), stock(kind, exact)
    for site in exact.all_sites():
        if site.rows is not None:
            continue
        switch, m_II = Switch(), torch.eye(site.d_in) + random(site.d_in, site.d_in, scale=0.3)
        site.map_input(lambda x, m_II=m_II: x @ m_II, switch)
        changed = logits(exact, pixels)
        switch.release()
        with torch.no_grad():
            weight = plain.get_submodule(site.module_name).weight
            weight.copy_(site.weight() @ m_II.t())
            require_same(changed, plain(pixels.double()), base)
            weight.copy_(site.weight())
        assert switch.fired == {site.name}
    assert torch.equal(logits(exact, pixels), base)


def test_every_added_output_is_a_sum_in_the_weight(
    kind: Kind, exact: Backbone, pixels: Tensor
) -> None:
    base, plain = logits(exact, pixels), stock(kind, exact)
    for site in exact.all_sites():
        switch, delta_OI = Switch(), random(site.d_out, site.d_in, scale=0.3)
        site.add_output(lambda x, delta_OI=delta_OI: F.linear(x, delta_OI), switch)
        changed = logits(exact, pixels)
        switch.release()
        with torch.no_grad():
            weight = plain.get_submodule(site.module_name).weight
            weight[site.rows or slice(None)] += delta_OI
            require_same(changed, plain(pixels.double()), base)
            weight[site.rows or slice(None)] = site.weight()
        assert switch.fired == {site.name}
    assert torch.equal(logits(exact, pixels), base)


def test_gradients_are_those_of_a_network_whose_weights_are_functions(
    kind: Kind, exact: Backbone, pixels: Tensor
) -> None:
    switch, trained = attach_everything(exact)
    result, found = gradients(exact, trained, pixels)
    assert switch.fired == set(trained)
    plain, weights = stock(kind, exact), {}
    for site in exact.all_sites():
        if site.name not in trained:
            continue
        key, a = f"{site.module_name}.weight", trained[site.name]
        if site.rows is None:
            weights[key] = site.weight() + site.weight() @ a.t()
        else:
            before = weights.get(key, site.module.weight)
            pad = (0, 0, site.rows.start, len(before) - site.rows.stop)
            weights[key] = before + F.pad(a, pad)
    expected = functional_call(plain, weights, (pixels.double(),))
    expected.square().sum().backward()
    assert torch.allclose(result, expected, rtol=1e-9)
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        assert torch.allclose(found[name], parameter.grad, rtol=1e-6, atol=1e-12), name


def test_a_captured_site_holds_its_product(exact: Backbone, pixels: Tensor) -> None:
    attach_everything(exact)
    fused = [s for s in exact.all_sites() if s.role in ("qkv", "query", "key", "value")]
    inputs: dict[int, Tensor] = {}
    for layer, block in enumerate(exact.blocks):
        norm: nn.Module = block.norm1
        norm.register_forward_hook(lambda _, __, y, layer=layer: inputs.update({layer: y}))
    with exact.capture(fused) as seen, torch.no_grad():
        exact({"pixels": pixels})
    state = exact.model.state_dict()
    trained = {s.name: s for s in fused}
    assert seen.keys() == trained.keys()
    for site in fused:
        if site.role == "qkv":
            thirds = [seen[f"{site.name}[{part}]"] for part in ("query", "key", "value")]
            assert torch.equal(seen[site.name], torch.cat(thirds, dim=-1))
    plain = [s for s in fused if s.rows is not None]
    for site in plain:
        weight = site.weight() + random(site.d_out, site.d_in, scale=0.1)
        bias = _bias(state, site)
        expected = F.linear(inputs[site.layer], weight, bias)
        assert torch.allclose(seen[site.name], expected, atol=1e-12), site.name


def _bias(state: dict[str, Tensor], site: Site) -> Tensor | None:
    attn = site.module_name.rpartition(".")[0]
    if f"{attn}.q_bias" in state:
        short = {"query": "q_bias", "value": "v_bias"}.get(site.role)
        return None if short is None else state[f"{attn}.{short}"]
    bias = state.get(f"{site.module_name}.bias")
    return bias if bias is None or site.rows is None else bias[site.rows]


def test_a_failing_forward_leaves_no_trace(backbone: Backbone, pixels: Tensor) -> None:
    base = logits(backbone, pixels)
    switch, _ = attach_everything(backbone, tokens=True, dtype=torch.float32)
    changed = logits(backbone, pixels)

    def fail(module: nn.Module, args: object) -> None:
        raise RuntimeError("out of memory")

    handle = backbone.blocks[1].attn.proj.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        logits(backbone, pixels)
    handle.remove()
    for module in backbone.model.modules():
        assert not module.__dict__.keys() & (module._parameters.keys() | module._buffers.keys())
    assert torch.equal(logits(backbone, pixels), changed)
    switch.release()
    assert torch.equal(logits(backbone, pixels), base)


# --- points and outputs ---------------------------------------------------------------------------


def test_points_stand_at_the_end_of_their_branches(backbone: Backbone, pixels: Tensor) -> None:
    switch, seen, block = Switch(), {}, backbone.blocks[1]
    kept: dict[str, Tensor] = {}
    norm2: nn.Module = block.norm2
    norm2.register_forward_pre_hook(lambda _, args: kept.update(middle=args[0]))
    block.register_forward_hook(lambda _, __, y: kept.update(end=y))
    for after in ("attention", "mlp"):
        point = backbone.point(after, 1)
        assert point.width == 24
        point.map_output(
            lambda *parts, after=after: seen.update({after: parts}) or 2 * parts[1], switch
        )
    with torch.no_grad():
        backbone({"pixels": pixels})
        x_in, y, residual = seen["attention"]
        assert torch.equal(x_in, block.norm1(residual))
        assert torch.allclose(kept["middle"], residual + 2 * y, atol=1e-6)
        x_in, y, residual = seen["mlp"]
        assert torch.equal(residual, kept["middle"])
        assert torch.equal(x_in, norm2(residual))
        assert torch.allclose(kept["end"], residual + 2 * y, atol=1e-6)
    roles = {s.role: s for s in backbone.all_sites() if s.rows is None and s.layer == 1}
    for role, site in roles.items():
        if site.parent is not None:
            with pytest.raises(NotSupported, match="reads its weight"):
                backbone.point(role, 1)
        else:
            assert backbone.point(role, 1).width == site.d_out


def test_a_scaled_output_is_a_scaled_module(kind: Kind, exact: Backbone, pixels: Tensor) -> None:
    base, plain = logits(exact, pixels), stock(kind, exact)
    names = [output.name for output in exact.outputs()]
    assert len(names) == len(set(names))
    for output in exact.outputs():
        switch = Switch()
        if output.bypassed:
            with pytest.raises(NotSupported, match="never called"):
                output.map_output(lambda y: y, switch)
            continue
        scale = 1.5 + random(output.width, scale=0.1)
        output.map_output(lambda y, scale=scale: y * scale, switch)
        changed = logits(exact, pixels)
        switch.release()
        module = plain.get_submodule(output.name)
        stored = copy.deepcopy(module.state_dict())
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(scale.view(-1, *[1] * (parameter.ndim - 1)))
            require_same(changed, plain(pixels.double()), base)
        module.load_state_dict(stored)
        assert output.has_bias == (module.bias is not None if hasattr(module, "bias") else False)


# --- tokens ---------------------------------------------------------------------------------------


def test_inserted_tokens_take_part_and_leave(backbone: Backbone, pixels: Tensor) -> None:
    with torch.no_grad():
        base = backbone({"pixels": pixels})
    switch, tokens = Switch(), random(1, 3, 24).float()
    backbone.insert_tokens("prompts", 3, lambda n: tokens.expand(n, -1, -1), switch)
    with torch.no_grad():
        features = backbone({"pixels": pixels})
    cls = base.layout.lengths["cls"]
    assert features.tokens.shape[1] == features.layout.total == base.layout.total + 3
    assert features.layout.span("prompts") == slice(cls, cls + 3)
    assert features.layout.patches == slice(features.layout.total - 16, features.layout.total)
    assert not torch.equal(features.logits, base.logits)
    assert backbone.read_out(features, "prompts").shape == (3, 5)
    switch.enabled = False
    assert torch.equal(logits(backbone, pixels), base.logits)
    switch.release()
    assert torch.equal(logits(backbone, pixels), base.logits)


def test_inserted_tokens_are_registers_of_a_stock_network(
    kind: Kind, backbone: Backbone, pixels: Tensor
) -> None:
    tokens = random(3, 24).float()
    if kind.name in WITHOUT_REGISTERS:
        with pytest.raises(NotMergeable, match=WITHOUT_REGISTERS[kind.name]):
            backbone.register_tokens(tokens)
        return
    new, arguments = backbone.register_tokens(tokens)
    network = kind.network(num_classes=5, **arguments).eval()
    network.load_state_dict({**backbone.model.state_dict(), **new})
    backbone.insert_tokens("gist", 3, lambda n: tokens[None].expand(n, -1, -1), Switch())
    with torch.no_grad():
        assert torch.equal(network(pixels), logits(backbone, pixels))
        features = backbone({"pixels": pixels})
        assert torch.equal(network.forward_features(pixels), features.tokens)


@pytest.mark.parametrize("pooling", ["avg", "max", "avgmax", "token", "map", "prr"])
@pytest.mark.parametrize("included", [False, True])
def test_registers_stand_for_tokens_wherever_pooling_leaves_them_out(
    pooling: str, included: bool, pixels: Tensor
) -> None:
    kind, tokens = ALL["registers with positions"], random(3, 24).float()
    options = {"global_pool": pooling, "pool_include_prefix": included}
    family = registry.resolve("backbones", kind.family)
    backbone = family(kind.network(**options).eval(), Origin("pools", kind.architecture))
    if pooling == "prr" or (included and pooling != "token"):
        with pytest.raises(NotMergeable, match="pools over all tokens"):
            backbone.register_tokens(tokens)
        return
    new, arguments = backbone.register_tokens(tokens)
    network = kind.network(**options, **arguments).eval()
    network.load_state_dict({**backbone.model.state_dict(), **new})
    backbone.insert_tokens("gist", 3, lambda n: tokens[None].expand(n, -1, -1), Switch())
    with torch.no_grad():
        assert torch.equal(network(pixels), logits(backbone, pixels))


def test_a_read_out_is_the_networks_own_path(backbone: Backbone, pixels: Tensor) -> None:
    token = random(1, 1, 24).float()
    backbone.insert_tokens("gist", 1, lambda n: token.expand(n, -1, -1), Switch())
    model = backbone.model
    with torch.no_grad():
        features = backbone({"pixels": pixels})
        output = features.tokens[:, features.layout.span("gist")]
        pool = getattr(model, "attn_pool", None)
        pooled = model.fc_norm(pool(output) if pool else output[:, 0])
        heads = [head(pooled) for head in backbone.heads()]
        expected = sum(heads) / len(heads)
        assert torch.allclose(backbone.read_out(features, "gist"), expected, atol=1e-6)


# --- running --------------------------------------------------------------------------------------


def test_recomputing_activations_gives_the_same_gradients(exact: Backbone, pixels: Tensor) -> None:
    _, trained = attach_everything(exact, tokens=True)
    result, expected = gradients(exact, trained, pixels)
    exact.checkpoint_gradients()
    calls: list[int] = []
    exact.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    again, found = gradients(exact, trained, pixels)
    assert len(calls) == 2
    assert torch.equal(again, result)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(found[name], gradient), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["class token", "DeiT distilled", "EVA02", "DINOv3", "BEiT", "AIMv2"], indirect=True
)
def test_the_compiled_network_is_the_eager_one(exact: Backbone, pixels: Tensor) -> None:
    switch, trained = attach_everything(exact, tokens=True)
    result, expected = gradients(exact, trained, pixels)
    torch.compiler.reset()
    exact.compile(backend="eager", fullgraph=True)
    again, found = gradients(exact, trained, pixels)
    assert torch.equal(again, result)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-9, atol=1e-15), name
    switch.enabled = False
    assert not torch.equal(logits(exact, pixels), result)


def test_merged_slices_load_into_timm(kind: Kind, backbone: Backbone, pixels: Tensor) -> None:
    base, plain = logits(backbone, pixels), stock(kind, backbone)
    torch.manual_seed(2)
    tuner = Gift(rank=3, targets=("query", "value", "fc_in")).attach(backbone).eval()
    with torch.no_grad():
        for trained in tuner.trainable().values():
            trained.parameter.normal_(0, 0.3)
        changed = tuner({"pixels": pixels}).logits
        merged = tuner.merge()
        state = plain.state_dict()
        for key, patch in merged.patches.items():
            state[key] = patch(state[key])
        plain.load_state_dict({**state, **merged.new})
        assert torch.allclose(plain(pixels), changed, atol=1e-5)
        with tuner.disabled():
            assert torch.equal(logits(backbone, pixels), base)
    assert not torch.allclose(changed, base, atol=1e-3)
    tuner.detach()
    assert torch.equal(logits(backbone, pixels), base)
