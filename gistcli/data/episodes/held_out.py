"""Held-out tasks as fixed episodes, and their options in rows, to be ranked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gistcli.data.episodes.drawing import Drawn, Draws, draw_held_out, replace_options
from gistcli.data.episodes.encoding import EpisodeEncoder
from gistcli.data.episodes.layout import QUERY, Batch, Episode, Query, lay_out
from gistcli.data.episodes.rows import FIXED_SEED
from gistcli.data.episodes.split import require_symbols
from gistcli.data.episodes.tasks import Task
from gistcli.data.text.encoding import number
from gistcli.errors import DataError

MOST_QUERIES = 100
"""Of a task: as many as the official evaluation of Super-NaturalInstructions asks."""


def held_out(
    tasks: Sequence[Task],
    encoder: EpisodeEncoder,
    *,
    queries: int = MOST_QUERIES,
    seed: int = FIXED_SEED,
) -> list[Episode]:
    """An episode for each task: examples by lot, by (seed + place of the task), and its queries.

    A query is in the order of the task, never among its examples, and has its options encoded.

    Args:
        tasks: in a fixed order.
        encoder: of the model, with the number of examples in its options.
        queries: the most of a task.
        seed: of the examples.
    """
    options = encoder.options
    if options.symbols:
        require_symbols(tasks, encoder.words)
    episodes = []
    for place, task in enumerate(tasks):
        draws = Draws(seed + place)
        drawn = draw_held_out(task, options, draws, queries)
        if options.symbols:
            drawn = replace_options(drawn, task, encoder.words, draws)
        episodes.append(encoder.episode(task, drawn, options=True))
    return episodes


def as_queries(
    tasks: Sequence[Task], episodes: Sequence[Episode], encoder: EpisodeEncoder
) -> list[Episode]:
    """The episodes of `held_out` with their own examples as queries: what there is to learn from.

    Args:
        tasks: of the episodes, in their order.
        episodes: a task each.
        encoder: that made them.
    """
    return [
        replace(episode, queries=encoder.episode(task, Drawn((), episode.examples)).queries)
        for task, episode in zip(tasks, episodes, strict=True)
    ]


def demonstrate(task: Task, encoder: EpisodeEncoder) -> Episode:
    """The items of a task as examples, in their order and as far as they fit; nothing is asked.

    Raises:
        DataError: not even one fits.
    """
    drawn = Drawn(task.items[: encoder.options.max_examples], ())
    episode = encoder.episode(task, drawn)
    if not episode.shown:
        raise DataError(
            f"{task.name}: none of {number(len(task.items), 'example')} fits in "
            f"{encoder.options.example_tokens} tokens, {encoder.options.gists} gists included.",
            "Give shorter examples.",
        )
    return replace(episode, left=len(task.items) - episode.shown)


@dataclass(frozen=True)
class Candidates:
    """Options as queries behind their context, each of them a span of its own.

    Attributes:
        batch: see `lay_out`; labels are on the options.
        row_M: row of each candidate.
        span_M: its value in `spans`.
        episode_M: place of its episode.
        query_M: place of its query in the episode.
        option_M: which option it is.
    """

    batch: Batch
    row_M: np.ndarray
    span_M: np.ndarray
    episode_M: np.ndarray
    query_M: np.ndarray
    option_M: np.ndarray


def candidates(
    episodes: Sequence[Episode], encoder: EpisodeEncoder, *, batch_size: int, tokens: int = 1024
) -> Iterator[Candidates]:
    """All options of all queries that have some, in batches.

    A row holds candidates of one episode, so that its context is read once for them.

    Args:
        episodes: of `held_out`.
        encoder: that made them.
        batch_size: rows of a batch.
        tokens: of the candidates in a row, at most, unless a single one is longer.
    """
    rows = [row for place, episode in enumerate(episodes) for row in _rows(place, episode, tokens)]
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        batch = lay_out([row for row, _ in part], encoder.options, encoder.tokenizer.pad_id)
        told = np.array(
            [
                (row, span, *which)
                for row, (_, members) in enumerate(part)
                for span, which in enumerate(members, QUERY)
            ]
        )
        yield Candidates(batch, *told.T)


def _rows(
    place: int, episode: Episode, tokens: int
) -> Iterator[tuple[Episode, list[tuple[int, int, int]]]]:
    """Episodes whose queries are candidates, with (episode, query, option) of each."""
    queries: list[Query] = []
    members: list[tuple[int, int, int]] = []
    for q, query in enumerate(episode.queries):
        for o, option in enumerate(query.options):
            asked = replace(query, answer=option)
            if queries and sum(map(len, queries)) + len(asked) > tokens:
                yield replace(episode, queries=tuple(queries)), members
                queries, members = [], []
            queries.append(asked)
            members.append((place, q, o))
    if queries:
        yield replace(episode, queries=tuple(queries)), members
