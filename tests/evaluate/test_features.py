"""A split of kept features: what its batches hold, in which order, and when they are computed."""

from __future__ import annotations

import gc
import itertools

import pytest
import timm
import torch
from torch import Tensor, nn

from gistcli.backbones.base import Origin
from gistcli.backbones.vit import ViT
from gistcli.data import ImageSplit
from gistcli.evaluate import predict
from gistcli.evaluate.features import FeatureSplit, differs_in_training
from gistcli.methods.base import Tuner
from gistcli.methods.linear import Linear
from gistcli.reporting import Reporter


def network(**options: float) -> ViT:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2,
        **options,
    )  # fmt: skip
    backbone = ViT(model, Origin("tiny", "vit_tiny_patch16_224"))
    backbone.reset_head(10)
    return backbone


@pytest.fixture
def linear() -> Tuner:
    tuner = Linear().attach(network())
    nn.init.normal_(tuner.state()["head.bias"], std=0.5)
    return tuner


def test_features_give_the_outputs_that_pixels_give(linear: Tuner, digits: ImageSplit) -> None:
    expected = predict(linear, digits, 50)
    found = predict(linear, FeatureSplit(digits, linear, 50), 50)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.labels, expected.labels)
    assert found.names == expected.names
    linear.state()["head.bias"].add_(1)
    assert not torch.allclose(predict(linear, digits, 50).logits, expected.logits)


@pytest.mark.parametrize("seed", [None, 3])
def test_batches_are_cut_as_those_of_the_pictures(
    linear: Tuner, digits: ImageSplit, seed: int | None
) -> None:
    split = FeatureSplit(digits, linear, 32)
    assert split.batches_per_epoch(16) == digits.batches_per_epoch(16) == 4
    for epoch, start, rank in itertools.product((0, 2), (0, 1, 3), (0, 1)):
        place = {"seed": seed, "epoch": epoch, "start_batch": start, "rank": rank, "world": 2}
        expected = list(digits.batches(16, **place))
        found = list(split.batches(16, **place))
        assert len(found) == len(expected) == 4 - start
        for ours, theirs in zip(found, expected, strict=True):
            assert set(ours) == {"pooled", "labels", "index"}
            assert torch.equal(ours["index"], theirs["index"])
            assert torch.equal(ours["labels"], theirs["labels"])
            assert torch.equal(ours["pooled"], split.pooled()[theirs["index"]])


def test_the_network_runs_once_and_only_when_a_batch_is_asked_for(
    linear: Tuner, digits: ImageSplit
) -> None:
    seen: list[int] = []
    linear.backbone.model.norm.register_forward_hook(lambda m, args, y: seen.append(len(y)))
    phases: list[object] = []

    class Listener(Reporter):
        def start(self, phase: str, total: int, unit: str = "steps") -> None:
            phases.append((phase, total, unit))

    split = FeatureSplit(digits, linear, 20, reporter=Listener())
    assert (len(split), len(split.labels), len(split.names)) == (50, 50, 50)
    assert seen == phases == []
    for epoch in range(3):
        list(split.batches(7, seed=0, epoch=epoch))
    predict(linear, split, 9)
    assert seen == [20, 20, 10]
    assert phases == [("features", 50, "examples")]


def test_features_are_float32_without_a_graph_also_of_a_bfloat16_network(
    digits: ImageSplit,
) -> None:
    backbone = network().to(torch.bfloat16)
    tuner = Linear().attach(backbone).train()
    split = FeatureSplit(digits, tuner, 25)
    batch: dict[str, Tensor] = next(split.batches(10, seed=1))
    assert batch["pooled"].dtype == torch.float32
    assert not batch["pooled"].requires_grad
    found = tuner(batch)
    assert found.tokens.shape == (10, 0, 24)
    assert found.logits.shape == (10, 10)
    found.logits.sum().backward()
    grads = [t.parameter.grad for t in tuner.trainable().values()]
    assert all(g is not None and g.abs().sum() > 0 for g in grads)


def test_an_embedding_under_autocast_is_kept_as_it_was_computed(
    linear: Tuner, digits: ImageSplit
) -> None:
    expected = predict(linear, digits, 50, precision="bf16").logits
    rounded = FeatureSplit(digits, linear, 50, precision="bf16")
    assert torch.equal(predict(linear, rounded, 50, precision="bf16").logits, expected)
    exact = FeatureSplit(digits, linear, 50)
    assert not torch.equal(predict(linear, exact, 50, precision="bf16").logits, expected)


def test_the_tokens_of_earlier_batches_are_let_go(linear: Tuner, digits: ImageSplit) -> None:
    whole = 10 * 17 * 24 * 4  # bytes of the tokens of a batch, of which the class token is a view
    alive: list[int] = []

    class Listener(Reporter):
        def advance(self, phase: str, units: int = 1, **figures: float) -> None:
            storages = [o.untyped_storage() for o in gc.get_objects() if type(o) is Tensor]
            alive.append(len({s.data_ptr() for s in storages if s.nbytes() == whole}))

    features = FeatureSplit(digits, linear, 10, reporter=Listener())
    assert features.pooled().untyped_storage().nbytes() == 50 * 24 * 4
    assert len(alive) == 5
    assert 0 < alive[0] == alive[-1]


@pytest.mark.parametrize(
    "option", ["drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate",
               "attn_drop_rate", "drop_path_rate"],
)  # fmt: skip
def test_whatever_drops_in_training_is_found(option: str) -> None:
    assert differs_in_training(network().model) == []
    dropping = network(**{option: 0.3}).train()
    names = differs_in_training(dropping.model)
    assert names
    assert all(dropping.model.get_submodule(name) for name in names)
    pixels = torch.randn(2, 3, 16, 16)
    assert not torch.equal(
        dropping({"pixels": pixels}).pooled, dropping.eval()({"pixels": pixels}).pooled
    )


def test_batch_norm_is_found() -> None:
    backbone = network()
    backbone.model.fc_norm = nn.BatchNorm1d(24)
    assert differs_in_training(backbone.model) == ["fc_norm"]
