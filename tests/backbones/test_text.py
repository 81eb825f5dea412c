"""Text networks: their logits are transformers' own, and every role names what it should."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor

from gistcli.backbones.base import Origin
from gistcli.backbones.causal import Causal
from gistcli.backbones.encoder import Encoder
from gistcli.backbones.segments import positions_within
from gistcli.backbones.sites import Switch
from gistcli.backbones.supervision import IGNORED, supervised
from gistcli.backbones.text import TextBackbone
from gistcli.errors import NotSupported, UnknownName
from tests.backbones.text_kinds import DECODERS, ENCODERS, VOCABULARY, batch, build, network

UNSCALED = [name for name in DECODERS if name not in ("Granite", "Cohere")]


@torch.no_grad()
@pytest.mark.parametrize("name", [*ENCODERS, *UNSCALED])
def test_a_classifiers_logits_are_those_of_transformers(name: str) -> None:
    backbone, inputs = build(name), batch()
    ours, theirs = backbone(inputs), network(name)(**inputs).logits
    assert torch.allclose(ours.logits, theirs, atol=1e-6)
    assert theirs.std() > 0.1
    assert ours.pooled.shape == (3, 32)
    assert ours.tokens.shape == (3, 10, 32)
    assert torch.equal(backbone.classify(ours.pooled), ours.logits)


@torch.no_grad()
@pytest.mark.parametrize("name", DECODERS)
def test_a_language_models_logits_are_those_of_transformers(name: str) -> None:
    backbone, inputs = build(name, "causal_lm"), batch()
    theirs: Tensor = network(name, "causal_lm")(**inputs).logits
    ours = backbone(inputs)
    assert torch.allclose(ours.logits, theirs, atol=1e-6)
    assert ours.pooled is ours.tokens
    labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], IGNORED)
    asked = {**inputs, "labels": labels}
    picked = backbone(asked).logits
    assert torch.allclose(picked, theirs[supervised(asked).where], atol=1e-6)
    assert len(picked) == int(inputs["attention_mask"].sum()) - 3
    backbone.defers_logits = True
    later = backbone(asked)
    assert later.logits.shape == (0, VOCABULARY)
    assert torch.equal(backbone.classify(later.tokens[supervised(asked).where]), picked)


@torch.no_grad()
@pytest.mark.parametrize("name", DECODERS)
def test_packed_texts_get_the_outputs_that_they_get_alone(name: str) -> None:
    backbone, inputs = build(name, "causal_lm"), batch()
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    texts = [ids[:n] for ids, n in zip(inputs["input_ids"], lengths, strict=True)]
    packed = torch.cat([*texts, torch.zeros(2, dtype=torch.long)])[None]
    numbers = [torch.full((n,), i + 1) for i, n in enumerate(lengths)]
    segments = torch.cat([*numbers, torch.zeros(2, dtype=torch.long)])[None]
    together = backbone({"input_ids": packed, "segments": segments}).logits[0]
    alone = torch.cat([backbone({"input_ids": ids[None]}).logits[0] for ids in texts])
    assert torch.allclose(together[: len(alone)], alone, atol=1e-5)
    mixed = backbone({"input_ids": packed}).logits[0]
    assert not torch.allclose(mixed[: len(alone)], alone, atol=1e-2)
    assert torch.isfinite(together).all()


def test_positions_start_anew_in_every_text() -> None:
    segments = torch.tensor([[1, 1, 1, 2, 2, 0, 0], [1, 2, 3, 3, 3, 3, 3]])
    assert positions_within(segments).tolist() == [[0, 1, 2, 0, 1, 0, 1], [0, 0, 0, 1, 2, 3, 4]]


def test_a_network_that_no_mask_cuts_apart_takes_no_packed_rows() -> None:
    config = transformers.BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4)
    model = transformers.BloomForCausalLM(config).eval()
    backbone = Causal(model, Origin("bloom", "BloomForCausalLM"))
    with torch.no_grad():
        assert torch.equal(backbone(batch()).logits, model(**batch()).logits)
    with pytest.raises(NotSupported, match="packed texts would mix"):
        backbone({**batch(), "segments": batch()["attention_mask"]})


def roles(backbone: TextBackbone) -> dict[str, tuple[str, int, int]]:
    return {s.role: (s.family_name, s.d_in, s.d_out) for s in backbone.all_sites() if s.layer == 1}


def test_roles_of_the_families() -> None:
    llama = roles(build("Llama"))
    assert llama["key"] == ("self_attn.k_proj", 32, 16)
    assert llama["fc_out"] == ("mlp.down_proj", 48, 32)
    names = {"query", "key", "value", "attn_out", "fc_in", "fc_out"}
    gated = {*names, "fc_gate"}
    assert llama.keys() == gated
    for name in ("Bert", "Roberta", "DistilBert", "Electra"):
        assert roles(build(name)).keys() == names, name
    assert roles(build("Gemma2")).keys() == gated
    assert roles(build("GPT2")).keys() == {*names, "qkv"}
    assert roles(build("GPTNeoX")).keys() == {"qkv", "attn_out", "fc_in", "fc_out"}
    assert roles(build("Phi3")).keys() == {*gated, "qkv", "gate_up"}
    assert roles(build("ModernBert")).keys() == {*gated, "qkv", "gate_up"}
    assert roles(build("Phi3"))["value"] == ("self_attn.qkv_proj", 32, 16)


@torch.no_grad()
@pytest.mark.parametrize(("fused", "parts"), [("GPT2", "qkv"), ("Phi3", "qkv gate_up")])
def test_row_slices_are_what_the_network_cuts_out(fused: str, parts: str) -> None:
    backbone = build(fused)
    sites = {s.role: s for s in backbone.all_sites() if s.layer == 0}
    inputs: dict[str, Tensor] = {}
    for role in parts.split():
        site = sites[role]
        site.module.register_forward_hook(
            lambda _, args, y, role=role: inputs.update({role: args[0], f"{role} out": y})
        )
    with backbone.capture([sites["value"]]) as seen:
        backbone(batch())
    whole = inputs["qkv out"]
    assert torch.equal(seen[sites["value"].name], whole[..., -sites["value"].d_out :])
    for role in ("query", "key", "value"):
        site = sites[role]
        bias = getattr(site.module, "bias", None)
        product = inputs["qkv"] @ site.weight().t()
        product = product if bias is None else product + bias[site.rows]
        assert torch.allclose(product, whole[..., site.rows], atol=1e-5)


def test_an_unknown_family_is_named_by_its_own_modules() -> None:
    backbone = build("Electra")
    block = backbone.blocks[0]
    block.odd = block.intermediate.dense
    del block.intermediate.dense
    block.intermediate.renamed = block.odd
    del block.odd
    assert [s.name for s in backbone.sites(["intermediate.renamed"])] == [
        "electra.encoder.layer.0.intermediate.renamed"
    ]
    with pytest.raises(UnknownName, match="No point 'mlp'"):
        backbone.point("mlp", 0)


def test_outputs_are_norms_and_maps_and_no_tables() -> None:
    llama = [o.name for o in build("Llama").outputs()]
    assert llama[-1] == "model.norm"
    assert len(llama) == 2 * 9 + 1
    roberta = [o.name for o in build("Roberta").outputs()]
    assert roberta[0] == "roberta.embeddings.LayerNorm"
    assert len(roberta) == 1 + 2 * 8
    gemma = {o.name.rpartition(".")[2]: o.offset for o in build("Gemma2").outputs()}
    assert gemma["norm"] == gemma["input_layernorm"] == 1
    assert gemma["q_proj"] == 0
    assert {o.offset for o in build("Cohere", "causal_lm").outputs()} == {0}
    assert {o.offset for o in build("Roberta").outputs()} == {0}


@torch.no_grad()
@pytest.mark.parametrize("name", ["Llama", "Gemma2", "GPT2", "Roberta", "DebertaV2", "ModernBert"])
@pytest.mark.parametrize("after", ["attention", "mlp"])
def test_a_point_stands_at_the_end_of_its_branch(name: str, after: str) -> None:
    """With the branch's output replaced by minus the residual, nothing passes the block's sum."""
    backbone, seen = build(name), []
    point = backbone.point(after, 1)
    assert point.width == 32

    def blend(x_in: Tensor, y: Tensor, residual: Tensor) -> Tensor:
        assert x_in.shape == y.shape == residual.shape
        seen.append(torch.equal(x_in, residual))
        return -residual

    switch = Switch()
    point.map_output(blend, switch)
    first = backbone(batch()).tokens[0]
    other = {**batch(), "input_ids": batch()["input_ids"].flip(1)}
    if after == "mlp":
        # all that is left of the text is nothing: every real position is the same
        second = backbone({**other, "attention_mask": batch()["attention_mask"]}).tokens[0]
        assert torch.allclose(first, second, atol=1e-4)
        assert torch.allclose(first[0], first[1], atol=1e-4)
    post_norm = name in ("Roberta", "DebertaV2")
    assert seen[0] == post_norm


def test_a_new_head_is_new_in_all_its_parts() -> None:
    backbone = build("Roberta")
    assert backbone.head_names() == [
        "classifier.dense.weight", "classifier.dense.bias",
        "classifier.out_proj.weight", "classifier.out_proj.bias",
    ]  # fmt: skip
    before = {n: p.clone() for n, p in backbone.model.named_parameters()}
    backbone.reset_head(7, seed=3)
    after = dict(backbone.model.named_parameters())
    assert after["classifier.out_proj.weight"].shape == (7, 32)
    assert not torch.equal(after["classifier.dense.weight"], before["classifier.dense.weight"])
    assert {n for n in before if n not in backbone.head_names()} == {
        n for n, p in before.items() if p.shape == after[n].shape and torch.equal(p, after[n])
    }
    assert backbone(batch()).logits.shape == (3, 7)
    assert not any(p.requires_grad for p in after.values())
    again = build("Roberta")
    again.reset_head(7, seed=3)
    assert torch.equal(again(batch()).logits, backbone(batch()).logits)
    heads = {
        "Bert": {"classifier"},
        "DebertaV2": {"pooler", "classifier"},
        "DistilBert": {"pre_classifier", "classifier"},
        "ModernBert": {"head", "classifier"},
        "Llama": {"score"},
    }
    for name, parts in heads.items():
        assert {n.partition(".")[0] for n in build(name).head_names()} == parts


def test_a_language_model_keeps_its_head() -> None:
    backbone = build("Llama", "causal_lm")
    weight = backbone.hf.lm_head.weight.clone()
    backbone.reset_head(7)
    assert backbone.head_names() == []
    assert torch.equal(backbone.hf.lm_head.weight, weight)
    assert backbone.hf.lm_head.weight is backbone.hf.model.embed_tokens.weight


def test_encoders_take_no_packed_rows() -> None:
    with pytest.raises(NotSupported, match="one text a row"):
        build("Bert")({**batch(), "segments": batch()["attention_mask"]})


def test_the_last_real_token_is_found_on_either_side() -> None:
    backbone, right = build("Llama"), batch()
    left = {k: v.clone() for k, v in right.items()}
    for row, n in enumerate(right["attention_mask"].sum(dim=1).tolist()):
        for value in left.values():
            value[row] = value[row].roll(10 - n)
    left["position_ids"] = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        assert torch.allclose(backbone(left).logits, backbone(right).logits, atol=1e-5)


def test_a_head_that_is_computed_otherwise_is_refused() -> None:
    class Otherwise(type(network("Electra"))):  # type: ignore[misc]
        def forward(self, **inputs: Tensor) -> object:
            found = super().forward(**inputs)
            found.logits = found.logits.flip(-1)
            return found

    model = network("Electra")
    Encoder(model, Origin("x", "x"))
    model.__class__ = Otherwise
    Otherwise.__name__ = "OtherwiseForSequenceClassification"
    with pytest.raises(NotSupported, match="not known here"):
        Encoder(model, Origin("x", "x"))
