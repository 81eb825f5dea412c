"""Generated text against a loop without cache, padding or transformers' generate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from gistcli.data.text.tokenizer import open_tokenizer
from gistcli.errors import DataError, NotSupported
from gistcli.evaluate.language.generation import Decoding, Generated, generate
from gistcli.methods.base import Method, Tuner
from gistcli.methods.prefix import PrefixTuning
from gistcli.methods.prompt import Prompt
from tests.evaluate.language.words import KINDS, PROMPTS, gpt2, tokenizer, tuned
from tests.objectives.tiny_lm import tiny_lm

TWELVE = Decoding(max_new_tokens=12)
NEVER = frozenset({999})


def by_hand(tuner: Tuner, prompt: Sequence[int], steps: int, stop: frozenset[int]) -> list[int]:
    """The likeliest token, one after the other, each by a pass over the whole sequence."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            logits_TV = tuner({"input_ids": torch.tensor([ids])}).logits[0]
            ids.append(int(logits_TV[-1].argmax()))
            if ids[-1] in stop:
                return ids[len(prompt) : -1]
    return ids[len(prompt) :]


@pytest.fixture(params=sorted(KINDS))
def tuner(request: pytest.FixtureRequest) -> Tuner:
    return tuned(KINDS[request.param]())


def ids(found: Sequence[Generated]) -> list[list[int]]:
    return [list(g.tokens) for g in found]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_greedy_text_depends_on_its_prompt_alone(tuner: Tuner, batch_size: int) -> None:
    found = generate(tuner, tokenizer(), PROMPTS, TWELVE, batch_size)
    assert ids(found) == [by_hand(tuner, p, 12, frozenset({2})) for p in PROMPTS]
    assert len({g.text for g in found}) == len(PROMPTS)


@pytest.mark.parametrize("batch_size", [1, 100])
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("method", [PrefixTuning(length=3), Prompt(length=3)], ids=str)
def test_what_stands_in_front_of_the_text_is_there_in_every_row(
    method: Method, kind: str, batch_size: int
) -> None:
    torch.manual_seed(1)
    tuner = method.attach(KINDS[kind]()).eval()
    found = generate(tuner, tokenizer(), PROMPTS, TWELVE, batch_size)
    assert ids(found) == [by_hand(tuner, p, 12, frozenset({2})) for p in PROMPTS]
    with tuner.disabled():
        assert ids(generate(tuner, tokenizer(), PROMPTS, TWELVE, batch_size)) != ids(found)


def test_what_stands_in_front_takes_its_positions_from_the_text() -> None:
    tuner = PrefixTuning(length=10).attach(gpt2()).eval()
    prompt = [1, *range(3, 51)]
    found = generate(tuner, tokenizer(NEVER), [prompt], TWELVE, 1)
    assert ids(found) == [by_hand(tuner, prompt, 64 - 10 - 49, NEVER)]
    with pytest.raises(DataError, match=r"prompt 0 \(54 tokens"):
        generate(tuner, tokenizer(NEVER), [[4] * 54], TWELVE, 1)


def test_the_tuned_network_writes_and_not_the_pretrained_one(tuner: Tuner) -> None:
    text = ids(generate(tuner, tokenizer(), PROMPTS, TWELVE, 8))
    with tuner.disabled():
        assert ids(generate(tuner, tokenizer(), PROMPTS, TWELVE, 8)) != text


def test_text_holds_neither_prompt_nor_special_tokens_and_ends_at_a_stop(tuner: Tuner) -> None:
    whole = ids(generate(tuner, tokenizer(NEVER), PROMPTS, TWELVE, 8))
    stop = frozenset({whole[0][5], whole[3][2]})
    found = generate(tuner, tokenizer(stop), PROMPTS, TWELVE, 8)
    assert ids(found) == [by_hand(tuner, p, 12, stop) for p in PROMPTS]
    ended = [any(t in stop for t in tokens) for tokens in whole]
    assert [g.finished for g in found] == ended
    assert ended[0]
    for each in found:
        assert each.text == " ".join(f"w{i}" for i in each.tokens if i > 2)


def test_every_text_has_its_own_limit(tuner: Tuner) -> None:
    found = generate(tuner, tokenizer(NEVER), PROMPTS, replace(TWELVE, max_length=23), 100)
    assert [len(g.tokens) for g in found] == [12, 12, 2, 12, 12]
    assert ids(found) == [by_hand(tuner, p, min(12, 23 - len(p)), NEVER) for p in PROMPTS]
    assert not any(g.finished for g in found)


def test_a_text_ends_where_the_positions_end_and_holds_up_no_other() -> None:
    tuner = tuned(gpt2())
    prompts = [[1, *range(3, 60), 9, 9], [1, 30], [1, *range(3, 60)]]
    found = ids(generate(tuner, tokenizer(NEVER), prompts, TWELVE, 100))
    steps = [64 - 60, 12, 64 - 58]
    assert found == [by_hand(tuner, p, n, NEVER) for p, n in zip(prompts, steps, strict=True)]
    assert [len(t) for t in found] == steps


def test_prompts_that_leave_no_room_are_refused_before_any_is_answered(tuner: Tuner) -> None:
    prompts = [[1], [], [4] * 64, [4] * 63]
    with pytest.raises(DataError, match=r"2 of 4 prompts .* prompt 1 \(0 .* prompt 2 \(64 tokens"):
        generate(tuner, tokenizer(), prompts, TWELVE, 8)
    with pytest.raises(DataError, match="prompt 0"):
        generate(tuner, tokenizer(), [[4] * 5], Decoding(max_length=5), 8)


def test_what_the_model_recommends_for_decoding_does_not_come_in(tuner: Tuner) -> None:
    text = ids(generate(tuner, tokenizer(), PROMPTS, TWELVE, 8))
    config = tuner.backbone.hf.generation_config
    config.update(do_sample=True, temperature=9.0, repetition_penalty=5.0, top_k=3, num_beams=3)
    assert ids(generate(tuner, tokenizer(), PROMPTS, TWELVE, 8)) == text


def test_draws_follow_from_the_seed_and_leave_the_generators_as_they_were() -> None:
    tuner = tuned(tiny_lm())
    drawing = replace(TWELVE, sample=True, temperature=2.0, seed=4)
    before = torch.get_rng_state()
    texts = [ids(generate(tuner, tokenizer(), PROMPTS, drawing, 8)) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert texts[0] == texts[1]
    assert ids(generate(tuner, tokenizer(), PROMPTS, replace(drawing, seed=5), 8)) != texts[0]
    greedy = ids(generate(tuner, tokenizer(), PROMPTS, TWELVE, 8))
    assert texts[0] != greedy
    assert ids(generate(tuner, tokenizer(), PROMPTS, replace(drawing, top_k=1), 8)) == greedy


def test_a_penalty_and_the_rule_against_repetition_act() -> None:
    tuner = tuned(tiny_lm())
    long = Decoding(max_new_tokens=40)

    def pairs(decoding: Decoding) -> list[int]:
        found = ids(generate(tuner, tokenizer(), PROMPTS, decoding, 8))
        return [len(t) - 1 - len(set(pairwise(t))) for t in found]

    assert sum(pairs(long)) > 0
    assert sum(pairs(replace(long, no_repeat_ngram=2))) == 0
    assert sum(pairs(replace(long, repetition_penalty=2.0))) < sum(pairs(long))


def test_modes_are_left_as_they_were(tuner: Tuner) -> None:
    tuner.backbone.train()
    generate(tuner, tokenizer(), PROMPTS[:1], TWELVE, 8)
    assert tuner.backbone.model.training
    assert not tuner.training


def test_a_method_that_drives_the_network_itself_is_refused() -> None:
    tuner = tuned(tiny_lm())

    class Twice(type(tuner)):  # type: ignore[misc]
        def forward(self, batch: object) -> object:
            super().forward(batch)
            return super().forward(batch)

    tuner.__class__ = Twice
    with pytest.raises(NotSupported, match="gift acts on whole sequences"):
        generate(tuner, tokenizer(), PROMPTS, TWELVE, 8)


def test_a_real_model_tells_the_story_that_is_known_of_it(assets: Path) -> None:
    from gistcli.backbones import open_backbone
    from gistcli.methods.lora import Lora

    folder = assets / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    words = open_tokenizer(folder)
    tuner = Lora(rank=2, targets=["query"]).attach(open_backbone(str(folder), task="causal_lm"))
    prompts = [[*words.prefix, *words.ids([text])[0]] for text in ("Once upon a time", "The")]
    found = generate(tuner, words, prompts, Decoding(max_new_tokens=24), 8)
    assert "there was a little girl named Lily. She loved to play" in found[0].text
    assert ids(found) == [by_hand(tuner, p, 24, words.stop_ids) for p in prompts]
