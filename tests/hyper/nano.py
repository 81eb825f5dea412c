"""Hypernetworks on `gist_llama_nano`: what their prefixes are worth on tasks that are held out.

Two of them lie in `checkpoints/`, made by `python -m tests.benchmarks.hyper`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gistcli.assets import LLAMA, nano_folder
from gistcli.data.episodes import EpisodeEncoder, Task, as_queries, class_to_label, held_out
from gistcli.data.text import open_tokenizer
from gistcli.evaluate.language.held_out import Answers, HeldOut
from gistcli.evaluate.language.tuned import TunedPrefixes
from gistcli.hyper.hyperllama import HyperTuner
from gistcli.run.compressor import compressor
from gistcli.run.loading import open_target

CHECKPOINTS = Path(__file__).with_name("checkpoints")
RATE = 1e-2
"""Of prefix tuning, the recommended one."""
BATCH = 64


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


def tuned(tuner: HyperTuner, encoder: EpisodeEncoder, count: int) -> TunedPrefixes:
    """Prefix tuning of so many held-out tasks."""
    chosen = tasks(count)
    asked = held_out(chosen, encoder)
    held = HeldOut(tuner, encoder, BATCH)
    return TunedPrefixes(held, asked, as_queries(chosen, asked, encoder), RATE)


def share(answers: Answers) -> float:
    """Right ones over all."""
    found = [answer.score for of_task in answers for answer in of_task]
    return sum(found) / len(found)
