"""Hypernetworks on `gist_llama_nano`: what their prefixes are worth on tasks that are held out.

Two of them lie in `checkpoints/`, made by `python -m tests.benchmarks.hyper`. Shape suffixes: as in
`backbones.prefix`, with a task in each row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from gistcli.assets import LLAMA, nano_folder
from gistcli.backbones.layout import Features
from gistcli.backbones.prefix import Prefix
from gistcli.backbones.supervision import IGNORED
from gistcli.data.episodes import (
    Drawn,
    Episode,
    EpisodeEncoder,
    Task,
    class_to_label,
    held_out,
    lay_out,
)
from gistcli.data.episodes.drawing import Draws, draw_held_out
from gistcli.data.episodes.rows import FIXED_SEED
from gistcli.data.text import open_tokenizer
from gistcli.hyper.batches import divided
from gistcli.hyper.hyperllama import HyperTuner
from gistcli.run.compressor import compressor
from gistcli.run.loading import open_target

CHECKPOINTS = Path(__file__).with_name("checkpoints")
RATE = 1e-2
"""Of prefix tuning, the recommended one."""


def opened(path: Path) -> tuple[HyperTuner, EpisodeEncoder]:
    """A run, and what makes its episodes: with as many examples as it was trained on."""
    loaded = open_target(path)
    assert loaded.info is not None
    made = compressor(loaded.tuner, loaded.info, open_tokenizer(nano_folder(LLAMA)), path.name)
    return made.tuner, made.encoder


def tasks(count: int, split: str = "test") -> Sequence[Task]:
    """So many of a split, from all over it: neighbours in its order have labels in common."""
    found = class_to_label()[split]
    return found[:: len(found) // count][:count]


def share(features: Features, batch: Mapping[str, Tensor]) -> float:
    """Right labels over all; the end of an answer, which is learnt too, does not count."""
    targets = batch["labels"][batch["labels"] != IGNORED]
    return float((features.logits.argmax(1) == targets)[::2].float().mean())


@dataclass(frozen=True)
class Tuning:
    """Prefix tuning of many tasks side by side: each has a prefix of its own in its row.

    Attributes:
        tuner: a hypernetwork, whose network reads the prefixes; stays as it is.
        made: (L, N, H, P, E), its prefixes of the tasks' examples.
        mean: (L, 1, H, P, E), of its prefixes of tasks that it was trained on.
        learnt: these examples as queries, all of which every step sees.
        asked: all inputs of each task.
    """

    tuner: HyperTuner
    made: Prefix
    mean: Prefix
    learnt: Mapping[str, Tensor]
    asked: Mapping[str, Tensor]

    @classmethod
    def of(cls, tuner: HyperTuner, encoder: EpisodeEncoder, count: int) -> Tuning:
        """Of so many held-out tasks."""
        episodes = held_out(tasks(256, "train"), encoder)
        usual = compressed(tuner, episodes, encoder)
        mean = Prefix(*(t.mean(1, keepdim=True) for t in (usual.keys, usual.values)))
        asked, learnt = [], []
        for place, task in enumerate(tasks(count)):
            drawn = draw_held_out(task, encoder.options, Draws(FIXED_SEED + place), len(task.items))
            asked.append(encoder.episode(task, drawn))
            learnt.append(encoder.episode(task, Drawn(drawn.shown, drawn.shown)))
        made = compressed(tuner, asked, encoder)
        return cls(tuner, made, mean, queries(learnt, encoder), queries(asked, encoder))

    def starts(self, seed: int, shared: Prefix | None = None) -> dict[str, Prefix]:
        """What prefixes may start from.

        Args:
            seed: of the random ones.
            shared: trained over all tasks, N = 1.
        """
        generator = torch.Generator().manual_seed(seed)
        shape = self.made.keys.shape
        found = {
            "hypernetwork": self.made,
            "mean of its prefixes": self.mean,
            "shared": shared,
            "random": Prefix(*(torch.randn(shape, generator=generator) for _ in range(2))),
        }
        return {name: prefix for name, prefix in found.items() if prefix is not None}

    def curve(self, start: Prefix, at: Sequence[int]) -> dict[int, float]:
        """Accuracy after so many steps of Adam, which rise."""
        rows = self.made.keys.shape[1]
        both = (t.expand(-1, rows, -1, -1, -1) for t in (start.keys, start.values))
        keys, values = (t.clone().requires_grad_() for t in both)
        optimiser = torch.optim.Adam([keys, values], lr=RATE)
        targets = self.learnt["labels"][self.learnt["labels"] != IGNORED]
        found = {}
        with self.tuner.prefix_in_use(Prefix(keys, values)):
            for step in range(at[-1] + 1):
                if step in at:
                    with torch.no_grad():
                        found[step] = share(self.tuner(self.asked), self.asked)
                logits = self.tuner(self.learnt).logits
                loss = F.cross_entropy(logits, targets, reduction="sum")
                keys.grad, values.grad = torch.autograd.grad(loss, [keys, values])
                optimiser.step()
        return found


def compressed(tuner: HyperTuner, found: Sequence[Episode], encoder: EpisodeEncoder) -> Prefix:
    """(L, N, H, P, E): the prefixes of episodes."""
    batch = lay_out(found, encoder.options, encoder.tokenizer.pad_id)
    with torch.no_grad():
        return tuner.compress(divided(batch)[0])


def queries(found: Sequence[Episode], encoder: EpisodeEncoder) -> Mapping[str, Tensor]:
    """(N, T): the queries of each episode in a row, packed."""
    return divided(lay_out(found, encoder.options, encoder.tokenizer.pad_id))[1]
