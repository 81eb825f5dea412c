"""Tokens put into texts: PEFT and transformers themselves are the oracles of where they stand."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from gistcli.backbones.sites import Switch
from gistcli.backbones.text import TextBackbone
from gistcli.data.text.collate import collate_prompts
from gistcli.errors import NotSupported
from tests.backbones.text_kinds import (
    DECODERS,
    ENCODER_DECODERS,
    ENCODERS,
    PAD,
    VOCABULARY,
    batch,
    build,
    network,
)
from tests.writing import written

TASK = "classification"
CLASSIFIERS = [name for name in DECODERS if name not in ("Granite", "Cohere")]
PROMPTS = [[5, 6, 7], [9, 10, 11, 12, 13, 14], [20]]
GREEDY = {"max_new_tokens": 8, "pad_token_id": PAD, "eos_token_id": None, "do_sample": False}


def vectors(backbone: TextBackbone, length: int = 3, seed: int = 0) -> Tensor:
    """Not far from embeddings of words."""
    generator = torch.Generator().manual_seed(seed)
    table_VD = backbone.base.get_input_embeddings().weight.detach()
    ids = torch.randint(3, VOCABULARY, (length,), generator=generator)
    noise = torch.randn(length, table_VD.shape[1], generator=generator)
    return table_VD[ids] + 0.1 * noise


def insert(backbone: TextBackbone, slot: str, new_PD: Tensor) -> Switch:
    switch = Switch()
    backbone.insert_tokens(slot, len(new_PD), lambda n: new_PD.expand(n, -1, -1), switch)
    return switch


def alone(row: int) -> dict[str, Tensor]:
    """One text of the batch, without padding."""
    inputs = batch()
    length = int(inputs["attention_mask"][row].sum())
    return {"input_ids": inputs["input_ids"][row : row + 1, :length]}


def pefts(name: str, prompts_PD: Tensor) -> Any:
    """PEFT's prompt tuning of a language model with these prompts."""
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(prompts_PD))
    model = peft.get_peft_model(network(name, "causal_lm"), config).eval()
    model.prompt_encoder["default"].embedding.weight.data = prompts_PD.clone()
    return model


# --- prompts in front of a decoder's text -------------------------------------------------------


# PEFT asks transformers by a name that the latter has given up
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.filterwarnings("ignore:Position ids are not supported")
@torch.no_grad()
@pytest.mark.parametrize("name", DECODERS)
def test_prompts_act_as_pefts_do_in_one_pass_and_while_text_is_generated(name: str) -> None:
    backbone = build(name, "causal_lm")
    prompts_PD, inputs = vectors(backbone), batch()
    without = backbone(inputs).logits
    insert(backbone, "prompts", prompts_PD)
    model = pefts(name, prompts_PD)
    real = inputs["attention_mask"].bool()
    theirs = model(**inputs).logits[:, len(prompts_PD) :]
    features = backbone(inputs)
    assert torch.allclose(features.logits[real], theirs[real], atol=1e-5)
    assert not torch.allclose(features.logits[real], without[real], atol=1e-2)
    assert torch.allclose(backbone.hf(**inputs).logits[real], theirs[real], atol=1e-5)
    assert features.tokens[:, features.layout.span("text")].equal(features.pooled)

    together = backbone.hf.generate(**collate_prompts(PROMPTS, PAD), **GREEDY)
    for row, prompt in enumerate(PROMPTS):
        assert together[row, 6:].tolist() == written(model, prompt, 8)


@torch.no_grad()
@pytest.mark.parametrize("extra", [{"num_beams": 3}, {"use_cache": False}], ids=str)
def test_beams_and_steps_without_a_cache_find_the_prompts_too(extra: dict[str, Any]) -> None:
    """Mistral's window is 4: padding between prompts and text would push them out of it."""
    backbone = build("Mistral", "causal_lm")
    insert(backbone, "prompts", vectors(backbone))
    together = backbone.hf.generate(**collate_prompts(PROMPTS, PAD), **GREEDY | extra)
    for row, prompt in enumerate(PROMPTS):
        single = backbone.hf.generate(**collate_prompts([prompt], PAD), **GREEDY | extra)
        assert together[row, -8:].tolist() == single[0, -8:].tolist()
    if "use_cache" in extra:
        cached = backbone.hf.generate(**collate_prompts(PROMPTS, PAD), **GREEDY)
        assert torch.equal(together, cached)


@torch.no_grad()
def test_positions_count_on_from_prompts_to_given_ones() -> None:
    backbone, inputs = build("GPT2", "causal_lm"), batch()
    insert(backbone, "prompts", vectors(backbone))
    numbered = {**inputs, "position_ids": torch.arange(10)[None]}
    assert torch.allclose(backbone(numbered).logits, backbone(inputs).logits, atol=1e-6)
    moved = {**inputs, "position_ids": torch.arange(10)[None] + 1}
    assert not torch.allclose(backbone(moved).logits, backbone(inputs).logits, atol=1e-3)


@torch.no_grad()
def test_nothing_of_generation_is_left_behind() -> None:
    backbone, inputs = build("Llama", "causal_lm"), batch()
    before = backbone(inputs)
    switch = insert(backbone, "prompts", vectors(backbone))
    backbone.hf.generate(**collate_prompts(PROMPTS, PAD), **GREEDY)
    switch.enabled = False
    after = backbone(inputs)
    assert torch.equal(after.tokens, before.tokens)
    assert after.layout == before.layout
    switch.release()
    assert torch.equal(backbone(inputs).logits, before.logits)


def test_inserted_tokens_take_room_where_they_have_positions() -> None:
    decoder, encoder = build("GPT2", "causal_lm"), build("Roberta")
    assert (decoder.positions, encoder.positions) == (40, 39)
    switch = insert(decoder, "prompts", vectors(decoder))
    insert(encoder, "prompts", vectors(encoder))
    assert (decoder.positions, encoder.positions) == (37, 39)
    switch.enabled = False
    assert decoder.positions == 40
    with pytest.raises(NotSupported, match="no room for a text: GPT2LMHeadModel has 40 positions"):
        insert(build("GPT2", "causal_lm"), "prompts", vectors(decoder, 40))


def test_packed_texts_take_no_tokens() -> None:
    backbone = build("Llama", "causal_lm")
    insert(backbone, "prompts", vectors(backbone))
    ids = batch()["input_ids"]
    with pytest.raises(NotSupported, match="one text a row"):
        backbone({"input_ids": ids, "segments": torch.ones_like(ids)})


# --- a gist token behind it ---------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_gist_token_sees_all_of_the_text_and_changes_none_of_it(name: str) -> None:
    backbone, inputs = build(name), batch()
    base = backbone(inputs).logits
    insert(backbone, "gist", vectors(backbone))
    features = backbone(inputs)
    assert torch.allclose(features.logits, base, atol=1e-6)
    assert features.tokens.shape == (3, 13, 32)
    together = backbone.read_out(features, "gist")
    assert not torch.allclose(together, base, atol=1e-2)
    for row in range(3):
        single = backbone(alone(row))
        read = backbone.read_out(single, "gist")[0]
        assert torch.allclose(read, together[row], atol=1e-5)
    changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][:, 0] = 2
    far = name in ("Mistral", "Gemma2")  # two layers of windows of 4 do not reach that far
    now = backbone.read_out(backbone(changed), "gist")
    assert not torch.allclose(now[far * 2 :], together[far * 2 :], atol=1e-3)
    with torch.no_grad():
        features = backbone(inputs)
    assert torch.equal(features.logits, base)
    assert features.layout.lengths == {"cls": 0, "text": 10}


def test_prompts_gist_token_and_padding_on_either_side() -> None:
    backbone, inputs = build("Mistral"), batch()
    insert(backbone, "prompts", vectors(backbone, 2, seed=1))
    insert(backbone, "gist", vectors(backbone))
    ids = [row[:n].tolist() for row, n in zip(inputs["input_ids"], (10, 8, 6), strict=True)]
    left = backbone(collate_prompts(ids, PAD))
    right = backbone(inputs)
    assert right.layout.span("prompts") == slice(0, 2)
    assert right.layout.span("text") == slice(2, 12)
    assert right.layout.span("gist") == slice(12, 15)
    for features in (left, right):
        read = backbone.read_out(features, "gist")
        for row in range(3):
            single = backbone(alone(row))
            assert torch.allclose(single.logits[0], features.logits[row], atol=1e-5)
            assert torch.allclose(backbone.read_out(single, "gist")[0], read[row], atol=1e-5)


def test_a_network_that_predicts_tokens_takes_no_gist_token() -> None:
    backbone = build("Llama", "causal_lm")
    with pytest.raises(NotSupported, match="one answer a text") as caught:
        insert(backbone, "gist", vectors(backbone))
    assert "--no-gist" in caught.value.hint


# --- behind the class token of an encoder -------------------------------------------------------


def by_hand(backbone: TextBackbone, new_PD: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """Tokens (B, S, D) of transformers' own forward pass, beside the hooks, on embeddings."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    x = backbone.base.get_input_embeddings()(ids)
    extra, rows = len(new_PD), len(ids)
    arguments: dict[str, Tensor] = {
        "inputs_embeds": torch.cat([x[:, :1], new_PD.expand(rows, -1, -1), x[:, 1:]], dim=1),
        "attention_mask": torch.cat([torch.ones(rows, extra).long(), mask], dim=1),
    }
    name = type(backbone.model).__name__
    first = 1 if name.startswith("Roberta") else 0
    words = torch.arange(ids.shape[1]).expand(rows, -1) + first
    if first:
        words = torch.where(ids == PAD, PAD, words)
    cls = words[:, :1].expand(-1, extra)
    arguments["position_ids"] = torch.cat([cls, words], dim=1)
    if "token_type_ids" in inputs:
        types = inputs["token_type_ids"]
        arguments["token_type_ids"] = torch.cat([types[:, :1].expand(-1, extra), types], dim=1)
    found: Tensor = backbone.base.forward(**arguments).last_hidden_state
    return found


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODERS)
def test_tokens_of_an_encoder_stand_behind_the_class_token_at_its_position(name: str) -> None:
    backbone, inputs = build(name, type_vocab_size=2), batch()
    if name in ("Bert", "DebertaV2", "Electra"):
        inputs["token_type_ids"] = (torch.arange(10) > 4).long().expand(3, -1)
    gist, prompts = vectors(backbone, 2), vectors(backbone, 3, seed=1)
    base = backbone(inputs).logits
    insert(backbone, "prompts", prompts)
    insert(backbone, "gist", gist)
    features = backbone(inputs)
    expected = by_hand(backbone, torch.cat([gist, prompts]), inputs)
    assert torch.allclose(features.tokens, expected, atol=1e-5)
    assert [features.layout.span(s).start for s in ("cls", "gist", "prompts", "text")] == [
        0,
        1,
        3,
        6,
    ]
    text = torch.cat([expected[:, :1], expected[:, 6:]], dim=1)
    mask = inputs["attention_mask"]
    if name == "ModernBert":
        pooled = (text * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    else:
        pooled = backbone.pool_token(text[:, 0])
    assert torch.allclose(features.pooled, pooled, atol=1e-5)
    assert not torch.allclose(features.logits, base, atol=1e-2)
    for row in range(3):
        kept = {k: v[row : row + 1, : int(mask[row].sum())] for k, v in inputs.items()}
        single = backbone(kept)
        assert torch.allclose(single.logits[0], features.logits[row], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["Bert", "Roberta", "DebertaV2", "DistilBert", "Electra"])
def test_a_gist_token_is_read_as_the_network_reads_its_class_token(name: str) -> None:
    """A head that reads the first position, given the token's output there."""
    backbone, inputs = build(name), batch()
    insert(backbone, "gist", vectors(backbone, 1))
    features, model = backbone(inputs), backbone.hf
    tokens = features.tokens[:, 1:]
    if name == "Bert":
        expected = model.classifier(backbone.base.pooler(tokens))
    elif name == "DebertaV2":
        expected = model.classifier(model.pooler(tokens))
    elif name == "DistilBert":
        expected = model.classifier(torch.relu(model.pre_classifier(tokens[:, 0])))
    else:
        expected = model.classifier(tokens)
    assert torch.allclose(backbone.read_out(features, "gist"), expected, atol=1e-6)
    assert not torch.allclose(expected, features.logits, atol=1e-2)


def test_a_network_that_takes_no_embeddings_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("Llama")

    def forward(input_ids: Tensor, attention_mask: Tensor) -> None:
        raise AssertionError

    monkeypatch.setattr(model.model, "forward", forward)
    from gistcli.backbones.base import Origin
    from gistcli.backbones.causal import Causal

    backbone = Causal(model, Origin("odd", "LlamaForSequenceClassification"))
    with pytest.raises(NotSupported, match="it takes no inputs_embeds"):
        insert(backbone, "prompts", torch.zeros(1, 32))


# --- in an encoder-decoder ----------------------------------------------------------------------

WORDS = [5, 9, 13]


def labelling(name: str) -> Any:
    """A T5 that classifies by three words."""
    backbone: Any = build(name)
    backbone.set_label_words(["a", "b", "c"], WORDS)
    return backbone


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@torch.no_grad()
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_prompts_in_front_of_a_source_act_as_pefts_do(name: str) -> None:
    backbone, inputs = labelling(name), batch()
    prompts_PD = vectors(backbone)
    base = backbone(inputs).logits
    insert(backbone, "prompts", prompts_PD)
    config = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(network(name), config).eval()
    model.prompt_encoder["default"].embedding.weight.data[:3] = prompts_PD
    start = torch.full((3, 1), PAD)
    theirs = model(**inputs, decoder_input_ids=start).logits[:, 0, WORDS]
    ours = backbone(inputs).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, base, atol=1e-2)
    for row in range(3):
        assert torch.allclose(backbone(alone(row)).logits[0], ours[row], atol=1e-5)
    if name == "UMT5":  # transformers' own cache counts the encoder's blocks
        return
    options = {"max_new_tokens": 6, "num_beams": 2, "eos_token_id": None}
    written = backbone.hf.generate(**inputs, **options)
    start_too = GenerationConfig(**options, decoder_start_token_id=PAD, pad_token_id=PAD)
    assert torch.equal(written, model.generate(**inputs, generation_config=start_too))


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_a_gist_token_stands_behind_the_start_of_the_target(name: str) -> None:
    backbone, inputs = labelling(name), batch()
    base, new_GD = backbone(inputs).logits, vectors(backbone, 2)
    insert(backbone, "gist", new_GD)
    features, model = backbone(inputs), backbone.hf
    assert torch.allclose(features.logits, base, atol=1e-6)
    assert features.layout.span("gist") == slice(1, 3)
    start = model.get_input_embeddings()(torch.full((3, 1), PAD))
    tokens = model.decoder.forward(
        inputs_embeds=torch.cat([start, new_GD.expand(3, -1, -1)], dim=1),
        encoder_hidden_states=model.encoder(**inputs).last_hidden_state,
        encoder_attention_mask=inputs["attention_mask"],
        use_cache=False,
    ).last_hidden_state
    scale = 32**-0.5 if name in ("T5", "UMT5") else 1.0
    expected = scale * tokens[:, 1:].mean(dim=1) @ model.lm_head.weight[WORDS].t()
    read = backbone.read_out(features, "gist")
    assert torch.allclose(read, expected, atol=1e-5)
    assert not torch.allclose(read, base, atol=1e-2)
    with torch.no_grad():
        assert torch.equal(backbone(inputs).logits, base)
    backbone.set_label_words((), ())
    with pytest.raises(NotSupported, match="one answer a text"):
        insert(backbone, "gist", new_GD)
