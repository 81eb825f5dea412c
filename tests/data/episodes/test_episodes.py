"""Episodes: what is drawn, what fits, how rows are laid out, and that all of it repeats."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gistcli.data.episodes import (
    CONTEXT,
    GIST,
    QUERY,
    Drawn,
    EpisodeEncoder,
    EpisodeOptions,
    EpisodeSplit,
    Item,
    Task,
    class_to_label,
    lay_out,
)
from gistcli.data.text import Tokenizer, open_tokenizer
from gistcli.errors import DataError, RecipeError
from gistcli.reporting import Reporter
from gistcli.train.source import data_fingerprint
from tests.data.episodes.made import family_words, said
from tests.data.text.tokens import letters

WORDS = family_words()
SMALL = EpisodeOptions(gists=4, example_tokens=80, query_tokens=16, max_examples=5, queries=2)


def pairs(name: str = "t", count: int = 20, **more: Any) -> Task:
    """Words and the words after them, one in two of which is Yes."""
    items = tuple(
        Item(f"w{i}", ("Yes", "No")[i % 2], ("No", "Yes"), f"{name}:{i}") for i in range(count)
    )
    return Task(name, name[0], items, **more)


def made(
    *tasks: Task, options: EpisodeOptions = SMALL, tokenizer: Tokenizer = WORDS, **more: Any
) -> EpisodeSplit:
    return EpisodeSplit(tasks, EpisodeEncoder(tokenizer, replace(options, **more)))


class Talk(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)


def test_a_row_is_context_gists_and_queries_with_labels_on_answers_only() -> None:
    split = made(pairs(positive=(Item("w50", "Yes"),), definition="w40 w41"))
    batch = next(split.batches(3, seed=5))
    assert {k: v.dtype for k, v in batch.items()} == dict.fromkeys(batch, torch.int64)
    assert torch.equal(batch["attention_mask"], (batch["spans"] > 0).long())
    for row, spans, labels, number in zip(
        *(batch[k] for k in ("input_ids", "spans", "labels", "index")), strict=True
    ):
        episode = split.episode(int(number), seed=5)
        real = spans[spans > 0].tolist()
        assert real == sorted(real)
        assert Counter(real)[GIST] == 4
        assert {*real} == {CONTEXT, GIST, QUERY, QUERY + 1}
        context = said(WORDS, row[spans == CONTEXT])
        assert context.startswith("<s> w40 w41 Input: w")
        assert context.count("Input:") == episode.shown == 5
        for place, query in enumerate(episode.queries):
            words = said(WORDS, row[spans == QUERY + place])
            assert query.item is not None
            assert words == (f"<s> Input: {query.item.prompt} Output: {query.item.completion} </s>")
            assert f"Input: {query.item.prompt} " not in context
            learnt = labels[(spans == QUERY + place) & (labels != -100)]
            assert said(WORDS, learnt) == f"{query.item.completion} </s>"
        assert (labels[spans < QUERY] == -100).all()
        assert torch.equal(row[labels != -100], labels[labels != -100])


def test_batches_are_a_function_of_seed_epoch_and_start_whatever_the_processes() -> None:
    split = made(pairs("a"), pairs("b", 10), episodes=11)
    again = made(pairs("a"), pairs("b", 10), episodes=11)
    assert len(split) == 11
    assert split.batches_per_epoch(4) == 3
    whole = [*split.batches(4, seed=3, epoch=2)]
    later = [*again.batches(4, seed=3, epoch=2, start_batch=1)]
    for one, other in zip(whole[1:], later, strict=True):
        assert all(torch.equal(one[k], other[k]) for k in one)
    second = next(again.batches(4, seed=3, epoch=2, rank=1, world=2))
    assert torch.equal(second["index"], whole[0]["index"][1::2])
    width = second["spans"].shape[1]
    assert torch.equal(second["input_ids"], whole[0]["input_ids"][1::2, :width])
    other = next(split.batches(4, seed=3, epoch=3))
    assert not torch.equal(other["index"], whole[0]["index"])
    fixed = [next(split.batches(4, seed=None, epoch=e))["input_ids"] for e in (0, 1)]
    assert torch.equal(*fixed)


def test_the_same_number_has_other_content_in_another_epoch_or_under_another_seed() -> None:
    split = made(pairs(count=60))
    contexts = {
        (seed, epoch): said(WORDS, split.episode(0, seed=seed, epoch=epoch).context)
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({*contexts.values()}) == 4


def test_tasks_are_drawn_by_their_size_up_to_the_cap() -> None:
    split = made(pairs("a", 40), pairs("b", 10), cap=30, episodes=2000)
    drawn = Counter(split.episode(i, seed=0).task for i in range(2000))
    assert drawn["a"] / 2000 == pytest.approx(0.75, abs=0.03)
    assert len(made(pairs("a", 40), pairs("b", 10), cap=30)) == 20


def test_examples_are_added_whole_until_the_budget_is_full() -> None:
    room = 1 + 4 + 3 * 4 + 3  # three examples of four tokens, BOS and gists, and not quite another
    split = made(pairs(), example_tokens=room)
    for i in range(20):
        episode = split.episode(i, seed=0)
        assert (episode.shown, episode.left) == (3, 2)
        assert len(episode.context) == 1 + 3 * 4
    assert (split.fit.mean, split.fit.least, split.fit.cut) == (3, 3, split.fit.episodes)
    talk = Talk()
    split.tell("tiny train", talk)
    assert talk.said == [
        "tiny train: 1 task, 20 items; 3.0 of at most 5 examples fit in 20 tokens on average, "
        "3 at least (10 episodes looked at)"
    ]
    assert talk.warned == []


def test_an_example_that_is_too_long_is_passed_over_but_never_cut() -> None:
    long = Item("w1 " * 30, "No")
    short = [Item("w2", "Yes"), Item("w3", "No"), Item("w4", "No")]
    encoder = EpisodeEncoder(WORDS, replace(SMALL, example_tokens=14))
    episode = encoder.episode(pairs(), Drawn((long, short[0], long, short[1]), ()))
    assert said(WORDS, episode.context) == "<s> Input: w2 Output: Yes"
    with pytest.raises(DataError, match="No example fits in 8 tokens"):
        made(pairs(), example_tokens=8)
    with pytest.raises(RecipeError, match="4 gist tokens leave no room"):
        made(pairs(), example_tokens=5)
    with pytest.raises(RecipeError, match="no query fits"):
        made(pairs(), query_tokens=4)


def test_the_same_examples_are_in_every_kind_of_context() -> None:
    kinds = {
        kind: made(pairs(), context=kind, example_tokens=20) for kind in ("gists", "full", "none")
    }
    batches = {kind: next(split.batches(4, seed=1)) for kind, split in kinds.items()}
    spans = {kind: batch["spans"] for kind, batch in batches.items()}
    assert not (spans["full"] == GIST).any()
    assert not ((spans["none"] == GIST) | (spans["none"] == CONTEXT)).any()
    for row in range(4):
        read = [batches[k]["input_ids"][row][spans[k][row] == CONTEXT] for k in ("gists", "full")]
        asked = [batches[k]["input_ids"][row][spans[k][row] >= QUERY] for k in kinds]
        assert torch.equal(*read)
        assert torch.equal(asked[0], asked[1])
        assert torch.equal(asked[0], asked[2])


def test_long_queries_lose_the_beginning_of_their_prompt_and_long_answers_their_end() -> None:
    prompt = " ".join(f"w{i}" for i in range(30))
    items = (Item(prompt, "Yes"), Item("w1", " ".join(["No"] * 40)), Item("w2", "Yes"))
    split = made(Task("t", "t", items), queries=1)
    encoder = split.encoder
    first, second = (
        encoder.episode(split.tasks[0], Drawn((), (item,))).queries[0] for item in items[:2]
    )
    assert len(first) == len(second) == 16
    assert said(WORDS, first.prompt) == f"<s> {' '.join(f'w{i}' for i in range(18, 30))} Output:"
    assert said(WORDS, first.answer) == "Yes </s>"
    assert said(WORDS, second.answer) == " ".join(["No"] * 12)
    talk = Talk()
    split.tell("t", talk)
    assert any("1 answer cut at the end" in line for line in talk.warned)


def test_text_is_put_exactly_as_the_template_says() -> None:
    tokenizer = letters(None)
    task = Task("t", "t", (Item("one two", "three"), Item("four", "five")), definition="Count.")
    encoder = EpisodeEncoder(tokenizer, SMALL)
    episode = encoder.episode(task, Drawn(task.items[:1], task.items[1:]))
    assert said(tokenizer, episode.context) == "Count.\nInput:\none two\nOutput:\nthree\n\n"
    [query] = (
        EpisodeEncoder(tokenizer, replace(SMALL, query_tokens=64))
        .episode(task, Drawn((), task.items[1:]))
        .queries
    )
    assert said(tokenizer, query.prompt) == "Input:\nfour\nOutput:\n"
    assert said(tokenizer, query.answer) == "five<|im_end|>"
    plain = EpisodeEncoder(tokenizer, replace(SMALL, template="plain"))
    episode = plain.episode(task, Drawn(task.items[:1], task.items[1:]))
    assert said(tokenizer, episode.context) == "Count.\none two three "
    assert said(tokenizer, episode.queries[0].answer) == " five<|im_end|>"


def test_exemplary_pairs_are_the_examples_in_their_mode_where_there_are_any() -> None:
    positive = tuple(Item(f"w{i}", "Yes") for i in range(50, 53))
    split = made(pairs("a", positive=positive), pairs("b"), mode="positive", episodes=50)
    for i in range(50):
        episode = split.episode(i, seed=0)
        shown = {*said(WORDS, episode.context).split()} & {f"w{i}" for i in range(60)}
        if episode.task == "a":
            assert shown == {"w50", "w51", "w52"}
        else:
            assert shown <= {f"w{i}" for i in range(20)}
    talk = Talk()
    split.tell("t", talk)
    assert any("1 task without exemplary pairs" in line for line in talk.warned)


def test_queries_are_among_the_examples_with_the_probability_of_copying() -> None:
    split = made(pairs(count=40), mode="copy", copy_probability=0.25, example_tokens=21)
    copied, places = 0, Counter()
    for i in range(1000):
        episode = split.episode(i, seed=0)
        shown = said(WORDS, episode.context).split("Input: ")[1:]
        assert len(shown) == 4
        for query in episode.queries:
            assert query.item is not None
            here = [k for k, text in enumerate(shown) if text.split()[0] == query.item.prompt]
            copied += len(here)
            places.update(here)
    assert copied / 2000 == pytest.approx(0.25, abs=0.03)
    assert max(places.values()) < 1.5 * min(places.values())


def test_a_query_that_stands_twice_in_its_task_is_not_shown() -> None:
    items = tuple(Item(f"w{i % 4}", "Yes", (), str(i)) for i in range(12))
    split = made(Task("t", "t", items), queries=1)
    for i in range(30):
        episode = split.episode(i, seed=0)
        [query] = episode.queries
        assert query.item is not None
        assert query.item.prompt not in said(WORDS, episode.context).split()


def test_a_small_task_still_has_a_query_and_an_example() -> None:
    episode = made(pairs(count=2), queries=8).episode(0, seed=0)
    assert (len(episode.queries), episode.shown) == (1, 1)


def test_symbols_replace_options_alike_in_examples_and_queries_and_anew_in_each_episode() -> None:
    split = made(pairs(count=40, definition="Yes or No"), symbols=True)
    seen = Counter()
    for i in range(60):
        episode = split.episode(i, seed=0)
        context = said(WORDS, episode.context)
        assert context.startswith("<s> Input: w")
        answers = [part.split() for part in context.split("Input: ")[1:]]
        symbol = {int(x[1:]) % 2: y for x, _, y in answers}
        for query in episode.queries:
            item = query.item
            assert item is not None
            assert item.completion in item.options
            assert not {*item.options} & {"Yes", "No"}
            assert symbol.get(int(item.prompt[1:]) % 2, item.completion) == item.completion
            assert said(WORDS, query.answer) == f"{item.completion} </s>"
        assert len({*symbol.values()}) == len(symbol)
        seen.update(symbol.values())
    assert len(seen) > 15
    assert {*seen} <= {*split.encoder.words}


def test_words_for_symbols_are_whole_words_of_the_tokenizer(assets: Path) -> None:
    encoder = EpisodeEncoder(open_tokenizer(assets / "stories260K"), SMALL)
    assert len(encoder.words) >= 30
    assert "the" in encoder.words
    assert all(word.isalpha() and word.isascii() and len(word) > 2 for word in encoder.words)


def test_too_few_words_for_symbols_are_refused() -> None:
    options = tuple(f"o{i}" for i in range(14))
    items = tuple(Item(f"w{i}", option, options) for i, option in enumerate(options))
    with pytest.raises(RecipeError, match="too few to replace the 14 options of many"):
        made(Task("many", "m", items), symbols=True)


def test_the_built_in_family_is_written_as_words_and_drawn_with_replacement() -> None:
    tasks = class_to_label()["train"]
    options = EpisodeOptions(gists=8, example_tokens=64, max_examples=10, queries=8)
    split = made(*tasks, options=options)
    assert len(split) == 3776
    assert split.fit.least == split.fit.mean == 10
    batch = next(split.batches(2, seed=0))
    assert batch["spans"].shape == (2, 64)
    for row, spans in zip(batch["input_ids"], batch["spans"], strict=True):
        words = said(WORDS, row[spans == CONTEXT]).split()
        assert words[0] == "<s>"
        assert len(words) == 21
        label = dict(zip(words[1::2], words[2::2], strict=True))
        for span in range(QUERY, QUERY + 8):
            begin, x, y, end = said(WORDS, row[spans == span]).split()
            assert (begin, end) == ("<s>", "</s>")
            assert label.get(x, y) == y
    inputs = Counter(
        query.item.prompt
        for i in range(200)
        for query in split.episode(i, seed=0).queries
        if query.item
    )
    assert min(inputs.values()) > 150


def test_other_tasks_or_options_have_another_fingerprint() -> None:
    splits = [made(pairs()), made(pairs(count=21)), made(pairs(), gists=5), made(pairs())]
    assert [s.fingerprint() for s in splits[:1]] == [splits[3].fingerprint()]
    assert len({s.fingerprint() for s in splits}) == 3
    assert len({data_fingerprint(s) for s in splits}) == 3


def test_no_batch_is_longer_than_the_longest() -> None:
    split = made(pairs(count=60, definition="w1 " * 90), max_examples=40, example_tokens=70)
    longest = split.longest(3)
    assert longest["input_ids"].shape[0] == 3
    width = max(batch["spans"].shape[1] for batch in split.batches(4, seed=0))
    assert width <= longest["spans"].shape[1] == 104
    assert (longest["labels"] != -100).any()
    for i in range(20):
        assert len(split.episode(i, seed=0).context) + 4 <= 70


def test_an_episode_without_queries_is_what_is_compressed() -> None:
    task = pairs()
    encoder = EpisodeEncoder(WORDS, SMALL)
    episodes = [encoder.episode(task, Drawn(task.items[:n], ())) for n in (1, 4)]
    batch = lay_out(episodes, encoder.options, WORDS.pad_id)
    assert batch["spans"].shape == (2, 24)
    assert [[int((row == kind).sum()) for kind in (CONTEXT, GIST)] for row in batch["spans"]] == [
        [5, 4],
        [17, 4],
    ]
    assert np.array_equal(batch["index"], [0, 1])
