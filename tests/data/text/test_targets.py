"""Sources and targets of encoder-decoders, as tokens and batches."""

from __future__ import annotations

import pytest

from gistcli.data.text import (
    Chat,
    Completion,
    Message,
    Plain,
    TargetEncoder,
    TextOptions,
    TextSplit,
    encode_sources,
    open_template,
    passages,
)
from gistcli.errors import DataError, RecipeError
from tests.data.text.tokens import CHATML, closed_words, letters

END = 2


def encoder(most: int = 20, most_target: int = 20, **options: object) -> TargetEncoder:
    chosen = TextOptions(**options)  # type: ignore[arg-type]
    return TargetEncoder(closed_words(), chosen, most, max_target_length=most_target)


def chat(*turns: tuple[str, str]) -> Chat:
    return Chat(tuple(Message(role, text) for role, text in turns), origin="c:1")


def test_both_end_and_every_token_of_the_target_is_learnt() -> None:
    (found,) = encoder().encode([Completion("w1 w2", " w3", "c:1")])
    assert found.input_ids.tolist() == [4, 5, END]
    assert found.labels.tolist() == [6, END]
    assert (found.supervised, len(found), found.name) == (2, 3, "c:1")
    parts = passages(found, closed_words())
    assert [(text.strip(), learnt) for text, learnt in parts] == [
        ("w1 w2 </s>", False),
        ("w3 </s>", True),
    ]


def test_what_is_generated_from_is_what_was_trained_on() -> None:
    examples = [Completion("w1 w2", "w3"), chat(("user", "w7"), ("assistant", "w8")), Plain("w9")]
    tokenizer = closed_words()
    sources = encode_sources(examples, tokenizer, None, 20)
    assert sources == [[4, 5, END], [10, END], [12, END]]
    trained = encoder().encode(examples[:2])
    assert [e.input_ids.tolist() for e in trained] == sources[:2]
    with pytest.raises(DataError, match="more than 2 tokens"):
        encode_sources(examples, tokenizer, None, 2)


def test_a_chat_is_read_up_to_its_last_answer() -> None:
    turns = (("user", "a b"), ("assistant", "c"), ("user", "d"), ("assistant", "e"))
    tokenizer = letters(CHATML)
    template = open_template(tokenizer, "tokenizer")
    made = TargetEncoder(tokenizer, TextOptions(), 200, template, max_target_length=200)
    (found,) = made.encode([chat(*turns)])
    assert tokenizer.base.decode(found.labels.tolist()) == "e<|im_end|>"
    source = tokenizer.base.decode(found.input_ids.tolist())
    assert source.endswith("<|im_start|>assistant\n")
    assert "c<|im_end|>" in source
    with pytest.raises(RecipeError, match="chat template"):
        encoder().encode([chat(*turns)])
    with pytest.raises(DataError, match="without an answer"):
        encoder().encode([chat(("user", "w1"))])


def test_long_examples_are_left_out_or_cut_and_counted() -> None:
    long = Completion("w1 w2 w3 w4", "w5 w6 w7", "c:1")
    short = Completion("w1", "w2", "c:2")
    dropping = encoder(most=4)
    assert [e.name for e in dropping.encode([long, short])] == ["c:2"]
    assert dropping.counts.notes(4) == ["1 example left out: longer than 4 tokens"]
    wordy = encoder(most_target=3)
    assert [e.name for e in wordy.encode([long, short])] == ["c:2"]
    assert wordy.counts.notes(20) == ["1 example left out: targets longer than 3 tokens"]
    for side, kept in (("right", [4, 5, 6, END]), ("left", [5, 6, 7, END])):
        cutting = encoder(most=4, most_target=3, truncate=side)
        (cut,) = cutting.encode([long])
        assert cut.input_ids.tolist() == kept
        assert cut.labels.tolist() == [8, 9, 10]  # it does not end here
        assert cutting.counts.notes(4) == ["1 example cut to 4 tokens", "1 target cut to 3 tokens"]


def test_what_has_no_target_is_an_error() -> None:
    with pytest.raises(DataError, match=r"c:1\) without a single token"):
        encoder().encode([Completion("w1", "", "c:1")])
    with pytest.raises(DataError, match="is a document"):
        encoder().encode([Plain("w1", "c:1")])


def test_sources_and_targets_are_padded_apart() -> None:
    examples = [Completion("w1 " * 12, "w2"), Completion("w1", "w2 w3 w4")]
    split = TextSplit(encoder().encode(examples), None, pad_id=0, capacity=20)
    (batch,) = split.batches(2, seed=None)
    assert batch["input_ids"].shape == (2, 16)
    assert batch["attention_mask"].sum(dim=1).tolist() == [13, 2]
    assert batch["labels"].tolist() == [[5, END, *[-100] * 6], [5, 6, 7, END, *[-100] * 4]]
