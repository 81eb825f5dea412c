"""Compression segments: A and D in the context, B and C behind it, cut out of documents."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from gistcli.data.episodes import (
    CONTEXT,
    GIST,
    QUERY,
    EpisodeOptions,
    SegmentSplit,
    class_to_label,
    passages,
)
from gistcli.data.text import (
    Completion,
    Plain,
    TextOptions,
    examples_of,
    open_texts,
    open_tokenizer,
)
from gistcli.errors import DataError, RecipeError
from gistcli.recipe import DataSection
from gistcli.train.source import data_fingerprint
from tests.data.episodes.made import family_words, said

WORDS = family_words()
SMALL = EpisodeOptions(gists=4, example_tokens=21, query_tokens=17)
"""Room for 16 tokens of A and D, and 16 of B and C."""


def counted(count: int, start: int = 0) -> str:
    """w0 w1 w2 ... with the place of each word in it, up to 60."""
    return " ".join(f"w{(start + i) % 60}" for i in range(count))


def places(tokenizer_text: str) -> list[int]:
    return [int(word[1:]) for word in tokenizer_text.split() if word.startswith("w")]


def test_a_row_is_cut_out_of_one_stretch_in_the_order_a_b_c_d() -> None:
    split = SegmentSplit([Plain(counted(45), "doc")], WORDS, SMALL)
    assert len(split) == 1
    lengths = set()
    for epoch in range(200):
        episode = split.episode(0, seed=0, epoch=epoch)
        [query] = episode.queries
        outer = places(said(WORDS, episode.context))
        b, c = places(said(WORDS, query.prompt)), places(said(WORDS, query.answer))
        assert said(WORDS, episode.context).startswith("<s> w")
        assert said(WORDS, query.prompt).startswith("<s> w")
        inner = [*b, *c]
        assert inner == [*range(inner[0], inner[-1] + 1)]
        before = [place for place in outer if place < inner[0]]
        after = [place for place in outer if place > inner[-1]]
        assert [*before, *inner, *after] == [*range(before[0], after[-1] + 1)]
        assert (len(outer), len(inner)) == (16, 16)
        assert min(map(len, (before, b, c, after))) >= 1
        lengths.add((len(before), len(b)))
    assert len(lengths) > 20


def test_labels_are_on_c_only() -> None:
    split = SegmentSplit([Plain(counted(30, i), f"d{i}") for i in range(5)], WORDS, SMALL)
    batch = next(split.batches(5, seed=1))
    for ids, spans, labels, index in zip(
        *(batch[k] for k in ("input_ids", "spans", "labels", "index")), strict=True
    ):
        episode = split.episode(int(index), seed=1)
        assert {*spans.tolist()} <= {0, CONTEXT, GIST, QUERY}
        assert labels[labels != -100].tolist() == episode.queries[0].answer.tolist()
        assert torch.equal(ids[labels != -100], labels[labels != -100])
        assert int((spans == GIST).sum()) == 4
        assert int((spans <= GIST).logical_and(spans > 0).sum()) <= 21
        assert int((spans == QUERY).sum()) <= 17


def test_short_documents_are_dropped_and_counted_and_long_ones_divided() -> None:
    documents = [Plain(counted(15), "short"), Plain(counted(16), "least"), Plain(counted(320), "x")]
    split = SegmentSplit(documents, WORDS, SMALL)
    assert split.dropped == 1
    assert split.names[0] == "least"
    assert 8 <= len(split) - 1 <= 12
    assert all(name.startswith("x") for name in split.names[1:])
    text = documents[2].text
    stretches = [s for s in split.stretches if s.document is documents[2]]
    assert "".join(s.text for s in stretches) == text
    assert all(one.end == other.start for one, other in pairwise(stretches))
    assert all(s.text.startswith("w") for s in stretches)
    lengths = [len(split.episode(i, seed=0).context) for i in range(len(split))]
    assert max(lengths) == 17
    with pytest.raises(DataError, match=r"No document has 16 tokens \(of 1\)"):
        SegmentSplit(documents[:1], WORDS, SMALL)


def test_batches_repeat_and_depend_on_text_and_options() -> None:
    documents = [Plain(counted(40, i), f"d{i}") for i in range(7)]
    split, again = (SegmentSplit(documents, WORDS, SMALL) for _ in range(2))
    assert split.batches_per_epoch(2) == -(-len(split) // 2)
    for one, other in zip(
        [*split.batches(2, seed=4, epoch=1)][2:],
        again.batches(2, seed=4, epoch=1, start_batch=2),
        strict=True,
    ):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert data_fingerprint(split) == data_fingerprint(again)
    assert split.fingerprint() == again.fingerprint()
    changed = SegmentSplit([Plain("w9 " + counted(40), "d0"), *documents[1:]], WORDS, SMALL)
    assert data_fingerprint(changed) != data_fingerprint(split)
    wider = SegmentSplit(documents, WORDS, EpisodeOptions(4, example_tokens=22, query_tokens=17))
    assert data_fingerprint(wider) != data_fingerprint(split)


def test_what_is_no_document_and_budgets_without_room_are_refused() -> None:
    with pytest.raises(DataError, match=r"and 1 row \(f:1\) are none"):
        SegmentSplit([Completion("a", "b", "f:1")], WORDS, SMALL)
    with pytest.raises(RecipeError, match="leave no room for two segments"):
        SegmentSplit([Plain(counted(20))], WORDS, EpisodeOptions(4, example_tokens=6))


def test_passages_of_the_built_in_family_are_documents() -> None:
    tasks = class_to_label()["train"][:6]
    documents = passages(tasks, 16)
    assert [d.origin for d in documents] == [task.name for task in tasks]
    split = SegmentSplit(documents, WORDS, SMALL)
    assert len(split) == 6
    assert len(split.longest(2)["spans"]) == 2
    assert all(len(split.episode(i, seed=0).queries[0]) == 17 for i in range(6))


def test_real_documents_fill_their_rows(assets: Path) -> None:
    tokenizer = open_tokenizer(assets / "stories260K")
    data = DataSection(path=str(assets / "text" / "instruct" / "c4_demo.jsonl"), val_fraction=0,
                       test_fraction=0)  # fmt: skip
    catalog = open_texts(data, TextOptions(format="plain"), base=Path())
    options = EpisodeOptions(example_tokens=256, query_tokens=128)
    split = SegmentSplit(examples_of(catalog, "train"), tokenizer, options)
    assert len(split) > 300
    filled = []
    for batch in split.batches(8, seed=0):
        spans = batch["spans"]
        filled.append(float((spans > 0).sum(1).float().mean()) / 384)
        assert int((spans == QUERY).sum(1).max()) <= 128
        assert spans.shape[1] <= 384
    assert np.mean(filled) > 0.75
