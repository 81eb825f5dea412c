"""Which characters, and which tokens, of a chat are the assistant's."""

from __future__ import annotations

from pathlib import Path

import pytest

from gistcli.data.text import Chat, Encoder, Message, TextOptions, Tokenizer
from gistcli.data.text import open_template as opened
from gistcli.data.text.encoding import IGNORED
from gistcli.data.text.preview import passages
from gistcli.errors import DataError, NotFound, RecipeError
from tests.data.text.tokens import CHATML, FORGETFUL, MARKED, letters, words

CHAT = Chat(
    (
        Message("system", "be kind"),
        Message("user", "hello there. hello to you"),
        Message("assistant", "hello to you"),
        Message("user", "true?"),
        Message("assistant", " the answer is\n\ntrue "),
    ),
    origin="f.jsonl:7",
)


def learnt(chat: Chat, tokenizer: Tokenizer, train_on: str = "assistant") -> list[str]:
    """The passages that are learnt, decoded."""
    options = TextOptions(train_on=train_on)  # type: ignore[arg-type]
    encoder = Encoder(tokenizer, options, 512, opened(tokenizer, "tokenizer"))
    [encoded] = encoder.encode([chat])
    return [text for text, is_learnt in passages(encoded, tokenizer) if is_learnt]


def test_the_assistants_turns_and_their_ends_are_learnt() -> None:
    both = ["hello to you<|im_end|>", " the answer is\n\ntrue <|im_end|>"]
    assert learnt(CHAT, letters()) == both
    assert learnt(CHAT, letters(), "last") == both[1:]
    [everything] = learnt(CHAT, letters(), "all")
    whole = opened(letters(), "tokenizer").prompt(CHAT.messages)  # type: ignore[union-attr]
    assert "<|im_start|>" + everything + "<|im_start|>assistant\n" == whole


def test_words_that_occur_elsewhere_too_are_learnt_only_where_the_assistant_says_them() -> None:
    turns = (Message("user", "true"), Message("assistant", "true"), Message("user", "true"))
    assert learnt(Chat(turns), letters()) == ["true<|im_end|>"]
    assert learnt(Chat(turns * 2), letters()) == ["true<|im_end|>"] * 2


def test_a_turn_that_must_not_be_learnt_is_left_out() -> None:
    first, *others = CHAT.messages[1:]
    quiet = Message("assistant", "hello to you", trained=False)
    assert learnt(Chat((first, quiet, *others[1:])), letters()) == [
        " the answer is\n\ntrue <|im_end|>"
    ]


def test_marks_of_the_template_give_the_same_tokens_as_prefixes() -> None:
    for train_on in ("assistant", "last", "all"):
        assert learnt(CHAT, letters(MARKED), train_on) == learnt(CHAT, letters(CHATML), train_on)


def test_prefixes_agree_with_the_mask_that_transformers_makes_of_marks() -> None:
    tokenizer = letters(MARKED)
    chat = Chat((*CHAT.messages[:4], Message("assistant", "the answer")))
    made = tokenizer.base.apply_chat_template(
        [m.as_dict() for m in chat.messages],
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenize=True,
    )
    encoder = Encoder(letters(CHATML), TextOptions(), 512, opened(letters(CHATML), "tokenizer"))
    [encoded] = encoder.encode([chat])
    assert encoded.input_ids.tolist() == made["input_ids"]
    ends = encoded.input_ids == tokenizer.eos_id  # the marks leave the ends of turns out
    ours = (encoded.labels != IGNORED) & ~ends
    assert ours.astype(int).tolist() == made["assistant_masks"]


def test_the_end_of_a_turn_comes_from_the_generation_config_too() -> None:
    plain = letters(eos_token="<|endoftext|>")
    turn = plain.base.convert_tokens_to_ids("<|im_end|>")
    assert plain.stop_ids == {plain.eos_id}
    # nothing else ends this turn, so that the end of the sequence is appended and learnt
    assert learnt(CHAT, plain)[1].endswith("true <|im_end|>\n<|endoftext|>")
    told = Tokenizer.of(plain.base, {"eos_token_id": [plain.eos_id, turn]})
    assert learnt(CHAT, told)[1].endswith("true <|im_end|>")


def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_turn_named() -> None:
    with pytest.raises(DataError, match=r"f.jsonl:7: .* turn 3 \(assistant\)") as caught:
        learnt(CHAT, letters(FORGETFUL))
    assert "data.train_on" in caught.value.hint
    assert learnt(CHAT, letters(FORGETFUL), "last") == [
        "<think></think> the answer is\n\ntrue <|im_end|>"
    ]


FAMILIES = {
    # no opening of an answer, the end of sequence behind each
    "instructions in brackets": "{% for m in messages %}{% if m['role'] == 'user' %}"
    "[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] | trim }} <|endoftext|>"
    "{% endif %}{% endfor %}",
    # plain words, spaces between the turns, other names of roles
    "speakers by name": "{{ 'A chat. ' }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ 'USER: ' + m['content'] + ' ' }}{% else %}{{ 'MODEL: ' + m['content'] + '<|endoftext|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'MODEL:' }}{% endif %}",
    # a system prompt of its own where there is none
    "a default system prompt": "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nhello<|endoftext|>{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + m['content'] + '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_usual_kinds_of_templates_are_understood(family: str) -> None:
    answers = ["hello to you", "the answer is true"]
    turns = [t for a in answers for t in (Message("user", a), Message("assistant", a))]
    tokenizer = letters(FAMILIES[family], eos_token="<|endoftext|>")
    found = learnt(Chat(tuple(turns)), tokenizer)
    assert [text.replace("<|endoftext|>", "").strip() for text in found] == answers
    assert all(text.endswith("<|endoftext|>") for text in found)


def test_what_a_template_says_against_a_chat_is_passed_on() -> None:
    strict = "{{ raise_exception('no system here') if messages[0]['role'] == 'system' }}" + CHATML
    with pytest.raises(DataError, match=r"f.jsonl:7: .*no system here"):
        learnt(CHAT, letters(strict))
    few = "{% for m in messages %}{% generation %}x{% endgeneration %}{% endfor %}"
    with pytest.raises(DataError, match="marks 5 passages of 2 turns"):
        learnt(CHAT, letters(few))


def test_the_template_comes_from_tokenizer_file_or_chatml(tmp_path: Path) -> None:
    tokenizer = letters(template=None)
    assert opened(tokenizer, "tokenizer") is None
    (tmp_path / "own.jinja").write_text(CHATML, encoding="utf-8")
    own, built_in = opened(tokenizer, "own.jinja", tmp_path), opened(tokenizer, "chatml")
    assert own is not None
    assert built_in is not None
    assert own.prompt(CHAT.messages) == built_in.prompt(CHAT.messages)
    with pytest.raises(NotFound, match="there is no file"):
        opened(tokenizer, "other.jinja", tmp_path)
    with pytest.raises(RecipeError, match="no chat template") as caught:
        Encoder(tokenizer, TextOptions(), 512).encode([CHAT])
    assert "chatml" in caught.value.hint


def test_chatml_ends_turns_with_the_end_of_sequence_where_its_own_is_no_token() -> None:
    template = opened(words(), "chatml")
    assert template is not None
    text, [span] = template.spans(Chat((Message("user", "w1"), Message("assistant", "w2"))))
    assert text.startswith("<s><|im_start|>user\nw1</s>\n")
    assert text[slice(*span)] == "w2</s>\n"
    bare = words()
    bare.base.eos_token = None
    with pytest.raises(RecipeError, match=r"needs <\|im_end\|>"):
        opened(bare, "chatml")
