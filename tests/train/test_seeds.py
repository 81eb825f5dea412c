"""Seeds of steps, and the caller's generators."""

from __future__ import annotations

import random

import numpy as np
import torch

from gistcli.train.seeds import deterministic, preserved_generators, seed_all, step_seed


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seeds_of_seed_step_and_rank_never_meet() -> None:
    seeds = {step_seed(s, t, r) for s in range(20) for t in range(200) for r in range(2)}
    assert len(seeds) == 20 * 200 * 2
    assert all(0 <= s < 2**63 for s in seeds)


def test_a_step_seed_is_the_same_in_every_version() -> None:
    assert step_seed(0, 0) == 759540517790923586
    assert step_seed(1, 23, 1) == 5568169190811773729


def test_all_generators_repeat() -> None:
    with preserved_generators():
        seed_all(5)
        first = draws()
        seed_all(5)
        assert draws() == first


def test_the_callers_generators_are_given_back() -> None:
    seed_all(1)
    expected = draws()
    seed_all(1)
    with preserved_generators():
        seed_all(99)
        draws()
    assert draws() == expected


def test_determinism_is_asked_for_and_given_back() -> None:
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
