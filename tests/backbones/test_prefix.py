"""A prefix against the real tokens whose keys and values it holds, and against transformers."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from gistcli.backbones.causal import Causal
from gistcli.backbones.prefix import Prefix, cache_name, prefix_of
from gistcli.backbones.sites import Switch
from gistcli.errors import NotSupported
from gistcli.methods.prefix import PrefixTuning
from tests.backbones.text_kinds import DECODERS, VOCABULARY, build

LENGTH, TEXT = 6, 9
"""Mistral and Gemma 2 look back four tokens, so that a window ends inside the prefix."""
EXACT = {"Gemma2": 1e-5}  # its softmax is float32 whatever the network is


def decoder(name: str, **more: object) -> Causal:
    found = build(name, "causal_lm", **more)
    assert isinstance(found, Causal)
    found.model.double()
    return found


def words(rows: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)


def put(backbone: Causal, prefix: Prefix) -> Switch:
    switch = Switch()
    backbone.prefix_seam().add(prefix.length, lambda rows: prefix, switch)
    return switch


def logits(backbone: Causal, batch: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return backbone(batch).logits


@pytest.mark.parametrize("name", DECODERS)
def test_a_prefix_is_the_tokens_that_it_was_made_of(name: str) -> None:
    backbone, ids = decoder(name), words(1, LENGTH + TEXT)
    wanted = logits(backbone, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    wanted = wanted[:, LENGTH:]
    text, exact = ids[:, LENGTH:], {"atol": EXACT.get(name, 1e-10), "rtol": 0}
    without = logits(backbone, {"input_ids": text})
    assert not torch.allclose(without, wanted, atol=1e-2)
    switch = put(backbone, prefix_of(backbone.hf, {"input_ids": ids[:, :LENGTH]}))
    torch.testing.assert_close(logits(backbone, {"input_ids": text}), wanted, **exact)
    with torch.no_grad():  # with a cache, as whoever calls the network of transformers has it
        torch.testing.assert_close(backbone.hf(input_ids=text).logits, wanted, **exact)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), text], dim=1)
    mask = (padded > 0).long()
    left = logits(backbone, {"input_ids": padded, "attention_mask": mask})[:, 3:]
    torch.testing.assert_close(left, wanted, **exact)
    right = logits(backbone, {"input_ids": padded.roll(-3, 1), "attention_mask": mask.roll(-3, 1)})
    torch.testing.assert_close(right[:, :TEXT], wanted, **exact)
    switch.enabled = False
    assert torch.equal(logits(backbone, {"input_ids": text}), without)
    switch.enabled = True
    switch.release()
    assert torch.equal(logits(backbone, {"input_ids": text}), without)


@pytest.mark.parametrize("name", DECODERS)
def test_packed_texts_all_see_the_prefix_and_not_each_other(name: str) -> None:
    backbone = decoder(name)
    put(backbone, prefix_of(backbone.hf, {"input_ids": words(1, LENGTH)}))
    texts = [words(1, n, seed=n) for n in (5, 9, 1)]
    numbers = [torch.full_like(text, i) for i, text in enumerate(texts, start=1)]
    rest = torch.zeros(1, 2, dtype=torch.long)
    packed = {
        "input_ids": torch.cat([*texts, rest], dim=1),
        "segments": torch.cat([*numbers, rest], dim=1),
    }
    alone = torch.cat([logits(backbone, {"input_ids": text}) for text in texts], dim=1)
    exact = {"atol": EXACT.get(name, 1e-10), "rtol": 0}
    torch.testing.assert_close(logits(backbone, packed)[:, :-2], alone, **exact)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "GPT2"])
def test_attention_that_adds_its_mask_is_exact_too(name: str) -> None:
    backbone = decoder(name)
    put(backbone, prefix_of(backbone.hf, {"input_ids": words(1, LENGTH)}))
    ids = words(2, TEXT)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    batch = {"input_ids": ids * mask, "attention_mask": mask}
    wanted = logits(backbone, batch)
    backbone.hf.set_attn_implementation("eager")
    real = mask.bool()
    torch.testing.assert_close(logits(backbone, batch)[real], wanted[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_every_row_can_have_a_prefix_of_its_own(name: str) -> None:
    backbone, ids = decoder(name), words(3, TEXT)
    each = [prefix_of(backbone.hf, {"input_ids": words(1, LENGTH, seed=i)}) for i in range(3)]
    wanted = []
    for row, prefix in zip(ids, each, strict=True):
        switch = put(backbone, prefix)
        wanted.append(logits(backbone, {"input_ids": row[None]}))
        switch.release()
    keys = torch.cat([p.keys for p in each], dim=1)
    values = torch.cat([p.values for p in each], dim=1)
    put(backbone, Prefix(keys, values))
    found = logits(backbone, {"input_ids": ids})
    torch.testing.assert_close(found, torch.cat(wanted), atol=1e-10, rtol=0)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


@pytest.mark.parametrize("name", DECODERS)
def test_gradients_reach_every_layer_with_and_without_recomputed_activations(name: str) -> None:
    backbone = build(name, "causal_lm")
    tuner = PrefixTuning(length=LENGTH).attach(backbone)
    ids = words(2, TEXT)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0

    def gradients() -> list[Tensor]:
        tuner.zero_grad()
        tuner({"input_ids": ids, "attention_mask": mask}).logits.pow(2).mean().backward()
        return [p.grad.clone() for p in (tuner.keys, tuner.values) if p.grad is not None]

    plain = gradients()
    assert len(plain) == 2
    for gradient in plain:  # (layers, 1, heads, positions, width)
        reached = gradient.abs().amax(dim=(1, 4))
        # a window of four leaves the first positions out of sight
        assert (reached[..., -3:] > 0).all()
    backbone.checkpoint_gradients()
    backbone.train()
    for module in backbone.modules():
        module.__dict__.update({k: 0.0 for k in ("attn_pdrop",) if hasattr(module, k)})
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert any(getattr(m, "gradient_checkpointing", False) for m in backbone.modules())
    for again, gradient in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(again, gradient, atol=1e-6, rtol=1e-5)


def test_rows_of_several_beams_and_calls_need_no_cache_of_their_own() -> None:
    backbone, ids = decoder("Llama"), words(2, 4)
    prefix = prefix_of(backbone.hf, {"input_ids": words(1, LENGTH)})
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cache = prefix.cache(backbone.config, 6)
    seen = torch.ones(2, LENGTH + 4, dtype=torch.long)
    plain = backbone.hf.generate(
        input_ids=ids,
        attention_mask=seen,
        num_beams=3,
        **{cache_name(backbone.hf): cache},
        **options,
    )
    put(backbone, prefix)
    for _ in range(2):
        ours = backbone.hf.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), num_beams=3, **options
        )
        assert torch.equal(ours, plain)


def test_bfloat16_networks_and_autocast_carry_a_prefix_in_float32() -> None:
    backbone = build("Qwen3", "causal_lm")
    tuner = PrefixTuning(length=3).attach(backbone)
    tuner.keys.data.mul_(0.2)
    batch = {"input_ids": words(2, TEXT)}
    wanted = logits(backbone, batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss = tuner(batch).logits.float()
        loss.mean().backward()
        text = backbone.hf.generate(batch["input_ids"], max_new_tokens=2, pad_token_id=0)
    assert tuner.keys.grad is not None
    assert text.shape == (2, TEXT + 2)
    torch.testing.assert_close(loss, wanted, atol=0.3, rtol=0.1)
    backbone.model.to(torch.bfloat16)
    torch.testing.assert_close(logits(backbone, batch).float(), wanted, atol=0.5, rtol=0.1)
    assert backbone.hf.generate(batch["input_ids"], max_new_tokens=2, pad_token_id=0).shape[1] > 9


def test_what_has_no_room_or_another_prefix_is_refused() -> None:
    backbone = build("GPT2", "causal_lm")
    assert backbone.positions == 40
    tuner = PrefixTuning(length=LENGTH).attach(backbone)
    assert backbone.positions == 40 - LENGTH
    with pytest.raises(NotSupported, match="has a prefix already"):
        PrefixTuning().attach(backbone, head=False)
    with tuner.disabled():
        assert backbone.positions == 40
    tuner.detach()
    with pytest.raises(NotSupported, match=r"prefix of 40 leaves no room.*40 positions"):
        PrefixTuning(length=40).attach(backbone)
    assert backbone.positions == 40


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("Bloom", {"n_layer": 2, "n_head": 4}, "no mask of pairs"),
        ("Falcon", {"alibi": True}, "no mask of pairs"),
        ("Qwen3Next", {"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
    ],
)
def test_networks_in_which_it_would_not_be_exact_are_refused(
    name: str, options: dict[str, object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DECODERS, name, {**DECODERS["GPTNeoX"], **options})
    with pytest.raises(NotSupported, match=reason):
        PrefixTuning().attach(build(name, "causal_lm"))
