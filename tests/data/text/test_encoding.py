"""Examples as tokens and labels, and what happens to those that are too long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gistcli.data.text import (
    Chat,
    Completion,
    Encoded,
    Encoder,
    Example,
    Labelled,
    Message,
    Plain,
    TextOptions,
    Tokenizer,
    open_template,
    open_tokenizer,
)
from gistcli.data.text.encoding import IGNORED
from gistcli.errors import DataError, NotFound, NotSupported, RecipeError
from tests.data.text.tokens import letters, words

EOS, BOS, FIRST = 2, 1, 3  # of `words`, whose word w0 has the id 3


def encoder(tokenizer: Tokenizer, max_length: int = 64, **options: Any) -> Encoder:
    template = open_template(tokenizer, "tokenizer")
    return Encoder(tokenizer, TextOptions(**options), max_length, template)


def pairs(encoded: Encoded) -> list[tuple[int, int]]:
    return list(zip(encoded.input_ids.tolist(), encoded.labels.tolist(), strict=True))


def one(made: Encoder, example: Example) -> Encoded:
    [encoded] = made.encode([example])
    return encoded


def text(count: int, start: int = 0) -> str:
    return " ".join(f"w{i}" for i in range(start, start + count))


def test_a_completion_and_the_end_are_learnt_and_the_prompt_is_not() -> None:
    encoded = one(encoder(words()), Completion("w0 w1 ", "w2"))
    no = IGNORED
    assert pairs(encoded) == [(BOS, no), (FIRST, no), (FIRST + 1, no), (FIRST + 2, FIRST + 2),
                              (EOS, EOS)]  # fmt: skip
    assert encoded.supervised == 2


def test_padding_and_end_of_one_id_do_not_hide_the_end() -> None:
    tokenizer = words()
    assert tokenizer.pad_id == tokenizer.eos_id == EOS
    assert one(encoder(tokenizer), Plain("w0")).labels.tolist() == [IGNORED, FIRST, EOS]


def test_the_prompts_tokens_are_those_of_the_prompt_alone() -> None:
    tokenizer = letters()
    made = encoder(tokenizer)
    joined = Completion("hello there. hel", "lo")
    whole, prompt = tokenizer.ids([joined.prompt + joined.completion, joined.prompt])
    assert whole[: len(prompt)] != prompt  # the tokens would merge
    encoded = one(made, joined)
    assert encoded.input_ids[: len(prompt)].tolist() == prompt
    assert (encoded.labels[: len(prompt)] == IGNORED).all()
    assert tokenizer.base.decode(encoded.input_ids[len(prompt) :]) == "lo<|im_end|>"
    assert made.counts.apart == 1
    natural = Completion("hello there.", " hello")
    apart = one(made, natural)
    assert apart.input_ids.tolist() == [*tokenizer.ids(["hello there. hello"])[0], tokenizer.eos_id]
    assert made.counts.apart == 1


def test_plain_text_is_learnt_whole_and_long_text_cut_into_pieces_without_loss() -> None:
    made = encoder(words(), max_length=5)
    encoded = made.encode([Plain(text(10), "a"), Plain(text(2), "b")])
    assert [e.name for e in encoded] == ["a#1", "a#2", "a#3", "b"]
    assert all(len(e) <= 5 and e.input_ids[0] == BOS for e in encoded)
    learnt = [label for e in encoded[:3] for label in e.labels.tolist() if label != IGNORED]
    assert learnt == [*range(FIRST, FIRST + 10), EOS]
    assert made.counts.pieces == 2


@pytest.mark.parametrize(
    ("truncate", "ids", "learnt"),
    [
        ("right", [BOS, FIRST, FIRST + 1, FIRST + 2, FIRST + 3], 2),
        ("left", [BOS, FIRST + 2, FIRST + 3, FIRST + 4, EOS], 4),
    ],
)
def test_long_completions_are_cut_on_the_side_that_is_asked_for(
    truncate: str, ids: list[int], learnt: int
) -> None:
    made = encoder(words(), max_length=5, truncate=truncate)
    encoded = one(made, Completion("w0 w1 ", "w2 w3 w4"))
    assert encoded.input_ids.tolist() == ids
    assert encoded.supervised == learnt
    assert made.counts.cut == 1


def test_what_is_too_long_is_left_out_and_counted() -> None:
    long, short = Completion(text(5), " w7", "long"), Completion("w0", " w1", "short")
    for truncate in (None, "drop", "right"):  # right: nothing learnt would be left
        made = encoder(words(), max_length=5, truncate=truncate)
        assert [e.name for e in made.encode([long, short])] == ["short"]
        assert made.counts.too_long == 1
        assert made.counts.examples == 2
        assert made.counts.notes(5) == ["1 example left out: longer than 5 tokens"]
    with pytest.raises(DataError, match="All 1 examples are longer than 5 tokens"):
        encoder(words(), max_length=5).encode([long])


def test_whole_trailing_turns_of_a_long_chat_are_left_out() -> None:
    tokenizer = letters()
    turns = [Message("user", "hello"), Message("assistant", "hello there.")] * 4
    chats = [Chat(tuple(turns[: 2 * n]), origin=str(n)) for n in (1, 2, 3, 4)]
    full = encoder(tokenizer, 512).encode(chats)
    room = len(full[1]) + 3
    for truncate in (None, "drop"):
        made = encoder(tokenizer, room, truncate=truncate)
        encoded = made.encode(chats)
        assert [e.name for e in encoded] == ["1", "2", "3", "4"]
        for cut in encoded[1:]:
            assert cut.input_ids.tolist() == full[1].input_ids.tolist()
            assert cut.labels.tolist() == full[1].labels.tolist()
        assert made.counts.turns == 2 + 4
        assert made.counts.too_long == 0
    last = encoder(tokenizer, room, train_on="last").encode(chats)[3]
    assert last.supervised == full[0].supervised
    tiny = encoder(tokenizer, len(full[0]))
    assert [len(e) for e in tiny.encode(chats)] == [len(full[0])] * 4
    with pytest.raises(DataError, match="All 4 examples"):
        encoder(tokenizer, len(full[0]) - 1).encode(chats)


def test_an_example_without_a_token_to_learn_is_named() -> None:
    tokenizer = letters(template="{% for m in messages %}{{ m['role'] }}\n{% endfor %}")
    tokenizer.base.eos_token = None
    bare = Tokenizer(tokenizer.base, frozenset())
    chat = Chat((Message("user", "a"), Message("assistant", "b")), origin="f.jsonl:3")
    ignoring = "{% for m in messages %}{{ m['content'] if m['role'] == 'user' }}{% endfor %}"
    bare.base.chat_template = ignoring
    with pytest.raises(DataError, match=r"1 example \(f.jsonl:3\) without a single token to learn"):
        encoder(bare).encode([chat])


def test_texts_for_classification_get_the_tokenizers_own_special_tokens() -> None:
    tokenizer = words(pairs=True)
    long = Labelled(text(6), text(3, 10), "x", "a")
    short = Labelled("w0", "w1", "y", "b")
    made = encoder(tokenizer, max_length=10)
    cut, whole = made.encode([long, short])
    assert whole.input_ids.tolist() == [BOS, FIRST, EOS, FIRST + 1, EOS]
    assert whole.type_ids is not None
    assert whole.type_ids.tolist() == [0, 0, 0, 1, 1]
    assert (whole.labels == IGNORED).all()
    assert [cut.target, whole.target] == ["x", "y"]
    kept = [BOS, *range(FIRST, FIRST + 4), EOS, *range(FIRST + 10, FIRST + 13), EOS]
    assert cut.input_ids.tolist() == kept  # the longer of the two was cut
    assert made.counts.cut == 1
    left = encoder(tokenizer, max_length=10, truncate="drop")
    assert [e.name for e in left.encode([long, short])] == ["b"]
    joined = one(encoder(words()), Labelled("w0", "w1", "x"))
    assert joined.input_ids.tolist() == [BOS, FIRST, FIRST + 1]
    assert joined.type_ids is None


def test_an_encoding_in_parts_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    examples: list[Example] = [Plain(text(n % 7 + 1)) for n in range(20)]
    examples[5], examples[6] = Completion("w1", " w2"), Completion("w3", " w4")
    whole = encoder(words()).encode(examples)
    monkeypatch.setattr("gistcli.data.text.encoding._CHUNK", 3)
    for a, b in zip(whole, encoder(words()).encode(examples), strict=True):
        assert np.array_equal(a.input_ids, b.input_ids)
        assert np.array_equal(a.labels, b.labels)


def test_the_length_is_bounded_by_model_and_tokenizer() -> None:
    tokenizer = words()
    assert tokenizer.max_length(None) == 2048
    assert tokenizer.max_length(None, positions=512) == 512
    assert tokenizer.max_length(128, positions=512) == 128
    with pytest.raises(RecipeError, match="the model has 512 positions"):
        tokenizer.max_length(513, positions=512)
    with pytest.raises(RecipeError, match="nothing can follow"):
        tokenizer.max_length(1)
    tokenizer.base.model_max_length = 77
    assert tokenizer.max_length(None, positions=512) == 77


def test_a_tokenizer_is_opened_from_the_models_folder(tmp_path: Path) -> None:
    words().base.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    found = open_tokenizer(tmp_path / "model")
    assert found.stop_ids == {2, 7}
    assert found.prefix == [BOS]
    assert found.ids(["w0 w1"]) == [[FIRST, FIRST + 1]]
    (tmp_path / "bare").mkdir()
    with pytest.raises(NotFound, match="has no tokenizer"):
        open_tokenizer(tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        open_tokenizer(tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": []}}')
    with pytest.raises(NotSupported, match="Python code of its own"):
        open_tokenizer(tmp_path / "bare")


def test_the_real_tokenizer_of_a_llama_sets_the_prompt_apart(assets: Path) -> None:
    tokenizer = open_tokenizer(assets / "stories260K")
    assert tokenizer.prefix == [1]
    encoded = one(encoder(tokenizer), Completion("Once upon\n", "a time"))
    whole = tokenizer.base("Once upon\na time")["input_ids"]
    assert encoded.input_ids.tolist() == [*whole, 2]
    learnt = encoded.input_ids[encoded.labels != IGNORED].tolist()
    assert tokenizer.base.decode(learnt) == "a time</s>"
