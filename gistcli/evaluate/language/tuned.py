"""Prefix tuning of many held-out tasks side by side: what a start is worth, step by step.

Each task has a prefix of its own, which learns from the task's examples alone and is measured by
its queries; the network stays as it is. HyperLlama (arXiv 2402.16817) compares starts in this way:
the hypernetwork's prefix, one trained over all tasks, and random numbers.

Shape suffixes: as in `backbones.prefix`, with a task in each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from gistcli.backbones.prefix import Prefix
from gistcli.data.episodes import Episode, lay_out
from gistcli.evaluate.classify import autocast, evaluation_mode
from gistcli.evaluate.language.held_out import Answers, HeldOut, compressed
from gistcli.evaluate.language.likelihood import PIECE_BYTES
from gistcli.evaluate.language.models import device_of, language_model
from gistcli.hyper.batches import divided
from gistcli.hyper.hyperllama import HyperTuner
from gistcli.objectives import CausalLM
from gistcli.objectives.chunked import logit_bytes
from gistcli.reporting import SILENT, Reporter

T = TypeVar("T")


@dataclass(frozen=True)
class TunedPrefixes:
    """Tunes and measures the prefixes of held-out tasks.

    Attributes:
        held: answers queries; its tuner is a hypernetwork, whose network reads the prefixes.
        asked: an episode a task.
        learnt: the same with their own examples as queries (`as_queries`), all of which every step
            sees.
        lr: of Adam.
        reporter: gets a phase for each start, in tasks.
    """

    held: HeldOut
    asked: Sequence[Episode]
    learnt: Sequence[Episode]
    lr: float
    reporter: Reporter = SILENT

    @property
    def tuner(self) -> HyperTuner:
        """The hypernetwork."""
        assert isinstance(self.held.tuner, HyperTuner)
        return self.held.tuner

    def made(self, episodes: Sequence[Episode] | None = None) -> Prefix:
        """(L, N, H, P, E): the hypernetwork's prefixes of the tasks, or of other episodes."""
        found = [
            compressed(self.tuner, part, self.held.encoder, self.held.precision)
            for part in _parts(self.asked if episodes is None else episodes, self.held.batch_size)
        ]
        keys, values = ([getattr(p, name) for p in found] for name in ("keys", "values"))
        return Prefix(torch.cat(keys, 1), torch.cat(values, 1))

    def curve(self, start: Prefix, at: Sequence[int], name: str) -> dict[int, Answers]:
        """Answers after so many steps.

        Args:
            start: of each task in its order, or N = 1 for all of them.
            at: numbers of steps, which rise.
            name: of the start, for the phase.
        """
        found: dict[int, Answers] = {step: [] for step in at}
        self.reporter.start(name, len(self.asked), "tasks")
        try:
            for places in _parts(range(len(self.asked)), self.held.batch_size):
                own = _own_rows(start, places)
                for step, answers in self._tuned(own, places, at):
                    found[step] += answers
                self.reporter.advance(name, len(places))
        finally:
            self.reporter.finish(name)
        return found

    def _tuned(
        self, start: tuple[Tensor, Tensor], places: Sequence[int], at: Sequence[int]
    ) -> Iterator[tuple[int, Answers]]:
        """The answers of some tasks at every step that is wanted."""
        asked = [self.asked[place] for place in places]
        batch = self._batch([self.learnt[place] for place in places])
        words = language_model(self.tuner).config.vocab_size
        chunk = max(1, PIECE_BYTES // logit_bytes(1, words))
        objective = CausalLM(self.tuner, chunk_tokens=chunk)
        both = [t.requires_grad_() for t in start]
        optimiser = torch.optim.Adam(both, lr=self.lr)
        for step in range(at[-1] + 1):
            if step in at:
                prefix = Prefix(*(t.detach() for t in both))
                yield step, self.held.behind_prefixes(asked, prefix)
            if step == at[-1]:
                return
            with self._reading(Prefix(*both)):
                loss = objective(batch, len(places)).total
            for tensor, grad in zip(both, torch.autograd.grad(loss, both), strict=True):
                tensor.grad = grad
            optimiser.step()

    def _batch(self, episodes: Sequence[Episode]) -> Mapping[str, Tensor]:
        """(N, T): the queries of each episode in a row, packed."""
        encoder = self.held.encoder
        batch = lay_out(episodes, encoder.options, encoder.tokenizer.pad_id)
        device = device_of(language_model(self.tuner))
        return divided({key: value.to(device) for key, value in batch.items()})[1]

    @contextmanager
    def _reading(self, prefix: Prefix) -> Iterator[None]:
        tuner, device = self.tuner, device_of(language_model(self.tuner))
        with (
            evaluation_mode(tuner, tuner.backbone),
            tuner.step(),
            tuner.prefix_in_use(prefix),
            autocast(device, self.held.precision),
        ):
            yield


def mean_of(prefix: Prefix) -> Prefix:
    """N = 1: the mean over the rows."""
    return Prefix(prefix.keys.mean(1, keepdim=True), prefix.values.mean(1, keepdim=True))


def random_like(prefix: Prefix, seed: int) -> Prefix:
    """N(0, 1), as the method `prefix` starts, in every row another."""
    generator = torch.Generator().manual_seed(seed)
    both = (torch.randn(prefix.keys.shape, generator=generator) for _ in range(2))
    return Prefix(*(t.to(prefix.keys.device) for t in both))


def _own_rows(prefix: Prefix, places: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Keys and values of some tasks, to be trained: copies in float32."""
    rows = [0] * len(places) if prefix.keys.shape[1] == 1 else list(places)
    return prefix.keys[:, rows].float(), prefix.values[:, rows].float()


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
