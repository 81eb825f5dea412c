"""Splits of text: batches that can be taken up anywhere, labels, fingerprints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gistcli.data.text import (
    Completion,
    Encoded,
    Encoder,
    Example,
    Labelled,
    Plain,
    TextOptions,
    TextSplit,
    load_texts,
)
from gistcli.errors import DataError
from gistcli.reporting import Reporter
from gistcli.train.source import data_fingerprint, micro_batches
from tests.data.text.tokens import words

MODES: list[dict[str, Any]] = [{}, {"packing": True}, {"group_by_length": True}]


class Listener(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)


def plain(count: int = 40) -> list[Example]:
    lengths = np.random.default_rng(1).integers(1, 20, count)
    return [
        Plain(" ".join(f"w{(i + j) % 50}" for j in range(n)), f"f:{i}")
        for i, n in enumerate(lengths)
    ]


def split_of(
    examples: list[Example],
    train: bool = True,
    classes: list[str] | None = None,
    pairs: bool = False,
    reporter: Reporter | None = None,
    **options: Any,
) -> TextSplit:
    made = Encoder(words(pairs), TextOptions(**options), 32)
    reporter = reporter or Reporter()
    return load_texts("data", examples, made, train=train, classes=classes, reporter=reporter)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("mode", MODES)
def test_an_epoch_taken_up_in_the_middle_goes_on_as_if_it_had_not_stopped(
    mode: dict[str, Any],
) -> None:
    split, again = split_of(plain(), **mode), split_of(plain(), **mode)
    for epoch in (0, 3):
        whole = list(split.batches(4, seed=7, epoch=epoch))
        assert len(whole) == split.batches_per_epoch(4)
        rest = list(again.batches(4, seed=7, epoch=epoch, start_batch=2))
        assert all(same(a, b) for a, b in zip(whole[2:], rest, strict=True))
    first, other = (next(split.batches(4, seed=7, epoch=e)) for e in (0, 1))
    assert not torch.equal(first["index"], other["index"])
    assert not torch.equal(first["index"], next(split.batches(4, seed=8))["index"])


@pytest.mark.parametrize("mode", MODES)
def test_every_token_is_seen_once_in_an_epoch_over_all_processes(mode: dict[str, Any]) -> None:
    split = split_of(plain(), **mode)
    assert len(split) == len(split.names) == len(split.labels) == len({*split.names})
    seen, tokens, learnt = [], 0, 0
    for rank in range(3):
        batches = list(split.batches(4, seed=1, rank=rank, world=3))
        assert len(batches) == split.batches_per_epoch(4)
        for batch in batches:
            seen += batch["index"].tolist()
            tokens += int(batch["attention_mask"].sum())
            learnt += int((batch["labels"] != -100).sum())
            assert len({len(tensor) for tensor in batch.values()}) == 1
    assert sorted(seen) == list(range(len(split)))
    assert tokens == split.tokens
    assert learnt == split.supervised == split.tokens - 40  # not the first of each sequence


def test_a_packed_batch_holds_the_sequences_of_its_rows_unchanged() -> None:
    split = split_of(plain(), packing=True)
    assert split.rows is not None
    batch = next(split.batches(3, seed=5))
    assert len(split) < 40
    assert split.names[0].endswith("more")
    for i, unit in enumerate(batch["index"].tolist()):
        for number, place in enumerate(split.rows[unit], 1):
            here = batch["segments"][i] == number
            sequence = split.sequences[place]
            assert batch["input_ids"][i][here].tolist() == sequence.input_ids.tolist()
            assert batch["labels"][i][here].tolist() == sequence.labels.tolist()
            assert batch["position_ids"][i][here].tolist() == list(range(len(sequence)))


def test_packing_and_grouping_leave_fewer_places_empty() -> None:
    examples = plain(400)
    bare, packed, grouped = (split_of(examples, **mode).efficiency(8) for mode in MODES)
    assert bare < 0.65
    assert packed > 0.95
    assert grouped > bare + 0.1  # the rest is rounding to multiples of 8
    split = split_of(examples)
    places = [b["attention_mask"].float() for b in split.batches(8, seed=0)]
    filled = sum(p.sum() for p in places) / sum(p.numel() for p in places)
    assert bare == pytest.approx(float(filled))


def test_evaluation_keeps_the_order_and_packs_nothing() -> None:
    split = split_of(plain(), train=False, packing=True, group_by_length=True)
    assert split.rows is None
    indices = torch.cat([b["index"] for b in split.batches(7, seed=None)])
    assert indices.tolist() == list(range(40))


def test_classes_are_ids_and_values_are_floats_with_types_where_the_tokenizer_has_them() -> None:
    pair: list[Example] = [Labelled("w0", "w1 w2", c, f"f:{c}") for c in ("b", "a", "c")]
    split = split_of(pair, classes=["a", "b", "c"], pairs=True, packing=True)
    assert split.labels.tolist() == [1, 0, 2]
    assert split.rows is None
    batch = next(split.batches(2, seed=None))
    assert batch["labels"].tolist() == [1, 0]
    assert batch["token_type_ids"][0, :6].tolist() == [0, 0, 0, 1, 1, 1]
    valued = split_of([Labelled("w0", None, 2.5), Labelled("w1", None, 0.0)])
    assert valued.labels.tolist() == [2.5, 0.0]
    assert valued.labels.dtype == torch.float32


def test_labels_that_are_missing_or_unknown_are_named() -> None:
    good: Example = Labelled("w0", None, "yes", "f:1")
    with pytest.raises(DataError, match=r"1 example \(f:2: 'yse'\).*none of the classes") as caught:
        split_of([good, Labelled("w0", None, "yse", "f:2")], classes=["no", "yes"])
    assert "Did you mean 'yes'" in caught.value.hint
    with pytest.raises(DataError, match=r"1 example \(f:3\) without a label"):
        split_of([good, Labelled("w0", None, None, "f:3")], classes=["no", "yes"])


def test_the_fingerprints_notice_another_word_and_another_length() -> None:
    a: list[Example] = [Completion("w0", " w1", "f:1"), Completion("w2", " w3", "f:2")]
    b: list[Example] = [a[0], Completion("w2", " w4", "f:2")]
    assert data_fingerprint(split_of(a)) == data_fingerprint(split_of(list(a)))
    assert data_fingerprint(split_of(a)) != data_fingerprint(split_of(b))
    assert split_of(a).fingerprint() == split_of(list(a)).fingerprint()
    assert split_of(a).fingerprint() != split_of(b).fingerprint()
    assert split_of(a).fingerprint() != split_of(a, packing=True).fingerprint()


def test_the_loop_cuts_a_batch_into_micro_batches() -> None:
    batch = next(split_of(plain(), packing=True).batches(5, seed=0))
    pieces = micro_batches(batch, 2)
    assert [len(piece["input_ids"]) for piece in pieces] == [2, 2, 1]
    assert torch.equal(torch.cat([p["segments"] for p in pieces]), batch["segments"])


def test_what_was_found_and_left_out_is_told() -> None:
    listener = Listener()
    long: Example = Completion(" ".join(f"w{i}" for i in range(40)), " w1", "f:9")
    split = split_of([Completion("w0 w1", " w2", "f:1"), long], reporter=listener)
    assert split.counts.too_long == 1
    assert listener.warned == ["data: 1 example left out: longer than 32 tokens"]
    assert listener.said == ["data: 1 sequence, 5 tokens, 40% learnt, longest 5"]


def test_padding_does_not_go_beyond_the_positions_of_the_network() -> None:
    sequences = [
        Encoded(np.arange(n, dtype=np.int32), np.full(n, -100, np.int32)) for n in (13, 4, 9)
    ]
    for capacity, width in ((13, 13), (16, 16), (100, 16)):
        split = TextSplit(sequences, None, pad_id=0, capacity=capacity)
        (batch,) = split.batches(3, seed=None)
        assert {batch[key].shape for key in ("input_ids", "attention_mask", "labels")} == {
            (3, width)
        }
        assert batch["attention_mask"].sum(dim=1).tolist() == [13, 4, 9]
