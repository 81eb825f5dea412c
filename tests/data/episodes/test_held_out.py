"""Held-out tasks: fixed examples, queries that are not among them, and options in rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gistcli.data.episodes import (
    CONTEXT,
    QUERY,
    EpisodeEncoder,
    EpisodeOptions,
    EpisodeSplit,
    Item,
    Task,
    candidates,
    class_to_label,
    demonstrate,
    held_out,
    read_tasks,
)
from gistcli.data.text import TextOptions, open_tokenizer
from gistcli.errors import DataError
from tests.data.episodes.made import family_words, said, template

WORDS = family_words()
SMALL = EpisodeOptions(gists=4, example_tokens=80, query_tokens=16, max_examples=4)
TASKS = [
    Task(name, "f", tuple(Item(f"w{i}", ("Yes", "No")[i % 2], ("No", "Yes")) for i in range(count)))
    for name, count in (("one", 20), ("two", 6))
]


def test_every_task_has_fixed_examples_and_its_first_other_items_as_queries() -> None:
    encoder = EpisodeEncoder(WORDS, SMALL)
    first, second = held_out(TASKS, encoder, queries=7)
    assert (first.task, first.shown, len(first.queries)) == ("one", 4, 7)
    assert (second.task, second.shown, len(second.queries)) == ("two", 3, 3)
    context = said(WORDS, first.context).split()
    asked = [query.item.prompt for query in first.queries if query.item]
    assert not {*asked} & {*context}
    assert asked == sorted(asked, key=lambda prompt: int(prompt[1:]))
    again = held_out(TASKS, encoder, queries=7)
    assert np.array_equal(again[0].context, first.context)
    other = held_out(TASKS, encoder, queries=7, seed=1235)
    assert not np.array_equal(other[0].context, first.context)


def test_options_are_encoded_as_the_answer_would_be() -> None:
    [episode, _] = held_out(TASKS, EpisodeEncoder(WORDS, SMALL))
    for query in episode.queries:
        assert query.item is not None
        assert query.gold == ("No", "Yes").index(query.item.completion)
        assert [said(WORDS, option) for option in query.options] == ["No </s>", "Yes </s>"]
        assert np.array_equal(query.options[query.gold], query.answer)


def test_candidates_are_all_options_of_all_queries_behind_their_context() -> None:
    encoder = EpisodeEncoder(WORDS, SMALL)
    episodes = held_out(TASKS, encoder)
    found = []
    for part in candidates(episodes, encoder, batch_size=2, tokens=30):
        spans = part.batch["spans"]
        assert len(spans) <= 2
        assert int((spans >= QUERY).sum(1).max()) <= 30
        for row, span, e, q, o in zip(
            part.row_M, part.span_M, part.episode_M, part.query_M, part.option_M, strict=True
        ):
            here = spans[row] == int(span)
            query = episodes[e].queries[q]
            assert torch.equal(
                part.batch["input_ids"][row][here],
                torch.from_numpy(np.concatenate([query.prompt, query.options[o]])).long(),
            )
            learnt = part.batch["labels"][row][here]
            assert learnt[learnt != -100].tolist() == query.options[o].tolist()
            context = part.batch["input_ids"][row][spans[row] == CONTEXT]
            assert context.tolist() == episodes[e].context.tolist()
            found.append((int(e), int(q), int(o)))
    assert found == [(0, q, o) for q in range(16) for o in range(2)] + [
        (1, q, o) for q in range(3) for o in range(2)
    ]


def test_a_single_candidate_that_is_longer_than_a_row_has_one_alone() -> None:
    encoder = EpisodeEncoder(WORDS, SMALL)
    parts = [*candidates(held_out(TASKS, encoder), encoder, batch_size=100, tokens=1)]
    assert [len(part.row_M) for part in parts] == [38]
    assert {*parts[0].span_M.tolist()} == {QUERY}


def test_tasks_without_options_have_no_candidates() -> None:
    task = Task("free", "f", tuple(Item(f"w{i}", f"w{i + 1}") for i in range(9)))
    encoder = EpisodeEncoder(WORDS, SMALL)
    episodes = held_out([task], encoder)
    assert episodes[0].queries[0].gold is None
    assert [*candidates(episodes, encoder, batch_size=2)] == []


def test_the_built_in_family_asks_every_input_behind_ten_examples() -> None:
    encoder = EpisodeEncoder(WORDS, EpisodeOptions(gists=8, example_tokens=64, max_examples=10))
    episodes = held_out(class_to_label()["test"], encoder)
    assert len(episodes) == 256
    assert {episode.shown for episode in episodes} == {10}
    assert {len(episode.queries) for episode in episodes} == {8}
    [part] = candidates(episodes[:4], encoder, batch_size=8)
    assert part.batch["spans"].shape[0] == 4
    assert len(part.row_M) == 4 * 8 * 8


def test_symbols_are_the_same_at_every_call_and_are_ranked() -> None:
    encoder = EpisodeEncoder(WORDS, replace(SMALL, symbols=True))
    episodes, again = held_out(TASKS, encoder), held_out(TASKS, encoder)
    first, second = (e[0].queries[0] for e in (episodes, again))
    assert first.item == second.item
    assert first.item is not None
    assert first.item.options != ("No", "Yes")
    assert first.gold is not None
    assert np.array_equal(first.options[first.gold], first.answer)


def test_real_questions_as_tasks_have_examples_in_a_real_tokenizer(
    assets: Path, tmp_path: Path
) -> None:
    tokenizer = open_tokenizer(assets / "stories260K")
    tasks = []
    for name in ("arc_easy", "openbookqa"):
        rows = json.loads((assets / "text" / name / "test.json").read_text(encoding="utf-8"))
        (tmp_path / f"{name}.json").write_text(json.dumps(rows[:60]), encoding="utf-8")
        tasks += read_tasks(tmp_path / f"{name}.json", TextOptions())[0]
    options = EpisodeOptions(max_examples=4, queries=2, episodes=8, symbols=True)
    encoder = EpisodeEncoder(tokenizer, options)
    split = EpisodeSplit(tasks, encoder)
    assert split.fit.least >= 1
    for batch in split.batches(4, seed=0):
        assert batch["input_ids"].shape[1] <= 1024 + 2 * 384
        assert int(batch["spans"].max()) == QUERY + 1
    for episode in held_out(tasks, encoder, queries=5):
        assert len(episode.queries) == 5
        assert all(len(query.options) == 4 for query in episode.queries)


def test_a_file_of_examples_is_shown_in_its_order_as_far_as_it_fits(tmp_path: Path) -> None:
    [task], _ = read_tasks(template(tmp_path / "mine.jsonl", count=9), TextOptions())
    encoder = EpisodeEncoder(WORDS, replace(SMALL, example_tokens=40, max_examples=32))
    episode = demonstrate(task, encoder)
    assert (episode.shown, episode.left, episode.queries) == (5, 4, ())
    assert said(WORDS, episode.context).startswith("<s> Input: w0 w1 <unk> ? Output: Yes Input: w1")
    with pytest.raises(DataError, match="mine: none of 9 examples fits in 9 tokens, 4 gists"):
        demonstrate(task, EpisodeEncoder(WORDS, replace(SMALL, example_tokens=9)))
