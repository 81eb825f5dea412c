"""The gist token: the published loss written out, who learns from it, options, state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli import registry
from gistcli.backbones import Backbone
from gistcli.errors import GistError, NotSupported, Refused
from gistcli.methods.adapter import Adapter
from gistcli.methods.base import Method
from gistcli.methods.gist import Gist, GistTuner, WithGist
from gistcli.methods.linear import Linear
from gistcli.methods.lora import Lora
from gistcli.methods.vpt import Vpt
from gistcli.objectives import Classification
from gistcli.testing.acting import disturb
from gistcli.testing.cases import home
from gistcli.testing.kinds import KINDS
from gistcli.testing.kinds import batch as new_batch
from gistcli.testing.refusals import REFUSED
from tests.backbones.kinds import logits

Batch = dict[str, Tensor]
WITH_PLACE = [name for name, kind in KINDS.items() if kind.backbone().inserted is not None]
PUBLISHED = Gist(alpha=0.5, lambda_=0.75, temperature=3, interaction="bkld", dropout=0)


def attach(backbone: Backbone, method: Method | None = None, **options: Any) -> GistTuner:
    """Away from the start, in evaluation mode."""
    torch.manual_seed(2)
    tuner = Gist(**options).wrap(method or Lora(rank=4)).attach(backbone).eval()
    assert isinstance(tuner, GistTuner)
    disturb(tuner)
    return tuner


def gradients(tuner: GistTuner, loss: Tensor) -> dict[str, Tensor]:
    """Of every trained tensor that the loss reaches."""
    trained = {n: t.parameter for n, t in tuner.trainable().items()}
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {n: g for n, g in zip(trained, found, strict=True) if g is not None}


def terms(tuner: GistTuner, batch: Batch) -> dict[str, Tensor]:
    """The tuner's own losses."""
    features = tuner(batch)
    return tuner.auxiliary(features, batch, lambda z: F.cross_entropy(z, batch["labels"]), 1.0)


# --- the formulas, written out ------------------------------------------------------------------


def published_loss(z: Tensor, g: Tensor, labels: Tensor) -> Tensor:
    """CE(z) + 0.5 CE(g) + 0.75 (KL(p || q) + KL(q || p)), T = 3."""
    p, q = F.log_softmax(z / 3, dim=1), F.log_softmax(g / 3, dim=1)
    interaction = (p.exp() * (p - q)).sum() / len(z) + (q.exp() * (q - p)).sum() / len(z)
    loss = F.cross_entropy(z, labels) + 0.5 * F.cross_entropy(g, labels)
    return loss + 0.75 * interaction


def two_blocks(backbone: Backbone, token: Tensor, prompts: Tensor | None, batch: Batch) -> Any:
    """Both logits of a ViT with a class token; `prompts` (2, P, D) are new before each block."""
    model: Any = backbone.model
    n = len(batch["pixels"])
    x = model._pos_embed(model.patch_embed(batch["pixels"]))
    front = torch.cat([x[:, :1], token.expand(n, -1, -1)], dim=1)
    rest, kept = x[:, 1:], front.shape[1]
    for layer, block in enumerate(model.blocks):
        new = x[:, :0] if prompts is None else prompts[layer].expand(n, -1, -1)
        x = block(torch.cat([front, new, rest], dim=1))
        front, rest = x[:, :kept], x[:, kept + new.shape[1] :]
    norm = model.norm
    h = F.layer_norm(front, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return model.head(h[:, 0]), model.head(h[:, 1:].mean(dim=1))


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize(
    "method", [Lora(rank=4), Adapter(variant="parallel", dim=4), Vpt(length=2, dropout=0)], ids=str
)
def test_the_loss_is_the_published_one_with_its_gradients(
    tiny: Backbone, batch: Batch, method: Method, length: int
) -> None:
    options = {**PUBLISHED.model_dump(by_alias=False), "length": length}
    tuner = attach(tiny, method, **options)
    task = Classification(tuner)
    task.train()
    losses = task(batch, 6)
    z, g = two_blocks(tiny, tuner.gist["token"], getattr(tuner.inner, "prompts", None), batch)
    expected = published_loss(z, g, batch["labels"])
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert losses.total.item() == pytest.approx(sum(map(float, losses.parts.values())), rel=1e-6)
    ours, theirs = gradients(tuner, losses.total), gradients(tuner, expected)
    assert ours.keys() == theirs.keys() == tuner.trainable().keys()
    for name, gradient in ours.items():
        scale = max(float(gradient.abs().max()), 1.0)
        assert torch.allclose(gradient, theirs[name], atol=1e-6 * scale), name
        assert gradient.abs().max() > 1e-6, name


def test_without_its_losses_the_token_stays_and_the_loss_is_plain(
    tiny: Backbone, batch: Batch
) -> None:
    tuner = attach(tiny, alpha=0, lambda_=0)
    losses = Classification(tuner)(batch, 6)
    z = tuner(batch).logits
    assert losses.parts.keys() == {"classification"}
    assert torch.equal(losses.total, F.cross_entropy(z, batch["labels"], reduction="sum") / 6)
    assert gradients(tuner, losses.total)["gist.token"].abs().max() > 1e-6
    tuner.switch.enabled = False
    assert not torch.allclose(tuner(batch).logits, z, atol=1e-2)


def test_the_loss_of_smoothed_targets_is_that_of_both_logits(tiny: Backbone, batch: Batch) -> None:
    tuner = attach(tiny, alpha=2)
    found = Classification(tuner, 0.1)(batch, 6).parts["gist"]
    g = tiny.read_out(tuner(batch), "gist")
    expected = 2 * F.cross_entropy(g, batch["labels"], label_smoothing=0.1)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert found.item() != pytest.approx(2 * F.cross_entropy(g, batch["labels"]).item(), rel=1e-4)


def test_unequal_micro_batches_add_up_to_the_window(tiny: Backbone, batch: Batch) -> None:
    tuner = attach(tiny, lambda_=5)
    task = Classification(tuner)
    whole = task(batch, 6)
    pieces = [task({k: v[s] for k, v in batch.items()}, 6) for s in (slice(0, 4), slice(4, 6))]
    for name in ("gist", "interaction"):
        sums = sum(float(p.parts[name]) for p in pieces)
        assert sums == pytest.approx(float(whole.parts[name]), rel=1e-5)
    together = gradients(tuner, whole.total)
    apart = gradients(tuner, pieces[0].total + pieces[1].total)
    for name, gradient in together.items():
        assert torch.allclose(gradient, apart[name], atol=1e-5), name


# --- who learns from which term -----------------------------------------------------------------


@pytest.mark.parametrize("term", ["gist", "interaction"])
def test_each_term_reaches_token_head_and_host(tiny: Backbone, batch: Batch, term: str) -> None:
    tuner = attach(tiny)
    found = gradients(tuner, terms(tuner, batch)[term])
    groups = {t.group for n, t in tuner.trainable().items() if found[n].abs().max() > 1e-7}
    assert groups == {"gist", "head", "method"}


@pytest.mark.parametrize("detach", ["none", "cls", "gist"])
def test_what_is_detached_is_only_read_by_the_interaction(
    tiny: Backbone, batch: Batch, detach: str
) -> None:
    tuner = attach(tiny, detach=detach, interaction="mse", lambda_=2)
    found = gradients(tuner, terms(tuner, batch)["interaction"])
    features = tuner(batch)
    z, g = features.logits, tiny.read_out(features, "gist")
    z, g = (z.detach() if detach == "cls" else z), (g.detach() if detach == "gist" else g)
    expected = gradients(tuner, 2 * ((z - g) ** 2).mean())
    assert found.keys() == expected.keys() == tuner.trainable().keys()
    assert all(torch.allclose(found[n], expected[n], atol=1e-5) for n in expected)
    # a bias that both logits share cancels out where both change
    assert (found["head.bias"].abs().max() < 1e-6) == (detach == "none")


def test_several_interactions_add_up_by_their_weights(tiny: Backbone, batch: Batch) -> None:
    tuner = attach(tiny, interaction={"mse": 0.5, "rkld": 2}, lambda_=3)
    found = terms(tuner, batch)
    features = tuner(batch)
    z, g = features.logits, tiny.read_out(features, "gist")
    assert found.keys() == {"gist", "interaction/mse", "interaction/rkld"}
    p, q = (z / 3).log_softmax(1), (g / 3).log_softmax(1)
    assert found["interaction/mse"].item() == pytest.approx(1.5 * ((z - g) ** 2).mean().item())
    rkld = (q.exp() * (q - p)).sum().item() / 6
    assert found["interaction/rkld"].item() == pytest.approx(6 * rkld, rel=1e-4)
    assert Classification(tuner)(batch, 6).total.item() == pytest.approx(
        F.cross_entropy(z, batch["labels"]).item() + sum(t.item() for t in found.values()), rel=1e-6
    )


# --- the token ----------------------------------------------------------------------------------


def test_the_token_starts_uniform_and_is_one_decayed_float32_vector(tiny: Backbone) -> None:
    tuner = Gist(length=400).wrap(Lora()).attach(tiny.to(torch.bfloat16))
    token = tuner.trainable()["gist.token"]
    assert token.parameter.shape == (400, 24)
    assert (token.group, token.decay) == ("gist", True)
    assert token.parameter.dtype == torch.float32
    assert 0.499 < token.parameter.abs().max() <= 0.5
    assert token.parameter.std().item() == pytest.approx(1 / 12**0.5, rel=0.02)


@pytest.mark.parametrize("name", registry.names("methods"))
def test_the_method_under_it_keeps_its_names_and_starts_as_without_it(name: str) -> None:
    method = registry.resolve("methods", name)()
    states = []
    for wrapped in (method, Gist().wrap(method)):
        torch.manual_seed(5)
        states.append(wrapped.attach(KINDS[home(name)].backbone()).state())
    without, beside = states
    assert beside.pop("gist.token").shape == (1, 24)
    assert beside.keys() == without.keys()
    assert all(torch.equal(beside[n], t) for n, t in without.items())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in registry.names("methods")
        for kind in ("class token", "RoBERTa", "Llama")
        if kind not in REFUSED.get(name, ())
    ],
)
def test_everything_trains_over_every_method(name: str, kind: str) -> None:
    if name == "toast":  # its feedback path starts at zero, and moves one tensor a step
        return
    method, inputs = registry.resolve("methods", name)(), new_batch(KINDS[kind])
    torch.manual_seed(1)
    tuner = Gist().wrap(method).attach(KINDS[kind].backbone()).train()
    trained = {n: t.parameter for n, t in tuner.trainable().items() if n not in tuner.idle()}
    assert "gist.token" in trained
    before = {n: p.detach().clone() for n, p in trained.items()}
    optimiser = torch.optim.Adam(trained.values(), lr=0.01)
    for _ in range(2):
        with tuner.step():
            Classification(tuner)(inputs, 6).total.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert not [n for n, p in trained.items() if torch.equal(p, before[n])]


def test_dropout_acts_on_the_token_in_training_alone_and_by_image(tiny: Backbone) -> None:
    tuner = attach(tiny, dropout=0.5)
    pixels = torch.randn(1, 3, 32, 32).expand(2, -1, -1, -1)
    assert torch.equal(logits(tuner, pixels), logits(tuner, pixels))
    assert torch.allclose(*logits(tuner, pixels), atol=1e-5)
    tuner.train()
    assert not torch.allclose(*logits(tuner, pixels), atol=1e-3)


def test_evaluation_reads_the_class_token_alone(tiny: Backbone, batch: Batch) -> None:
    tuner = attach(tiny)
    with torch.no_grad():
        assert terms(tuner, batch) == {}
    other = attach(KINDS["class token"].backbone(), alpha=7, lambda_=9, interaction="cosine")
    other.load_state(tuner.state())
    assert torch.equal(logits(other, batch["pixels"]), logits(tuner, batch["pixels"]))
    assert terms(tuner, batch).keys() == {"gist", "interaction"}


def test_switched_off_and_detached_the_network_is_what_it_was(tiny: Backbone, batch: Batch) -> None:
    base = logits(tiny, batch["pixels"])
    tuner = attach(tiny, length=2)
    tuned = logits(tuner, batch["pixels"])
    with tuner.disabled():
        assert torch.equal(logits(tuner, batch["pixels"]), base)
        assert terms(tuner, batch) == {}
    assert torch.equal(logits(tuner, batch["pixels"]), tuned)
    assert not torch.allclose(tuned, base, atol=1e-2)
    tuner.detach()
    assert torch.equal(logits(tiny, batch["pixels"]), base)
    assert tiny.inserted is not None
    assert not tiny.inserted.entries


def test_the_state_is_one_and_a_wrong_one_is_refused_whole(tiny: Backbone, batch: Batch) -> None:
    tuner = attach(tiny, length=2)
    state = {n: t.clone() for n, t in tuner.state().items()}
    other = Gist(length=2).wrap(Lora(rank=4)).attach(KINDS["class token"].backbone()).eval()
    other.load_state(state)
    assert torch.equal(logits(other, batch["pixels"]), logits(tuner, batch["pixels"]))
    del state["gist.token"]
    state["head.bias"] = torch.zeros(2)
    with pytest.raises(GistError, match=r"missing gist\.token; head\.bias has shape"):
        tuner.load_state(state)


@pytest.mark.parametrize("kind", [n for n in KINDS if n not in WITH_PLACE])
def test_a_network_without_place_for_it_is_refused_and_left_alone(kind: str) -> None:
    backbone = KINDS[kind].backbone()
    head = backbone.model.get_parameter(backbone.head_names()[0])
    with pytest.raises(NotSupported, match="takes no gist token: ") as caught:
        Gist().wrap(Lora()).attach(backbone)
    assert "--no-gist" in caught.value.hint
    assert backbone.model.get_parameter(backbone.head_names()[0]) is head
    Lora().attach(backbone)
    assert set(WITH_PLACE) | {"Swin", "Swin V2", "Hiera"} == set(KINDS)


def test_counts_need_no_weights() -> None:
    backbone = KINDS["class token"].backbone(meta=True)
    trained = Gist(length=3).wrap(Lora()).attach(backbone).trainable()
    assert all(t.parameter.is_meta for t in trained.values())
    assert trained["gist.token"].parameter.shape == (3, 24)


@pytest.mark.parametrize(
    ("method", "longer"),
    [
        (Linear(), True),
        (Lora(layers=(-1,)), True),
        (Lora(layers=(0,)), False),
        (Lora(), False),
        (registry.resolve("methods", "bitfit")(), False),
    ],
    ids=str,
)
def test_it_knows_when_the_backward_pass_goes_further_for_it_alone(
    tiny: Backbone, batch: Batch, method: Method, longer: bool
) -> None:
    found = []
    for wrapped in (method, Gist().wrap(method)):
        seen: list[bool] = []
        tuner = wrapped.attach(tiny)
        block: nn.Module = tiny.blocks[0]
        handle = block.register_forward_hook(
            lambda _, __, y, seen=seen: seen.append(y.requires_grad)
        )
        tuner(batch)
        handle.remove()
        found.append(seen)
        if isinstance(tuner, GistTuner):
            assert tuner.lengthens_backward() == longer
        tuner.detach()
    assert found == [[not longer], [True]]


# --- prompts in its place -----------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
def test_prompts_take_its_place_without_a_parameter(
    tiny: Backbone, batch: Batch, deep: bool
) -> None:
    tuner = attach(tiny, Vpt(length=3, deep=deep, dropout=0), source="prompts")
    assert not any(t.group == "gist" for t in tuner.trainable().values())
    assert not tuner.lengthens_backward()
    features = tuner(batch)
    outputs = features.tokens[:, 1:4]
    assert features.layout.lengths.get("gist", 0) == 0
    g = tiny.model.head(outputs.mean(dim=1))  # type: ignore[operator, union-attr]
    expected = published_loss(features.logits, g, batch["labels"])
    losses = Classification(tuner)(batch, 6)
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert gradients(tuner, losses.total)["prompts"].abs().max() > 1e-6


def test_prompts_of_a_method_that_has_none_are_refused() -> None:
    with pytest.raises(Refused, match="lora has no prompts"):
        Gist(source="prompts").wrap(Lora())
    assert isinstance(Gist(source="prompts").wrap(Vpt()), WithGist)
