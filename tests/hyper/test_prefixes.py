"""Prefixes as they are used: moved to the beginning, in batches, in transformers and in PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DynamicCache

from gistcli.artifacts.prefix_export import EMBEDDINGS, Front, flattened, peft_config
from gistcli.backbones.prefix import Prefix, cache_name
from gistcli.backbones.prefix_file import FILE, metadata_of, read_prefix
from gistcli.backbones.rotary import at_zero
from gistcli.errors import NotSupported, Refused
from gistcli.evaluate.language.generation import require_hooks_only
from gistcli.hyper.hyperllama import HyperTuner
from gistcli.hyper.section import Hyper
from gistcli.methods.lora import Lora
from tests.backbones.text_kinds import network
from tests.hyper.episodes import FAMILIES, GISTS, LLAMA, attach, decoder, episodes, front, query

# PEFT asks for what transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
SCALED = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10,
    "rope_theta": 10_000.0,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
STEPS = 8


def greedy(model: Any, ids: Tensor, length: int, **more: Any) -> list[int]:
    """What transformers alone writes behind a prefix of that length."""
    seen = torch.ones(len(ids), length + ids.shape[1], dtype=torch.long)
    out = model.generate(
        input_ids=ids,
        attention_mask=seen,
        max_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **more,
    )
    written: list[int] = out[0, ids.shape[1] :].tolist()
    return written


def by_hand(model: Any, ids: Tensor) -> list[int]:
    """The likeliest token after the other, every time from the whole text."""
    for _ in range(STEPS):
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    written: list[int] = ids[0, -STEPS:].tolist()
    return written


@pytest.mark.parametrize(
    ("name", "scaled"), [*((n, False) for n in FAMILIES), ("Llama", True), ("GPTNeoX", True)]
)
def test_a_text_behind_a_moved_prefix_is_a_query_in_the_pass_with_the_examples(
    name: str, scaled: bool
) -> None:
    options = {"rope_parameters": SCALED} if scaled else {}
    tuner, batch = attach(decoder(name, **options), FAMILIES[name]), episodes()
    rotary: Any = tuner.network.network.rotary_emb
    assert (rotary.attention_scaling != 1) == scaled
    places = {row: batch["spans"][row] == 3 for row in range(3)}
    unlabelled = {n: t for n, t in batch.items() if n != "labels"}
    with torch.no_grad():
        wanted = tuner(unlabelled).logits
        prefixes = tuner.compress(front(batch))
        still = tuner._compressed(front(batch), False)
        for row in range(3):
            for prefix, near in ((prefixes, True), (still, False)):
                one = Prefix(prefix.keys[:, row : row + 1], prefix.values[:, row : row + 1])
                with tuner.prefix_in_use(one):
                    found = tuner(query(batch, row)).logits[0]
                error = (found - wanted[row, places[row]]).abs().max()
                assert (error < 2e-5) if near else (error > 1e-3)


def test_every_row_has_a_prefix_of_its_own_length_of_examples_with_padding_on_either_side() -> None:
    tuner, batch = attach(decoder()), episodes((7, 1, 4))
    right = front(batch)
    left = {}
    for key, table in right.items():
        lengths = right["attention_mask"].sum(1)
        rows = [row.roll(len(row) - int(n)) for row, n in zip(table, lengths, strict=True)]
        left[key] = torch.stack(rows)
    assert not torch.equal(left["spans"], right["spans"])
    alone = [tuner.compress(front(batch, row)) for row in range(3)]
    for padded in (right, left):
        found = tuner.compress(padded)
        assert found.keys.shape == (2, 3, 2, GISTS, 8)
        assert found.start is None
        for row, one in enumerate(alone):
            for ours, theirs in ((found.keys, one.keys), (found.values, one.values)):
                torch.testing.assert_close(ours[:, row], theirs[:, 0], atol=1e-5, rtol=0)


def test_texts_of_a_batch_each_read_their_own_prefix() -> None:
    tuner, batch = attach(decoder(), adapt_downstream=True), episodes(queries=((5,), (5,), (5,)))
    texts = [query(batch, row) for row in range(3)]
    together = {n: torch.cat([t[n] for t in texts]) for n in texts[0]}
    with torch.no_grad():
        prefixes = tuner.compress(front(batch))
        with tuner.prefix_in_use(prefixes):
            found = tuner(together).logits
        for row, text in enumerate(texts):
            with tuner.prefix_in_use(tuner.compress(front(batch, row))):
                torch.testing.assert_close(found[row], tuner(text).logits[0], atol=1e-5, rtol=0)
        plain = tuner(texts[0]).logits
        with tuner.prefix_in_use(prefixes), tuner.prefix_in_use(None):
            assert torch.equal(tuner(texts[0]).logits, plain)
        assert not torch.allclose(plain, found[:1], atol=1e-2)


def test_what_reads_prefixes_reads_texts_too_and_examples_in_between() -> None:
    tuner, batch = attach(decoder(), adapt_downstream=True), episodes()
    text = query(batch, 0)
    with torch.no_grad():
        wanted = tuner(batch).logits
        prefix = tuner.compress(front(batch, 0))
        with tuner.prefix_in_use(prefix):
            behind = tuner(text).logits
            assert torch.equal(tuner(batch).logits, wanted)
            again = tuner.compress(front(batch, 0))
            assert torch.equal(again.keys, prefix.keys)
            assert torch.equal(tuner(text).logits, behind)
        with tuner.disabled(), tuner.prefix_in_use(prefix):
            assert torch.equal(tuner(text).logits, tuner.backbone(text).logits)


@pytest.mark.parametrize("name", ["Llama", "GPTNeoX", "Phi3"])
def test_transformers_and_peft_write_what_the_hypernetwork_reads(name: str, tmp_path: Path) -> None:
    tuner, batch = attach(decoder(name), FAMILIES[name]), episodes()
    ids = query(batch, 0)["input_ids"]
    prefix = tuner.compress(front(batch, 0))
    require_hooks_only(tuner)
    with tuner.prefix_in_use(prefix):
        ours = greedy(tuner.network.hf, ids, 0)
    without = greedy(tuner.network.hf, ids, 0)
    assert ours != without

    stored = {"keys": prefix.keys.contiguous(), "values": prefix.values.contiguous()}
    save_file(stored, tmp_path / FILE, metadata_of("f" * 64, name, GISTS))
    base: Any = network(name, "causal_lm")
    back = load_file(tmp_path / FILE)
    cache = DynamicCache(config=base.config)
    for layer, (keys, values) in enumerate(zip(back["keys"], back["values"], strict=True)):
        cache.update(keys, values, layer)
    assert greedy(base, ids, GISTS, **{cache_name(base): cache}) == ours
    again = read_prefix(tmp_path / FILE, "f" * 64)
    with tuner.prefix_in_use(again):
        assert greedy(tuner.network.hf, ids, 0) == ours

    whole = Front(flattened(prefix), prefix)
    config = peft_config(whole, name, "CAUSAL_LM", base.config)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    embeddings = whole.embeddings.contiguous()
    save_file({EMBEDDINGS: embeddings}, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    tuned = PeftModel.from_pretrained(base, tmp_path).eval()
    assert by_hand(tuned, ids) == ours


def test_a_prefix_at_the_beginning_stays_there() -> None:
    backbone = decoder()
    keys, values = torch.randn(2, 2, 1, 2, GISTS, 8)
    assert torch.equal(at_zero(backbone, Prefix(keys, values)).keys, keys)


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("GPT2", {}, "positions that are no rotation"),
        ("Llama", {"rope_parameters": DYNAMIC}, r"\(dynamic\)"),
    ],
)
def test_networks_whose_keys_cannot_be_moved_are_refused(
    name: str, options: dict[str, Any], why: str
) -> None:
    backbone = decoder(name, **options)
    hooks = [dict(m._forward_hooks) for m in backbone.modules()]
    with pytest.raises(NotSupported, match=why):
        Hyper().wrap(LLAMA).attach(backbone)
    assert hooks == [dict(m._forward_hooks) for m in backbone.modules()]
    # nothing is moved where nothing is compressed
    assert isinstance(Hyper(context="full").wrap(Lora()).attach(backbone), HyperTuner)


def test_layers_that_turn_no_keys_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    def half(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return q, k * 0.5

    backbone = decoder()
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", half)
    with pytest.raises(NotSupported, match="layers with positions of another kind"):
        Hyper().wrap(LLAMA).attach(backbone)


def test_another_number_of_gists_is_refused_on_both_sides() -> None:
    tuner, batch = attach(decoder()), front(episodes())
    short = {**batch, "spans": batch["spans"].clone()}
    short["spans"][0, 7] = 1
    with pytest.raises(Refused, match=r"Rows have \[2, 3\] gist tokens, and .* has 3"):
        tuner.compress(short)
    prefix = tuner.compress(batch)
    more = Prefix(prefix.keys.repeat(1, 1, 1, 2, 1), prefix.values.repeat(1, 1, 1, 2, 1))
    with (
        pytest.raises(Refused, match=r"has \[2, 2, 6, 8\] layers, .* makes \[2, 2, 3, 8\]"),
        tuner.prefix_in_use(more),
    ):
        pass
