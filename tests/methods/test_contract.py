"""What every registered method must hold; a method is tested by being in the table."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator

import pytest
import timm
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli import registry
from gistcli.backbones import Backbone
from gistcli.errors import NotMergeable, NotSupported, WeightsError
from gistcli.methods.base import Method, Tuner
from gistcli.methods.gift import Gift

Batch = dict[str, Tensor]


def methods() -> Iterator[Method]:
    for name in registry.names("methods"):
        yield registry.resolve("methods", name)()


@pytest.fixture(params=methods(), ids=lambda m: m.name)
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


@pytest.fixture
def tuner(method: Method, tiny: Backbone) -> Tuner:
    torch.manual_seed(2)
    return method.attach(tiny).eval()


def logits(module: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        return module(batch).logits


def disturb(tuner: Tuner, size: float = 0.1, seed: int = 3) -> None:
    """Parameters away from the start, so that "the same" is never true by itself."""
    generator = torch.Generator().manual_seed(seed)
    noise = {
        n: t + size * torch.randn(t.shape, generator=generator) for n, t in tuner.state().items()
    }
    tuner.load_state(noise)


def train(tuner: Tuner, batch: Batch, steps: int = 3) -> None:
    # by the sign of the gradient, however small: SGD would stand still below float32's resolution
    optimiser = torch.optim.Adam([t.parameter for t in tuner.trainable().values()], lr=0.01)
    for _ in range(steps):
        with tuner.step():
            loss = F.cross_entropy(tuner(batch).logits, batch["labels"])
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()


def test_attaching_changes_nothing_yet(method: Method, tiny: Backbone, batch: Batch) -> None:
    base = logits(tiny, batch)
    keys = list(tiny.model.state_dict())
    tuner = method.attach(tiny).eval()
    assert torch.equal(logits(tuner, batch), base) == method.starts_as_base()
    assert list(tiny.model.state_dict()) == keys


def test_training_changes_the_output_and_detach_takes_it_back(
    tuner: Tuner, tiny: Backbone, batch: Batch
) -> None:
    with tuner.disabled():
        base = logits(tuner, batch)
    train(tuner, batch)
    tuned = logits(tuner, batch)
    assert not torch.allclose(tuned, base, atol=1e-3)
    with tuner.disabled():
        assert torch.equal(logits(tuner, batch), base)
    assert torch.equal(logits(tuner, batch), tuned)
    tuner.detach()
    assert torch.equal(logits(tiny, batch), base)


def test_only_what_is_declared_trains_and_all_of_it(
    tuner: Tuner, tiny: Backbone, batch: Batch
) -> None:
    declared = {id(t.parameter) for t in tuner.trainable().values()}
    frozen = {n: p.clone() for n, p in tiny.model.named_parameters() if id(p) not in declared}
    before = {n: t.clone() for n, t in tuner.state().items()}
    train(tuner, batch)
    for name, parameter in tiny.model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name
            assert parameter.grad is None, name
    for name, tensor in tuner.state().items():
        assert name in tuner.idle() or not torch.equal(tensor, before[name]), name


def test_trained_parameters_are_float32_and_each_stands_once(
    method: Method, tiny: Backbone
) -> None:
    tuner = method.attach(tiny.to(torch.bfloat16))
    parameters = [t.parameter for t in tuner.trainable().values()]
    assert {p.dtype for p in parameters} == {torch.float32}
    assert len({id(p) for p in parameters}) == len(parameters)
    assert {t.group for t in tuner.trainable().values()} <= {"method", "head"}


def test_a_bfloat16_backbone_carries_it(method: Method, tiny: Backbone, batch: Batch) -> None:
    tuner = method.attach(tiny.to(torch.bfloat16))
    disturb(tuner, 0.02)
    low = {**batch, "pixels": batch["pixels"].bfloat16()}
    train(tuner, low, steps=1)
    assert torch.isfinite(logits(tuner, low)).all()


def test_gradients_stop_at_the_lowest_trained_site(tuner: Tuner, batch: Batch) -> None:
    pixels = batch["pixels"].clone()
    F.cross_entropy(tuner({**batch, "pixels": pixels}).logits, batch["labels"]).backward()
    first = tuner.backbone.model.patch_embed.proj.weight
    trained_from_the_start = any(t.parameter is first for t in tuner.trainable().values())
    assert (first.grad is not None) == trained_from_the_start


def test_the_state_survives_a_round_trip_under_another_seed(
    method: Method, tuner: Tuner, tiny: Backbone, batch: Batch
) -> None:
    disturb(tuner)
    tuned, state = logits(tuner, batch), {n: t.clone() for n, t in tuner.state().items()}
    tuner.detach()
    torch.manual_seed(99)
    other = method.attach(tiny).eval()
    assert not torch.allclose(logits(other, batch), tuned, atol=1e-3)
    other.load_state(state)
    assert torch.equal(logits(other, batch), tuned)


def test_a_wrong_state_is_refused_with_all_differences(tuner: Tuner) -> None:
    state = tuner.state()
    state["stranger"] = torch.zeros(1)
    del state["head.bias"]
    state["head.weight"] = torch.zeros(2, 2)
    kept = {n: t.clone() for n, t in tuner.state().items()}
    with pytest.raises(WeightsError) as caught:
        tuner.load_state(state)
    for word in ("stranger", "missing head.bias", "head.weight has shape [2, 2]"):
        assert word in caught.value.message
    assert all(torch.equal(t, kept[n]) for n, t in tuner.state().items())


def test_a_state_without_storage_is_refused(tuner: Tuner) -> None:
    state = {n: t.to("meta") for n, t in tuner.state().items()}
    with pytest.raises(WeightsError, match="no storage"):
        tuner.load_state(state)


def test_hooks_read_the_parameters_that_stand_there_now(tuner: Tuner, batch: Batch) -> None:
    before = logits(tuner, batch)
    for module in (tuner, tuner.backbone):
        for child in module.modules():
            for name, parameter in list(child._parameters.items()):
                if parameter is not None and parameter.requires_grad:
                    child._parameters[name] = nn.Parameter(parameter + 0.1)
    assert not torch.allclose(logits(tuner, batch), before, atol=1e-3)


def test_the_merged_state_is_the_tuned_model(tuner: Tuner, tiny: Backbone, batch: Batch) -> None:
    disturb(tuner)
    tuned = logits(tuner, batch)
    if tuner.method.capabilities().merge is not None:
        with pytest.raises(NotMergeable):
            tuner.merge()
        return
    merged = tuner.merge()
    tuner.detach()
    base = tiny.model.state_dict()
    assert set(merged.patches) <= set(base)
    assert set(merged.new) == set(tiny.head_names())
    plain = {n: merged.patches[n](t.float()) if n in merged.patches else t for n, t in base.items()}
    plain |= merged.new
    assert {n: (t.shape, t.dtype) for n, t in plain.items()} == {
        n: (t.shape, t.dtype) for n, t in base.items()
    }
    assert not torch.allclose(logits(tiny, batch), tuned, atol=1e-3)
    tiny.model.load_state_dict(plain)
    assert torch.allclose(logits(tiny, batch), tuned, atol=1e-5)


def test_an_exact_low_rank_update_is_the_patch(tuner: Tuner, tiny: Backbone) -> None:
    if not tuner.method.capabilities().low_rank:
        pytest.skip(f"{tuner.method.name} is no low-rank update")
    disturb(tuner)
    merged, base = tuner.merge(), tiny.model.state_dict()
    assert {f"{n}.weight" for n in merged.low_rank} == set(merged.patches)
    for name, update in merged.low_rank.items():
        weight = base[f"{name}.weight"]
        assert torch.allclose(
            weight + update.b(weight) @ update.a, merged.patches[f"{name}.weight"](weight)
        )


def test_clusters_are_there_where_they_are_promised(tuner: Tuner) -> None:
    if tuner.method.capabilities().clusters:
        site = tuner.sites[0]
        assert tuner.clusters(site).shape[0] == site.d_out
    else:
        site = tuner.backbone.sites(["attn_out"])[0]
        with pytest.raises(NotSupported, match="no clusters"):
            tuner.clusters(site)


def test_what_is_put_back_has_followed_the_network_to_its_device(tuner: Tuner) -> None:
    network = tuner.backbone.model.to("meta")  # the only other device that every machine has
    tuner.to("meta")
    with tuner.disabled():
        assert all(p.is_meta for p in network.parameters())
    assert all(p.is_meta for p in network.parameters())
    assert all(t.parameter.is_meta for t in tuner.trainable().values())


def test_every_site_fires(tuner: Tuner, batch: Batch) -> None:
    logits(tuner, batch)
    assert {s.name for s in tuner.sites} <= tuner.fired()


def test_two_tuners_on_one_backbone_switch_off_independently(
    method: Method, tiny: Backbone, batch: Batch
) -> None:
    first = method.attach(tiny).eval()
    with pytest.raises(ValueError, match="already trained"):
        method.attach(tiny)
    second = Gift(targets=["fc_in"], layers=[1]).attach(tiny, head=False).eval()
    disturb(first)
    only_first = logits(first, batch)
    disturb(second)
    both = logits(first, batch)
    with second.disabled():
        assert torch.equal(logits(first, batch), only_first)
    with first.disabled():
        only_second = logits(first, batch)
    assert not torch.allclose(only_second, both)
    assert not torch.allclose(only_first, both)
    second.detach()
    assert torch.equal(logits(first, batch), only_first)


def test_compiled_after_attaching_it_equals_eager(tuner: Tuner, batch: Batch) -> None:
    disturb(tuner)
    eager = logits(tuner, batch)
    tuner.backbone.compile(backend="eager", fullgraph=True)
    assert torch.equal(logits(tuner, batch), eager)


def test_a_compiled_backbone_is_refused(method: Method, tiny: Backbone) -> None:
    tiny.compile(backend="eager")
    with pytest.raises(NotSupported, match="already compiled"):
        method.attach(tiny)


def test_gradient_checkpointing_gives_the_same_gradients(tuner: Tuner, batch: Batch) -> None:
    disturb(tuner)

    def gradients() -> dict[str, Tensor]:
        F.cross_entropy(tuner(batch).logits, batch["labels"]).backward()
        found = {n: t.parameter.grad.clone() for n, t in tuner.trainable().items()}
        for trained in tuner.trainable().values():
            trained.parameter.grad = None
        return found

    plain = gradients()
    tuner.backbone.model.set_grad_checkpointing(True)
    assert all(torch.allclose(g, plain[n], atol=1e-6) for n, g in gradients().items())


def test_counts_need_no_weights(method: Method, tiny: Backbone) -> None:
    real = {n: t.parameter.numel() for n, t in method.attach(tiny).trainable().items()}
    with torch.device("meta"):
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2
        )
        meta = type(tiny)(model, tiny.origin)
        meta.reset_head(5)
    assert {n: t.parameter.numel() for n, t in method.attach(meta).trainable().items()} == real


def test_options_are_frozen_checked_and_survive_json(method: Method) -> None:
    kind = type(method)
    assert kind.model_validate_json(json.dumps(method.model_dump(mode="json"))) == method
    with pytest.raises(ValidationError):
        kind.model_validate({"no_such_option": 1})
    for option in kind.model_fields:
        with pytest.raises(ValidationError):
            setattr(method, option, None)
    assert all(f.description for f in kind.model_fields.values())


def test_a_tuner_is_not_copied(tuner: Tuner) -> None:
    with pytest.raises(TypeError, match="attach anew"):
        copy.deepcopy(tuner)


def test_every_method_names_itself_and_its_rates(method: Method) -> None:
    assert registry.resolve("methods", method.name) is type(method)
    assert method.summary
    assert method.recommended["vision"].lr > 0
