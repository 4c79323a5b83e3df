"""Statistics of latencies: medians with bootstrap intervals, and the verdict on two interleaved series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
MIN_RUNS_FOR_P99 = 1000
NEGLIGIBLE = 0.02
"""Two files whose latencies differ by less than this share are called equal, whatever the interval says."""

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

    Pairing block by block cancels what slows the whole machine for a while.
    """
    assert len(baseline_ms) == len(candidate_ms)
    ratios = np.array([np.median(a) / np.median(b) for a, b in zip(baseline_ms, candidate_ms, strict=True)])
    interval = bootstrap(ratios)
    verdict: Verdict = "no difference"
    if interval[0] > 1 + NEGLIGIBLE:
        verdict = "faster"
    elif interval[1] < 1 - NEGLIGIBLE:
        verdict = "slower"
    return Speedup(float(np.median(ratios)), interval, verdict)


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
