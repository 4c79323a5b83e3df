"""Statistics of latencies: medians with bootstrap intervals, and the verdict on two interleaved series."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Literal

import numpy as np

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
MIN_RUNS_FOR_P99 = 1000
NEGLIGIBLE = 0.01
"""Two files whose latencies differ by less than this share are called equal, whatever the interval says.

Where a file happens to lie in memory can make that much (T. Mytkowicz et al., Producing Wrong Data Without Doing
Anything Obviously Wrong!, 2009).
"""

Verdict = Literal["faster", "slower", "no difference"]


@dataclass(frozen=True)
class Latency:
    """Latencies of one file in milliseconds."""

    median: float
    p90: float
    p99: float | None
    ci95: tuple[float, float]
    runs: int


@dataclass(frozen=True)
class Speedup:
    """Baseline latency ÷ candidate latency: above 1 the candidate is faster."""

    median: float
    ci95: tuple[float, float]
    verdict: Verdict


def summarize(blocks_ms: list[np.ndarray]) -> Latency:
    """One file's latency from its blocks of samples, each (runs,) in ms.

    The median is that of the blocks' medians, and its interval is a bootstrap over blocks, since
    runs within a block are not independent. p99 needs 1,000 runs to mean anything.
    """
    samples = np.concatenate(blocks_ms)
    medians = np.array([np.median(block) for block in blocks_ms])
    return Latency(
        median=float(np.median(medians)),
        p90=float(np.percentile(samples, 90)),
        p99=float(np.percentile(samples, 99)) if len(samples) >= MIN_RUNS_FOR_P99 else None,
        ci95=bootstrap(medians),
        runs=len(samples),
    )


def compare(baseline_ms: list[np.ndarray], candidate_ms: list[np.ndarray]) -> Speedup:
    """The speed-up of a candidate from blocks that were measured in turn, block i of both right after another.

    Pairing block by block cancels what slows the whole machine for a while. Of the pairs' logarithms, so that turning
    the two round turns the result round, the estimate is that of Hodges and Lehmann, and the interval that of
    Wilcoxon's signed ranks: they bear outliers in a quarter of the pairs, and take a third fewer pairs than medians do.
    The interval is that of these two sessions: with the same files opened anew, the speed-up may be another by some
    tenths of a percent, which `NEGLIGIBLE` is for.
    """
    assert len(baseline_ms) == len(candidate_ms)
    logs = np.log([np.median(a) / np.median(b) for a, b in zip(baseline_ms, candidate_ms, strict=True)])
    median, low, high = np.exp(signed_rank_interval(logs))
    verdict: Verdict = "no difference"
    if low > 1 + NEGLIGIBLE:
        verdict = "faster"
    elif high < 1 / (1 + NEGLIGIBLE):
        verdict = "slower"
    return Speedup(float(median), (float(low), float(high)), verdict)


def signed_rank_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """The centre of `values` (n,) and its interval, for any distribution that is symmetric about it.

    The centre is the median of the means of all pairs, a value with itself among them; the interval holds those centres
    that the signed-rank test would not reject. Below 6 values no interval is wide enough: it is then all of them.
    Sources: F. Wilcoxon, 1945; J. L. Hodges and E. L. Lehmann, Estimates of Location Based on Rank Tests, 1963.
    """
    first, second = np.triu_indices(len(values))
    means = np.sort((values[first] + values[second]) / 2)
    outside = _outside(len(values), (1 - confidence) / 2)
    return float(np.median(means)), float(means[outside]), float(means[-1 - outside])


def rank_sum_interval(
    first: np.ndarray, second: np.ndarray, confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """How far `second` (m,) lies above `first` (n,), and the interval of that, where the two are no pairs.

    The median of all differences, with the interval of Mann's and Whitney's test by its normal approximation, which
    serves from ten values or so on; sources: H. B. Mann and D. R. Whitney, 1947; Hodges and Lehmann, 1963.
    """
    shifts = np.sort(np.subtract.outer(second, first).ravel())
    size, other = len(first), len(second)
    deviation = math.sqrt(size * other * (size + other + 1) / 12)
    outside = size * other / 2 - NormalDist().inv_cdf((1 + confidence) / 2) * deviation
    index = min(max(int(outside) - 1, 0), (len(shifts) - 1) // 2)
    return float(np.median(shifts)), float(shifts[index]), float(shifts[-1 - index])


@cache
def _outside(count: int, tail: float) -> int:
    """How many of the sorted means lie on either side of the interval, whose sides leave out `tail` each."""
    ways = np.zeros(count * (count + 1) // 2 + 1)
    ways[0] = 1.0
    for rank in range(1, count + 1):  # each rank is positive or negative with equal chance
        ways[rank:] += ways[:-rank].copy()
        ways /= 2
    return max(int(np.searchsorted(np.cumsum(ways), tail, side="right")) - 1, 0)


def bootstrap(
    values: np.ndarray, statistic: Callable[..., np.ndarray] = np.median, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of `values` (n,), with a fixed seed (B. Efron, 1979)."""
    rng = np.random.default_rng(0)
    resampled = rng.choice(values, size=(NUM_RESAMPLES, len(values)), replace=True)
    tail = (1 - confidence) / 2 * 100
    low, high = np.percentile(statistic(resampled, axis=1), [tail, 100 - tail])
    return float(low), float(high)


def sqnr_db(reference: np.ndarray, other: np.ndarray) -> float:
    """Signal-to-quantization-noise ratio in dB; 240 where the two are equal, so that it stays a JSON number."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(reference.astype(np.float64) - other).sum())
    if noise == 0:
        return EXACT_DB
    if signal == 0:
        return -EXACT_DB
    return float(np.clip(10 * np.log10(signal / noise), -EXACT_DB, EXACT_DB))


EXACT_DB = 240.0
