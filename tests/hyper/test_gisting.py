"""Masks and positions of gisting, pair by pair against their definition."""

from __future__ import annotations

import torch
from torch import Tensor

from gistcli.hyper.gisting import (
    CONTEXT,
    GIST,
    PADDING,
    QUERY,
    allowed,
    full_context,
    gate,
    gist_cross_mask,
    gist_mask,
    gist_places,
    positions,
    queries_alone,
)

LAYOUTS = (
    [1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 5, 5],
    [1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 5, 0, 0, 0],
    [0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3],
    [1, 1, 0, 2, 0, 2, 3, 0, 3, 0, 4, 4, 0, 0],
    [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2],
)
"""Right and left padding, padding everywhere, and a row without a query."""
SPANS = torch.tensor(LAYOUTS)


def may_see(spans: list[int], q: int, k: int) -> bool:
    """The definition, word for word."""
    if k > q or spans[k] == PADDING or spans[q] == PADDING:
        return False
    if spans[q] in (CONTEXT, GIST):
        return spans[k] in (CONTEXT, GIST)
    return spans[k] == GIST or spans[k] == spans[q]


def enumerated(spans: Tensor) -> Tensor:
    rows, tokens = spans.shape
    pairs = [
        [[may_see(row, q, k) for k in range(tokens)] for q in range(tokens)]
        for row in spans.tolist()
    ]
    return torch.tensor(pairs).view(rows, tokens, tokens)


def test_every_allowed_pair_is_one_of_the_definition_and_the_reverse() -> None:
    assert torch.equal(allowed(SPANS), enumerated(SPANS))


def test_compression_shows_b_and_c_the_gists_alone_and_a_and_d_nothing_behind_them() -> None:
    parts = "AADDDGGBBBCCC"
    spans = torch.tensor([[{"A": 1, "D": 1, "G": 2, "B": 3, "C": 3}[p] for p in parts]])
    found = allowed(spans)[0]
    seen = {
        (parts[q], parts[k]) for q in range(len(parts)) for k in range(len(parts)) if found[q, k]
    }
    within = {("A", "A"), ("D", "A"), ("D", "D"), ("G", "A"), ("G", "D"), ("G", "G")}
    behind = {("B", "G"), ("C", "G"), ("B", "B"), ("C", "B"), ("C", "C")}
    assert seen == within | behind
    for q in range(len(parts)):
        wanted = [k for k in range(q + 1) if (parts[q], parts[k]) in seen]
        assert found[q].nonzero().flatten().tolist() == wanted


def test_positions_have_no_gap_and_every_query_goes_on_behind_the_gists() -> None:
    for row, found in zip(LAYOUTS, positions(SPANS).tolist(), strict=True):
        front = [p for p, span in zip(found, row, strict=True) if span in (CONTEXT, GIST)]
        assert front == list(range(len(front)))
        for query in {span for span in row if span >= QUERY}:
            own = [p for p, span in zip(found, row, strict=True) if span == query]
            assert own == list(range(len(front), len(front) + len(own)))


def test_the_gate_is_open_on_context_and_gists() -> None:
    assert gate(SPANS).shape == (len(LAYOUTS), len(LAYOUTS[0]), 1)
    assert torch.equal(gate(SPANS)[..., 0], ((SPANS == 1) | (SPANS == 2)).float())
    assert gist_places(SPANS, 2).tolist() == [[3, 4], [2, 3], [4, 5], [3, 5], [12, 13]]


def test_a_full_context_is_seen_itself_and_nothing_is_left_of_the_gists() -> None:
    spans = full_context(SPANS)
    assert torch.equal(spans == PADDING, (SPANS == PADDING) | (SPANS == GIST))
    found, wanted = allowed(spans), torch.zeros_like(enumerated(SPANS))
    for b, row in enumerate(LAYOUTS):
        for q in range(len(row)):
            for k in range(q + 1):
                real = row[q] not in (PADDING, GIST) and row[k] not in (PADDING, GIST)
                wanted[b, q, k] = real and (row[k] == CONTEXT or row[k] == row[q])
    assert torch.equal(found, wanted)
    first = positions(spans)[0].tolist()
    assert first[:3] == [0, 1, 2]
    assert first[5:] == [3, 4, 5, 3, 4, 3, 4, 5, 6]


def test_queries_alone_see_themselves_and_count_from_zero() -> None:
    spans = queries_alone(SPANS)
    assert not allowed(spans)[:, :, :3].any()
    assert positions(spans)[0, 5:].tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]


def test_masks_of_mu_et_al_are_the_published_ones() -> None:
    gists = torch.tensor([[False, False, False, True, False]])
    lower = torch.ones(5, 5).tril().bool()
    wanted = torch.tensor(
        [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [0, 0, 0, 1, 1]]
    ).bool()
    assert torch.equal(gist_mask(gists, causal=False)[0], wanted)
    assert torch.equal(gist_mask(gists, causal=True)[0], wanted & lower)
    assert gist_cross_mask(gists).tolist() == [[False, False, False, True, True]]


def test_masks_of_mu_et_al_take_several_gists_and_rows_without_one() -> None:
    gists = torch.tensor([[0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    found = gist_mask(gists, causal=False)
    for q in range(6):
        for k in range(6):
            hidden = (q > 3 and k < 1) or (q <= 3 and k > 3)
            assert bool(found[0, q, k]) is not hidden
    assert found[1].all()
    assert torch.equal(gist_mask(gists, causal=True)[1], torch.ones(6, 6).tril().bool())
    assert gist_cross_mask(gists).tolist() == [[False] + [True] * 5, [True] * 6]
