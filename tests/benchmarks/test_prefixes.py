"""What `make bench` compares is what it says: the same question behind different fronts."""

from __future__ import annotations

import pytest
import torch

from gistcli.backbones.prefix import given_cache
from tests.benchmarks.gated import CAUSAL, ONE_PASS, TWO_PASSES, Network, Rows, steps
from tests.benchmarks.prefixes import (
    ANEW,
    COMPRESS,
    FOLLOWING,
    GISTS,
    KEPT,
    NOTHING,
    OWN,
    PROMPT,
    READ,
    Uses,
    about_compressing,
    break_even,
    latency_rows,
    turns_of,
)
from tests.benchmarks.timing import measure

TINY = Network("tiny", 16, 32, 2, 4, 2, 50)
EXAMPLES = 20


@pytest.fixture(scope="module")
def uses() -> Uses:
    return Uses(TINY, EXAMPLES)


def test_examples_that_are_kept_answer_as_those_read_anew(uses: Uses) -> None:
    with torch.no_grad():
        found = {name: uses.first(name) for name in uses.fronts}
    torch.testing.assert_close(found[KEPT].logits, found[ANEW].logits)
    assert not torch.allclose(found[OWN].logits, found[NOTHING].logits, atol=1e-4)
    lengths = {name: given_cache(each).get_seq_length() - PROMPT for name, each in found.items()}
    assert lengths == {NOTHING: 0, OWN: GISTS, KEPT: EXAMPLES, ANEW: EXAMPLES}
    with torch.no_grad(), uses.tuner.prefix_in_use(uses.fronts[OWN]):
        inside = uses.tuner({"input_ids": uses.reads[OWN]}).logits[:, -1:]
    torch.testing.assert_close(found[OWN].logits, inside)


def test_bytes_are_those_of_keys_and_values(uses: Uses) -> None:
    a_token = 2 * TINY.layers * TINY.kv_heads * (TINY.width // TINY.heads) * 4
    assert uses.nbytes(NOTHING) == 0
    assert uses.nbytes(OWN) == GISTS * a_token
    assert uses.nbytes(KEPT) == uses.nbytes(ANEW) == EXAMPLES * a_token


def test_following_tokens_are_forgotten(uses: Uses, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    write, forward = uses.following(OWN), uses.model.forward

    def told(*args: object, **kwargs: object) -> object:
        calls.append(given_cache(kwargs).get_seq_length())
        return forward(*args, **kwargs)

    monkeypatch.setattr(uses.model, "forward", told)
    with torch.no_grad():
        write()
        write()
    assert calls == 2 * [GISTS + PROMPT + n for n in range(FOLLOWING)]


def test_a_way_that_costs_more_at_first_pays_from_a_number_of_queries_on() -> None:
    assert break_even(10, 1, 0, 3) == 6
    assert break_even(9, 1, 0, 3) == 5
    assert break_even(1, 1, 5, 3) == 1
    assert break_even(1, 3, 0, 3) is None


def test_every_front_has_a_row(uses: Uses) -> None:
    seconds = measure(turns_of(uses), rounds=2, together=True)
    assert {COMPRESS, READ} < set(seconds)
    rows = [line.strip("| ").split(" | ") for line in latency_rows(uses, seconds)[2:]]
    assert [row[:2] for row in rows] == [
        [NOTHING, "0"],
        [OWN, str(GISTS)],
        [KEPT, str(EXAMPLES)],
        [ANEW, str(EXAMPLES)],
    ]
    assert rows[1][3] == "1.00"
    assert "from query" in about_compressing(
        {OWN: [1.0], ANEW: [3.0], KEPT: [1.0], COMPRESS: [9.0], READ: [2.0]}
    )


def test_the_steps_learn_from_the_same_tokens() -> None:
    losses = {
        name: float(build().loss().detach())
        for name, build in steps(TINY, Rows(2, 7, 3, 4, 2)).items()
    }
    assert set(losses) == {CAUSAL, ONE_PASS, TWO_PASSES}
    assert losses[ONE_PASS] == pytest.approx(losses[TWO_PASSES], rel=1e-5)
    assert losses[ONE_PASS] != pytest.approx(losses[CAUSAL], rel=1e-5)
