"""Encoder-decoders: outputs and losses are transformers' own, and roles name what they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gistcli.backbones import open_backbone
from gistcli.backbones.seq2seq import Seq2Seq
from gistcli.backbones.sites import Switch
from gistcli.backbones.supervision import IGNORED
from gistcli.errors import NotSupported, UnknownName
from tests.backbones.text_kinds import FLAN, PAD, VOCABULARY, batch, build, network

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "T5": ("T5", {}),
    "Flan-T5": ("T5", FLAN),
    "mT5": ("MT5", {}),
    "UMT5": ("UMT5", {}),
}


def pairs(rows: int = 3) -> dict[str, Tensor]:
    """Sources and targets of different lengths."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(3, VOCABULARY, (rows, 7), generator=generator)
    labels[torch.arange(7) >= 7 - 2 * torch.arange(rows)[:, None]] = IGNORED
    return {**batch(rows), "labels": labels}


def seq2seq(name: str, **more: Any) -> Seq2Seq:
    found = build(name, "seq2seq", **more)
    assert isinstance(found, Seq2Seq)
    return found


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_loss_are_those_of_transformers(kind: str) -> None:
    name, more = KINDS[kind]
    backbone, inputs = seq2seq(name, **more), pairs()
    theirs = network(name, "seq2seq", **more)(**inputs)
    ours = backbone(inputs)
    where, targets = backbone.supervised(inputs)
    assert torch.allclose(ours.logits, theirs.logits[where], atol=1e-6)
    assert theirs.logits.std() > 0.1
    assert len(targets) == 7 + 5 + 3  # nothing is shifted a second time
    assert float(F.cross_entropy(ours.logits, targets)) == pytest.approx(float(theirs.loss))
    assert ours.pooled is ours.tokens
    assert ours.layout.lengths == {"text": 7}
    backbone.defers_logits = True
    later = backbone(inputs)
    assert later.logits.shape == (0, VOCABULARY)
    assert torch.equal(backbone.classify(later.pooled[where]), ours.logits)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_the_words_that_the_decoder_begins_with(kind: str) -> None:
    name, more = KINDS[kind]
    backbone, inputs = seq2seq(name, **more), batch()
    backbone.set_label_words(("yes", "no", "maybe"), (9, 4, 30))
    ours = backbone({**inputs, "labels": torch.tensor([0, 1, 2])})
    start = torch.full((3, 1), PAD)
    theirs = network(name, "seq2seq", **more)(**inputs, decoder_input_ids=start).logits
    assert torch.allclose(ours.logits, theirs[:, 0, [9, 4, 30]], atol=1e-6)
    assert torch.equal(backbone.classify(ours.pooled), ours.logits)
    assert ours.pooled.shape == (3, 32)
    assert backbone.head_names() == []
    assert backbone.task == "classification"
    backbone.set_label_words((), ())
    assert backbone.task == "seq2seq"
    assert not hasattr(backbone.config, "label_words")


def test_what_chooses_among_the_targets_tokens_is_no_place_for_a_classifier() -> None:
    """Its target has one token, so that no gradient reaches the decoder's queries and keys."""
    backbone = seq2seq("T5")
    choosing = ("SelfAttention.q", "SelfAttention.k")

    def chosen() -> set[str]:
        found = {s.name for s in backbone.all_sites()} | {o.name for o in backbone.outputs()}
        return {name for name in found if name.startswith("decoder.") and name.endswith(choosing)}

    assert chosen()
    backbone.set_label_words(("yes", "no"), (9, 4))
    assert not chosen()


def test_classes_without_words_are_refused() -> None:
    with pytest.raises(NotSupported, match="label words"):
        seq2seq("T5")({**batch(), "labels": torch.tensor([0, 1, 2])})


def test_packed_rows_are_refused() -> None:
    with pytest.raises(NotSupported, match="one text a row"):
        seq2seq("T5")({**pairs(), "segments": batch()["attention_mask"]})


@torch.no_grad()
def test_padding_of_source_and_target_changes_nothing() -> None:
    backbone, inputs = seq2seq("T5"), pairs()
    whole, _ = backbone(inputs).logits, backbone.supervised(inputs)
    alone = [
        backbone(
            {
                "input_ids": inputs["input_ids"][row : row + 1, : 10 - 2 * row],
                "labels": inputs["labels"][row : row + 1, : 7 - 2 * row],
            }
        ).logits
        for row in range(3)
    ]
    assert torch.allclose(torch.cat(alone), whole, atol=1e-5)


def test_blocks_are_numbered_through_and_roles_name_both_kinds_of_attention() -> None:
    backbone = seq2seq("UMT5")
    assert backbone.depth == 5
    assert backbone.block_paths[:3] == ["encoder.block.0", "encoder.block.1", "decoder.block.0"]
    queries = backbone.sites(["query"])
    both = [("query", 2), ("cross_query", 2), ("query", 3), ("cross_query", 3)]
    of_all = [("query", 0), ("query", 1), *both, ("query", 4), ("cross_query", 4)]
    assert [(s.role, s.layer) for s in queries] == of_all
    assert [s.name for s in queries] == [s.name for s in backbone.sites(["q"])]  # as PEFT has it
    assert [s.layer for s in backbone.sites(["cross_attn_out"])] == [2, 3, 4]
    assert {s.role for s in backbone.sites(["SelfAttention.v"])} == {"value"}
    assert [s.layer for s in backbone.sites(["query"], (0,))] == [0]
    every = {"query", "key", "value", "attn_out", "cross_query", "cross_key", "cross_value",
             "cross_attn_out", "fc_in", "fc_out"}  # fmt: skip
    assert {s.role for s in seq2seq("T5").all_sites()} == every
    gated = {s.role: s.family_name for s in seq2seq("T5", **FLAN).all_sites()}
    assert gated.keys() == every | {"fc_gate"}
    assert gated["fc_gate"].endswith("wi_0")  # it passes the non-linearity
    assert gated["fc_in"].endswith("wi_1")


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("after", ["attention", "cross_attention", "mlp"])
def test_a_point_stands_in_front_of_the_residual_sum(after: str, layer: int) -> None:
    backbone, inputs = seq2seq("T5", **FLAN), pairs()
    if after == "cross_attention" and layer == 0:
        with pytest.raises(UnknownName, match="cross_attention"):
            backbone.point(after, layer)
        return
    seen: dict[str, Tensor] = {}

    def keep(x_in: Tensor, y: Tensor, residual: Tensor) -> Tensor:
        seen.update(x_in=x_in, y=y, residual=residual)
        return y

    switch = Switch()
    point = backbone.point(after, layer)
    point.map_output(keep, switch)
    place = {"attention": 0, "cross_attention": 1, "mlp": -1}[after]
    branch: Any = backbone.blocks[layer]
    layer_module = branch.layer[place]
    outputs: list[Tensor] = []
    layer_module.register_forward_hook(
        lambda _, __, y: outputs.append(y if isinstance(y, Tensor) else y[0])
    )
    backbone(inputs)
    assert torch.equal(seen["residual"] + seen["y"], outputs[0])
    assert torch.equal(layer_module.layer_norm(seen["residual"]), seen["x_in"])
    assert seen["y"].shape[-1] == point.width == 32


def test_norms_have_outputs_and_no_shift() -> None:
    norms = [o for o in seq2seq("T5").outputs() if o.kind == "norm"]
    assert len(norms) == 2 * 2 + 2 * 3 + 2
    assert not any(o.has_bias or o.offset for o in norms)


@pytest.mark.parametrize("kind", ["T5", "Flan-T5"])
def test_a_folder_is_opened_as_it_was_saved(kind: str, tmp_path: Path) -> None:
    name, more = KINDS[kind]
    model = network(name, "seq2seq", **more)
    model.save_pretrained(tmp_path)
    backbone = open_backbone(str(tmp_path)).eval()
    assert isinstance(backbone, Seq2Seq)
    assert backbone.positions is None
    with torch.no_grad():
        ours = backbone(pairs()).logits
        theirs = model(**pairs()).logits[pairs()["labels"] != IGNORED]
    assert torch.allclose(ours, theirs, atol=1e-6)
    tied = backbone.hf.lm_head.weight is backbone.hf.shared.weight
    assert tied == (kind == "T5")
    empty = open_backbone(str(tmp_path), meta=True)
    assert (empty.depth, empty.count()) == (4, backbone.count())
    assert [s.name for s in empty.all_sites()] == [s.name for s in backbone.all_sites()]


def test_half_precision_keeps_the_maps_that_overflow(tmp_path: Path) -> None:
    network("T5", "seq2seq").half().save_pretrained(tmp_path)
    backbone = open_backbone(str(tmp_path))
    (wo, *_), (query, *_) = backbone.sites(["fc_out"]), backbone.sites(["query"])
    assert (wo.module.weight.dtype, query.module.weight.dtype) == (torch.float32, torch.float16)


@pytest.mark.parametrize("task", ["causal_lm", "regression"])
def test_other_tasks_have_no_class(task: str, tmp_path: Path) -> None:
    network("T5", "seq2seq").save_pretrained(tmp_path)
    with pytest.raises(NotSupported, match=task):
        open_backbone(str(tmp_path), task=task)
