"""Paired differences: exact means, and intervals against closed forms and against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gistcli.evaluate import paired as module
from gistcli.evaluate.paired import (
    Outcomes,
    averaged,
    paired,
    paired_over,
    percentile_interval,
    resampled_means,
)

Z = 1.959963984540054


def outcomes(rates: list[float], n: int = 400, seed: int = 0, first: int = 0) -> Outcomes:
    """Runs with the seeds first, first + 1, ... that get each example right with a chance."""
    rng = np.random.default_rng(seed)
    correct_SN = np.stack([(rng.random(n) < rate).astype(np.uint8) for rate in rates])
    return Outcomes(correct_SN, tuple(range(first, first + len(rates))))


def test_the_mean_is_exactly_the_difference_of_the_mean_accuracies() -> None:
    a, b = outcomes([0.8, 0.7, 0.9]), outcomes([0.6, 0.5], seed=1)
    found = paired(a, b, "digits")
    assert found.mean == pytest.approx(a.correct_SN.mean() - b.correct_SN.mean(), abs=1e-15)
    assert found.examples == 400
    assert paired(b, a, "digits").mean == -found.mean


def test_the_interval_over_examples_is_that_of_the_normal_distribution_for_many_examples() -> None:
    a, b = outcomes([0.8, 0.8, 0.8], n=5000), outcomes([0.7, 0.75, 0.8], n=5000, seed=1)
    d_N = a.correct_SN.mean(axis=0) - b.correct_SN.mean(axis=0)
    error = d_N.std(ddof=1) / np.sqrt(len(d_N))
    low, high = paired(a, b, "t").interval
    assert low == pytest.approx(d_N.mean() - Z * error, abs=0.04 * error)
    assert high == pytest.approx(d_N.mean() + Z * error, abs=0.04 * error)


def test_the_interval_is_that_of_scipy() -> None:
    a, b = outcomes([0.9], n=120), outcomes([0.8], n=120, seed=1)
    d_N = a.correct_SN[0].astype(float) - b.correct_SN[0]
    theirs = stats.bootstrap(
        (d_N,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    ours = paired(a, b, "t", resamples=20_000).interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1 / 120)  # one step of the mean


def test_drawing_counts_is_drawing_places() -> None:
    values_N = np.array([0.0, 0.0, 0.25, 0.5, 1.0, 1.0, 1.0, -1.0])
    rng = np.random.default_rng(0)
    counted = resampled_means(values_N, rng, 40_000)
    placed = values_N[rng.integers(0, 8, (40_000, 8))].mean(axis=1)
    assert counted.mean() == pytest.approx(values_N.mean(), abs=0.006)
    assert counted.var() == pytest.approx(values_N.var() / 8, rel=0.03)
    assert stats.ks_2samp(counted, placed).statistic < 0.012


def test_values_that_are_all_distinct_are_drawn_in_portions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values_N = np.random.default_rng(0).random(300)
    monkeypatch.setattr(module, "_CELLS", 7_000)
    means = resampled_means(values_N, np.random.default_rng(1), 2_000)
    assert means.shape == (2_000,)
    assert means.std() == pytest.approx(values_N.std() / np.sqrt(300), rel=0.08)


def test_examples_that_both_get_right_or_wrong_do_not_widen_the_interval() -> None:
    a_SN = np.array([[1] * 60 + [0] * 40], dtype=np.uint8)
    same = paired(Outcomes(a_SN, (0,)), Outcomes(a_SN, (0,)), "t")
    assert (same.mean, same.interval) == (0.0, (0.0, 0.0))
    b_SN = a_SN.copy()
    b_SN[0, :10] = 0
    low, high = paired(Outcomes(a_SN, (0,)), Outcomes(b_SN, (0,)), "t").interval
    assert 0 < low < 0.1 < high
    unpaired = np.sqrt(0.6 * 0.4 / 100 + 0.5 * 0.5 / 100)
    assert high - low < 2 * Z * unpaired * 0.5


def test_one_seed_has_no_deviation_and_no_interval_over_seeds() -> None:
    found = paired(outcomes([0.8]), outcomes([0.7], seed=1), "t")
    assert found.deviation is None
    assert found.interval_with_seeds is None
    assert paired(outcomes([0.8, 0.8]), outcomes([0.7], seed=1), "t").interval_with_seeds is None


def test_where_only_seeds_vary_the_interval_is_that_of_student() -> None:
    rates = np.array([0.5, 0.6, 0.8])
    row = np.stack([np.arange(1000) < 1000 * rate for rate in rates]).astype(np.uint8)
    # every example is drawn from either all right or all wrong runs of the reference
    reference = np.zeros((3, 1000), dtype=np.uint8)
    found = paired(Outcomes(row, (0, 1, 2)), Outcomes(reference, (0, 1, 2)), "t", 200_000)
    error = rates.std(ddof=1)
    assert found.deviation == pytest.approx(error)
    assert found.by_both_B is not None
    noise_B = found.by_both_B - found.by_examples_B
    half = stats.t.ppf(0.975, 2) * error / np.sqrt(3)
    assert percentile_interval(noise_B) == pytest.approx((-half, half), rel=0.03)


def test_matched_seeds_are_compared_seed_by_seed_and_others_are_not() -> None:
    up_and_down = np.stack([np.arange(100) < k for k in (50, 90)]).astype(np.uint8)
    below = np.stack([np.arange(100) < k for k in (40, 80)]).astype(np.uint8)
    matched = paired(Outcomes(up_and_down, (0, 1)), Outcomes(below, (0, 1)), "t")
    assert matched.by_seed == {0: pytest.approx(0.1), 1: pytest.approx(0.1)}
    assert matched.deviation == pytest.approx(0)
    other = paired(Outcomes(up_and_down, (0, 1)), Outcomes(below, (2, 3)), "t")
    assert other.by_seed is None
    assert other.deviation is None
    assert matched.interval_with_seeds is not None
    assert other.interval_with_seeds is not None
    widths = [np.ptp(one.interval_with_seeds) for one in (matched, other)]
    assert widths[1] > 5 * widths[0]


def test_a_mean_of_tasks_adds_their_variances_and_keeps_the_seeds_together() -> None:
    parts = [
        paired(outcomes([0.8, 0.8], n, n), outcomes([0.7, 0.7], n, n + 1), f"t{n}")
        for n in (200, 1000, 3000)
    ]
    mean = averaged(parts)
    assert mean.mean == pytest.approx(np.mean([p.mean for p in parts]))
    assert mean.examples == 4200
    expected = np.sqrt(sum(p.by_examples_B.var() for p in parts)) / 3
    assert mean.by_examples_B.std() == pytest.approx(expected, rel=0.04)
    assert mean.by_seed is not None
    by_seed = [np.mean([p.by_seed[s] for p in parts if p.by_seed]) for s in (0, 1)]
    assert mean.deviation == pytest.approx(np.std(by_seed, ddof=1))
    single = paired(outcomes([0.8]), outcomes([0.7], seed=1), "other")
    assert averaged([*parts, single]).interval_with_seeds is None
    assert averaged([*parts, single]).deviation is None


def test_the_same_outcomes_have_the_same_interval_and_another_task_its_own_numbers() -> None:
    a, b = outcomes([0.8, 0.9]), outcomes([0.7, 0.6], seed=1)
    assert np.array_equal(paired(a, b, "x").by_examples_B, paired(a, b, "x").by_examples_B)
    assert not np.array_equal(paired(a, b, "x").by_examples_B, paired(a, b, "y").by_examples_B)


def test_intervals_hold_the_true_difference_as_often_as_they_say() -> None:
    """Examples of different difficulty, seeds of different luck: 95 % with seeds, less without."""
    rng = np.random.default_rng(0)
    inside, inside_both, trials, n = 0, 0, 300, 250
    truth = _expected(0.75) - _expected(0.70)
    for trial in range(trials):
        difficulty_N = rng.normal(0, 0.2, n)
        rows = []
        for mean in (0.75, 0.70):
            luck_S = rng.normal(0, 0.03, 3)
            chance_SN = np.clip(mean + luck_S[:, None] + difficulty_N, 0, 1)
            rows.append(Outcomes((rng.random((3, n)) < chance_SN).astype(np.uint8), (0, 1, 2)))
        found = paired(rows[0], rows[1], f"trial {trial}", resamples=1000)
        assert found.interval_with_seeds is not None
        inside += found.interval[0] <= truth <= found.interval[1]
        inside_both += found.interval_with_seeds[0] <= truth <= found.interval_with_seeds[1]
    assert inside_both / trials > 0.94
    assert inside / trials < 0.9


def _expected(mean: float) -> float:
    """Accuracy with a rate of N(mean, 0.2^2 + 0.03^2), clipped to [0, 1]."""
    sample = np.random.default_rng(1).normal(mean, np.hypot(0.2, 0.03), 400_000)
    return float(np.clip(sample, 0, 1).mean())


def test_a_mean_of_pairs_draws_the_same_examples_for_all_of_them() -> None:
    a, b = outcomes([0.8, 0.7], n=2000), outcomes([0.6, 0.5], n=2000, seed=1)
    one = paired(a, b, "t")
    same = paired_over([(a, b), (a, b), (a, b)], "t")
    assert same is not None
    assert same.mean == pytest.approx(one.mean)
    assert same.interval == pytest.approx(one.interval)  # three copies say nothing new
    assert same.interval_with_seeds == pytest.approx(one.interval_with_seeds)
    assert same.by_seed == pytest.approx(one.by_seed)
    c, d = outcomes([0.8, 0.7], n=2000, seed=2), outcomes([0.6, 0.5], n=2000, seed=3)
    both = paired_over([(a, b), (c, d)], "t")
    assert both is not None
    assert both.mean == pytest.approx((one.mean + paired(c, d, "t").mean) / 2)
    ratio = np.diff(both.interval) / np.diff(one.interval)
    assert ratio == pytest.approx(2**-0.5, rel=0.05)  # independent ones do


def test_a_mean_of_pairs_needs_the_same_seeds_in_all() -> None:
    a, b = outcomes([0.8, 0.7]), outcomes([0.6, 0.5], seed=1)
    assert paired_over([(a, b), (outcomes([0.8, 0.7], first=1), b)], "t") is None
