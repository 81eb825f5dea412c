"""The paper's orderings, on hypernetworks that were trained on the embedded decoder."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from gistcli.backbones.prefix import Prefix
from gistcli.data.episodes import EpisodeEncoder, EpisodeOptions, held_out
from gistcli.evaluate.language.held_out import (
    IN_CONTEXT,
    OWN,
    WRONG_TASK,
    ZERO_SHOT,
    HeldOut,
)
from gistcli.evaluate.language.tuned import mean_of, random_like
from gistcli.hyper.hyperllama import HyperTuner
from tests.hyper import nano

Run = tuple[HyperTuner, EpisodeEncoder]
TASKS = 128
"""Of the 256 held-out ones."""


@pytest.fixture(scope="module")
def frozen() -> Run:
    return nano.opened(nano.CHECKPOINTS / "frozen")


@pytest.fixture(scope="module")
def adapted() -> Run:
    return nano.opened(nano.CHECKPOINTS / "adapted")


def accuracies(run: Run) -> dict[str, float]:
    """By what stands in front of the queries."""
    answers = HeldOut(*run, batch_size=64).answers(held_out(nano.tasks(TASKS), run[1]))
    return {
        condition: torch.tensor([a.score for task in found for a in task]).mean().item()
        for condition, found in answers.items()
    }


def test_a_prefix_is_worth_most_of_its_examples_to_the_frozen_network(frozen: Run) -> None:
    found = accuracies(frozen)
    assert found[ZERO_SHOT] <= 0.16  # chance is 0.125, and half of the tasks are asked
    assert found[WRONG_TASK] <= 0.2
    assert found[OWN] >= 0.7
    assert found[IN_CONTEXT] >= 0.93


def test_a_network_adapted_to_prefixes_reads_them_as_well_as_the_examples(adapted: Run) -> None:
    found = accuracies(adapted)
    assert found[WRONG_TASK] <= 0.2
    assert found[OWN] >= 0.92
    assert found[OWN] >= found[IN_CONTEXT] - 0.03


def test_more_examples_make_a_better_prefix(frozen: Run) -> None:
    tuner, made = frozen
    found = []
    for examples in (1, 4, 10):
        options = {**vars(made.options), "max_examples": examples}
        encoder = EpisodeEncoder(made.tokenizer, EpisodeOptions(**options))
        answers = HeldOut(tuner, encoder, batch_size=64).behind_examples(
            held_out(nano.tasks(64), encoder), OWN
        )
        found.append(sum(a.score for task in answers for a in task))
    assert found == sorted(found)
    assert found[0] < 0.6 * found[2]


@pytest.mark.parametrize("name", ["frozen", "adapted"])
def test_prefix_tuning_starts_best_from_the_hypernetwork(
    name: str, request: pytest.FixtureRequest
) -> None:
    tuner, encoder = request.getfixturevalue(name)
    tuning = nano.tuned(tuner, encoder, 32)
    own = tuning.made()
    usual = tuning.made(held_out(nano.tasks(64, "train"), encoder, queries=0))
    stored = load_file(nano.CHECKPOINTS / "shared" / "tuner.safetensors")
    starts = {
        "own": own,
        "mean": mean_of(usual),
        "shared": Prefix(stored["keys"], stored["values"]),
        "random": random_like(own, 0),
    }
    found = {start: tuning.curve(prefix, [0, 10], start) for start, prefix in starts.items()}
    after = {start: nano.share(curve[10]) for start, curve in found.items()}
    assert after["own"] >= nano.share(found["own"][0])
    assert after["own"] >= after["mean"] + 0.02
    assert after["mean"] >= after["random"] + 0.1
    assert after["own"] >= after["shared"] + 0.1
    if name == "frozen":  # the network that the shared prefix was trained for
        assert after["shared"] >= after["random"] + 0.1


def test_the_checkpoints_are_small_and_know_no_other_machine() -> None:
    files = [file for file in nano.CHECKPOINTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 1_400_000
    for file in nano.CHECKPOINTS.rglob("tuner.json"):
        assert json.loads(file.read_text())["backbone"]["path"] is None
