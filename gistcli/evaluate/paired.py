"""Paired differences of two classifiers on the same examples, with bootstrap intervals.

Everything here works on which examples were right, not on rates: two rates that differ by a point
on the same 500 examples can be almost certainly different or not at all, depending on how many
examples only one of the two gets right.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
ENTROPY = 5
"""Of the generator of every interval: the same outcomes have the same interval."""
_CELLS = 4_000_000
"""Counts that are held at once while means are drawn (32 MB)."""


@dataclass(frozen=True)
class Outcomes:
    """What the runs of one row got right on one task.

    Attributes:
        correct_SN: (S, N) 0 or 1 for S runs on N examples.
        seeds: of the S runs, each another.
    """

    correct_SN: np.ndarray
    seeds: tuple[Hashable, ...]


@dataclass(frozen=True)
class Resampled:
    """A difference of two accuracies, and what it would have been in other samples.

    Attributes:
        mean: the difference, as a fraction.
        by_examples_B: it again, for B samples of the examples, the runs as they are.
        by_both_B: the same with other seeds, too; None where a row has a single one.
        by_seed: seed -> difference of the two runs with it; None where the rows' seeds differ.
        examples: how many are behind it.
    """

    mean: float
    by_examples_B: np.ndarray
    by_both_B: np.ndarray | None
    by_seed: Mapping[Hashable, float] | None
    examples: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, over examples: what other examples of the same kind would give these runs."""
        return percentile_interval(self.by_examples_B)

    @property
    def interval_with_seeds(self) -> tuple[float, float] | None:
        """95 %, over examples and seeds: what other runs on other examples would give."""
        return None if self.by_both_B is None else percentile_interval(self.by_both_B)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds that both rows have; None for a single one."""
        if self.by_seed is None or len(self.by_seed) < 2:
            return None
        return float(np.std(list(self.by_seed.values()), ddof=1))


def percentile_interval(values_B: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The central share `level` of the values."""
    low, high = np.quantile(values_B, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_means(
    values_N: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES
) -> np.ndarray:
    """(B,) means of B samples of N values, drawn with replacement.

    How often each distinct value is drawn has a multinomial distribution. Drawing these counts is
    the same bootstrap as drawing N places, without the B x N of them: differences of 0/1 outcomes
    have few distinct values.
    """
    distinct_K, counts_K = np.unique(values_N, return_counts=True)
    n, size = len(values_N), max(1, _CELLS // len(distinct_K))
    shares_K = counts_K / n
    sizes = [min(size, resamples - start) for start in range(0, resamples, size)]
    return np.concatenate([rng.multinomial(n, shares_K, b) @ distinct_K / n for b in sizes])


def interval_of_mean(values_N: np.ndarray) -> tuple[float, float]:
    """95 % of the mean, over its values (bootstrap): what others of their kind would have given."""
    return percentile_interval(resampled_means(values_N, np.random.default_rng(ENTROPY)))


def paired(row: Outcomes, reference: Outcomes, name: str, resamples: int = RESAMPLES) -> Resampled:
    """Accuracy of a row minus that of a reference on one task, both averaged over their seeds.

    d_n = mean_s row[s, n] - mean_s reference[s, n] is the difference on example n. The N values d_n
    are resampled (percentile bootstrap). To that, for both seeds and examples, comes the error of
    the mean over S seeds: s / sqrt(S) t_(S-1) with Student's t and s the deviation over seeds (of
    the seeds' differences where both rows have the same seeds; of each row on its own else). With
    three seeds that is wide, and rightly so. What seed and example do together is counted in both
    parts; the interval errs on the wide side by that.

    Args:
        row, reference: outcomes on the same examples in the same order.
        name: of the task; decides the random numbers together with ENTROPY.
        resamples: B.
    """
    a_SN, b_SN = row.correct_SN.astype(np.int64), reference.correct_SN.astype(np.int64)
    s, t, n = len(a_SN), len(b_SN), a_SN.shape[1]
    # whole numbers, so that equal differences are one value
    scaled_N = a_SN.sum(axis=0) * t - b_SN.sum(axis=0) * s
    rng = np.random.default_rng([ENTROPY, zlib.crc32(name.encode())])
    by_examples_B = resampled_means(scaled_N, rng, resamples) / (s * t)
    a_S, b_S = a_SN.mean(axis=1), b_SN.mean(axis=1)
    by_seed = _by_seed(row.seeds, a_S, reference.seeds, b_S)
    noise_B = _seed_noise(by_seed, a_S, b_S, rng, resamples)
    return Resampled(
        mean=float(scaled_N.sum() / (s * t * n)),
        by_examples_B=by_examples_B,
        by_both_B=None if noise_B is None else by_examples_B + noise_B,
        by_seed=by_seed,
        examples=n,
    )


def paired_over(
    pairs: Sequence[tuple[Outcomes, Outcomes]], name: str, resamples: int = RESAMPLES
) -> Resampled | None:
    """The mean of the differences of several pairs of rows on one task, such as several methods.

    All were measured on the same examples and with the same seeds, so each sample of these is the
    same for all pairs: what one example does to all of them does not average out.

    Args:
        pairs: (row, reference), as `paired` takes them.
        name: of the task.
        resamples: B.

    Returns:
        None where the seeds are not the same in all pairs.
    """
    if len({outcomes.seeds for pair in pairs for outcomes in pair}) != 1:
        return None
    rows, references = (
        Outcomes(np.stack([o.correct_SN for o in side]).sum(axis=0, dtype=np.int64), side[0].seeds)
        for side in zip(*pairs, strict=True)
    )
    total, m = paired(rows, references, name, resamples), len(pairs)
    by_both_B, by_seed = total.by_both_B, total.by_seed
    return Resampled(
        mean=total.mean / m,
        by_examples_B=total.by_examples_B / m,
        by_both_B=None if by_both_B is None else by_both_B / m,
        by_seed=None if by_seed is None else {seed: d / m for seed, d in by_seed.items()},
        examples=total.examples,
    )


def averaged(parts: Sequence[Resampled]) -> Resampled:
    """The mean of differences on several tasks; every task was resampled on its own."""
    by_both = [p.by_both_B for p in parts if p.by_both_B is not None]
    seeds = [p.by_seed for p in parts if p.by_seed is not None]
    same = len(seeds) == len(parts) and all(s.keys() == seeds[0].keys() for s in seeds)
    return Resampled(
        mean=float(np.mean([p.mean for p in parts])),
        by_examples_B=np.mean([p.by_examples_B for p in parts], axis=0),
        by_both_B=np.mean(by_both, axis=0) if len(by_both) == len(parts) else None,
        by_seed={k: float(np.mean([s[k] for s in seeds])) for k in seeds[0]} if same else None,
        examples=sum(p.examples for p in parts),
    )


def _by_seed(
    seeds_a: Sequence[Hashable], a_S: np.ndarray, seeds_b: Sequence[Hashable], b_S: np.ndarray
) -> dict[Hashable, float] | None:
    a, b = dict(zip(seeds_a, a_S, strict=True)), dict(zip(seeds_b, b_S, strict=True))
    return {seed: float(a[seed] - b[seed]) for seed in a} if a.keys() == b.keys() else None


def _seed_noise(
    by_seed: Mapping[Hashable, float] | None,
    a_S: np.ndarray,
    b_S: np.ndarray,
    rng: np.random.Generator,
    resamples: int,
) -> np.ndarray | None:
    """(B,) errors of a difference that come from the choice of the seeds."""
    samples = [a_S, b_S] if by_seed is None else [np.array(list(by_seed.values()))]
    if any(len(values_S) < 2 for values_S in samples):
        return None
    return np.sum(
        [
            values_S.std(ddof=1)
            / np.sqrt(len(values_S))
            * rng.standard_t(len(values_S) - 1, resamples)
            for values_S in samples
        ],
        axis=0,
    )
