"""One pass over examples and queries against two, against each query alone, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gistcli.errors import NotSupported
from gistcli.hyper.gisting import GIST, allowed, packed
from gistcli.hyper.hyperllama import HyperTuner
from gistcli.methods.adapter import Adapter
from gistcli.methods.base import Method
from gistcli.methods.gift import Gift
from gistcli.methods.lora import Lora
from tests.hyper.episodes import (
    FAMILIES,
    GISTS,
    LLAMA,
    attach,
    decoder,
    episodes,
    front,
    gradients,
    query,
)

EXACT = {"Gemma2": 1e-5}  # its softmax is float32 whatever the network is
SEVERAL: dict[str, Tensor] = episodes((7, 4, 5), ((5, 3, 4), (6,), (3, 7)))


def double(name: str, **options: object) -> HyperTuner:
    backbone = decoder(name)
    tuner = attach(backbone, FAMILIES[name], **options)
    backbone.model.double()
    return tuner.double()


def scale(gradient: Tensor) -> float:
    return float(gradient.abs().max())


def require_equal_gradients(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], near: float
) -> None:
    """Relative to each tensor, and to a thousandth of the largest where one is small."""
    largest = max(scale(g) for g in theirs.values())
    assert largest > 0
    for name, gradient in theirs.items():
        atol = near * max(scale(gradient), 1e-3 * largest)
        torch.testing.assert_close(ours[name], gradient, atol=atol, rtol=0, msg=name)


def require_equal(tuner: HyperTuner, batch: dict[str, Tensor], logits: float, grads: float) -> None:
    """One pass and two give the same logits and gradients."""
    single = tuner(batch).logits
    ours = gradients(tuner, single.pow(2).mean())
    twice = tuner.two_pass(batch).logits
    theirs = gradients(tuner, twice.pow(2).mean())
    assert len(single) == int((batch["labels"] != -100).sum())
    torch.testing.assert_close(twice, single, atol=logits, rtol=0)
    require_equal_gradients(theirs, ours, grads)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_two_passes_are_one_in_double_precision(name: str, adapted: bool) -> None:
    tuner, exact = double(name, adapt_downstream=adapted), EXACT.get(name)
    require_equal(tuner, episodes(), exact or 1e-10, exact or 1e-8)


@pytest.mark.parametrize("method", [LLAMA, Adapter(dim=4), Gift(rank=2)], ids=lambda m: m.name)
def test_they_are_so_in_single_precision_with_every_kind_of_seam(method: Method) -> None:
    require_equal(attach(decoder(), method), SEVERAL, 1e-5, 1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_queries_of_one_row_are_each_alone(name: str) -> None:
    tuner = double(name)
    exact = {"atol": EXACT.get(name, 1e-10), "rtol": 0}
    with torch.no_grad():
        together = tuner(SEVERAL).logits
        found = []
        for row, spans in enumerate(SEVERAL["spans"]):
            for number in range(int(spans.max()) - GIST):
                mine = (spans == 1) | (spans == 2) | (spans == 3 + number)
                one = {n: SEVERAL[n][row : row + 1, mine] for n in SEVERAL if n != "index"}
                one["spans"] = one["spans"].clamp(max=3)
                found.append(tuner(one).logits)
    torch.testing.assert_close(together, torch.cat(found), **exact)


@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_the_network_sees_the_allowed_pairs_and_no_others(name: str) -> None:
    backbone = decoder(name, sliding_window=None) if name == "Mistral" else decoder(name)
    mask = backbone.arguments({**SEVERAL, **packed(SEVERAL["spans"])})["attention_mask"]
    mask = mask["full_attention"] if isinstance(mask, dict) else mask
    real = SEVERAL["spans"] > 0
    assert torch.equal(mask[:, 0][real], allowed(SEVERAL["spans"])[real])
    assert mask.any(-1).all()


def test_attention_that_adds_its_mask_is_exact_too() -> None:
    tuner = double("Llama")
    with torch.no_grad():
        wanted = tuner(SEVERAL).logits
        tuner.network.hf.set_attn_implementation("eager")
        torch.testing.assert_close(tuner(SEVERAL).logits, wanted, atol=1e-5, rtol=0)


def test_nothing_leaks_from_examples_but_through_the_gists() -> None:
    tuner, batch = attach(decoder(), adapt_downstream=True), episodes()
    assert tuner.gists is not None
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    context = batch["spans"] == 1
    other["input_ids"][context] = 3 + (batch["input_ids"][context] + 11) % 50
    attentions = [block.self_attn for block in tuner.network.blocks]  # type: ignore[attr-defined]
    with torch.no_grad():
        ours, theirs = tuner(batch).logits, tuner(other).logits
        assert not torch.allclose(ours, theirs, atol=1e-2)
        # gists that have the same keys and values whatever they read
        for attention in attentions:
            for linear in (attention.k_proj, attention.v_proj):
                linear.register_forward_hook(
                    lambda module, args, y: y.masked_fill(batch["spans"][..., None] == GIST, 0.5)
                )
        assert torch.equal(tuner(batch).logits, tuner(other).logits)


def test_checkpointed_activations_give_the_same_gradients() -> None:
    backbone = decoder()
    tuner = attach(backbone, adapt_downstream=True)

    def found() -> dict[str, Tensor]:
        with tuner.step():
            return gradients(tuner, tuner(SEVERAL).logits.pow(2).mean())

    plain = found()
    backbone.checkpoint_gradients()
    tuner.train()
    backbone.train()
    require_equal_gradients(found(), plain, 1e-5)
    for use in (tuner.two_pass, tuner.compress):
        with pytest.raises(NotSupported, match="recomputed in backward"):
            use(front(SEVERAL))
    backbone.eval()
    assert tuner.compress(front(SEVERAL)).length == GISTS
    assert tuner.idle()


def test_a_compiled_network_computes_the_same() -> None:
    torch.compiler.reset()
    tuner = attach(decoder(), adapt_downstream=True)
    with torch.no_grad():
        wanted = tuner(SEVERAL).logits
        text = query(SEVERAL, 0)
        alone = tuner(text).logits
        tuner.backbone.compile(backend="eager", fullgraph=True)
        torch.testing.assert_close(tuner(SEVERAL).logits, wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(tuner(text).logits, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("context", ["full", "none"])
def test_baselines_show_examples_themselves_or_nothing(context: str) -> None:
    tuner = attach(decoder(), context=context)
    assert "hyper.gists" not in tuner.trainable()
    with torch.no_grad():
        found = tuner(SEVERAL).logits
        wanted = []
        for row, spans in enumerate(SEVERAL["spans"]):
            for number in range(int(spans.max()) - GIST):
                mine = spans == 3 + number
                if context == "full":
                    mine = mine | (spans == 1)
                text = {"input_ids": SEVERAL["input_ids"][row, mine][None]}
                wanted.append(tuner(text).logits[0, -3:-1])
    torch.testing.assert_close(found, torch.cat(wanted), atol=1e-5, rtol=0)
    with pytest.raises(NotSupported, match=f"{context} makes no prefixes"):
        tuner.compress(front(SEVERAL))


def test_the_untuned_network_with_examples_in_sight_is_the_teacher() -> None:
    backbone = decoder()
    tuner, batch = attach(backbone, adapt_downstream=True), episodes()
    found = tuner.in_context(batch).logits
    assert not found.requires_grad
    for row, spans in enumerate(batch["spans"]):
        ids = batch["input_ids"][row, (spans == 1) | (spans == 3)][None]
        with torch.no_grad(), tuner.disabled():
            wanted = backbone({"input_ids": ids}).logits[0, -3:-1]
        torch.testing.assert_close(found[2 * row : 2 * row + 2], wanted, atol=1e-5, rtol=0)


def test_bfloat16_carries_it() -> None:
    backbone = decoder()
    tuner = attach(backbone)
    with torch.no_grad():
        wanted = tuner(SEVERAL).logits
    with torch.autocast("cpu", torch.bfloat16):
        tuner(SEVERAL).logits.float().mean().backward()
    assert tuner.gists is not None
    assert tuner.gists.grad is not None
    backbone.model.to(torch.bfloat16)
    found = tuner(SEVERAL).logits
    torch.testing.assert_close(found.float(), wanted, atol=0.6, rtol=0.1)
    prefix = tuner.compress(front(SEVERAL))
    assert prefix.keys.dtype == torch.float32
    with tuner.prefix_in_use(prefix):
        texts = {n: t for n, t in front(SEVERAL).items() if n != "spans"}
        assert torch.isfinite(tuner(texts).logits).all()


def test_fused_maps_take_part() -> None:
    fused = Lora(rank=3, targets=("gate_up",))
    tuner = attach(decoder("Phi3"), fused)
    require_equal(tuner, episodes(), 1e-5, 1e-4)
