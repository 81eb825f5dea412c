"""What is trained, how its gradients flow, and that compiling or checkpointing changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.errors import NotSupported
from gistcli.methods.base import Tuner
from gistcli.testing.acting import Batch, disturb, gradients, logits, train
from gistcli.testing.cases import Case


def test_only_what_is_declared_trains_and_all_of_it(tuner: Tuner, batch: Batch) -> None:
    declared = {id(t.parameter) for t in tuner.trainable().values()}
    network = {n: p for n, p in tuner.backbone.model.named_parameters() if id(p) not in declared}
    frozen = {n: p.clone() for n, p in network.items()}
    before = {n: t.parameter.detach().clone() for n, t in tuner.trainable().items()}
    train(tuner, batch)
    for name, parameter in network.items():
        assert torch.equal(parameter, frozen[name]), name
        assert parameter.grad is None, name
    for name, trained in tuner.trainable().items():
        moved = not torch.equal(trained.parameter, before[name])
        assert moved != (name in tuner.idle()), name


@pytest.mark.needs("family")
def test_trained_parameters_are_float32_and_each_stands_once(case: Case) -> None:
    backbone = case.kind.backbone().to(torch.bfloat16)
    trained = case.method().attach(backbone).trainable()
    parameters = [t.parameter for t in trained.values()]
    assert {p.dtype for p in parameters} == {torch.float32}
    assert len({id(p) for p in parameters}) == len(parameters)
    assert len({p.untyped_storage().data_ptr() for p in parameters}) == len(parameters)
    assert {t.group for t in trained.values()} <= {"method", "gist", "head"}


@pytest.mark.needs("seam")
def test_a_bfloat16_backbone_carries_it(case: Case, batch: Batch) -> None:
    backbone = case.kind.backbone().to(torch.bfloat16)
    tuner = case.method().attach(backbone).eval()
    disturb(tuner, 0.02)
    low = {k: t.bfloat16() if t.is_floating_point() else t for k, t in batch.items()}
    train(tuner, low, steps=1)
    assert torch.isfinite(logits(tuner, low)).all()
    assert {t.parameter.dtype for t in tuner.trainable().values()} == {torch.float32}


@pytest.mark.needs("seam")
@pytest.mark.needs("layers")
def test_nothing_below_the_lowest_trained_layer_is_kept_for_the_backward_pass(
    case: Case, batch: Batch
) -> None:
    last = case.kind.backbone().depth - 1
    assert not _asks_for_gradients(case.attach(layers=(last,)), batch)
    assert _asks_for_gradients(case.attach(layers=(0,)), batch)


def _asks_for_gradients(tuner: Tuner, batch: Batch) -> bool:
    """Whether the output of the first block is part of the graph."""
    found = []

    def keep(module: nn.Module, args: object, y: Tensor | tuple[Tensor, ...]) -> None:
        found.append((y if isinstance(y, Tensor) else y[0]).requires_grad)

    block = tuner.backbone.blocks[0]
    handle = block.register_forward_hook(keep)
    with tuner.step():
        F.cross_entropy(tuner(batch).logits, batch["labels"]).backward()
    handle.remove()
    return any(found)


@pytest.mark.needs("seam")
@pytest.mark.needs("layers")
def test_layers_are_chosen_one_by_one(case: Case) -> None:
    one, every = case.attach(layers=(0,)), case.attach()

    def acting(tuner: Tuner) -> int:
        return len(tuner.switch.handles)

    assert 0 < acting(one) < acting(every)
    disturb(one)
    other = case.attach(layers=(0,), seed=9)
    other.load_state(one.state())
    assert other.state().keys() == one.state().keys()


@pytest.mark.needs("family")
def test_micro_batches_of_a_step_add_up_to_the_batch(tuner: Tuner, batch: Batch) -> None:
    disturb(tuner)
    whole, pieces = gradients(tuner, batch), gradients(tuner, batch, pieces=3)
    assert whole.keys() == pieces.keys()
    for name, gradient in whole.items():
        scale = max(float(gradient.abs().max()), 1.0)
        assert torch.allclose(pieces[name], gradient, atol=1e-4 * scale), name


@pytest.mark.needs("seam")
def test_gradient_checkpointing_gives_the_same_gradients(tuner: Tuner, batch: Batch) -> None:
    disturb(tuner)
    plain = gradients(tuner, batch)
    tuner.backbone.checkpoint_gradients()
    tuner.backbone.train()  # some libraries recompute in training mode only
    for module in tuner.backbone.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    again = gradients(tuner, batch)
    assert again.keys() == plain.keys()
    for name, gradient in plain.items():
        scale = max(float(gradient.abs().max()), 1.0)
        assert torch.allclose(again[name], gradient, atol=1e-5 * scale), name


@pytest.mark.needs("compiling")
def test_compiled_after_attaching_it_equals_eager(tuner: Tuner, batch: Batch) -> None:
    torch.compiler.reset()  # the cases before have used up dynamo's limit of recompilations
    disturb(tuner)
    eager = logits(tuner, batch)
    tuner.backbone.compile(backend="eager", fullgraph=True)
    assert torch.allclose(logits(tuner, batch), eager, atol=1e-5)


@pytest.mark.needs("plain")
def test_a_compiled_backbone_is_refused(case: Case) -> None:
    backbone = case.kind.backbone()
    backbone.compile(backend="eager")
    with pytest.raises(NotSupported, match="already compiled"):
        case.method().attach(backbone)
