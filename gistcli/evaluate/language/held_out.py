"""Held-out tasks: what their queries are answered behind examples, and without them.

Queries with options are ranked by the sum of the options' log-likelihoods, as P3 is measured in
HyperLlama's code (arXiv 2402.16817); to others a text is written, and compared by ROUGE-L, as in
Super-NaturalInstructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gistcli.backbones.layout import Features
from gistcli.backbones.prefix import Prefix
from gistcli.data.episodes import (
    Candidates,
    Episode,
    EpisodeEncoder,
    Query,
    candidates,
    lay_out,
)
from gistcli.evaluate.classify import autocast, evaluation_mode
from gistcli.evaluate.language.generation import Decoding, generate
from gistcli.evaluate.language.likelihood import batch_losses
from gistcli.evaluate.language.models import device_of, language_model
from gistcli.evaluate.language.ranking import Question, Ranking, rank
from gistcli.evaluate.language.rouge import rouge_l
from gistcli.hyper.batches import divided
from gistcli.hyper.hyperllama import HyperTuner
from gistcli.methods.base import Tuner
from gistcli.objectives.chunked import deferred_logits
from gistcli.reporting import SILENT, Reporter

OWN, ZERO_SHOT, WRONG_TASK, IN_CONTEXT = "own", "zero_shot", "wrong_task", "in_context"
"""What stands in front of a query: what the run makes of its examples (or has for all tasks);
nothing; the same of another task; the examples themselves, read by the network without the run."""
NEW_TOKENS = 128
"""Of a written answer, where nobody says; as in the evaluation of Super-NaturalInstructions."""


@dataclass(frozen=True)
class Answer:
    """What became of one query.

    Attributes:
        text: the likeliest option, or what was written.
        score: 1 or 0 of an option, ROUGE-L of a text.
        nll: of every option, in nats; empty where a text was written.
    """

    text: str
    score: float
    nll: tuple[float, ...] = ()


Answers = list[list[Answer]]
"""Of every episode, of every query."""
Rankings = dict[tuple[int, int], Ranking]
"""By place of the episode and the query."""
Forward = Callable[[Candidates, Mapping[str, Tensor]], tuple[Mapping[str, Tensor], Features]]
"""A batch of candidates -> what the network read of it, with `spans`, and what it found."""


def is_ranked(query: Query) -> bool:
    """Whether it has options to choose among."""
    return len(query.options) > 1


@dataclass(frozen=True)
class HeldOut:
    """Answers the queries of episodes.

    Attributes:
        tuner: attached to a decoder; a hypernetwork, or what reads queries alone.
        encoder: that made the episodes.
        batch_size: texts at a time; changes speed, memory and rounding only.
        max_new_tokens: of a written answer.
        precision: fp32 or bf16 autocast.
        reporter: gets a phase for each condition, in queries.
        phase: what stands in front of their names.
    """

    tuner: Tuner
    encoder: EpisodeEncoder
    batch_size: int
    max_new_tokens: int = NEW_TOKENS
    precision: str = "fp32"
    reporter: Reporter = SILENT
    phase: str = "held out"

    def answers(self, episodes: Sequence[Episode]) -> dict[str, Answers]:
        """Condition -> answers. The wrong task's is there for two episodes or more.

        Where the tuner is disabled there is nothing of its own, and OWN is the network's zero-shot.
        """
        tuner = self.tuner
        if not tuner.switch.enabled:
            return {OWN: self.alone(episodes)}
        if not isinstance(tuner, HyperTuner) or tuner.method.hyper.context == "none":
            return {OWN: self.alone(episodes, OWN), ZERO_SHOT: self.zero_shot(episodes)}
        found = {OWN: self.behind_examples(episodes, OWN)}
        if len(episodes) > 1:
            found[WRONG_TASK] = self.behind_examples(_shifted(episodes), WRONG_TASK)
        found[ZERO_SHOT] = self.zero_shot(episodes)
        found[IN_CONTEXT] = self.behind_examples(episodes, IN_CONTEXT)
        return found

    def zero_shot(self, episodes: Sequence[Episode]) -> Answers:
        """Of the network without the run."""
        with self.tuner.disabled():
            return self.alone(episodes)

    def alone(self, episodes: Sequence[Episode], condition: str = ZERO_SHOT) -> Answers:
        """Every query as a text of its own."""
        queries = [query for episode in episodes for query in episode.queries]
        with self._told(condition, len(queries)) as advance:
            found = iter(self.texts(queries))
            advance(len(queries))
        return [[next(found) for _ in episode.queries] for episode in episodes]

    def behind_prefixes(
        self, episodes: Sequence[Episode], prefix: Prefix, condition: str = OWN
    ) -> Answers:
        """Behind prefixes that are at hand.

        Args:
            episodes: whose contexts are not looked at.
            prefix: of each of them in its order, or N = 1 for all.
            condition: named in the phase.
        """

        def written(place: int, queries: Sequence[Query]) -> list[Answer]:
            with self._hyper.prefix_in_use(_of_rows(prefix, [place])):
                return self._written(queries, [query.prompt.tolist() for query in queries])

        return self._answered(episodes, condition, _Behind(self._hyper, prefix), written)

    @property
    def _hyper(self) -> HyperTuner:
        assert isinstance(self.tuner, HyperTuner)
        return self.tuner

    def behind_examples(self, episodes: Sequence[Episode], condition: str) -> Answers:
        """Behind the examples of each episode, or what a hypernetwork makes of them.

        Options are ranked in single passes over examples and options, in which a row has many of
        them; texts are written behind the prefix, or the examples.
        """
        tuner = self._hyper
        forward = tuner.in_context if condition == IN_CONTEXT else tuner
        return self._answered(
            episodes,
            condition,
            lambda part, batch: (batch, forward(batch)),
            lambda place, queries: self._written_behind(episodes[place], queries, condition),
        )

    def _answered(
        self,
        episodes: Sequence[Episode],
        condition: str,
        forward: Forward,
        written: Callable[[int, Sequence[Query]], list[Answer]],
    ) -> Answers:
        """Queries with options by how likely these are, others by what is written.

        Args:
            episodes: the queries.
            condition: named in the phase.
            forward: of candidates.
            written: place of an episode and its queries without options -> their answers.
        """
        with self._told(condition, sum(len(e.queries) for e in episodes)) as advance:
            rankings = self._ranked(episodes, forward)
            found: Answers = []
            for place, episode in enumerate(episodes):
                open_ = [q for i, q in enumerate(episode.queries) if (place, i) not in rankings]
                texts = iter(written(place, open_) if open_ else ())
                found.append(
                    [
                        _chosen(query, rankings[place, i])
                        if (place, i) in rankings
                        else next(texts)
                        for i, query in enumerate(episode.queries)
                    ]
                )
                advance(len(episode.queries))
        return found

    # --- texts ------------------------------------------------------------------------------

    def texts(self, queries: Sequence[Query]) -> list[Answer]:
        """Answers to queries as texts, behind whatever prefix is in use."""
        chosen = [i for i, query in enumerate(queries) if is_ranked(query)]
        written = [i for i, query in enumerate(queries) if not is_ranked(query)]
        questions = [_question(queries[i]) for i in chosen]
        rankings = rank(self.tuner, questions, self.batch_size, precision=self.precision)
        found = {i: _chosen(queries[i], r) for i, r in zip(chosen, rankings, strict=True)}
        prompts = [queries[i].prompt.tolist() for i in written]
        found |= dict(zip(written, self._written([queries[i] for i in written], prompts),
                          strict=True))  # fmt: skip
        return [found[i] for i in range(len(queries))]

    def _written(self, queries: Sequence[Query], prompts: Sequence[list[int]]) -> list[Answer]:
        if not queries:
            return []
        texts = generate(
            self.tuner,
            self.encoder.tokenizer,
            prompts,
            Decoding(self.max_new_tokens),
            self.batch_size,
            precision=self.precision,
        )
        return [
            Answer(text.text, rouge_l(text.text, right_answers(query)))
            for query, text in zip(queries, texts, strict=True)
        ]

    def _written_behind(
        self, episode: Episode, queries: Sequence[Query], condition: str
    ) -> list[Answer]:
        """Texts behind the examples of an episode."""
        tuner = self._hyper
        if condition != IN_CONTEXT and tuner.method.hyper.compresses:
            with tuner.prefix_in_use(compressed(tuner, [episode], self.encoder, self.precision)):
                return self._written(queries, [query.prompt.tolist() for query in queries])
        front = episode.context.tolist()
        with tuner.disabled() if condition == IN_CONTEXT else nullcontext():
            return self._written(queries, [[*front, *query.prompt.tolist()] for query in queries])

    # --- rows -------------------------------------------------------------------------------

    def _ranked(self, episodes: Sequence[Episode], forward: Forward) -> Rankings:
        """(episode, query) -> how likely its options are, where it has any."""
        sums = dict[tuple[int, int], list[float]]()
        with (
            evaluation_mode(self.tuner, self.tuner.backbone),
            torch.no_grad(),
            self.tuner.step(),
            deferred_logits(language_model(self.tuner)),
        ):
            kept = [_of_options(episode) for episode in episodes]
            for part in candidates(kept, self.encoder, batch_size=self.batch_size):
                losses_M = self._losses(part, forward)
                for loss, e, q in zip(losses_M, part.episode_M, part.query_M, strict=True):
                    sums.setdefault((int(e), int(q)), []).append(loss)
        return {
            (e, q): Ranking(tuple(found), tuple(map(len, episodes[e].queries[q].options)))
            for (e, q), found in sums.items()
        }

    def _losses(self, part: Candidates, forward: Forward) -> list[float]:
        """(M,) nats of all candidates, each the sum over its tokens."""
        backbone = language_model(self.tuner)
        device = device_of(backbone)
        own = {key: value.to(device) for key, value in part.batch.items()}
        with autocast(device, self.precision):
            batch, features = forward(part, own)
        rows_N, losses_N = batch_losses(backbone, batch, features, self.precision)
        spans_N = batch["spans"][backbone.supervised(batch).where]
        found = dict.fromkeys(zip(part.row_M.tolist(), part.span_M.tolist(), strict=True), 0.0)
        told = (rows_N.tolist(), spans_N.tolist(), losses_N.double().tolist())
        for row, span, loss in zip(*told, strict=True):
            found[row, span] += loss
        return list(found.values())

    @contextmanager
    def _told(self, condition: str, total: int) -> Iterator[Callable[[int], None]]:
        name = self.phase if condition == OWN else f"{self.phase} {condition.replace('_', ' ')}"
        self.reporter.start(name, total, "queries")
        try:
            yield lambda count: self.reporter.advance(name, count)
        finally:
            self.reporter.finish(name)


@dataclass(frozen=True)
class _Behind:
    """The forward pass of candidates behind the prefixes of their episodes."""

    tuner: HyperTuner
    prefix: Prefix

    def __call__(
        self, part: Candidates, batch: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Features]:
        of_row = dict(zip(part.row_M.tolist(), part.episode_M.tolist(), strict=True))
        _, queries = divided(batch)
        with self.tuner.prefix_in_use(_of_rows(self.prefix, [of_row[r] for r in sorted(of_row)])):
            features = self.tuner(queries)
        return {**queries, "spans": queries["segments"]}, features


def _of_rows(prefix: Prefix, rows: Sequence[int]) -> Prefix:
    """The prefixes of some rows; N = 1 is that of all."""
    if prefix.keys.shape[1] == 1:
        return prefix
    return Prefix(prefix.keys[:, rows], prefix.values[:, rows])


def compressed(
    tuner: HyperTuner,
    episodes: Sequence[Episode],
    encoder: EpisodeEncoder,
    precision: str = "fp32",
) -> Prefix:
    """What a hypernetwork makes of the examples of episodes, N of them, in one pass.

    Args:
        tuner: the hypernetwork; left in the mode it was in.
        episodes: whose queries are not looked at.
        encoder: that made them.
        precision: fp32 or bf16 autocast.
    """
    device = device_of(language_model(tuner))
    bare = [replace(episode, queries=()) for episode in episodes]
    batch = lay_out(bare, encoder.options, encoder.tokenizer.pad_id)
    with evaluation_mode(tuner, tuner.backbone), tuner.step(), autocast(device, precision):
        return tuner.compress({key: value.to(device) for key, value in batch.items()})


def right_answers(query: Query) -> list[str]:
    """All that count as right."""
    assert query.item is not None
    return [query.item.completion, *query.item.others]


def _question(query: Query) -> Question:
    options = tuple(tuple(option.tolist()) for option in query.options)
    return Question(tuple(query.prompt.tolist()), options)


def _chosen(query: Query, ranking: Ranking) -> Answer:
    assert query.item is not None
    text = query.item.options[ranking.by_sum]
    return Answer(text, float(text in right_answers(query)), ranking.nll)


def _of_options(episode: Episode) -> Episode:
    """Without the options of queries that have nothing to choose among."""
    queries = [q if is_ranked(q) else replace(q, options=()) for q in episode.queries]
    return replace(episode, queries=tuple(queries))


def _shifted(episodes: Sequence[Episode]) -> list[Episode]:
    """The same queries behind contexts from far off: neighbours in the order may be alike."""
    half = len(episodes) // 2
    return [replace(e, context=episodes[i - half].context) for i, e in enumerate(episodes)]
